//! The shared jails. Sharing works both ways: this host publishes no detection of a jail that is not shared, and
//! accepts no ban for it.

use std::collections::BTreeSet;

use crate::model::Jail;

/// The settings `MQTT_JAILS` and `MQTT_NOT_JAILS`; by default, all jails are shared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JailFilter {
    only: Option<BTreeSet<Jail>>,
    not: BTreeSet<Jail>,
}

impl JailFilter {
    /// Shares `only` these jails, or all if that is `None`, except those in `not`.
    #[must_use]
    pub fn new(only: Option<BTreeSet<Jail>>, not: BTreeSet<Jail>) -> Self {
        Self { only, not }
    }

    /// Whether a jail is shared.
    #[must_use]
    pub fn includes(&self, jail: &Jail) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(jail)) && !self.not.contains(jail)
    }

    /// The shared ones among the jails of fail2ban.
    #[must_use]
    pub fn filter(&self, jails: &BTreeSet<Jail>) -> BTreeSet<Jail> {
        jails.iter().filter(|jail| self.includes(jail)).cloned().collect()
    }

    /// The jails in `MQTT_JAILS` that fail2ban does not have.
    #[must_use]
    pub fn unmatched(&self, jails: &BTreeSet<Jail>) -> Vec<&Jail> {
        self.only.iter().flatten().filter(|jail| !jails.contains(*jail)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &str) -> BTreeSet<Jail> {
        names.split_whitespace().map(|name| Jail::new(name).unwrap()).collect()
    }

    #[test]
    fn jail_filter_includes_all_or_only_named_jails_without_excluded_ones() {
        let table = [
            (None, "", "mail sshd web"),
            (None, "web", "mail sshd"),
            (Some("sshd web"), "", "sshd web"),
            (Some("sshd web lost"), "web", "sshd"),
        ];
        for (only, not, expected) in table {
            let sharing = JailFilter::new(only.map(set), set(not));
            assert_eq!(sharing.filter(&set("mail sshd web")), set(expected), "{only:?} {not}");
        }
        let sharing = JailFilter::new(Some(set("sshd lost")), set(""));
        assert_eq!(sharing.unmatched(&set("mail sshd")), [&Jail::new("lost").unwrap()]);
    }
}
