//! Maps the name that an action reports to its jail. An action knows only its `name`, which a jail may set: Debian's
//! own jails `asterisk`, `freeswitch`, `nsd` and `mumble` call their actions `asterisk-tcp` and `asterisk-udp`. No
//! other host has jails of such names.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::Jail;

/// The most unknown names in memory; any further name is taken as a jail's.
const MAX_UNKNOWN: usize = 1_000;

/// The result of looking up an action's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// The jail of the ban.
    Jail(Jail),
    /// Unknown: the caller reads fail2ban's actions first.
    ActionsNeeded,
}

/// The names of all actions, and the jails that have them.
#[derive(Debug, Default)]
pub struct ActionNames {
    /// By name; actions of several jails may have the same name.
    jails: BTreeMap<Jail, BTreeSet<Jail>>,
    /// Names that no jail and no action has; `true` if the actions were read after the name arrived.
    unknown: BTreeMap<Jail, bool>,
}

impl ActionNames {
    /// Sets the actions of all jails, as pairs of an action's name and its jail.
    pub fn set(&mut self, pairs: impl IntoIterator<Item = (Jail, Jail)>) {
        self.jails.clear();
        for (name, jail) in pairs {
            self.jails.entry(name).or_default().insert(jail);
        }
        self.unknown.values_mut().for_each(|is_resolved| *is_resolved = true);
    }

    /// Whether a name is unknown and the actions were not read since.
    #[must_use]
    pub fn should_read_actions(&self) -> bool {
        self.unknown.values().any(|is_resolved| !is_resolved)
    }

    /// Finds the jail of a ban that an action reported under a name. `exists`: fail2ban has a jail of that name.
    /// `has_ban` looks up the ban of a jail in fail2ban's database. It is called only if several jails match.
    pub fn resolve(
        &mut self,
        name: &Jail,
        exists: bool,
        mut has_ban: impl FnMut(&Jail) -> bool,
    ) -> Resolved {
        let Some(jails) = self.jails.get(name) else {
            let is_resolved = exists || self.unknown.get(name).copied().unwrap_or(false);
            if is_resolved || self.unknown.len() >= MAX_UNKNOWN {
                return Resolved::Jail(name.clone());
            }
            self.unknown.insert(name.clone(), false);
            return Resolved::ActionsNeeded;
        };
        let jail_with_ban =
            if jails.len() == 1 { None } else { jails.iter().find(|jail| has_ban(jail)) };
        // Without a ban in the database, guess. The next snapshot corrects a wrong guess.
        let jail = jail_with_ban.or_else(|| jails.get(name)).or_else(|| jails.first());
        Resolved::Jail(jail.unwrap_or(name).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jail(name: &str) -> Jail {
        Jail::new(name).unwrap()
    }

    #[test]
    fn ban_reported_by_an_action_is_in_its_jail() {
        let mut names = ActionNames::default();
        let pairs = [
            ("asterisk-tcp", "asterisk"),
            ("asterisk-udp", "asterisk"),
            ("sshd", "sshd"),
            ("sshd", "sshd-ddos"),
            ("HTTP", "http"),
            ("HTTP", "https"),
        ];
        names.set(pairs.map(|(name, of)| (jail(name), jail(of))));
        // The action's name, the jail in which the database has the ban, the expected jail.
        let table = [
            ("asterisk-tcp", "", "asterisk"),
            ("asterisk-udp", "", "asterisk"),
            ("sshd", "sshd", "sshd"),
            ("sshd", "sshd-ddos", "sshd-ddos"),
            ("sshd", "", "sshd"),
            ("HTTP", "https", "https"),
            ("HTTP", "", "http"),
            ("plain", "", "plain"),
        ];
        for (name, has, expected) in table {
            let resolved = names.resolve(&jail(name), true, |jail| jail.as_str() == has);
            assert_eq!(resolved, Resolved::Jail(jail(expected)), "{name} {has}");
        }
    }

    fn resolve(names: &mut ActionNames, exists: bool) -> Resolved {
        names.resolve(&jail("x-tcp"), exists, |_| false)
    }

    #[test]
    fn unknown_name_causes_one_read_of_the_actions() {
        let mut names = ActionNames::default();
        assert_eq!(resolve(&mut names, true), Resolved::Jail(jail("x-tcp")), "it is a jail");
        assert!(!names.should_read_actions());
        assert_eq!(resolve(&mut names, false), Resolved::ActionsNeeded);
        assert_eq!(resolve(&mut names, false), Resolved::ActionsNeeded);
        assert!(names.should_read_actions());
        names.set([]);
        assert!(!names.should_read_actions());
        assert_eq!(resolve(&mut names, false), Resolved::Jail(jail("x-tcp")), "another program's");
        names.set([(jail("x-tcp"), jail("x"))]);
        assert_eq!(resolve(&mut names, false), Resolved::Jail(jail("x")));
    }
}
