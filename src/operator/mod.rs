//! What a person asks of the fleet, and does to it. None of it needs the daemon: the broker has it all.

pub mod check;
pub mod status;

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
    }
}
