//! The operator's part of the command line.

use clap::{Args, Subcommand};

/// The operator's commands.
#[derive(Debug, Subcommand)]
pub enum Operation {
    /// Show whether it works: this host, the broker, every host of the fleet
    Status(StatusArgs),
    /// Find out why it does not work, and say what to do
    #[command(
        long_about = "Find out why it does not work, and say what to do.\n\nLooks at the settings, the \
            way to each broker, TLS, the login, the right to publish and to subscribe on each topic, \
            the name and the clock of this host, the service, the package's links and files, fail2ban, \
            its jails and what they report to AbuseIPDB. A line a check: ✓ it is well, ! it is odd, ✗ \
            it does not work; below it, what to do next. Nothing is changed. What it publishes for it, \
            no host acts upon and no broker keeps.",
        after_help = "Exit codes: 0 no faults, 1 faults, 78 the settings cannot be used.\n\n\
            JSON, one object:\n  \
            state             ok, warning or fault: the worst of all\n  \
            faults, warnings  how many\n  \
            checks[].id       the check\n  \
            checks[].state    its own\n  \
            checks[].about    what was looked at, where there are several: a broker, a jail, a file\n  \
            checks[].text     what was found\n  \
            checks[].next     what to do, a list of lines"
    )]
    Check(CheckArgs),
    /// List what is banned, where, by whom, until when; or say why one address is
    List(ListArgs),
}

/// What `status` is asked.
#[derive(Debug, Args)]
#[command(
    long_about = "Show whether it works: this host, the broker, every host of the fleet.\n\n\
        The fleet is read from the broker, so it is what every host sees. HELD is how many bans a host \
        holds for others, SNAPSHOT how old what it told last of its own bans is (5 to 10 minutes, where \
        nothing changes).",
    after_help = "JSON, one object; times and ages are in seconds, times since 1970; null is not known:\n  \
        host, version, time                 this host, and when it looked\n  \
        service.running, .pid, .since       the daemon here\n  \
        broker.address, .user, .fault       fault: why it cannot be used\n  \
        fail2ban.jails, .fault\n  \
        waiting.events, .reports            not published yet; not reported yet\n  \
        abuseipdb.{report,check,bulk-report}.limit, .remaining, .seen, .blocked\n                                      \
        calls a day, calls left, when that was seen; none before\n  \
        hosts[].host, .state (online, offline, unknown), .since, .version, .jails, .bans, .held,\n          \
        .snapshot (its time), .parts, .missing (parts), .refused (messages by reason)\n  \
        jails.NAME, bans                    bans by jail, and in all\n  \
        missing                             what the broker did not show\n\n\
        Exit codes: 0 this host takes part, 1 it does not, or not all could be seen"
)]
pub struct StatusArgs {
    /// Print one JSON object instead
    #[arg(long)]
    pub json: bool,
}

/// What `list` is asked.
#[derive(Debug, Args)]
#[command(
    long_about = "List what is banned, where, by whom, until when; or say why one address is.\n\n\
        One line for each address in each jail, the newest last, with the host that detected it first \
        and those that detected it, too. Times are this host's. In a pipe there are tabs between the \
        columns. With one address, say in words why it is banned, and what this host does with it.",
    after_help = "JSON, one object; times are in seconds since 1970; null is not known:\n  \
        time                                when it looked\n  \
        bans[].ip, .jail, .host, .since, .until, .forever, .also (hosts)\n  \
        freed[].jail, .host, .id            of one address: what a host still lists from before a fleet\n                                      \
        unban, and counts for nobody\n  \
        missing                             what the broker did not show"
)]
pub struct ListArgs {
    /// An address, or a network
    #[arg(value_name = "IP|NETWORK")]
    pub address: Option<String>,
    /// In this jail alone
    #[arg(long)]
    pub jail: Option<String>,
    /// Detected by this host alone
    #[arg(long)]
    pub host: Option<String>,
    /// Print one JSON object instead
    #[arg(long)]
    pub json: bool,
}

/// How `check` answers.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Print one JSON object instead
    #[arg(long)]
    pub json: bool,
}
