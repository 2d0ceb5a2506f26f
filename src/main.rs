//! The binary: the name that it is called by makes the personality, and that the exit code.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;
use f2bmqtt::abuseipdb::{call, service};
use f2bmqtt::cli::{Cli, Command, NotifyArgs, NotifyShim, ReportArgs, ReportShim, SubscribeShim};
use f2bmqtt::error::Error;
use f2bmqtt::notify::{self, Call};
use f2bmqtt::paths::Paths;
use f2bmqtt::{cut, daemon, journal, operator, publish};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

fn main() -> ExitCode {
    // Passwords and keys are in this memory: none of it goes into a core file, nor to a tracer.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            journal::warn(format_args!("f2bmqtt: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}

fn run() -> Result<(), Error> {
    let called = std::env::args_os().next().unwrap_or_default();
    let paths = Paths::default();
    match Path::new(&called).file_stem().and_then(OsStr::to_str) {
        Some("mqttnotifyban") => tell(&NotifyShim::parse().args, &paths),
        Some("mqttsubscribebans") => {
            SubscribeShim::parse();
            daemon::run(&paths)
        }
        Some("fail2ban-abuseipdb") => report_ban(&paths),
        _ => match Cli::parse().command {
            Command::Operator(operation) => operator::run(&operation, &paths),
            Command::Notify(args) => tell(&args, &paths),
            Command::Subscribe => daemon::run(&paths),
            Command::Cut { ip } => cut::run(&ip, &paths),
            Command::Publish => publish::run(&paths),
            Command::Report(args) => report(&args, &paths),
            Command::Work => service::child(&paths),
        },
    }
}

fn tell(args: &NotifyArgs, paths: &Paths) -> Result<(), Error> {
    let call = Call {
        jail: &args.name,
        address: &args.ip,
        bantime: &args.bantime,
        action: &args.action,
        restored: &args.restored,
        failures: &args.failures,
        time: &args.time,
    };
    // fail2ban's actions throw away what is said here.
    notify::run(&call, paths).inspect_err(|error| journal::syslog(error))
}

/// The arguments are log lines, among others: none of them is an option, unless it stands alone.
fn report_ban(paths: &Paths) -> Result<(), Error> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if let [only] = arguments.as_slice()
        && ["--help", "-h", "--version", "-V"].iter().any(|option| only == option)
    {
        ReportShim::parse();
        return Ok(());
    }
    // Nor need they be Unicode.
    let text = |argument: &OsString| argument.to_string_lossy().into_owned();
    let arguments: Vec<_> = arguments.iter().map(text).collect();
    let call = call::Call::by_position(&arguments);
    if call.key == "--actionstart" {
        return call::start(&call.comment, &call.address);
    }
    call::run(&call, paths).inspect_err(|error| journal::syslog(error))
}

fn report(args: &ReportArgs, paths: &Paths) -> Result<(), Error> {
    let call = call::Call {
        comment: args.comment.clone(),
        address: args.ip.clone(),
        categories: args.categories.clone(),
        bantime: args.bantime.clone(),
        failures: "1".to_owned(),
        ..call::Call::default()
    };
    call::by_hand(&call, args.dry_run, paths)
}
