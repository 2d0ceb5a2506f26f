//! The claims of peers (R2 to R4): for each peer and address the latest message, held or released.
//!
//! A peer claims by events, one address each, and by the shards of its snapshot, each of which stands alone. Per peer
//! and address the greater stamp counts, so the newest event or covering shard is right. A missing message releases
//! nothing.
//!
//! Legacy peers run the scripts and claim by events alone. Their claims have no stamp, count in the order of arrival,
//! and end with the bantime of the jail here.

use std::sync::Arc;

use super::limits::BoundedTable;
use super::peers::{MAX_PEERS, PeerState, Released};
use super::{BanKey, Controller, Record, Timing, to_secs};
use crate::model::{HostName, Jail, UnbanId};
use crate::wire::Ban;

/// The latest message of one peer about one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The origin.
    pub host: HostName,
    /// The origin's sequence number, about milliseconds since 1970; 0 for a legacy peer.
    pub stamp: i64,
    /// The ban that the origin holds; `None` after a release. That of a legacy peer starts at its arrival.
    pub ban: Option<Ban>,
    /// The tombstones of the address that the claim carries (R17).
    pub unbans: SeenTombstones,
}

/// The tombstones that a claim carries. Most claims carry none, so the field is as small as a pointer.
pub type SeenTombstones = Option<Arc<Vec<UnbanId>>>;

/// `None` for an empty list.
#[must_use]
pub fn seen_tombstones(unbans: Vec<UnbanId>) -> SeenTombstones {
    (!unbans.is_empty()).then(|| unbans.into())
}

impl Claim {
    /// Whether the origin runs the scripts (R4).
    #[must_use]
    pub fn is_legacy(&self) -> bool {
        self.stamp == 0
    }

    /// Whether two claims of a peer belong to one register, whose later value counts. Legacy events have a separate
    /// register, because they have no stamp.
    fn is_same_register(&self, other: &Self) -> bool {
        self.host == other.host && self.is_legacy() == other.is_legacy()
    }

    fn tombstone_count(&self) -> usize {
        self.unbans.as_deref().map_or(0, Vec::len)
    }

    /// Whether the claim carries a tombstone.
    #[must_use]
    pub fn carries(&self, id: &UnbanId) -> bool {
        self.unbans.as_deref().into_iter().flatten().any(|other| other == id)
    }

    /// When the ban ends, in seconds since 1970; `i64::MAX`: never, or unknown. `bantime` is that of the jail here, if
    /// known. A legacy claim ends strictly before fail2ban ends the import (R4): otherwise the address would be
    /// imported once more for the last second, and unbanned.
    #[must_use]
    pub fn ends_at(&self, bantime: Option<i64>, timing: &Timing) -> i64 {
        match self.ban {
            None => i64::MIN,
            Some(ban) if self.is_legacy() => match bantime {
                Some(length) if length >= 0 => {
                    ban.start.saturating_add(length - timing.expiry_guard.min(length / 2))
                }
                _ => i64::MAX,
            },
            Some(ban) => expected_end(ban, timing),
        }
    }

    /// Whether the claim counts at `now`, in seconds since 1970. Without a release it ends `expiry_slack` after its
    /// ban (R3); a legacy claim ends with the bantime of this jail (R4).
    #[must_use]
    pub fn is_active(&self, bantime: Option<i64>, now: i64, timing: &Timing) -> bool {
        self.expires_at(bantime, timing) >= now
    }

    /// Whether the garbage collection may drop the claim: its ban ended, or its release is older than messages that may
    /// still arrive. `now` is in milliseconds.
    pub(super) fn is_over(&self, bantime: Option<i64>, now: i64, timing: &Timing) -> bool {
        match self.ban {
            Some(_) => !self.is_active(bantime, to_secs(now), timing),
            None => self.stamp < now - timing.expiry_slack * 1000,
        }
    }

    /// Whether this is an expired legacy claim that caused fail2ban's ban until `end`. fail2ban ends that ban by
    /// itself, so no unban is needed (R13).
    pub(super) fn leaves_end_to_fail2ban(
        &self,
        bantime: Option<i64>,
        end: i64,
        timing: &Timing,
    ) -> bool {
        let claim_end = self.ends_at(bantime, timing);
        self.is_legacy() && self.ban.is_some() && end <= claim_end.saturating_add(MAX_IMPORT_DELAY)
    }

    /// The last second of the claim without a release, in seconds since 1970.
    #[must_use]
    pub fn expires_at(&self, bantime: Option<i64>, timing: &Timing) -> i64 {
        let slack = if self.is_legacy() { 0 } else { timing.expiry_slack };
        self.ends_at(bantime, timing).saturating_add(slack)
    }
}

/// When a peer's ban ends, in seconds since 1970; one of unknown length after the default bantime.
fn expected_end(ban: Ban, timing: &Timing) -> i64 {
    if ban.bantime == 0 { ban.start.saturating_add(timing.default_bantime) } else { ban.end() }
}

/// Whether a ban that a daemon listed counts at `now`, in seconds since 1970, if the daemon has not released it.
#[must_use]
pub fn is_held(ban: Ban, now: i64, timing: &Timing) -> bool {
    expected_end(ban, timing).saturating_add(timing.expiry_slack) >= now
}

/// The latest state of a peer's claim on an address, with its stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimState {
    /// The peer has not sent anything about the address.
    Unknown,
    /// The peer does not ban the address.
    Released(i64),
    /// The peer bans the address.
    Held(i64, Ban),
}

/// How long after a legacy event fail2ban may have made its ban, in seconds.
const MAX_IMPORT_DELAY: i64 = 60;

/// The most claims that are kept (R21): of all peers, of one peer, of all legacy peers, and on one address. An honest
/// fleet has about 100,000.
pub(super) const MAX_CLAIMS: usize = 200_000;
pub(super) const MAX_CLAIMS_PER_PEER: usize = 100_000;
pub(super) const MAX_LEGACY_CLAIMS: usize = 50_000;
pub(super) const MAX_CLAIMS_PER_KEY: usize = 256;

/// The most tombstones that all claims together carry (R21). Beyond that limit, the table keeps a claim without its
/// tombstones, so the claim is void if this host knows one of them.
pub(super) const MAX_CLAIM_TOMBSTONES: usize = 200_000;

/// The most jails with claims that fail2ban does not have, and the most jails before the first heartbeat.
pub(super) const MAX_OTHER_JAILS: usize = 64;
pub(super) const MAX_JAILS: usize = 500;

/// At the total limit, the peer with the most claims loses this many.
const RELEASED_CLAIMS: usize = 256;

/// At the limit of peers, this many new peers without a snapshot are dropped.
const DROPPED_PEERS: usize = 50;

/// How many claims are searched in one step for those that a shard released.
const MAX_SEARCHED_CLAIMS: usize = 1_000;

/// Counts over all claims, so that the limits need no search.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Claims of peers, without legacy claims.
    pub(super) claims: usize,
    pub(super) tombstones: usize,
    pub(super) legacy: usize,
}

impl Counts {
    fn add(&mut self, claim: &Claim) {
        let count = if claim.is_legacy() { &mut self.legacy } else { &mut self.claims };
        *count += 1;
        self.tombstones += claim.tombstone_count();
    }

    fn subtract(&mut self, claim: &Claim) {
        let count = if claim.is_legacy() { &mut self.legacy } else { &mut self.claims };
        *count -= 1;
        self.tombstones -= claim.tombstone_count();
    }
}

impl Controller {
    /// Inserts a claim, or replaces the previous one of its host. Returns `false` if a limit leaves no room.
    pub(super) fn upsert_claim(&mut self, key: &BanKey, mut claim: Claim, now: i64) -> bool {
        if self.counts.tombstones + claim.tombstone_count() > MAX_CLAIM_TOMBSTONES {
            claim.unbans = None;
        }
        let entry =
            self.jails.get_mut(&key.0).and_then(|jail_state| jail_state.entries.get_mut(&key.1));
        let others = entry.as_ref().map_or(0, |entry| entry.claims.len());
        let mut claims = entry.into_iter().flat_map(|entry| &mut entry.claims);
        let last = claims.find(|other| other.is_same_register(&claim));
        if let Some(last) = last {
            self.counts.subtract(last);
            self.counts.add(&claim);
            *last = claim;
            return true;
        }
        if !self.has_capacity_for_jail(&key.0) {
            self.limits.reached(
                BoundedTable::Claims,
                MAX_CLAIMS_PER_KEY,
                Some(claim.host.as_str()),
                now,
            );
            return false;
        }
        if others >= MAX_CLAIMS_PER_KEY && !self.make_room_on(key, &claim, now) {
            return false;
        }
        if claim.is_legacy() {
            if self.counts.legacy >= MAX_LEGACY_CLAIMS {
                self.limits.reached(BoundedTable::Claims, MAX_LEGACY_CLAIMS, None, now);
                return false;
            }
        } else {
            let claims = self.admit_peer(&claim.host, now).claims.len();
            if claims >= MAX_CLAIMS_PER_PEER {
                let peer = Some(claim.host.as_str());
                self.limits.reached(BoundedTable::Claims, MAX_CLAIMS_PER_PEER, peer, now);
                return false;
            }
            if self.counts.claims >= MAX_CLAIMS && !self.make_room(&claim.host, now) {
                return false;
            }
            if let Some(peer) = self.peers.get_mut(&claim.host) {
                peer.claims.insert(key);
            }
        }
        self.counts.add(&claim);
        let entry = self.jails.entry(key.0.clone()).or_default().entries.entry(key.1).or_default();
        entry.claims.push(claim);
        true
    }

    /// Removes claims on an address. Returns whether there were any.
    pub(super) fn remove_claims(&mut self, key: &BanKey, which: impl Fn(&Claim) -> bool) -> bool {
        let Some(jail_state) = self.jails.get_mut(&key.0) else { return false };
        let Some(entry) = jail_state.entries.get_mut(&key.1) else { return false };
        let gone: Vec<Claim> = entry.claims.iter().filter(|claim| which(claim)).cloned().collect();
        entry.claims.retain(|claim| !which(claim));
        if let (true, Some(last)) = (entry.claims.is_empty() && entry.import.is_some(), gone.last())
        {
            self.last_releaser.insert(key.clone(), last.host.clone());
        }
        self.drop_if_empty(key);
        for claim in &gone {
            self.counts.subtract(claim);
            if claim.is_legacy() {
                self.persist(Record::LegacyClaim(key.clone(), claim.host.clone(), None));
            } else if let Some(peer) = self.peers.get_mut(&claim.host) {
                peer.claims.remove(key);
            }
        }
        !gone.is_empty()
    }

    /// The state of a peer, new if the peer is new. At the limit, other peers are dropped, and their claims are
    /// released (R21).
    pub(super) fn admit_peer(&mut self, host: &HostName, now: i64) -> &mut PeerState {
        if !self.peers.contains(host) && self.peers.is_full() {
            self.limits.reached(BoundedTable::Peers, MAX_PEERS, None, now);
            for least in self.peers.least(DROPPED_PEERS, now) {
                self.release_some(&least, usize::MAX);
                self.peers.remove(&least);
            }
        }
        self.peers.admit(host, now)
    }

    /// Releases claims of the peer with the most, unless `host` itself has about as many.
    fn make_room(&mut self, host: &HostName, now: i64) -> bool {
        let mine = self.peers.get(host).map_or(0, |peer| peer.claims.len());
        let Some((largest, peer)) = self.peers.largest() else { return false };
        let largest = largest.clone();
        let gives_way = peer.claims.len() > mine + RELEASED_CLAIMS;
        self.limits.reached(BoundedTable::Claims, MAX_CLAIMS, Some(largest.as_str()), now);
        if gives_way {
            self.release_some(&largest, RELEASED_CLAIMS);
        }
        gives_way
    }

    /// Makes room for a new claim on an address at the limit (R21): drops an expired claim, or else the claim of the
    /// least senior peer, if the new claim ranks above that.
    fn make_room_on(&mut self, key: &BanKey, claim: &Claim, now: i64) -> bool {
        self.limits.reached(
            BoundedTable::Claims,
            MAX_CLAIMS_PER_KEY,
            Some(claim.host.as_str()),
            now,
        );
        if !claim.is_legacy() {
            self.admit_peer(&claim.host, now);
        }
        let Some(jail_state) = self.jails.get(&key.0) else { return false };
        let bantime = jail_state.bantime();
        let claims = jail_state.entries.get(&key.1).map_or(&[][..], |entry| &entry.claims);
        let weights = claims.iter().map(|claim| (self.weight(claim, bantime, now), claim));
        let Some((least_weight, least)) = weights.min_by_key(|(weight, _)| *weight) else {
            return false;
        };
        if least_weight >= self.weight(claim, bantime, now) {
            return false;
        }
        let least = least.clone();
        self.remove_claims(key, |claim| claim.is_same_register(&least))
    }

    /// How much a claim counts against others on its address (R21): whether it lasts, then how senior its peer is.
    fn weight(&self, claim: &Claim, bantime: Option<i64>, now: i64) -> (bool, Option<(bool, i64)>) {
        let lasts = claim.ends_at(bantime, &self.timing) > to_secs(now);
        (lasts, self.peers.get(&claim.host).map(PeerState::seniority))
    }

    fn release_some(&mut self, host: &HostName, max: usize) {
        let keys = self.peers.get(host).map_or_else(Vec::new, |peer| peer.claims.first(max));
        for key in keys {
            self.remove_claims(&key, |claim| !claim.is_legacy() && claim.host == *host);
            self.enqueue(&key);
        }
    }

    /// Searches some claims for those that a newer shard of their peer released (R21). Returns whether more remain.
    pub(super) fn release_claims(&mut self) -> bool {
        let Some(Released { host, keys, finished }) = self.peers.next_released(MAX_SEARCHED_CLAIMS)
        else {
            return false;
        };
        for key in keys {
            let covering = self.peers.get(&host).and_then(|peer| peer.covering_stamp(key.1));
            let is_released = self.remove_claims(&key, |claim| {
                !claim.is_legacy()
                    && claim.host == host
                    && covering.is_some_and(|covering| covering > claim.stamp)
            });
            if is_released {
                self.enqueue(&key);
            }
        }
        if let Some(id) = finished {
            self.end_overrides(&host, id);
        }
        self.peers.is_searching()
    }

    pub(super) fn has_capacity_for_jail(&self, jail: &Jail) -> bool {
        self.jails.contains_key(jail)
            || match &self.known_jails {
                Some(names) => {
                    names.contains(jail) || self.jails.len() < names.len() + MAX_OTHER_JAILS
                }
                None => self.jails.len() < MAX_JAILS,
            }
    }

    pub(super) fn claim(&self, key: &BanKey, host: &HostName) -> Option<&Claim> {
        let entry = self.jails.get(&key.0)?.entries.get(&key.1)?;
        entry.claims.iter().find(|claim| !claim.is_legacy() && claim.host == *host)
    }

    pub(super) fn last_stamp(&self, key: &BanKey, host: &HostName) -> i64 {
        let claimed = self.claim(key, host).map_or(i64::MIN, |claim| claim.stamp);
        let covered = self.peers.get(host).and_then(|peer| peer.covering_stamp(key.1));
        claimed.max(covered.unwrap_or(i64::MIN))
    }

    /// The latest state of a peer's claim on an address: its newest event or covering shard.
    #[must_use]
    pub fn claim_state(&self, key: &BanKey, host: &HostName) -> ClaimState {
        let covered = self.peers.get(host).and_then(|peer| peer.covering_stamp(key.1));
        // A newer shard released the claims that it does not list, even before the search removed them.
        let claim =
            self.claim(key, host).filter(|claim| covered.is_none_or(|at| at <= claim.stamp));
        match claim {
            Some(claim) => claim.ban.map_or(ClaimState::Released(claim.stamp), |ban| {
                ClaimState::Held(claim.stamp, ban)
            }),
            None => covered.map_or(ClaimState::Unknown, ClaimState::Released),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(stamp: i64, ban: Option<Ban>) -> Claim {
        Claim { host: HostName::new("web1").unwrap(), stamp, ban, unbans: None }
    }

    #[expect(clippy::unnecessary_wraps, reason = "most claims of the table have a ban")]
    fn ban(bantime: i64) -> Option<Ban> {
        Some(Ban { start: 1000, bantime })
    }

    #[test]
    fn claim_is_active_until_some_minutes_after_its_ban() {
        let timing = Timing::default();
        let table = [
            // stamp, ban, bantime of the jail, now -> it is active
            (5, ban(600), Some(60), 2200, true),
            (5, ban(600), Some(60), 2201, false),
            (5, ban(600), None, 2200, true),
            (5, ban(-1), Some(60), i64::MAX, true),
            (5, ban(0), Some(60), 1000 + 86_400 + 600, true),
            (5, ban(0), Some(60), 1000 + 86_400 + 601, false),
            (5, None, Some(60), 0, false),
            // A legacy claim ends strictly before fail2ban's own end.
            (0, ban(0), Some(60), 1057, true),
            (0, ban(0), Some(60), 1058, false),
            (0, ban(0), Some(2), 1001, true),
            (0, ban(0), Some(2), 1002, false),
            (0, ban(0), Some(-1), i64::MAX, true),
            (0, ban(0), None, i64::MAX, true),
        ];
        for (stamp, ban, bantime, now, lasts) in table {
            assert_eq!(
                claim(stamp, ban).is_active(bantime, now, &timing),
                lasts,
                "{stamp} {ban:?} {now}"
            );
        }
    }
}
