//! The daemon's inbound path without counters, rate limits and journal: through the real gate and guard into the
//! controller. It mirrors `src/daemon/inbound.rs`.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use f2bmqtt::config::{Signing, Topic};
use f2bmqtt::fleet::Controller;
use f2bmqtt::guard::gate::{Admitted, Gate, Source};
use f2bmqtt::guard::{Admission, Guard, RejectReason, is_bannable};
use f2bmqtt::model::{HostName, JailFilter};
use f2bmqtt::wire::signature::SigningKeys;
use f2bmqtt::wire::{ACK_REQUEST, PROBE_ACTION};

/// A topic outside the fleet's that a host subscribes to.
pub(crate) const OTHER: &str = "homeassistant/status";

/// The fleet topic of these tests.
pub(crate) fn topic() -> Topic {
    Topic::of_fleet("blacklist").unwrap()
}

/// The whole topic of one that is relative to one of the fleet's two branches.
pub(crate) fn whole(name: &str) -> String {
    let retained = ["host/", "state/"].iter().any(|branch| name.starts_with(branch));
    if retained { topic().retained(name) } else { topic().below(name) }
}

/// The inbound path of one host.
pub(crate) struct Inbound {
    me: HostName,
    pub(crate) gate: Gate,
    guard: Guard,
}

impl Inbound {
    pub(crate) fn new(me: &HostName, keys: Option<SigningKeys>, accept_unsigned: bool) -> Self {
        let signing = keys.map(|keys| Signing { keys, accept_unsigned });
        let guard = Guard::new(me.clone(), signing.is_some(), JailFilter::default());
        let gate = Gate::new(topic(), me.clone(), signing, vec![OTHER.to_owned()]);
        Self { me: me.clone(), gate, guard }
    }

    /// Takes a message on its whole topic. An error is the reason of a rejection. Even a rejected message may make the
    /// controller publish this host's own shard again.
    pub(crate) fn take(
        &self,
        fleet: &mut Controller,
        topic: &str,
        payload: &[u8],
        now: i64,
    ) -> Result<(), RejectReason> {
        let message = match self.gate.admit(topic, payload.to_vec()) {
            Ok(message) => message,
            Err(rejected) => {
                if let Some(index) = rejected.own_shard() {
                    fleet.apply_cleared(&self.me, index, now);
                }
                return Err(rejected.reason());
            }
        };
        match message.source() {
            Source::Event => self.event(fleet, &message, now),
            Source::Shard { host, index } => self.shard(fleet, &message, host, *index, now),
            Source::Presence { .. } if payload.is_empty() => Ok(()),
            Source::Presence { host } => {
                let presence = message.presence().map_err(|rejected| rejected.reason())?;
                fleet.apply_presence(host, presence.state, now);
                Ok(())
            }
            Source::Other(_) => Ok(()),
        }
    }

    /// Whether the gate and the parser let a message through to the controller.
    pub(crate) fn reaches_fleet(&self, topic: &str, payload: &[u8]) -> bool {
        let message = match self.gate.admit(topic, payload.to_vec()) {
            Ok(message) => message,
            Err(rejected) => return rejected.own_shard().is_some(),
        };
        match message.source() {
            Source::Event => message.event().is_ok(),
            Source::Shard { .. } => payload.is_empty() || message.shard(|_| false).is_ok(),
            Source::Presence { .. } => message.presence().is_ok(),
            Source::Other(_) => false,
        }
    }

    fn event(
        &self,
        fleet: &mut Controller,
        message: &Admitted,
        now: i64,
    ) -> Result<(), RejectReason> {
        let event = message.event().map_err(|rejected| rejected.reason())?;
        if event.action.as_str() == PROBE_ACTION {
            return Ok(());
        }
        if let Some(refusal) = self.guard.check_event_time(&event, now) {
            return Err(refusal);
        }
        if event.action.as_str() == ACK_REQUEST {
            if message.is_trusted() && event.host != self.me {
                fleet.request_ack(&event, self.guard.rejects_ban(&event), now);
            }
            return Ok(());
        }
        match self.guard.judge(&event, fleet.known_jails()) {
            Admission::Echo => fleet.apply_echo(&event, now),
            Admission::Ignore => {}
            Admission::Reject(RejectReason::UnknownJail) if !event.is_new() => {
                return Err(RejectReason::UnknownJail);
            }
            Admission::Reject(RejectReason::UnknownAction) => {
                return Err(RejectReason::UnknownAction);
            }
            // An unknown jail may start in a moment, so the controller keeps the claim.
            Admission::Accept | Admission::Reject(RejectReason::UnknownJail) => {
                if !fleet.apply_event(&event, now) {
                    return Err(RejectReason::TooMany);
                }
            }
            Admission::Reject(refusal) => return Err(refusal),
        }
        Ok(())
    }

    fn shard(
        &self,
        fleet: &mut Controller,
        message: &Admitted,
        host: &HostName,
        index: u32,
        now: i64,
    ) -> Result<(), RejectReason> {
        if message.payload().is_empty() {
            if *host == self.me || message.is_trusted() {
                fleet.apply_cleared(host, index, now);
            }
            return Ok(());
        }
        let mut part = message
            .shard(|unban| fleet.knows_fleet_unban(unban))
            .map_err(|rejected| rejected.reason())?;
        if let Some(refusal) = self.guard.check_shard_time(&part, now) {
            return Err(refusal);
        }
        part.bans.retain(|ban| is_bannable(ban.address.ip()));
        match fleet.apply_shard(&part, now) {
            Some(f2bmqtt::fleet::ShardError::OverCapacity) => Err(RejectReason::TooMany),
            Some(f2bmqtt::fleet::ShardError::StaleEcho) | None => Ok(()),
        }
    }
}
