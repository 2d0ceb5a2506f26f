//! What the daemon knows, shared between the part that listens to the broker and the part that
//! talks to fail2ban.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::clock::now_millis;
use crate::daemon::former::Former;
use crate::error::Error;
use crate::fail2ban::action_names::{ActionNames, Resolved};
use crate::fail2ban::database::{BipsRow, Database};
use crate::fleet::work::Effect;
use crate::fleet::{Controller, Record};
use crate::guard::{Guard, RejectCounters, RejectReason, is_bannable};
use crate::journal::{self, InboundLog, RateLimitedLog};
use crate::outbox::Outbox;
use crate::store::{Identity, Store};
use crate::wire::{Jail, JailScope, Shard, SpooledEvent};

/// Guarded by a lock that is only ever held for as long as it takes to look or to write down.
#[derive(Debug)]
pub struct SharedState(Mutex<DaemonState>);

/// What is known.
#[derive(Debug)]
pub struct DaemonState {
    /// The fleet's bans, and this host's.
    pub fleet: Controller,
    /// What fail2ban told, on its way to the broker.
    pub outbox: Outbox,
    /// fail2ban's own memory of its bans.
    pub database: Database,
    /// Which jail an action of fail2ban speaks of.
    pub action_names: ActionNames,
    /// Judges the fleet's words.
    pub guard: Guard,
    /// What of the fleet's words was refused.
    pub refused: RejectCounters,
    store: Store,
    limited: RateLimitedLog,
    /// The lines about what comes, and what is done for it.
    pub inbound: InboundLog,
}

impl SharedState {
    /// Puts together what is known.
    #[must_use]
    pub fn new(
        fleet: Controller,
        guard: Guard,
        outbox: Outbox,
        database: Database,
        store: Store,
    ) -> Self {
        let (refused, limited) = (RejectCounters::default(), RateLimitedLog::default());
        let inbound = InboundLog::default();
        let action_names = ActionNames::default();
        let known = DaemonState {
            fleet,
            outbox,
            database,
            action_names,
            guard,
            refused,
            store,
            limited,
            inbound,
        };
        Self(Mutex::new(known))
    }

    /// Looks at it, or changes it.
    pub fn lock(&self) -> MutexGuard<'_, DaemonState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DaemonState {
    /// Reads the spool: so that what was detected here is known before the words of others are acted
    /// upon.
    pub fn drain_spool(&mut self) {
        let now = now_millis();
        let Self { fleet, database, guard, action_names, .. } = self;
        let mut decide = |told: &SpooledEvent| {
            // Before fail2ban has said which jails it has, nothing is known of their actions.
            let exists = fleet.known_jails().is_none_or(|jails| jails.contains(&told.jail));
            let begun = |row: &BipsRow| (told.time - 1..=told.time + 1).contains(&row.timeofban);
            let has_ban = |jail: &Jail| {
                let rows = database.rows(jail, &[told.address]).unwrap_or_default();
                rows.get(told.address).is_some_and(begun)
            };
            let jail = match action_names.resolve(&told.jail, exists, has_ban) {
                Resolved::Jail(jail) => jail,
                Resolved::Ask => return Err(String::new()),
            };
            let told = &SpooledEvent { jail, ..told.clone() };
            if !guard.sharing.includes(&told.jail) {
                return Ok(None);
            }
            let row = || -> rusqlite::Result<_> {
                let rows = database.rows(&told.jail, &[told.address])?;
                Ok(database.exists().then(|| rows.get(told.address).copied()))
            };
            let busy = |error| format!("cannot read fail2ban's database: {error}");
            fleet.on_local_event(told, row, now).map_err(busy)
        };
        let warnings = match self.outbox.scan(&mut decide) {
            Ok(warnings) => warnings,
            Err(error) => vec![format!("cannot read the spool: {error}")],
        };
        let fleet = &self.fleet;
        self.outbox.release_persisted(|_, event| fleet.is_unpersisted(event));
        // What only waits for an answer of fail2ban is no fault.
        for warning in warnings.iter().filter(|warning| !warning.is_empty()) {
            self.warn("spool", warning);
        }
    }

    /// Writes down what has changed. Where that fails (a full disk), the bans are made all the same, and
    /// it is tried again.
    pub fn save(&mut self, changes: &[Record]) {
        let result: Result<(), Error> = self.store.save(changes);
        self.fleet.on_persisted(result.is_ok(), now_millis());
        if let Err(error) = result {
            self.warn("store", &error.to_string());
        }
    }

    /// Reserves stamps on disk ahead of their use. On a full disk they are used all the same.
    pub fn reserve_stamps(&mut self) {
        let Some(stamp) = self.fleet.stamp_to_reserve(now_millis()) else { return };
        self.save_stamp(stamp);
    }

    /// The last stamp was taken: nothing ahead of it is reserved any more.
    pub fn release_stamps(&mut self) {
        self.save_stamp(self.fleet.last_own_stamp());
    }

    fn save_stamp(&mut self, stamp: i64) {
        match self.store.save(&[Record::Stamp(stamp)]) {
            Ok(()) => self.fleet.on_stamp_reserved(stamp),
            Err(error) => self.warn("store", &error.to_string()),
        }
    }

    /// The names and topics that this host no longer has, and that the broker may keep something of.
    #[must_use]
    pub fn former(&self) -> Vec<Former> {
        self.store.former().unwrap_or_default()
    }

    /// The broker keeps nothing of a former name any more, or it is another host's.
    pub fn forget_former(&mut self, former: &Former) {
        if let Err(error) = self.store.forget_former(former) {
            self.warn("store", &error.to_string());
        }
    }

    /// Draws another client ID; answers the former one and the new one.
    ///
    /// # Errors
    /// [`Error::Store`], or the system has no random numbers.
    pub fn draw_client_id(&mut self) -> Result<(String, String), Error> {
        let Some(former) = self.store.identity()? else {
            return Err(Error::Undone("the state database has no client ID".to_owned()));
        };
        let identity = Identity::draw(former.provenance.clone())?;
        self.store.adopt(&identity, &[])?;
        Ok((former.client_id(), identity.client_id()))
    }

    /// Writes down some of what is not on disk yet, where nothing else can be done. Answers whether there may be
    /// more.
    pub fn save_next(&mut self) -> bool {
        match self.fleet.next_effect(now_millis()) {
            Effect::Persist(changes) => self.save(&changes),
            Effect::Continue => {}
            _ => return false,
        }
        true
    }

    /// Takes from a part of a snapshot what no host may ban, and what is of jails that do not take part
    /// here: that is as it should be, and comes again every few minutes.
    pub fn drop_unshared(&mut self, part: &mut Shard) {
        let Self { guard, refused, .. } = self;
        part.bans.retain(|ban| {
            let bannable = is_bannable(ban.address.ip());
            if !bannable {
                refused.count(RejectReason::Unbannable);
            }
            bannable && guard.sharing.includes(&ban.jail)
        });
        part.unbans.retain(|unban| match &unban.scope {
            JailScope::All => true,
            JailScope::One(jail) => guard.sharing.includes(jail),
        });
    }

    /// Refuses something of the fleet's: counts it, and warns.
    pub fn record_rejection(&mut self, refusal: RejectReason, text: &str) {
        self.record_rejection_of("", refusal, text);
    }

    /// Refuses what one host sent: a flood of one host takes no other's lines.
    pub fn record_rejection_of(&mut self, host: &str, refusal: RejectReason, text: &str) {
        self.refused.count(refusal);
        if let Some(line) = self.limited.line(refusal.name(), host, text, Instant::now()) {
            journal::warn(line);
        }
    }

    /// Says how many warnings were held back.
    pub fn flush_suppressed_warnings(&mut self) {
        self.limited.held_back(Instant::now()).iter().for_each(journal::warn);
        self.inbound.settle();
        for row in self.database.take_unreadable() {
            self.warn("database row", &row);
        }
    }

    /// Warns, but not again and again of the same kind of thing.
    pub fn warn(&mut self, kind: &'static str, text: &str) {
        if let Some(line) = self.limited.line(kind, "", text, Instant::now()) {
            journal::warn(line);
        }
    }
}
