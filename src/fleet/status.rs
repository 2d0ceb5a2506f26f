//! Builds the presence of this host, and the counts for the status file and the exporters.

use super::Controller;
use super::jails::JailState;
use super::limits::ReachedLimits;
use crate::model::{HostName, Jail};
use crate::sys::clock::is_within;
use crate::wire::{HostState, Presence};

/// The numbers of one jail of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JailCounts {
    /// The name of the jail.
    pub jail: Jail,
    /// Bans that this host detected.
    pub detected: usize,
    /// Bans imported from other hosts.
    pub imported: usize,
    /// Bans of other hosts that the operator removed here by hand.
    pub overrides: usize,
}

impl Controller {
    /// The presence to publish, if it changed on this connection. `itself` provides the fields that the controller does
    /// not know. Changed jails are published at once, acknowledgements at most every 3 s, and counts every minute.
    pub fn presence(&mut self, itself: impl FnOnce() -> Presence, now: i64) -> Option<Presence> {
        let acks = self.update_acks(now);
        let jails = self.known_jails.as_ref();
        if let Some((last, at)) = &self.presence {
            let same = jails.is_none_or(|jails| last.jails == *jails);
            let has_new_ack = acks.iter().any(|ack| !last.acks.contains(ack));
            let pause = match (has_new_ack, self.presence_lost) {
                (true, _) => self.timing.ack_interval,
                (_, true) => self.timing.republish_cooldown,
                _ => self.timing.status_interval,
            };
            if same && is_within(pause, *at, now) {
                return None;
            }
        }
        let presence = Presence {
            state: HostState::Online,
            jails: jails.cloned().unwrap_or_default(),
            bans: self.jails.values().map(|jail_state| jail_state.local_bans.len()).sum(),
            imported: self.jails.values().map(JailState::import_count).sum(),
            acks,
            ..itself()
        };
        let replaced = std::mem::take(&mut self.presence_lost);
        let last = self.presence.replace((presence.clone(), now)).map(|(last, _)| last);
        (replaced || last.as_ref() != Some(&presence)).then_some(presence)
    }

    /// How many other hosts are known, and how many of their snapshots are complete.
    #[must_use]
    pub fn hosts(&self) -> (usize, usize) {
        self.peer_sync.count_others(&self.me)
    }

    /// Whether this host has state of a peer.
    #[must_use]
    pub fn is_peer(&self, host: &HostName) -> bool {
        self.peers.contains(host)
    }

    /// The limits that were reached.
    #[must_use]
    pub fn limits(&self) -> &ReachedLimits {
        &self.limits
    }

    /// The limits, to note one that the caller reached.
    pub fn limits_mut(&mut self) -> &mut ReachedLimits {
        &mut self.limits
    }

    /// How many bans of other hosts are known.
    #[must_use]
    pub fn claims(&self) -> usize {
        let entries = self.jails.values().flat_map(|jail_state| jail_state.entries.values());
        entries.flat_map(|entry| &entry.claims).filter(|claim| claim.ban.is_some()).count()
    }

    /// Whether fail2ban answers.
    #[must_use]
    pub fn is_served(&self) -> bool {
        self.heartbeat.is_some()
    }

    /// The counts of bans in each jail of this host.
    #[must_use]
    pub fn jail_counts(&self) -> Vec<JailCounts> {
        let counts = self.known_jails.iter().flatten().map(|jail| {
            let jail_state = self.jails.get(jail);
            JailCounts {
                jail: jail.clone(),
                detected: jail_state.map_or(0, |jail_state| jail_state.local_bans.len()),
                imported: jail_state.map_or(0, JailState::import_count),
                overrides: self.overrides.count(jail),
            }
        });
        counts.collect()
    }
}
