//! Fleets in realistic set-ups: Debian's own jails, growing bantimes, edited databases, and servers that still run the
//! scripts.

mod database;
mod debian;
mod scripts;
#[path = "../support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use support::Host;

/// A jail and an address.
type Key = (String, String);

fn key(jail: &str, address: &str) -> Key {
    (jail.to_owned(), address.to_owned())
}

/// The fleet's bans in a host's `list`: the origin of each, and its end in seconds since 1970.
fn listed(host: Host<'_>) -> BTreeMap<Key, (String, i64)> {
    let list: Value = serde_json::from_str(&host.sh("f2bmqtt list --json")).unwrap();
    let bans = list["bans"].as_array().unwrap().iter();
    bans.map(|ban| {
        let [jail, ip, host] =
            ["jail", "ip", "host"].map(|name| ban[name].as_str().unwrap().to_owned());
        ((jail, ip), (host, ban["until"].as_i64().unwrap_or(-1)))
    })
    .collect()
}

/// The bans of fail2ban in some jails.
fn banned(host: Host<'_>, jails: &[&str]) -> BTreeSet<Key> {
    let mut bans = BTreeSet::new();
    for jail in jails {
        let list = host.ask(&format!("get {jail} banip")).unwrap_or_default();
        bans.extend(list.split_whitespace().map(|address| key(jail, address)));
    }
    bans
}
