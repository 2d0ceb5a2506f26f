//! Retracts what a broker retains of a host.

use super::fleet_client::Message;
use super::fleet_view::{FleetView, HostView};
use crate::guard::is_ahead;
use crate::model::HostName;
use crate::wire::{Shard, ShardId};

/// Whether the broker keeps a message of a host, even one that daemons reject.
pub(crate) fn is_kept(host: &HostName, view: &FleetView) -> bool {
    view.hosts().contains_key(host) || !view.topics_of(host).is_empty()
}

/// The messages that remove a host. The first is an empty snapshot in the host's name, which daemons take as the release
/// of all its bans: a snapshot can be signed, an empty payload cannot. The rest clear the topics, shard 0 last, because
/// a host without shard 0 counts as removed.
pub(crate) fn retraction(host: &HostName, view: &FleetView, now: i64) -> Vec<Message> {
    let last = view.hosts().get(host).and_then(HostView::stamp);
    // The stamp is greater than all stamps of the host, unless daemons would reject such a stamp as future.
    let next = last.map(|last| last.saturating_add(1)).filter(|next| !is_ahead(*next, now));
    let stamp = next.map_or(now, |next| next.max(now));
    let shard = ShardId::new(0, 1).map(|id| Shard {
        host: host.clone(),
        stamp,
        time: 0,
        id,
        bans: Vec::new(),
        unbans: Vec::new(),
    });
    let empty_shard = shard.map(|shard| Message::Keep(format!("state/{host}/0"), shard.encode()));
    let mut numbers = view.topics_of(host);
    numbers.insert(0);
    let shards = numbers.into_iter().rev().map(|number| format!("state/{host}/{number}"));
    let topics = [format!("host/{host}")].into_iter().chain(shards);
    let clear = topics.map(|topic| Message::Keep(topic, String::new()));
    empty_shard.into_iter().chain(clear).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_342_600_000;
    const DAY: i64 = 86_400_000;

    fn host(name: &str) -> HostName {
        HostName::new(name).unwrap()
    }

    fn shard(number: u32, count: u32, stamp: i64) -> String {
        format!(r#"{{"v":1,"host":"web3","stamp":{stamp},"part":{number},"parts":{count}}}"#)
    }

    #[test]
    fn snapshot_is_emptied_and_then_all_topics_are_cleared_part_0_last() {
        let mut view = FleetView::default();
        view.apply_raw("host/web3", br#"{"v":1,"state":"offline"}"#);
        for (number, count) in [(0, 2), (1, 2), (7, 8)] {
            view.apply_raw(&format!("state/web3/{number}"), shard(number, count, 50).as_bytes());
        }
        // Daemons reject this shard, but the broker keeps it.
        view.apply_raw("state/web3/9", shard(9, 16, NOW + DAY + 1).as_bytes());
        let empty_shard =
            r#"{"v":1,"host":"web3","stamp":51,"part":0,"parts":1,"bans":[],"unbans":[]}"#;
        let expected = [
            ("state/web3/0", empty_shard),
            ("host/web3", ""),
            ("state/web3/9", ""),
            ("state/web3/7", ""),
            ("state/web3/1", ""),
            ("state/web3/0", ""),
        ];
        let expected =
            expected.map(|(topic, text)| Message::Keep(topic.to_owned(), text.to_owned()));
        assert_eq!(retraction(&host("web3"), &view, 49), expected);
        // The broker keeps nothing of web9.
        let unknown = retraction(&host("web9"), &view, NOW);
        let topics: Vec<_> = unknown.iter().map(|message| format!("{message:?}")).collect();
        assert_eq!(unknown.len(), 3, "{topics:?}");
        assert!(topics[0].contains(&NOW.to_string()) && topics[2].contains("state/web9/0"));
        assert!(!is_kept(&host("web9"), &view) && is_kept(&host("web3"), &view));
    }

    #[test]
    fn stamp_of_the_empty_snapshot_is_the_greatest_that_no_daemon_rejects() {
        // The last stamp of the host, and that of the empty snapshot.
        let table = [
            (None, NOW),
            (Some(50), NOW),
            (Some(NOW), NOW + 1),
            (Some(NOW + DAY - 1), NOW + DAY),
            (Some(NOW + DAY), NOW),
            (Some(NOW + DAY + 1), NOW),
        ];
        for (last, expected) in table {
            let mut view = FleetView::default();
            if let Some(last) = last {
                view.apply_raw("state/web3/0", shard(0, 1, last).as_bytes());
            }
            let first = retraction(&host("web3"), &view, NOW).remove(0);
            let Message::Keep(_, text) = first else { panic!("{first:?}") };
            assert!(text.contains(&format!(r#""stamp":{expected},"#)), "{last:?}: {text}");
        }
    }
}
