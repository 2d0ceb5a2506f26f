//! Which of the fleet's events this host obeys. Pure: accept, or refuse and say why. [`Refusals`] counts
//! what was refused.

mod refused;

use std::collections::BTreeSet;
use std::net::IpAddr;

pub use refused::{Refusal, Refusals};

use crate::wire::{Action, Event, Host, Jail};

/// What is to be done with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is a word that counts.
    Accept,
    /// It is this host's own word, come back.
    Own,
    /// It tells that a ban was restored after a start: nothing new.
    Restored,
    /// This host has no such jail.
    UnknownJail,
    /// It is neither a ban nor an unban.
    UnknownAction,
    /// No host may ban such an address elsewhere.
    Unbannable,
}

/// Judges an event. `jails` are those that fail2ban has; `None` while that is not known, when
/// every jail is given the benefit of the doubt.
#[must_use]
pub fn judge(event: &Event, me: &Host, jails: Option<&BTreeSet<Jail>>) -> Verdict {
    // What is meant for the whole fleet this host obeys, too, whoever sent it.
    if event.host == *me && event.id.is_none() {
        return Verdict::Own;
    }
    if jails.is_some_and(|jails| !jails.contains(&event.jail)) {
        return Verdict::UnknownJail;
    }
    match event.action {
        Action::Ban if event.restored != 0 => Verdict::Restored,
        Action::Other(_) if event.restored != 0 => Verdict::Restored,
        Action::Other(_) => Verdict::UnknownAction,
        Action::Ban if !is_bannable(event.address.ip()) => Verdict::Unbannable,
        Action::Ban | Action::Unban => Verdict::Accept,
    }
}

/// Whether an address can be another machine's at all.
#[must_use]
pub fn is_bannable(ip: IpAddr) -> bool {
    let local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast() || ip.octets()[0] == 0,
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(action: &str, jail: &str, ip: &str, host: &str, restored: i64) -> Event {
        let json = format!(
            r#"{{"action":"{action}","ipmset":"{jail}","ip":"{ip}","host":"{host}","restored":{restored}}}"#
        );
        Event::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn each_event_has_its_verdict() {
        use Verdict::{Accept, Own, Restored, Unbannable, UnknownAction, UnknownJail};
        let ip = "203.0.113.9";
        let table = [
            (event("ban", "sshd", ip, "web2", 0), Accept),
            (event("unban", "sshd", ip, "web2", 0), Accept),
            (event("unban", "sshd", ip, "web2", 1), Accept),
            (event("ban", "sshd", ip, "web2", 1), Restored),
            (event("ban", "sshd", ip, "web1", 0), Own),
            (event("unban", "ssh", ip, "web1", 0), Own),
            (event("ban", "ssh", ip, "web2", 0), UnknownJail),
            (event("ban", "sshd2", ip, "web2", 1), UnknownJail),
            (event("reban", "sshd", ip, "web2", 0), UnknownAction),
            (event("reban", "sshd", ip, "web2", 1), Restored),
            (event("reban", "ssh", ip, "web2", 0), UnknownJail),
            (event("unban", "sshd", "127.0.0.1", "web2", 0), Accept),
            (event("ban", "sshd", "2001:db8::1", "web2", 0), Accept),
            (event("ban", "sshd", "192.168.1.5", "web2", 0), Accept),
            (event("ban", "sshd", "127.0.0.1", "web2", 0), Unbannable),
            (event("ban", "sshd", "::ffff:127.0.0.1", "web2", 0), Unbannable),
            (event("ban", "sshd", "0.0.0.0", "web2", 0), Unbannable),
            (event("ban", "sshd", "255.255.255.255", "web2", 0), Unbannable),
            (event("ban", "sshd", "224.0.0.1", "web2", 0), Unbannable),
            (event("ban", "sshd", "169.254.1.1", "web2", 0), Unbannable),
            (event("ban", "sshd", "::", "web2", 0), Unbannable),
            (event("ban", "sshd", "::1", "web2", 0), Unbannable),
            (event("ban", "sshd", "fe80::1", "web2", 0), Unbannable),
            (event("ban", "sshd", "ff02::1", "web2", 0), Unbannable),
        ];
        let me = Host::new("web1").unwrap();
        let jails = BTreeSet::from([Jail::new("sshd").unwrap()]);
        for (event, verdict) in table {
            assert_eq!(judge(&event, &me, Some(&jails)), verdict, "{event:?}");
        }
        let other = event("ban", "ssh", ip, "web2", 0);
        assert_eq!(judge(&other, &me, None), Accept, "fail2ban is away: it will be asked later");
    }
}
