//! What a person asks of the fleet, and does to it. None of it needs the daemon: the broker has it all.
//!
//! - [`visit`]: a command's own connection. What it asks for and when it has all, [`gather`] says, and what
//!   it means, [`view`]; both are pure. [`local`]: what this host itself knows.
//! - [`status`], [`list`], [`watch`] show; [`ban`], [`unban`], [`forget`] act, and say what came of it.
//! - [`out`], [`clock`]: text, tables, JSON and times for people; [`ask`]: whether they mean it.

pub mod ask;
pub mod ban;
pub mod check;
pub mod clock;
pub mod forget;
pub mod gather;
mod known;
mod leave;
pub mod list;
pub mod local;
mod names;
pub mod out;
pub mod status;
pub mod unban;
pub mod view;
pub mod visit;
pub mod watch;

use crate::cli::operator::Operation;
use crate::config::Config;
use crate::error::Error;
use crate::paths::Paths;

/// Does what the operator asked for.
///
/// # Errors
/// Any [`Error`].
pub fn run(operation: &Operation, paths: &Paths) -> Result<(), Error> {
    // Settings that cannot be used say nothing of it; each command tells of that by itself.
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
