//! What the fleet is told of this host beside its bans, and what its operator is shown: counts, acknowledgements,
//! and how much is known of the others.

use super::Fleet;
use super::limits::Limits;
use super::look::Local;
use crate::figures::JailFigures;
use crate::wire::{Host, Jail, Presence, State};

impl Fleet {
    /// What is to be said of this host itself, where that is news on this connection. `itself` has what the
    /// fleet knows nothing of. Jails are news at once; acknowledgements, three seconds after what was published
    /// last, and counts, a minute.
    pub fn presence(&mut self, itself: impl FnOnce() -> Presence, now: i64) -> Option<Presence> {
        let acks = self.update_acks(now);
        let jails = self.names.as_ref();
        if let Some((last, at)) = &self.presence {
            let same = jails.is_none_or(|jails| last.jails == *jails);
            let has_new_ack = acks.iter().any(|ack| !last.acks.contains(ack));
            let pause = match (has_new_ack, self.presence_lost) {
                (true, _) => self.pace.ack_interval,
                (_, true) => self.pace.echo,
                _ => self.pace.counts,
            };
            if same && (0..pause).contains(&(now - at)) {
                return None;
            }
        }
        let held = |local: &Local| local.cases.values().filter(|case| case.mark.is_some()).count();
        let presence = Presence {
            state: State::Online,
            jails: jails.cloned().unwrap_or_default(),
            bans: self.jails.values().map(|local| local.own.len()).sum(),
            held: self.jails.values().map(held).sum(),
            acks,
            ..itself()
        };
        let replaced = std::mem::take(&mut self.presence_lost);
        let last = self.presence.replace((presence.clone(), now)).map(|(last, _)| last);
        (replaced || last.as_ref() != Some(&presence)).then_some(presence)
    }

    /// How many other hosts are known, and of how many everything.
    #[must_use]
    pub fn hosts(&self) -> (usize, usize) {
        self.branches.count_others(&self.me)
    }

    /// Whether something is kept of a host.
    #[must_use]
    pub fn is_peer(&self, host: &Host) -> bool {
        self.peers.contains(host)
    }

    /// The limits that were reached.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    #[allow(missing_docs)]
    pub fn limits_mut(&mut self) -> &mut Limits {
        &mut self.limits
    }

    /// How many bans of other hosts are known.
    #[must_use]
    pub fn claims(&self) -> usize {
        let cases = self.jails.values().flat_map(|local| local.cases.values());
        cases.flat_map(|case| &case.said).filter(|said| said.ban.is_some()).count()
    }

    /// Whether fail2ban answers.
    #[must_use]
    pub fn is_served(&self) -> bool {
        self.pulse.is_some()
    }

    /// What each jail of this host holds.
    #[must_use]
    pub fn figures(&self) -> Vec<JailFigures> {
        let figures = |jail: &Jail| {
            let local = self.jails.get(jail);
            let marked = |local: &Local| local.cases.values().filter(|c| c.mark.is_some()).count();
            JailFigures {
                jail: jail.clone(),
                detected: local.map_or(0, |local| local.own.len()),
                imported: local.map_or(0, marked),
                lifted: self.lifts.count(jail),
            }
        };
        self.names.iter().flatten().map(figures).collect()
    }
}
