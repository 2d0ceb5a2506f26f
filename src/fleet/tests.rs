//! Stories of a few words each, and what fail2ban is told at their end.

use super::*;

/// A host with a fleet's memory and a stand-in for what its fail2ban bans.
#[derive(Default)]
struct Server {
    fleet: Fleet,
    here: Here,
    stamp: i64,
}

const IP: &str = "203.0.113.9";

fn jail() -> Jail {
    Jail::new("sshd").unwrap()
}

fn address(ip: &str) -> Address {
    Address::new(ip).unwrap()
}

fn event(action: Action, host: &str, ip: &str, stamp: i64) -> Event {
    Event {
        action,
        jail: jail(),
        address: address(ip),
        bantime: 600,
        host: Host::new(host).unwrap(),
        restored: 0,
        failures: 3,
        time: 1,
        stamp,
        reason: None,
    }
}

impl Server {
    fn hears(&mut self, action: Action, host: &str) {
        self.stamp += 1;
        assert!(self.fleet.hear(&event(action, host, IP, self.stamp), 0));
    }

    /// Asks fail2ban and does what is to be done; answers with words like `ban 203.0.113.9 (web1)`.
    fn works(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        while let Some((jail, addresses)) = self.fleet.next(2) {
            let plan = self.fleet.plan(&jail, &addresses, &self.here);
            for work in &plan.import {
                self.here.held.insert(work.address);
                told.push(format!("ban {} ({})", work.address, work.host));
            }
            for work in &plan.free {
                self.here.held.remove(&work.address);
                told.push(format!("unban {} ({})", work.address, work.host));
            }
            self.fleet.done(&jail, &plan, Some(600));
        }
        told
    }

    fn restarts(&mut self) {
        let imports: Vec<_> = self.remembered().into_iter().collect();
        self.fleet = Fleet::remembering(imports);
    }

    /// What the store would hold, from all changes so far.
    fn remembered(&mut self) -> BTreeMap<Key, Import> {
        let keys: Vec<Key> = self.fleet.marks.keys().cloned().collect();
        self.fleet.unsaved(keys);
        let changes = self.fleet.changes().into_iter();
        changes.filter_map(|(key, import)| Some((key, import?))).collect()
    }
}

const NOTHING: [&str; 0] = [];

#[test]
fn a_ban_is_imported_once_and_freed_with_its_origin() {
    let mut it = Server::default();
    it.hears(Action::Ban, "web1");
    it.hears(Action::Ban, "web1");
    assert_eq!(it.works(), ["ban 203.0.113.9 (web1)"]);
    it.hears(Action::Ban, "web2");
    assert_eq!(it.works(), NOTHING);
    it.hears(Action::Unban, "web1");
    assert_eq!(it.works(), NOTHING, "web2 still bans it");
    it.hears(Action::Unban, "web2");
    assert_eq!(it.works(), ["unban 203.0.113.9 (web2)"]);
    it.hears(Action::Ban, "web1");
    assert_eq!(it.works(), ["ban 203.0.113.9 (web1)"]);
}

#[test]
fn a_ban_whose_time_here_is_over_is_made_again_when_it_is_told_again() {
    let mut it = Server::default();
    it.hears(Action::Ban, "web1");
    it.works();
    it.here.held.clear();
    it.hears(Action::Ban, "web1");
    assert_eq!(it.works(), ["ban 203.0.113.9 (web1)"]);
}

#[test]
fn what_this_host_or_its_operator_banned_is_neither_banned_again_nor_freed() {
    let mut it = Server::default();
    it.here.held.insert(address(IP));
    it.hears(Action::Ban, "web1");
    it.hears(Action::Unban, "web1");
    it.hears(Action::Ban, "web1");
    it.works();
    it.hears(Action::Unban, "web1");
    assert_eq!(it.works(), NOTHING);
}

#[test]
fn what_is_never_to_be_banned_here_is_refused_and_forgotten() {
    let mut it = Server::default();
    it.here.ignored.insert(address(IP));
    it.hears(Action::Ban, "web1");
    let (jail, addresses) = it.fleet.next(9).unwrap();
    let plan = it.fleet.plan(&jail, &addresses, &it.here);
    let work = Work { address: address(IP), host: Host::new("web1").unwrap() };
    assert_eq!(plan, Plan { refuse: vec![work], ..Plan::default() });
    assert!(it.remembered().is_empty());
}

#[test]
fn an_own_ban_that_ends_while_others_claim_it_is_imported_then() {
    let mut it = Server::default();
    it.here.held.insert(address(IP));
    it.hears(Action::Ban, "web1");
    assert_eq!(it.works(), NOTHING);
    it.here.held.clear();
    it.fleet.expired(&(jail(), address(IP)));
    assert_eq!(it.works(), ["ban 203.0.113.9 (web1)"]);
}

#[test]
fn an_unban_of_one_host_undoes_no_lift_of_what_another_claims() {
    let mut it = Server::default();
    it.hears(Action::Ban, "web1");
    it.hears(Action::Ban, "web2");
    it.works();
    it.here.held.clear(); // lifted by hand
    it.hears(Action::Unban, "web2");
    assert_eq!(it.works(), NOTHING);
}

#[test]
fn an_own_ban_that_is_still_to_be_restored_is_left_alone() {
    let mut it = Server::default();
    it.here.rows.insert(address(IP), Origin::Own);
    it.hears(Action::Ban, "web1");
    assert_eq!(it.works(), NOTHING);
}

#[test]
fn a_detection_of_its_own_makes_an_import_this_host_s() {
    let mut it = Server::default();
    it.hears(Action::Ban, "web1");
    it.works();
    it.fleet.detected(&(jail(), address(IP)));
    it.hears(Action::Unban, "web1");
    assert_eq!(it.works(), NOTHING);
    assert!(it.remembered().is_empty());
}

#[test]
fn a_detection_while_fail2ban_is_told_counts() {
    let mut it = Server::default();
    it.hears(Action::Ban, "web1");
    let (jail, addresses) = it.fleet.next(9).unwrap();
    let plan = it.fleet.plan(&jail, &addresses, &it.here);
    it.fleet.detected(&(jail.clone(), address(IP)));
    it.fleet.done(&jail, &plan, None);
    assert!(it.fleet.imported(i64::MAX).is_empty());
}

#[test]
fn old_words_are_ignored_and_words_of_scripts_count_as_they_come() {
    let mut it = Server::default();
    let word = |action, stamp| event(action, "web1", IP, stamp);
    it.fleet.hear(&word(Action::Unban, 20), 0);
    it.fleet.hear(&word(Action::Ban, 10), 0);
    assert_eq!(it.works(), NOTHING, "the ban is older than its end");
    it.fleet.hear(&word(Action::Ban, 0), 0);
    assert_eq!(it.works(), ["ban 203.0.113.9 (web1)"]);
    it.fleet.hear(&word(Action::Unban, 0), 0);
    assert_eq!(it.works(), ["unban 203.0.113.9 (web1)"]);
}

#[test]
fn a_restart_at_any_point_ends_the_same() {
    let mut it = Server::default();
    it.hears(Action::Ban, "web1");
    it.restarts();
    assert_eq!(it.works(), ["ban 203.0.113.9 (web1)"], "it had only been heard");
    it.restarts();
    it.hears(Action::Ban, "web2");
    it.hears(Action::Unban, "web1");
    it.restarts();
    assert_eq!(it.works(), NOTHING, "web2's claim is remembered");
    it.hears(Action::Unban, "web2");
    it.restarts();
    let freed = it.works();
    assert!(freed.len() == 1 && freed[0].starts_with("unban 203.0.113.9"), "{freed:?}");
}

#[test]
fn a_restart_between_intent_and_deed_keeps_what_was_done() {
    let mut it = Server::default();
    it.hears(Action::Ban, "web1");
    let (jail, addresses) = it.fleet.next(9).unwrap();
    let plan = it.fleet.plan(&jail, &addresses, &it.here);
    assert_eq!(plan.import.len(), 1);
    it.here.held.insert(address(IP)); // fail2ban did it, and we died
    it.restarts();
    assert_eq!(it.works(), NOTHING);
    it.hears(Action::Unban, "web1");
    assert_eq!(it.works(), ["unban 203.0.113.9 (web1)"]);
}

#[test]
fn an_unban_waits_for_a_fail2ban_that_is_still_to_restore_the_ban() {
    let mut it = Server::default();
    it.hears(Action::Ban, "web1");
    it.works();
    it.here.held.clear(); // fail2ban started anew
    it.here.rows.insert(address(IP), Origin::Told);
    it.hears(Action::Unban, "web1");
    let (jail, addresses) = it.fleet.next(9).unwrap();
    let plan = it.fleet.plan(&jail, &addresses, &it.here);
    assert_eq!(plan, Plan { wait: addresses.clone(), ..Plan::default() });
    it.fleet.again(&jail, &plan.wait);
    it.here.held.insert(address(IP)); // and has restored it
    assert_eq!(it.works(), ["unban 203.0.113.9 (web1)"]);
}

#[test]
fn an_unban_that_came_while_its_jail_was_away_is_found_again() {
    let mut it = Server::default();
    it.hears(Action::Ban, "web1");
    it.works();
    it.hears(Action::Unban, "web1");
    let (jail, addresses) = it.fleet.next(9).unwrap(); // and given up, with the jail
    it.fleet.look_again(&jail, &addresses);
    assert_eq!(it.works(), ["unban 203.0.113.9 (web1)"]);
}

#[test]
fn there_is_an_end_to_what_is_kept() {
    let mut fleet = Fleet::default();
    let hears = |fleet: &mut Fleet, host: usize| {
        fleet.hear(&event(Action::Ban, &format!("host{host}"), IP, 1), 0)
    };
    assert!((0..1_000).all(|host| hears(&mut fleet, host)));
    assert!(!hears(&mut fleet, 1_001));
    assert!(fleet.hear(&event(Action::Ban, "host7", IP, 2), 0), "a known host's next word");
}

#[test]
fn fail2ban_away_keeps_the_order_and_loses_nothing() {
    let mut it = Server::default();
    it.hears(Action::Ban, "web1");
    let (jail, addresses) = it.fleet.next(9).unwrap();
    it.fleet.again(&jail, &addresses);
    it.hears(Action::Unban, "web1");
    it.hears(Action::Ban, "web1");
    assert_eq!(it.works(), ["ban 203.0.113.9 (web1)"]);
}

#[test]
fn batches_are_of_one_jail_and_bounded() {
    let mut fleet = Fleet::default();
    for n in 1..=5 {
        fleet.hear(&event(Action::Ban, "web1", &format!("192.0.2.{n}"), n), 0);
    }
    let mut other = event(Action::Ban, "web1", "192.0.2.6", 9);
    other.jail = Jail::new("recidive").unwrap();
    fleet.hear(&other, 0);
    let sizes: Vec<_> = std::iter::from_fn(|| fleet.next(3))
        .map(|(jail, addresses)| (jail.to_string(), addresses.len()))
        .collect();
    let of = |jail: &str, count| (jail.to_owned(), count);
    assert_eq!(sizes, [of("sshd", 3), of("sshd", 2), of("recidive", 1)]);
}

#[test]
fn words_are_forgotten_when_they_no_longer_matter() {
    let mut it = Server::default();
    it.here.held.insert(address(IP)); // an own ban: the claim is kept, nothing is imported
    it.hears(Action::Ban, "web1");
    it.works();
    let key = (jail(), address(IP));
    it.fleet.tidy(1199);
    assert!(it.fleet.claims.any(&key));
    it.fleet.tidy(1201);
    assert!(!it.fleet.claims.any(&key));
}

#[test]
fn a_claim_whose_end_its_origin_does_not_tell_ends_after_a_while() {
    let mut it = Server::default();
    it.hears(Action::Ban, "web1");
    it.works();
    assert_eq!(it.fleet.times(&jail(), address(IP)), (Some(600), Some(600)));
    it.fleet.tidy(1199);
    assert_eq!(it.works(), NOTHING);
    it.restarts();
    it.fleet.tidy(1201);
    assert_eq!(it.works().len(), 1, "freed");
    // One of unknown length rests on this jail's bantime.
    let mut word = event(Action::Ban, "old", IP, 0);
    word.bantime = 0;
    it.fleet.hear(&word, 0);
    it.works();
    assert_eq!(it.fleet.times(&jail(), address(IP)), (Some(600), None));
    it.fleet.tidy(999_999);
    assert_eq!(it.works(), NOTHING);
    assert_eq!(it.fleet.imported(599), BTreeMap::new());
    assert_eq!(it.fleet.imported(600).len(), 1);
}
