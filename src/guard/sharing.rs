//! Which jails take part, both ways: what is detected here in one that does not is told to nobody, and
//! nobody's word on it counts here.

use std::collections::BTreeSet;

use crate::wire::Jail;

/// What `MQTT_JAILS` and `MQTT_NOT_JAILS` say; by default all take part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JailFilter {
    only: Option<BTreeSet<Jail>>,
    not: BTreeSet<Jail>,
}

impl JailFilter {
    /// `only` these, or all, but `not` those.
    #[must_use]
    pub fn new(only: Option<BTreeSet<Jail>>, not: BTreeSet<Jail>) -> Self {
        Self { only, not }
    }

    /// Whether a jail takes part.
    #[must_use]
    pub fn includes(&self, jail: &Jail) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(jail)) && !self.not.contains(jail)
    }

    /// Those of the jails that fail2ban has that take part.
    #[must_use]
    pub fn filter(&self, jails: &BTreeSet<Jail>) -> BTreeSet<Jail> {
        jails.iter().filter(|jail| self.includes(jail)).cloned().collect()
    }

    /// Jails that are to take part, and that fail2ban does not have.
    #[must_use]
    pub fn unmatched(&self, jails: &BTreeSet<Jail>) -> Vec<&Jail> {
        self.only.iter().flatten().filter(|jail| !jails.contains(*jail)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_take_part_or_those_that_are_named_but_others() {
        let set = |names: &str| -> BTreeSet<Jail> {
            names.split_whitespace().map(|name| Jail::new(name).unwrap()).collect()
        };
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
