//! What the docs show of `f2bmqtt check` is what it prints, of a host with just these two faults.

use super::{NO_RULES, RULES, SOON, becomes, check};
use crate::support::docs::block;
use crate::support::{Host, Rig};

/// The block of the docs, without what differs: how much room there is.
fn shown() -> String {
    let block = block("check");
    unroomy(block.strip_prefix("# f2bmqtt check\n").unwrap())
}

fn unroomy(text: &str) -> String {
    let line = |line: &str| match line.split_once(" MiB are free ") {
        Some((_, place)) => format!("✓ N MiB are free {place}\n"),
        None => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

/// Two hosts called web1 and web2 that nothing is amiss with.
pub(super) fn is_what_it_prints(rig: &Rig) {
    let (hub, web1) = (rig.host("hub"), rig.host("web1"));
    // The broker may not take bans, and fail2ban has not loaded what the jail's files name.
    hub.sh(&format!(
        "{{ echo user fail2ban; echo 'topic read blacklist/#'
            echo 'topic write blacklist/unban'; echo 'topic f2bmqtt/blacklist/#'
         }} >/etc/mosquitto/acl; {RULES}"
    ));
    let reload = |host: Host<'_>, how: &str| host.sh(&format!("fail2ban-client reload {how}"));
    web1.sh("printf '[web]\nbanaction = nftables\naction = %%(action_)s\n' >/etc/fail2ban/jail.d/web.local");
    reload(web1, "--restart web");
    web1.sh("rm /etc/fail2ban/jail.d/web.local");
    reload(web1, "");
    let mut last = (String::new(), 0);
    let same = becomes(SOON, || {
        last = check(web1);
        last.1 == 1 && unroomy(&last.0) == shown()
    });
    assert!(same, "the docs:\n{}\nwhat it prints:\n{}", shown(), last.0);
    hub.sh(NO_RULES);
    reload(web1, "--restart web");
}
