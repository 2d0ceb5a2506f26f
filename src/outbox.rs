//! From the spool to the broker: reads what notify left, decides what of it the fleet is told, and
//! keeps each event until the broker has acknowledged it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::broker::Link;
use crate::config::{Config, Topic};
use crate::fail2ban::database::{Database, Row};
use crate::fleet::Key;
use crate::spool::{Name, Spool};
use crate::wire::{Action, Event, Host, Reason, Told};

/// What is told again within this time is the same event, told by a second action of the jail.
const REPEAT: Duration = Duration::from_secs(10);

/// The most events that are kept in memory; the rest waits in the spool.
const MOST: usize = 10_000;

/// What was found in the spool.
#[derive(Debug, Default)]
pub struct Found {
    /// Addresses that this host's fail2ban detected itself.
    pub detected: Vec<Key>,
    /// Own bans whose time is over.
    pub expired: Vec<Key>,
    /// What is wrong, a line each.
    pub warnings: Vec<String>,
}

/// The events on their way out.
#[derive(Debug)]
pub struct Outbox {
    spool: Spool,
    host: Host,
    topic: Topic,
    /// Read, in order, and not acknowledged yet.
    waiting: BTreeMap<Name, Event>,
    /// Handed to the link.
    in_flight: BTreeSet<Name>,
    /// Dealt with, but still in the spool, which cannot be written.
    stuck: BTreeSet<Name>,
    /// What was told last of each address.
    recent: HashMap<Key, (Told, SystemTime)>,
    stamp: i64,
}

impl Outbox {
    /// The outbox of a host with these settings.
    #[must_use]
    pub fn new(spool: Spool, config: &Config) -> Self {
        Self {
            spool,
            host: config.node.clone(),
            topic: config.topic.clone(),
            waiting: BTreeMap::new(),
            in_flight: BTreeSet::new(),
            stuck: BTreeSet::new(),
            recent: HashMap::new(),
            stamp: 0,
        }
    }

    /// Reads what is new in the spool.
    ///
    /// # Errors
    /// Whatever the system says of the directory.
    pub fn scan(&mut self, database: &Database, now: SystemTime) -> io::Result<Found> {
        let mut found = Found::default();
        self.recent.retain(|_, (_, at)| now.duration_since(*at).is_ok_and(|age| age < REPEAT));
        for name in self.spool.list()? {
            if self.waiting.len() >= MOST {
                break;
            }
            if self.waiting.contains_key(&name) || self.stuck.contains(&name) {
                continue;
            }
            match self.spool.read(&name) {
                Ok(told) => self.take(name, told, database, now, &mut found),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    found.warnings.push(format!("dropped {name} from the spool: {error}"));
                    self.remove(&name);
                }
            }
        }
        Ok(found)
    }

    /// Takes what was told under a name.
    pub fn take(
        &mut self,
        name: Name,
        told: Told,
        database: &Database,
        now: SystemTime,
        found: &mut Found,
    ) {
        let stamp = self.next_stamp(now);
        let key = (told.jail.clone(), told.address);
        if told.action == Action::Ban {
            found.detected.push(key.clone());
        }
        let repeated = self.recent.get(&key).is_some_and(|(last, _)| told.repeats(last));
        let row = || {
            let rows = database.rows(&told.jail, &[told.address]);
            rows.map(|rows| database.is_kept().then(|| rows.first().copied().flatten()))
        };
        let reason = if repeated { Ok(None) } else { reason(&told, row, seconds(now)) };
        let reason = match reason {
            Ok(reason) => reason,
            // A database that is busy is asked again with the next look into the spool.
            Err(error) => {
                found.warnings.push(format!("cannot read fail2ban's database: {error}"));
                return;
            }
        };
        if reason == Some(Reason::Expired) {
            found.expired.push(key.clone());
        }
        match reason {
            Some(reason) => {
                self.recent.insert(key, (told.clone(), now));
                self.waiting.insert(name, told.event(&self.host, stamp, reason));
            }
            None => self.remove(&name),
        }
    }

    /// Hands over as much as the link has room for.
    pub fn send(&mut self, link: &mut Link) {
        for (name, event) in &self.waiting {
            if link.room() == 0 {
                return;
            }
            if self.in_flight.insert(name.clone()) {
                let topic = self.topic.below(event.action.as_str());
                link.publish(name.clone(), topic, event.encode().into_bytes());
            }
        }
    }

    /// The broker has the event of this name.
    pub fn published(&mut self, name: &str) {
        self.in_flight.remove(name);
        self.waiting.remove(name);
        self.remove(name);
    }

    fn remove(&mut self, name: &str) {
        if !self.spool.remove(name) {
            self.stuck.insert(name.to_owned());
        }
    }

    /// This host said something with this stamp once, perhaps before its clock was set back: what it
    /// says from now on has a greater one.
    pub fn said_before(&mut self, stamp: i64, now: SystemTime) {
        const DAY: i64 = 86_400_000;
        if stamp < seconds(now).saturating_mul(1000).saturating_add(DAY) {
            self.stamp = self.stamp.max(stamp);
        }
    }

    /// The link went down: what it had is to be sent again.
    pub fn lost(&mut self) {
        self.in_flight.clear();
    }

    /// Whether nothing waits to be sent or acknowledged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// A stamp that is greater than the one before, whatever the clock does.
    fn next_stamp(&mut self, now: SystemTime) -> i64 {
        let millis = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        self.stamp = i64::try_from(millis).unwrap_or(i64::MAX - 1).max(self.stamp + 1);
        self.stamp
    }
}

/// Seconds since 1970.
#[must_use]
pub fn seconds(now: SystemTime) -> i64 {
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// Why the fleet is told; `None` where it is not. An unban counts if the ban is over, by what was told
/// or by fail2ban's row, or if the row is gone: then somebody lifted it. Otherwise fail2ban only
/// stops, and will restore the ban when it starts again. Without a database there is no telling a
/// lift from a stop (`row` is `None`).
fn reason<E>(
    told: &Told,
    row: impl FnOnce() -> Result<Option<Option<Row>>, E>,
    now: i64,
) -> Result<Option<Reason>, E> {
    if told.action == Action::Ban {
        return Ok(Some(Reason::Detected));
    }
    let over = Row { timeofban: told.time, bantime: told.bantime, failures: told.failures };
    if told.time > 0 && told.bantime > 0 && over.is_over(now) {
        return Ok(Some(Reason::Expired));
    }
    Ok(match row()? {
        Some(Some(row)) if row.is_over(now) => Some(Reason::Expired),
        Some(Some(_)) => None,
        Some(None) | None => Some(Reason::Lifted),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::wire::{Address, Jail};

    fn told(action: Action, time: i64) -> Told {
        Told {
            action,
            jail: Jail::new("sshd").unwrap(),
            address: Address::new("203.0.113.9").unwrap(),
            bantime: 600,
            restored: 0,
            failures: 3,
            time,
        }
    }

    fn outbox(dir: &Path) -> Outbox {
        let text = b"MQTT_HOST=broker\nMQTT_TOPIC=t\n";
        let config = Config::parse(Path::new("f"), text, &|_| None, "web1").unwrap();
        Outbox::new(Spool::new(dir.to_owned()), &config)
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn an_unban_is_told_if_it_was_lifted_or_is_over() {
        let row = |timeofban| Row { timeofban, bantime: 600, failures: 3 };
        let unban = told(Action::Unban, 1000);
        let table = [
            (Some(Some(row(1000))), 1600, Some(Reason::Expired)),
            (Some(Some(row(1000))), 1599, Some(Reason::Expired)),
            (Some(Some(row(1000))), 1200, None),
            // A bantime that was shortened: the row has the old one.
            (Some(Some(Row { bantime: 9999, ..row(1000) })), 1600, Some(Reason::Expired)),
            // A ban that was told with another time: the row decides.
            (Some(Some(row(400))), 1200, Some(Reason::Expired)),
            (Some(None), 1200, Some(Reason::Lifted)),
            (None, 1600, Some(Reason::Expired)),
            (None, 1200, Some(Reason::Lifted)),
        ];
        for (row, now, expected) in table {
            let asked = || Ok::<_, ()>(row);
            assert_eq!(reason(&unban, asked, now), Ok(expected), "{row:?} at {now}");
        }
        let ban = told(Action::Ban, 1000);
        assert_eq!(reason(&ban, || Err(()), 9999), Ok(Some(Reason::Detected)), "it is not asked");
        assert_eq!(reason(&unban, || Err(()), 1200), Err(()), "it is busy");
    }

    #[test]
    fn what_a_jail_s_two_actions_tell_is_one_event() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = outbox(dir.path());
        let nowhere = Database::new(None);
        let mut now = 5000;
        let mut tell = |outbox: &mut Outbox, action, time, pause| {
            now += pause;
            outbox.spool.write(&told(action, time), at(now)).unwrap();
            let before = outbox.waiting.len();
            outbox.scan(&nowhere, at(now)).unwrap();
            outbox.waiting.len() - before
        };
        assert_eq!(tell(&mut outbox, Action::Ban, 1000, 0), 1);
        assert_eq!(tell(&mut outbox, Action::Ban, 1000, 1), 0, "the second action");
        assert_eq!(tell(&mut outbox, Action::Ban, 0, 1), 0, "one that does not know the time");
        assert_eq!(tell(&mut outbox, Action::Unban, 1000, 1), 1);
        assert_eq!(tell(&mut outbox, Action::Unban, 1000, 1), 0);
        assert_eq!(tell(&mut outbox, Action::Ban, 1003, 1), 1, "a ban after its unban is another");
        assert_eq!(tell(&mut outbox, Action::Ban, 1009, 1), 1, "a ban of another time, too");
        assert_eq!(tell(&mut outbox, Action::Ban, 0, 11), 1, "and one that comes much later");
        let files = outbox.spool.list().unwrap();
        assert_eq!(files.len(), outbox.waiting.len(), "what repeats is gone from the spool");
    }

    #[test]
    fn stamps_grow_whatever_the_clock_does() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = outbox(dir.path());
        let stamps = [100, 100, 50, 101].map(|second| outbox.next_stamp(at(second)));
        assert_eq!(stamps, [100_000, 100_001, 100_002, 101_000]);
        outbox.said_before(110_000, at(101));
        outbox.said_before(i64::MAX, at(101));
        assert_eq!(outbox.next_stamp(at(102)), 110_001, "what it said before; but nothing absurd");
    }

    #[test]
    fn a_file_that_is_no_event_is_dropped_and_said() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = outbox(dir.path());
        std::fs::write(dir.path().join("1.json"), "{}").unwrap();
        let nowhere = Database::new(None);
        let found = outbox.scan(&nowhere, at(1)).unwrap();
        assert_eq!(found.warnings, ["dropped 1.json from the spool: its field action is missing"]);
        assert_eq!(outbox.spool.list().unwrap(), [""; 0]);
    }
}
