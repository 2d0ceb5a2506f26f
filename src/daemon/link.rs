//! The link to the broker: its events, and the messages that this host publishes.

use std::time::Instant;

use sd_notify::NotifyState;
use tokio::time::timeout;

use super::status::LinkState;
use super::{
    DISCONNECT_TIMEOUT, Daemon, MAX_EVENTS_PER_TURN, MAX_PERSIST_BATCHES, MAX_TURN,
    offline_presence, presence,
};
use crate::broker::{DisconnectReason, LinkEvent};
use crate::config::Broker;
use crate::fleet::publisher::RetainedShard;
use crate::guard::RejectReason;
use crate::sys::clock::now_millis;
use crate::sys::log::{info, warn};
use crate::wire::Presence;

/// The warning about a broker with Mosquitto's `max_qos 0`.
const QOS_WARNING: &str = "the broker grants only QoS 0, so it may lose messages or end the connection at \
                           the first event; allow QoS 1 (mosquitto: max_qos 1 or 2)";

impl Daemon {
    /// Handles an event of the link, and further events that are available, for at most [`MAX_TURN`].
    pub(super) fn on_link_event(&mut self, event: LinkEvent) {
        self.handle_link_event(event);
        let started = Instant::now();
        for _ in 1..MAX_EVENTS_PER_TURN {
            if started.elapsed() >= MAX_TURN {
                break;
            }
            let Some(event) = self.link.try_event() else { break };
            self.handle_link_event(event);
        }
        self.wakeups.effects.notify_one();
    }

    fn handle_link_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Connected(broker) => self.on_connected(&broker),
            LinkEvent::Message(message) => self.on_message(&message),
            LinkEvent::Published(name) => {
                let event = self.memory.lock().outbox.on_published(&name);
                let message = event.and_then(|event| self.exporters.published(&event));
                if let Some((topic, payload)) = message {
                    self.link.publish_untracked(topic, payload.into_bytes());
                }
            }
            LinkEvent::Rejected(rejected) => {
                self.record_rejection(&rejected);
                self.on_unverified_own_shard(&rejected);
            }
            LinkEvent::SubscribeRejected(topics) => {
                let text = format!(
                    "the broker rejected the subscription to {}; check the access rules of the broker",
                    topics.join(", ")
                );
                self.warn("subscribe", &text);
            }
            LinkEvent::QosLowered => self.warn("qos", QOS_WARNING),
            LinkEvent::Lost { broker, why, too_large } => self.on_lost(&broker, &why, too_large),
        }
    }

    fn on_connected(&mut self, broker: &Broker) {
        let text = format!("connected to the broker {broker} as {}", self.host);
        show_status(&text);
        info(text);
        (self.sample_advice, self.is_sample) = (None, false);
        self.shards.clear();
        self.link_status.set_state(LinkState::Up, broker, now_millis());
        self.reconnects.record(now_millis());
        self.exporters.connected();
        self.own_name.on_connected(broker, now_millis());
        self.memory.lock().fleet.on_connected(now_millis());
        self.certificates_checked_at = None;
    }

    fn on_lost(&mut self, broker: &Broker, why: &DisconnectReason, too_large: bool) {
        self.exporters.connected = false;
        self.own_name.on_lost(now_millis());
        {
            let mut state = self.memory.lock();
            state.outbox.on_lost();
            state.fleet.on_disconnected();
            if too_large {
                state.rejections.count(RejectReason::TooLarge);
            }
        }
        self.link_status.set_state(LinkState::Down, broker, now_millis());
        self.link_status.set_error(why);
        let text = format!("no connection to the broker {broker}: {why}");
        match self.sample_advice.take() {
            // The advice is printed once. Later failures print the same line as with other settings.
            Some(advice) => {
                warn(&advice);
                show_status(&advice);
            }
            None if !self.is_sample => show_status(&text),
            None => {}
        }
        self.warn("broker", &text);
    }

    /// Publishes within the capacity of the link: events first, then subscriptions, presence and shards.
    pub(super) fn flush_outbound(&mut self) {
        let mut state = self.memory.lock();
        let state = &mut *state;
        state.outbox.send(&mut self.link);
        if self.link.capacity() == 0 {
            return;
        }
        if let Some(topics) = state.fleet.next_subscription(now_millis()) {
            let topics: Vec<_> = topics.iter().map(|topic| self.topic.retained(topic)).collect();
            self.link.subscribe(&topics);
        }
        let rejections = &state.rejections;
        let presence = state.fleet.presence(
            || Presence {
                since: self.started_at,
                rejected: rejections.by_name(),
                ..presence(&self.machine, &self.instance)
            },
            now_millis(),
        );
        if let Some(presence) = presence {
            let topic = self.topic.presence(&self.host);
            self.link.publish_retained(topic, presence.encode().into_bytes());
        }
        if self.shards.is_empty() {
            self.shards.extend(state.fleet.publications(now_millis()));
        }
        while self.link.capacity() > 0 {
            let Some(RetainedShard { index, content }) = self.shards.pop_front() else { break };
            let topic = self.topic.shard(&self.host, index);
            let payload = content.map(|shard| shard.encode().into_bytes()).unwrap_or_default();
            self.link.publish_retained(topic, payload);
        }
    }

    /// Publishes the offline presence, disconnects, and handles the last acknowledgements.
    pub(super) async fn shutdown(&mut self) {
        let topic = self.topic.presence(&self.host);
        let offline = offline_presence(&self.machine, &self.instance);
        self.link.publish_retained(topic, offline.encode().into_bytes());
        if self.link.close() {
            let _ = timeout(DISCONNECT_TIMEOUT, async {
                loop {
                    match self.link.event().await {
                        LinkEvent::Lost { .. } => return,
                        event => self.handle_link_event(event),
                    }
                }
            })
            .await;
        }
        let mut state = self.memory.lock();
        for _ in 0..MAX_PERSIST_BATCHES {
            if !state.save_next() {
                break;
            }
        }
        state.release_stamps();
        self.exporters.end();
        self.status.clear();
    }
}

/// Shows a line in `systemctl status`.
fn show_status(text: &str) {
    let _ = sd_notify::notify(&[NotifyState::Status(text)]);
}
