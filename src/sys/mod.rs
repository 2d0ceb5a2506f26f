//! The system below the program: the clock, private files, paths, the log, threads, detached processes.

pub mod calendar;
pub mod clock;
pub mod conntrack;
pub mod detach;
pub mod jitter;
pub mod log;
pub mod paths;
pub(crate) mod peer_addresses;
pub mod private_files;
pub mod runtime;
