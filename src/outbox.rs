//! From the spool to the broker: reads what notify left, has it decided what of it the fleet is told, and
//! keeps each event until the broker has acknowledged it. A ban stays in the spool for longer, until it is
//! written down somewhere else: the disk may have become full meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::broker::MqttLink;
use crate::config::Topic;
use crate::spool::{Name, Spool};
use crate::wire::{Action, Event, SpooledEvent};

/// The most events that are kept in memory; the rest waits in the spool.
const MAX_QUEUED: usize = 10_000;

/// Decides what the fleet is told, if anything; fails where that cannot be decided now.
pub type Classify<'a> = &'a mut dyn FnMut(&SpooledEvent) -> Result<Option<Event>, String>;

/// The events on their way out.
#[derive(Debug)]
pub struct Outbox {
    spool: Spool,
    topic: Topic,
    /// Read, in order, and not acknowledged yet.
    queued: BTreeMap<Name, Event>,
    /// Handed to the link.
    in_flight: BTreeSet<Name>,
    /// Dealt with, but still in the spool, which cannot be written.
    undeletable: BTreeSet<Name>,
    /// Published bans that nobody else has written down yet.
    awaiting_persist: BTreeMap<Name, Event>,
}

impl Outbox {
    /// The outbox of a fleet that talks below `topic`.
    #[must_use]
    pub fn new(spool: Spool, topic: Topic) -> Self {
        let (waiting, in_flight, stuck) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        Self {
            spool,
            topic,
            queued: waiting,
            in_flight,
            undeletable: stuck,
            awaiting_persist: BTreeMap::new(),
        }
    }

    /// Reads what is new in the spool. Answers what is wrong, a line each.
    ///
    /// # Errors
    /// Whatever the system says of the directory.
    pub fn scan(&mut self, decide: Classify<'_>) -> io::Result<Vec<String>> {
        let mut warnings = Vec::new();
        for name in self.spool.list()? {
            if self.queued.len() >= MAX_QUEUED {
                break;
            }
            if self.is_known(&name) {
                continue;
            }
            match self.spool.read(&name) {
                Ok(told) => warnings.extend(self.take(name, &told, decide).err()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    warnings.push(format!("dropped {name} from the spool: {error}"));
                    self.remove(&name);
                }
            }
        }
        Ok(warnings)
    }

    /// Takes what was told under a name.
    ///
    /// # Errors
    /// Why it cannot be decided now; then it is to be told again.
    pub fn take(
        &mut self,
        name: Name,
        told: &SpooledEvent,
        decide: Classify<'_>,
    ) -> Result<(), String> {
        match decide(told)? {
            Some(event) => drop(self.queued.insert(name, event)),
            None => self.remove(&name),
        }
        Ok(())
    }

    /// Hands over as much as the link has room for.
    pub fn send(&mut self, link: &mut MqttLink) {
        for (name, event) in &self.queued {
            if link.capacity() == 0 {
                return;
            }
            if self.in_flight.insert(name.clone()) {
                let topic = self.topic.event(event.action.as_str());
                link.publish(name.clone(), topic, event.encode().into_bytes());
            }
        }
    }

    /// The broker has the event of this name; answers with it.
    pub fn published(&mut self, name: &str) -> Option<Event> {
        self.in_flight.remove(name);
        let event = self.queued.remove(name);
        match event.as_ref().filter(|event| event.action == Action::Ban) {
            Some(event) => drop(self.awaiting_persist.insert(name.to_owned(), event.clone())),
            None => self.remove(name),
        }
        event
    }

    /// Takes away what is written down by now, or over, which `is_unwritten` tells.
    pub fn release_persisted(&mut self, is_unwritten: impl Fn(&str, &Event) -> bool) {
        for (name, _) in
            self.awaiting_persist.extract_if(.., |name, event| !is_unwritten(name, event))
        {
            if !self.spool.remove(&name) {
                self.undeletable.insert(name);
            }
        }
    }

    fn remove(&mut self, name: &str) {
        if !self.spool.remove(name) {
            self.undeletable.insert(name.to_owned());
        }
    }

    /// The link went down: what it had is to be sent again.
    pub fn lost(&mut self) {
        self.in_flight.clear();
    }

    /// How many events wait to be sent or acknowledged.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queued.len()
    }

    fn is_known(&self, name: &str) -> bool {
        self.queued.contains_key(name)
            || self.undeletable.contains(name)
            || self.awaiting_persist.contains_key(name)
    }

    /// Whether the spool has something that was not read yet.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.spool.list().unwrap_or_default().iter().any(|name| !self.is_known(name))
    }

    /// Whether nothing waits to be sent or acknowledged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queued.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::SystemTime;

    use super::*;
    use crate::wire::{Action, Address, HostName, Jail, Reason};

    fn outbox(dir: &Path) -> Outbox {
        Outbox::new(Spool::new(dir.to_owned()), Topic::new("t").unwrap())
    }

    fn tell(outbox: &Outbox, ip: &str) {
        let told = SpooledEvent {
            action: Action::Ban,
            jail: Jail::new("sshd").unwrap(),
            address: Address::new(ip).unwrap(),
            bantime: 600,
            restored: 0,
            failures: 3,
            time: 1,
        };
        outbox.spool.write(&told, SystemTime::now()).unwrap();
    }

    #[test]
    fn what_is_told_waits_for_the_broker_and_what_is_not_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = outbox(dir.path());
        let host = HostName::new("web1").unwrap();
        let mut decide = |told: &SpooledEvent| match told.address.to_string().as_str() {
            "192.0.2.1" => Ok(Some(told.clone().event(&host, 1, Reason::Detected))),
            "192.0.2.2" => Ok(None),
            _ => Err("busy".to_owned()),
        };
        for ip in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
            tell(&outbox, ip);
        }
        assert_eq!(outbox.scan(&mut decide).unwrap(), ["busy"]);
        assert_eq!(outbox.scan(&mut decide).unwrap(), ["busy"], "it is asked again");
        let names = outbox.spool.list().unwrap();
        assert_eq!((names.len(), outbox.queued.len()), (2, 1));
        outbox.published(&names[0]);
        outbox.release_persisted(|_, _| false);
        assert!(outbox.is_empty());
        assert_eq!(outbox.spool.list().unwrap(), names[1..]);
    }

    #[test]
    fn a_ban_stays_in_the_spool_until_it_is_written_down() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = outbox(dir.path());
        tell(&outbox, "192.0.2.1");
        let host = HostName::new("web1").unwrap();
        let mut decide =
            |told: &SpooledEvent| Ok(Some(told.clone().event(&host, 1, Reason::Detected)));
        assert_eq!(outbox.scan(&mut decide).unwrap(), [""; 0]);
        let names = outbox.spool.list().unwrap();
        outbox.published(&names[0]);
        outbox.release_persisted(|_, _| true);
        assert_eq!(outbox.scan(&mut decide).unwrap(), [""; 0]);
        assert!(outbox.is_empty() && !outbox.has_news(), "it is not told again");
        assert_eq!(outbox.spool.list().unwrap(), names);
        outbox.release_persisted(|_, _| false);
        assert_eq!(outbox.spool.list().unwrap(), [""; 0]);
    }

    #[test]
    fn a_file_that_is_no_event_is_dropped_and_said() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = outbox(dir.path());
        std::fs::write(dir.path().join("1.json"), "{}").unwrap();
        let warnings = outbox.scan(&mut |_| Ok(None)).unwrap();
        assert_eq!(warnings, ["dropped 1.json from the spool: missing field `action`"]);
        assert_eq!(outbox.spool.list().unwrap(), [""; 0]);
    }
}
