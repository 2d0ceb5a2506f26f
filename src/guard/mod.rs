//! Decides which messages this host accepts (R1). Pure: an event is accepted, or rejected with a reason.
//! [`gate`] checks topic, size and signature first. [`RejectCounters`] counts rejections by reason, [`RateLimiter`]
//! counts the messages of each host, [`JailFilter`] has the shared jails, and `special` has the table of
//! special-purpose addresses.

pub mod gate;
pub mod ignorelist;
mod rate;
mod reject;
pub(crate) mod resolver;
mod special;

use std::collections::BTreeSet;

pub use rate::{MessageKind, RateLimiter};
pub use reject::{RejectCounters, RejectReason};
pub use resolver::{IgnoreListResolver, own_addresses};
#[cfg(test)]
pub(crate) use special::tests::forms;
pub use special::{embedded_ipv4, is_bannable, is_reportable};

use crate::model::{HostName, Jail, JailFilter, UnbanId};
use crate::wire::{Action, Event, Shard};

/// What to do with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Apply the event.
    Accept,
    /// The event is this host's own; the broker sent it back.
    Echo,
    /// The event has no effect: a restored ban, or this host's own event about a jail that is no longer shared.
    Ignore,
    /// Drop the event, and count the reason.
    Reject(RejectReason),
}

/// The greatest age of a signed message, in milliseconds. An old message sent again still has a valid signature. A
/// newer message of its host supersedes it, but a host that has just started may not have that one, and a broker can
/// withhold it. An event may wait in a queue for a day; fleet unbans are kept for 30 days (R17), and so are shards.
const MAX_EVENT_AGE_MS: i64 = 2 * 86_400_000;
const MAX_SHARD_AGE_MS: i64 = 30 * 86_400_000;

/// How far a stamp may be ahead of this host's clock, in milliseconds. The greatest stamp of a host counts, so one in
/// the far future would silence the host until then.
pub const HORIZON: i64 = 86_400_000;

/// The greatest difference between the clocks of honest hosts, in milliseconds. No host has accepted a stamp that is
/// further beyond the horizon; every host accepts one that is as far below it.
pub const HORIZON_MARGIN: i64 = 600_000;

/// Accepts or rejects the messages of the fleet.
#[derive(Clone, Debug)]
pub struct Guard {
    me: HostName,
    /// Whether the fleet signs its messages.
    pub signed: bool,
    /// The shared jails.
    pub sharing: JailFilter,
}

impl Guard {
    /// The guard of a host, in a fleet whose messages are signed or not.
    #[must_use]
    pub fn new(me: HostName, signed: bool, sharing: JailFilter) -> Self {
        Self { me, signed, sharing }
    }

    /// Why an event is too old or too far ahead, if so; `now` is in milliseconds. A script's event has no stamp.
    #[must_use]
    pub fn check_event_time(&self, event: &Event, now: i64) -> Option<RejectReason> {
        if event.host == self.me && event.id.is_none() {
            return None; // the controller checks its own stamps
        }
        check_event_stamp(event, self.signed, now)
    }

    /// The same for a shard.
    #[must_use]
    pub fn check_shard_time(&self, shard: &Shard, now: i64) -> Option<RejectReason> {
        if shard.host == self.me {
            return None;
        }
        check_shard_stamp(shard, self.signed, now)
    }

    /// Judges an event. `jails` are the jails of fail2ban; `None` if they are unknown, and then every jail passes.
    #[must_use]
    pub fn judge(&self, event: &Event, jails: Option<&BTreeSet<Jail>>) -> Admission {
        let shared = self.sharing.includes(&event.jail);
        // A fleet unban also applies to the host that sent it (R16).
        if event.host == self.me && event.id.is_none() {
            return if shared { Admission::Echo } else { Admission::Ignore };
        }
        // A fleet unban for all jails names some jail that this host may not have.
        if !shared && !event.all_jails {
            return Admission::Reject(RejectReason::NotShared);
        }
        if jails.is_some_and(|jails| !jails.contains(&event.jail)) && !event.all_jails {
            return Admission::Reject(RejectReason::UnknownJail);
        }
        match event.action {
            Action::Ban if event.restored != 0 => Admission::Ignore,
            Action::Other(_) if event.restored != 0 => Admission::Ignore,
            Action::Other(_) => Admission::Reject(RejectReason::UnknownAction),
            Action::Ban if !is_bannable(event.address.ip()) => {
                Admission::Reject(RejectReason::Unbannable)
            }
            Action::Ban | Action::Unban => Admission::Accept,
        }
    }

    /// Why this host would reject a ban like the one in an event, if so. The jails of fail2ban are not considered.
    #[must_use]
    pub fn rejects_ban(&self, event: &Event) -> Option<RejectReason> {
        let ban = Event { action: Action::Ban, restored: 0, ..event.clone() };
        match self.judge(&ban, None) {
            Admission::Reject(reason) => Some(reason),
            Admission::Accept | Admission::Echo | Admission::Ignore => None,
        }
    }
}

/// Why an event of another host is too old or too far ahead, if so. The guard and `f2bmqtt watch` use this check.
/// `signed`: the fleet signs messages; `now` is in milliseconds.
#[must_use]
pub fn check_event_stamp(event: &Event, signed: bool, now: i64) -> Option<RejectReason> {
    let made = event.id.as_ref().map_or(event.stamp, UnbanId::created_at);
    let old = signed && made > 0 && now.saturating_sub(made) > MAX_EVENT_AGE_MS;
    let ahead = is_ahead(event.stamp, now) || is_ahead(made, now);
    if ahead { Some(RejectReason::Ahead) } else { old.then_some(RejectReason::Old) }
}

/// The same for a shard of another host.
#[must_use]
pub fn check_shard_stamp(shard: &Shard, signed: bool, now: i64) -> Option<RejectReason> {
    let old = signed && now.saturating_sub(shard.stamp) > MAX_SHARD_AGE_MS;
    if is_ahead(shard.stamp, now) {
        Some(RejectReason::Ahead)
    } else {
        old.then_some(RejectReason::Old)
    }
}

/// Whether a stamp is beyond the horizon; both are in milliseconds since 1970.
#[must_use]
pub fn is_ahead(stamp: i64, now: i64) -> bool {
    stamp > now.saturating_add(HORIZON)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ShardId;

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
    fn each_event_has_its_admission() {
        use Admission::{Accept, Echo, Ignore, Reject};
        use RejectReason::{NotShared, Unbannable, UnknownAction, UnknownJail};
        let ip = "203.0.113.9";
        let table = [
            (event("ban", "sshd", ip, "web2", 0), Accept),
            (event("unban", "sshd", ip, "web2", 0), Accept),
            (event("unban", "sshd", ip, "web2", 1), Accept),
            (event("ban", "sshd", ip, "web2", 1), Ignore),
            (event("ban", "sshd", ip, "web1", 0), Echo),
            (event("unban", "ssh", ip, "web1", 0), Echo),
            (event("ban", "ssh", ip, "web2", 0), Reject(UnknownJail)),
            (event("ban", "sshd2", ip, "web2", 1), Reject(UnknownJail)),
            (event("reban", "sshd", ip, "web2", 0), Reject(UnknownAction)),
            (event("reban", "sshd", ip, "web2", 1), Ignore),
            (event("reban", "ssh", ip, "web2", 0), Reject(UnknownJail)),
            (event("unban", "sshd", "127.0.0.1", "web2", 0), Accept),
            (event("ban", "sshd", "2001:db8::1", "web2", 0), Accept),
            (event("ban", "sshd", "192.168.1.5", "web2", 0), Accept),
            (event("ban", "mail", ip, "web2", 0), Reject(NotShared)),
            (event("unban", "mail", ip, "web2", 0), Reject(NotShared)),
            (event("ban", "mail", ip, "web1", 0), Ignore),
            (fleet_unban("sshd", ""), Accept),
            (fleet_unban("mail", ""), Reject(NotShared)),
            (fleet_unban("mail", r#","jails":"*""#), Accept),
            (fleet_unban("ssh", r#","jails":"*""#), Accept),
        ];
        let not = BTreeSet::from([Jail::new("mail").unwrap()]);
        let guard = Guard::new(HostName::new("web1").unwrap(), false, JailFilter::new(None, not));
        let jails = ["sshd", "mail"].map(|jail| Jail::new(jail).unwrap()).into();
        for (event, admission) in table {
            assert_eq!(guard.judge(&event, Some(&jails)), admission, "{event:?}");
        }
        let unbannable = [
            "127.0.0.1",
            "::ffff:127.0.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "169.254.1.1",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "::127.0.0.1",
            "2002:7f00:1::1",
            "240.0.0.1",
        ];
        for ip in unbannable {
            let event = event("ban", "sshd", ip, "web2", 0);
            assert_eq!(guard.judge(&event, Some(&jails)), Reject(Unbannable), "{event:?}");
        }
        let other = event("ban", "ssh", ip, "web2", 0);
        assert_eq!(guard.judge(&other, None), Accept, "the jails of fail2ban are unknown");
    }

    #[test]
    fn messages_of_another_time_are_rejected() {
        const DAY: i64 = 86_400_000;
        let now = 1_795_342_588_123;
        let [signing, open] = [true, false].map(|signed| {
            Guard::new(HostName::new("web1").unwrap(), signed, JailFilter::default())
        });
        let old = Some(RejectReason::Old);
        let ahead = Some(RejectReason::Ahead);
        // The host and stamp of a ban, and why it is rejected in a fleet that signs, and in one that does not.
        let bans = [
            ("web2", now - DAY, None, None),
            ("web2", now + DAY, None, None),
            ("web2", now + DAY + 1, ahead, ahead),
            ("web2", i64::MAX, ahead, ahead),
            ("web2", now - 2 * DAY - 1, old, None),
            ("web2", 0, None, None),
            ("web1", 1, None, None),
            ("web1", now + 2 * DAY, None, None),
        ];
        for (host, stamp, signed, unsigned) in bans {
            let event = Event { stamp, ..event("ban", "sshd", "192.0.2.1", host, 0) };
            assert_eq!(signing.check_event_time(&event, now), signed, "{event:?}");
            assert_eq!(open.check_event_time(&event, now), unsigned, "{event:?}");
        }
        // The time at which a fleet unban was created counts, not that of its latest publication.
        let fleet_unbans = [
            (5, old, None),
            (now, None, None),
            (now - 2 * DAY - 1, old, None),
            (now + DAY + 1, ahead, ahead),
        ];
        let web2 = HostName::new("web2").unwrap();
        for (created_at, signed, unsigned) in fleet_unbans {
            let id = Some(UnbanId::made_by(&web2, created_at));
            let event = Event { id, stamp: now, host: web2.clone(), ..fleet_unban("sshd", "") };
            assert_eq!(signing.check_event_time(&event, now), signed, "{event:?}");
            assert_eq!(open.check_event_time(&event, now), unsigned, "{event:?}");
        }
        let own = Event { stamp: now, ..fleet_unban("sshd", "") };
        assert_eq!(signing.check_event_time(&own, now), old, "an own fleet unban is checked, too");
        let table = [
            (now - 29 * DAY, None, None),
            (now - 31 * DAY, old, None),
            (now + DAY, None, None),
            (now + DAY + 1, ahead, ahead),
        ];
        for (stamp, signed, unsigned) in table {
            let (id, host) = (ShardId::new(0, 1).unwrap(), web2.clone());
            let shard = Shard { host, stamp, time: 0, id, bans: Vec::new(), unbans: Vec::new() };
            assert_eq!(signing.check_shard_time(&shard, now), signed, "{stamp}");
            assert_eq!(open.check_shard_time(&shard, now), unsigned, "{stamp}");
        }
    }
}
