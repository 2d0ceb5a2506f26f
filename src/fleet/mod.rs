//! The fleet-wide meaning of a ban. Pure: messages and observations of fail2ban go in, effects and publications
//! come out, and the time is passed in. The daemon and the simulation drive the same [`Controller`].
//!
//! Each module implements one part of the rules R1 to R24 of `docs/architecture.md`:
//!
//! - `claims`: the latest claim of each peer on an address (R2 to R4); `peers`: the state of each peer, and
//!   `claim_index`, which finds a peer's claims by shard.
//! - [`local_bans`]: the bans that this host detected and holds (R6).
//! - `offline`: which bans count while fail2ban is down or has not created its jails (R7, R8).
//! - [`imports`]: the records of imports, and whether fail2ban still holds them (R9, R10).
//! - [`overrides`]: the bans of peers that this host's operator overrode (R14, R15).
//! - `tombstones`: fleet unbans (R16, R17); `fleet_unbans` applies them to fail2ban.
//! - [`limits`]: which bounded tables are full (R21).
//! - [`reconcile`]: the decision on one address (R13, R19). [`lease`]: when to renew an import (R12).
//! - [`sequence`]: the stamps of this host. [`local_events`]: which local events it publishes (R18). [`publisher`]: when
//!   to publish which shard.
//! - `status`: when to publish the presence of this host, and the counts in it.
//! - `acks`: acknowledges the bans that an operator made on another host.
//! - [`peer_sync`]: schedules the subscriptions to the snapshots of peers.
//! - [`jails`]: the observed state of a jail, and whether to observe the jail again.
//! - `invariants`: checks the tables after every step of the simulation and the fuzzers.
//! - [`persist`]: the state that survives a restart (R11); `dirty`: its records that are not on disk yet (R20).
//!   [`provenance`]: which of that state counts under other settings.
//!
//! `ingest` applies messages, `observe` applies observations, and `effects` returns the next effect.

mod acks;
mod claim_index;
pub mod claims;
mod dirty;
pub mod effects;
mod fair_queue;
mod fleet_unbans;
pub mod imports;
mod ingest;
mod invariants;
pub mod jails;
pub mod lease;
pub mod limits;
pub mod local_bans;
pub mod local_events;
mod observe;
mod offline;
pub mod overrides;
pub mod peer_sync;
mod peers;
pub mod persist;
pub mod provenance;
pub mod publisher;
pub mod reconcile;
pub mod sequence;
mod status;
mod tombstones;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use acks::AckTable;
use claims::{Claim, Counts};
use dirty::DirtyRecords;
use fair_queue::FairQueue;
pub use ingest::ShardError;
use jails::{Entry, Heartbeat, JailState, PendingDetection, Scan};
use limits::ReachedLimits;
use local_events::LocalEventFilter;
use overrides::Overrides;
use peer_sync::{Request, SubscriptionScheduler};
use peers::{PeerState, Peers};
pub use persist::{PersistedState, Record};
use publisher::{RetainedShard, SnapshotPublisher};
use sequence::Sequencer;
pub use status::JailCounts;
use tombstones::Tombstones;
pub use tombstones::is_outlived;

use crate::model::{Address, HostName, Jail};
use crate::wire::{Ban, FleetUnban, Presence};

/// How often claims without effect are dropped, in milliseconds.
const GC_INTERVAL: i64 = 30_000;

/// An address in a jail.
pub type BanKey = (Jail, Address);

/// Durations and rates of the controller. The simulation shortens some of them.
#[derive(Clone, Debug)]
pub struct Timing {
    /// How long a claim outlives its ban unless its origin releases it (R3), in seconds.
    pub expiry_slack: i64,
    /// The length of a ban whose bantime is unknown, unless its origin releases it, in seconds.
    pub default_bantime: i64,
    /// How long fail2ban restores bans after its start (R7), in seconds.
    pub restore_grace: i64,
    /// By how much two messages about one ban may differ in its start (R14), in seconds.
    pub start_tolerance: i64,
    /// A ban that ends within this time expires instead of being unbanned (R13), in seconds.
    pub expiry_guard: i64,
    /// How long tombstones are kept (R17), in seconds.
    pub tombstone_ttl: i64,
    /// How long tombstones are kept if no host bans the address, in seconds. Clocks differ by less than this.
    pub tombstone_idle: i64,
    /// How often the daemon polls fail2ban for changes (R19), in milliseconds.
    pub poll_interval: i64,
    /// How long an observation is recent enough to act on, in milliseconds.
    pub observation_ttl: i64,
    /// How long after a change its shard is published, in milliseconds.
    pub publish_delay: i64,
    /// After one to two times this interval the whole snapshot is published again, in milliseconds.
    pub refresh_interval: i64,
    /// The shortest time between two republications that stale echoes cause, in milliseconds.
    pub republish_cooldown: i64,
    /// How often changed counts alone cause a new presence, in milliseconds.
    pub status_interval: i64,
    /// How often new acknowledgements alone cause a new presence, in milliseconds.
    pub ack_interval: i64,
    /// How much of the snapshot may be published, in bytes a second.
    pub publish_rate: usize,
    /// How much of the snapshot may be published at once, in bytes.
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

/// The state of the fleet as this host knows it: desired bans, observed bans, and the effects that are pending.
#[derive(Debug)]
pub struct Controller {
    me: HostName,
    timing: Timing,
    jails: BTreeMap<Jail, JailState>,
    /// The peer that released the last claim on an imported address, for the log line of the unban.
    last_releaser: BTreeMap<BanKey, HostName>,
    /// The jails of fail2ban; `None` before the first heartbeat.
    known_jails: Option<BTreeSet<Jail>>,
    /// When `known_jails` changed last, in milliseconds.
    jails_changed_at: i64,
    /// Jails that a starting fail2ban may still create, with the addresses whose rows have not expired (R7).
    expected_jails: BTreeMap<Jail, BTreeSet<Address>>,
    peers: Peers,
    counts: Counts,
    limits: ReachedLimits,
    overrides: Overrides,
    tombstones: Tombstones,
    /// Whether the next batch is of tombstones: they take turns with bans (R22).
    is_tombstones_turn: bool,
    /// Whether the garbage collection of tombstones is under way.
    collecting: bool,
    /// Detections that this host knows only from echoes of its own events; some may be gone.
    echoes: BTreeSet<BanKey>,
    /// When the link to the broker came up, in milliseconds.
    connected_since: Option<i64>,
    sequencer: Sequencer,
    event_filter: LocalEventFilter,
    publisher: SnapshotPublisher,
    peer_sync: SubscriptionScheduler,
    /// The last presence of this host, and when it was published or found unchanged, in milliseconds.
    presence: Option<(Presence, i64)>,
    /// The broker has lost or replaced this host's presence, so that it has to be published again.
    presence_lost: bool,
    acks: AckTable,
    /// Records that are not on disk yet (R20).
    dirty: DirtyRecords,
    /// Addresses that wait for a decision, in turns between peers (R22).
    queue: FairQueue,
    /// Jails that the current scan has not observed yet.
    jails_to_observe: BTreeSet<Jail>,
    scan: Scan,
    pending: VecDeque<effects::Pending>,
    in_flight: Option<effects::Pending>,
    heartbeat: Option<Heartbeat>,
    /// Addresses that were observed since the last heartbeat without the rest of their jail.
    spot_checked: BTreeMap<Jail, Vec<Address>>,
    /// The stamp of the current scan.
    scan_stamp: i64,
    /// The stamp of the last finished scan. The snapshot carries it.
    observed_stamp: i64,
    /// The greatest own stamp that this host learned from the broker. Observations at or below it are not
    /// published, because peers would reject them as old.
    publish_floor: i64,
    cycle: u64,
    /// When the last cycle started, in milliseconds.
    cycle_started_at: i64,
    last_gc: i64,
}

impl Controller {
    /// Restores the state that an earlier process persisted.
    #[must_use]
    pub fn new(me: HostName, timing: Timing, persisted: PersistedState) -> Self {
        let mut fleet = Self {
            sequencer: Sequencer::new(persisted.stamp),
            event_filter: LocalEventFilter::new(me.clone()),
            me,
            timing,
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
        fleet.restore(persisted);
        fleet
    }

    /// Restores claims from the imports, which keep them: a restart without a broker knows which bans it holds and
    /// until when (R11).
    fn restore(&mut self, persisted: PersistedState) {
        for ((key, host), override_) in persisted.overrides {
            self.overrides.suppress(&key, &host, override_);
        }
        for (fleet_unban, applied) in persisted.tombstones {
            self.tombstones.restore(fleet_unban, applied);
        }
        for ((key, host), since) in persisted.legacy_claims {
            self.upsert_claim(&key, ingest::legacy_claim(host, since), since * 1000);
        }
        for ((jail, address), ban) in persisted.pending_detections {
            let pending = &mut self.jails.entry(jail).or_default().pending_detections;
            pending
                .insert(address, PendingDetection { ban, cycle: 0, persisted: true, echo: None });
        }
        for (key, import) in persisted.imports {
            // Legacy claims have records of their own: here they would count with a stamp.
            for claim in import.sources.iter().filter(|claim| claim.stamp > 0) {
                let (host, stamp, ban) = (claim.host.clone(), claim.stamp, Some(claim.ban));
                let claim = Claim { host, stamp, ban, unbans: claim.unbans.clone() };
                self.upsert_claim(&key, claim, import.requested_at * 1000);
            }
            let entry =
                self.jails.entry(key.0.clone()).or_default().entries.entry(key.1).or_default();
            entry.import = Some(Box::new(import));
        }
    }

    /// This host's name.
    #[must_use]
    pub fn me(&self) -> &HostName {
        &self.me
    }

    /// The jails of fail2ban; `None` before the first heartbeat.
    #[must_use]
    pub fn known_jails(&self) -> Option<&BTreeSet<Jail>> {
        self.known_jails.as_ref()
    }

    /// The link to the broker is up.
    pub fn on_connected(&mut self, now: i64) {
        self.connected_since = Some(now);
        // Imports may outlive a restart. Subscribe to their peers, too, to learn when their snapshots are cleared.
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

    /// The next subscriptions, as topic filters below the fleet's retained branch.
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

    /// The shards of this host's snapshot that are due.
    pub fn publications(&mut self, now: i64) -> Vec<RetainedShard> {
        // Publish nothing before the first observation, and nothing that peers would reject as old.
        if self.observed_stamp <= self.publish_floor {
            return Vec::new();
        }
        if self.publisher.is_refreshed(now) {
            self.presence = None;
        }
        let (jails, tombstones) = (&self.jails, &self.tombstones);
        self.publisher.due_shards(
            &self.me,
            || local_bans(jails),
            || tombstones.applied().collect(),
            self.observed_stamp,
            now,
            &self.timing,
        )
    }

    /// The import of an address, if this host imported it.
    #[must_use]
    pub fn import(&self, key: &BanKey) -> Option<&imports::Import> {
        self.jails.get(&key.0)?.entries.get(&key.1)?.import.as_deref()
    }

    /// Whether a fleet unban is known here.
    #[must_use]
    pub fn knows_fleet_unban(&self, fleet_unban: &FleetUnban) -> bool {
        self.tombstones.knows(fleet_unban)
    }

    fn persist(&mut self, record: Record) {
        self.dirty.put(record);
    }

    /// Queues an address for a decision, unless it is queued already or has no state.
    fn enqueue(&mut self, key: &BanKey) {
        let entry = self.jails.get(&key.0).and_then(|jail_state| jail_state.entries.get(&key.1));
        if entry.is_none_or(|entry| entry.queued.is_some()) {
            return;
        }
        // Legacy peers share one line: anyone who may publish can invent more of them (R22).
        let host = self.attributed_to(key).filter(|host| self.peers.contains(host)).cloned();
        let entry =
            self.jails.get_mut(&key.0).and_then(|jail_state| jail_state.entries.get_mut(&key.1));
        if let Some(entry) = entry {
            entry.queued = Some(self.queue.push(host, key.clone()));
        }
    }

    /// Drops an address that has no state left.
    fn drop_if_empty(&mut self, key: &BanKey) {
        let Some(jail_state) = self.jails.get_mut(&key.0) else { return };
        if jail_state.entries.get(&key.1).is_some_and(|entry| entry.is_empty())
            && let Some(ticket) = jail_state.entries.remove(&key.1).and_then(|entry| entry.queued)
        {
            self.queue.remove(ticket);
        }
    }

    /// The claims on an address that have not ended (R3), are not void (R17) and are not overridden (R14).
    fn active_claims<'a>(
        &'a self,
        key: &'a BanKey,
        jail_state: &'a JailState,
        entry: &'a Entry,
        now: i64,
    ) -> impl Iterator<Item = &'a Claim> {
        let bantime = jail_state.bantime();
        entry.claims.iter().filter(move |claim| {
            claim.is_active(bantime, now, &self.timing)
                && !self.tombstones.voids(key, claim, &self.timing)
                && claim.ban.is_none_or(|ban| {
                    !self.overrides.suppresses(key, &claim.host, ban, &self.timing)
                })
        })
    }

    /// The peer that claims an address, or else the one that released it; for log lines.
    #[must_use]
    pub fn attributed_to(&self, key: &BanKey) -> Option<&HostName> {
        let entry = self.jails.get(&key.0)?.entries.get(&key.1)?;
        let last = entry.claims.iter().max_by_key(|claim| (claim.ban.is_some(), claim.stamp));
        last.map(|claim| &claim.host)
            .or_else(|| self.last_releaser.get(key))
            .or_else(|| Some(&entry.import.as_ref()?.sources.last()?.host))
    }
}

/// All bans that this host detected and holds (R6).
fn local_bans(jails: &BTreeMap<Jail, JailState>) -> Vec<(BanKey, Ban)> {
    let mut local_bans = Vec::new();
    for (jail, jail_state) in jails {
        for (address, own) in &jail_state.local_bans {
            local_bans.push(((jail.clone(), *address), own.ban));
        }
    }
    local_bans
}

fn to_secs(now: i64) -> i64 {
    now.div_euclid(1000)
}

#[cfg(test)]
mod tests;
