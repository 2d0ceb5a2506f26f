//! What was refused, counted by its reason. The reasons are a closed list, and their names are for good:
//! they are in what a host says of itself, and in its figures.

use std::collections::BTreeMap;
use std::fmt;

/// Why a message of the fleet, or a part of one, is not obeyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RejectReason {
    /// It is no message: not the JSON that it should be, or a field is not what it must be.
    Malformed,
    /// It is on another topic than its host or its part has.
    WrongTopic,
    /// It is larger than any message of the fleet.
    TooLarge,
    /// It says neither ban nor unban.
    UnknownAction,
    /// fail2ban here has no such jail.
    UnknownJail,
    /// The jail does not take part on this host.
    NotShared,
    /// No other machine can have such an address: loopback, multicast, link-local.
    Unbannable,
    /// The settings keep the address from being banned.
    NeverBan,
    /// The jail's `ignoreip` has the address, or it is this host's own or the broker's.
    IgnoreList,
    /// It is not signed, and has to be.
    Unsigned,
    /// It is signed with another key, or was changed.
    WrongSignature,
    /// It was true once: a message of long ago, sent again.
    Old,
    /// Its time is more than a day ahead of this host's clock.
    Ahead,
    /// It is beyond what is kept in mind of one host, or of all.
    TooMany,
    /// Its host says more in a minute than any host has to say.
    TooFast,
}

impl RejectReason {
    /// All of them, in their order.
    pub const ALL: [Self; 15] = [
        Self::Malformed,
        Self::WrongTopic,
        Self::TooLarge,
        Self::UnknownAction,
        Self::UnknownJail,
        Self::NotShared,
        Self::Unbannable,
        Self::NeverBan,
        Self::IgnoreList,
        Self::Unsigned,
        Self::WrongSignature,
        Self::Old,
        Self::Ahead,
        Self::TooMany,
        Self::TooFast,
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::WrongTopic => "wrong_topic",
            Self::TooLarge => "too_large",
            Self::UnknownAction => "unknown_action",
            Self::UnknownJail => "unknown_jail",
            Self::NotShared => "not_shared",
            Self::Unbannable => "unbannable",
            Self::NeverBan => "never_ban",
            Self::IgnoreList => "ignored",
            Self::Unsigned => "unsigned",
            Self::WrongSignature => "wrong_signature",
            Self::Old => "old",
            Self::Ahead => "ahead",
            Self::TooMany => "too_many",
            Self::TooFast => "too_fast",
        }
    }
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How often what was refused since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RejectCounters([u64; RejectReason::ALL.len()]);

impl RejectCounters {
    /// Counts one.
    pub fn count(&mut self, refusal: RejectReason) {
        let count = &mut self.0[refusal as usize];
        *count = count.saturating_add(1);
    }

    /// How often something was refused for this reason.
    #[must_use]
    pub fn of(&self, refusal: RejectReason) -> u64 {
        self.0[refusal as usize]
    }

    /// How often for each reason, those that never were left out.
    #[must_use]
    pub fn by_name(&self) -> BTreeMap<String, u64> {
        let counts = RejectReason::ALL.into_iter().map(|refusal| (refusal, self.of(refusal)));
        let some = counts.filter(|(_, count)| *count > 0);
        some.map(|(refusal, count)| (refusal.name().to_owned(), count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_name_and_a_counter_of_its_own() {
        let mut refusals = RejectCounters::default();
        assert!(refusals.by_name().is_empty());
        for (n, refusal) in RejectReason::ALL.into_iter().enumerate() {
            let word = |c: char| c.is_ascii_lowercase() || c == '_';
            assert!(refusal.name().chars().all(word) && refusal.name().len() <= 32);
            assert_eq!(refusal as usize, n);
            (0..=n).for_each(|_| refusals.count(refusal));
        }
        assert_eq!(refusals.of(RejectReason::Old), 12);
        let by_name = refusals.by_name();
        assert_eq!(by_name.len(), RejectReason::ALL.len(), "no name twice");
        assert_eq!((by_name["malformed"], by_name["too_fast"]), (1, 15));
    }
}
