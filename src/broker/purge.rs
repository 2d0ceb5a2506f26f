//! Ends the session of a client ID that this host no longer uses, so that the broker queues nothing for it.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use super::{ClientOptions, LinkEvent, MqttLink};
use crate::config::Config;

/// How long to wait for an unreachable broker.
const PURGE_TIMEOUT: Duration = Duration::from_mins(10);

/// Connects once to each broker with a clean session. A broker that is unreachable for longer keeps the old session,
/// which no client uses.
pub async fn purge(config: Config, id: String) {
    let visits = config.brokers.iter().map(|broker| {
        let config = Config { brokers: vec![broker.clone()], ..config.clone() };
        let client = ClientOptions {
            id: id.clone(),
            persistent: false,
            topics: Vec::new(),
            others: Vec::new(),
            will: None,
        };
        let mut link = MqttLink::new(&config, client);
        timeout(PURGE_TIMEOUT, async move {
            while !matches!(link.event().await, LinkEvent::Connected(_)) {}
            link.close();
            while !matches!(link.event().await, LinkEvent::Lost { .. }) {}
        })
    });
    join_all(visits).await;
}
