//! What the daemon knows, shared between the part that listens to the broker and the part that
//! talks to fail2ban.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use crate::daemon::former::Former;
use crate::error::Error;
use crate::fail2ban::action_names::{ActionNames, Resolved};
use crate::fail2ban::database::{Database, Row};
use crate::fleet::work::Step;
use crate::fleet::{Change, Fleet};
use crate::guard::{Guard, Refusal, Refusals, is_bannable};
use crate::journal::{self, Inbound, Limited};
use crate::outbox::{Outbox, millis};
use crate::store::{Identity, Store};
use crate::wire::{Jail, Part, Scope, Told};

/// Guarded by a lock that is only ever held for as long as it takes to look or to write down.
#[derive(Debug)]
pub struct Memory(Mutex<Known>);

/// What is known.
#[derive(Debug)]
pub struct Known {
    /// The fleet's bans, and this host's.
    pub fleet: Fleet,
    /// What fail2ban told, on its way to the broker.
    pub outbox: Outbox,
    /// fail2ban's own memory of its bans.
    pub database: Database,
    /// Which jail an action of fail2ban speaks of.
    pub action_names: ActionNames,
    /// Judges the fleet's words.
    pub guard: Guard,
    /// What of the fleet's words was refused.
    pub refused: Refusals,
    store: Store,
    limited: Limited,
    /// The lines about what comes, and what is done for it.
    pub inbound: Inbound,
}

impl Memory {
    /// Puts together what is known.
    #[must_use]
    pub fn new(
        fleet: Fleet,
        guard: Guard,
        outbox: Outbox,
        database: Database,
        store: Store,
    ) -> Self {
        let (refused, limited) = (Refusals::default(), Limited::default());
        let inbound = Inbound::default();
        let action_names = ActionNames::default();
        let known = Known {
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
    pub fn know(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Reads the spool: so that what was detected here is known before the words of others are acted
    /// upon.
    pub fn scan(&mut self) {
        let now = millis(SystemTime::now());
        let Self { fleet, database, guard, action_names, .. } = self;
        let mut decide = |told: &Told| {
            // Before fail2ban has said which jails it has, nothing is known of their actions.
            let exists = fleet.names().is_none_or(|jails| jails.contains(&told.jail));
            let begun = |row: &Row| (told.time - 1..=told.time + 1).contains(&row.timeofban);
            let has_ban = |jail: &Jail| {
                let rows = database.rows(jail, &[told.address]).unwrap_or_default();
                rows.get(told.address).is_some_and(begun)
            };
            let jail = match action_names.resolve(&told.jail, exists, has_ban) {
                Resolved::Jail(jail) => jail,
                Resolved::Ask => return Err(String::new()),
            };
            let told = &Told { jail, ..told.clone() };
            if !guard.sharing.has(&told.jail) {
                return Ok(None);
            }
            let row = || -> rusqlite::Result<_> {
                let rows = database.rows(&told.jail, &[told.address])?;
                Ok(database.is_kept().then(|| rows.get(told.address).copied()))
            };
            let busy = |error| format!("cannot read fail2ban's database: {error}");
            fleet.tell(told, row, now).map_err(busy)
        };
        let warnings = match self.outbox.scan(&mut decide) {
            Ok(warnings) => warnings,
            Err(error) => vec![format!("cannot read the spool: {error}")],
        };
        let fleet = &self.fleet;
        self.outbox.settle(|_, event| fleet.is_unwritten(event));
        // What only waits for an answer of fail2ban is no fault.
        for warning in warnings.iter().filter(|warning| !warning.is_empty()) {
            self.warn("spool", warning);
        }
    }

    /// Writes down what has changed. Where that fails (a full disk), the bans are made all the same, and
    /// it is tried again.
    pub fn save(&mut self, changes: &[Change]) {
        let result: Result<(), Error> = self.store.save(changes);
        self.fleet.saved(result.is_ok(), millis(SystemTime::now()));
        if let Err(error) = result {
            self.warn("store", &error.to_string());
        }
    }

    /// Reserves stamps on disk ahead of their use. On a full disk they are used all the same.
    pub fn reserve_stamps(&mut self) {
        let Some(stamp) = self.fleet.stamp_to_reserve(millis(SystemTime::now())) else { return };
        self.save_stamp(stamp);
    }

    /// The last stamp was taken: nothing ahead of it is reserved any more.
    pub fn release_stamps(&mut self) {
        self.save_stamp(self.fleet.last_own_stamp());
    }

    fn save_stamp(&mut self, stamp: i64) {
        match self.store.save(&[Change::Stamp(stamp)]) {
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
            return Err(Error::Undone("the state has no client ID".to_owned()));
        };
        let identity = Identity::draw(former.provenance.clone())?;
        self.store.adopt(&identity, &[])?;
        Ok((former.client_id(), identity.client_id()))
    }

    /// Writes down some of what is not on disk yet, where nothing else can be done. Answers whether there may be
    /// more.
    pub fn save_next(&mut self) -> bool {
        match self.fleet.next(millis(SystemTime::now())) {
            Step::Save(changes) => self.save(&changes),
            Step::Continue => {}
            _ => return false,
        }
        true
    }

    /// Takes from a part of a snapshot what no host may ban, and what is of jails that do not take part
    /// here: that is as it should be, and comes again every few minutes.
    pub fn keep_shared(&mut self, part: &mut Part) {
        let Self { guard, refused, .. } = self;
        part.bans.retain(|ban| {
            let bannable = is_bannable(ban.address.ip());
            if !bannable {
                refused.count(Refusal::Unbannable);
            }
            bannable && guard.sharing.has(&ban.jail)
        });
        part.unbans.retain(|unban| match &unban.scope {
            Scope::Every => true,
            Scope::One(jail) => guard.sharing.has(jail),
        });
    }

    /// Refuses something of the fleet's: counts it, and warns.
    pub fn refuse(&mut self, refusal: Refusal, text: &str) {
        self.refuse_of("", refusal, text);
    }

    /// Refuses what one host sent: a flood of one host takes no other's lines.
    pub fn refuse_of(&mut self, host: &str, refusal: Refusal, text: &str) {
        self.refused.count(refusal);
        if let Some(line) = self.limited.line(refusal.name(), host, text, Instant::now()) {
            journal::warn(line);
        }
    }

    /// Says how many warnings were held back.
    pub fn settle(&mut self) {
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
