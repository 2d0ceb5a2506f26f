//! **Fleet unbans**: an address is freed on every host, whoever banned it, and stays free until somebody
//! detects it anew.
//!
//! Each host writes the unban's id down, frees the address once, and from then on repeats the id wherever it
//! tells of the address. A claim that does not carry every fleet unban of its address that is known here is
//! void. So a host that was away, or an old snapshot, brings nothing back; and no clock is compared.

use std::collections::{BTreeMap, BTreeSet};

use super::claims::Said;
use super::{Change, Key, Pace};
use crate::wire::{Address, Jail, Pardon, Scope, UnbanId};

/// The most fleet unbans that are kept in mind, and of one address.
const MAX_UNBANS: usize = 20_000;
const MAX_OF_ONE: usize = 50;

/// One fleet unban.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unban {
    pub(super) scope: Scope,
    pub(super) id: UnbanId,
    /// fail2ban here was told to free the address since.
    pub(super) obeyed: bool,
    /// In these jails it was, on the way there.
    freed: BTreeSet<Jail>,
    /// In these it is still to be: they were not there when it came.
    left: BTreeSet<Jail>,
    /// How many had come by then since this process began; 0: before.
    heard: u64,
}

/// All that are known here.
#[derive(Debug, Default)]
pub(super) struct Unbans {
    known: BTreeMap<Address, Vec<Unban>>,
    count: usize,
    /// How many came since this process began.
    heard: u64,
}

impl Unbans {
    /// Takes up what an earlier process remembered.
    pub(super) fn remember(&mut self, pardon: Pardon, obeyed: bool) {
        let Pardon { scope, address, id } = pardon;
        let (freed, left) = (BTreeSet::new(), BTreeSet::new());
        let unban = Unban { scope, id, obeyed, freed, left, heard: self.heard };
        self.known.entry(address).or_default().push(unban);
        self.count += 1;
    }

    /// Whether there is room for one more of an address.
    pub(super) fn has_room(&self, address: Address) -> bool {
        let of = self.known.get(&address).map_or(0, Vec::len);
        self.count < MAX_UNBANS && of < MAX_OF_ONE
    }

    /// Whether it is known here.
    pub(super) fn knows(&self, pardon: &Pardon) -> bool {
        let of = self.known.get(&pardon.address).into_iter().flatten();
        of.into_iter().any(|unban| unban.id == pardon.id && unban.scope == pardon.scope)
    }

    /// Hears of one; `None` if it is known already, too old or too many. `now` is in milliseconds.
    pub(super) fn hear(&mut self, pardon: &Pardon, now: i64, pace: &Pace) -> Option<Change> {
        const DAY: i64 = 86_400_000;
        let age = now.saturating_sub(pardon.id.made());
        let of = self.known.get(&pardon.address);
        let known = of.into_iter().flatten().any(|u| u.id == pardon.id && u.scope == pardon.scope);
        let full = !self.has_room(pardon.address);
        if known || full || age > pace.keep_unbans * 1000 || age < -DAY {
            return None;
        }
        self.heard += 1;
        self.remember(pardon.clone(), false);
        Some(Change::Unban(pardon.clone(), Some(false)))
    }

    /// **A claim that does not carry every fleet unban of its address that is known here is void.**
    pub(super) fn voids(&self, key: &Key, said: &Said) -> bool {
        !said.is_script() && self.of(key).any(|unban| !said.carries(&unban.id))
    }

    /// The ids that this host repeats with its own words on an address: those that it has obeyed.
    pub(super) fn carried(&self, key: &Key) -> Vec<UnbanId> {
        let obeyed = |unban: &&Unban| unban.obeyed && !unban.left.contains(&key.0);
        self.of(key).filter(obeyed).map(|unban| unban.id.clone()).collect()
    }

    /// Everything that this host repeats in its snapshot.
    pub(super) fn obeyed(&self) -> impl Iterator<Item = Pardon> {
        self.known.iter().flat_map(|(address, unbans)| {
            let obeyed = unbans.iter().filter(|unban| unban.obeyed);
            obeyed.map(|Unban { scope, id, .. }| {
                let (scope, id) = (scope.clone(), id.clone());
                Pardon { scope, address: *address, id }
            })
        })
    }

    /// An address that is still to be freed in one of these jails.
    pub(super) fn to_obey(&self, jails: &BTreeSet<Jail>) -> Option<Key> {
        self.known.iter().find_map(|(address, unbans)| {
            let left = |unban: &Unban| {
                let left = |jail: &&Jail| {
                    let waits = !unban.obeyed && !unban.freed.contains(*jail);
                    unban.scope.covers(jail) && (waits || unban.left.contains(*jail))
                };
                jails.iter().find(left).cloned()
            };
            unbans.iter().find_map(left).map(|jail| (jail, *address))
        })
    }

    /// How many of those that were heard of since this process began are obeyed, up to the first that is not.
    pub(super) fn done(&self) -> u64 {
        let waits = self.known.values().flatten().filter(|unban| !unban.obeyed);
        waits.map(|unban| unban.heard.saturating_sub(1)).min().unwrap_or(self.heard)
    }

    /// A jail is there, and was not for those that were heard of after so many others: what it restores of
    /// them is freed.
    pub(super) fn appears(&mut self, jail: &Jail, after: u64) {
        for unban in self.known.values_mut().flatten() {
            if unban.obeyed && unban.heard > after && unban.scope.covers(jail) {
                unban.left.insert(jail.clone());
            }
        }
    }

    /// An address was freed in a jail.
    pub(super) fn freed(&mut self, key: &Key) {
        for unban in self.known.get_mut(&key.1).into_iter().flatten() {
            if unban.scope.covers(&key.0) {
                unban.freed.insert(key.0.clone());
                unban.left.remove(&key.0);
            }
        }
    }

    /// Notes which are obeyed: nothing of them is left to be freed in these jails, nor `awaited` in another
    /// that fail2ban has yet to make. Answers whether some were postponed for that.
    pub(super) fn settle(
        &mut self,
        jails: &BTreeSet<Jail>,
        awaited: impl Fn(Address, &Scope) -> bool,
    ) -> (Vec<(Address, Change)>, bool) {
        let (mut settled, mut postponed) = (Vec::new(), false);
        for (address, unbans) in &mut self.known {
            for unban in unbans.iter_mut().filter(|unban| !unban.obeyed) {
                let done = |jail: &Jail| !unban.scope.covers(jail) || unban.freed.contains(jail);
                if !jails.iter().all(done) {
                    continue;
                }
                if awaited(*address, &unban.scope) {
                    postponed = true;
                } else {
                    unban.obeyed = true;
                    unban.freed.clear();
                    let (scope, id) = (unban.scope.clone(), unban.id.clone());
                    let pardon = Pardon { scope, address: *address, id };
                    settled.push((*address, Change::Unban(pardon, Some(true))));
                }
            }
        }
        (settled, postponed)
    }

    /// **Kept for 30 days, and longer while a snapshot lists the address without it**, which `listed`
    /// tells.
    pub(super) fn tidy(
        &mut self,
        now: i64,
        pace: &Pace,
        listed: impl Fn(Address, &Scope, &UnbanId) -> bool,
    ) -> Vec<(Address, Change)> {
        let mut gone = Vec::new();
        self.known.retain(|address, unbans| {
            unbans.retain(|Unban { scope, id, .. }| {
                let old = now.saturating_sub(id.made()) > pace.keep_unbans * 1000;
                let keep = !old || listed(*address, scope, id);
                if !keep {
                    let (scope, id) = (scope.clone(), id.clone());
                    let pardon = Pardon { scope, address: *address, id };
                    gone.push((*address, Change::Unban(pardon, None)));
                }
                keep
            });
            !unbans.is_empty()
        });
        self.count -= gone.len();
        gone
    }

    fn of(&self, key: &Key) -> impl Iterator<Item = &Unban> {
        let of = self.known.get(&key.1).into_iter().flatten();
        of.filter(|unban| unban.scope.covers(&key.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Ban, Host};

    const NOW: i64 = 10_000_000_000;
    const DAY: i64 = 86_400_000;

    fn pardon(scope: &str, made: i64) -> Pardon {
        let host = Host::new("web2").unwrap();
        let address = Address::new("192.0.2.1").unwrap();
        Pardon { scope: Scope::new(scope).unwrap(), address, id: UnbanId::made_by(&host, made) }
    }

    fn key(jail: &str) -> Key {
        (Jail::new(jail).unwrap(), Address::new("192.0.2.1").unwrap())
    }

    fn claim(stamp: i64, carries: &[&Pardon]) -> Said {
        let unbans: Vec<_> = carries.iter().map(|pardon| pardon.id.clone()).collect();
        let ban = Some(Ban { start: 1, bantime: 600 });
        Said { host: Host::new("web1").unwrap(), stamp, ban, unbans: Some(unbans.into()) }
    }

    #[test]
    fn a_claim_without_a_known_unban_of_its_address_is_void() {
        let (pace, mut unbans) = (Pace::default(), Unbans::default());
        let (every, one) = (pardon("*", NOW), pardon("sshd", NOW + 1));
        assert!(!unbans.voids(&key("sshd"), &claim(1, &[])));
        assert!(unbans.hear(&every, NOW, &pace).is_some());
        assert!(unbans.hear(&every, NOW, &pace).is_none(), "once is enough");
        assert!(unbans.hear(&one, NOW, &pace).is_some());
        let table = [
            ("sshd", claim(1, &[]), true),
            ("sshd", claim(1, &[&every]), true),
            ("sshd", claim(1, &[&every, &one]), false),
            ("web", claim(1, &[&every]), false),
            ("web", claim(1, &[&one]), true),
            ("sshd", claim(0, &[]), false), // a script's comes after the unban, or was forgotten with it
        ];
        for (jail, said, void) in table {
            assert_eq!(unbans.voids(&key(jail), &said), void, "{jail} {said:?}");
        }
    }

    #[test]
    fn it_is_obeyed_once_in_every_jail_and_then_repeated() {
        let (pace, mut unbans) = (Pace::default(), Unbans::default());
        let jails = BTreeSet::from([key("sshd").0, key("web").0]);
        unbans.hear(&pardon("*", NOW), NOW, &pace);
        assert_eq!(unbans.carried(&key("sshd")), []);
        assert_eq!(unbans.to_obey(&jails), Some(key("sshd")));
        unbans.freed(&key("sshd"));
        let none = |_: Address, _: &Scope| false;
        assert_eq!(unbans.settle(&jails, none), (vec![], false));
        assert_eq!(unbans.to_obey(&jails), Some(key("web")));
        unbans.freed(&key("web"));
        assert_eq!(unbans.to_obey(&jails), None);
        let change = Change::Unban(pardon("*", NOW), Some(true));
        assert_eq!(unbans.settle(&jails, |_, _| true), (vec![], true), "another is to come");
        assert_eq!(unbans.settle(&jails, none), (vec![(key("web").1, change)], false));
        assert_eq!(unbans.settle(&jails, none), (vec![], false));
        assert_eq!(unbans.carried(&key("web")), [pardon("*", NOW).id]);
        assert_eq!(unbans.obeyed().collect::<Vec<_>>(), [pardon("*", NOW)]);
    }

    #[test]
    fn a_jail_that_was_gone_obeys_when_it_is_back() {
        let (pace, mut unbans) = (Pace::default(), Unbans::default());
        let (sshd, web) = (BTreeSet::from([key("sshd").0]), BTreeSet::from([key("web").0]));
        unbans.hear(&pardon("*", NOW), NOW, &pace);
        assert_eq!(unbans.done(), 0);
        assert_eq!(unbans.to_obey(&sshd), Some(key("sshd")));
        unbans.freed(&key("sshd"));
        let change = Change::Unban(pardon("*", NOW), Some(true));
        assert_eq!(unbans.settle(&sshd, |_, _| false), (vec![(key("web").1, change)], false));
        unbans.appears(&key("web").0, unbans.done());
        assert_eq!(unbans.to_obey(&web), None, "it was there");
        unbans.appears(&key("web").0, 0);
        assert_eq!(unbans.to_obey(&sshd), None);
        assert_eq!((unbans.carried(&key("sshd")).len(), unbans.carried(&key("web")).len()), (1, 0));
        assert_eq!(unbans.to_obey(&web), Some(key("web")));
        unbans.freed(&key("web"));
        assert_eq!(unbans.to_obey(&web), None);
        assert_eq!(unbans.carried(&key("web")).len(), 1);
    }

    #[test]
    fn it_is_kept_for_a_month_and_as_long_as_somebody_lists_the_address_without_it() {
        let (pace, mut unbans) = (Pace::default(), Unbans::default());
        assert!(unbans.hear(&pardon("*", NOW - 31 * DAY), NOW, &pace).is_none(), "too old");
        assert!(
            unbans.hear(&pardon("*", NOW + 2 * DAY), NOW, &pace).is_none(),
            "not of this world"
        );
        assert!(unbans.hear(&pardon("*", NOW), NOW, &pace).is_some());
        assert_eq!(unbans.tidy(NOW + 30 * DAY, &pace, |_, _, _| false), []);
        assert_eq!(unbans.tidy(NOW + 31 * DAY, &pace, |_, _, _| true), []);
        let change = Change::Unban(pardon("*", NOW), None);
        let gone = unbans.tidy(NOW + 31 * DAY, &pace, |_, _, _| false);
        assert_eq!(gone, [(key("web").1, change)]);
        assert!(!unbans.voids(&key("web"), &claim(1, &[])));
        for n in 0..60 {
            unbans.hear(&pardon("*", NOW + n), NOW, &pace);
        }
        assert_eq!(unbans.count, MAX_OF_ONE);
    }
}
