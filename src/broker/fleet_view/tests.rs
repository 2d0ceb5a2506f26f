//! Tables of retained messages, and the fleet that the view derives from them.

use super::*;

const NOW: i64 = 1_795_342_600;

fn address(text: &str) -> Address {
    Address::new(text).unwrap()
}

/// One JSON array per row; the fields of a row are separated by blanks.
fn json_list(rows: &[&str]) -> String {
    let rows = rows
        .iter()
        .map(|row| format!("[{}]", row.split(' ').map(json_field).collect::<Vec<_>>().join(",")));
    rows.collect::<Vec<_>>().join(",")
}

fn json_field(field: &str) -> String {
    if field.parse::<i64>().is_ok() { field.to_owned() } else { format!("\"{field}\"") }
}

/// Applies a shard: `bans` are `jail address start bantime`, `unbans` `jail address id`.
fn apply_shard(
    view: &mut FleetView,
    host: &str,
    stamp: i64,
    id: (u32, u32),
    bans: &[&str],
    unbans: &[&str],
) {
    let (shard, count) = id;
    let json = format!(
        r#"{{"v":1,"host":"{host}","stamp":{stamp},"part":{shard},"parts":{count},"bans":[{}],"unbans":[{}]}}"#,
        json_list(bans),
        json_list(unbans)
    );
    let update = view.apply_raw(&format!("state/{host}/{shard}"), json.as_bytes());
    assert_eq!(update, Update::Shard(HostName::new(host).unwrap()), "{json}");
}

/// `address jail origin +also since until`, a line each.
fn shown(view: &FleetView) -> Vec<String> {
    view.banned(NOW).iter().map(ban_line).collect()
}

fn ban_line(banned: &BanSummary) -> String {
    let origins = banned.origins().map(HostName::as_str).collect::<Vec<_>>().join("+");
    let BanSummary { address, jail, since, until, .. } = banned;
    format!("{address} {jail} {origins} {since} {until:?}")
}

fn ban(jail: &str, n: u8, start: i64, bantime: i64) -> String {
    format!("{jail} 192.0.2.{n} {start} {bantime}")
}

/// Whether the snapshot of a host repeats a fleet unban of an address.
fn host_repeats(view: &FleetView, host: &str, ip: &str, id: &str) -> bool {
    let host = &view.hosts()[&HostName::new(host).unwrap()];
    host.repeats(address(ip), &UnbanId::new(id).unwrap())
}

#[test]
fn each_address_is_shown_once_per_jail_with_all_hosts_that_hold_it() {
    let mut view = FleetView::default();
    let start = NOW - 60;
    let a =
        [ban("sshd", 1, start, 600), ban("web", 1, start - 9, -1), ban("sshd", 2, start - 1, 0)];
    let a: Vec<&str> = a.iter().map(String::as_str).collect();
    apply_shard(&mut view, "a", 1, (0, 1), &a, &[]);
    apply_shard(&mut view, "b", 1, (0, 1), &[&ban("sshd", 1, start - 5, 300)], &[]);
    apply_shard(&mut view, "c", 1, (0, 1), &[&ban("sshd", 1, start + 5, 60)], &[]);
    let expected = [
        format!("192.0.2.1 web a {} Never", start - 9),
        format!("192.0.2.1 sshd b+a+c {} Time({})", start - 5, start + 600),
        format!("192.0.2.2 sshd a {} Unknown", start - 1),
    ];
    assert_eq!(shown(&view), expected);
    // R3: a claim ends 10 minutes after its end.
    apply_shard(&mut view, "a", 2, (0, 1), &[&ban("sshd", 3, NOW - 1_200, 600)], &[]);
    assert_eq!(view.hosts()[&HostName::new("a").unwrap()].bans(), 1);
    assert!(shown(&view)[0].starts_with("192.0.2.3"));
    apply_shard(&mut view, "a", 3, (0, 1), &[&ban("sshd", 3, NOW - 1_201, 600)], &[]);
    assert_eq!(shown(&view).len(), 1, "b's and c's");
}

#[test]
fn newest_shard_that_covers_an_address_wins() {
    let mut view = FleetView::default();
    let ip =
        (0..100).map(|n| format!("192.0.2.{n}")).find(|ip| address(ip).hash() % 4 == 1).unwrap();
    let ban = format!("sshd {ip} {NOW} 600");
    let host = HostName::new("a").unwrap();
    apply_shard(&mut view, "a", 5, (1, 4), &[&ban], &[]);
    assert_eq!((view.hosts()[&host].missing_shards(), view.hosts()[&host].count()), (3, 4));
    assert_eq!(view.missing(), ["3 of 4 parts of a's snapshot"]);
    assert_eq!(shown(&view).len(), 1);
    // Shard 0 of 1 covers all addresses of shard 1 of 4.
    apply_shard(&mut view, "a", 6, (0, 1), &[], &[]);
    assert_eq!(view.hosts()[&host].missing_shards(), 0);
    assert!(
        shown(&view).is_empty()
            && !view.hosts()[&host].lists(&Jail::new("sshd").unwrap(), address(&ip))
    );
    // An older shard of a larger layout does not count.
    apply_shard(&mut view, "a", 4, (1, 4), &[&ban], &[]);
    assert!(shown(&view).is_empty());
    apply_shard(&mut view, "a", 7, (1, 4), &[&ban], &[]);
    assert_eq!(shown(&view).len(), 1);
}

#[test]
fn ban_that_does_not_carry_a_known_fleet_unban_is_void() {
    let mut view = FleetView::default();
    let ban = format!("sshd 192.0.2.1 {NOW} 600");
    let web = format!("web 192.0.2.1 {NOW} 600");
    apply_shard(&mut view, "a", 1, (0, 1), &[&ban, &web], &[]);
    let (unban, other) =
        (format!("sshd 192.0.2.1 b-{NOW}005"), format!("web 192.0.2.9 c-{NOW}006"));
    apply_shard(&mut view, "b", 1, (0, 1), &[&ban], &[&unban]);
    apply_shard(&mut view, "c", 1, (0, 1), &[], &[&unban, &other]);
    assert_eq!(
        shown(&view),
        [
            format!("192.0.2.1 sshd b {NOW} Time({})", NOW + 600),
            format!("192.0.2.1 web a {NOW} Time({})", NOW + 600),
        ]
    );
    let voids = view.voids(address("192.0.2.1"));
    assert_eq!(voids.len(), 1);
    assert_eq!(
        (voids[0].host.as_str(), voids[0].jail.as_str(), voids[0].id.as_str()),
        ("a", "sshd", &*format!("b-{NOW}005"))
    );
    let id = format!("b-{NOW}005");
    let table = [
        ("a", "192.0.2.1", false),
        ("b", "192.0.2.1", true),
        ("c", "192.0.2.1", true),
        ("c", "192.0.2.2", false),
    ];
    for (host, ip, expected) in table {
        assert_eq!(host_repeats(&view, host, ip, &id), expected, "{host} {ip}");
    }
}

#[test]
fn cleared_hosts_are_removed_and_invalid_messages_are_ignored() {
    let mut view = FleetView::default();
    let (a, b) = (HostName::new("a").unwrap(), HostName::new("b").unwrap());
    let online = br#"{"v":1,"state":"online","jails":["web"]}"#;
    assert_eq!(view.apply_raw("host/a", online), Update::Presence(a.clone()));
    apply_shard(&mut view, "a", 1, (0, 1), &[&format!("sshd 192.0.2.1 {NOW} 600")], &[]);
    apply_shard(&mut view, "b", 1, (0, 2), &[], &[]);
    assert!(view.hosts()[&a].is_online() && !view.hosts()[&b].is_online());
    let shard = br#"{"v":1,"host":"a","stamp":5,"part":0,"parts":1,"bans":[]}"#;
    let invalid: [(&str, &[u8]); 7] = [
        ("host/c", b"{}"),
        ("host", online),
        ("ban", shard),
        ("state/b/0", shard),
        ("state/a/1", shard),
        ("state/a/x", shard),
        ("state/a/0/0", shard),
    ];
    for (topic, payload) in invalid {
        assert_eq!(view.apply_raw(topic, payload), Update::Nothing, "{topic}");
    }
    assert_eq!(view.apply_raw("host/a", b""), Update::Cleared(a.clone()));
    assert!(view.hosts()[&a].presence().is_none(), "its bans are still there");
    assert_eq!(view.apply_raw("state/a/0", b""), Update::Cleared(a.clone()));
    assert!(!view.hosts().contains_key(&a));
    assert_eq!(view.apply_raw("state/b/0", b""), Update::Cleared(b));
    assert!(view.hosts().is_empty() && view.bans == 0);
    assert!(view.missing()[0].starts_with("all hosts ("));
}

#[test]
fn unban_voids_older_bans_and_those_that_began_within_an_hour_after_it() {
    // When the fleet unban was made, before the ban began, in seconds; and whether the ban counts.
    let table = [(-60, false), (0, false), (3_600, false), (3_601, true), (86_400, true)];
    for (before, counts) in table {
        let mut view = FleetView::default();
        let id = format!("b-{}000", NOW - 60 - before);
        let ban = format!("sshd 192.0.2.1 {} 6000", NOW - 60);
        apply_shard(&mut view, "a", 1, (0, 1), &[&ban], &[]);
        apply_shard(&mut view, "b", 1, (0, 1), &[], &[&format!("* 192.0.2.1 {id}")]);
        assert_eq!(!shown(&view).is_empty(), counts, "{before}");
        assert_eq!(view.voids(address("192.0.2.1")).is_empty(), counts, "{before}");
    }
}

#[test]
fn ban_of_unknown_length_ends_when_the_daemons_end_it() {
    for (since, counts) in [(86_400 + 600, true), (86_400 + 601, false)] {
        let mut view = FleetView::default();
        apply_shard(
            &mut view,
            "a",
            1,
            (0, 1),
            &[&format!("sshd 192.0.2.1 {} 0", NOW - since)],
            &[],
        );
        assert_eq!(!shown(&view).is_empty(), counts, "{since}");
    }
}

#[test]
fn snapshots_that_daemons_reject_are_not_shown() {
    const DAY: i64 = 86_400_000;
    let now = NOW * 1000;
    // The stamp, and whether it is shown in a fleet without a key and with one.
    let table = [
        (now, true, true),
        (now + DAY, true, true),
        (now + DAY + 1, false, false),
        (253_402_300_799_999, false, false),
        (now - 30 * DAY, true, true),
        (now - 30 * DAY - 1, true, false),
    ];
    let host = HostName::new("a").unwrap();
    for (stamp, unsigned, signed) in table {
        for (has_key, expected) in [(false, unsigned), (true, signed)] {
            let mut view = FleetView::new(has_key);
            let shard = format!(
                r#"{{"v":1,"host":"a","stamp":{stamp},"part":0,"parts":1,"bans":[["sshd","192.0.2.1",{NOW},600]]}}"#
            );
            view.apply_raw("state/a/0", shard.as_bytes());
            assert_eq!(view.hosts().contains_key(&host), expected, "{stamp} {has_key}");
            assert_eq!(shown(&view).len(), usize::from(expected));
            // The broker keeps a rejected message, too, until its topic is cleared.
            assert_eq!(view.topics_of(&host), [0].into());
            view.apply_raw("state/a/0", b"");
            assert!(view.topics_of(&host).is_empty() && view.rejected.is_empty());
        }
    }
    let mut view = FleetView::default();
    let bans = ["127.0.0.1", "224.0.0.1", "192.0.2.1"].map(|ip| format!("sshd {ip} {NOW} 600"));
    let bans: Vec<&str> = bans.iter().map(String::as_str).collect();
    let future = format!("* 192.0.2.1 b-{}", now + DAY + 1);
    apply_shard(&mut view, "a", 1, (0, 1), &bans, &[]);
    apply_shard(&mut view, "b", 1, (0, 1), &[], &[&future]);
    assert_eq!(shown(&view), [format!("192.0.2.1 sshd a {NOW} Time({})", NOW + 600)]);
    assert!(view.voids(address("192.0.2.1")).is_empty(), "a fleet unban of the future");
}
