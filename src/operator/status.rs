//! `f2bmqtt status`: is it working, on every host?

use crate::config::Config;
use crate::error::Error;
use crate::journal::say;
use crate::lock;
use crate::paths::Paths;

/// Shows it.
///
/// # Errors
/// Any [`Error`].
pub fn run(json: bool, paths: &Paths) -> Result<(), Error> {
    let config = Config::load()?;
    let running = lock::is_held(&paths.lock());
    if json {
        let host = config.node.as_str();
        say(serde_json::json!({ "host": host, "service": { "running": running } }));
        return Ok(());
    }
    say(format_args!("this host  {}", config.node));
    say(format_args!("service    {}", if running { "runs" } else { "does not run" }));
    Ok(())
}
