//! What a ban means across the fleet. Pure: words go in, steps for fail2ban and words for the fleet come
//! out, the time is passed in. The daemon and the simulation drive the same [`Fleet`].
//!
//! Each rule has its file:
//!
//! - `claims`: what each other host said last of an address; `peers`: what is kept of each host, and
//!   `claim_index`, where its claims are found.
//! - [`own`]: what this host itself detected and holds.
//! - `absent`: what counts while fail2ban is away or has not made its jails.
//! - [`marks`]: what was imported for others, and whether it still is what is held.
//! - [`lifts`]: what this host's operator freed stays free.
//! - `tombstones`: what was freed for the whole fleet stays free everywhere; `fleet_unbans`: how it is applied.
//! - [`limits`]: which tables are full.
//! - [`reconcile`]: the decision on one address. [`lease`]: when an import is prolonged.
//! - [`tell`]: which events are sent, and the stamps. [`snapshot`]: which parts are published when.
//! - `acks`: acknowledges the bans that another host's operator made.
//! - [`branches`]: whose snapshots are asked for when.
//! - [`look`]: what fail2ban showed, and whether it is worth another look.
//! - `invariants`: what holds of these tables after every step.
//! - [`remember`]: what has to outlive a restart; `dirty`: what of it is not on disk yet. [`provenance`]: what of
//!   it still counts elsewhere.
//!
//! [`Fleet`] keeps them: `hear` takes the others' words, `seen` what fail2ban shows, `work` says what to
//! do next.

mod absent;
mod acks;
pub mod branches;
mod claim_index;
pub mod claims;
mod dirty;
mod fleet_unbans;
mod hear;
mod invariants;
pub mod lease;
pub mod lifts;
pub mod limits;
pub mod look;
pub mod marks;
pub mod own;
mod peers;
pub mod provenance;
mod queue;
pub mod reconcile;
pub mod remember;
mod seen;
mod shown;
pub mod snapshot;
pub mod tell;
mod tombstones;
pub mod work;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use acks::AckTable;
use branches::{Asking, Branches};
use claims::{Counts, Said};
use dirty::DirtyRecords;
pub use hear::Trouble;
use lifts::Lifts;
use limits::Limits;
use look::{Case, Detection, Local, Pulse, Sweep};
use peers::{PeerState, Peers};
use queue::Queue;
pub use remember::{Change, Remembered};
use snapshot::{Publication, Snapshots};
use tell::Teller;
use tombstones::Tombstones;
pub use tombstones::is_outlived;

use crate::wire::{Address, Host, Jail, Pardon, Presence};

/// How often words that no longer matter are forgotten; in milliseconds.
const TIDY: i64 = 30_000;

/// An address in a jail.
pub type Key = (Jail, Address);

/// How long things take. The simulation lives faster.
#[derive(Clone, Debug)]
pub struct Pace {
    /// After a ban's end its origin has so long to say so, in seconds.
    pub end_slack: i64,
    /// A ban of unknown length lasts so long, in seconds, unless its origin says something.
    pub unknown: i64,
    /// fail2ban restores its bans for so long after its start, in seconds.
    pub grace: i64,
    /// What a host says twice of a ban's start may differ by so much, in seconds.
    pub start_slack: i64,
    /// A ban that ends within so many seconds is left to end by itself.
    pub soon: i64,
    /// For how long fleet unbans are kept, in seconds; and for how long where no host bans the address. No
    /// two clocks differ by as much as the latter.
    pub keep_unbans: i64,
    #[allow(missing_docs)]
    pub tombstone_idle: i64,
    /// How often fail2ban is asked whether there is anything to ask, in milliseconds.
    pub ask: i64,
    /// How long what fail2ban showed is good enough to act upon, in milliseconds.
    pub fresh: i64,
    /// How long after a change its part is published, in milliseconds.
    pub change: i64,
    /// How often a snapshot is published again: once to twice this, in milliseconds.
    pub refresh: i64,
    /// How often old parts of its own make a host publish anew, in milliseconds.
    pub echo: i64,
    /// How often what a host says of itself may change by its counts alone, in milliseconds.
    pub counts: i64,
    /// How often by its acknowledgements alone, in milliseconds.
    pub ack_interval: i64,
    /// How many bytes of parts a second, and at once.
    pub bytes: usize,
    #[allow(missing_docs)]
    pub burst: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            end_slack: 600,
            unknown: 86_400,
            grace: 60,
            start_slack: 2,
            soon: 3,
            keep_unbans: 30 * 86_400,
            tombstone_idle: 3_600,
            ask: 2_000,
            fresh: 2_000,
            change: 2_000,
            refresh: 300_000,
            echo: 5_000,
            counts: 60_000,
            ack_interval: 3_000,
            bytes: 4 * 1024,
            burst: 64 * 1024,
        }
    }
}

/// Everything that is known of the other hosts' bans and of this host's, and what was made of it.
#[derive(Debug)]
pub struct Fleet {
    me: Host,
    pace: Pace,
    jails: BTreeMap<Jail, Local>,
    /// Who took back the last claim on an address.
    unsaid: BTreeMap<Key, Host>,
    /// The jails that fail2ban has, once it has said so.
    names: Option<BTreeSet<Jail>>,
    /// When that changed, in milliseconds.
    named: i64,
    /// Jails that it has rows of in its database, and may still have to make; and whose rows last.
    awaited: BTreeMap<Jail, BTreeSet<Address>>,
    peers: Peers,
    counts: Counts,
    limits: Limits,
    lifts: Lifts,
    tombstones: Tombstones,
    /// The next turn is that of fleet unbans, not of bans; and the garbage collection goes through them.
    tombstones_turn: bool,
    collecting: bool,
    /// Detections that only this host's own events tell of; some may be over.
    echoes: BTreeSet<Key>,
    /// Since when the link to the broker has been up, in milliseconds.
    connected_since: Option<i64>,
    teller: Teller,
    snapshots: Snapshots,
    branches: Branches,
    /// What was said of this host itself, or would have been again, and when.
    presence: Option<(Presence, i64)>,
    /// The broker has another presence of this host, or none: it is published again.
    presence_lost: bool,
    acks: AckTable,
    /// What is not on disk yet.
    dirty: DirtyRecords,
    /// Addresses that something is to be done about.
    queue: Queue,
    /// Jails that are still to be looked at in this sweep.
    looks: BTreeSet<Jail>,
    sweep: Sweep,
    orders: VecDeque<work::Order>,
    doing: Option<work::Order>,
    pulse: Option<Pulse>,
    /// Addresses that were looked at by themselves just now.
    glanced: BTreeMap<Jail, Vec<Address>>,
    /// The stamp that this sweep stands for, and that of the last one that was finished.
    round: i64,
    as_of: i64,
    /// The greatest stamp that this host took before and had forgotten: what was read before it was heard
    /// of is not published.
    forgotten: i64,
    turn: u64,
    /// When the last round began, in milliseconds.
    begun: i64,
    tidied: i64,
}

impl Fleet {
    /// Takes up what an earlier process remembered.
    #[must_use]
    pub fn new(me: Host, pace: Pace, remembered: Remembered) -> Self {
        let mut fleet = Self {
            teller: Teller::new(me.clone(), remembered.stamp),
            me,
            pace,
            jails: BTreeMap::new(),
            unsaid: BTreeMap::new(),
            names: None,
            named: 0,
            awaited: BTreeMap::new(),
            peers: Peers::default(),
            counts: Counts::default(),
            limits: Limits::default(),
            lifts: Lifts::default(),
            tombstones: Tombstones::default(),
            tombstones_turn: true,
            collecting: false,
            echoes: BTreeSet::new(),
            connected_since: None,
            snapshots: Snapshots::new(),
            branches: Branches::default(),
            presence: None,
            presence_lost: false,
            acks: AckTable::default(),
            dirty: DirtyRecords::default(),
            queue: Queue::default(),
            looks: BTreeSet::new(),
            sweep: Sweep::default(),
            orders: VecDeque::new(),
            doing: None,
            pulse: None,
            glanced: BTreeMap::new(),
            round: 0,
            as_of: 0,
            forgotten: 0,
            turn: 0,
            begun: 0,
            tidied: 0,
        };
        fleet.take_up(remembered);
        fleet
    }

    /// **Marks keep the claims**: a restart without a broker still knows what it holds and until when.
    fn take_up(&mut self, remembered: Remembered) {
        for ((key, host), lift) in remembered.lifts {
            self.lifts.lift(&key, &host, lift);
        }
        for (pardon, obeyed) in remembered.unbans {
            self.tombstones.restore(pardon, obeyed);
        }
        for ((key, host), since) in remembered.scripts {
            self.upsert_claim(&key, hear::script(host, since), since * 1000);
        }
        for ((jail, address), ban) in remembered.detected {
            let told = &mut self.jails.entry(jail).or_default().told;
            told.insert(address, Detection { ban, turn: 0, kept: true, echo: None });
        }
        for (key, mark) in remembered.marks {
            // What scripts said is remembered by itself.
            for claim in mark.claims.iter().filter(|claim| claim.stamp > 0) {
                let (host, stamp, ban) = (claim.host.clone(), claim.stamp, Some(claim.ban));
                let said = Said { host, stamp, ban, unbans: claim.unbans.clone() };
                self.upsert_claim(&key, said, mark.asked * 1000);
            }
            let case = self.jails.entry(key.0.clone()).or_default().cases.entry(key.1).or_default();
            case.mark = Some(Box::new(mark));
        }
    }

    /// This host's name.
    #[must_use]
    pub fn me(&self) -> &Host {
        &self.me
    }

    /// The jails that fail2ban has, once it has said so.
    #[must_use]
    pub fn names(&self) -> Option<&BTreeSet<Jail>> {
        self.names.as_ref()
    }

    /// The link to the broker is up.
    pub fn connected(&mut self, now: i64) {
        self.connected_since = Some(now);
        // Whose bans are held here, perhaps since before a restart, may be forgotten on the broker later.
        let peers: Vec<Host> = self.peers.iter().map(|(host, _)| host.clone()).collect();
        for host in peers {
            self.branches.found(&host, now);
        }
        self.branches.connected(&self.me, now);
        self.snapshots.connected(&self.me, now, &self.pace);
        self.presence = None;
    }

    /// The link to the broker is down.
    pub fn lost(&mut self) {
        self.connected_since = None;
        self.branches.lost();
    }

    /// What is to be subscribed to now, if anything, as filters below the fleet's retained branch.
    pub fn branch(&mut self, now: i64) -> Option<Vec<String>> {
        let (host, again) = match self.branches.next(now)? {
            Asking::First(hosts) => {
                return Some(hosts.iter().map(|host| format!("state/{host}/0")).collect());
            }
            Asking::All { host, again } => (host, again),
        };
        let mut topics = vec![format!("state/{host}/+")];
        if again {
            let wanted = self.peers.get(&host).map_or_else(|| vec![0], PeerState::missing_shards);
            topics.extend(wanted.iter().map(|number| format!("state/{host}/{number}")));
        }
        Some(topics)
    }

    /// What of this host's snapshot is to be published now.
    pub fn publications(&mut self, now: i64) -> Vec<Publication> {
        // Before fail2ban or its database was read, nothing is known, and nothing said; and nothing that
        // others would take for old.
        if self.as_of <= self.forgotten {
            return Vec::new();
        }
        if self.snapshots.is_refreshed(now) {
            self.presence = None;
        }
        let jails = &self.jails;
        let own = || {
            let mut own = Vec::new();
            for (jail, local) in jails {
                own.extend(
                    local.own.iter().map(|(address, own)| ((jail.clone(), *address), own.ban)),
                );
            }
            own
        };
        let unbans = || self.tombstones.applied().collect();
        self.snapshots.due(&self.me, own, unbans, self.as_of, now, &self.pace)
    }

    /// The import of an address, if it is one.
    #[must_use]
    pub fn mark(&self, key: &Key) -> Option<&marks::Mark> {
        self.jails.get(&key.0)?.cases.get(&key.1)?.mark.as_deref()
    }

    /// Whether a fleet unban is known here.
    #[must_use]
    pub fn knows_unban(&self, pardon: &Pardon) -> bool {
        self.tombstones.knows(pardon)
    }

    fn change(&mut self, change: Change) {
        self.dirty.put(change);
    }

    /// An address of which nothing is known needs no decision.
    fn queue(&mut self, key: &Key) {
        let case = self.jails.get(&key.0).and_then(|local| local.cases.get(&key.1));
        if case.is_none_or(|case| case.queued.is_some()) {
            return;
        }
        // Hosts that run the scripts have one line together: anybody can name more of them.
        let host = self.reporter(key).filter(|host| self.peers.contains(host)).cloned();
        let case = self.jails.get_mut(&key.0).and_then(|local| local.cases.get_mut(&key.1));
        if let Some(case) = case {
            case.queued = Some(self.queue.push(host, key.clone()));
        }
    }

    /// Forgets an address of which nothing is known any more.
    fn drop_if_empty(&mut self, key: &Key) {
        let Some(local) = self.jails.get_mut(&key.0) else { return };
        if local.cases.get(&key.1).is_some_and(|case| case.is_empty())
            && let Some(ticket) = local.cases.remove(&key.1).and_then(|case| case.queued)
        {
            self.queue.remove(ticket);
        }
    }

    /// Whose claims on an address count.
    fn claimants<'a>(
        &'a self,
        key: &'a Key,
        local: &'a Local,
        case: &'a Case,
        now: i64,
    ) -> impl Iterator<Item = &'a Said> {
        let bantime = local.bantime();
        case.said.iter().filter(move |said| {
            let lifted = |ban| self.lifts.covers(key, &said.host, ban, &self.pace);
            said.lasts(bantime, now, &self.pace)
                && !self.tombstones.voids(key, said, &self.pace)
                && !said.ban.is_some_and(lifted)
        })
    }

    /// Whose word it is that an address is banned, or else that it is free.
    #[must_use]
    pub fn reporter(&self, key: &Key) -> Option<&Host> {
        let case = self.jails.get(&key.0)?.cases.get(&key.1)?;
        let last = case.said.iter().max_by_key(|said| (said.ban.is_some(), said.stamp));
        let of_mark = || case.mark.as_ref()?.claims.last().map(|claim| &claim.host);
        last.map(|said| &said.host).or_else(|| self.unsaid.get(key)).or_else(of_mark)
    }
}

fn secs(now: i64) -> i64 {
    now.div_euclid(1000)
}

#[cfg(test)]
mod tests;
