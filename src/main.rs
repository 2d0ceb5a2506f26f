//! The binary: the name that it is called by makes the personality, and that the exit code.

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;
use f2bmqtt::cli::{Cli, Command, NotifyArgs, NotifyShim, SubscribeShim};
use f2bmqtt::error::Error;
use f2bmqtt::notify::{self, Call};
use f2bmqtt::paths::Paths;
use f2bmqtt::{cut, daemon, journal, publish};

fn main() -> ExitCode {
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
        _ => match Cli::parse().command {
            Command::Notify(args) => tell(&args, &paths),
            Command::Subscribe => daemon::run(&paths),
            Command::Cut { ip } => cut::run(&ip, &paths),
            Command::Publish => publish::run(&paths),
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
