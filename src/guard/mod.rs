//! Which of the fleet's words this host obeys. Pure: accept, or refuse and say why. [`Refusals`] counts what
//! was refused, [`Limits`] counts what each host says, [`Sharing`] says which jails take part, and [`gate`]
//! decides before all of them which messages are the fleet's. `special` has the table of special-purpose
//! addresses.

pub mod gate;
mod limits;
mod refused;
mod sharing;
mod special;

use std::collections::BTreeSet;

pub use limits::{Kind, Limits};
pub use refused::{Refusal, Refusals};
pub use sharing::Sharing;
#[cfg(test)]
pub(crate) use special::tests::forms;
pub use special::{embedded_ipv4, is_bannable, is_reportable};

use crate::wire::{Action, Event, Host, Jail, Part, UnbanId};

/// What is to be done with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is a word that counts.
    Accept,
    /// It is this host's own word, come back.
    Own,
    /// It tells nothing new: that a ban was restored after a start, or what this host itself once said of
    /// a jail that does not take part any more.
    Nothing,
    /// It is not obeyed.
    Refuse(Refusal),
}

/// **What is old.** Where messages are signed, an old one sent again is signed well. A newer word of its host
/// makes it count for nothing; but a host that has just started has not heard that yet, or a broker keeps it
/// back. So an event is refused after two days (one may wait in a queue for one), a part of a snapshot after
/// thirty: fleet unbans are not remembered for longer. In milliseconds.
const OLD_EVENT: i64 = 2 * 86_400_000;
const OLD_PART: i64 = 30 * 86_400_000;

/// **The horizon of stamps.** A message whose stamp is further ahead of this host's clock is rejected: the
/// greatest stamp counts, and one of the far future would keep its host mute until then. In milliseconds.
pub const HORIZON: i64 = 86_400_000;

/// The clocks of honest hosts differ by no more than this, in milliseconds: a stamp that is further beyond the
/// horizon no other host has accepted, and one that is as far below it all accept.
pub const HORIZON_MARGIN: i64 = 600_000;

/// Judges what comes from the fleet.
#[derive(Clone, Debug)]
pub struct Guard {
    me: Host,
    /// Messages are signed.
    pub signed: bool,
    /// Which jails take part.
    pub sharing: Sharing,
}

impl Guard {
    /// The guard of a host, in a fleet whose messages are signed or not.
    #[must_use]
    pub fn new(me: Host, signed: bool, sharing: Sharing) -> Self {
        Self { me, signed, sharing }
    }

    /// Why an event is of another time, if it is; `now` is in milliseconds. A script's has no time.
    #[must_use]
    pub fn check_event_time(&self, event: &Event, now: i64) -> Option<Refusal> {
        if event.host == self.me && event.id.is_none() {
            return None; // the controller decides what it makes of its own stamps
        }
        check_event_stamp(event, self.signed, now)
    }

    /// The same of a part of a snapshot.
    #[must_use]
    pub fn check_part_time(&self, part: &Part, now: i64) -> Option<Refusal> {
        if part.host == self.me {
            return None;
        }
        check_part_stamp(part, self.signed, now)
    }

    /// Judges an event. `jails` are those that fail2ban has; `None` while that is not known, when every
    /// jail is given the benefit of the doubt.
    #[must_use]
    pub fn judge(&self, event: &Event, jails: Option<&BTreeSet<Jail>>) -> Verdict {
        let shared = self.sharing.has(&event.jail);
        // What is meant for the whole fleet this host obeys, too, whoever sent it.
        if event.host == self.me && event.id.is_none() {
            return if shared { Verdict::Own } else { Verdict::Nothing };
        }
        // A fleet unban of every jail names one that need not be here.
        if !shared && !event.every_jail {
            return Verdict::Refuse(Refusal::NotShared);
        }
        if jails.is_some_and(|jails| !jails.contains(&event.jail)) && !event.every_jail {
            return Verdict::Refuse(Refusal::UnknownJail);
        }
        match event.action {
            Action::Ban if event.restored != 0 => Verdict::Nothing,
            Action::Other(_) if event.restored != 0 => Verdict::Nothing,
            Action::Other(_) => Verdict::Refuse(Refusal::UnknownAction),
            Action::Ban if !is_bannable(event.address.ip()) => Verdict::Refuse(Refusal::Unbannable),
            Action::Ban | Action::Unban => Verdict::Accept,
        }
    }

    /// Why no ban of another host passes that is like the one in an event, if none does: the jails of fail2ban
    /// aside.
    #[must_use]
    pub fn rejects_ban(&self, event: &Event) -> Option<Refusal> {
        let ban = Event { action: Action::Ban, restored: 0, ..event.clone() };
        match self.judge(&ban, None) {
            Verdict::Refuse(reason) => Some(reason),
            Verdict::Accept | Verdict::Own | Verdict::Nothing => None,
        }
    }
}

/// Why an event of another host is of another time, if it is: `signed` says that the fleet has a key, `now` is in
/// milliseconds.
#[must_use]
pub fn check_event_stamp(event: &Event, signed: bool, now: i64) -> Option<Refusal> {
    let made = event.id.as_ref().map_or(event.stamp, UnbanId::made);
    let old = signed && made > 0 && now.saturating_sub(made) > OLD_EVENT;
    let ahead = is_ahead(event.stamp, now) || is_ahead(made, now);
    if ahead { Some(Refusal::Ahead) } else { old.then_some(Refusal::Old) }
}

/// The same of a part of another host's snapshot.
#[must_use]
pub fn check_part_stamp(part: &Part, signed: bool, now: i64) -> Option<Refusal> {
    let old = signed && now.saturating_sub(part.stamp) > OLD_PART;
    if is_ahead(part.stamp, now) { Some(Refusal::Ahead) } else { old.then_some(Refusal::Old) }
}

/// Whether a stamp is beyond the horizon; both are in milliseconds since 1970.
#[must_use]
pub fn is_ahead(stamp: i64, now: i64) -> bool {
    stamp > now.saturating_add(HORIZON)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Slice;

    fn event(action: &str, jail: &str, ip: &str, host: &str, restored: i64) -> Event {
        let json = format!(
            r#"{{"action":"{action}","ipmset":"{jail}","ip":"{ip}","host":"{host}","restored":{restored}}}"#
        );
        Event::parse(json.as_bytes()).unwrap()
    }

    fn fleet_unban(jail: &str, more: &str) -> Event {
        let json = format!(
            r#"{{"action":"unban","ipmset":"{jail}","ip":"203.0.113.9","host":"web1","reason":"fleet","id":"web1-5"{more}}}"#
        );
        Event::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn each_event_has_its_verdict() {
        use Refusal::{NotShared, Unbannable, UnknownAction, UnknownJail};
        use Verdict::{Accept, Nothing, Own, Refuse};
        let ip = "203.0.113.9";
        let table = [
            (event("ban", "sshd", ip, "web2", 0), Accept),
            (event("unban", "sshd", ip, "web2", 0), Accept),
            (event("unban", "sshd", ip, "web2", 1), Accept),
            (event("ban", "sshd", ip, "web2", 1), Nothing),
            (event("ban", "sshd", ip, "web1", 0), Own),
            (event("unban", "ssh", ip, "web1", 0), Own),
            (event("ban", "ssh", ip, "web2", 0), Refuse(UnknownJail)),
            (event("ban", "sshd2", ip, "web2", 1), Refuse(UnknownJail)),
            (event("reban", "sshd", ip, "web2", 0), Refuse(UnknownAction)),
            (event("reban", "sshd", ip, "web2", 1), Nothing),
            (event("reban", "ssh", ip, "web2", 0), Refuse(UnknownJail)),
            (event("unban", "sshd", "127.0.0.1", "web2", 0), Accept),
            (event("ban", "sshd", "2001:db8::1", "web2", 0), Accept),
            (event("ban", "sshd", "192.168.1.5", "web2", 0), Accept),
            (event("ban", "mail", ip, "web2", 0), Refuse(NotShared)),
            (event("unban", "mail", ip, "web2", 0), Refuse(NotShared)),
            (event("ban", "mail", ip, "web1", 0), Nothing),
            (fleet_unban("sshd", ""), Accept),
            (fleet_unban("mail", ""), Refuse(NotShared)),
            (fleet_unban("mail", r#","jails":"*""#), Accept),
            (fleet_unban("ssh", r#","jails":"*""#), Accept),
            (event("ban", "sshd", "127.0.0.1", "web2", 0), Refuse(Unbannable)),
            (event("ban", "sshd", "::ffff:127.0.0.1", "web2", 0), Refuse(Unbannable)),
            (event("ban", "sshd", "0.0.0.0", "web2", 0), Refuse(Unbannable)),
            (event("ban", "sshd", "255.255.255.255", "web2", 0), Refuse(Unbannable)),
            (event("ban", "sshd", "224.0.0.1", "web2", 0), Refuse(Unbannable)),
            (event("ban", "sshd", "169.254.1.1", "web2", 0), Refuse(Unbannable)),
            (event("ban", "sshd", "::", "web2", 0), Refuse(Unbannable)),
            (event("ban", "sshd", "::1", "web2", 0), Refuse(Unbannable)),
            (event("ban", "sshd", "fe80::1", "web2", 0), Refuse(Unbannable)),
            (event("ban", "sshd", "ff02::1", "web2", 0), Refuse(Unbannable)),
            (event("ban", "sshd", "::127.0.0.1", "web2", 0), Refuse(Unbannable)),
            (event("ban", "sshd", "2002:7f00:1::1", "web2", 0), Refuse(Unbannable)),
            (event("ban", "sshd", "240.0.0.1", "web2", 0), Refuse(Unbannable)),
        ];
        let not = BTreeSet::from([Jail::new("mail").unwrap()]);
        let guard = Guard::new(Host::new("web1").unwrap(), false, Sharing::new(None, not));
        let jails = ["sshd", "mail"].map(|jail| Jail::new(jail).unwrap()).into();
        for (event, verdict) in table {
            assert_eq!(guard.judge(&event, Some(&jails)), verdict, "{event:?}");
        }
        let other = event("ban", "ssh", ip, "web2", 0);
        assert_eq!(guard.judge(&other, None), Accept, "fail2ban is away: it will be asked later");
    }

    #[test]
    fn messages_of_another_time_are_rejected() {
        const DAY: i64 = 86_400_000;
        let now = 1_795_342_588_123;
        let guard = |signed| Guard::new(Host::new("web1").unwrap(), signed, Sharing::default());
        let event =
            |host: &str, stamp| Event { stamp, ..event("ban", "sshd", "192.0.2.1", host, 0) };
        let part = |stamp| {
            let (slice, host) = (Slice::new(0, 1).unwrap(), Host::new("web2").unwrap());
            Part { host, stamp, time: 0, slice, bans: Vec::new(), unbans: Vec::new() }
        };
        let old = Some(Refusal::Old);
        let ahead = Some(Refusal::Ahead);
        let from_web2 = |made: i64| {
            let id = UnbanId::made_by(&Host::new("web2").unwrap(), made);
            let host = Host::new("web2").unwrap();
            Event { id: Some(id), stamp: now, host, ..fleet_unban("sshd", "") }
        };
        // The event, what is said of it where messages are signed, and where they are not.
        let table = [
            (event("web2", now - DAY), None, None),
            (event("web2", now + DAY), None, None),
            (event("web2", now + DAY + 1), ahead, ahead),
            (event("web2", i64::MAX), ahead, ahead),
            (event("web2", now - 2 * DAY - 1), old, None),
            (event("web2", 0), None, None),
            (event("web1", 1), None, None),
            (event("web1", now + 2 * DAY), None, None),
            (Event { stamp: now, ..fleet_unban("sshd", "") }, old, None),
            (from_web2(now), None, None),
            (from_web2(now - 2 * DAY - 1), old, None),
            (from_web2(now + DAY + 1), ahead, ahead),
        ];
        for (event, signed, unsigned) in table {
            assert_eq!(guard(true).check_event_time(&event, now), signed, "{event:?}");
            assert_eq!(guard(false).check_event_time(&event, now), unsigned, "{event:?}");
        }
        let table = [
            (now - 29 * DAY, None, None),
            (now - 31 * DAY, old, None),
            (now + DAY, None, None),
            (now + DAY + 1, ahead, ahead),
        ];
        for (stamp, signed, unsigned) in table {
            assert_eq!(guard(true).check_part_time(&part(stamp), now), signed);
            assert_eq!(guard(false).check_part_time(&part(stamp), now), unsigned);
        }
    }
}
