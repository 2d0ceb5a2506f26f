//! Inbound messages: parsed, and applied or rejected.

use super::Daemon;
use super::instances::Sighting;
use crate::fleet::ShardError;
use crate::fleet::limits::{BoundedTable, Limit, ReachedLimits};
use crate::guard::gate::{Admitted, Rejected, Source};
use crate::guard::{Admission, MessageKind, RejectReason};
use crate::model::HostName;
use crate::sys::clock::now_millis as now;
use crate::sys::log;
use crate::wire::{ACK_REQUEST, Action, Event, HostState, PROBE_ACTION};

/// Why a message is rejected because of its stamp.
const TOO_OLD: &str = "the message is too old: a replay, or the sender's clock is days behind";
const TOO_NEW: &str = "the stamp is more than a day ahead of this host's clock; correct the clock that is \
                       wrong (timedatectl)";

/// The text for a reason of [`Guard::check_event_time`](crate::guard::Guard::check_event_time) or of the same check of
/// shards. Every reason but `ahead` has the text of `old`.
fn stamp_fault(reason: RejectReason) -> &'static str {
    if reason == RejectReason::Ahead { TOO_NEW } else { TOO_OLD }
}

/// Why a ban is ignored: the limit that was reached last.
fn describe_limit(limits: &ReachedLimits, now: i64) -> String {
    let limits = limits.shown(now).filter(|limit| limit.table != BoundedTable::Messages);
    let last = limits.max_by_key(|limit| limit.at);
    let limit = last.map_or_else(|| "a limit".to_owned(), Limit::describe);
    format!("{limit} reached; existing bans are kept")
}

/// The warning about an outdated shard of this host.
const STALE_ECHO_WARNING: &str = "received an outdated shard of this host; publishing all shards again; if this repeats, \
                                  another host has this host's name: set MQTT_NODE on one of them";

/// The warning about two machines with one name.
fn duplicate_warning(host: &HostName) -> String {
    format!(
        "two machines have the name {host} and overwrite each other's snapshot; on one of them set \
         MQTT_NODE in /etc/fail2ban/mqtt.env, then run: systemctl restart f2bmqttsub"
    )
}

/// Why messages of a host that sends too many are rejected.
fn too_fast(kind: MessageKind, host: &HostName) -> String {
    let max = kind.per_minute();
    format!(
        "limit of {max} messages per minute from {host} reached; the next snapshot of {host} corrects this"
    )
}

fn describe_event(event: &Event) -> String {
    let Event { action, address, jail, host, .. } = event;
    format!("{action} of {address} in {jail} from {host}")
}

impl Daemon {
    pub(super) fn on_message(&mut self, message: &Admitted) {
        if self.exporters.on_message(message) {
            return;
        }
        let result = match message.source() {
            Source::Event => self.on_event(message),
            Source::Shard { host, index } => self.on_shard(message, host, *index),
            Source::Presence { host } => self.on_presence(message, host),
            Source::Other(_) => Ok(()),
        };
        if let Err(rejected) = result {
            self.record_rejection(&rejected);
            self.on_unverified_own_shard(&rejected);
        }
    }

    /// A rejected message in this host's own branch replaced a retained shard or the presence: publish that again.
    pub(super) fn on_unverified_own_shard(&self, rejected: &Rejected) {
        if rejected.host() == Some(&self.host) && rejected.shard().is_none() {
            self.memory.lock().fleet.apply_own_presence(None);
        }
        if let Some(index) = rejected.own_shard() {
            self.memory.lock().fleet.apply_cleared(&self.host, index, now());
        }
    }

    pub(super) fn record_rejection(&self, rejected: &Rejected) {
        self.memory.lock().record_rejection(rejected.reason(), &rejected.to_string());
    }

    fn on_event(&mut self, message: &Admitted) -> Result<(), Rejected> {
        let event = message.event()?;
        // `f2bmqtt check` tests with this event whether the broker delivers events.
        if event.action.as_str() == PROBE_ACTION {
            return Ok(());
        }
        self.exporters.traffic.events += 1;
        let kind = if event.id.is_some() { MessageKind::FleetUnban } else { MessageKind::Event };
        if self.is_too_fast(&event.host, kind) {
            return Err(message.reject(
                RejectReason::TooFast,
                "event",
                too_fast(kind, &event.host),
            ));
        }
        if event.action.as_str() == ACK_REQUEST {
            return self.request_ack(&event, message);
        }
        self.memory.lock().inbound.info(event.host.as_str(), || {
            let Event { action, address, jail, host, restored, failures, .. } = &event;
            format!(
                "Inbound: {action} {address} - ipset {jail} from {host} (Rest:={restored}, Fails:={failures})"
            )
        });
        self.apply_event(&event, message.is_trusted());
        Ok(())
    }

    /// Handles a request for an acknowledgement. Acknowledgements are part of a signed message, so an untrusted request
    /// is ignored.
    fn request_ack(&self, event: &Event, message: &Admitted) -> Result<(), Rejected> {
        let mut state = self.memory.lock();
        if let Some(reason) = state.guard.check_event_time(event, now()) {
            return Err(message.reject(
                reason,
                "acknowledgement request",
                stamp_fault(reason).to_owned(),
            ));
        }
        if message.is_trusted() && event.host != self.host {
            let rejected = state.guard.rejects_ban(event);
            state.fleet.request_ack(event, rejected, now());
        }
        Ok(())
    }

    /// Whether a host exceeds its rate limit (R21). Each peer has its own count, so messages under other names cannot
    /// use up the limit of a peer.
    fn is_too_fast(&mut self, host: &HostName, kind: MessageKind) -> bool {
        let mut state = self.memory.lock();
        let is_peer = state.fleet.is_peer(host);
        let is_too_fast = self.limits.exceeds_limit(host, is_peer, kind, now());
        if is_too_fast {
            state.fleet.limits_mut().reached(
                BoundedTable::Messages,
                kind.per_minute(),
                Some(host.as_str()),
                now(),
            );
        }
        is_too_fast
    }

    /// Accepts or rejects an event, and passes an accepted one to the controller.
    fn apply_event(&mut self, event: &Event, is_trusted: bool) {
        let mut state = self.memory.lock();
        let host = event.host.as_str();
        if let Some(reason) = state.guard.check_event_time(event, now()) {
            let text = format!("rejected {}: {}", describe_event(event), stamp_fault(reason));
            state.record_rejection_of(host, reason, &text);
            if reason == RejectReason::Ahead && is_trusted {
                self.ahead_hosts.record(&event.host, now()).iter().for_each(log::warn);
            }
            return;
        }
        let admission = state.guard.judge(event, state.fleet.known_jails());
        let is_unknown_jail =
            state.fleet.known_jails().is_some_and(|jails| !jails.contains(&event.jail));
        // A ban of another host waits for an observation of fail2ban, which may have a new jail.
        let is_pending = event.action == Action::Ban && admission != Admission::Echo;
        if is_unknown_jail && event.restored == 0 && !event.all_jails && !is_pending {
            state
                .inbound
                .info(host, || log::no_such_jail(&event.jail, event.address, host, event.restored));
        }
        match admission {
            Admission::Echo => state.fleet.apply_echo(event, now()),
            Admission::Ignore => {}
            Admission::Reject(RejectReason::UnknownJail) if !event.is_new() => {
                state.rejections.count(RejectReason::UnknownJail);
            }
            // fail2ban may get the jail later, so the controller keeps the claim.
            Admission::Accept | Admission::Reject(RejectReason::UnknownJail) => {
                if state.fleet.is_unban_of_another_s_ban(event) {
                    state
                        .inbound
                        .info(host, || log::ignored_unban(&event.jail, event.address, host));
                }
                if !state.fleet.apply_event(event, now()) {
                    let limit = describe_limit(state.fleet.limits(), now());
                    let text = format!("ignored {}: {limit}", describe_event(event));
                    state.record_rejection_of(host, RejectReason::TooMany, &text);
                }
            }
            Admission::Reject(RejectReason::UnknownAction) => {
                state.rejections.count(RejectReason::UnknownAction);
                state.inbound.info(host, || format!("Unrecognised action {}", event.action));
            }
            Admission::Reject(reason) => {
                let cause = match reason {
                    RejectReason::NotShared => "the jail is not shared on this host",
                    _ => {
                        "no other machine can have this address (for example, a loopback or multicast address)"
                    }
                };
                let text = format!("rejected {}: {cause}", describe_event(event));
                state.record_rejection_of(host, reason, &text);
            }
        }
    }

    /// A shard of a snapshot. An empty message clears the shard.
    fn on_shard(
        &mut self,
        message: &Admitted,
        host: &HostName,
        index: u32,
    ) -> Result<(), Rejected> {
        const WHAT: &str = "shard";
        if message.payload().is_empty() {
            let mut state = self.memory.lock();
            // An empty payload cannot be signed. In a signing fleet, `forget` publishes a signed shard without bans.
            if *host == self.host || message.is_trusted() {
                state.fleet.apply_cleared(host, index, now());
            }
            return Ok(());
        }
        if self.is_too_fast(host, MessageKind::Shard) {
            return Err(message.reject(
                RejectReason::TooFast,
                WHAT,
                too_fast(MessageKind::Shard, host),
            ));
        }
        let mut state = self.memory.lock();
        let mut shard = message.shard(|fleet_unban| state.fleet.knows_fleet_unban(fleet_unban))?;
        self.exporters.traffic.shards += 1;
        if let Some(reason) = state.guard.check_shard_time(&shard, now()) {
            if reason == RejectReason::Ahead && message.is_trusted() {
                self.ahead_hosts.record(host, now()).iter().for_each(log::warn);
            }
            return Err(message.reject(reason, WHAT, stamp_fault(reason).to_owned()));
        }
        state.drop_unshared(&mut shard);
        match state.fleet.apply_shard(&shard, now()) {
            Some(ShardError::OverCapacity) => {
                let limit = describe_limit(state.fleet.limits(), now());
                let text = format!("ignored some bans from {host}: {limit}");
                state.record_rejection_of(host.as_str(), RejectReason::TooMany, &text);
            }
            Some(ShardError::StaleEcho) => state.warn("part", STALE_ECHO_WARNING),
            None => {}
        }
        Ok(())
    }

    fn on_presence(&mut self, message: &Admitted, host: &HostName) -> Result<(), Rejected> {
        if message.payload().is_empty() {
            if *host == self.host {
                self.memory.lock().fleet.apply_own_presence(None);
            }
            return Ok(()); // `forget` cleared the presence
        }
        let presence = message.presence()?;
        self.exporters.traffic.presences += 1;
        let mut state = self.memory.lock();
        state.fleet.apply_presence(host, presence.state, now());
        if *host != self.host {
            if self.duplicates.observe(host, &presence, now()) {
                state.warn("duplicate", &duplicate_warning(host));
            }
            return Ok(());
        }
        if presence.state == HostState::Online {
            let is_own = presence.instance == self.instance;
            state.fleet.apply_own_presence(is_own.then_some(&presence));
        }
        let sighting = self.own_name.observe(&presence);
        if sighting != Sighting::Own {
            self.namesake_seen_at = Some(now());
            state.warn("namesake", &duplicate_warning(host));
        }
        drop(state);
        if sighting == Sighting::Rival {
            self.change_client_id();
        }
        Ok(())
    }

    /// Draws a new client ID, because another machine uses the same client ID. The session of the former client ID is
    /// purged, because it may hold messages of both machines.
    fn change_client_id(&mut self) {
        match self.memory.lock().draw_client_id() {
            Ok((former, id)) => {
                log::warn(format_args!(
                    "another machine connects with this host's client ID (a cloned disk?); switching to a \
                     new client ID"
                ));
                self.link.rename(id);
                self.former_client_id = Some(former);
            }
            Err(error) => log::warn(error),
        }
    }
}
