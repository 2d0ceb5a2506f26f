//! The attacker's messages: of each kind, in any name, with any stamp.

use f2bmqtt::model::{Address, HostName, Jail, JailScope, UnbanId};
use f2bmqtt::wire::{
    ACK_REQUEST, Action, Event, FleetUnban, HostState, Presence, Reason, Shard, ShardEntry, ShardId,
};

use super::{Attacker, NAMES};
use crate::broker::Message;

/// Addresses that no host detects.
pub(super) const ADDRESSES: [&str; 2] = ["198.51.100.66", "198.51.100.67"];

pub(super) const DAY: i64 = 86_400_000;

/// The empty shard that `f2bmqtt forget` publishes first.
pub(super) fn empty_shard(name: &str, stamp: i64) -> String {
    let (host, id) = (HostName::new(name).unwrap(), ShardId::new(0, 1).unwrap());
    Shard { host, stamp, time: 0, id, bans: Vec::new(), unbans: Vec::new() }.encode()
}

impl Attacker {
    fn name(&mut self) -> HostName {
        HostName::new(self.chance.pick::<&str>(&NAMES)).unwrap()
    }

    fn jail(&mut self) -> Jail {
        Jail::new(if self.chance.often(900) { "sshd" } else { "web" }).unwrap()
    }

    fn address(&mut self, addresses: &[Address]) -> Address {
        if self.chance.often(300) {
            Address::new(self.chance.pick::<&str>(&ADDRESSES)).unwrap()
        } else {
            *self.chance.pick(addresses)
        }
    }

    /// A stamp in milliseconds: in the past, now, or ahead, also by more than the day that hosts accept.
    fn stamp(&mut self, now: i64) -> i64 {
        let ago = *self.chance.pick(&[
            -3_600_000,
            -20_000,
            -1_000,
            0,
            0,
            0,
            1_000,
            20_000,
            3_600_000,
            DAY / 2,
            DAY - 300_000,
            DAY - 30_000,
            DAY - 1_000,
            DAY,
            DAY + 15_000,
            3 * DAY,
        ]);
        now * 1000 + ago + self.chance.within(0, 999)
    }

    /// The start and the length of a ban, in seconds.
    fn ban(&mut self, now: i64) -> (i64, i64) {
        let start = now + self.chance.within(-100, 20);
        let start = if self.chance.often(50) { now + 90_000 } else { start };
        (start, *self.chance.pick(&[0, 25, 60, 600, -1]))
    }

    fn id(&mut self, now: i64) -> UnbanId {
        let (host, made) = (self.name(), self.stamp(now));
        UnbanId::made_by(&host, made)
    }

    /// A topic relative to the fleet's.
    pub(super) fn topic(&mut self) -> String {
        let name = self.name();
        match self.chance.within(0, 6) {
            0 | 1 => "ban".to_owned(),
            2 => "unban".to_owned(),
            3 => format!("host/{name}"),
            _ => format!("state/{name}/{}", self.chance.pick(&[0, 0, 0, 1, 5])),
        }
    }

    /// A payload with one byte changed.
    pub(super) fn change(&mut self, payload: &str) -> String {
        let mut bytes = payload.as_bytes().to_vec();
        if !bytes.is_empty() {
            let n = self.chance.index(bytes.len());
            bytes[n] = *self.chance.pick(b"0123456789abcdef\"{},");
        }
        String::from_utf8(bytes).unwrap_or_default()
    }

    /// A forged message of any kind.
    pub(super) fn forge(&mut self, addresses: &[Address], now: i64) -> Message {
        match self.chance.within(0, 9) {
            0..=2 => self.forge_event(addresses, now),
            3 => {
                let address = self.address(addresses);
                self.forge_unban(address, now)
            }
            4..=7 => self.forge_shard(addresses, now),
            8 => {
                let (host, offline) = (self.name(), self.chance.often(500));
                let state = if offline { HostState::Offline } else { HostState::Online };
                (format!("host/{host}"), Presence { state, ..Presence::default() }.encode())
            }
            _ => (
                self.topic(),
                (*self.chance.pick(&["{}", "null", "[", "\u{202e}", "7"])).to_owned(),
            ),
        }
    }

    fn forge_event(&mut self, addresses: &[Address], now: i64) -> Message {
        let is_ban = self.chance.often(600);
        let ((time, bantime), stamp) = (self.ban(now), self.stamp(now));
        let carries = is_ban && self.chance.often(300);
        let mut event = Event {
            action: if is_ban { Action::Ban } else { Action::Unban },
            jail: self.jail(),
            address: self.address(addresses),
            bantime,
            host: self.name(),
            restored: i64::from(self.chance.often(50)),
            failures: 3,
            time,
            stamp: if self.chance.often(100) { 0 } else { stamp },
            reason: Some(if is_ban { Reason::Detected } else { Reason::Lifted }),
            id: None,
            all_jails: false,
            unbans: if carries { vec![self.id(now)] } else { Vec::new() },
        };
        if is_ban && self.chance.often(200) {
            event.action = Action::Other(ACK_REQUEST.to_owned());
        }
        (event.action.as_str().to_owned(), event.encode())
    }

    fn forge_unban(&mut self, address: Address, now: i64) -> Message {
        let event = Event {
            action: Action::Unban,
            jail: self.jail(),
            address,
            bantime: 0,
            host: self.name(),
            restored: 0,
            failures: 0,
            time: 0,
            stamp: self.stamp(now),
            reason: Some(Reason::Fleet),
            id: Some(self.id(now)),
            all_jails: self.chance.often(500),
            unbans: Vec::new(),
        };
        ("unban".to_owned(), event.encode())
    }

    /// More fleet unbans of an address than a host keeps.
    pub(super) fn forge_flood(&mut self, address: Address, now: i64) -> Vec<Message> {
        (0..20).map(|_| self.forge_unban(address, now)).collect()
    }

    fn forge_shard(&mut self, addresses: &[Address], now: i64) -> Message {
        let count = *self.chance.pick(&[1, 1, 1, 2, 8]);
        let index = u32::try_from(self.chance.within(0, i64::from(count) - 1)).unwrap();
        let id = ShardId::new(index, count).unwrap();
        let (mut bans, mut unbans) = (Vec::new(), Vec::new());
        for _ in 0..self.chance.within(0, 4) {
            let (address, jail) = (self.address(addresses), self.jail());
            let (start, bantime) = self.ban(now);
            bans.push(ShardEntry { jail, address, start, bantime });
            if self.chance.often(200) {
                let address = self.address(addresses);
                unbans.push(FleetUnban { scope: JailScope::All, address, id: self.id(now) });
            }
        }
        bans.retain(|ban| id.covers(ban.address));
        unbans.retain(|unban| id.covers(unban.address));
        let (host, stamp) = (self.name(), self.stamp(now));
        let topic = format!("state/{host}/{index}");
        (topic, Shard { host, stamp, time: 0, id, bans, unbans }.encode())
    }
}
