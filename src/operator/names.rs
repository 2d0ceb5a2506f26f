//! `f2bmqtt names`: names for shell completions. The command queries only this host, and prints nothing if that fails: a
//! completion must not wait for a broker.

use std::fmt::Write as _;

use super::local_host;
use super::render::BufferedStdout;
use crate::cli::operator::Named;
use crate::config::Config;
use crate::error::Error;
use crate::model::text::sanitize;
use crate::store::reader;
use crate::sys::paths::Paths;
use crate::sys::runtime;

/// The most names that are printed.
const MAX_NAMES: usize = 1_000;

/// Prints the names, one a line.
///
/// # Errors
/// [`Error::Start`].
pub(super) fn run(named: Named, paths: &Paths) -> Result<(), Error> {
    let list: Vec<String> = match named {
        Named::Jails => {
            let jails = runtime::run(async { Ok(local_host::query_jails(paths).await) })?;
            jails.unwrap_or_default().iter().map(ToString::to_string).collect()
        }
        Named::Hosts => Config::load().map_or_else(
            |_| Vec::new(),
            |config| {
                let mut hosts = reader::origins(paths);
                hosts.insert(config.node);
                hosts.iter().map(ToString::to_string).collect()
            },
        ),
        Named::Addresses => {
            local_host::read_addresses(paths).iter().map(ToString::to_string).collect()
        }
    };
    let mut to = BufferedStdout::default();
    for name in list.iter().take(MAX_NAMES) {
        let _ = writeln!(to, "{}", sanitize(name));
    }
    Ok(())
}
