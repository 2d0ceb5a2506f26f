//! `f2bmqtt forget`: removes hosts that are gone for good: their retained messages, and the bans that only they held.
//! Daemons may know a host from its events alone, so the command also removes hosts of which the broker keeps nothing.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;

use super::confirm;
use super::render;
use crate::broker::fleet_client::{FleetClient, Message};
use crate::broker::fleet_view::{BanSummary, FleetView, HostView};
use crate::broker::retraction::{is_kept, retraction};
use crate::cli::operator::ForgetArgs;
use crate::config::Config;
use crate::daemon::exporters::homeassistant;
use crate::error::Error;
use crate::model::HostName;
use crate::model::text::{count, list, sanitize};
use crate::store::reader;
use crate::sys::clock::{now_millis, now_secs};
use crate::sys::log::info;
use crate::sys::paths::Paths;
use crate::sys::runtime;

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
        let mut client = FleetClient::connect(&config, || reader::origins(paths)).await?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::fleet_view::Expiry;
    use crate::model::{Address, Jail};

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

    #[test]
    fn question_names_the_hosts_of_the_fleet() {
        let mut view = FleetView::default();
        view.apply_raw("host/web3", br#"{"v":1,"state":"offline"}"#);
        let question = question(&[&host("web9")], &view);
        assert!(
            question.starts_with("the broker keeps nothing of web9. The fleet has web3. Release")
        );
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
