//! What fail2ban's action calls at each ban. It applies the script's rules in their order, writes the report to
//! the inbox and exits. It must not delay fail2ban, so it calls no server and waits for no other process.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::api::Form;
use super::key::{self, KeyFile};
use super::log::Log;
use super::queue::MAX_QUEUED;
use super::redact::text;
use super::redact::text::Private;
use super::report::{Categories, CommentSource, Report, bounded};
use super::reported_db::Ledger;
use crate::error::Error;
use crate::guard::is_reportable;
use crate::model::Address;
use crate::model::range::duration;
use crate::spool::notify::whole_seconds;
use crate::spool::{Item as _, Spool, manual_bans, owner_lock};
use crate::sys::calendar::Calendar;
use crate::sys::clock::now_secs;
use crate::sys::log::info;
use crate::sys::paths::{DEFAULT_LEDGER, DEFAULT_LOG, Paths};
use crate::sys::private_files::trust::DirContent;
use crate::sys::private_files::{mounts, trust};
use crate::sys::{detach, log};

/// The unparsed arguments of one call, in the script's order; a missing one is empty. The names in backquotes are the
/// action's settings and fail2ban's tags.
#[derive(Clone, Debug, Default)]
pub struct ReportCall {
    /// `abuseipdb_apikey`, or the option `--actionstart`.
    pub key: String,
    /// `matches`.
    pub comment: String,
    /// `ip`.
    pub address: String,
    /// `abuseipdb_category`: numbers with commas between.
    pub categories: String,
    /// `bantime`, in seconds or with a unit.
    pub bantime: String,
    /// `restored`: not 0 if fail2ban restores the ban after a start.
    pub restored: String,
    /// `BYPASS_FAIL2BAN`: not 0 to report restored bans, too.
    pub bypass: String,
    /// `SQLITE_DB`.
    pub ledger: String,
    /// `LOG_FILE`.
    pub log: String,
    /// `failures`; 0 for a ban that fail2ban did not detect.
    pub failures: String,
    /// `time`, in seconds since 1970.
    pub time: String,
    /// `own`: the comment is the administrator's text, or log lines from fail2ban's database if it is empty.
    pub source: String,
}

/// Whether a call leads to a report.
#[derive(Debug, PartialEq, Eq)]
pub enum ReportDecision {
    /// Queue this report.
    Report(Box<Report>),
    /// Report nothing; the log line gives the reason.
    Nothing(String),
}

impl ReportCall {
    /// Assigns the script's arguments by position. A tag that fail2ban did not replace, such as
    /// `<LOG_FILE>`, counts as missing.
    #[must_use]
    pub fn from_args(arguments: &[String]) -> Self {
        let mut texts = arguments.iter().map(|text| match text {
            text if is_unreplaced_tag(text) => String::new(),
            text => text.clone(),
        });
        // A struct expression evaluates its fields in the order in which they are written.
        Self {
            key: texts.next().unwrap_or_default(),
            comment: texts.next().unwrap_or_default(),
            address: texts.next().unwrap_or_default(),
            categories: texts.next().unwrap_or_default(),
            bantime: texts.next().unwrap_or_default(),
            restored: texts.next().unwrap_or_default(),
            bypass: texts.next().unwrap_or_default(),
            ledger: texts.next().unwrap_or_default(),
            log: texts.next().unwrap_or_default(),
            failures: texts.next().unwrap_or_default(),
            time: texts.next().unwrap_or_default(),
            source: texts.next().unwrap_or_default(),
        }
    }

    /// Applies the script's rules; `now` is in seconds since 1970.
    ///
    /// # Errors
    /// [`Error::Report`] if an argument is missing, [`Error::Usage`] if one is invalid.
    pub fn decide(&self, now: i64) -> Result<ReportDecision, Error> {
        let shown: String = self.address.escape_debug().take(50).collect();
        let is_restored = parse_count("RESTORED", &self.restored)? != 0;
        if is_restored && parse_count("BYPASS_FAIL2BAN", &self.bypass)? == 0 {
            return Ok(ReportDecision::Nothing(format!(
                "INFO: (RESTART) IP {shown} was already reported in the previous Fail2Ban session."
            )));
        }
        let failures = parse_count("FAILURES", &self.failures)?;
        if failures == 0 {
            return Ok(ReportDecision::Nothing(format!(
                "INFO: (BAN) IP {shown} has 0 failures so no action required"
            )));
        }
        self.check_complete()?;
        let address = Address::new(self.address.trim()).map_err(|what| usage_error("IP", &what))?;
        if !is_reportable(address.ip()) {
            return Ok(ReportDecision::Nothing(format!(
                "INFO: IP {address} is not reported: the address is private or reserved."
            )));
        }
        let categories = Categories::new(&self.categories);
        let (comment, source) = match (self.comes_from_own_action(), self.comment.as_str()) {
            (false, text) => (text.to_owned(), CommentSource::Log),
            (true, "") => (String::new(), CommentSource::Database),
            (true, text) => (unescape(text), CommentSource::Admin),
        };
        Ok(ReportDecision::Report(Box::new(Report {
            address,
            categories: categories.map_err(|what| usage_error("CATEGORIES", &what))?,
            comment: bounded(&comment).to_owned(),
            source,
            // Only the ledger shows the bantime, so an invalid one must not prevent the report.
            bantime: duration(&self.bantime).unwrap_or(0),
            failures: failures.into(),
            time: whole_seconds(&self.time).filter(|time| (1..now).contains(time)).unwrap_or(now),
            // Without a usable key, the report waits until one is set.
            key: key::parse_key(&self.key),
            ledger: self.ledger().into(),
            log: self.log().into(),
        })))
    }

    /// Whether the package's action made the call. The script's action passes log lines as the comment.
    fn comes_from_own_action(&self) -> bool {
        self.source == "own"
    }

    fn check_complete(&self) -> Result<(), Error> {
        let needs_comment = !self.comes_from_own_action();
        let required = [
            ("COMMENT", needs_comment && self.comment.is_empty()),
            ("IP", self.address.is_empty()),
            ("CATEGORIES", self.categories.is_empty()),
            ("BANTIME", self.bantime.is_empty()),
        ];
        let missing: Vec<_> =
            required.iter().filter(|(_, is_missing)| *is_missing).map(|(name, _)| *name).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(Error::Report(format!("Missing core argument(s). Missing: {}.", missing.join(", "))))
    }

    fn ledger(&self) -> &str {
        path_or_default(&self.ledger, DEFAULT_LEDGER)
    }

    fn log(&self) -> &str {
        path_or_default(&self.log, DEFAULT_LOG)
    }
}

/// Whether the text is a tag such as `<LOG_FILE>`.
fn is_unreplaced_tag(text: &str) -> bool {
    let name = text.strip_prefix('<').and_then(|text| text.strip_suffix('>'));
    name.is_some_and(|name| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
}

fn usage_error(name: &str, what: &str) -> Error {
    Error::Usage(format!("{name} {what}"))
}

/// The value of a number argument; empty is 0.
fn parse_count(name: &str, text: &str) -> Result<u32, Error> {
    match text.trim() {
        "" => Ok(0),
        text => text.parse().map_err(|_| usage_error(name, "must be a number, 0 or more")),
    }
}

/// Undoes fail2ban's escapes. It escapes the text for an unquoted shell argument (`escapeTag` in its
/// `server/action.py`), but the action puts the text in double quotes, where most backslashes stay.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        plain.push(match c {
            '\\' => chars.next_if(|next| "#&;|*?~<>^()[]{}'".contains(*next)).unwrap_or(c),
            c => c,
        });
    }
    plain
}

/// A path, or the default if it is empty. Quotes are removed: fail2ban's settings have no quoting, so quotes that
/// an administrator wrote arrive here.
#[must_use]
pub fn path_or_default<'a>(text: &'a str, default: &'a str) -> &'a str {
    let text = text.trim_matches('"');
    if text.is_empty() { default } else { text }
}

/// Handles one call of the action.
///
/// # Errors
/// Those of [`ReportCall::decide`], which are in the log, too. Nothing else makes the action fail.
pub fn run(call: &ReportCall, paths: &Paths) -> Result<(), Error> {
    let log = Log::new(call.log().into());
    match call.decide(now_secs()) {
        Ok(ReportDecision::Report(report)) if is_manual_ban(&report, &log, paths) => {
            log.line(format_args!(
                "INFO: IP {} is not reported: the address was banned by hand (f2bmqtt ban).",
                report.address
            ));
        }
        Ok(ReportDecision::Report(report)) => {
            enqueue(&report, &log, paths);
            for path in [&report.ledger, &report.log] {
                if let Some(line) = sandbox_error(path, paths) {
                    log.line(line);
                }
            }
        }
        Ok(ReportDecision::Nothing(line)) => log.line(line),
        Err(error) => {
            log.line(format_args!("ERROR: {error}"));
            return Err(error);
        }
    }
    Ok(())
}

/// Whether an operator made the ban. If the record cannot be read, the ban is reported.
fn is_manual_ban(report: &Report, log: &Log, paths: &Paths) -> bool {
    let path = paths.by_hand();
    let is_recorded = manual_bans::is_recorded(&path, report.address, report.time, now_secs());
    is_recorded.unwrap_or_else(|error| {
        log.line(format_args!("ERROR: cannot read {}: {error}", path.display()));
        false
    })
}

/// The log line for a file that the service's sandbox does not let it write. The service could log this only
/// to the journal.
fn sandbox_error(path: &Path, paths: &Paths) -> Option<String> {
    unwritable_path_error(path, |dir| {
        mounts::is_read_only_for(owner_lock::owner(&paths.report_lock())?.pid, dir)
    })
}

/// As [`sandbox_error`]; `is_read_only` returns whether a directory is read-only for the service, if it runs.
fn unwritable_path_error(
    path: &Path,
    is_read_only: impl Fn(&Path) -> Option<bool>,
) -> Option<String> {
    let path = &resolve_links(path);
    // The unit allows the default paths.
    if path == Path::new(DEFAULT_LEDGER) || path == Path::new(DEFAULT_LOG) {
        return None;
    }
    let dir = path.parent()?;
    is_read_only(dir)?.then(|| {
        let (path, dir) = (path.display(), dir.display());
        format!(
            "ERROR: the service f2bmqttsub cannot write to {path}. Run systemctl edit f2bmqttsub, add the lines \
             [Service] and ReadWritePaths={dir}, then run systemctl restart f2bmqttsub."
        )
    })
}

/// The path of a file without symbolic links, as the mount table has it.
fn resolve_links(path: &Path) -> PathBuf {
    let path = trust::follow(path, DirContent::Log).unwrap_or_else(|_| path.to_owned());
    let dir = path.parent().and_then(|dir| dir.canonicalize().ok());
    match (dir, path.file_name()) {
        (Some(dir), Some(name)) => dir.join(name),
        _ => path,
    }
}

/// Writes a report to the inbox and, if no worker runs, starts a child that sends it. If the inbox cannot be
/// written, the child gets the report on its standard input. Returns whether the report is in the inbox.
fn enqueue(report: &Report, log: &Log, paths: &Paths) -> bool {
    let inbox = Spool::new(paths.reports());
    if inbox.list().is_ok_and(|waiting| waiting.len() >= MAX_QUEUED) {
        let dir = inbox.dir().display().to_string();
        let address = report.address;
        log.line(format_args!(
            "ERROR: IP {address} is not reported: the limit of {MAX_QUEUED} queued reports in {dir} is reached. Is \
             the service f2bmqttsub running?"
        ));
        return false;
    }
    let unqueued = inbox.write(report, SystemTime::now()).err();
    if let Some(error) = &unqueued {
        log::syslog(format_args!(
            "cannot write to the queue {}: {error}; reporting {} from memory",
            inbox.dir().display(),
            report.address
        ));
    }
    let queued = unqueued.is_none();
    if (!queued || !owner_lock::is_held(&paths.report_lock()))
        && let Err(error) = detach::spawn_detached("work", unqueued.map(|_| report.encode()))
    {
        log::syslog(format_args!("cannot start the reporter: {error}"));
    }
    queued
}

/// `--actionstart`: creates database and log, so that errors show up before the first ban.
///
/// # Errors
/// [`Error::File`] or [`Error::Ledger`]; each later ban tries again.
pub fn start(ledger: &str, log: &str) -> Result<(), Error> {
    let ledger = Path::new(path_or_default(ledger, DEFAULT_LEDGER));
    let log_path = Path::new(path_or_default(log, DEFAULT_LOG));
    let log = Log::new(log_path.to_owned());
    create_files(ledger, &log, log_path).inspect_err(|error| {
        // The action's output goes to /dev/null; without a log file, this line goes to the journal.
        log.line(format_args!("ERROR: Initialization failed! (actionstart). {error}"));
    })
}

/// Creates database and log, with the script's log lines.
fn create_files(ledger: &Path, log: &Log, log_path: &Path) -> Result<(), Error> {
    let (is_new, has_log) = (!ledger.exists(), log_path.exists());
    log.create().map_err(Error::file("write the log", log_path))?;
    if !is_new && has_log {
        log.line("INFO: Initialization already completed. Skipping further checks.");
        return Ledger::open(ledger).map(drop);
    }
    if is_new {
        log.line("INFO: AbuseIPDB database not found. Initializing...");
    }
    Ledger::open(ledger)?;
    if is_new {
        log.line("INFO: AbuseIPDB database is initialized!");
    }
    log.line("SUCCESS: All (actionstart) checks completed!");
    Ok(())
}

/// `f2bmqtt report`: queues a report that a person asks for, and prints the outcome.
///
/// # Errors
/// Those of [`ReportCall::decide`], and [`Error::Report`] without a key or a queue.
pub fn run_command(call: &ReportCall, dry_run: bool, paths: &Paths) -> Result<(), Error> {
    let file = KeyFile::read(&paths.api_key);
    file.warning.iter().for_each(log::warn);
    // A dry run needs no key.
    if file.key.is_none() && !dry_run {
        let path = paths.api_key.display();
        return Err(Error::Report(format!("no API key is set in {path}")));
    }
    let report = match call.decide(now_secs())? {
        ReportDecision::Nothing(line) => {
            info(line);
            return Ok(());
        }
        ReportDecision::Report(report) => report,
    };
    let (address, log, private) = (report.address, &report.log, Private::of_this_host());
    if private.addresses.contains(&address.ip()) {
        info(format_args!("INFO: IP {address} is not reported: the address is this host's own."));
        return Ok(());
    }
    if !dry_run {
        let path = log.display();
        if !enqueue(&report, &Log::new(log.clone()), paths) {
            return Err(Error::Report(format!("cannot queue the report of {address}: see {path}")));
        }
        info(format_args!("queued the report of {address}; the log shows the result: {path}"));
        return Ok(());
    }
    let calendar = Calendar::new().map_err(|error| Error::Start(std::io::Error::other(error)))?;
    let form = Form {
        address: report.address,
        categories: report.categories.to_string(),
        comment: text::compose([(report.comment.as_str(), report.source)], address, &private),
        timestamp: Some(calendar.iso(report.time)),
    };
    info(form.to_string().trim_end());
    if file.key.is_none() {
        log::warn(format_args!("no API key is set in {}", paths.api_key.display()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(text: &str) -> ReportCall {
        ReportCall::from_args(&text.split('|').map(str::to_owned).collect::<Vec<_>>())
    }

    fn decide_report(text: &str) -> Report {
        match call(text).decide(77).unwrap() {
            ReportDecision::Report(report) => *report,
            ReportDecision::Nothing(line) => panic!("{text}: {line}"),
        }
    }

    fn unwritable_line(path: &Path) -> String {
        let (path, dir) = (path.display(), path.parent().unwrap().display());
        format!(
            "ERROR: the service f2bmqttsub cannot write to {path}. Run systemctl edit f2bmqttsub, add the \
             lines [Service] and ReadWritePaths={dir}, then run systemctl restart f2bmqttsub."
        )
    }

    #[test]
    fn unwritable_file_is_logged_with_the_fix_also_behind_a_link() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().canonicalize().unwrap();
        let (real, link) = (root.join("real/x.log"), root.join("link.log"));
        std::fs::create_dir(root.join("real")).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        std::os::unix::fs::symlink(root.join("real"), root.join("link")).unwrap();
        let elsewhere = PathBuf::from("/none/such/db");
        // The path, whether the service may only read there (`None`: no service runs), and the path in the log line.
        let table = [
            (DEFAULT_LEDGER.into(), Some(true), None),
            (DEFAULT_LOG.into(), Some(true), None),
            (elsewhere.clone(), Some(true), Some(&elsewhere)),
            (elsewhere.clone(), Some(false), None),
            (elsewhere.clone(), None, None),
            (real.clone(), Some(true), Some(&real)),
            (link.clone(), Some(true), Some(&real)),
            (root.join("link/x.log"), Some(true), Some(&real)),
            (link, Some(false), None),
        ];
        for (path, read_only, named) in table {
            let found = unwritable_path_error(&path, |dir| {
                assert!(Some(dir) == real.parent() || Some(dir) == elsewhere.parent(), "{dir:?}");
                read_only
            });
            let expected = named.map(|path| unwritable_line(path));
            assert_eq!(found, expected, "{} {read_only:?}", path.display());
        }
    }

    #[test]
    fn calls_are_decided_by_the_scripts_rules_in_their_order() {
        let restart = "INFO: (RESTART) IP 192.31.196.1 was already reported in the previous Fail2Ban \
                       session.";
        let unfailed = "INFO: (BAN) IP 192.31.196.1 has 0 failures so no action required";
        let documentation =
            "INFO: IP 203.0.113.120 is not reported: the address is private or reserved.";
        let private = "INFO: IP 10.0.0.1 is not reported: the address is private or reserved.";
        let silent = [
            ("k3y|c|192.31.196.1|18|600|1|0|||3", restart),
            ("||192.31.196.1|||1", restart),
            ("k3y|c|192.31.196.1|18|600|0|0|||0", unfailed),
            ("k3y|c|192.31.196.1|18|600|1|1|||0", unfailed),
            ("k3y|c|192.31.196.1|18|600|0|0", unfailed),
            // An imported ban has no log lines.
            ("||192.31.196.1||||0|||0", unfailed),
            ("k3y|c|10.0.0.1|18|600|0|0|||3", private),
            ("k3y|c|203.0.113.120|18|600|0|0|||3", documentation),
        ];
        for (text, line) in silent {
            let expected = ReportDecision::Nothing(line.to_owned());
            assert_eq!(call(text).decide(1).unwrap(), expected, "{text}");
        }
        let missing = [
            ("k3y||192.31.196.1|18|600|0|0|||3", "Missing: COMMENT."),
            ("k3y|c||18||0|0|||3", "Missing: IP, BANTIME."),
        ];
        for (text, what) in missing {
            let error = call(text).decide(1).unwrap_err();
            assert!(error.to_string().starts_with("Missing core argument(s)."), "{text}: {error}");
            assert!(error.to_string().contains(what), "{text}: {error}");
            assert_eq!(error.exit_code(), 1);
        }
        let wrong = [
            ("k3y|c|192.31.196.0/24|18|600|0|0|||3", "IP"),
            ("k3y|c|192.31.196.1|ssh|600|0|0|||3", "CATEGORIES"),
            ("k3y|c|192.31.196.1|18|600|0|0|||a[$(id)]", "FAILURES"),
            ("k3y|c|192.31.196.1|18|600|x|0|||3", "RESTORED"),
        ];
        for (text, name) in wrong {
            let error = call(text).decide(1).unwrap_err();
            assert!(error.to_string().starts_with(name), "{text}: {error}");
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn report_has_the_arguments_of_the_call() {
        let report = decide_report("k3y|c|::ffff:192.31.196.1|18,22|10m|1|1|/db|/log|3");
        assert_eq!(report.address.to_string(), "192.31.196.1");
        assert_eq!((report.bantime, report.failures, report.time), (600, 3, 77));
        assert_eq!(report.key.as_ref().unwrap().reveal(), "k3y");
        assert_eq!((report.ledger, report.log), ("/db".into(), "/log".into()));
        assert_eq!(decide_report("k3y|c|192.31.196.1|18|soon|0|0|||3").bantime, 0);
        let old = decide_report(
            "k3y|c|192.31.196.1|18|1|0|<BYPASS_FAIL2BAN>|<SQLITE_DB>|<LOG_FILE>|3|12.5",
        );
        assert_eq!(
            (old.ledger, old.log, old.time),
            (DEFAULT_LEDGER.into(), DEFAULT_LOG.into(), 12)
        );
        assert_eq!(decide_report("k3y|c|192.31.196.1|18|1|0||||3|99").time, 77, "no time is ahead");
        let raw = decide_report("k3y|\u{1b}[31mann\u{1b}[0m|192.31.196.1|18|1|0||||3");
        assert_eq!(raw.comment, "\u{1b}[31mann\u{1b}[0m", "redaction happens later");
        let report = decide_report("k3y|c|192.31.196.1|18|-1|0||||1");
        assert_eq!(report.bantime, -1);
        assert_eq!((report.ledger, report.log), (DEFAULT_LEDGER.into(), DEFAULT_LOG.into()));
        for none in ["", "YOUR_API_KEY"] {
            let report = decide_report(&format!("{none}|c|192.31.196.1|18|1|0||||1"));
            assert!(report.key.is_none(), "the report waits for a key");
        }
    }

    #[test]
    fn comment_is_the_administrators_or_log_lines() {
        use CommentSource::{Admin, Database, Log};
        let table = [
            ("seen by web1|", "seen by web1", Log),
            ("seen by web1|own", "seen by web1", Admin),
            ("|own", "", Database),
            (r"it\'s \(so\) \<now\> 1\\2 c:\dir|own", r"it's (so) <now> 1\\2 c:\dir", Admin),
            (r"it\'s|", r"it\'s", Log),
        ];
        for (text, comment, source) in table {
            let (text, own) = text.split_once('|').unwrap();
            let report = decide_report(&format!("k|{text}|192.31.196.1|18|1|0||||1|5|{own}"));
            assert_eq!((report.comment.as_str(), report.source), (comment, source), "{text}");
        }
    }
}
