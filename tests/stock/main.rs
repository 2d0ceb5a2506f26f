//! Fleets as people have them: Debian's own jails, bantimes that grow, databases that somebody edited, and servers
//! that still run the scripts.

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

/// The bans of the fleet as a host lists them: who detected each, and its end in seconds since 1970.
fn listed(host: Host<'_>) -> BTreeMap<Key, (String, i64)> {
    let list: Value = serde_json::from_str(&host.sh("f2bmqtt list --json")).unwrap();
    let text = |ban: &Value, name: &str| ban[name].as_str().unwrap().to_owned();
    let bans = list["bans"].as_array().unwrap().iter();
    bans.map(|ban| {
        let until = ban["until"].as_i64().unwrap_or(-1);
        ((text(ban, "jail"), text(ban, "ip")), (text(ban, "host"), until))
    })
    .collect()
}

/// What fail2ban bans in some jails.
fn banned(host: Host<'_>, jails: &[&str]) -> BTreeSet<Key> {
    let ask = |jail: &&str| {
        let list = host.ask(&format!("get {jail} banip")).unwrap_or_default();
        list.split_whitespace().map(|address| key(jail, address)).collect::<Vec<_>>()
    };
    jails.iter().flat_map(ask).collect()
}
