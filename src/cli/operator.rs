//! The operator's part of the command line.

use clap::{Args, Subcommand, ValueEnum};

/// The operator's commands.
#[derive(Debug, Subcommand)]
#[allow(missing_docs, reason = "a comment would be taken for the long help, too")]
pub enum Operation {
    #[command(about = "Show whether it works: this host, the broker, every host of the fleet")]
    Status(StatusArgs),
    #[command(about = "Find out why it does not work, and say what to do")]
    Check(CheckArgs),
    #[command(about = "List what is banned, where, by whom, until when; or say why one address is")]
    List(ListArgs),
    #[command(
        about = "Watch the fleet as it lives: bans as they come, hosts, jails; q ends it",
        long_about = "Watch the fleet as it lives: bans as they come, hosts, jails; q ends it.\n\nOn a terminal it \
            fills the screen, and is meant to be left open. In a pipe it prints a line for each ban, unban and \
            host that comes or goes: time, what, address, jail, host and more, with tabs between."
    )]
    Watch,
    #[command(about = "Ban addresses on every host that has the jail")]
    Ban(BanArgs),
    #[command(about = "Free addresses on every host, whoever banned them")]
    Unban(UnbanArgs),
    #[command(about = "Clear what a host that is gone for good left on the broker")]
    Forget(ForgetArgs),
    /// Clear what this host left on the broker; run by the package when it is removed
    #[command(hide = true)]
    Leave,
    /// Print names of jails, hosts or addresses; called by the completions of shells
    #[command(hide = true)]
    Names {
        /// Of what
        #[arg(value_enum)]
        named: Named,
    },
}

/// What a completion asks for.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[allow(missing_docs)]
pub enum Named {
    Jails,
    Hosts,
    Addresses,
}

/// What `status` is asked.
#[derive(Debug, Args)]
#[command(
    long_about = "Show whether it works: this host, the broker, every host of the fleet.\n\n\
        The fleet is read from the broker, so it is what every host sees. HELD is how many bans a host \
        holds for others, SNAPSHOT how old what it told last of its own bans is (5 to 10 minutes, where \
        nothing changes).",
    after_help = "JSON, one object; times and ages are in seconds, times since 1970; null is not known:\n  \
        host, version, time       this host, and when it looked\n  \
        service.running, .pid, .since\n                            \
        the daemon here\n  \
        broker.address, .user, .fault\n                            \
        fault: why it cannot be used\n  \
        fail2ban.jails, .fault\n  \
        disks_full[].path, .text  file systems without room, and why\n  \
        waiting.events, .reports  not published yet; not reported yet\n  \
        abuseipdb.{report,check,bulk-report}.limit, .remaining, .seen,\n    \
        .blocked\n                            \
        calls a day, calls left, when that was\n                            \
        seen; none before\n  \
        reporter.oldest, .last_call.at, .error\n                            \
        the oldest ban that waits; the last\n                            \
        call, and why it failed\n  \
        hosts[].host, .state (online, offline, unknown), .since, .version,\n    \
        .jails, .bans, .held, .snapshot (its time), .parts, .missing\n    \
        (parts), .refused (messages by reason)\n  \
        jails.NAME, bans          bans by jail, and in all\n  \
        missing                   what the broker did not show\n\
        \n\
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
        columns. With one address, say in words why it is banned, and what this host does with it.\n\n\
        What hosts that run the scripts ban is kept nowhere, and not listed.",
    after_help = "JSON, one object; times are in seconds since 1970; null is not known:\n  \
        time                      when it looked\n  \
        bans[].ip, .jail, .host, .since, .until, .forever, .also (hosts)\n  \
        freed[].jail, .host, .id  of one address: what a host still lists\n                            \
        from before a fleet unban, and counts for\n                            \
        nobody\n  \
        missing                   what the broker did not show"
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

/// What `ban` is asked.
#[derive(Debug, Args)]
#[command(
    long_about = "Ban addresses on every host that has the jail.\n\n\
        fail2ban on this host is made to detect them, so each ban lasts and ends as any other. It is never \
        reported to AbuseIPDB. The command waits until every online host has acknowledged: that it bans \
        them, too, or why not (it has no such jail, or its own ignoreip has the address). It waits at most \
        15 seconds for each 16 addresses. Offline hosts ban when they are back.",
    after_help = "It asks before it bans more than 10 addresses, and refuses this host's own, the broker's, those \
        in the jail's ignoreip and the one that you are connected from.\n\
        \n\
        JSON, one object:\n  \
        jail, host           where it was detected\n  \
        bans[].ip            the address\n  \
        bans[].already_banned\n                       \
        this host banned it before; its ban is unchanged\n  \
        bans[].seconds       for how long, null without end\n  \
        bans[].acks.HOST     what each other host did: banned, pending, or\n                       \
        the reason of a rejection\n  \
        published            this host's snapshot lists the bans\n  \
        hosts, without_jail  other hosts: ban all of them; have no such jail\n  \
        rejected.HOST        the reason why it does not ban one of them:\n                       \
        never_ban, ignored, not_shared\n  \
        pending, no_reply, offline\n                       \
        hosts whose fail2ban is busy or down, that have\n                       \
        not acknowledged, that are not connected\n\
        \n\
        Exit codes: 0 every host has acknowledged, 1 one has not, or is offline"
)]
pub struct BanArgs {
    /// The jail
    pub jail: String,
    /// Addresses, IPv4 or IPv6; no networks
    #[arg(value_name = "IP", required = true)]
    pub addresses: Vec<String>,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
    /// Print one JSON object instead
    #[arg(long)]
    pub json: bool,
}

/// What `unban` is asked.
#[derive(Debug, Args)]
#[command(
    long_about = "Free addresses on every host, whoever banned them: own bans and bans by hand, too.\n\n\
        Each host says when it has done it, and is waited for, up to 30 seconds. One that is not connected \
        does it when it is back: nothing that it or an old message says brings the ban back, only a new \
        detection does.",
    after_help = "JSON, one object:\n  \
        id, ips, jail           the name of this unban; null is every jail\n  \
        freed, silent, offline  hosts: have done it, have not answered yet,\n                          \
        are not connected\n  \
        jails_left_out          for how many jails hosts that run the\n                          \
        scripts get no unban: one call publishes at\n                          \
        most 1,000 events\n\
        \n\
        Exit codes: 0 every host has done it, 1 not all have"
)]
pub struct UnbanArgs {
    /// Addresses, IPv4 or IPv6
    #[arg(value_name = "IP", required = true)]
    pub addresses: Vec<String>,
    /// In this jail alone
    #[arg(long)]
    pub jail: Option<String>,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
    /// Print one JSON object instead
    #[arg(long)]
    pub json: bool,
}

/// What `forget` is asked.
#[derive(Debug, Args)]
#[command(
    long_about = "Clear what a host that is gone for good left on the broker: its presence and its \
        snapshot.\n\nThe bans that only this host held then end on all other hosts. A host that comes \
        back publishes its bans again. The command also removes a host of which the broker keeps nothing, \
        but whose events the daemons received.",
    after_help = "The command asks before it removes a host of which the broker keeps nothing.\n\
        \n\
        JSON, one object:\n  \
        hosts    the hosts that are removed\n  \
        unknown  those of them of which the broker kept nothing\n  \
        bans     how many bans of snapshots no other host held"
)]
pub struct ForgetArgs {
    /// Names of hosts in the fleet
    #[arg(value_name = "HOST", required = true)]
    pub hosts: Vec<String>,
    /// Do not ask, and also remove hosts that are connected
    #[arg(long, short)]
    pub yes: bool,
    /// Print one JSON object instead
    #[arg(long)]
    pub json: bool,
}

/// What `check` is asked.
#[derive(Debug, Args)]
#[command(
    long_about = "Find out why it does not work, and say what to do.\n\nLooks at the settings, the \
            way to each broker, TLS, the login, the right to publish and to subscribe on each topic, \
            the name and the clock of this host, the service, the package's links and files, fail2ban, \
            its jails and what they report to AbuseIPDB, and the limits that the daemon reached. A line a check: ✓ it is well, ! it is odd, ✗ \
            it does not work; below it, what to do next. Nothing is changed. What it publishes for it, \
            no host acts upon and no broker keeps.",
    after_help = "Exit codes: 0 no faults, 1 faults, 78 the settings cannot be used.\n\
        \n\
        JSON, one object:\n  \
        state             ok, warning or fault: the worst of all\n  \
        faults, warnings  how many\n  \
        checks[].id       the check\n  \
        checks[].state    its own\n  \
        checks[].about    what was looked at, where there are several: a\n                    \
        broker, a jail, a file\n  \
        checks[].text     what was found\n  \
        checks[].next     what to do, a list of lines\n\
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
    /// Print one JSON object instead
    #[arg(long)]
    pub json: bool,
}
