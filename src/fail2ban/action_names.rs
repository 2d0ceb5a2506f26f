//! Maps the name that an action reports to its jail. An action knows only its `name`, which a jail may set: Debian's
//! own jails `asterisk`, `freeswitch`, `nsd` and `mumble` call their actions `asterisk-tcp` and `asterisk-udp`. No
//! other host has jails of such names.

use std::collections::{BTreeMap, BTreeSet};

use crate::wire::Jail;

/// The most unknown names in memory; any further name is taken as a jail's.
const MAX_UNKNOWN: usize = 1_000;

/// The result of looking up an action's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// The jail of the ban.
    Jail(Jail),
    /// Unknown: fail2ban's actions have to be read first.
    Ask,
}

/// The names of all actions, and the jails that have them.
#[derive(Debug, Default)]
pub struct ActionNames {
    /// By name; actions of several jails may have the same name.
    jails: BTreeMap<Jail, BTreeSet<Jail>>,
    /// Names that no jail and no action has; `true` if the actions were read since the name was seen.
    unknown: BTreeMap<Jail, bool>,
}

impl ActionNames {
    /// Sets the actions of all jails, as pairs of an action's name and its jail.
    pub fn set(&mut self, pairs: impl IntoIterator<Item = (Jail, Jail)>) {
        self.jails.clear();
        for (name, jail) in pairs {
            self.jails.entry(name).or_default().insert(jail);
        }
        self.unknown.values_mut().for_each(|asked| *asked = true);
    }

    /// Whether a name is unknown and the actions were not read since.
    #[must_use]
    pub fn wants_actions(&self) -> bool {
        self.unknown.values().any(|asked| !asked)
    }

    /// Finds the jail of a ban that an action reported under a name. `exists`: fail2ban has a jail of that name.
    /// `has_ban` tells whether fail2ban's database has the ban in a jail; it is called only if several jails match.
    pub fn resolve(
        &mut self,
        name: &Jail,
        exists: bool,
        mut has_ban: impl FnMut(&Jail) -> bool,
    ) -> Resolved {
        let Some(jails) = self.jails.get(name) else {
            let asked = exists || self.unknown.get(name).copied().unwrap_or(false);
            if asked || self.unknown.len() >= MAX_UNKNOWN {
                return Resolved::Jail(name.clone());
            }
            self.unknown.insert(name.clone(), false);
            return Resolved::Ask;
        };
        // The next snapshot corrects a wrong guess.
        let of_name = || jails.get(name).or_else(|| jails.first());
        let jail = match jails.len() {
            1 => jails.first(),
            _ => jails.iter().find(|jail| has_ban(jail)).or_else(of_name),
        };
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

    #[test]
    fn unknown_name_causes_one_read_of_the_actions() {
        let mut names = ActionNames::default();
        let resolve =
            |names: &mut ActionNames, exists| names.resolve(&jail("x-tcp"), exists, |_| false);
        assert_eq!(resolve(&mut names, true), Resolved::Jail(jail("x-tcp")), "it is a jail");
        assert!(!names.wants_actions());
        assert_eq!(resolve(&mut names, false), Resolved::Ask);
        assert_eq!(resolve(&mut names, false), Resolved::Ask);
        assert!(names.wants_actions());
        names.set([]);
        assert!(!names.wants_actions());
        assert_eq!(resolve(&mut names, false), Resolved::Jail(jail("x-tcp")), "another program's");
        names.set([(jail("x-tcp"), jail("x"))]);
        assert_eq!(resolve(&mut names, false), Resolved::Jail(jail("x")));
    }
}
