//! What comes over the link: read, judged, and taken in or refused.

use super::instances::Sighting;
use super::{Daemon, now};
use crate::fleet::Trouble;
use crate::fleet::limits::Table;
use crate::guard::gate::{Admitted, Rejected, Source};
use crate::guard::{Kind, Refusal, Verdict};
use crate::journal;
use crate::wire::{ACK_REQUEST, Action, CHECK, Event, Host, State};

/// Why a message of another time is rejected.
const OLD: &str = "it is too old: a replay, or its host's clock is behind by days";
const AHEAD: &str = "its stamp is more than a day ahead of this host's clock; set the clock that is wrong \
                     (timedatectl)";

fn of_another_time(refusal: Refusal) -> &'static str {
    if refusal == Refusal::Ahead { AHEAD } else { OLD }
}

/// Why some bans are ignored.
const FULL: &str =
    "a limit on bans of other hosts is reached (f2bmqtt check names it); existing bans are kept";

/// What is said of an old part of this host's own.
const ECHO: &str = "an old part of this host's own came back, and all is published anew; if that \
                    repeats, another host has this host's name";

/// Several machines have one name.
fn two_machines(host: &Host) -> String {
    format!(
        "two machines are called {host}: each overwrites the other's snapshot. On one of them set MQTT_NODE in \
         /etc/fail2ban/mqtt.env, then: systemctl restart f2bmqttsub"
    )
}

/// Why messages of a host that sends too many are rejected.
const FAST: &str = "its host sent more in a minute than a host may; its snapshot makes up for it";

impl Daemon {
    pub(super) fn message(&mut self, message: &Admitted) {
        if self.shown.hear(message) {
            return;
        }
        let result = match message.source() {
            Source::Event => self.event(message),
            Source::Shard { host, index } => self.part(message, host, *index),
            Source::Presence { host } => self.presence(message, host),
            Source::Other(_) => Ok(()),
        };
        if let Err(rejected) = result {
            self.refuse(&rejected);
            self.spoilt(&rejected);
        }
    }

    /// What is rejected in this host's own branch took the place of a part, or of its presence.
    pub(super) fn spoilt(&self, rejected: &Rejected) {
        if rejected.host() == Some(&self.host) && rejected.shard().is_none() {
            self.memory.know().fleet.hear_own_presence(None);
        }
        if let Some(index) = rejected.own_shard() {
            self.memory.know().fleet.hear_cleared(&self.host, index, now());
        }
    }

    pub(super) fn refuse(&self, rejected: &Rejected) {
        self.memory.know().refuse(rejected.reason(), &rejected.to_string());
    }

    fn event(&mut self, message: &Admitted) -> Result<(), Rejected> {
        let event = message.event()?;
        if event.action.as_str() == CHECK {
            return Ok(());
        }
        self.shown.traffic.events += 1;
        let kind = if event.id.is_some() { Kind::FleetUnban } else { Kind::Event };
        if self.is_too_fast(&event.host, kind) {
            return Err(message.reject(Refusal::TooFast, "too many events", FAST.to_owned()));
        }
        if event.action.as_str() == ACK_REQUEST {
            return self.request_ack(&event, message);
        }
        self.memory.know().inbound.say(event.host.as_str(), || {
            let Event { action, address, jail, host, restored, failures, .. } = &event;
            format!(
                "Inbound: {action} {address} - ipset {jail} from {host} (Rest:={restored}, Fails:={failures})"
            )
        });
        self.judge(&event, message.is_trusted());
        Ok(())
    }

    /// A host asks what this one does with a ban. Acknowledgements are part of a signed message, so that an unsigned
    /// request counts only where nothing is signed.
    fn request_ack(&self, event: &Event, message: &Admitted) -> Result<(), Rejected> {
        let mut known = self.memory.know();
        if let Some(refusal) = known.guard.check_event_time(event, now()) {
            return Err(message.reject(refusal, "no request", of_another_time(refusal).to_owned()));
        }
        if message.is_trusted() && event.host != self.host {
            let rejected = known.guard.rejects_ban(event);
            known.fleet.request_ack(event, rejected, now());
        }
        Ok(())
    }

    /// Whether a host sends more in a minute than any has to. Peers that are known are told apart, however
    /// many others there are.
    fn is_too_fast(&mut self, host: &Host, kind: Kind) -> bool {
        let mut known = self.memory.know();
        let peer = known.fleet.is_peer(host);
        let too_fast = self.limits.is_too_fast(host, peer, kind, now());
        if too_fast {
            known.fleet.limits_mut().reached(
                Table::Messages,
                kind.most(),
                Some(host.as_str()),
                now(),
            );
        }
        too_fast
    }

    fn judge(&mut self, event: &Event, trusted: bool) {
        let mut known = self.memory.know();
        if let Some(refusal) = known.guard.check_event_time(event, now()) {
            let Event { action, address, jail, host, .. } = event;
            let why = of_another_time(refusal);
            let text = format!("rejected {action} of {address} in {jail} from {host}: {why}");
            known.refuse_of(event.host.as_str(), refusal, &text);
            if refusal == Refusal::Ahead && trusted {
                self.ahead.record(&event.host, now()).iter().for_each(journal::warn);
            }
            return;
        }
        let verdict = known.guard.judge(event, known.fleet.names());
        let unknown = known.fleet.names().is_some_and(|names| !names.contains(&event.jail));
        // A ban of another host waits for a look at fail2ban: a jail may just have been added.
        let waits = event.action == Action::Ban && verdict != Verdict::Own;
        if unknown && event.restored == 0 && !event.every_jail && !waits {
            let Event { jail, address, host, restored, .. } = event;
            let line = || journal::no_such_jail(jail, *address, host, *restored);
            known.inbound.say(host.as_str(), line);
        }
        match verdict {
            Verdict::Own => known.fleet.hear_own(event, now()),
            Verdict::Nothing => {}
            Verdict::Refuse(Refusal::UnknownJail) if !event.is_news() => {
                known.refused.count(Refusal::UnknownJail);
            }
            Verdict::Accept | Verdict::Refuse(Refusal::UnknownJail) => {
                if known.fleet.is_unban_of_another_s_ban(event) {
                    let Event { jail, address, host, .. } = event;
                    let line = || journal::unban_of_another_s_ban(jail, *address, host);
                    known.inbound.say(host.as_str(), line);
                }
                if !known.fleet.hear(event, now()) {
                    let Event { action, address, jail, host, .. } = event;
                    let text =
                        format!("ignored {action} of {address} in {jail} from {host}: {FULL}");
                    known.refuse_of(host.as_str(), Refusal::TooMany, &text);
                }
            }
            Verdict::Refuse(Refusal::UnknownAction) => {
                known.refused.count(Refusal::UnknownAction);
                let line = || format!("Unrecognised action {}", event.action);
                known.inbound.say(event.host.as_str(), line);
            }
            Verdict::Refuse(refusal) => {
                let Event { action, address, jail, host, .. } = event;
                let why = match refusal {
                    Refusal::NotShared => "that jail does not take part here",
                    _ => "it is no address of another machine",
                };
                let text = format!("refused to {action} {address} in {jail} for {host}: {why}");
                known.refuse_of(host.as_str(), refusal, &text);
            }
        }
    }

    /// A part of somebody's snapshot, or nothing where one was.
    fn part(&mut self, message: &Admitted, host: &Host, index: u32) -> Result<(), Rejected> {
        const WHAT: &str = "no part of a snapshot";
        if message.payload().is_empty() {
            let mut known = self.memory.know();
            // Nobody signs that: where it counts, a host is forgotten by an empty part that is signed.
            if *host == self.host || message.is_trusted() {
                known.fleet.hear_cleared(host, index, now());
            }
            return Ok(());
        }
        if self.is_too_fast(host, Kind::Part) {
            let what = "too many parts of a snapshot";
            return Err(message.reject(Refusal::TooFast, what, FAST.to_owned()));
        }
        let mut known = self.memory.know();
        let mut part = message.shard(|pardon| known.fleet.knows_unban(pardon))?;
        self.shown.traffic.parts += 1;
        if let Some(refusal) = known.guard.check_part_time(&part, now()) {
            if refusal == Refusal::Ahead && message.is_trusted() {
                self.ahead.record(host, now()).iter().for_each(journal::warn);
            }
            return Err(message.reject(refusal, WHAT, of_another_time(refusal).to_owned()));
        }
        known.keep_shared(&mut part);
        match known.fleet.hear_part(&part, now()) {
            Some(Trouble::NoRoom) => {
                let text = format!("ignored some bans from {host}: {FULL}");
                known.refuse_of(host.as_str(), Refusal::TooMany, &text);
            }
            Some(Trouble::OwnAndOld) => known.warn("part", ECHO),
            None => {}
        }
        Ok(())
    }

    fn presence(&mut self, message: &Admitted, host: &Host) -> Result<(), Rejected> {
        if message.payload().is_empty() {
            if *host == self.host {
                self.memory.know().fleet.hear_own_presence(None);
            }
            return Ok(()); // it was forgotten
        }
        let there = message.presence()?;
        self.shown.traffic.presences += 1;
        let mut known = self.memory.know();
        known.fleet.hear_presence(host, there.state, now());
        if *host != self.host {
            if self.duplicates.hear(host, &there, now()) {
                known.warn("duplicate", &two_machines(host));
            }
            return Ok(());
        }
        if there.state == State::Online {
            let own = there.instance == self.instance;
            known.fleet.hear_own_presence(Some(&there).filter(|_| own));
        }
        let sighting = self.own_name.hear(&there);
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

    /// Leaves the client ID to the machine that has it, too. The session under it may hold what was for either.
    fn move_away(&mut self) {
        match self.memory.know().draw_client_id() {
            Ok((former, id)) => {
                journal::warn(format_args!(
                    "another machine connects with this host's client ID, as a clone of the disk does: this host \
                     takes a new one"
                ));
                self.link.rename(id);
                self.former = Some(former);
            }
            Err(error) => journal::warn(error),
        }
    }
}
