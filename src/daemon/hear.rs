//! What comes over the link: read, judged, and taken in or refused.

use super::{Daemon, NAMESAKE, now};
use crate::fleet::Trouble;
use crate::fleet::limits::Table;
use crate::guard::{Kind, Refusal, Verdict};
use crate::journal;
use crate::wire::{CHECK, Event, Host, Malformed, Part, Presence};

/// What is said of an old message.
const OLD: &str = "it is old, sent again or by a host whose clock is behind by days";

/// What is said of one of the future.
const AHEAD: &str = "its stamp is more than a day ahead of this host's clock; set the clock that is wrong \
                     (timedatectl)";

fn of_another_time(refusal: Refusal) -> &'static str {
    if refusal == Refusal::Ahead { AHEAD } else { OLD }
}

/// What is said where there is no room.
const FULL: &str = "no fleet has so many; what was banned stays";

/// What is said of an old part of this host's own.
const ECHO: &str = "an old part of this host's own came back, and all is published anew; if that \
                    repeats, another host has this host's name";

/// What is said of a host that talks too much.
const FAST: &str = "no host has so much to say in a minute; its snapshot counts";

/// What a message is not, and why.
type Odd = (Refusal, &'static str, String);

impl Daemon {
    pub(super) fn message(&mut self, topic: &str, payload: &[u8]) {
        if self.shown.hear(topic, payload) {
            return;
        }
        let below = topic.strip_prefix(&self.topic.below("")).unwrap_or(topic);
        let mut levels = below.split('/');
        let result = match (levels.next(), levels.next(), levels.next()) {
            (Some("state"), Some(host), Some(number)) => self.part(host, number, payload),
            (Some("host"), Some(host), None) => self.presence(host, payload),
            // What else the fleet's hosts may keep there are no events.
            (Some("state" | "host"), ..) => Ok(()),
            _ => self.event(payload),
        };
        if let Err(odd) = result {
            self.refuse(topic, odd);
        }
    }

    /// What is not signed well and retained in this host's own branch took the place of a part.
    pub(super) fn spoilt(&self, topic: &str) {
        let branch = self.topic.below(&format!("state/{}/", self.host));
        if let Some(Ok(number)) = topic.strip_prefix(&branch).map(str::parse) {
            self.memory.know().fleet.hear_cleared(&self.host, number, now());
        }
    }

    pub(super) fn refuse(&self, topic: &str, (refusal, what, why): Odd) {
        let topic: String = topic.escape_debug().take(100).collect();
        self.memory.know().refuse(refusal, &format!("{what} on the topic {topic}: {why}"));
    }

    fn event(&mut self, payload: &[u8]) -> Result<(), Odd> {
        const WHAT: &str = "no event";
        let event = Event::parse(payload).map_err(|why| malformed(WHAT, &why))?;
        if event.action.as_str() == CHECK {
            return Ok(());
        }
        self.shown.traffic.events += 1;
        let kind = if event.id.is_some() { Kind::FleetUnban } else { Kind::Event };
        if self.is_too_fast(&event.host, kind) {
            return Err((Refusal::TooFast, "too many events", FAST.to_owned()));
        }
        self.memory.know().inbound.say(event.host.as_str(), || {
            let Event { action, address, jail, host, restored, failures, .. } = &event;
            format!(
                "Inbound: {action} {address} - ipset {jail} from {host} (Rest:={restored}, Fails:={failures})"
            )
        });
        self.judge(&event);
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

    fn judge(&mut self, event: &Event) {
        let mut known = self.memory.know();
        if let Some(refusal) = known.guard.check_event_time(event, now()) {
            let Event { action, address, jail, host, .. } = event;
            let why = of_another_time(refusal);
            let text = format!("rejected {action} of {address} in {jail} from {host}: {why}");
            known.refuse_of(event.host.as_str(), refusal, &text);
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
                let line = || journal::no_such_jail(jail, *address, host, *restored);
                known.inbound.say(host.as_str(), line);
            }
            Verdict::Accept | Verdict::Refuse(Refusal::UnknownJail) => {
                if !known.fleet.hear(event, now()) {
                    let Event { action, address, jail, host, .. } = event;
                    let text =
                        format!("no room for {action} {address} in {jail} of {host}: {FULL}");
                    known.refuse_of(host.as_str(), Refusal::TooMany, &text);
                    refused = Some(Refusal::TooMany);
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
                refused = Some(refusal);
            }
        }
        if event.host != self.host {
            known.fleet.asked(event, refused, now());
        }
    }

    /// A part of somebody's snapshot, or nothing where one was.
    fn part(&mut self, host: &str, number: &str, payload: &[u8]) -> Result<(), Odd> {
        const WHAT: &str = "no part of a snapshot";
        let host = named(host, WHAT)?;
        let number: u32 = number
            .parse()
            .map_err(|_| (Refusal::WrongTopic, WHAT, "it has no number".to_owned()))?;
        if payload.is_empty() {
            let mut known = self.memory.know();
            // Nobody signs that: where it counts, a host is forgotten by an empty part that is signed.
            if host == self.host || !known.guard.signed {
                known.fleet.hear_cleared(&host, number, now());
            }
            return Ok(());
        }
        if self.is_too_fast(&host, Kind::Part) {
            return Err((Refusal::TooFast, "too many parts of a snapshot", FAST.to_owned()));
        }
        let mut part = Part::parse(payload).map_err(|why| malformed(WHAT, &why))?;
        self.shown.traffic.parts += 1;
        let mut known = self.memory.know();
        if part.host != host || part.slice.part() != number {
            let why = "it is another host's, or another part".to_owned();
            return Err((Refusal::WrongTopic, WHAT, why));
        }
        if let Some(refusal) = known.guard.check_part_time(&part, now()) {
            return Err((refusal, WHAT, of_another_time(refusal).to_owned()));
        }
        known.keep_shared(&mut part);
        match known.fleet.hear_part(&part, now()) {
            Some(Trouble::NoRoom) => {
                let text = format!("no room for all bans of {host}: {FULL}");
                known.refuse_of(host.as_str(), Refusal::TooMany, &text);
            }
            Some(Trouble::OwnAndOld) => known.warn("part", ECHO),
            None => {}
        }
        Ok(())
    }

    fn presence(&mut self, host: &str, payload: &[u8]) -> Result<(), Odd> {
        const WHAT: &str = "no presence";
        let host = named(host, WHAT)?;
        if payload.is_empty() {
            return Ok(()); // it was forgotten
        }
        let there = Presence::parse(payload).map_err(|why| malformed(WHAT, &why))?;
        self.shown.traffic.presences += 1;
        let mut known = self.memory.know();
        known.fleet.hear_presence(&host, there.state, now());
        if host == self.host && !there.machine.is_empty() && there.machine != self.machine {
            let text = format!("{NAMESAKE} {host}, too: set MQTT_NODE on one of them");
            known.warn("namesake", &text);
        }
        Ok(())
    }
}

/// The host that a topic names.
fn named(host: &str, what: &'static str) -> Result<Host, Odd> {
    Host::new(host).map_err(|why| (Refusal::WrongTopic, what, format!("the host {why}")))
}

fn malformed(what: &'static str, why: &Malformed) -> Odd {
    (Refusal::Malformed, what, why.to_string())
}
