//! Whatever comes, what is kept has an end, and everything has its turn.

use super::*;

#[test]
fn what_means_nothing_here_leaves_nothing() {
    use Action::{Ban as B, Unban as U};
    let mut fleet = Fleet::new(host("me"), Pace::default(), Remembered::default());
    // Jails without end, and unbans of what nobody bans.
    let in_jail = |n: usize, action| Event {
        jail: Jail::new(&format!("jail{n}")).unwrap(),
        ..event(action, "old1", 0)
    };
    assert!((0..500).all(|n| fleet.hear(&in_jail(n, B), NOW)));
    assert!(!fleet.hear(&in_jail(500, B), NOW), "no fleet has so many jails");
    assert_eq!((fleet.jails.len(), fleet.changes.len(), fleet.queue.len()), (500, 500, 500));
    for n in 0..1_000 {
        assert!(fleet.hear(&in_jail(n, U), NOW));
    }
    fleet.tidied = 0;
    fleet.tidy(NOW);
    assert_eq!((fleet.jails.len(), fleet.words, fleet.queue.len()), (0, 0, 500));
    for n in 0..999 {
        let address = address(&format!("198.18.{}.{}", n / 256, n % 256));
        assert!(fleet.hear(&Event { address, ..event(U, "web1", 10) }, NOW));
        assert!(fleet.hear(&Event { address, ..event(U, "old1", 0) }, NOW));
    }
    assert_eq!(fleet.queue.len(), 500, "nothing is to be done for them");
    fleet.tidied = 0;
    fleet.tidy(NOW);
    assert_eq!(fleet.words, 0, "and nothing is kept of what was said long ago");
}

#[test]
fn one_host_does_not_take_the_room_of_all() {
    let mut fleet = Fleet::new(host("me"), Pace::default(), Remembered::default());
    let origin = fleet.origins.entry(host("web1")).or_default();
    let ip = |n: u32| address(&std::net::Ipv4Addr::from(0xc612_0000 + n).to_string());
    origin.addresses.extend((0..100_000).map(ip));
    let ban = |from, n| Event { address: ip(n), ..event(Action::Ban, from, 10) };
    assert!(!fleet.hear(&ban("web1", 100_001), NOW));
    assert!(fleet.hear(&ban("web1", 7), NOW));
    assert!(fleet.hear(&ban("web2", 100_001), NOW));
    assert_eq!(fleet.hear_part(&part("web1", 20, &["203.0.113.1"]), NOW), Some(Trouble::NoRoom));
}

#[test]
fn one_word_each_of_two_jails_is_looked_at_once_and_done() {
    let jails = ["sshd", "web"].map(|name| Jail::new(name).unwrap());
    let mut fleet = Fleet::new(host("me"), Pace::default(), Remembered::default());
    let server = Server { pid: 1, started: 0 };
    let pulse = Pulse { server, data_version: Some(1) };
    // The jails are seen whole, and long after, when nothing is due, a word of each comes.
    for now in [NOW, NOW + 200_000] {
        fleet.begin(now);
        fleet.pulse(pulse, BTreeSet::from(jails.clone()), now);
        if now > NOW {
            for jail in jails.clone() {
                fleet.hear(&Event { jail, stamp: now, ..event(Action::Ban, "web1", now) }, now);
            }
        }
        let (mut glances, mut imports) = (0, 0);
        for _ in 0..30 {
            match fleet.next(now) {
                Step::Rest => break,
                Step::Save(_) => fleet.saved(true, now),
                Step::Look(jail, of) => {
                    glances += usize::from(of.is_some());
                    let (total, bantime, database) = (Some(0), 600, Some(0));
                    let look = Look { database, total, bantime, ..Look::default() };
                    fleet.seen(&jail, of.as_deref(), look, now);
                }
                Step::Import(..) => {
                    imports += 1;
                    fleet.done(1, now);
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((glances, imports), if now > NOW { (2, 2) } else { (0, 0) });
    }
}

#[test]
fn looks_that_take_long_and_others_words_both_have_their_turn() {
    let jails = ["a", "b", "c", "d", "e"].map(|name| Jail::new(name).unwrap());
    let mut fleet = Fleet::new(host("me"), Pace::default(), Remembered::default());
    let server = Server { pid: 1, started: 0 };
    let (mut now, mut told) = (NOW, 0);
    let (mut looks, mut imports) = (BTreeMap::new(), BTreeMap::new());
    fleet.connected(now);
    for n in 0..30 {
        // Each jail takes longer to look at than a round lasts, and all are always worth it.
        let begun = now;
        fleet.begin(now);
        fleet.pulse(Pulse { server, data_version: Some(n) }, jails.clone().into(), now);
        for jail in jails.clone() {
            fleet.hear(&Event { jail, ..event(Action::Ban, "web1", now) }, now);
        }
        while now < begun + 2_000 {
            match fleet.next(now) {
                Step::Rest => now = begun + 2_000,
                Step::Save(_) => fleet.saved(true, now),
                Step::Look(jail, of) => {
                    now += if of.is_some() { 10 } else { 2_500 };
                    *looks.entry(jail.clone()).or_insert(0) += 1;
                    let (total, bantime, database) = (Some(0), 600, Some(0));
                    let look = Look { database, total, bantime, took: 2_500, ..Look::default() };
                    fleet.seen(&jail, of.as_deref(), look, now);
                }
                Step::Import(jail, _) => {
                    now += 150;
                    *imports.entry(jail).or_insert(0) += 1;
                    fleet.done(1, now);
                }
                other => panic!("{other:?}"),
            }
        }
        let stamp = |publication: &Publication| publication.part.as_ref().unwrap().stamp;
        told = fleet.publications(now).iter().map(stamp).max().unwrap_or(told);
    }
    assert_eq!(looks.len(), 5, "{looks:?}");
    assert!(looks.values().all(|looks| *looks > 1), "{looks:?}");
    assert_eq!(imports.len(), 5, "{imports:?}");
    assert!(told >= NOW, "its own bans are told");
}

#[test]
fn what_a_host_without_snapshots_said_is_forgotten_when_it_is_over() {
    let mut fleet = Fleet::new(host("me"), Pace::default(), Remembered::default());
    let other = || Jail::new("web").unwrap();
    fleet.hear(&event(Action::Ban, "web1", 10), NOW);
    fleet.hear(&Event { jail: other(), ..event(Action::Ban, "web1", 11) }, NOW);
    fleet.hear(&Event { jail: other(), ..event(Action::Unban, "web1", 12) }, NOW);
    // After so many seconds -> of so many addresses something is kept.
    for (secs, kept) in [(600, 1), (1_100, 1), (1_300, 0)] {
        fleet.tidied = 0;
        fleet.tidy(NOW + secs * 1_000);
        assert_eq!(fleet.origins[&host("web1")].addresses.len(), kept, "{secs}");
    }
}

#[test]
fn there_is_an_end_to_what_is_kept() {
    let mut fleet = Fleet::new(host("me"), Pace::default(), Remembered::default());
    let mut hears =
        |n: usize, stamp| fleet.hear(&event(Action::Ban, &format!("host{n}"), stamp), 0);
    assert!((0..1_000).all(|n| hears(n, 1)));
    assert!(!hears(1_001, 1));
    assert!(hears(7, 2), "a known host's next word");
    let ban = Ban { start: NOW / 1000, bantime: 600 };
    assert_eq!(fleet.word(&key(), &host("host7")), Word::Held(2, ban));
}
