//! Inbound messages: parsed, judged, and applied or rejected.

use super::Daemon;
use super::instances::Sighting;
use crate::clock::now_millis as now;
use crate::fleet::ShardError;
use crate::fleet::limits::{BoundedTable, Limit, ReachedLimits};
use crate::guard::gate::{Admitted, Rejected, Source};
use crate::guard::{Admission, MessageKind, RejectReason};
use crate::journal;
use crate::wire::{ACK_REQUEST, Action, Event, HostName, HostState, PROBE_ACTION};

/// Why a message is rejected because of its stamp.
const OLD: &str = "the message is too old: a replay, or the sender's clock is days behind";
const AHEAD: &str = "the stamp is more than a day ahead of this host's clock; set the wrong clock \
                     (timedatectl)";

/// The text for a reason of [`Guard::check_event_time`](crate::guard::Guard::check_event_time) or of the same check of
/// shards. Every reason but `ahead` has the text of `old`.
fn of_another_time(reason: RejectReason) -> &'static str {
    if reason == RejectReason::Ahead { AHEAD } else { OLD }
}

/// Why a ban is ignored: the limit that was reached last.
fn full(limits: &ReachedLimits, now: i64) -> String {
    let of_bans = |limit: &&Limit| limit.table != BoundedTable::Messages;
    let last = limits.shown(now).filter(of_bans).max_by_key(|limit| limit.at);
    let limit = last.map_or_else(|| "a limit".to_owned(), Limit::describe);
    format!("{limit} reached; existing bans are kept")
}

/// The warning about an outdated shard of this host.
const ECHO: &str = "received an outdated shard of this host; publishing all shards again; if this repeats, \
                    another host has this host's name";

/// The warning about two machines with one name.
fn two_machines(host: &HostName) -> String {
    format!(
        "two machines have the name {host} and overwrite each other's snapshot; on one of them set \
         MQTT_NODE in /etc/fail2ban/mqtt.env, then run: systemctl restart f2bmqttsub"
    )
}

/// Why messages of a host that sends too many are rejected.
fn too_fast(kind: MessageKind, host: &HostName) -> String {
    let most = kind.per_minute();
    format!(
        "limit of {most} messages per minute of {host} reached; the host's snapshot replaces the message"
    )
}

impl Daemon {
    pub(super) fn on_message(&mut self, message: &Admitted) {
        if self.shown.on_message(message) {
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
        if event.action.as_str() == PROBE_ACTION {
            return Ok(());
        }
        self.shown.traffic.events += 1;
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
        self.memory.lock().inbound.say(event.host.as_str(), || {
            let Event { action, address, jail, host, restored, failures, .. } = &event;
            format!(
                "Inbound: {action} {address} - ipset {jail} from {host} (Rest:={restored}, Fails:={failures})"
            )
        });
        self.judge(&event, message.is_trusted());
        Ok(())
    }

    /// Handles a request for an acknowledgement. Acknowledgements are part of a signed message, so an untrusted request
    /// is ignored.
    fn request_ack(&self, event: &Event, message: &Admitted) -> Result<(), Rejected> {
        let mut known = self.memory.lock();
        if let Some(reason) = known.guard.check_event_time(event, now()) {
            return Err(message.reject(reason, "no request", of_another_time(reason).to_owned()));
        }
        if message.is_trusted() && event.host != self.host {
            let rejected = known.guard.rejects_ban(event);
            known.fleet.request_ack(event, rejected, now());
        }
        Ok(())
    }

    /// Whether a host exceeds its rate limit (R21). Peers always have their own count, however many other names are used.
    fn is_too_fast(&mut self, host: &HostName, kind: MessageKind) -> bool {
        let mut known = self.memory.lock();
        let peer = known.fleet.is_peer(host);
        let too_fast = self.limits.exceeds_limit(host, peer, kind, now());
        if too_fast {
            known.fleet.limits_mut().reached(
                BoundedTable::Messages,
                kind.per_minute(),
                Some(host.as_str()),
                now(),
            );
        }
        too_fast
    }

    fn judge(&mut self, event: &Event, trusted: bool) {
        let mut known = self.memory.lock();
        if let Some(reason) = known.guard.check_event_time(event, now()) {
            let Event { action, address, jail, host, .. } = event;
            let why = of_another_time(reason);
            let text = format!("rejected {action} of {address} in {jail} from {host}: {why}");
            known.record_rejection_of(event.host.as_str(), reason, &text);
            if reason == RejectReason::Ahead && trusted {
                self.ahead.record(&event.host, now()).iter().for_each(journal::warn);
            }
            return;
        }
        let admission = known.guard.judge(event, known.fleet.known_jails());
        let unknown = known.fleet.known_jails().is_some_and(|names| !names.contains(&event.jail));
        // A ban of another host waits for an observation of fail2ban, which may have a new jail.
        let waits = event.action == Action::Ban && admission != Admission::Echo;
        if unknown && event.restored == 0 && !event.all_jails && !waits {
            let Event { jail, address, host, restored, .. } = event;
            let line = || journal::no_such_jail(jail, *address, host, *restored);
            known.inbound.say(host.as_str(), line);
        }
        match admission {
            Admission::Echo => known.fleet.apply_echo(event, now()),
            Admission::Ignore => {}
            Admission::Reject(RejectReason::UnknownJail) if !event.is_new() => {
                known.rejections.count(RejectReason::UnknownJail);
            }
            Admission::Accept | Admission::Reject(RejectReason::UnknownJail) => {
                if known.fleet.is_unban_of_another_s_ban(event) {
                    let Event { jail, address, host, .. } = event;
                    let line = || journal::unban_of_another_s_ban(jail, *address, host);
                    known.inbound.say(host.as_str(), line);
                }
                if !known.fleet.apply_event(event, now()) {
                    let Event { action, address, jail, host, .. } = event;
                    let why = full(known.fleet.limits(), now());
                    let text =
                        format!("ignored {action} of {address} in {jail} from {host}: {why}");
                    known.record_rejection_of(host.as_str(), RejectReason::TooMany, &text);
                }
            }
            Admission::Reject(RejectReason::UnknownAction) => {
                known.rejections.count(RejectReason::UnknownAction);
                let line = || format!("Unrecognised action {}", event.action);
                known.inbound.say(event.host.as_str(), line);
            }
            Admission::Reject(reason) => {
                let Event { action, address, jail, host, .. } = event;
                let why = match reason {
                    RejectReason::NotShared => "the jail is not shared on this host",
                    _ => "not an address that another machine can have",
                };
                let text = format!("rejected {action} of {address} in {jail} from {host}: {why}");
                known.record_rejection_of(host.as_str(), reason, &text);
            }
        }
    }

    /// A part of somebody's snapshot, or nothing where one was.
    fn on_shard(
        &mut self,
        message: &Admitted,
        host: &HostName,
        index: u32,
    ) -> Result<(), Rejected> {
        const WHAT: &str = "shard";
        if message.payload().is_empty() {
            let mut known = self.memory.lock();
            // An empty payload cannot be signed. In a signing fleet, `forget` publishes a signed shard without bans.
            if *host == self.host || message.is_trusted() {
                known.fleet.apply_cleared(host, index, now());
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
        let mut known = self.memory.lock();
        let mut shard = message.shard(|fleet_unban| known.fleet.knows_fleet_unban(fleet_unban))?;
        self.shown.traffic.shards += 1;
        if let Some(reason) = known.guard.check_shard_time(&shard, now()) {
            if reason == RejectReason::Ahead && message.is_trusted() {
                self.ahead.record(host, now()).iter().for_each(journal::warn);
            }
            return Err(message.reject(reason, WHAT, of_another_time(reason).to_owned()));
        }
        known.drop_unshared(&mut shard);
        match known.fleet.apply_shard(&shard, now()) {
            Some(ShardError::OverCapacity) => {
                let why = full(known.fleet.limits(), now());
                let text = format!("ignored some bans from {host}: {why}");
                known.record_rejection_of(host.as_str(), RejectReason::TooMany, &text);
            }
            Some(ShardError::StaleEcho) => known.warn("part", ECHO),
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
        self.shown.traffic.presences += 1;
        let mut known = self.memory.lock();
        known.fleet.apply_presence(host, presence.state, now());
        if *host != self.host {
            if self.duplicates.observe(host, &presence, now()) {
                known.warn("duplicate", &two_machines(host));
            }
            return Ok(());
        }
        if presence.state == HostState::Online {
            let own = presence.instance == self.instance;
            known.fleet.apply_own_presence(Some(&presence).filter(|_| own));
        }
        let sighting = self.own_name.observe(&presence);
        if sighting != Sighting::Own {
            self.namesake = Some(now());
            known.warn("namesake", &two_machines(host));
        }
        drop(known);
        if sighting == Sighting::Rival {
            self.move_away();
        }
        Ok(())
    }

    /// Draws a new client ID, because another machine has the same. The session of the old one is purged: it may have
    /// messages for either machine.
    fn move_away(&mut self) {
        match self.memory.lock().draw_client_id() {
            Ok((former, id)) => {
                journal::warn(format_args!(
                    "another machine connects with this host's client ID (a cloned disk?); switching to a \
                     new client ID"
                ));
                self.link.rename(id);
                self.former = Some(former);
            }
            Err(error) => journal::warn(error),
        }
    }
}
