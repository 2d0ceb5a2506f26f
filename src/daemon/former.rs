//! Clears the retained messages under a former name or topic of this host. Otherwise no unban would ever reach the
//! hosts that imported bans from there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::machine;
use crate::clock::now_millis;
use crate::config::{Config, Topic};
use crate::error::Error;
use crate::figures::homeassistant;
use crate::journal::{say, warn};
use crate::memory::SharedState;
use crate::operator::forget::{is_kept, retraction};
use crate::operator::view::FleetView;
use crate::operator::visit::{FleetClient, Message};
use crate::paths::Paths;
use crate::wire::HostName;

/// The pause between the first attempts, and between later ones.
const FIRST_PAUSE: Duration = Duration::from_secs(3);
const RETRY_PAUSE: Duration = Duration::from_mins(10);

/// The number of first attempts, which wait for the new snapshot.
const MAX_FIRST_ATTEMPTS: u32 = 20;

/// How long the broker may take to confirm that topics are cleared.
const CLEAR_TIMEOUT: Duration = Duration::from_secs(5);

/// A former name and topic of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Former {
    #[allow(missing_docs)]
    pub node: HostName,
    #[allow(missing_docs)]
    pub topic: Topic,
}

/// The outcome of an attempt.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Cleared,
    /// The broker retains nothing under the former name.
    Absent,
    /// Another host uses the name.
    Taken,
    /// The bans are not published under the new name so far.
    TooEarly,
}

/// Clears every former branch that the store has. `since` is when the daemon started, in milliseconds.
pub(super) async fn clear_all(config: Config, paths: Paths, memory: Arc<SharedState>, since: i64) {
    let mut attempts = 0;
    loop {
        let all = memory.lock().former();
        if all.is_empty() {
            return;
        }
        sleep(if attempts < MAX_FIRST_ATTEMPTS { FIRST_PAUSE } else { RETRY_PAUSE }).await;
        attempts += 1;
        for former in &all {
            let Former { node, topic } = former;
            let name = format!("{node} on the topic {}", topic.as_str());
            match clear(&config, &paths, former, since).await {
                Ok(Outcome::TooEarly) => continue,
                Ok(Outcome::Cleared) => {
                    say(format_args!("removed the snapshot of this host's former name, {name}"));
                }
                Ok(Outcome::Absent) => {}
                Ok(Outcome::Taken) => {
                    say(format_args!(
                        "kept the snapshot of this host's former name, {name}: another host \
                                      has the name now"
                    ));
                }
                Err(why) => {
                    if attempts < MAX_FIRST_ATTEMPTS {
                        attempts = MAX_FIRST_ATTEMPTS;
                        warn(format_args!(
                            "cannot remove the snapshot of this host's former name, {name}: {why}; run on a \
                             host whose login may write to {}: f2bmqtt forget {node}",
                            topic.retained(&format!("state/{node}/#"))
                        ));
                    }
                    continue;
                }
            }
            memory.lock().forget_former(former);
        }
    }
}

async fn clear(
    config: &Config,
    paths: &Paths,
    former: &Former,
    since: i64,
) -> Result<Outcome, Error> {
    let there = Config { topic: former.topic.clone(), ..config.clone() };
    let mut client = FleetClient::connect(&there, paths).await?;
    let moved = former.topic != config.topic;
    client.fetch_host(&config.node).await?;
    client.fetch_host(&former.node).await?;
    let outcome = judge(client.view(), former, (!moved).then_some(&config.node), &machine(), since);
    if outcome != Outcome::Cleared {
        client.end().await;
        return Ok(outcome);
    }
    let mut messages = retraction(&former.node, client.view(), now_millis());
    if let Some(prefix) = config.ha_prefix.as_ref().filter(|_| former.node != config.node) {
        messages.extend(homeassistant::topics(prefix, &former.node).map(Message::Clear));
    }
    client.publish(&messages).await?;
    let until = Instant::now() + CLEAR_TIMEOUT;
    while is_kept(&former.node, client.view()) {
        if client.next_update(until).await?.is_none() {
            return Err(Error::Failed(
                "the broker still retains messages under the name".to_owned(),
            ));
        }
    }
    client.end().await;
    Ok(outcome)
}

/// Decides what to do with a former branch. In the same fleet, peers that imported this host's bans must find the bans
/// under the new name `me` before the former branch is cleared.
fn judge(
    view: &FleetView,
    former: &Former,
    me: Option<&HostName>,
    machine: &str,
    since: i64,
) -> Outcome {
    if !is_kept(&former.node, view) {
        return Outcome::Absent;
    }
    let presence = view.hosts().get(&former.node).and_then(|member| member.presence());
    let of_another = |there: &crate::wire::Presence| {
        there.state == crate::wire::HostState::Online
            || !there.machine.is_empty() && there.machine != machine
    };
    if presence.is_some_and(of_another) {
        return Outcome::Taken;
    }
    let published = |me: &HostName| {
        let member = view.hosts().get(me);
        member.is_some_and(|member| member.missing_shards() == 0 && member.stamp() >= Some(since))
    };
    if me.is_none_or(published) { Outcome::Cleared } else { Outcome::TooEarly }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn former_branch_is_cleared_once_the_bans_are_published_under_the_new_name() {
        const NOW: i64 = 1_795_342_600_000;
        let host = |name: &str| HostName::new(name).unwrap();
        let former = Former { node: host("old"), topic: Topic::of_fleet("blacklist").unwrap() };
        let (offline, online) =
            (r#"{"v":1,"state":"offline","machine":"m1"}"#, r#"{"v":1,"state":"online"}"#);
        let other = r#"{"v":1,"state":"offline","machine":"m2"}"#;
        // The presence and the snapshot of the former name, the stamp under the new one, and the outcome.
        let table = [
            ("", false, Some(NOW), Outcome::Absent),
            (offline, true, None, Outcome::TooEarly),
            (offline, true, Some(NOW - 1), Outcome::TooEarly),
            (offline, true, Some(NOW), Outcome::Cleared),
            ("", true, Some(NOW), Outcome::Cleared),
            (online, true, Some(NOW), Outcome::Taken),
            (other, true, Some(NOW), Outcome::Taken),
        ];
        for (presence, snapshot, stamp, outcome) in table {
            let mut view = FleetView::default();
            let part = |host: &str, stamp: i64| {
                format!(r#"{{"v":1,"host":"{host}","stamp":{stamp},"part":0,"parts":1,"bans":[]}}"#)
            };
            if !presence.is_empty() {
                view.apply_raw("host/old", presence.as_bytes());
            }
            if snapshot {
                view.apply_raw("state/old/0", part("old", 5).as_bytes());
            }
            if let Some(stamp) = stamp {
                view.apply_raw("state/new/0", part("new", stamp).as_bytes());
            }
            let judged = judge(&view, &former, Some(&host("new")), "m1", NOW);
            assert_eq!(judged, outcome, "{presence} {snapshot} {stamp:?}");
        }
    }
}
