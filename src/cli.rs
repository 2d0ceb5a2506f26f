//! The command line: the tree of commands and their help.

pub mod operator;

use clap::{Args, Parser, Subcommand};

use operator::Operation;

use crate::spool::notify::NotifyCall;

/// `f2bmqtt` and its commands.
#[derive(Debug, Parser)]
#[command(
    name = "f2bmqtt",
    version,
    about = "Makes a fleet of fail2ban servers ban as one, over MQTT",
    long_about = "Makes a fleet of fail2ban servers ban as one, over MQTT.\n\n\
        When fail2ban on one server bans an address, every server that has the same jail bans the \
        address within milliseconds. When that server unbans the address, the others release their \
        imported bans. The service f2bmqttsub runs the daemon; fail2ban's actions call \
        `f2bmqtt notify`.",
    after_help = "Files:\n  \
        /etc/fail2ban/mqtt.env    settings: broker, login, topic\n  \
        /var/lib/f2bmqtt/         pending events and reports, and the record\n                            \
        of imported bans\n  \
        /run/f2bmqtt/status.json  state of the daemon: see f2bmqtt subscribe\n                            \
        --help\n\
        \n\
        Exit codes: 0 success, 1 failure, 2 wrong usage, 78 invalid settings",
    arg_required_else_help = true,
    subcommand_required = true
)]
pub struct Cli {
    /// Always present: clap rejects a call without a command.
    #[command(subcommand)]
    pub command: Command,
}

/// The fields of the [status file](crate::daemon::status).
const STATUS_FILE_HELP: &str = "The daemon writes its state to /run/f2bmqtt/status.json, which only root can read: at every \
        change, at most once a second, and at least every 60 seconds. The file holds one JSON object; \
        times are in seconds since 1970:\n  \
        version, since            the version of the daemon, and when it\n                            \
        started\n  \
        instance                  the ID of this run of the daemon\n  \
        link.state, .since        up or down, and since when\n  \
        link.broker               the broker that the daemon is connected\n                            \
        to, or tried last\n  \
        link.error                the last error of the link since the\n                            \
        start, or null\n  \
        link.reconnects           how often the daemon reconnected within\n                            \
        the last hour\n  \
        peers                     how many other hosts the daemon knows\n  \
        rejected.REASON           how many messages the daemon rejected\n                            \
        since the start\n  \
        ahead[].host, .at         hosts whose messages were stamped more\n                            \
        than a day ahead of this host's clock\n                            \
        within the last 20 minutes, and when last\n  \
        own_duplicate             when another machine with this host's name\n                            \
        was seen, within the last 70 seconds, or\n                            \
        null\n  \
        duplicates[].host, .at    names of other hosts that two machines\n                            \
        use, seen within the last 70 seconds\n  \
        disks_full[].path, .at    full file systems, and since when\n  \
        tables_full[]             limits that were reached within the last\n                            \
        day:\n  \
        tables_full[].table       peers (other hosts), claims (their bans),\n                            \
        tombstones (fleet unbans), echoes\n                            \
        (detections that only the broker knows),\n                            \
        messages (of one host within a minute)\n  \
        tables_full[].limit, .at  the limit, and when it was reached last\n  \
        tables_full[].peer        the host with the most entries, or null";

/// The commands.
#[derive(Debug, Subcommand)]
#[allow(missing_docs, reason = "a comment would be taken for the long help, too")]
pub enum Command {
    /// The operator's commands.
    #[command(flatten)]
    Operator(Operation),
    #[command(about = "Announce a ban or unban to the fleet; called by fail2ban's actions")]
    Notify(NotifyArgs),
    #[command(
        about = "Share bans with the fleet until stopped; run by the service f2bmqttsub",
        after_help = STATUS_FILE_HELP
    )]
    Subscribe,
    /// End the open connections of a banned address; called by fail2ban's actions
    Cut {
        /// The address, IPv4 or IPv6
        ip: String,
    },
    #[command(about = "Report an address to AbuseIPDB")]
    Report(ReportArgs),
    /// Validate the settings; run by the package when it is installed
    #[command(hide = true)]
    Settings,
    /// Publish pending events from the spool; started by notify if no service runs
    #[command(hide = true)]
    Publish,
    /// Send pending reports to AbuseIPDB; started by the reporter if no service runs
    #[command(hide = true)]
    Work,
}

/// One report by an operator.
#[derive(Debug, Args)]
#[command(
    long_about = "Report an address to AbuseIPDB.\n\nThe command redacts private data of this \
        host, and queues the report; the service sends it. The API key is in \
        /etc/fail2ban/abuseipdb.apikey. fail2ban's action abuseipdb reports automatically: see \
        /etc/fail2ban/action.d/abuseipdb.local.",
    after_help = "Categories are numbers of https://www.abuseipdb.com/categories:\n  \
        18 brute force, 22 SSH, 5 FTP, 11 mail spam, 14 port scan,\n  \
        15 hacking, 19 bad bot, 21 web"
)]
pub struct ReportArgs {
    /// The address, IPv4 or IPv6
    #[arg(long)]
    pub ip: String,
    /// What happened, for example log lines
    #[arg(long, allow_hyphen_values = true)]
    pub comment: String,
    /// Numbers of the categories, separated by commas
    #[arg(long)]
    pub categories: String,
    /// How long the address is banned: seconds, or 10m, 2h, 1d, 1w, 1y
    #[arg(long, default_value = "0", hide_default_value = true, allow_hyphen_values = true)]
    pub bantime: String,
    /// Print the report without sending it
    #[arg(long)]
    pub dry_run: bool,
}

/// `fail2ban-abuseipdb.sh`, the reporter under the script's name.
#[derive(Debug, Parser)]
#[command(
    name = "fail2ban-abuseipdb.sh",
    version,
    about = "Reports a ban to AbuseIPDB; called by fail2ban's action abuseipdb",
    after_help = "fail2ban-abuseipdb.sh --actionstart [DATABASE] [LOG] creates the database and the \
        log.\nTo report an address by hand, use `f2bmqtt report`."
)]
pub struct ReportShim {
    /// API key, comment, address, categories, bantime, 1 if the ban is restored, 1 to report restored
    /// bans, database, log, number of failures, time of the ban
    #[arg(value_names = ["APIKEY", "COMMENT", "IP", "CATEGORIES", "BANTIME", "RESTORED", "BYPASS",
        "DB", "LOG", "FAILURES", "TIME"], num_args = 0..)]
    pub arguments: Vec<String>,
}

/// `mqttnotifyban[.sh]`, the notifier under the scripts' name.
#[derive(Debug, Parser)]
#[command(
    name = "mqttnotifyban",
    version,
    about = "Announces a ban or unban to the fleet; called by fail2ban's actions (f2bmqtt notify)"
)]
pub struct NotifyShim {
    /// The scripts' arguments.
    #[command(flatten)]
    pub args: NotifyArgs,
}

/// `mqttsubscribebans`, the subscriber under the scripts' name.
#[derive(Debug, Parser)]
#[command(
    name = "mqttsubscribebans",
    version,
    about = "Shares bans with the fleet until stopped (f2bmqtt subscribe)"
)]
pub struct SubscribeShim {}

/// The arguments of the notifier, in the scripts' order.
#[derive(Debug, Args)]
#[command(
    long_about = "Announce a ban or unban to the fleet.\n\nThe command leaves the event in the spool, \
        from which the service publishes it, and returns at once. If no service runs, a background \
        process publishes the event. The command announces nothing if FAILURES is 0 (the ban came from \
        another host, or from an operator), or if fail2ban restores the ban after a start.",
    after_help = "In an action of fail2ban:\n  \
        mqttnotifyban.sh <name> <ip> <bantime> ban \\\n    \
        <restored> <failures> <time>"
)]
pub struct NotifyArgs {
    /// The jail
    #[arg(allow_hyphen_values = true)]
    pub name: String,
    /// The address, IPv4 or IPv6
    #[arg(allow_hyphen_values = true)]
    pub ip: String,
    /// Duration of the ban in seconds; -1 is permanent, 0 is unknown
    #[arg(allow_hyphen_values = true)]
    pub bantime: String,
    /// ban or unban
    #[arg(allow_hyphen_values = true)]
    pub action: String,
    /// 1 if fail2ban restores the ban after a start
    #[arg(allow_hyphen_values = true, default_value = "", hide_default_value = true)]
    pub restored: String,
    /// How many failures led to the ban
    #[arg(allow_hyphen_values = true, default_value = "", hide_default_value = true)]
    pub failures: String,
    /// When the ban started, in seconds since 1970
    #[arg(allow_hyphen_values = true, default_value = "", hide_default_value = true)]
    pub time: String,
    /// Ignored, as the scripts ignored it
    #[arg(allow_hyphen_values = true, hide = true)]
    pub rest: Vec<String>,
}

impl NotifyArgs {
    /// The call with these arguments.
    #[must_use]
    pub fn call(&self) -> NotifyCall<'_> {
        NotifyCall {
            jail: &self.name,
            address: &self.ip,
            bantime: &self.bantime,
            action: &self.action,
            restored: &self.restored,
            failures: &self.failures,
            time: &self.time,
        }
    }
}
