//! A report's comment, of whatever an attacker writes into a log: short, and with nothing private.
#![no_main]

use f2bmqtt::abuseipdb::comment::{MAX, Private, compose};
use f2bmqtt::wire::Address;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|texts: (&str, &str)| {
    let private = Private {
        names: vec!["web1".to_owned(), "web1.example.org".to_owned()],
        addresses: vec!["192.0.2.10".parse().unwrap(), "2001:db8::10".parse().unwrap()],
        accounts: vec!["ann".to_owned()],
    };
    let about = Address::new("203.0.113.9").unwrap();
    let comment = compose([texts.0, texts.1], about, &private);
    assert!(comment.chars().count() <= MAX);
    assert!(!comment.contains(|c: char| c.is_control() && c != '\n'));
    let part = |c: char| c.is_alphanumeric() || c == '_';
    let words = comment.to_ascii_lowercase();
    let cut_off = comment.chars().count() == MAX;
    for word in words.split(|c| !part(c)) {
        // What is cut at the end may become a name that was part of another word.
        assert!(cut_off || !["web1", "ann"].contains(&word), "{comment}");
    }
});
