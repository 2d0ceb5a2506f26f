//! The model of `watch`: the last events, the rate of bans, and the fleet. Pure.

use std::collections::{BTreeMap, VecDeque};

use crate::broker::fetch::SnapshotFetch;
use crate::broker::fleet_view::{FleetView, HostView, Update};
use crate::guard::gate::Admitted;
use crate::guard::{check_event_stamp, is_bannable};
use crate::model::text::format_duration;
use crate::model::{Address, HostName, Jail};
use crate::wire::{Action, Event, HostState, Reason};

/// The number of events that the model keeps.
const MAX_ITEMS: usize = 500;

/// The number of seconds that the rate covers.
pub(super) const RATE_SECONDS: usize = 60;

/// A ban, an unban, or a change of a host's presence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FeedItem {
    /// A ban or an unban. `bantime` is in seconds: -1 is permanent, 0 is unknown.
    Event {
        action: Action,
        address: Address,
        jail: Jail,
        host: HostName,
        bantime: i64,
        reason: Option<Reason>,
    },
    /// A host went online or offline.
    Host { host: HostName, online: bool },
}

/// The state of the screen. Times are in milliseconds since 1970, except where noted.
#[derive(Debug)]
pub(super) struct WatchModel {
    fetch: SnapshotFetch,
    /// The fleet has a signing key.
    signed: bool,
    /// The newest first, with the time in seconds since 1970.
    items: VecDeque<(i64, FeedItem)>,
    /// The number of bans in each of the last seconds, the current one last.
    rate: VecDeque<u64>,
    second: i64,
    /// The last fleet unban: the same one arrives once per jail, and is listed once.
    last_fleet_unban: Option<(Address, String)>,
    /// The last count, and its time.
    count: BanCounts,
    counted_at: i64,
}

/// The number of bans in total, by jail, and by host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct BanCounts {
    pub(super) all: usize,
    pub(super) jails: BTreeMap<Jail, usize>,
    pub(super) hosts: BTreeMap<HostName, usize>,
}

impl WatchModel {
    /// An empty model. `signed`: the fleet has a signing key.
    pub(super) fn new(signed: bool, now: i64) -> Self {
        Self {
            fetch: SnapshotFetch::new(signed, BROKER_LATENCY_MS, now),
            signed,
            items: VecDeque::new(),
            rate: VecDeque::from([0; RATE_SECONDS]),
            second: now / 1000,
            last_fleet_unban: None,
            count: BanCounts::default(),
            counted_at: 0,
        }
    }

    /// Starts a new fetch, because the link is up.
    pub(super) fn connected(&mut self, now: i64) {
        self.fetch = SnapshotFetch::new(self.signed, BROKER_LATENCY_MS, now);
        self.counted_at = 0;
    }

    /// The fetch of the retained messages.
    pub(super) fn fetch(&mut self) -> &mut SnapshotFetch {
        &mut self.fetch
    }

    /// The state of the fleet.
    pub(super) fn view(&self) -> &FleetView {
        &self.fetch.view
    }

    /// Applies a message. Returns the new item, if the message is one.
    pub(super) fn apply(&mut self, message: &Admitted, now: i64) -> Option<FeedItem> {
        self.advance(now);
        if let Some(host) = message.source().host() {
            let host = host.clone();
            let before = self.is_online(&host);
            let update = self.fetch.apply(message, now, now);
            let after = self.is_online(&host).unwrap_or(false);
            // The first presence of a host is not a change.
            let is_change = matches!(update, Update::Presence(_))
                && before.is_some_and(|before| before != after);
            return is_change.then(|| self.record(FeedItem::Host { host, online: after }, now));
        }
        let event = message.event().ok().filter(Event::is_new)?;
        // Daemons reject these events (R1).
        let is_unbannable = event.action == Action::Ban && !is_bannable(event.address.ip());
        if is_unbannable || check_event_stamp(&event, self.signed, now).is_some() {
            return None;
        }
        let Event { action, address, jail, host, bantime, reason, id, .. } = event;
        if let Some(id) = id {
            let fleet_unban = Some((address, id.as_str().to_owned()));
            if self.last_fleet_unban == fleet_unban {
                return None;
            }
            self.last_fleet_unban = fleet_unban;
        }
        if action == Action::Ban
            && let Some(count) = self.rate.back_mut()
        {
            *count += 1;
        }
        Some(self.record(FeedItem::Event { action, address, jail, host, bantime, reason }, now))
    }

    /// `None` for an unknown host.
    fn is_online(&self, host: &HostName) -> Option<bool> {
        self.view().hosts().get(host).map(HostView::is_online)
    }

    fn record(&mut self, item: FeedItem, now: i64) -> FeedItem {
        self.items.truncate(MAX_ITEMS - 1);
        self.items.push_front((now / 1000, item.clone()));
        item
    }

    /// Advances the rate to `now`.
    pub(super) fn advance(&mut self, now: i64) {
        let second = now / 1000;
        for _ in self.second..second.min(self.second + i64::try_from(RATE_SECONDS).unwrap_or(0)) {
            self.rate.pop_front();
            self.rate.push_back(0);
        }
        self.second = second;
    }

    /// Counts the bans, at most once a second, because a count of a large fleet takes long.
    pub(super) fn count(&mut self, now: i64) -> &BanCounts {
        if now - self.counted_at >= 1000 {
            self.counted_at = now;
            let mut count = BanCounts::default();
            for banned in self.fetch.view.banned(now / 1000) {
                count.all += 1;
                *count.jails.entry(banned.jail).or_default() += 1;
                *count.hosts.entry(banned.origin).or_default() += 1;
                for host in banned.also {
                    *count.hosts.entry(host).or_default() += 1;
                }
            }
            self.count = count;
        }
        &self.count
    }

    /// The items, the newest first, with their times in seconds since 1970.
    pub(super) fn items(&self) -> impl Iterator<Item = &(i64, FeedItem)> {
        self.items.iter()
    }

    /// The number of bans in each of the last seconds, the current one last.
    pub(super) fn rate(&self) -> Vec<u64> {
        self.rate.iter().copied().collect()
    }
}

/// The assumed latency of the broker, in milliseconds. The screen cannot wait to measure the latency.
const BROKER_LATENCY_MS: i64 = 100;

impl FeedItem {
    /// The columns: event, address, jail, host, details.
    pub(super) fn columns(&self) -> [String; 5] {
        match self {
            Self::Event { action, address, jail, host, bantime, reason } => {
                let details = match (action, reason, bantime) {
                    (Action::Ban, _, 0) => String::new(),
                    (Action::Ban, _, ..0) => "permanent".to_owned(),
                    (Action::Ban, _, bantime) => {
                        format!("for {}", format_duration(*bantime))
                    }
                    (_, Some(Reason::Expired), _) => "expired".to_owned(),
                    (_, Some(Reason::Lifted), _) => "by hand".to_owned(),
                    (_, Some(Reason::Fleet), _) => "fleet unban".to_owned(),
                    _ => String::new(),
                };
                let jail =
                    if *reason == Some(Reason::Fleet) { "*".to_owned() } else { jail.to_string() };
                [action.to_string(), address.to_string(), jail, host.to_string(), details]
            }
            Self::Host { host, online } => {
                let state = if *online { HostState::Online } else { HostState::Offline };
                let none = String::new;
                [state.as_str().to_owned(), none(), none(), host.to_string(), none()]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::gate::tests::admit;

    const NOW: i64 = 1_795_342_600_000;

    fn event(action: &str, ip: &str, more: &str) -> Vec<u8> {
        let stamp = r#""host":"web1","bantime":600,"stamp":5"#;
        format!(r#"{{"action":"{action}","ipmset":"sshd","ip":"{ip}",{stamp}{more}}}"#).into_bytes()
    }

    /// Applies a message, and joins the columns of the new item.
    fn news(model: &mut WatchModel, topic: &str, payload: &[u8], now: i64) -> Option<String> {
        let item = model.apply(&admit(topic, payload).unwrap(), now);
        item.map(|item| item.columns().join("|"))
    }

    fn ban(ip: &str) -> Vec<u8> {
        event("ban", ip, "")
    }

    fn stamped_ban(stamp: i64) -> Vec<u8> {
        let text = String::from_utf8(ban("192.0.2.1")).unwrap();
        text.replace(r#""stamp":5"#, &format!(r#""stamp":{stamp}"#)).into_bytes()
    }

    fn fleet_unban(created_at: i64) -> Vec<u8> {
        event("unban", "192.0.2.1", &format!(r#","reason":"fleet","id":"web2-{created_at}""#))
    }

    #[test]
    fn each_ban_is_listed_once_and_counted_by_second() {
        let mut model = WatchModel::new(false, NOW);
        let ip = "203.0.113.9";
        let ban = Some("ban|203.0.113.9|sshd|web1|for 10m".to_owned());
        assert_eq!(news(&mut model, "ban", &event("ban", ip, ""), NOW), ban);
        assert_eq!(news(&mut model, "script/ban", &event("ban", ip, ""), NOW + 999), ban);
        assert_eq!(news(&mut model, "ban", &event("ban", ip, r#","restored":1"#), NOW), None);
        assert_eq!(news(&mut model, "ban", b"{}", NOW), None);
        let unban = Some("unban|203.0.113.9|sshd|web1|expired".to_owned());
        assert_eq!(
            news(&mut model, "unban", &event("unban", ip, r#","reason":"expired""#), NOW + 2000),
            unban
        );
        let fleet = event("unban", ip, r#","reason":"fleet","id":"web2-7""#);
        let unban = Some("unban|203.0.113.9|*|web1|fleet unban".to_owned());
        assert_eq!(news(&mut model, "unban", &fleet, NOW + 2000), unban);
        assert_eq!(news(&mut model, "unban", &fleet, NOW + 2000), None, "once for each jail");
        assert_eq!(news(&mut model, "ban", &event("ban", ip, ""), NOW + 3000), ban);
        assert_eq!(model.rate()[RATE_SECONDS - 4..], [2, 0, 0, 1]);
        model.advance(NOW + 3_600_000);
        assert!(model.rate().iter().all(|count| *count == 0) && model.rate().len() == RATE_SECONDS);
        assert_eq!(model.items().count(), 5);
    }

    #[test]
    fn events_that_daemons_reject_are_not_listed() {
        const DAY: i64 = 86_400_000;
        let future = NOW + DAY + 1;
        // The event, and whether it is news in a fleet without a key and with one.
        let table = [
            (stamped_ban(NOW), true, true),
            (stamped_ban(NOW + DAY), true, true),
            (stamped_ban(future), false, false),
            (stamped_ban(NOW - 2 * DAY - 1), true, false),
            (stamped_ban(0), true, true),
            (fleet_unban(NOW), true, true),
            (fleet_unban(future), false, false),
            (ban("127.0.0.1"), false, false),
            (event("unban", "127.0.0.1", ""), true, false),
        ];
        for (payload, unsigned, signed) in table {
            for (has_key, expected) in [(false, unsigned), (true, signed)] {
                let news =
                    WatchModel::new(has_key, NOW).apply(&admit("ban", &payload).unwrap(), NOW);
                let text = String::from_utf8_lossy(&payload);
                assert_eq!(news.is_some(), expected, "{has_key} {text}");
            }
        }
    }

    #[test]
    fn only_changes_of_presence_are_listed() {
        let mut model = WatchModel::new(false, NOW);
        let states = [
            ("online", None),
            ("online", None),
            ("offline", Some("offline|||web2|".to_owned())),
            ("online", Some("online|||web2|".to_owned())),
        ];
        for (state, expected) in states {
            let presence = format!(r#"{{"v":1,"state":"{state}"}}"#);
            assert_eq!(news(&mut model, "host/web2", presence.as_bytes(), NOW), expected);
        }
        let shard = br#"{"v":1,"host":"web2","stamp":5,"part":0,"parts":1,"bans":[["sshd","192.0.2.1",1795342600,600]]}"#;
        assert_eq!(model.apply(&admit("state/web2/0", shard).unwrap(), NOW), None);
        let count = model.count(NOW).clone();
        assert_eq!((count.all, count.jails.len(), count.hosts.len()), (1, 1, 1));
    }
}
