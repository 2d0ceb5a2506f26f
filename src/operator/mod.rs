//! What a person asks of the fleet, and does to it. None of it needs the daemon: the broker has it all.

pub mod ask;
pub mod ban;
pub mod check;
pub mod clock;
pub mod forget;
pub mod gather;
pub mod list;
pub mod local;
pub mod out;
pub mod status;
pub mod unban;
pub mod view;
pub mod visit;

use crate::cli::operator::Operation;
use crate::error::Error;
use crate::paths::Paths;

/// Does what the operator asked for.
///
/// # Errors
/// Any [`Error`].
pub fn run(operation: &Operation, paths: &Paths) -> Result<(), Error> {
    match operation {
        Operation::Check(args) => check::run(args.json, paths),
        Operation::Status(args) => status::run(args.json, paths),
        Operation::List(args) => list::run(args, paths),
        Operation::Ban(args) => ban::run(args, paths),
        Operation::Unban(args) => unban::run(args, paths),
        Operation::Forget(args) => forget::run(args),
    }
}
