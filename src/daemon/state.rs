//! The state that the daemon's loop and the driver of fail2ban share.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::error::Error;
use crate::fail2ban::action_names::{ActionNames, Resolved};
use crate::fail2ban::database::{Database, unreadable};
use crate::fleet::effects::Effect;
use crate::fleet::{Controller, Record};
use crate::guard::{Guard, RejectCounters, RejectReason, is_bannable};
use crate::model::JailScope;
use crate::spool::outbox::Outbox;
use crate::store::{Former, Identity, Store};
use crate::sys::clock::now_millis;
use crate::sys::log;
use crate::sys::log::{InboundLog, RateLimitedLog};
use crate::wire::{Event, Shard, SpooledEvent};

/// The state behind a lock. Hold the lock only for memory and database access, never across an `await`.
#[derive(Debug)]
pub struct SharedState(Mutex<DaemonState>);

/// The state itself.
#[derive(Debug)]
pub struct DaemonState {
    /// Decides what to ban, and keeps the claims of all hosts.
    pub fleet: Controller,
    /// Events from the spool on their way to the broker.
    pub outbox: Outbox,
    /// fail2ban's database.
    pub database: Database,
    /// Maps the name of a fail2ban action to its jail.
    pub action_names: ActionNames,
    /// Accepts or rejects messages.
    pub guard: Guard,
    /// Counts rejected messages by reason.
    pub rejections: RejectCounters,
    store: Store,
    warnings: RateLimitedLog,
    /// The rate-limited log of messages and their effects.
    pub inbound: InboundLog,
}

impl SharedState {
    /// The state of a daemon that starts.
    #[must_use]
    pub fn new(
        fleet: Controller,
        guard: Guard,
        outbox: Outbox,
        database: Database,
        store: Store,
    ) -> Self {
        let state = DaemonState {
            fleet,
            outbox,
            database,
            action_names: ActionNames::default(),
            guard,
            rejections: RejectCounters::default(),
            store,
            warnings: RateLimitedLog::default(),
            inbound: InboundLog::default(),
        };
        Self(Mutex::new(state))
    }

    /// Locks the state. A panic elsewhere does not poison the lock.
    pub fn lock(&self) -> MutexGuard<'_, DaemonState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The parts of the state that decide which event of the spool is published.
struct LocalClassifier<'a> {
    fleet: &'a mut Controller,
    database: &'a mut Database,
    guard: &'a Guard,
    action_names: &'a mut ActionNames,
}

impl LocalClassifier<'_> {
    /// The event to publish for a spooled event, if any. The error is empty while the jails of an action are unknown.
    fn classify(&mut self, spooled: &SpooledEvent, now: i64) -> Result<Option<Event>, String> {
        let Self { fleet, database, guard, action_names } = self;
        // While the jails are unknown, their actions are unknown, too: treat the name as the name of a jail.
        let exists = fleet.known_jails().is_none_or(|jails| jails.contains(&spooled.jail));
        let resolved =
            action_names.resolve(&spooled.jail, exists, |jail| database.has_ban(jail, spooled));
        let jail = match resolved {
            Resolved::Jail(jail) => jail,
            Resolved::ActionsNeeded => return Err(String::new()),
        };
        if !guard.sharing.includes(&jail) {
            return Ok(None);
        }
        let spooled = &SpooledEvent { jail, ..spooled.clone() };
        let event = fleet.on_local_event(spooled, || database.row_of(spooled), now);
        event.map_err(|error| unreadable(&error))
    }
}

impl DaemonState {
    /// Reads the spool. Do this before acting on peers' claims, so that local detections take precedence (R10).
    pub fn drain_spool(&mut self) {
        let now = now_millis();
        let Self { fleet, database, guard, action_names, .. } = self;
        let mut classifier = LocalClassifier { fleet, database, guard, action_names };
        let warnings = match self.outbox.scan(&mut |spooled| classifier.classify(spooled, now)) {
            Ok(warnings) => warnings,
            Err(error) => vec![format!("cannot read the spool: {error}")],
        };
        let fleet = &self.fleet;
        self.outbox.release_persisted(|_, event| fleet.is_unpersisted(event));
        // An empty warning means that the event waits for action names from fail2ban.
        for warning in warnings.iter().filter(|warning| !warning.is_empty()) {
            self.warn("spool", warning);
        }
    }

    /// Persists records. If that fails (a full disk), the controller acts from memory and retries (R20).
    pub fn save(&mut self, changes: &[Record]) {
        let result: Result<(), Error> = self.store.save(changes);
        self.fleet.on_persisted(result.is_ok(), now_millis());
        if let Err(error) = result {
            self.warn("store", &error.to_string());
        }
    }

    /// Reserves stamps on disk ahead of their use, so that a crash cannot reuse one. On a full disk, stamps are used
    /// without reservation.
    pub fn reserve_stamps(&mut self) {
        let Some(stamp) = self.fleet.stamp_to_reserve(now_millis()) else { return };
        self.save_stamp(stamp);
    }

    /// Ends the reservation at the last stamp in use, when the daemon stops.
    pub fn release_stamps(&mut self) {
        self.save_stamp(self.fleet.last_own_stamp());
    }

    fn save_stamp(&mut self, stamp: i64) {
        match self.store.save(&[Record::Stamp(stamp)]) {
            Ok(()) => self.fleet.on_stamp_reserved(stamp),
            Err(error) => self.warn("store", &error.to_string()),
        }
    }

    /// The former names and topics of this host under which the broker may still retain messages.
    #[must_use]
    pub fn former(&self) -> Vec<Former> {
        self.store.former().unwrap_or_default()
    }

    /// Drops a former name: the broker retains nothing under it, or another host has it.
    pub fn forget_former(&mut self, former: &Former) {
        if let Err(error) = self.store.forget_former(former) {
            self.warn("store", &error.to_string());
        }
    }

    /// Draws and saves a new client ID; returns the former one and the new one.
    ///
    /// # Errors
    /// [`Error::Store`], or the system provides no random numbers.
    pub fn draw_client_id(&mut self) -> Result<(String, String), Error> {
        let Some(former) = self.store.identity()? else {
            return Err(Error::Failed("the state database has no client ID".to_owned()));
        };
        let identity = Identity::draw(former.provenance.clone())?;
        self.store.adopt(&identity, &[])?;
        Ok((former.client_id(), identity.client_id()))
    }

    /// Persists some unsaved records without executing other effects. Returns whether more may remain.
    pub fn save_next(&mut self) -> bool {
        match self.fleet.next_effect(now_millis()) {
            Effect::Persist(changes) => self.save(&changes),
            Effect::Continue => {}
            _ => return false,
        }
        true
    }

    /// Removes from a shard the bans of unbannable addresses (R1) and of jails that are not shared. Bans of jails that
    /// are not shared are normal, so they do not count as rejections.
    pub fn drop_unshared(&mut self, shard: &mut Shard) {
        let Self { guard, rejections, .. } = self;
        shard.bans.retain(|ban| {
            let is_bannable = is_bannable(ban.address.ip());
            if !is_bannable {
                rejections.count(RejectReason::Unbannable);
            }
            is_bannable && guard.sharing.includes(&ban.jail)
        });
        shard.unbans.retain(|unban| match &unban.scope {
            JailScope::All => true,
            JailScope::One(jail) => guard.sharing.includes(jail),
        });
    }

    /// Counts a rejection, and warns.
    pub fn record_rejection(&mut self, reason: RejectReason, text: &str) {
        self.record_rejection_of("", reason, text);
    }

    /// Counts the rejection of a message of one host, and warns. The rate limit of the log is per host (R21).
    pub fn record_rejection_of(&mut self, host: &str, reason: RejectReason, text: &str) {
        self.rejections.count(reason);
        if let Some(line) = self.warnings.line(reason.name(), host, text, Instant::now()) {
            log::warn(line);
        }
    }

    /// Logs how many lines were suppressed.
    pub fn flush_suppressed_warnings(&mut self) {
        self.warnings.take_suppressed(Instant::now()).iter().for_each(log::warn);
        self.inbound.flush();
        for row in self.database.take_unreadable() {
            self.warn("database row", &row);
        }
    }

    /// Warns; lines of the same kind are rate-limited.
    pub fn warn(&mut self, kind: &'static str, text: &str) {
        if let Some(line) = self.warnings.line(kind, "", text, Instant::now()) {
            log::warn(line);
        }
    }
}
