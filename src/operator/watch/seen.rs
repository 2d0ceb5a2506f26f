//! What `watch` has seen: the bans as they came, how many a second, and the fleet. Pure.

use std::collections::{BTreeMap, VecDeque};

use crate::guard::gate::Admitted;
use crate::guard::{check_event_stamp, is_bannable};
use crate::operator::gather::SnapshotFetch;
use crate::operator::view::{FleetView, Update};
use crate::text::format_duration;
use crate::wire::{Action, Address, Event, HostName, HostState, Jail, Reason};

/// How many of the last events are kept.
const KEPT: usize = 500;

/// Of how many seconds the rate is kept.
pub const SECONDS: usize = 60;

/// Something that happened in the fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum FeedItem {
    /// An address was banned, for so many seconds (-1 is for ever, 0 is not known), or freed.
    Event {
        action: Action,
        address: Address,
        jail: Jail,
        host: HostName,
        bantime: i64,
        reason: Option<Reason>,
    },
    /// A host came or went.
    Host { host: HostName, online: bool },
}

/// Everything that was seen.
#[derive(Debug)]
pub struct WatchModel {
    gathering: SnapshotFetch,
    /// The fleet has a key.
    signed: bool,
    /// The last first, with its time in seconds since 1970.
    news: VecDeque<(i64, FeedItem)>,
    /// Bans in each of the last seconds, up to this one.
    rate: VecDeque<u64>,
    second: i64,
    /// The last fleet unban: it comes once for each jail.
    pardoned: Option<(Address, String)>,
    /// Bans by jail and by host, and in all, as they were counted last.
    count: Count,
    counted: i64,
}

/// How many bans there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Count {
    pub all: usize,
    pub jails: BTreeMap<Jail, usize>,
    pub hosts: BTreeMap<HostName, usize>,
}

impl WatchModel {
    /// Nothing yet, of a fleet whose messages are signed or not; times are in milliseconds since 1970.
    #[must_use]
    pub fn new(signed: bool, now: i64) -> Self {
        Self {
            gathering: SnapshotFetch::new(signed, ANSWERS, now),
            signed,
            news: VecDeque::new(),
            rate: VecDeque::from([0; SECONDS]),
            second: now / 1000,
            pardoned: None,
            count: Count::default(),
            counted: 0,
        }
    }

    /// The link is up: the fleet is gathered anew.
    pub fn connected(&mut self, now: i64) {
        self.gathering = SnapshotFetch::new(self.signed, ANSWERS, now);
        self.counted = 0;
    }

    /// What is to be gathered.
    pub fn gathering(&mut self) -> &mut SnapshotFetch {
        &mut self.gathering
    }

    /// The fleet.
    #[must_use]
    pub fn view(&self) -> &FleetView {
        &self.gathering.view
    }

    /// Takes a message. Answers what is new.
    pub fn hear(&mut self, message: &Admitted, now: i64) -> Option<FeedItem> {
        self.turn(now);
        let online = |view: &FleetView, host: &HostName| {
            view.hosts().get(host).map(super::super::view::HostView::is_online)
        };
        if let Some(host) = message.source().host() {
            let host = host.clone();
            let before = online(self.view(), &host);
            let heard = self.gathering.hear(message, now, now);
            let after = online(self.view(), &host).unwrap_or(false);
            // What is there when it begins is no news.
            let came = matches!(heard, Update::Presence(_))
                && before.is_some_and(|before| before != after);
            return came.then(|| self.tell(FeedItem::Host { host, online: after }, now));
        }
        let event = message.event().ok().filter(Event::is_new)?;
        // What the daemons reject is no news.
        let unbannable = event.action == Action::Ban && !is_bannable(event.address.ip());
        if unbannable || check_event_stamp(&event, self.signed, now).is_some() {
            return None;
        }
        let Event { action, address, jail, host, bantime, reason, id, .. } = event;
        if let Some(id) = id {
            let pardon = Some((address, id.as_str().to_owned()));
            if self.pardoned == pardon {
                return None;
            }
            self.pardoned = pardon;
        }
        if action == Action::Ban
            && let Some(count) = self.rate.back_mut()
        {
            *count += 1;
        }
        Some(self.tell(FeedItem::Event { action, address, jail, host, bantime, reason }, now))
    }

    fn tell(&mut self, news: FeedItem, now: i64) -> FeedItem {
        self.news.truncate(KEPT - 1);
        self.news.push_front((now / 1000, news.clone()));
        news
    }

    /// Time goes on.
    pub fn turn(&mut self, now: i64) {
        let second = now / 1000;
        for _ in self.second..second.min(self.second + i64::try_from(SECONDS).unwrap_or(0)) {
            self.rate.pop_front();
            self.rate.push_back(0);
        }
        self.second = second;
    }

    /// Counts the bans, which takes a moment where there are many: at most once a second.
    pub fn count(&mut self, now: i64) -> &Count {
        if now - self.counted >= 1000 {
            self.counted = now;
            let mut count = Count::default();
            for banned in self.gathering.view.banned(now / 1000) {
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

    /// The last news first, with their times.
    pub fn news(&self) -> impl Iterator<Item = &(i64, FeedItem)> {
        self.news.iter()
    }

    /// Bans in each of the last seconds.
    #[must_use]
    pub fn rate(&self) -> Vec<u64> {
        self.rate.iter().copied().collect()
    }
}

/// How long the broker takes to answer, in milliseconds: nobody waits for it here.
const ANSWERS: i64 = 100;

impl FeedItem {
    /// What happened, of which address, in which jail, by whom, and what more there is to say.
    #[must_use]
    pub fn columns(&self) -> [String; 5] {
        match self {
            Self::Event { action, address, jail, host, bantime, reason } => {
                let more = match (action, reason, bantime) {
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
                [action.to_string(), address.to_string(), jail, host.to_string(), more]
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

    #[test]
    fn bans_are_told_and_counted_by_the_second() {
        let mut seen = WatchModel::new(false, NOW);
        let mut words = |topic: &str, payload: &[u8], now| {
            seen.hear(&admit(topic, payload).unwrap(), now).map(|news| news.columns().join("|"))
        };
        let ip = "203.0.113.9";
        let ban = Some("ban|203.0.113.9|sshd|web1|for 10m".to_owned());
        assert_eq!(words("ban", &event("ban", ip, ""), NOW), ban);
        assert_eq!(words("script/ban", &event("ban", ip, ""), NOW + 999), ban);
        assert_eq!(words("ban", &event("ban", ip, r#","restored":1"#), NOW), None);
        assert_eq!(words("ban", b"{}", NOW), None);
        let unban = Some("unban|203.0.113.9|sshd|web1|expired".to_owned());
        assert_eq!(
            words("unban", &event("unban", ip, r#","reason":"expired""#), NOW + 2000),
            unban
        );
        let fleet = event("unban", ip, r#","reason":"fleet","id":"web2-7""#);
        let unban = Some("unban|203.0.113.9|*|web1|fleet unban".to_owned());
        assert_eq!(words("unban", &fleet, NOW + 2000), unban);
        assert_eq!(words("unban", &fleet, NOW + 2000), None, "once for each jail");
        assert_eq!(words("ban", &event("ban", ip, ""), NOW + 3000), ban);
        assert_eq!(seen.rate()[SECONDS - 4..], [2, 0, 0, 1]);
        seen.turn(NOW + 3_600_000);
        assert!(seen.rate().iter().all(|count| *count == 0) && seen.rate().len() == SECONDS);
        assert_eq!(seen.news().count(), 5);
    }

    #[test]
    fn events_that_daemons_reject_are_no_news() {
        const DAY: i64 = 86_400_000;
        let (ban, later) = (|ip: &str| event("ban", ip, ""), NOW + DAY + 1);
        let stamped = |stamp: i64| {
            let text = String::from_utf8(ban("192.0.2.1")).unwrap();
            text.replace(r#""stamp":5"#, &format!(r#""stamp":{stamp}"#)).into_bytes()
        };
        let unban = |made: i64| {
            event("unban", "192.0.2.1", &format!(r#","reason":"fleet","id":"web2-{made}""#))
        };
        // The event, and whether it is news in a fleet without a key and with one.
        let table = [
            (stamped(NOW), true, true),
            (stamped(NOW + DAY), true, true),
            (stamped(later), false, false),
            (stamped(NOW - 2 * DAY - 1), true, false),
            (stamped(0), true, true),
            (unban(NOW), true, true),
            (unban(later), false, false),
            (ban("127.0.0.1"), false, false),
            (event("unban", "127.0.0.1", ""), true, false),
        ];
        for (payload, unsigned, signed) in table {
            for (has_key, expected) in [(false, unsigned), (true, signed)] {
                let news =
                    WatchModel::new(has_key, NOW).hear(&admit("ban", &payload).unwrap(), NOW);
                let text = String::from_utf8_lossy(&payload);
                assert_eq!(news.is_some(), expected, "{has_key} {text}");
            }
        }
    }

    #[test]
    fn hosts_that_come_and_go_are_news_and_those_that_are_there_are_not() {
        let mut seen = WatchModel::new(false, NOW);
        let mut state = |state: &str| {
            let json = format!(r#"{{"v":1,"state":"{state}"}}"#);
            let presence = admit("host/web2", json.as_bytes()).unwrap();
            seen.hear(&presence, NOW).map(|news| news.columns().join("|"))
        };
        assert_eq!(state("online"), None);
        assert_eq!(state("online"), None);
        assert_eq!(state("offline"), Some("offline|||web2|".to_owned()));
        assert_eq!(state("online"), Some("online|||web2|".to_owned()));
        let part = br#"{"v":1,"host":"web2","stamp":5,"part":0,"parts":1,"bans":[["sshd","192.0.2.1",1795342600,600]]}"#;
        assert_eq!(seen.hear(&admit("state/web2/0", part).unwrap(), NOW), None);
        let count = seen.count(NOW).clone();
        assert_eq!((count.all, count.jails.len(), count.hosts.len()), (1, 1, 1));
    }
}
