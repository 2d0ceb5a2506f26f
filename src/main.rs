//! The binary: the name that it is called by makes the personality, and that the exit code.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;
use f2bmqtt::abuseipdb::{call, service};
use f2bmqtt::cli::{Cli, Command, NotifyShim, ReportArgs, ReportShim, SubscribeShim};
use f2bmqtt::config::Config;
use f2bmqtt::error::Error;
use f2bmqtt::notify::{self, NotifyCall};
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
    let arguments: Vec<_> = std::env::args_os().collect();
    let paths = Paths::default();
    let called = arguments.first().map(Path::new).and_then(Path::file_stem).and_then(OsStr::to_str);
    // The next ban waits for this one: it gets by without the parser and its stack, which take a fifth of the time.
    match called.and_then(|name| usual(name, &arguments)) {
        Some(call) => tell(&call, &paths),
        None => parsed(called, &paths),
    }
}

#[inline(never)]
fn parsed(called: Option<&str>, paths: &Paths) -> Result<(), Error> {
    match called {
        Some("mqttnotifyban") => tell(&NotifyShim::parse().args.call(), paths),
        Some("mqttsubscribebans") => {
            SubscribeShim::parse();
            daemon::run(paths)
        }
        Some("fail2ban-abuseipdb") => report_ban(paths),
        _ => match Cli::parse().command {
            Command::Operator(operation) => operator::run(&operation, paths),
            Command::Notify(args) => tell(&args.call(), paths),
            Command::Subscribe => daemon::run(paths),
            Command::Cut { ip } => cut::run(&ip, paths),
            Command::Settings => settings(),
            Command::Publish => publish::run(paths),
            Command::Report(args) => report(&args, paths),
            Command::Work => service::child(paths),
        },
    }
}

/// A call of the notifier, under either name, with arguments that can be one.
fn usual<'a>(name: &str, arguments: &'a [OsString]) -> Option<NotifyCall<'a>> {
    let words: Option<Vec<_>> = arguments.iter().skip(1).map(|word| word.to_str()).collect();
    match (name, words?.as_slice()) {
        ("mqttnotifyban", words) | ("f2bmqtt", ["notify", words @ ..]) => {
            NotifyCall::by_position(words)
        }
        _ => None,
    }
}

fn tell(call: &NotifyCall<'_>, paths: &Paths) -> Result<(), Error> {
    // fail2ban's actions throw away what is said here.
    notify::run(call, paths).inspect_err(|error| journal::syslog(error))
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
    let call = call::ReportCall::from_args(&arguments);
    if call.key == "--actionstart" {
        return call::start(&call.comment, &call.address);
    }
    call::run(&call, paths).inspect_err(|error| journal::syslog(error))
}

fn settings() -> Result<(), Error> {
    Config::load()?.warnings.iter().for_each(journal::warn);
    Ok(())
}

fn report(args: &ReportArgs, paths: &Paths) -> Result<(), Error> {
    let call = call::ReportCall {
        comment: args.comment.clone(),
        address: args.ip.clone(),
        categories: args.categories.clone(),
        bantime: args.bantime.clone(),
        failures: "1".to_owned(),
        ..call::ReportCall::default()
    };
    call::by_hand(&call, args.dry_run, paths)
}
