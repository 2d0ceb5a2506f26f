//! **Claims**: what each other host said last of an address: that it holds it, or that it does not.
//!
//! A host says it by events, one address each, and by the parts of its snapshot, each of which stands
//! alone. Of two words of one host on one address the greater stamp counts, so for any address the
//! newest of its host's event and covering parts is right. No word is not "not held": nothing is freed
//! because nothing was heard.
//!
//! Hosts that run the scripts make claims by events alone. These have no stamp and count in the order in
//! which they come; the jail's bantime here ends them.

use std::sync::Arc;

use super::limits::BoundedTable;
use super::peers::{MAX_PEERS, PeerState, Released};
use super::{BanKey, Controller, Record, Timing, secs};
use crate::wire::{Ban, HostName, Jail, UnbanId};

/// What one host said last of one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Who.
    pub host: HostName,
    /// Orders what the host says, in milliseconds since 1970; 0 from a script.
    pub stamp: i64,
    /// It holds this ban, or none. A script's begins when it was heard here.
    pub ban: Option<Ban>,
    /// The fleet unbans of the address that the claim carries.
    pub unbans: Carried,
}

/// The fleet unbans that a claim carries: hardly ever any, so it is as small as a pointer.
pub type Carried = Option<Arc<Vec<UnbanId>>>;

/// Puts fleet unbans together.
#[must_use]
pub fn carried(unbans: Vec<UnbanId>) -> Carried {
    (!unbans.is_empty()).then(|| unbans.into())
}

impl Said {
    /// Whether a host that runs the scripts said it.
    #[must_use]
    pub fn is_script(&self) -> bool {
        self.stamp == 0
    }

    fn carried_count(&self) -> usize {
        self.unbans.as_deref().map_or(0, Vec::len)
    }

    /// Whether it carries a fleet unban.
    #[must_use]
    pub fn carries(&self, id: &UnbanId) -> bool {
        self.unbans.as_deref().into_iter().flatten().any(|carried| carried == id)
    }

    /// When the ban ends, in seconds since 1970; `i64::MAX`: never, or nobody knows. `bantime` is the
    /// jail's here, where that is known. **A script's ends strictly before fail2ban ends the import**: otherwise the
    /// address would be imported once more for the last second, and freed.
    #[must_use]
    pub fn end(&self, bantime: Option<i64>, pace: &Timing) -> i64 {
        match self.ban {
            None => i64::MIN,
            Some(ban) if self.is_script() => match bantime {
                Some(length) if length >= 0 => {
                    ban.start.saturating_add(length - pace.soon.min(length / 2))
                }
                _ => i64::MAX,
            },
            Some(ban) => expected_end(ban, pace),
        }
    }

    /// **A claim ends on its origin's word; without one, a while after its end by the clock here.** That
    /// of a script ends with this jail's bantime.
    #[must_use]
    pub fn lasts(&self, bantime: Option<i64>, now: i64, pace: &Timing) -> bool {
        self.until(bantime, pace) >= now
    }

    /// Whether it is a script's claim that ended by its time, and that fail2ban's ban until `end` was made for: fail2ban
    /// ends that by itself.
    pub(super) fn leaves_end_to_fail2ban(
        &self,
        bantime: Option<i64>,
        end: i64,
        pace: &Timing,
    ) -> bool {
        let ended = self.end(bantime, pace);
        self.is_script() && self.ban.is_some() && end <= ended.saturating_add(LATE_IMPORT)
    }

    /// Until when the claim lasts at most, in seconds since 1970.
    #[must_use]
    pub fn until(&self, bantime: Option<i64>, pace: &Timing) -> i64 {
        let slack = if self.is_script() { 0 } else { pace.end_slack };
        self.end(bantime, pace).saturating_add(slack)
    }
}

/// When a daemon's ban ends, in seconds since 1970; one of unknown length, after a while.
fn expected_end(ban: Ban, pace: &Timing) -> i64 {
    if ban.bantime == 0 { ban.start.saturating_add(pace.unknown) } else { ban.end() }
}

/// Whether a ban that a daemon listed counts at `now`, in seconds since 1970, if the daemon has not released it.
#[must_use]
pub fn is_held(ban: Ban, now: i64, pace: &Timing) -> bool {
    expected_end(ban, pace).saturating_add(pace.end_slack) >= now
}

/// The last word of a host on an address, with its stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// It has not said anything.
    Unknown,
    /// It does not hold it.
    Free(i64),
    /// It holds it.
    Held(i64, Ban),
}

/// How long after a script's event fail2ban may have the ban at the latest, in seconds.
const LATE_IMPORT: i64 = 60;

/// The most claims that are kept: of peers in all and of one of them, of hosts that run the scripts, and on one
/// address. An honest fleet has 100,000 in all.
pub(super) const MAX_CLAIMS: usize = 200_000;
pub(super) const MAX_CLAIMS_PER_PEER: usize = 100_000;
pub(super) const MAX_SCRIPT_CLAIMS: usize = 50_000;
pub(super) const MAX_CLAIMS_PER_KEY: usize = 256;

/// The most fleet unbans that all claims together carry. Beyond that a claim is kept without them, and so is
/// void where they count.
pub(super) const MAX_CARRIED: usize = 200_000;

/// The most jails that claims are kept of and fail2ban does not have; more while it has not said what it has.
pub(super) const MAX_OTHER_JAILS: usize = 64;
pub(super) const MAX_JAILS: usize = 500;

/// When all claims are too many, the peer with the most loses so many of them.
const GIVE_WAY: usize = 256;

/// When all peers are too many, so many new ones without a snapshot give way.
const PEERS_GIVE_WAY: usize = 50;

/// How many claims are searched at once for those that a shard released.
const SEARCH: usize = 1_000;

/// How many claims there are.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Of peers; what the claims carry; and of hosts that run the scripts.
    pub(super) claims: usize,
    pub(super) carried: usize,
    pub(super) scripts: usize,
}

impl Counts {
    fn add(&mut self, said: &Said) {
        let count = if said.is_script() { &mut self.scripts } else { &mut self.claims };
        *count += 1;
        self.carried += said.carried_count();
    }

    fn subtract(&mut self, said: &Said) {
        let count = if said.is_script() { &mut self.scripts } else { &mut self.claims };
        *count -= 1;
        self.carried -= said.carried_count();
    }
}

impl Controller {
    /// Puts a claim in the place of its host's last. Answers `false` where a limit is reached.
    pub(super) fn upsert_claim(&mut self, key: &BanKey, mut said: Said, now: i64) -> bool {
        if self.counts.carried + said.carried_count() > MAX_CARRIED {
            said.unbans = None;
        }
        let same =
            |other: &&mut Said| other.host == said.host && other.is_script() == said.is_script();
        let case = self.jails.get_mut(&key.0).and_then(|local| local.cases.get_mut(&key.1));
        let others = case.as_ref().map_or(0, |case| case.said.len());
        if let Some(last) = case.and_then(|case| case.said.iter_mut().find(same)) {
            self.counts.subtract(last);
            self.counts.add(&said);
            *last = said;
            return true;
        }
        if !self.has_room_for_jail(&key.0) {
            self.limits.reached(
                BoundedTable::Claims,
                MAX_CLAIMS_PER_KEY,
                Some(said.host.as_str()),
                now,
            );
            return false;
        }
        if others >= MAX_CLAIMS_PER_KEY && !self.make_room_on(key, &said, now) {
            return false;
        }
        if said.is_script() {
            if self.counts.scripts >= MAX_SCRIPT_CLAIMS {
                self.limits.reached(BoundedTable::Claims, MAX_SCRIPT_CLAIMS, None, now);
                return false;
            }
        } else {
            let claims = self.admit_peer(&said.host, now).claims.len();
            if claims >= MAX_CLAIMS_PER_PEER {
                let peer = Some(said.host.as_str());
                self.limits.reached(BoundedTable::Claims, MAX_CLAIMS_PER_PEER, peer, now);
                return false;
            }
            if self.counts.claims >= MAX_CLAIMS && !self.make_room(&said.host, now) {
                return false;
            }
            if let Some(peer) = self.peers.get_mut(&said.host) {
                peer.claims.insert(key);
            }
        }
        self.counts.add(&said);
        let case = self.jails.entry(key.0.clone()).or_default().cases.entry(key.1).or_default();
        case.said.push(said);
        true
    }

    /// Removes claims on an address. Answers whether there were any.
    pub(super) fn remove_claims(&mut self, key: &BanKey, which: impl Fn(&Said) -> bool) -> bool {
        let Some(local) = self.jails.get_mut(&key.0) else { return false };
        let Some(case) = local.cases.get_mut(&key.1) else { return false };
        let gone: Vec<Said> = case.said.iter().filter(|said| which(said)).cloned().collect();
        case.said.retain(|said| !which(said));
        if let (true, Some(last)) = (case.said.is_empty() && case.mark.is_some(), gone.last()) {
            self.unsaid.insert(key.clone(), last.host.clone());
        }
        self.drop_if_empty(key);
        for said in &gone {
            self.counts.subtract(said);
            if said.is_script() {
                self.change(Record::Script(key.clone(), said.host.clone(), None));
            } else if let Some(peer) = self.peers.get_mut(&said.host) {
                peer.claims.remove(key);
            }
        }
        !gone.is_empty()
    }

    /// The peer, in the place of another where there are too many: that one's claims are released.
    pub(super) fn admit_peer(&mut self, host: &HostName, now: i64) -> &mut PeerState {
        if !self.peers.contains(host) && self.peers.is_full() {
            self.limits.reached(BoundedTable::Peers, MAX_PEERS, None, now);
            for least in self.peers.least(PEERS_GIVE_WAY, now) {
                self.release_some(&least, usize::MAX);
                self.peers.remove(&least);
            }
        }
        self.peers.admit(host, now)
    }

    /// The peer with the most claims loses some of them to another, unless that one has as many.
    fn make_room(&mut self, host: &HostName, now: i64) -> bool {
        let mine = self.peers.get(host).map_or(0, |peer| peer.claims.len());
        let Some((largest, peer)) = self.peers.largest() else { return false };
        let largest = largest.clone();
        let gives_way = peer.claims.len() > mine + GIVE_WAY;
        self.limits.reached(BoundedTable::Claims, MAX_CLAIMS, Some(largest.as_str()), now);
        if gives_way {
            self.release_some(&largest, GIVE_WAY);
        }
        gives_way
    }

    /// The least claim on an address gives way to one that counts more: one that is over, then that of the least
    /// senior peer.
    fn make_room_on(&mut self, key: &BanKey, said: &Said, now: i64) -> bool {
        self.limits.reached(
            BoundedTable::Claims,
            MAX_CLAIMS_PER_KEY,
            Some(said.host.as_str()),
            now,
        );
        if !said.is_script() {
            self.admit_peer(&said.host, now);
        }
        let Some(local) = self.jails.get(&key.0) else { return false };
        let (bantime, pace) = (local.bantime(), &self.pace);
        let weight = |said: &Said| {
            let lasts = said.end(bantime, pace) > secs(now);
            (lasts, self.peers.get(&said.host).map(PeerState::seniority))
        };
        let claims = local.cases.get(&key.1).map_or(&[][..], |case| &case.said);
        let least =
            claims.iter().map(|said| (weight(said), said)).min_by_key(|(weight, _)| *weight);
        let Some((_, least)) = least.filter(|(least, _)| *least < weight(said)) else {
            return false;
        };
        let (host, script) = (least.host.clone(), least.is_script());
        self.remove_claims(key, |said| said.host == host && said.is_script() == script)
    }

    fn release_some(&mut self, host: &HostName, max: usize) {
        let keys = self.peers.get(host).map_or_else(Vec::new, |peer| peer.claims.first(max));
        for key in keys {
            self.remove_claims(&key, |said| !said.is_script() && said.host == *host);
            self.queue(&key);
        }
    }

    /// Searches some claims for those that a newer shard of their peer released. Answers whether there is
    /// more to be searched.
    pub(super) fn release_claims(&mut self) -> bool {
        let Some(Released { host, keys, finished }) = self.peers.next_released(SEARCH) else {
            return false;
        };
        for key in keys {
            let covering = self.peers.get(&host).and_then(|peer| peer.covering_stamp(key.1));
            let old = |said: &Said| {
                !said.is_script() && said.host == host && covering.is_some_and(|at| at > said.stamp)
            };
            if self.remove_claims(&key, old) {
                self.queue(&key);
            }
        }
        if let Some(slice) = finished {
            self.end_lifts(&host, slice);
        }
        self.peers.is_searching()
    }

    pub(super) fn has_room_for_jail(&self, jail: &Jail) -> bool {
        self.jails.contains_key(jail)
            || match &self.names {
                Some(names) => {
                    names.contains(jail) || self.jails.len() < names.len() + MAX_OTHER_JAILS
                }
                None => self.jails.len() < MAX_JAILS,
            }
    }

    pub(super) fn said(&self, key: &BanKey, host: &HostName) -> Option<&Said> {
        let case = self.jails.get(&key.0)?.cases.get(&key.1)?;
        case.said.iter().find(|said| !said.is_script() && said.host == *host)
    }

    pub(super) fn last_stamp(&self, key: &BanKey, host: &HostName) -> i64 {
        let said = self.said(key, host).map_or(i64::MIN, |said| said.stamp);
        let covered = self.peers.get(host).and_then(|peer| peer.covering_stamp(key.1));
        said.max(covered.unwrap_or(i64::MIN))
    }

    /// **The last word of a host on an address**: its newest event or covering part.
    #[must_use]
    pub fn word(&self, key: &BanKey, host: &HostName) -> Word {
        let covered = self.peers.get(host).and_then(|peer| peer.covering_stamp(key.1));
        // What a newer shard does not list is released, even before it was searched for.
        let said = self.said(key, host).filter(|said| covered.is_none_or(|at| at <= said.stamp));
        match said {
            Some(said) => {
                said.ban.map_or(Word::Free(said.stamp), |ban| Word::Held(said.stamp, ban))
            }
            None => covered.map_or(Word::Unknown, Word::Free),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(stamp: i64, ban: Option<Ban>) -> Said {
        Said { host: HostName::new("web1").unwrap(), stamp, ban, unbans: None }
    }

    #[test]
    fn a_claim_lasts_until_a_while_after_its_end() {
        let pace = Timing::default();
        let ban = |bantime| Some(Ban { start: 1000, bantime });
        let table = [
            // stamp, ban, the jail's bantime, now -> it lasts
            (5, ban(600), Some(60), 2200, true),
            (5, ban(600), Some(60), 2201, false),
            (5, ban(600), None, 2200, true),
            (5, ban(-1), Some(60), i64::MAX, true),
            (5, ban(0), Some(60), 1000 + 86_400 + 600, true),
            (5, ban(0), Some(60), 1000 + 86_400 + 601, false),
            (5, None, Some(60), 0, false),
            // A script's ends strictly before fail2ban's own end.
            (0, ban(0), Some(60), 1057, true),
            (0, ban(0), Some(60), 1058, false),
            (0, ban(0), Some(2), 1001, true),
            (0, ban(0), Some(2), 1002, false),
            (0, ban(0), Some(-1), i64::MAX, true),
            (0, ban(0), None, i64::MAX, true),
        ];
        for (stamp, ban, bantime, now, lasts) in table {
            assert_eq!(said(stamp, ban).lasts(bantime, now, &pace), lasts, "{stamp} {ban:?} {now}");
        }
    }
}
