//! The operator's part of the command line.

use clap::{Args, Subcommand};

/// The operator's commands.
#[derive(Debug, Subcommand)]
pub enum Operation {
    /// Show whether it works: this host, the broker, every host of the fleet
    Status(StatusArgs),
}

/// What `status` is asked.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print one JSON object instead
    #[arg(long)]
    pub json: bool,
}
