//! Acknowledgements: what this host did with the bans that `f2bmqtt ban` on another host asks about.
//!
//! A request names an address in a jail. The table keeps the last [`MAX_ACKS`] requests in memory; a new one replaces
//! the oldest (R21). Presence lists an outcome once it is known, and announces it at most every `Timing::ack_interval`.

use std::collections::VecDeque;

use super::{BanKey, Controller, to_secs};
use crate::guard::RejectReason;
use crate::model::HostName;
use crate::wire::{Ack, Event, MAX_ACKS};

/// How long presence lists an outcome, in milliseconds.
const ACK_TTL: i64 = 600_000;

/// A ban that fail2ban has not decided on by then is acknowledged as pending; in milliseconds.
const ACK_DEADLINE: i64 = 10_000;

/// A fail2ban that starts adds its jails one by one, the next within this time; in milliseconds.
const JAIL_START_GRACE: i64 = 5_000;

const BANNED: &str = "banned";
const PENDING: &str = "pending";

pub(super) type AckTable = VecDeque<PendingAck>;

/// One request. An outcome other than pending is final.
#[derive(Debug)]
pub(super) struct PendingAck {
    key: BanKey,
    origin: HostName,
    stamp: i64,
    /// In milliseconds since 1970, by this host's clock.
    requested_at: i64,
    outcome: Option<&'static str>,
}

impl PendingAck {
    fn to_ack(&self) -> Option<Ack> {
        let ((jail, address), origin) = (self.key.clone(), self.origin.clone());
        let outcome = self.outcome?.to_owned();
        Some(Ack { jail, address, origin, stamp: self.stamp, outcome })
    }
}

impl Controller {
    /// Takes a request. `rejected` is why the guard lets no such ban pass, if it does not.
    pub fn request_ack(&mut self, event: &Event, rejected: Option<RejectReason>, now: i64) {
        if event.stamp < 1 {
            return;
        }
        let (key, origin) = ((event.jail.clone(), event.address), event.host.clone());
        self.acks.retain(|one| one.key != key || one.origin != origin);
        if self.acks.len() >= MAX_ACKS {
            self.acks.pop_front();
        }
        let (stamp, outcome) = (event.stamp, rejected.map(RejectReason::name));
        self.acks.push_back(PendingAck { key, origin, stamp, requested_at: now, outcome });
    }

    /// The outcomes that are known now.
    pub(super) fn update_acks(&mut self, now: i64) -> Vec<Ack> {
        let mut requests = std::mem::take(&mut self.acks);
        requests.retain(|one| (0..ACK_TTL).contains(&(now - one.requested_at)));
        for one in &mut requests {
            if one.outcome.is_none_or(|outcome| outcome == PENDING) {
                let is_late = now - one.requested_at >= ACK_DEADLINE;
                one.outcome = self.outcome(&one.key, now).or(is_late.then_some(PENDING));
            }
        }
        self.acks = requests;
        self.acks.iter().filter_map(PendingAck::to_ack).collect()
    }

    /// What became of a ban here; `None` until fail2ban has it, or this host has decided against it.
    fn outcome(&self, key: &BanKey, now: i64) -> Option<&'static str> {
        self.heartbeat?;
        if !self.known_jails.as_ref()?.contains(&key.0) {
            let may_start = (0..JAIL_START_GRACE).contains(&(now - self.jails_changed_at));
            return (!may_start).then_some(RejectReason::UnknownJail.name());
        }
        let jail_state = self.jails.get(&key.0)?;
        let entry = jail_state.entries.get(&key.1)?;
        // What is queued has changed since the last observation.
        if entry.queued.is_some() || entry.may_be_restored {
            return None;
        }
        if entry.held_until.is_some() {
            return entry
                .import
                .as_ref()
                .is_none_or(|import| import.is_applied())
                .then_some(BANNED);
        }
        // The request may arrive before the ban: it counts from the claim on.
        self.active_claims(key, jail_state, entry, to_secs(now)).next()?;
        self.ignored(key).map(|reason| reason.reject_reason().name())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::fleet::jails::{Heartbeat, ServerInstance};
    use crate::fleet::{PersistedState, Timing};
    use crate::model::Jail;

    const NOW: i64 = 1_795_342_588_000;

    fn fleet() -> Controller {
        Controller::new(HostName::new("me").unwrap(), Timing::default(), PersistedState::default())
    }

    fn request(n: usize, origin: &str, stamp: i64) -> Event {
        let json = format!(
            r#"{{"action":"ack_request","ipmset":"web","ip":"203.0.113.{n}","host":"{origin}","stamp":{stamp}}}"#
        );
        Event::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn unknown_jail_is_acknowledged_once_fail2ban_adds_no_more_jails() {
        // Milliseconds since the list of jails changed, whether fail2ban answers, and the outcome.
        let table = [
            (0, true, None),
            (4_999, true, None),
            (5_000, true, Some("unknown_jail")),
            (5_000, false, None),
            (10_000, false, Some("pending")),
        ];
        for (since, answers, expected) in table {
            let mut fleet = fleet();
            let server = ServerInstance { pid: 1, started: 5 };
            let jails = BTreeSet::from([Jail::new("sshd").unwrap()]);
            fleet.start_cycle(NOW);
            fleet.on_heartbeat(Heartbeat { server, data_version: Some(1) }, jails, NOW);
            fleet.heartbeat = fleet.heartbeat.filter(|_| answers);
            fleet.request_ack(&request(9, "web1", 5), None, NOW);
            let acks = fleet.update_acks(NOW + since);
            assert_eq!(acks.first().map(|ack| ack.outcome.as_str()), expected, "{since} {answers}");
        }
    }

    #[test]
    fn table_keeps_the_last_requests_for_a_while_and_one_per_ban_and_origin() {
        let mut fleet = fleet();
        let rejected = Some(RejectReason::NotShared);
        (0..40).for_each(|n| fleet.request_ack(&request(n, "web1", 5), rejected, NOW));
        fleet.request_ack(&request(30, "web1", 6), rejected, NOW + 1);
        fleet.request_ack(&request(30, "web2", 5), rejected, NOW + 1);
        let acks = fleet.update_acks(NOW + ACK_TTL - 1);
        assert_eq!((acks.len(), acks[0].address), (MAX_ACKS, request(25, "web1", 5).address));
        let of_30 = acks.iter().filter(|ack| ack.address == request(30, "a", 1).address);
        assert_eq!(of_30.map(|ack| ack.stamp).collect::<Vec<_>>(), [6, 5]);
        assert_eq!(fleet.update_acks(NOW + ACK_TTL).len(), 2);
        assert_eq!(fleet.update_acks(NOW).len(), 0, "the clock was set back");
    }
}
