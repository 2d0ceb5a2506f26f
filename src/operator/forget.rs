//! `f2bmqtt forget`: removes hosts that are gone for good: their retained messages, and the bans that only they held.
//! Daemons may know a host from its events alone, so the command also removes hosts of which the broker keeps nothing.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;

use super::confirm;
use super::fleet_client::{FleetClient, Message};
use super::fleet_view::{BanSummary, FleetView, HostView};
use super::render;
use crate::cli::operator::ForgetArgs;
use crate::config::Config;
use crate::daemon::exporters::homeassistant;
use crate::error::Error;
use crate::guard::is_ahead;
use crate::model::HostName;
use crate::model::text::{count, list, sanitize};
use crate::sys::clock::{now_millis, now_secs};
use crate::sys::log::info;
use crate::sys::paths::Paths;
use crate::sys::runtime;
use crate::wire::{Shard, ShardId};

/// How long the broker may take to deliver the cleared topics.
const CLEAR_TIMEOUT: Duration = Duration::from_secs(5);

/// The most hosts that an error names.
const MAX_NAMES: usize = 20;

/// Removes the hosts, and waits until the broker keeps nothing of them.
///
/// # Errors
/// Any [`Error`]
pub fn run(args: &ForgetArgs, paths: &Paths) -> Result<(), Error> {
    let hosts = args.hosts.iter().map(|host| HostName::new(host));
    let hosts = hosts.collect::<Result<BTreeSet<_>, _>>();
    let hosts = hosts.map_err(|what| Error::Usage(format!("HOST {what}")))?;
    let config = Config::load()?;
    runtime::run(async {
        let mut client = FleetClient::connect(&config, paths).await?;
        // Shards of an earlier, larger snapshot may be left on the broker, too.
        for host in &hosts {
            client.fetch_host(host).await?;
        }
        if !args.yes {
            confirm_unusual(&hosts, client.view())?;
        }
        let unknown: Vec<HostName> =
            hosts.iter().filter(|host| !is_kept(host, client.view())).cloned().collect();
        let bans = count_exclusive_bans(&client.view().banned(now_secs()), &hosts);
        for host in &hosts {
            let mut messages = retraction(host, client.view(), now_millis());
            if let Some(prefix) = &config.ha_prefix {
                messages.extend(homeassistant::topics(prefix, host).map(Message::Clear));
            }
            client.publish(&messages).await?;
        }
        let until = Instant::now() + CLEAR_TIMEOUT;
        while let Some(host) = hosts.iter().find(|host| is_kept(host, client.view())) {
            if client.next_update(until).await?.is_none() {
                return Err(Error::Failed(format!(
                    "cannot remove {host}: the broker still keeps its messages. If the login of this host may \
                     write only its own topics, use a login that may write {}",
                    config.topic.retained(&format!("state/{host}/#"))
                )));
            }
        }
        client.end().await;
        if args.json {
            render::print_json(&json!({
                "hosts": hosts.iter().map(HostName::as_str).collect::<Vec<_>>(),
                "unknown": unknown.iter().map(HostName::as_str).collect::<Vec<_>>(),
                "bans": bans,
            }));
        } else {
            for line in lines(&hosts, &unknown, bans) {
                info(sanitize(&line));
            }
        }
        Ok(())
    })
}

/// Whether the broker keeps a message of a host, even one that daemons reject.
pub(crate) fn is_kept(host: &HostName, view: &FleetView) -> bool {
    view.hosts().contains_key(host) || !view.topics_of(host).is_empty()
}

/// Rejects online hosts, and asks for confirmation for hosts of which the broker keeps nothing: both may be mistakes.
fn confirm_unusual(hosts: &BTreeSet<HostName>, view: &FleetView) -> Result<(), Error> {
    let mut online =
        hosts.iter().filter(|host| view.hosts().get(*host).is_some_and(HostView::is_online));
    if let Some(host) = online.next() {
        return Err(Error::Failed(format!(
            "{host} is online, and would publish its bans again. First, on {host}: systemctl disable --now \
             f2bmqttsub. To remove {host} anyway, use --yes"
        )));
    }
    let unknown: Vec<&HostName> = hosts.iter().filter(|host| !is_kept(host, view)).collect();
    if unknown.is_empty() { Ok(()) } else { confirm::confirm(&sanitize(&question(&unknown, view))) }
}

fn question(unknown: &[&HostName], view: &FleetView) -> String {
    let (unknown, known) = (first_names(unknown.iter().copied()), first_names(view.hosts().keys()));
    format!(
        "the broker keeps nothing of {unknown}. The fleet has {known}. Release all bans that only {unknown} held"
    )
}

fn first_names<'a>(hosts: impl Iterator<Item = &'a HostName>) -> String {
    hosts.map(HostName::as_str).take(MAX_NAMES).collect::<Vec<_>>().join(", ")
}

/// Counts the bans that no other host holds.
fn count_exclusive_bans(bans: &[BanSummary], hosts: &BTreeSet<HostName>) -> usize {
    bans.iter().filter(|ban| ban.origins().all(|host| hosts.contains(host))).count()
}

fn lines(hosts: &BTreeSet<HostName>, unknown: &[HostName], bans: usize) -> Vec<String> {
    let known: Vec<&HostName> = hosts.iter().filter(|host| !unknown.contains(host)).collect();
    let names: Vec<&str> = known.iter().map(|host| host.as_str()).collect();
    let holders = if let [one] = names[..] { one } else { "they" };
    let bans = count(bans, "ban");
    let removed = (!names.is_empty())
        .then(|| format!("removed {} and {bans} that only {holders} held", list(&names)));
    let released = unknown.iter().map(|host| {
        format!(
            "removed {host}: the broker kept nothing of {host}, and the daemons release all bans that only \
             {host} held"
        )
    });
    removed.into_iter().chain(released).collect()
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
    use super::super::fleet_view::Expiry;
    use super::*;
    use crate::model::{Address, Jail};

    const NOW: i64 = 1_795_342_600_000;
    const DAY: i64 = 86_400_000;

    fn host(name: &str) -> HostName {
        HostName::new(name).unwrap()
    }

    fn hosts(names: &[&str]) -> BTreeSet<HostName> {
        names.iter().map(|name| host(name)).collect()
    }

    fn ban(origin: &str, also: &[&str]) -> BanSummary {
        BanSummary {
            address: Address::new("192.0.2.1").unwrap(),
            jail: Jail::new("sshd").unwrap(),
            origin: host(origin),
            since: 1,
            until: Expiry::Never,
            also: also.iter().map(|name| host(name)).collect(),
        }
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
        let question = question(&[&host("web9")], &view);
        assert!(
            question.starts_with("the broker keeps nothing of web9. The fleet has web3. Release")
        );
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

    #[test]
    fn bans_that_only_removed_hosts_held_are_counted_and_shown() {
        let bans =
            [ban("web2", &[]), ban("web2", &["web3"]), ban("web3", &[]), ban("web1", &["web2"])];
        let table = [
            (hosts(&["web2"]), vec![], 1, vec!["removed web2 and 1 ban that only web2 held"]),
            (
                hosts(&["web2", "web3"]),
                vec![],
                3,
                vec!["removed web2 and web3 and 3 bans that only they held"],
            ),
            (
                hosts(&["web2", "web9"]),
                vec![host("web9")],
                1,
                vec![
                    "removed web2 and 1 ban that only web2 held",
                    "removed web9: the broker kept nothing of web9, and the daemons release all bans that \
                     only web9 held",
                ],
            ),
        ];
        for (removed, unknown, count, expected) in table {
            assert_eq!(count_exclusive_bans(&bans, &removed), count);
            assert_eq!(lines(&removed, &unknown, count), expected);
        }
    }
}
