//! The operator's commands. They need no daemon: the broker keeps the state of the whole fleet.
//!
//! - [`broker::fleet_client`](crate::broker::fleet_client) connects to the broker, and reads the state of the fleet.
//!   [`local_host`] reads the state of this host.
//! - [`status`], [`list`], [`watch`] and [`check`] show; [`ban`], [`unban`] and [`forget`] act, and show the result.
//! - [`render`] and [`time_format`] render text, tables, JSON and times; [`confirm`] asks for confirmation.

pub mod ban;
pub mod check;
pub mod confirm;
pub mod forget;
mod known;
mod leave;
pub mod list;
pub mod local_host;
mod names;
pub mod render;
pub mod status;
pub mod time_format;
pub mod unban;
pub mod watch;

use crate::cli::operator::Operation;
use crate::config::Config;
use crate::error::Error;
use crate::sys::paths::Paths;

/// Runs one command.
///
/// # Errors
/// Any [`Error`].
pub fn run(operation: &Operation, paths: &Paths) -> Result<(), Error> {
    // Each command reports invalid settings itself; here, they only mean the default socket.
    let socket = Config::load().ok().and_then(|config| config.fail2ban_socket);
    let paths = &paths.located(socket.as_deref());
    match operation {
        Operation::Check(args) => check::run(args.json, paths),
        Operation::Status(args) => status::run(args.json, paths),
        Operation::List(args) => list::run(args, paths),
        Operation::Watch => watch::run(),
        Operation::Ban(args) => ban::run(args, paths),
        Operation::Unban(args) => unban::run(args, paths),
        Operation::Forget(args) => forget::run(args, paths),
        Operation::Leave => leave::run(paths),
        Operation::Names { named } => names::run(*named, paths),
    }
}
