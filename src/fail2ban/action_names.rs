//! Which jail an action speaks of. An action knows only its `name`, which a jail may set: Debian's own jails
//! `asterisk`, `freeswitch`, `nsd` and `mumble` call their actions `asterisk-tcp` and `asterisk-udp`. No other host has
//! jails of such names.

use std::collections::{BTreeMap, BTreeSet};

use crate::wire::Jail;

/// The most names that are remembered as unknown; what comes on top is passed on as it is.
const MAX_UNKNOWN: usize = 1_000;

/// What to do with a ban that an action reported under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// The ban is in this jail.
    Jail(Jail),
    /// Ask fail2ban for its actions first.
    Ask,
}

/// The names of all actions, and the jails that have them.
#[derive(Debug, Default)]
pub struct ActionNames {
    /// A name may be that of actions of several jails.
    jails: BTreeMap<Jail, BTreeSet<Jail>>,
    /// Names that no jail and no action has; `true`: since the actions were last read.
    unknown: BTreeMap<Jail, bool>,
}

impl ActionNames {
    /// Takes the names of the actions of all jails: pairs of a name and a jail.
    pub fn set(&mut self, pairs: impl IntoIterator<Item = (Jail, Jail)>) {
        self.jails.clear();
        for (name, jail) in pairs {
            self.jails.entry(name).or_default().insert(jail);
        }
        self.unknown.values_mut().for_each(|asked| *asked = true);
    }

    /// Whether to read the actions because of an unknown name.
    #[must_use]
    pub fn wants_actions(&self) -> bool {
        self.unknown.values().any(|asked| !asked)
    }

    /// Finds the jail of a ban that an action reported under a name. `exists`: fail2ban has a jail of that name.
    /// `has_ban` tells whether fail2ban's database has the ban in a jail; only several jails of one name need it.
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
        // A guess that is wrong is put right by the next snapshot.
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
    fn ban_is_in_the_jail_whose_action_reported_it() {
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
        // The name, the jail in which the database has the ban -> the jail.
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
    fn unknown_name_is_asked_for_once() {
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
