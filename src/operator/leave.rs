//! `f2bmqtt leave`: clears what the broker keeps of this host, when the package is removed. Otherwise the other hosts
//! would keep this host's bans until these expire, even if this host unbans an address earlier.

use std::fmt::Display;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use crate::broker;
use crate::broker::fleet_client::{FleetClient, Message};
use crate::broker::fleet_view::{FleetView, HostView};
use crate::broker::retraction::{is_kept, retraction};
use crate::config::Config;
use crate::daemon::exporters::homeassistant;
use crate::daemon::machine;
use crate::error::Error;
use crate::model::HostName;
use crate::spool::owner_lock;
use crate::store::{Store, reader};
use crate::sys::clock::now_millis;
use crate::sys::log::info;
use crate::sys::paths::Paths;
use crate::sys::runtime;

/// The time limit of the whole command: the removal of the package waits for it.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How much of `LEAVE_TIMEOUT` the end of the daemon's session may take. The command succeeds without that, too.
const PURGE_TIMEOUT: Duration = Duration::from_secs(1);

/// Clears the branch of this host, and ends the session of its daemon. Sample settings are no fault.
///
/// # Errors
/// Any [`Error`], with what to do instead.
pub(super) fn run(paths: &Paths) -> Result<(), Error> {
    let config = Config::load()?;
    if config.is_sample() {
        return Ok(());
    }
    if owner_lock::is_held(&paths.lock()) {
        return Err(Error::Failed(
            "the service still runs, and would publish its bans again. First: systemctl stop f2bmqttsub"
                .to_owned(),
        ));
    }
    let node = &config.node;
    runtime::run(async {
        match timeout(LEAVE_TIMEOUT, clear_branch(&config, paths)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(not_removed(node, &error)),
            Err(_) => {
                let seconds = LEAVE_TIMEOUT.as_secs();
                let why = format_args!("the broker did not answer within {seconds} s");
                return Err(not_removed(node, &why));
            }
        }
        info(format_args!("removed {node} from the fleet: other hosts release its bans"));
        Ok(())
    })
}

fn not_removed(node: &HostName, why: &dyn Display) -> Error {
    Error::Failed(format!(
        "cannot remove {node} from the fleet: {why}. Other hosts keep the bans of {node} until these end. To remove \
         {node}, run on one of them: f2bmqtt forget {node}"
    ))
}

async fn clear_branch(config: &Config, paths: &Paths) -> Result<(), Error> {
    let mut client = FleetClient::connect(config, || reader::origins(paths)).await?;
    client.fetch_host(&config.node).await?;
    if is_owned_by_another_machine(client.view(), &config.node, &machine()) {
        return Err(Error::Failed("another machine has this name now".to_owned()));
    }
    let mut messages = retraction(&config.node, client.view(), now_millis());
    if let Some(prefix) = &config.ha_prefix {
        messages.extend(homeassistant::topics(prefix, &config.node).map(Message::Clear));
    }
    client.publish(&messages).await?;
    let until = Instant::now() + LEAVE_TIMEOUT;
    while is_kept(&config.node, client.view()) {
        if client.next_update(until).await?.is_none() {
            return Err(Error::Failed("the broker still keeps its messages".to_owned()));
        }
    }
    client.end().await;
    // The broker would keep on queueing messages for the daemon's session.
    let path = paths.store();
    let identity = path.exists().then(|| Store::open(&path)?.identity()).transpose()?.flatten();
    if let Some(identity) = identity {
        let _ = timeout(PURGE_TIMEOUT, broker::purge(config.clone(), identity.client_id())).await;
    }
    Ok(())
}

/// Whether another machine has the name now. This machine's presence may still be online: its daemon may have ended
/// without publishing that it is offline.
fn is_owned_by_another_machine(view: &FleetView, node: &HostName, machine: &str) -> bool {
    let presence = view.hosts().get(node).and_then(HostView::presence);
    presence.is_some_and(|presence| !presence.machine.is_empty() && presence.machine != machine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branch_of_another_machine_of_this_name_stays() {
        let node = HostName::new("web1").unwrap();
        let table = [
            ("", false),
            (r#"{"v":1,"state":"offline","machine":"m1"}"#, false),
            (r#"{"v":1,"state":"online","machine":"m1"}"#, false),
            (r#"{"v":1,"state":"online"}"#, false),
            (r#"{"v":1,"state":"online","machine":"m2"}"#, true),
            (r#"{"v":1,"state":"offline","machine":"m2"}"#, true),
        ];
        for (presence, expected) in table {
            let mut view = FleetView::default();
            if !presence.is_empty() {
                view.apply_raw("host/web1", presence.as_bytes());
            }
            assert_eq!(is_owned_by_another_machine(&view, &node, "m1"), expected, "{presence}");
        }
    }
}
