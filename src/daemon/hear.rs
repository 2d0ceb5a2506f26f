//! What comes over the link: read, judged, and taken in or refused.

use super::{Daemon, NAMESAKE, now};
use crate::fleet::Trouble;
use crate::guard::gate::{Admitted, Rejected, Source};
use crate::guard::{Kind, Refusal, Verdict};
use crate::journal;
use crate::wire::{CHECK, Event, Host};

/// What is said of an old message.
const OLD: &str = "it is old, sent again or by a host whose clock is behind by days";

/// What is said where there is no room.
const FULL: &str = "no fleet has so many; what was banned stays";

/// What is said of an old part of this host's own.
const ECHO: &str = "an old part of this host's own came back, and all is published anew; if that \
                    repeats, another host has this host's name";

/// What is said of a host that talks too much.
const FAST: &str = "no host has so much to say in a minute; its snapshot counts";

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
        }
    }

    /// What is not the fleet's and retained in this host's own branch took the place of a part.
    pub(super) fn spoilt(&self, rejected: &Rejected) {
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
        if self.limits.is_too_fast(&event.host, kind, now()) {
            return Err(message.reject(Refusal::TooFast, "too many events", FAST.to_owned()));
        }
        self.inbound.say(|| {
            let Event { action, address, jail, host, restored, failures, .. } = &event;
            format!(
                "Inbound: {action} {address} - ipset {jail} from {host} (Rest:={restored}, Fails:={failures})"
            )
        });
        self.judge(&event, message.is_trusted());
        Ok(())
    }

    fn judge(&mut self, event: &Event, trusted: bool) {
        let mut known = self.memory.know();
        if known.guard.is_old_event(event, now()) {
            let Event { action, address, jail, host, .. } = event;
            let text = format!("refused to {action} {address} in {jail} for {host}: {OLD}");
            known.refuse(Refusal::Old, &text);
            return;
        }
        let verdict = known.guard.judge(event, known.fleet.names());
        let mut refused = None;
        match verdict {
            Verdict::Own => known.fleet.hear_own(event, now()),
            Verdict::Nothing => {}
            // A jail may just have been added: fail2ban is asked before that is said.
            Verdict::Refuse(Refusal::UnknownJail) if !event.is_news() => {
                known.refused.count(Refusal::UnknownJail);
                let Event { jail, address, host, restored, .. } = event;
                self.inbound.say(|| journal::no_such_jail(jail, *address, host, *restored));
            }
            Verdict::Accept | Verdict::Refuse(Refusal::UnknownJail) => {
                if !known.fleet.hear(event, now()) {
                    let Event { action, address, jail, host, .. } = event;
                    let text =
                        format!("no room for {action} {address} in {jail} of {host}: {FULL}");
                    known.refuse(Refusal::TooMany, &text);
                    refused = Some(Refusal::TooMany);
                }
            }
            Verdict::Refuse(Refusal::UnknownAction) => {
                known.refused.count(Refusal::UnknownAction);
                self.inbound.say(|| format!("Unrecognised action {}", event.action));
            }
            Verdict::Refuse(refusal) => {
                let Event { action, address, jail, host, .. } = event;
                let why = match refusal {
                    Refusal::NotShared => "that jail does not take part here",
                    _ => "it is no address of another machine",
                };
                let text = format!("refused to {action} {address} in {jail} for {host}: {why}");
                known.refuse(refusal, &text);
                refused = Some(refusal);
            }
        }
        // Answers are part of a signed message.
        if trusted && event.host != self.host {
            known.fleet.asked(event, refused, now());
        }
    }

    /// A part of somebody's snapshot, or nothing where one was.
    fn part(&mut self, message: &Admitted, host: &Host, index: u32) -> Result<(), Rejected> {
        const WHAT: &str = "no part of a snapshot";
        let mut known = self.memory.know();
        if message.payload().is_empty() {
            // Nobody signs that: where it counts, a host is forgotten by an empty part that is signed.
            if *host == self.host || message.is_trusted() {
                known.fleet.hear_cleared(host, index, now());
            }
            return Ok(());
        }
        if self.limits.is_too_fast(host, Kind::Part, now()) {
            let what = "too many parts of a snapshot";
            return Err(message.reject(Refusal::TooFast, what, FAST.to_owned()));
        }
        let mut part = message.shard(|pardon| known.fleet.knows_unban(pardon))?;
        self.shown.traffic.parts += 1;
        if known.guard.is_old_part(&part, now()) {
            return Err(message.reject(Refusal::Old, WHAT, OLD.to_owned()));
        }
        known.keep_shared(&mut part);
        match known.fleet.hear_part(&part, now()) {
            Some(Trouble::NoRoom) => {
                let text = format!("no room for all bans of {host}: {FULL}");
                known.refuse(Refusal::TooMany, &text);
            }
            Some(Trouble::OwnAndOld) => known.warn("part", ECHO),
            None => {}
        }
        Ok(())
    }

    fn presence(&mut self, message: &Admitted, host: &Host) -> Result<(), Rejected> {
        if message.payload().is_empty() {
            return Ok(()); // it was forgotten
        }
        let there = message.presence()?;
        self.shown.traffic.presences += 1;
        let mut known = self.memory.know();
        known.fleet.hear_presence(host, there.state, now());
        if *host == self.host && !there.machine.is_empty() && there.machine != self.machine {
            let text = format!("{NAMESAKE} {host}, too: set MQTT_NODE on one of them");
            known.warn("namesake", &text);
        }
        Ok(())
    }
}
