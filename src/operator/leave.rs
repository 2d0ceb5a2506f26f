//! `f2bmqtt leave`: clears what the broker keeps of this host, for the removal of the package. Without that, hosts that
//! import its bans would keep them, whatever this host unbans later by other means.

use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::forget::{is_kept, retraction};
use super::view::FleetView;
use super::visit::{FleetClient, Message};
use crate::broker;
use crate::clock::now_millis;
use crate::config::Config;
use crate::daemon::machine;
use crate::error::Error;
use crate::figures::homeassistant;
use crate::journal::info;
use crate::lock;
use crate::paths::Paths;
use crate::runtime;
use crate::store::Store;
use crate::wire::HostName;

/// The time limit of the whole command: the removal of the package waits for it.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How much of `LEAVE_TIMEOUT` a broker may use that does not end the daemon's session.
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
    if lock::is_held(&paths.lock()) {
        return Err(Error::Failed(
            "the service runs and would publish its bans again; stop it first: systemctl stop f2bmqttsub"
                .to_owned(),
        ));
    }
    let node = &config.node;
    let failed = |why: &dyn ToString| {
        Error::Failed(format!(
            "cannot remove {node} from the fleet: {}; other hosts keep its bans until they end; on one of them: \
             f2bmqtt forget {node}",
            why.to_string()
        ))
    };
    runtime::run(async {
        let left = timeout(LEAVE_TIMEOUT, clear_branch(&config, paths)).await;
        let late = || format!("the broker did not answer within {} s", LEAVE_TIMEOUT.as_secs());
        left.map_err(|_| failed(&late()))?.map_err(|error| failed(&error))?;
        info(format_args!("removed {node} from the fleet: other hosts release its bans"));
        Ok(())
    })
}

async fn clear_branch(config: &Config, paths: &Paths) -> Result<(), Error> {
    let mut client = FleetClient::connect(config, paths).await?;
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
            return Err(Error::Failed("the broker still keeps its topics".to_owned()));
        }
    }
    client.end().await;
    // The broker would go on queueing for it.
    let path = paths.store();
    let identity = path.exists().then(|| Store::open(&path)?.identity()).transpose()?.flatten();
    if let Some(identity) = identity {
        let _ = timeout(PURGE_TIMEOUT, broker::purge(config.clone(), identity.client_id())).await;
    }
    Ok(())
}

/// Whether the name is another machine's. This host's own daemon may have ended without a good-bye.
fn is_owned_by_another_machine(view: &FleetView, node: &HostName, machine: &str) -> bool {
    let presence = view.hosts().get(node).and_then(|member| member.presence());
    presence.is_some_and(|there| !there.machine.is_empty() && there.machine != machine)
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
