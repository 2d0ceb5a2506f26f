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
use branches::{Request, SubscriptionScheduler};
use claims::{Claim, Counts};
use dirty::DirtyRecords;
pub use hear::ShardError;
use lifts::Overrides;
use limits::ReachedLimits;
use look::{Entry, Heartbeat, JailState, PendingDetection, Scan};
use peers::{PeerState, Peers};
use queue::FairQueue;
pub use remember::{PersistedState, Record};
use snapshot::{RetainedShard, SnapshotPublisher};
use tell::Sequencer;
use tombstones::Tombstones;
pub use tombstones::is_outlived;

use crate::wire::{Address, FleetUnban, HostName, Jail, Presence};

/// How often words that no longer matter are forgotten; in milliseconds.
const GC_INTERVAL: i64 = 30_000;

/// An address in a jail.
pub type BanKey = (Jail, Address);

/// How long things take. The simulation lives faster.
#[derive(Clone, Debug)]
pub struct Timing {
    /// After a ban's end its origin has so long to say so, in seconds.
    pub expiry_slack: i64,
    /// A ban of unknown length lasts so long, in seconds, unless its origin says something.
    pub default_bantime: i64,
    /// fail2ban restores its bans for so long after its start, in seconds.
    pub restore_grace: i64,
    /// What a host says twice of a ban's start may differ by so much, in seconds.
    pub start_tolerance: i64,
    /// A ban that ends within so many seconds is left to end by itself.
    pub expiry_guard: i64,
    /// For how long fleet unbans are kept, in seconds; and for how long where no host bans the address. No
    /// two clocks differ by as much as the latter.
    pub tombstone_ttl: i64,
    #[allow(missing_docs)]
    pub tombstone_idle: i64,
    /// How often fail2ban is asked whether there is anything to ask, in milliseconds.
    pub poll_interval: i64,
    /// How long what fail2ban showed is good enough to act upon, in milliseconds.
    pub observation_ttl: i64,
    /// How long after a change its part is published, in milliseconds.
    pub publish_delay: i64,
    /// How often a snapshot is published again: once to twice this, in milliseconds.
    pub refresh_interval: i64,
    /// How often old parts of its own make a host publish anew, in milliseconds.
    pub republish_cooldown: i64,
    /// How often what a host says of itself may change by its counts alone, in milliseconds.
    pub status_interval: i64,
    /// How often by its acknowledgements alone, in milliseconds.
    pub ack_interval: i64,
    /// How many bytes of parts a second, and at once.
    pub publish_rate: usize,
    #[allow(missing_docs)]
    pub publish_burst: usize,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            expiry_slack: 600,
            default_bantime: 86_400,
            restore_grace: 60,
            start_tolerance: 2,
            expiry_guard: 3,
            tombstone_ttl: 30 * 86_400,
            tombstone_idle: 3_600,
            poll_interval: 2_000,
            observation_ttl: 2_000,
            publish_delay: 2_000,
            refresh_interval: 300_000,
            republish_cooldown: 5_000,
            status_interval: 60_000,
            ack_interval: 3_000,
            publish_rate: 4 * 1024,
            publish_burst: 64 * 1024,
        }
    }
}

/// Everything that is known of the other hosts' bans and of this host's, and what was made of it.
#[derive(Debug)]
pub struct Controller {
    me: HostName,
    timing: Timing,
    jails: BTreeMap<Jail, JailState>,
    /// Who took back the last claim on an address.
    last_releaser: BTreeMap<BanKey, HostName>,
    /// The jails that fail2ban has, once it has said so.
    known_jails: Option<BTreeSet<Jail>>,
    /// When that changed, in milliseconds.
    jails_changed_at: i64,
    /// Jails that it has rows of in its database, and may still have to make; and whose rows last.
    expected_jails: BTreeMap<Jail, BTreeSet<Address>>,
    peers: Peers,
    counts: Counts,
    limits: ReachedLimits,
    overrides: Overrides,
    tombstones: Tombstones,
    /// The next turn is that of fleet unbans, not of bans; and the garbage collection goes through them.
    is_tombstones_turn: bool,
    collecting: bool,
    /// Detections that only this host's own events tell of; some may be over.
    echoes: BTreeSet<BanKey>,
    /// Since when the link to the broker has been up, in milliseconds.
    connected_since: Option<i64>,
    sequencer: Sequencer,
    publisher: SnapshotPublisher,
    peer_sync: SubscriptionScheduler,
    /// What was said of this host itself, or would have been again, and when.
    presence: Option<(Presence, i64)>,
    /// The broker has another presence of this host, or none: it is published again.
    presence_lost: bool,
    acks: AckTable,
    /// What is not on disk yet.
    dirty: DirtyRecords,
    /// Addresses that something is to be done about.
    queue: FairQueue,
    /// Jails that are still to be looked at in this sweep.
    jails_to_observe: BTreeSet<Jail>,
    scan: Scan,
    pending: VecDeque<work::Pending>,
    in_flight: Option<work::Pending>,
    heartbeat: Option<Heartbeat>,
    /// Addresses that were looked at by themselves just now.
    spot_checked: BTreeMap<Jail, Vec<Address>>,
    /// The stamp that this sweep stands for, and that of the last one that was finished.
    scan_stamp: i64,
    observed_stamp: i64,
    /// The greatest stamp that this host took before and had forgotten: what was read before it was heard
    /// of is not published.
    publish_floor: i64,
    cycle: u64,
    /// When the last round began, in milliseconds.
    cycle_started_at: i64,
    last_gc: i64,
}

impl Controller {
    /// Takes up what an earlier process remembered.
    #[must_use]
    pub fn new(me: HostName, pace: Timing, remembered: PersistedState) -> Self {
        let mut fleet = Self {
            sequencer: Sequencer::new(me.clone(), remembered.stamp),
            me,
            timing: pace,
            jails: BTreeMap::new(),
            last_releaser: BTreeMap::new(),
            known_jails: None,
            jails_changed_at: 0,
            expected_jails: BTreeMap::new(),
            peers: Peers::default(),
            counts: Counts::default(),
            limits: ReachedLimits::default(),
            overrides: Overrides::default(),
            tombstones: Tombstones::default(),
            is_tombstones_turn: true,
            collecting: false,
            echoes: BTreeSet::new(),
            connected_since: None,
            publisher: SnapshotPublisher::new(),
            peer_sync: SubscriptionScheduler::default(),
            presence: None,
            presence_lost: false,
            acks: AckTable::default(),
            dirty: DirtyRecords::default(),
            queue: FairQueue::default(),
            jails_to_observe: BTreeSet::new(),
            scan: Scan::default(),
            pending: VecDeque::new(),
            in_flight: None,
            heartbeat: None,
            spot_checked: BTreeMap::new(),
            scan_stamp: 0,
            observed_stamp: 0,
            publish_floor: 0,
            cycle: 0,
            cycle_started_at: 0,
            last_gc: 0,
        };
        fleet.restore(remembered);
        fleet
    }

    /// **Marks keep the claims**: a restart without a broker still knows what it holds and until when.
    fn restore(&mut self, remembered: PersistedState) {
        for ((key, host), lift) in remembered.overrides {
            self.overrides.suppress(&key, &host, lift);
        }
        for (pardon, obeyed) in remembered.tombstones {
            self.tombstones.restore(pardon, obeyed);
        }
        for ((key, host), since) in remembered.legacy_claims {
            self.upsert_claim(&key, hear::legacy_claim(host, since), since * 1000);
        }
        for ((jail, address), ban) in remembered.pending_detections {
            let told = &mut self.jails.entry(jail).or_default().pending_detections;
            told.insert(address, PendingDetection { ban, cycle: 0, persisted: true, echo: None });
        }
        for (key, mark) in remembered.imports {
            // What scripts said is remembered by itself.
            for claim in mark.sources.iter().filter(|claim| claim.stamp > 0) {
                let (host, stamp, ban) = (claim.host.clone(), claim.stamp, Some(claim.ban));
                let said = Claim { host, stamp, ban, unbans: claim.unbans.clone() };
                self.upsert_claim(&key, said, mark.requested_at * 1000);
            }
            let case =
                self.jails.entry(key.0.clone()).or_default().entries.entry(key.1).or_default();
            case.import = Some(Box::new(mark));
        }
    }

    /// This host's name.
    #[must_use]
    pub fn me(&self) -> &HostName {
        &self.me
    }

    /// The jails that fail2ban has, once it has said so.
    #[must_use]
    pub fn known_jails(&self) -> Option<&BTreeSet<Jail>> {
        self.known_jails.as_ref()
    }

    /// The link to the broker is up.
    pub fn on_connected(&mut self, now: i64) {
        self.connected_since = Some(now);
        // Whose bans are held here, perhaps since before a restart, may be forgotten on the broker later.
        let peers: Vec<HostName> = self.peers.iter().map(|(host, _)| host.clone()).collect();
        for host in peers {
            self.peer_sync.add_peer(&host, now);
        }
        self.peer_sync.on_connected(&self.me, now);
        self.publisher.on_connected(&self.me, now, &self.timing);
        self.presence = None;
    }

    /// The link to the broker is down.
    pub fn on_disconnected(&mut self) {
        self.connected_since = None;
        self.peer_sync.on_disconnected();
    }

    /// What is to be subscribed to now, if anything, as filters below the fleet's retained branch.
    pub fn next_subscription(&mut self, now: i64) -> Option<Vec<String>> {
        let (host, again) = match self.peer_sync.next_request(now)? {
            Request::First(hosts) => {
                return Some(hosts.iter().map(|host| format!("state/{host}/0")).collect());
            }
            Request::All { host, again } => (host, again),
        };
        let mut topics = vec![format!("state/{host}/+")];
        if again {
            let wanted = self.peers.get(&host).map_or_else(|| vec![0], PeerState::missing_shards);
            topics.extend(wanted.iter().map(|number| format!("state/{host}/{number}")));
        }
        Some(topics)
    }

    /// What of this host's snapshot is to be published now.
    pub fn publications(&mut self, now: i64) -> Vec<RetainedShard> {
        // Before fail2ban or its database was read, nothing is known, and nothing said; and nothing that
        // others would take for old.
        if self.observed_stamp <= self.publish_floor {
            return Vec::new();
        }
        if self.publisher.is_refreshed(now) {
            self.presence = None;
        }
        let jails = &self.jails;
        let own = || {
            let mut own = Vec::new();
            for (jail, local) in jails {
                own.extend(
                    local
                        .local_bans
                        .iter()
                        .map(|(address, own)| ((jail.clone(), *address), own.ban)),
                );
            }
            own
        };
        let unbans = || self.tombstones.applied().collect();
        self.publisher.due_shards(&self.me, own, unbans, self.observed_stamp, now, &self.timing)
    }

    /// The import of an address, if it is one.
    #[must_use]
    pub fn import(&self, key: &BanKey) -> Option<&marks::Import> {
        self.jails.get(&key.0)?.entries.get(&key.1)?.import.as_deref()
    }

    /// Whether a fleet unban is known here.
    #[must_use]
    pub fn knows_fleet_unban(&self, pardon: &FleetUnban) -> bool {
        self.tombstones.knows(pardon)
    }

    fn persist(&mut self, change: Record) {
        self.dirty.put(change);
    }

    /// An address of which nothing is known needs no decision.
    fn enqueue(&mut self, key: &BanKey) {
        let case = self.jails.get(&key.0).and_then(|local| local.entries.get(&key.1));
        if case.is_none_or(|case| case.queued.is_some()) {
            return;
        }
        // Hosts that run the scripts have one line together: anybody can name more of them.
        let host = self.attributed_to(key).filter(|host| self.peers.contains(host)).cloned();
        let case = self.jails.get_mut(&key.0).and_then(|local| local.entries.get_mut(&key.1));
        if let Some(case) = case {
            case.queued = Some(self.queue.push(host, key.clone()));
        }
    }

    /// Forgets an address of which nothing is known any more.
    fn drop_if_empty(&mut self, key: &BanKey) {
        let Some(local) = self.jails.get_mut(&key.0) else { return };
        if local.entries.get(&key.1).is_some_and(|case| case.is_empty())
            && let Some(ticket) = local.entries.remove(&key.1).and_then(|case| case.queued)
        {
            self.queue.remove(ticket);
        }
    }

    /// Whose claims on an address count.
    fn active_claims<'a>(
        &'a self,
        key: &'a BanKey,
        local: &'a JailState,
        case: &'a Entry,
        now: i64,
    ) -> impl Iterator<Item = &'a Claim> {
        let bantime = local.bantime();
        case.claims.iter().filter(move |said| {
            let lifted = |ban| self.overrides.suppresses(key, &said.host, ban, &self.timing);
            said.is_active(bantime, now, &self.timing)
                && !self.tombstones.voids(key, said, &self.timing)
                && !said.ban.is_some_and(lifted)
        })
    }

    /// Whose word it is that an address is banned, or else that it is free.
    #[must_use]
    pub fn attributed_to(&self, key: &BanKey) -> Option<&HostName> {
        let case = self.jails.get(&key.0)?.entries.get(&key.1)?;
        let last = case.claims.iter().max_by_key(|said| (said.ban.is_some(), said.stamp));
        let of_mark = || case.import.as_ref()?.sources.last().map(|claim| &claim.host);
        last.map(|said| &said.host).or_else(|| self.last_releaser.get(key)).or_else(of_mark)
    }
}

fn to_secs(now: i64) -> i64 {
    now.div_euclid(1000)
}

#[cfg(test)]
mod tests;
