//! Faults of the DNS: a slow or missing resolver, and a name with an unreachable address. None of them makes a host ban
//! its broker or an address in `ignoreip`, or keeps the host from the broker.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use crate::support::{Host, Rig, eventually};

/// A name server on the network outside the hosts. Dropping the value stops the server.
struct NameServer(Child);

impl NameServer {
    /// Answers queries for these names (`name=address`) after a delay in seconds.
    fn start(rig: &Rig, delay: &str, names: &[&str]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/name_server.py");
        let script = script.display().to_string();
        let arguments = [&[&script, "10.213.77.1", delay], names].concat();
        let mut child = rig.lan("python3", &arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "answers\n");
        Self(child)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes a host use the name server, with long timeouts.
fn use_name_server(host: Host<'_>) {
    host.sh("printf 'nameserver 10.213.77.1\\noptions timeout:10 attempts:1\\n' >/etc/resolv.conf");
}

#[test]
fn broker_with_slow_dns_and_dead_address_is_reached_and_not_banned() {
    let rig = Rig::fleet(&["web1"]);
    let (web1, hub) = (rig.host("web1"), rig.host("hub"));
    let _server =
        NameServer::start(&rig, "2.3", &["broker.test=10.213.77.11", "broker.test=fd77::99"]);
    use_name_server(web1);
    web1.sh("ip6tables -A OUTPUT -d fd77::99 -j DROP
             sed -i 's/^MQTT_HOST=.*/MQTT_HOST=broker.test/' /etc/fail2ban/mqtt.env
             systemctl restart f2bmqttsub");
    web1.ready();
    hub.publish_event("ban", "sshd", "10.213.77.11", "evil");
    let refused = "rejected ban of 10.213.77.11 in sshd from evil: the address is the broker's";
    eventually(refused, || web1.journal().contains(refused));
    hub.publish_event("ban", "sshd", "198.18.0.1", "evil");
    eventually("another address is banned", || web1.bans("sshd", "198.18.0.1"));
    assert!(!web1.bans("sshd", "10.213.77.11"), "{}", web1.journal());
}

#[test]
fn unresolved_ignoreip_name_blocks_imports_until_it_resolves() {
    let rig = Rig::fleet(&["web1"]);
    let (web1, hub) = (rig.host("web1"), rig.host("hub"));
    use_name_server(web1);
    // The daemon starts while there is no name server.
    web1.sh("fail2ban-client set sshd addignoreip friend.test; systemctl restart f2bmqttsub");
    web1.ready();
    for (jail, address) in [
        ("sshd", "198.18.0.77"),
        ("sshd", "198.18.0.5"),
        ("web", "198.18.0.6"),
        ("web", "198.18.0.77"),
    ] {
        hub.publish_event("ban", jail, address, "web2");
    }
    eventually("the other jail bans", || {
        web1.bans("web", "198.18.0.6") && web1.bans("web", "198.18.0.77")
    });
    let warning = "ignoreip of sshd: cannot resolve friend.test: ";
    eventually(warning, || web1.journal().contains(warning));
    let refused = "a name in ignoreip cannot be resolved";
    eventually(refused, || web1.journal().matches(refused).count() >= 2);
    assert!(!web1.bans("sshd", "198.18.0.5"), "{}", web1.journal());
    let check = web1.run("f2bmqtt check");
    let check = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.contains(&format!("! {warning}")), "{check}");
    // The name server answers: the host imports the deferred bans, except of the address in ignoreip.
    let _server = NameServer::start(&rig, "0", &["friend.test=198.18.0.77"]);
    eventually("web1 imports the deferred ban", || web1.bans("sshd", "198.18.0.5"));
    for address in ["198.18.0.77", "198.18.0.8"] {
        hub.publish_event("ban", "sshd", address, "web3");
    }
    eventually("a later ban is imported", || web1.bans("sshd", "198.18.0.8"));
    assert!(!web1.bans("sshd", "198.18.0.77"), "{}", web1.journal());
}
