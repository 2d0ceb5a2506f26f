//! The binary. The name by which it is called selects the personality; an error selects the exit code.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;
use f2bmqtt::abuseipdb::{enqueue, service};
use f2bmqtt::cli::{Cli, Command, NotifyShim, ReportArgs, ReportShim, SubscribeShim};
use f2bmqtt::config::Config;
use f2bmqtt::error::Error;
use f2bmqtt::spool::notify::NotifyCall;
use f2bmqtt::spool::{notify, publish_once};
use f2bmqtt::sys::paths::Paths;
use f2bmqtt::sys::{conntrack, log};
use f2bmqtt::{daemon, operator};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

fn main() -> ExitCode {
    // This memory holds passwords and keys: keep it out of core files, and away from tracers.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::warn(format_args!("f2bmqtt: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}

fn run() -> Result<(), Error> {
    let arguments: Vec<_> = std::env::args_os().collect();
    let paths = Paths::default();
    let called = arguments.first().map(Path::new).and_then(Path::file_stem).and_then(OsStr::to_str);
    // fail2ban's next ban waits for this call, and clap would take a fifth of its time.
    match called.and_then(|name| notify_call(name, &arguments)) {
        Some(call) => run_notify(&call, &paths),
        None => run_parsed(called, &paths),
    }
}

#[inline(never)]
fn run_parsed(called: Option<&str>, paths: &Paths) -> Result<(), Error> {
    match called {
        Some("mqttnotifyban") => run_notify(&NotifyShim::parse().args.call(), paths),
        Some("mqttsubscribebans") => {
            SubscribeShim::parse();
            daemon::run(paths)
        }
        Some("fail2ban-abuseipdb") => report_ban(paths),
        _ => match Cli::parse().command {
            Command::Operator(operation) => operator::run(&operation, paths),
            Command::Notify(args) => run_notify(&args.call(), paths),
            Command::Subscribe => daemon::run(paths),
            Command::Cut { ip } => conntrack::run(&ip, paths),
            Command::Settings => settings(),
            Command::Publish => publish_once::run(paths),
            Command::Report(args) => report(&args, paths),
            Command::Work => service::run_child(paths),
        },
    }
}

/// Reads a call of the notifier, under either name, without clap.
fn notify_call<'a>(name: &str, arguments: &'a [OsString]) -> Option<NotifyCall<'a>> {
    let args: Option<Vec<_>> = arguments.iter().skip(1).map(|arg| arg.to_str()).collect();
    match (name, args?.as_slice()) {
        ("mqttnotifyban", args) | ("f2bmqtt", ["notify", args @ ..]) => NotifyCall::from_args(args),
        _ => None,
    }
}

fn run_notify(call: &NotifyCall<'_>, paths: &Paths) -> Result<(), Error> {
    // fail2ban discards the standard error of its actions.
    notify::run(call, paths).inspect_err(|error| log::syslog(error))
}

/// Runs the reporter as the script's replacement. Arguments may be log lines, so an option counts only if it is the
/// only argument.
fn report_ban(paths: &Paths) -> Result<(), Error> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if let [only] = arguments.as_slice()
        && ["--help", "-h", "--version", "-V"].iter().any(|option| only == option)
    {
        ReportShim::parse();
        return Ok(());
    }
    // Log lines need not be UTF-8.
    let arguments: Vec<_> =
        arguments.iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let call = enqueue::ReportCall::from_args(&arguments);
    if call.key == "--actionstart" {
        return enqueue::start(&call.comment, &call.address);
    }
    enqueue::run(&call, paths).inspect_err(|error| log::syslog(error))
}

fn settings() -> Result<(), Error> {
    Config::load()?.warnings.iter().for_each(log::warn);
    Ok(())
}

fn report(args: &ReportArgs, paths: &Paths) -> Result<(), Error> {
    let call = enqueue::ReportCall {
        comment: args.comment.clone(),
        address: args.ip.clone(),
        categories: args.categories.clone(),
        bantime: args.bantime.clone(),
        failures: "1".to_owned(),
        ..enqueue::ReportCall::default()
    };
    enqueue::run_command(&call, args.dry_run, paths)
}
