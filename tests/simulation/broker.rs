//! A model of a broker: retained messages, sessions, bounded queues, and a network that delays, swaps, duplicates and
//! loses messages.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::chance::Chance;

/// A topic relative to the fleet's, and a payload.
pub(crate) type Message = (String, String);

/// How many messages a client's queue holds. The broker silently drops further ones.
const MAX_QUEUED_MESSAGES: usize = 30;

#[derive(Default)]
struct Session {
    connected: bool,
    filters: BTreeSet<String>,
    queue: VecDeque<Message>,
}

#[derive(Default)]
pub(crate) struct Broker {
    retained: BTreeMap<String, String>,
    sessions: BTreeMap<String, Session>,
    /// All published messages, and when each was published.
    pub(crate) seen: Vec<(i64, Message)>,
}

fn matches(filter: &str, topic: &str) -> bool {
    let (filter, topic): (Vec<_>, Vec<_>) =
        (filter.split('/').collect(), topic.split('/').collect());
    filter == ["#"]
        || filter.len() == topic.len()
            && filter.iter().zip(&topic).all(|(f, t)| *f == "+" || f == t)
}

impl Broker {
    /// Connects a client and subscribes to filters; with `resume`, an existing session continues.
    pub(crate) fn connect(&mut self, client: &str, filters: &[&str], resume: bool) {
        if !resume {
            self.sessions.remove(client);
        }
        self.sessions.entry(client.to_owned()).or_default().connected = true;
        for filter in filters {
            self.subscribe(client, filter);
        }
    }

    pub(crate) fn disconnect(&mut self, client: &str) {
        if let Some(session) = self.sessions.get_mut(client) {
            session.connected = false;
        }
    }

    pub(crate) fn subscribe(&mut self, client: &str, filter: &str) {
        let session = self.sessions.entry(client.to_owned()).or_default();
        session.filters.insert(filter.to_owned());
        for (topic, payload) in self.retained.iter().filter(|(topic, _)| matches(filter, topic)) {
            if session.queue.len() < MAX_QUEUED_MESSAGES {
                session.queue.push_back((topic.clone(), payload.clone()));
            }
        }
    }

    pub(crate) fn publish(&mut self, now: i64, topic: &str, payload: &str, retain: bool) {
        self.seen.push((now, (topic.to_owned(), payload.to_owned())));
        self.inject(topic, payload, retain);
    }

    /// Publishes a message that `seen` does not list.
    pub(crate) fn inject(&mut self, topic: &str, payload: &str, retain: bool) {
        let message = (topic.to_owned(), payload.to_owned());
        if retain && payload.is_empty() {
            self.retained.remove(topic);
        } else if retain {
            self.retained.insert(topic.to_owned(), payload.to_owned());
        }
        for (name, session) in &mut self.sessions {
            // The scripts connect with clean sessions.
            let queued = session.connected || !name.starts_with("script");
            let wants = session.filters.iter().any(|filter| matches(filter, topic));
            if queued && wants && session.queue.len() < MAX_QUEUED_MESSAGES {
                session.queue.push_back(message.clone());
            }
        }
    }

    pub(crate) fn retained_topics(&self) -> Vec<String> {
        self.retained.keys().cloned().collect()
    }

    /// Takes the messages that reach each client now.
    pub(crate) fn deliver(&mut self, chance: &mut Chance, faults: bool) -> Vec<(String, Message)> {
        let mut delivered = Vec::new();
        for (name, session) in &mut self.sessions {
            if !session.connected {
                continue;
            }
            let mut messages: Vec<_> = session.queue.drain(..).collect();
            if faults && !messages.is_empty() {
                if chance.often(150) {
                    session.queue = messages.split_off(messages.len() / 2).into();
                }
                if messages.len() > 1 && chance.often(100) {
                    let n = chance.index(messages.len() - 1);
                    messages.swap(n, n + 1);
                }
                if !messages.is_empty() && chance.often(100) {
                    let n = chance.index(messages.len());
                    messages.push(messages[n].clone());
                }
                if !messages.is_empty() && chance.often(80) {
                    messages.remove(chance.index(messages.len()));
                }
            }
            delivered.extend(messages.into_iter().map(|message| (name.clone(), message)));
        }
        delivered
    }

    /// Drops all connections, and without `with_data` all retained messages and sessions.
    pub(crate) fn restart(&mut self, with_data: bool) {
        for session in self.sessions.values_mut() {
            session.connected = false;
        }
        if !with_data {
            self.retained.clear();
            self.sessions.clear();
        }
    }

    pub(crate) fn lose_retained(&mut self) {
        self.retained.clear();
    }

    pub(crate) fn lose_queue(&mut self, client: &str) {
        if let Some(session) = self.sessions.get_mut(client) {
            session.queue.clear();
        }
    }
}
