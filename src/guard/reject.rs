//! Reasons for rejection, and their counters. The names of the reasons are part of presence, metrics and the status
//! file, so they never change.

use std::collections::BTreeMap;
use std::fmt;

/// Why a message, or one ban in it, was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RejectReason {
    /// The message is not the expected JSON, or a field is invalid.
    Malformed,
    /// The topic does not match the kind, the host or the shard of the message.
    WrongTopic,
    /// The message exceeds the size limit.
    TooLarge,
    /// The action is neither ban nor unban.
    UnknownAction,
    /// This host's fail2ban does not have the jail.
    UnknownJail,
    /// This host does not share the jail.
    NotShared,
    /// The address can be no other machine's: loopback, multicast, link-local.
    Unbannable,
    /// `MQTT_NEVER_BAN` has the address.
    NeverBan,
    /// The jail's `ignoreip` has the address, or it is this host's own or the broker's.
    IgnoreList,
    /// The message is not signed but must be.
    Unsigned,
    /// The signature does not match: another key, another topic, or a changed message.
    WrongSignature,
    /// The message is too old: probably a replay.
    Old,
    /// The stamp is more than a day ahead of this host's clock.
    Ahead,
    /// A limit on entries, of one host or in total, is reached.
    TooMany,
    /// The host exceeds the limit of messages per minute.
    TooFast,
}

impl RejectReason {
    /// All reasons, in the order of the enum, because each counter is at the index of its reason. A new reason is the
    /// last one.
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

    /// The stable name of the reason.
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

/// The number of rejections by reason since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RejectCounters([u64; RejectReason::ALL.len()]);

impl RejectCounters {
    /// Counts one rejection. The counter stops at its maximum.
    pub fn count(&mut self, reason: RejectReason) {
        let count = &mut self.0[reason as usize];
        *count = count.saturating_add(1);
    }

    /// The number of rejections for a reason.
    #[must_use]
    pub fn of(&self, reason: RejectReason) -> u64 {
        self.0[reason as usize]
    }

    /// The counts above 0, by the name of the reason.
    #[must_use]
    pub fn by_name(&self) -> BTreeMap<String, u64> {
        let counts = RejectReason::ALL.into_iter().map(|reason| (reason, self.of(reason)));
        let some = counts.filter(|(_, count)| *count > 0);
        some.map(|(reason, count)| (reason.name().to_owned(), count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_name_and_counter() {
        let mut rejections = RejectCounters::default();
        assert!(rejections.by_name().is_empty());
        for (n, reason) in RejectReason::ALL.into_iter().enumerate() {
            let mut chars = reason.name().chars();
            assert!(chars.all(|c| c.is_ascii_lowercase() || c == '_'), "{reason}");
            assert!(reason.name().len() <= 32, "{reason}");
            assert_eq!(reason as usize, n, "{reason}: ALL has the order of the enum");
            (0..=n).for_each(|_| rejections.count(reason));
        }
        assert_eq!(rejections.of(RejectReason::Old), 12, "a new reason is the last one");
        let by_name = rejections.by_name();
        assert_eq!(by_name.len(), RejectReason::ALL.len(), "no name twice");
        assert_eq!((by_name["malformed"], by_name["too_fast"]), (1, 15));
    }
}
