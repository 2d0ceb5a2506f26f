//! What a fail2ban action calls at each ban and unban: decides as the scripts did, leaves the event
//! in the spool, and is gone. fail2ban waits for it, and so does the next ban.

use std::time::SystemTime;

use rustix::process::geteuid;

use crate::child;
use crate::error::Error;
use crate::journal;
use crate::lock;
use crate::paths::Paths;
use crate::spool::Written;
use crate::wire::{Action, Address, Jail, SpooledEvent};

/// The arguments as fail2ban passes them, still text.
#[derive(Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct NotifyCall<'a> {
    pub jail: &'a str,
    pub address: &'a str,
    pub bantime: &'a str,
    pub action: &'a str,
    pub restored: &'a str,
    pub failures: &'a str,
    pub time: &'a str,
}

impl<'a> NotifyCall<'a> {
    /// A call with arguments in the scripts' order: the first four at least; what follows the time is
    /// ignored, as the scripts ignored it.
    #[must_use]
    pub fn by_position(words: &[&'a str]) -> Option<Self> {
        let [jail, address, bantime, action, more @ ..] = words else { return None };
        let more = |n: usize| more.get(n).copied().unwrap_or_default();
        let (restored, failures, time) = (more(0), more(1), more(2));
        Some(Self { jail, address, bantime, action, restored, failures, time })
    }

    /// What there is to tell, if anything, and a warning.
    ///
    /// # Errors
    /// [`Error::Usage`] where an argument cannot be what it stands for.
    pub fn told(&self) -> Result<(Option<SpooledEvent>, Option<String>), Error> {
        let usage = |name: &str, what: &str| Error::Usage(format!("{name} {what}"));
        let jail = Jail::new(self.jail).map_err(|what| usage("NAME", &what))?;
        let address = Address::new(self.address).map_err(|what| usage("IP", &what))?;
        let action = match Action::new(self.action) {
            Action::Other(_) => return Err(usage("ACTION", "must be ban or unban")),
            known => known,
        };
        let count = |name, text: &str| match text {
            "" => Ok(0),
            text => text.parse::<u32>().map_err(|_| usage(name, "must be a number, 0 or more")),
        };
        let restored = count("RESTORED", self.restored)?;
        let failures = count("FAILURES", self.failures)?;
        if failures == 0 || action == Action::Ban && restored != 0 {
            return Ok((None, None));
        }
        let mut warning = None;
        let bantime = self.bantime.parse().unwrap_or_else(|_| {
            warning = Some(format!(
                "invalid bantime of jail {jail}: not a number of seconds; publishing 0 \
                                    (unknown)"
            ));
            0
        });
        let time = whole_seconds(self.time).unwrap_or(0);
        let (restored, failures) = (restored.into(), failures.into());
        let told = SpooledEvent { action, jail, address, bantime, restored, failures, time };
        Ok((Some(told), warning))
    }
}

/// Whether what a fail2ban action runs tells the fleet.
#[must_use]
pub fn is_called_by(action: &str) -> bool {
    action.contains("mqttnotifyban") || action.contains("f2bmqtt notify")
}

/// fail2ban's `<time>`, seconds with a fraction, as whole seconds: rounded to even, as its database
/// rounds.
#[must_use]
pub fn whole_seconds(time: &str) -> Option<i64> {
    const MAX: f64 = 1e11;
    let time: f64 = time.trim().parse().ok()?;
    #[expect(clippy::cast_possible_truncation, reason = "in range, and that is what is wanted")]
    (0.0..MAX).contains(&time).then(|| time.round_ties_even() as i64)
}

/// Takes one call: spools what there is to tell and, where nobody publishes the spool, leaves a
/// child that does. Where no spool can be written, the child gets the event itself.
///
/// # Errors
/// [`Error::Usage`], and [`Error::NotRoot`] where the user may not write to the spool: only root may. Nothing else makes
/// the action fail.
pub fn run(call: &NotifyCall<'_>, paths: &Paths) -> Result<(), Error> {
    let (told, warning) = call.told()?;
    if let Some(warning) = warning {
        journal::syslog(warning);
    }
    let Some(told) = told else { return Ok(()) };
    let spool = paths.spool();
    let failed = |error, what: &str| {
        let dir = spool.dir().display();
        journal::syslog(format_args!("cannot write to the spool {dir}: {error}; {what}"));
    };
    let address = told.address;
    let unspooled = match spool.write(&told, SystemTime::now()) {
        Ok(Written::Primary) => None,
        Ok(Written::Fallback(error)) => {
            let what = "in the second spool, which a reboot deletes";
            failed(error, &format!("keeping {address} {what}"));
            None
        }
        // Another user may not read the settings either: no child of it could publish the event.
        Err(error) if !geteuid().is_root() => {
            return Err(Error::NotRoot(spool.dir().to_owned(), error));
        }
        Err(error) => {
            failed(error, &format!("publishing {address} now, without retry"));
            Some(told.encode())
        }
    };
    if (unspooled.is_some() || !lock::is_held(&paths.lock()))
        && let Err(error) = child::leave("publish", unspooled)
    {
        journal::syslog(format_args!("cannot start the publisher: {error}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::NotifyShim;

    fn call(text: &str) -> NotifyCall<'_> {
        NotifyCall::by_position(&text.split(',').collect::<Vec<_>>()).unwrap()
    }

    fn told(text: &str) -> Option<String> {
        let (told, warning) = call(text).told().unwrap();
        assert!(warning.is_none(), "{text}");
        told.map(|told| told.encode())
    }

    #[test]
    fn the_scripts_rules_decide() {
        let silent = [
            "sshd,203.0.113.9,600,ban,1,3",
            "sshd,203.0.113.9,600,ban,0,0",
            "sshd,203.0.113.9,600,unban,0,0",
            "sshd,203.0.113.9,600,ban,0,",
            "sshd,203.0.113.9,600,ban",
        ];
        for text in silent {
            assert_eq!(told(text), None, "{text}");
        }
        let ban = r#"{"action":"ban","bantime":600,"failures":3,"ip":"203.0.113.9","ipmset":"sshd","restored":0,"time":1795342588}"#;
        assert_eq!(told("sshd,203.0.113.9,600,ban,0,3,1795342587.6").unwrap(), ban);
        assert!(told("sshd,203.0.113.9,600,unban,1,3").unwrap().contains(r#""restored":1"#));
        assert!(told("sshd,2001:DB8::0:1,-1,ban,0,3").unwrap().contains(r#""2001:db8::1""#));
        assert!(told("sshd,192.0.2.1,0,ban,,3,odd").unwrap().contains(r#""time":0"#));
        assert_eq!(told("sshd,203.0.113.9,600,ban,0,3,1795342587.6,more").unwrap(), ban);
        assert!(NotifyCall::by_position(&["sshd", "203.0.113.9", "600"]).is_none());
    }

    /// The binary reads the usual call without the parser, which would take a fifth of its time.
    #[test]
    fn call_by_position_is_what_the_parser_reads() {
        let calls = [
            "sshd,203.0.113.9,600",
            "sshd,203.0.113.9,600,ban",
            "sshd,2001:db8::1,-1,unban,0",
            "sshd,192.0.2.1,,ban,,3",
            "sshd,203.0.113.9,600,ban,0,3,1795342587.6",
            "-j,203.0.113.9,600,ban,0,3,1795342587.6,more,-x",
        ];
        for text in calls {
            let words: Vec<_> = text.split(',').collect();
            let parsed = NotifyShim::try_parse_from(["mqttnotifyban"].iter().chain(&words)).ok();
            assert_eq!(
                NotifyCall::by_position(&words),
                parsed.as_ref().map(|shim| shim.args.call())
            );
        }
    }

    #[test]
    fn a_bantime_that_is_no_number_is_told_as_not_known() {
        for bantime in ["", "10m", "$(id)"] {
            let (told, warning) =
                call(&format!("sshd,192.0.2.1,{bantime},ban,0,3")).told().unwrap();
            assert_eq!(told.unwrap().bantime, 0);
            assert!(warning.unwrap().contains("bantime"));
        }
    }

    #[test]
    fn what_cannot_be_is_wrong_usage() {
        let wrong = [
            ("ss\"hd,192.0.2.1,600,ban,0,3", "NAME"),
            ("sshd,192.0.2.0/24,600,ban,0,3", "IP"),
            ("sshd,192.0.2.1\",600,ban,0,3", "IP"),
            ("sshd,192.0.2.1,600,reban,0,3", "ACTION"),
            ("sshd,192.0.2.1,600,ban,x,3", "RESTORED"),
            ("sshd,192.0.2.1,600,ban,0,a[$(id)]", "FAILURES"),
            ("sshd,192.0.2.1,600,ban,0,-1", "FAILURES"),
        ];
        for (text, name) in wrong {
            let error = call(text).told().unwrap_err();
            assert!(error.to_string().starts_with(name), "{text}: {error}");
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn times_are_rounded_as_the_database_rounds() {
        for (time, whole) in [("0.5", 0), ("1.5", 2), ("2.5", 2), ("7.6", 8), ("4", 4)] {
            assert_eq!(whole_seconds(time), Some(whole));
        }
        for time in ["-3.0", "1e300", "NaN", "", "odd"] {
            assert_eq!(whole_seconds(time), None);
        }
    }
}
