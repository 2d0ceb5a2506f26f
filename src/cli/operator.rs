//! The operator's commands on the command line. The doc comments of arguments are the `--help` text.

use clap::{Args, Subcommand, ValueEnum};

/// The operator's commands.
#[derive(Debug, Subcommand)]
#[allow(missing_docs, reason = "a comment would be taken for the long help, too")]
pub enum Operation {
    #[command(about = "Show the state of this host, the broker and every host of the fleet")]
    Status(StatusArgs),
    #[command(about = "Diagnose problems and suggest fixes")]
    Check(CheckArgs),
    #[command(about = "List all bans of the fleet, or explain why an address is banned")]
    List(ListArgs),
    #[command(
        about = "Watch bans, hosts and jails live; q quits",
        long_about = "Watch bans, hosts and jails live; q quits.\n\nOn a terminal, the command fills the \
            screen, and can stay open. In a pipe, it prints one line for each ban, for each unban, and for each \
            host that goes online or offline: time, event, address, jail, host and details, separated by tabs."
    )]
    Watch,
    #[command(about = "Ban addresses on every host that has the jail")]
    Ban(BanArgs),
    #[command(about = "Unban addresses on every host")]
    Unban(UnbanArgs),
    #[command(about = "Remove a host that is gone for good from the fleet")]
    Forget(ForgetArgs),
    /// Remove this host from the fleet; run by the package when it is removed
    #[command(hide = true)]
    Leave,
    /// Print names of jails, hosts or addresses; called by shell completions
    #[command(hide = true)]
    Names {
        /// What to print
        #[arg(value_enum)]
        named: Named,
    },
}

/// The kinds of names for shell completions.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Named {
    /// The jails of fail2ban on this host
    Jails,
    /// This host, and the hosts whose bans it imported
    Hosts,
    /// Imported addresses, and the last addresses that fail2ban on this host banned
    Addresses,
}

/// Arguments of `status`.
#[derive(Debug, Args)]
#[command(
    long_about = "Show the state of this host, the broker and every host of the fleet.\n\n\
        The command reads the fleet's state from the broker, so all hosts show the same. DETECTED counts \
        the bans that a host detected, IMPORTED the bans that it imported from other hosts. SNAPSHOT is \
        the age of the host's last snapshot: at most 10 minutes for an online host.",
    after_help = "JSON, one object; times and ages are in seconds, times since 1970; null means unknown:\n  \
        host, version, time       this host, its version, the current time\n  \
        service.running, .pid, .since\n                            \
        the daemon on this host\n  \
        broker.address, .user, .error\n                            \
        error: why the connection failed\n  \
        fail2ban.jails, .error    error: why fail2ban does not answer\n  \
        disks_full[].path, .text  full file systems, and why\n  \
        pending.events, .reports  unpublished events, unsent reports\n  \
        abuseipdb.{report,check,bulk-report}.limit, .remaining, .seen,\n    \
        .blocked\n                            \
        calls a day; calls left; when AbuseIPDB\n                            \
        sent these numbers; no calls until then\n  \
        reporter.oldest, .last_call.at, .error\n                            \
        time of the oldest pending report; time of\n                            \
        the last call; why that call failed\n  \
        hosts[].host, .state (online, offline, unknown), .since, .version,\n    \
        .jails, .bans (detected there), .imported_bans, .snapshot (its\n    \
        time), .parts, .incomplete (missing parts), .rejected (messages\n    \
        by reason)\n  \
        jails.NAME, bans          bans by jail, and in total\n  \
        incomplete                data that the broker did not deliver\n\
        \n\
        Exit codes: 0 no problem, 1 this host has a problem, or the broker's data is incomplete"
)]
pub struct StatusArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `list`.
#[derive(Debug, Args)]
#[command(
    long_about = "List all bans of the fleet, or explain why an address is banned.\n\n\
        One line per address and jail, the newest ban last, with the host that detected the address first \
        and the hosts that detected it later. Times are this host's local time. In a pipe, tabs separate \
        the columns. For a single address, the command explains why the address is banned, and what this \
        host does.\n\n\
        Bans of hosts that run the scripts are not listed, because the broker does not keep them.",
    after_help = "JSON, one object; times are in seconds since 1970; null means unknown:\n  \
        time                      the current time\n  \
        bans[].ip, .jail, .host, .since, .until, .forever, .also (hosts)\n  \
        voided[].jail, .host, .id for a single address: bans that a host\n                            \
        still lists, but the fleet unban .id\n                            \
        released\n  \
        incomplete                data that the broker did not deliver"
)]
pub struct ListArgs {
    /// An address, or a network
    #[arg(value_name = "IP|NETWORK")]
    pub address: Option<String>,
    /// Only bans in this jail
    #[arg(long)]
    pub jail: Option<String>,
    /// Only bans that HOST detected
    #[arg(long)]
    pub host: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `ban`.
#[derive(Debug, Args)]
#[command(
    long_about = "Ban addresses on every host that has the jail.\n\n\
        The command makes fail2ban on this host detect the addresses, so each ban lasts and ends like any \
        other. These bans are never reported to AbuseIPDB. The command waits until every online host \
        answers, at most 15 seconds per 16 addresses. It prints what each host did, and why a host did not \
        ban an address (no such jail, or the address is in its ignoreip). Offline hosts apply the bans when they reconnect.",
    after_help = "The command asks for confirmation before it bans more than 10 addresses. Without --yes, it \
        refuses this host's own addresses, the broker's, those in the jail's ignoreip, and the address that \
        you are connected from.\n\
        \n\
        JSON, one object:\n  \
        jail, host           where the ban was made\n  \
        bans[].ip            the address\n  \
        bans[].already_banned\n                       \
        this host banned it before; its ban is unchanged\n  \
        bans[].seconds       the bantime; null if permanent\n  \
        bans[].acks.HOST     what each other host did: banned, pending, or\n                       \
        the reason of a rejection\n  \
        published            this host's snapshot lists the bans\n  \
        hosts                other hosts that ban all addresses\n  \
        without_jail         other hosts that have no such jail\n  \
        rejected.HOST        the reason why HOST rejects an address:\n                       \
        never_ban, ignored, not_shared\n  \
        pending              hosts whose fail2ban is busy or down\n  \
        no_reply             online hosts without an answer\n  \
        offline              offline hosts\n\
        \n\
        Exit codes: 0 every host acknowledged, 1 at least one host did not, or is offline"
)]
pub struct BanArgs {
    /// The jail
    pub jail: String,
    /// Addresses, IPv4 or IPv6; no networks
    #[arg(value_name = "IP", required = true)]
    pub addresses: Vec<String>,
    /// Do not ask for confirmation
    #[arg(long, short)]
    pub yes: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `unban`.
#[derive(Debug, Args)]
#[command(
    long_about = "Unban addresses on every host: detected bans, imported bans, and bans by hand.\n\n\
        The command waits until every online host confirms, at most 30 seconds. Offline hosts apply the \
        unban when they reconnect. No old message brings the ban back; only a new detection does.",
    after_help = "JSON, one object:\n  \
        id, ips, jail    ID of this fleet unban; addresses; jail, or null\n                   \
        for all jails\n  \
        unbanned         hosts that confirmed\n  \
        no_reply         online hosts that did not confirm in time\n  \
        offline          offline hosts\n  \
        jails_left_out   number of jails for which hosts that run the\n                   \
        scripts get no unban: one call publishes at most\n                   \
        1,000 events\n\
        \n\
        Exit codes: 0 every host confirmed, 1 at least one host did not"
)]
pub struct UnbanArgs {
    /// Addresses, IPv4 or IPv6
    #[arg(value_name = "IP", required = true)]
    pub addresses: Vec<String>,
    /// Only in this jail
    #[arg(long)]
    pub jail: Option<String>,
    /// Do not ask for confirmation
    #[arg(long, short)]
    pub yes: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `forget`.
#[derive(Debug, Args)]
#[command(
    long_about = "Remove a host that is gone for good from the fleet.\n\n\
        The command clears the host's presence and snapshot on the broker. All other hosts then release \
        the bans that only this host held. A host that comes back publishes its bans again. The command \
        also removes a host of which the broker keeps nothing, but whose events the daemons received.",
    after_help = "The command asks for confirmation before it removes a host of which the broker keeps nothing.\n\
        \n\
        JSON, one object:\n  \
        hosts    the removed hosts\n  \
        unknown  removed hosts of which the broker kept nothing\n  \
        bans     number of bans that only the removed hosts held"
)]
pub struct ForgetArgs {
    /// Names of hosts in the fleet
    #[arg(value_name = "HOST", required = true)]
    pub hosts: Vec<String>,
    /// Do not ask for confirmation, and remove online hosts, too
    #[arg(long, short)]
    pub yes: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
#[command(
    long_about = "Diagnose problems and suggest fixes. One line per check: ✓ ok, ! warning, ✗ failed, \
            followed by the suggested fix.\n\nThe command checks the settings; each broker: its name, its \
            port, TLS, the login, and the permission to publish and to subscribe on each topic; the name and \
            the clock of this host; the service, and the package's links and files; fail2ban, its jails and \
            their reports to AbuseIPDB; and the limits that the daemon reached. The command changes nothing. \
            Hosts ignore the messages that it publishes, and the broker does not keep them.",
    after_help = "Exit codes: 0 no faults, 1 faults, 78 invalid settings\n\
        \n\
        JSON, one object:\n  \
        state             ok, warning or fault: the worst state of all checks\n  \
        faults, warnings  number of each\n  \
        checks[].id       stable name of the check\n  \
        checks[].state    ok, warning or fault\n  \
        checks[].about    the object, if a check has several: a broker, a\n                    \
        jail, a file\n  \
        checks[].text     the finding\n  \
        checks[].next     the suggested fix, a list of lines\n\
        \n\
        Checks: settings settings_sample; broker_name broker_port broker_tls broker_login \
        broker_subscribe broker_publish broker_read broker_qos broker_retain home_assistant \
        certificate; fleet_name fleet_hosts fleet_key clock clock_ahead; service service_unit \
        service_enabled service_version service_settings service_sandbox; scripts links action_file disk modes spool \
        link tables; fail2ban fail2ban_config fail2ban_database fail2ban_sandbox; jail_none jail_name jail_no_action jail_shares \
        jail_left_out jail_missing jail_not_wired jail_not_loaded jail_not_running jail_ignoreip \
        jail_ignorecommand; report_key report_key_file report_action report_recidive report_queue report_file report_place"
)]
pub struct CheckArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}
