//! What the daemon knows, shared between the part that listens to the broker and the part that
//! talks to fail2ban, and written down before it is relied on.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::fail2ban::database::Database;
use crate::fleet::Fleet;
use crate::journal::{self, Limited};
use crate::store::Store;
use crate::wire::Jail;

/// Guarded by a lock that is only ever held for as long as it takes to look or to write down.
#[derive(Debug)]
pub struct Memory(Mutex<Known>);

/// What is known.
#[derive(Debug)]
pub struct Known {
    /// The other hosts' bans.
    pub fleet: Fleet,
    /// The jails that fail2ban has, once it has said so, and when it did.
    pub jails: Option<(BTreeSet<Jail>, Instant)>,
    /// fail2ban's own memory of its bans.
    pub database: Database,
    store: Store,
    limited: Limited,
}

impl Memory {
    /// Takes up what the store remembers.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn load(store: Store, database: Database) -> Result<Self, Error> {
        let fleet = Fleet::remembering(store.load()?);
        let limited = Limited::default();
        Ok(Self(Mutex::new(Known { fleet, jails: None, database, store, limited })))
    }

    /// Looks at it, or changes it.
    pub fn know(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Whether fail2ban was asked for its jails so lately that one it did not name is missing.
    #[must_use]
    pub fn jails_are_fresh(&self) -> bool {
        const FRESH: Duration = Duration::from_secs(1);
        self.jails.as_ref().is_some_and(|(_, asked)| asked.elapsed() < FRESH)
    }

    /// Writes down what has changed. Where that fails (a full disk), the bans are made all the
    /// same, and it is tried again with the next change.
    pub fn write_down(&mut self) {
        let changes = self.fleet.changes();
        if changes.is_empty() {
            return;
        }
        if let Err(error) = self.store.save(&changes) {
            self.fleet.unsaved(changes.into_iter().map(|(key, _)| key));
            self.warn("store", &error.to_string());
        }
    }

    /// Warns, but not again and again of the same kind of thing.
    pub fn warn(&mut self, kind: &'static str, text: &str) {
        if let Some(line) = self.limited.line(kind, text, Instant::now()) {
            journal::warn(line);
        }
    }
}
