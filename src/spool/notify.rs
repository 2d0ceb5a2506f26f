//! `f2bmqtt notify`, which fail2ban's actions call at each ban and unban. It decides as the scripts did whether the
//! call is an event, writes the event to the spool, and exits. fail2ban handles no other ban while an action runs, so
//! `notify` never waits for the network or for fail2ban.

use std::time::SystemTime;

use rustix::process::geteuid;

use crate::error::Error;
use crate::model::{Address, Jail};
use crate::spool::{Written, owner_lock};
use crate::sys::paths::Paths;
use crate::sys::{detach, log};
use crate::wire::{Action, SpooledEvent};

/// The arguments as fail2ban passes them, still text.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct NotifyCall<'a> {
    /// The action's name, usually that of its jail.
    pub jail: &'a str,
    /// The banned or unbanned address.
    pub address: &'a str,
    /// In seconds; -1 is permanent.
    pub bantime: &'a str,
    /// `ban` or `unban`.
    pub action: &'a str,
    /// Not 0 if fail2ban made the ban again after a restart.
    pub restored: &'a str,
    /// The number of failures that led to the ban; 0 for a ban by hand.
    pub failures: &'a str,
    /// The start of the ban, in seconds since 1970, with a fraction.
    pub time: &'a str,
}

impl<'a> NotifyCall<'a> {
    /// A call with arguments in the scripts' order. The first four are required; arguments after the time are
    /// ignored, as in the scripts.
    #[must_use]
    pub fn from_args(args: &[&'a str]) -> Option<Self> {
        let [jail, address, bantime, action, optional @ ..] = args else { return None };
        let mut optional = optional.iter().copied().chain(std::iter::repeat(""));
        let restored = optional.next()?;
        let failures = optional.next()?;
        let time = optional.next()?;
        Some(Self { jail, address, bantime, action, restored, failures, time })
    }

    /// The event of this call, if any, and a warning. A ban by hand or import (0 failures) and a restored ban are no
    /// events.
    ///
    /// # Errors
    /// [`Error::Usage`]: an argument is invalid.
    pub fn to_event(&self) -> Result<(Option<SpooledEvent>, Option<String>), Error> {
        let jail = Jail::new(self.jail).map_err(|fault| usage("NAME", &fault))?;
        let address = Address::new(self.address).map_err(|fault| usage("IP", &fault))?;
        let action = match Action::new(self.action) {
            Action::Other(_) => return Err(usage("ACTION", "must be ban or unban")),
            action => action,
        };
        let restored = parse_count("RESTORED", self.restored)?;
        let failures = parse_count("FAILURES", self.failures)?;
        if failures == 0 || action == Action::Ban && restored != 0 {
            return Ok((None, None));
        }
        let mut warning = None;
        let bantime = self.bantime.parse().unwrap_or_else(|_| {
            warning = Some(format!(
                "invalid bantime of jail {jail}: not a number of seconds; publishing 0 (unknown)"
            ));
            0
        });
        let time = whole_seconds(self.time).unwrap_or(0);
        let (restored, failures) = (restored.into(), failures.into());
        let event = SpooledEvent { action, jail, address, bantime, restored, failures, time };
        Ok((Some(event), warning))
    }
}

fn usage(argument: &str, fault: &str) -> Error {
    Error::Usage(format!("{argument} {fault}"))
}

/// Parses an argument that is a number; an empty one is 0.
fn parse_count(argument: &str, text: &str) -> Result<u32, Error> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_| usage(argument, "must be a number, 0 or more"))
}

/// Whether the command of a fail2ban action calls the notifier.
#[must_use]
pub fn is_called_by(action: &str) -> bool {
    action.contains("mqttnotifyban") || action.contains("f2bmqtt notify")
}

/// fail2ban's `<time>`, seconds with a fraction, as whole seconds. Halves are rounded to even, as Python rounds the
/// time in fail2ban's database.
#[must_use]
pub fn whole_seconds(time: &str) -> Option<i64> {
    const MAX_SECS: f64 = 1e11;
    let time: f64 = time.trim().parse().ok()?;
    #[expect(clippy::cast_possible_truncation, reason = "the number is whole and in range")]
    (0.0..MAX_SECS).contains(&time).then(|| time.round_ties_even() as i64)
}

/// Handles one call: writes the event to the spool, and starts a publisher if no process holds the lock. If neither
/// spool can be written, the publisher gets the event itself.
///
/// # Errors
/// [`Error::Usage`], or [`Error::NotRoot`]: only root may write to the spool. No other failure makes the action fail.
pub fn run(call: &NotifyCall<'_>, paths: &Paths) -> Result<(), Error> {
    let (event, warning) = call.to_event()?;
    if let Some(warning) = warning {
        log::syslog(warning);
    }
    let Some(event) = event else { return Ok(()) };
    let spool = paths.spool();
    let address = event.address;
    let unspooled = match spool.write(&event, SystemTime::now()) {
        Ok(Written::Primary) => None,
        Ok(Written::Fallback(error)) => {
            let spool = spool.dir().display();
            log::syslog(format_args!(
                "cannot write to the spool {spool}: {error}; keeping {address} in the second spool, which a \
                 reboot deletes"
            ));
            None
        }
        // Another user cannot read the settings either, so a publisher could not publish the event.
        Err(error) if !geteuid().is_root() => {
            return Err(Error::NotRoot(spool.dir().to_owned(), error));
        }
        Err(error) => {
            let spool = spool.dir().display();
            log::syslog(format_args!(
                "cannot write to the spool {spool}: {error}; publishing {address} now, without retry"
            ));
            Some(event.encode())
        }
    };
    if (unspooled.is_some() || !owner_lock::is_held(&paths.lock()))
        && let Err(error) = detach::spawn_detached("publish", unspooled)
    {
        log::syslog(format_args!("cannot start the publisher: {error}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::NotifyShim;

    fn call(text: &str) -> NotifyCall<'_> {
        NotifyCall::from_args(&text.split(',').collect::<Vec<_>>()).unwrap()
    }

    fn spooled(text: &str) -> Option<String> {
        let (event, warning) = call(text).to_event().unwrap();
        assert!(warning.is_none(), "{text}");
        event.map(|event| event.encode())
    }

    #[test]
    fn the_scripts_rules_decide() {
        let not_events = [
            "sshd,203.0.113.9,600,ban,1,3",
            "sshd,203.0.113.9,600,ban,0,0",
            "sshd,203.0.113.9,600,unban,0,0",
            "sshd,203.0.113.9,600,ban,0,",
            "sshd,203.0.113.9,600,ban",
        ];
        for text in not_events {
            assert_eq!(spooled(text), None, "{text}");
        }
        let ban = r#"{"action":"ban","bantime":600,"failures":3,"ip":"203.0.113.9","ipmset":"sshd","restored":0,"time":1795342588}"#;
        assert_eq!(spooled("sshd,203.0.113.9,600,ban,0,3,1795342587.6").unwrap(), ban);
        assert!(spooled("sshd,203.0.113.9,600,unban,1,3").unwrap().contains(r#""restored":1"#));
        assert!(spooled("sshd,2001:DB8::0:1,-1,ban,0,3").unwrap().contains(r#""2001:db8::1""#));
        assert!(spooled("sshd,192.0.2.1,0,ban,,3,odd").unwrap().contains(r#""time":0"#));
        assert_eq!(spooled("sshd,203.0.113.9,600,ban,0,3,1795342587.6,more").unwrap(), ban);
        assert!(NotifyCall::from_args(&["sshd", "203.0.113.9", "600"]).is_none());
    }

    /// The binary reads a call without clap, which would take a fifth of its time.
    #[test]
    fn call_by_position_equals_the_call_that_clap_parses() {
        let calls = [
            "sshd,203.0.113.9,600",
            "sshd,203.0.113.9,600,ban",
            "sshd,2001:db8::1,-1,unban,0",
            "sshd,192.0.2.1,,ban,,3",
            "sshd,203.0.113.9,600,ban,0,3,1795342587.6",
            "-j,203.0.113.9,600,ban,0,3,1795342587.6,more,-x",
        ];
        for text in calls {
            let args: Vec<_> = text.split(',').collect();
            let parsed = NotifyShim::try_parse_from(["mqttnotifyban"].iter().chain(&args)).ok();
            assert_eq!(NotifyCall::from_args(&args), parsed.as_ref().map(|shim| shim.args.call()));
        }
    }

    #[test]
    fn bantime_that_is_no_number_is_published_as_unknown() {
        for bantime in ["", "10m", "$(id)"] {
            let (event, warning) =
                call(&format!("sshd,192.0.2.1,{bantime},ban,0,3")).to_event().unwrap();
            assert_eq!(event.unwrap().bantime, 0);
            assert!(warning.unwrap().contains("bantime"));
        }
    }

    #[test]
    fn invalid_argument_is_a_usage_error() {
        let invalid = [
            ("ss\"hd,192.0.2.1,600,ban,0,3", "NAME"),
            ("sshd,192.0.2.0/24,600,ban,0,3", "IP"),
            ("sshd,192.0.2.1\",600,ban,0,3", "IP"),
            ("sshd,192.0.2.1,600,reban,0,3", "ACTION"),
            ("sshd,192.0.2.1,600,ban,x,3", "RESTORED"),
            ("sshd,192.0.2.1,600,ban,0,a[$(id)]", "FAILURES"),
            ("sshd,192.0.2.1,600,ban,0,-1", "FAILURES"),
        ];
        for (text, name) in invalid {
            let error = call(text).to_event().unwrap_err();
            assert!(error.to_string().starts_with(name), "{text}: {error}");
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn time_is_rounded_as_in_the_database() {
        for (time, whole) in [("0.5", 0), ("1.5", 2), ("2.5", 2), ("7.6", 8), ("4", 4)] {
            assert_eq!(whole_seconds(time), Some(whole));
        }
        for time in ["-3.0", "1e300", "NaN", "", "odd"] {
            assert_eq!(whole_seconds(time), None);
        }
    }
}
