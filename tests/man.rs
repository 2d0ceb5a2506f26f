//! The manual page says what the command line says: it is made from it.

use std::path::Path;

use clap::CommandFactory as _;
use f2bmqtt::cli::Cli;

#[test]
fn the_manual_page_is_made_from_the_command_line() {
    let mut page = Vec::new();
    let manual = clap_mangen::Man::new(Cli::command()).section("8").manual("f2bmqtt");
    manual.render(&mut page).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("debian/f2bmqtt.8");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == String::from_utf8(page).unwrap(),
        "make it anew: BLESS=1 cargo test --test man"
    );
}
