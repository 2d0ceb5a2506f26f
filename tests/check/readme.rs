//! The output of `f2bmqtt check` in the docs is that of a host with exactly these two faults.

use super::{APPLY_ACL, CONDITION_LIMIT, REMOVE_ACL, becomes, check};
use crate::support::Rig;
use crate::support::docs::block;

/// The block of the docs, without the numbers of free space.
fn shown() -> String {
    let block = block("check");
    without_free_space(block.strip_prefix("# f2bmqtt check\n").unwrap())
}

fn without_free_space(text: &str) -> String {
    let lines = text.lines().map(|line| match line.split_once(" MiB are free ") {
        Some((_, place)) => format!("✓ N MiB are free {place}\n"),
        None => format!("{line}\n"),
    });
    lines.collect()
}

/// The rig has two healthy hosts web1 and web2.
pub(super) fn assert_docs_match(rig: &Rig) {
    let (hub, web1) = (rig.host("hub"), rig.host("web1"));
    // The broker rejects bans, and fail2ban has not loaded the configured action of a jail.
    hub.sh(&format!(
        "{{ echo user fail2ban; echo 'topic read blacklist/#'
            echo 'topic write blacklist/unban'; echo 'topic f2bmqtt/blacklist/#'
         }} >/etc/mosquitto/acl; {APPLY_ACL}"
    ));
    web1.sh("printf '[web]\nbanaction = nftables\naction = %%(action_)s\n' >/etc/fail2ban/jail.d/web.local");
    web1.sh("fail2ban-client reload --restart web
             rm /etc/fail2ban/jail.d/web.local; fail2ban-client reload");
    let mut last = (String::new(), 0);
    let same = becomes(CONDITION_LIMIT, || {
        last = check(web1);
        last.1 == 1 && without_free_space(&last.0) == shown()
    });
    assert!(same, "the docs:\n{}\ncheck prints:\n{}", shown(), last.0);
    hub.sh(REMOVE_ACL);
    web1.sh("fail2ban-client reload --restart web");
}
