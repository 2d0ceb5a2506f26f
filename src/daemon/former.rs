//! Clears the retained messages under a former name or topic of this host. Otherwise hosts that imported bans from
//! these messages would never receive an unban.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::machine;
use crate::broker::fleet_client::{FleetClient, Message};
use crate::broker::fleet_view::FleetView;
use crate::broker::retraction::{is_kept, retraction};
use crate::config::Config;
use crate::daemon::exporters::homeassistant;
use crate::daemon::state::SharedState;
use crate::error::Error;
use crate::model::HostName;
use crate::store::{Former, reader};
use crate::sys::clock::now_millis;
use crate::sys::log::{info, warn};
use crate::sys::paths::Paths;
use crate::wire::{HostState, Presence};

/// The pause between the first attempts, which wait for the new snapshot, and between later ones.
const FIRST_PAUSE: Duration = Duration::from_secs(3);
const RETRY_PAUSE: Duration = Duration::from_mins(10);

/// The number of first attempts.
const MAX_FIRST_ATTEMPTS: u32 = 20;

/// How long the broker may take to confirm that topics are cleared.
const CLEAR_TIMEOUT: Duration = Duration::from_secs(5);

/// The outcome of an attempt.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Cleared,
    /// The broker retains nothing under the former name.
    Absent,
    /// Another host uses the name.
    Taken,
    /// This host has not published its bans under the new name so far.
    TooEarly,
}

/// Clears every former branch that the store has. The daemon started at `started_at`, in milliseconds since 1970.
pub(super) async fn clear_all(
    config: Config,
    paths: Paths,
    memory: Arc<SharedState>,
    started_at: i64,
) {
    let mut attempts = 0;
    loop {
        let formers = memory.lock().former();
        if formers.is_empty() {
            return;
        }
        sleep(if attempts < MAX_FIRST_ATTEMPTS { FIRST_PAUSE } else { RETRY_PAUSE }).await;
        attempts += 1;
        for former in &formers {
            let Former { node, topic } = former;
            let name = format!("{node} on the topic {}", topic.as_str());
            match clear(&config, &paths, former, started_at).await {
                Ok(Outcome::TooEarly) => continue,
                Ok(Outcome::Cleared) => {
                    info(format_args!("removed the snapshot of this host's former name, {name}"));
                }
                Ok(Outcome::Absent) => {}
                Ok(Outcome::Taken) => {
                    info(format_args!(
                        "kept the snapshot of this host's former name, {name}: another host uses the name now"
                    ));
                }
                Err(error) => {
                    if attempts < MAX_FIRST_ATTEMPTS {
                        attempts = MAX_FIRST_ATTEMPTS;
                        warn(format_args!(
                            "cannot remove the snapshot of this host's former name, {name}: {error}; run on a \
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
    started_at: i64,
) -> Result<Outcome, Error> {
    let former_config = Config { topic: former.topic.clone(), ..config.clone() };
    let mut client = FleetClient::connect(&former_config, || reader::origins(paths)).await?;
    let new_name = (former.topic == config.topic).then_some(&config.node);
    client.fetch_host(&config.node).await?;
    client.fetch_host(&former.node).await?;
    let outcome = decide(client.view(), former, new_name, &machine(), started_at);
    if outcome != Outcome::Cleared {
        client.end().await;
        return Ok(outcome);
    }
    let mut messages = retraction(&former.node, client.view(), now_millis());
    if let Some(prefix) = config.ha_prefix.as_ref().filter(|_| former.node != config.node) {
        messages.extend(homeassistant::topics(prefix, &former.node).map(Message::Clear));
    }
    client.publish(&messages).await?;
    let deadline = Instant::now() + CLEAR_TIMEOUT;
    while is_kept(&former.node, client.view()) {
        if client.next_update(deadline).await?.is_none() {
            return Err(Error::Failed(
                "the broker still retains messages under the former name".to_owned(),
            ));
        }
    }
    client.end().await;
    Ok(outcome)
}

/// Decides what to do with a former branch. In the same fleet, peers that imported this host's bans must find the bans
/// under the new name before the former branch is cleared. In another fleet, there is no `new_name`.
fn decide(
    view: &FleetView,
    former: &Former,
    new_name: Option<&HostName>,
    machine: &str,
    started_at: i64,
) -> Outcome {
    if !is_kept(&former.node, view) {
        return Outcome::Absent;
    }
    let presence = view.hosts().get(&former.node).and_then(|host| host.presence());
    if presence.is_some_and(|presence| is_of_another_host(presence, machine)) {
        return Outcome::Taken;
    }
    let Some(new_name) = new_name else { return Outcome::Cleared };
    // A stamp from before the start is of an older snapshot.
    let is_published = view
        .hosts()
        .get(new_name)
        .is_some_and(|host| host.missing_shards() == 0 && host.stamp() >= Some(started_at));
    if is_published { Outcome::Cleared } else { Outcome::TooEarly }
}

/// Whether a presence under the former name is of another host: this daemon is not online under that name.
fn is_of_another_host(presence: &Presence, machine: &str) -> bool {
    presence.state == HostState::Online
        || !presence.machine.is_empty() && presence.machine != machine
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Topic;

    fn host(name: &str) -> HostName {
        HostName::new(name).unwrap()
    }

    /// The only shard of a host's snapshot, without bans.
    fn shard(host: &str, stamp: i64) -> String {
        format!(r#"{{"v":1,"host":"{host}","stamp":{stamp},"part":0,"parts":1,"bans":[]}}"#)
    }

    #[test]
    fn former_branch_is_cleared_once_the_bans_are_published_under_the_new_name() {
        const NOW: i64 = 1_795_342_600_000;
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
            if !presence.is_empty() {
                view.apply_raw("host/old", presence.as_bytes());
            }
            if snapshot {
                view.apply_raw("state/old/0", shard("old", 5).as_bytes());
            }
            if let Some(stamp) = stamp {
                view.apply_raw("state/new/0", shard("new", stamp).as_bytes());
            }
            let decided = decide(&view, &former, Some(&host("new")), "m1", NOW);
            assert_eq!(decided, outcome, "{presence} {snapshot} {stamp:?}");
        }
    }
}
