//! From the spool to the broker: reads the files that notify wrote, asks the caller which of them are published, and
//! keeps each event until the broker acknowledges it. A ban stays in the spool until fail2ban's database or the state
//! database has it, because the disk may be full.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::broker::MqttLink;
use crate::config::Topic;
use crate::spool::{Name, Spool};
use crate::wire::{Action, Event, SpooledEvent};

/// The most events in memory; the rest waits in the spool.
const MAX_QUEUED: usize = 10_000;

/// Decides which event is published for a spooled call, if any. `Err` means that the call cannot be classified yet.
pub type Classify<'a> = &'a mut dyn FnMut(&SpooledEvent) -> Result<Option<Event>, String>;

/// The events on their way to the broker.
#[derive(Debug)]
pub struct Outbox {
    spool: Spool,
    topic: Topic,
    /// Read but not acknowledged, in the order of the spool.
    queued: BTreeMap<Name, Event>,
    /// Passed to the link.
    in_flight: BTreeSet<Name>,
    /// Finished, but still in the spool because the file cannot be deleted.
    undeletable: BTreeSet<Name>,
    /// Published bans that no database has yet.
    awaiting_persist: BTreeMap<Name, Event>,
}

impl Outbox {
    /// An outbox that publishes below `topic`.
    #[must_use]
    pub fn new(spool: Spool, topic: Topic) -> Self {
        Self {
            spool,
            topic,
            queued: BTreeMap::new(),
            in_flight: BTreeSet::new(),
            undeletable: BTreeSet::new(),
            awaiting_persist: BTreeMap::new(),
        }
    }

    /// Reads new files in the spool. Returns warnings, a line each.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn scan(&mut self, classify: Classify<'_>) -> io::Result<Vec<String>> {
        let mut warnings = Vec::new();
        for name in self.spool.list()? {
            if self.queued.len() >= MAX_QUEUED {
                break;
            }
            if self.is_known(&name) {
                continue;
            }
            match self.spool.read(&name) {
                Ok(spooled) => warnings.extend(self.take(name, &spooled, classify).err()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    warnings.push(format!("dropped unreadable {name} from the spool: {error}"));
                    self.remove(&name);
                }
            }
        }
        Ok(warnings)
    }

    /// Adds a spooled call under a name.
    ///
    /// # Errors
    /// The cause, if `classify` cannot decide yet. The caller tries again later.
    pub fn take(
        &mut self,
        name: Name,
        spooled: &SpooledEvent,
        classify: Classify<'_>,
    ) -> Result<(), String> {
        match classify(spooled)? {
            Some(event) => drop(self.queued.insert(name, event)),
            None => self.remove(&name),
        }
        Ok(())
    }

    /// Passes events to the link, up to its capacity.
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

    /// The broker acknowledged the event of this name; returns the event.
    pub fn on_published(&mut self, name: &str) -> Option<Event> {
        self.in_flight.remove(name);
        let event = self.queued.remove(name);
        match event.as_ref().filter(|event| event.action == Action::Ban) {
            Some(event) => drop(self.awaiting_persist.insert(name.to_owned(), event.clone())),
            None => self.remove(name),
        }
        event
    }

    /// Removes published bans from the spool once they are persisted or over, that is, not `is_unpersisted`.
    pub fn release_persisted(&mut self, is_unpersisted: impl Fn(&str, &Event) -> bool) {
        for (name, _) in
            self.awaiting_persist.extract_if(.., |name, event| !is_unpersisted(name, event))
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

    /// The link went down: its unacknowledged events must be sent again.
    pub fn on_lost(&mut self) {
        self.in_flight.clear();
    }

    /// The number of events that wait to be sent or acknowledged.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queued.len()
    }

    fn is_known(&self, name: &str) -> bool {
        self.queued.contains_key(name)
            || self.undeletable.contains(name)
            || self.awaiting_persist.contains_key(name)
    }

    /// Whether the spool has unread files.
    #[must_use]
    pub fn has_unread(&self) -> bool {
        self.spool.list().unwrap_or_default().iter().any(|name| !self.is_known(name))
    }

    /// Whether no event waits to be sent or acknowledged.
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
    use crate::model::{Address, HostName, Jail};
    use crate::wire::{Action, Reason};

    fn outbox(dir: &Path) -> Outbox {
        Outbox::new(Spool::new(dir.to_owned()), Topic::new("t").unwrap())
    }

    fn spool_ban(outbox: &Outbox, ip: &str) {
        let spooled = SpooledEvent {
            action: Action::Ban,
            jail: Jail::new("sshd").unwrap(),
            address: Address::new(ip).unwrap(),
            bantime: 600,
            restored: 0,
            failures: 3,
            time: 1,
        };
        outbox.spool.write(&spooled, SystemTime::now()).unwrap();
    }

    /// The event of a spooled detection.
    fn event(spooled: &SpooledEvent) -> Event {
        spooled.clone().event(&HostName::new("web1").unwrap(), 1, Reason::Detected)
    }

    /// Publishes .1, drops .2, and cannot decide about .3.
    fn classify(spooled: &SpooledEvent) -> Result<Option<Event>, String> {
        match spooled.address.to_string().as_str() {
            "192.0.2.1" => Ok(Some(event(spooled))),
            "192.0.2.2" => Ok(None),
            _ => Err("busy".to_owned()),
        }
    }

    #[test]
    fn published_event_waits_for_the_broker_and_dropped_event_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = outbox(dir.path());
        for ip in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
            spool_ban(&outbox, ip);
        }
        assert_eq!(outbox.scan(&mut classify).unwrap(), ["busy"]);
        assert_eq!(outbox.scan(&mut classify).unwrap(), ["busy"], "the next scan tries again");
        let names = outbox.spool.list().unwrap();
        assert_eq!((names.len(), outbox.queued.len()), (2, 1));
        outbox.on_published(&names[0]);
        outbox.release_persisted(|_, _| false);
        assert!(outbox.is_empty());
        assert_eq!(outbox.spool.list().unwrap(), names[1..]);
    }

    #[test]
    fn published_ban_stays_in_the_spool_until_it_is_persisted() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = outbox(dir.path());
        spool_ban(&outbox, "192.0.2.1");
        assert_eq!(outbox.scan(&mut |spooled| Ok(Some(event(spooled)))).unwrap(), [""; 0]);
        let names = outbox.spool.list().unwrap();
        outbox.on_published(&names[0]);
        outbox.release_persisted(|_, _| true);
        assert_eq!(outbox.scan(&mut |spooled| Ok(Some(event(spooled)))).unwrap(), [""; 0]);
        assert!(outbox.is_empty() && !outbox.has_unread(), "the ban is not published again");
        assert_eq!(outbox.spool.list().unwrap(), names);
        outbox.release_persisted(|_, _| false);
        assert_eq!(outbox.spool.list().unwrap(), [""; 0]);
    }

    #[test]
    fn malformed_spool_file_is_dropped_with_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = outbox(dir.path());
        std::fs::write(dir.path().join("1.json"), "{}").unwrap();
        let warnings = outbox.scan(&mut |_| Ok(None)).unwrap();
        assert_eq!(warnings, ["dropped unreadable 1.json from the spool: missing field `action`"]);
        assert_eq!(outbox.spool.list().unwrap(), [""; 0]);
    }
}
