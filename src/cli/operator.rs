//! The operator's part of the command line.

use clap::{Args, Subcommand};

/// The operator's commands.
#[derive(Debug, Subcommand)]
pub enum Operation {
    /// Show whether it works: this host, the broker, every host of the fleet
    Status(StatusArgs),
    /// Find out why it does not work, and say what to do
    Check(CheckArgs),
}

/// What `status` is asked.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print one JSON object instead
    #[arg(long)]
    pub json: bool,
}

/// How `check` answers.
#[derive(Debug, Args)]
#[command(
    long_about = "Find out why it does not work, and say what to do.\n\nLooks at the settings, the way \
        to each broker, TLS, the login, the right to publish and to subscribe on each topic, the \
        name and the clock of this host, the service, links and files of the package, fail2ban, its \
        jails and what they report to AbuseIPDB. One line a check: ✓ it is well, ! it is odd, ✗ it \
        does not work; under that, what to do next. Nothing is changed. It publishes messages that no \
        host acts upon and no broker keeps.",
    after_help = "Exit codes: 0 no faults, 1 faults, 78 the settings cannot be used.\n\n\
        JSON: {\"state\": ok, warning or fault, the worst of all; \"faults\", \"warnings\": how many; \
        \"checks\": [{\"id\": the check, \"state\": its own, \"about\": what was looked at, where there \
        are several, or null; \"text\": what was found; \"next\": [what to do]}]}"
)]
pub struct CheckArgs {
    /// Print one JSON object instead
    #[arg(long)]
    pub json: bool,
}
