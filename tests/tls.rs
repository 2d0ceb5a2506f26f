//! TLS with a real mosquitto: the hub of the example, set up by the commands in the docs, and each certificate error.

mod support;

use std::fmt::Write as _;
use std::path::Path;

use support::docs::block;
use support::{CONDITION_LIMIT, Host, Rig, eventually};

/// Copies the installed example to the path that the docs use.
fn copy_example(host: Host<'_>) {
    host.sh("cp -r /usr/share/doc/f2bmqtt/examples/mosquitto /root/fleet
             echo 'APT::Get::Assume-Yes true;' >/etc/apt/apt.conf.d/yes");
}

/// Copies files from the hub's `/root/fleet` to a host.
fn copy_files(hub: Host<'_>, to: Host<'_>, files: &[&str], dir: &str) {
    for file in files {
        let text = hub.sh(&format!("cat /root/fleet/{file}"));
        let dir = Path::new(dir).join(file).parent().unwrap().display().to_string();
        let name = file.rsplit('/').next().unwrap();
        to.sh(&format!("umask 077; mkdir -p {dir}; echo '{text}' >{dir}/{name}"));
    }
}

/// The hub and the servers of the docs, set up by the commands there.
fn example_fleet() -> Rig {
    let [hub_block, server_block] = ["tls-hub", "tls-server"].map(block);
    let rig = Rig::fleet(&["web1", "web2"]);
    let hub = rig.host("hub");
    hub.sh("ip addr add 192.168.1.10/24 dev eth0");
    copy_example(hub);
    hub.sh(&format!("set -e; {hub_block}"));
    for (number, host) in rig.hosts(&["web1", "web2"]).into_iter().enumerate() {
        host.sh(&format!("ip addr add 192.168.1.{}/24 dev eth0", 11 + number));
        host.sh("sed -i 's/^MQTT_HOST=.*/MQTT_HOST=192.168.1.10/; /^MQTT_USER/d; /^MQTT_PASS/d' \
                 /etc/fail2ban/mqtt.env");
        let (certificate, key) = (format!("{}.crt", host.name), format!("{}.key", host.name));
        copy_files(hub, host, &["ca.crt", &certificate, &key], "/root/certificates");
        let commands = server_block.replace("web1", host.name);
        host.sh(&format!("set -e; cd /root/certificates; {commands}"));
        let connected = format!("connected to the broker 192.168.1.10:8883 as {}", host.name);
        eventually(&connected, || host.journal().contains(&connected));
    }
    rig
}

/// Publishes a retained message with a host's certificate.
fn publish_as(hub: Host<'_>, name: &str, topic: &str, payload: &str) {
    hub.sh(&format!(
        "cd /root/fleet; mosquitto_pub -h 192.168.1.10 -p 8883 --cafile ca.crt --cert {name}.crt \
         --key {name}.key -q 1 -r -t {topic} -m {payload}"
    ));
}

#[test]
fn fleet_works_on_example_hub() {
    let rig = example_fleet();
    let (web1, web2) = (rig.host("web1"), rig.host("web2"));
    web1.attack("auth", &["192.0.2.1"]);
    eventually("web2 bans it", || web2.bans("sshd", "192.0.2.1"));
    web1.sh("fail2ban-client set sshd unbanip 192.0.2.1");
    eventually("web2 releases the ban", || !web2.bans("sshd", "192.0.2.1"));
    // Without a daemon, the notifier's child process also uses TLS.
    web1.sh("systemctl stop f2bmqttsub");
    web1.attack("auth", &["192.0.2.2"]);
    eventually("web2 imports the ban that the child process publishes", || {
        web2.bans("sshd", "192.0.2.2")
    });
    eventually("the spool is empty", || web1.sh("ls /var/lib/f2bmqtt/spool").is_empty());
    // The hub revokes the certificate of one server. The other server stays connected.
    let hub = rig.host("hub");
    hub.sh(&format!("cd /root/fleet; set -e; ./certificates revoke web2; {INSTALL_CERTIFICATES}"));
    let refused =
        "the broker rejected this host's certificate (MQTT_CERT): the certificate is revoked";
    eventually(refused, || web2.journal().contains(refused));
    web1.sh("systemctl start f2bmqttsub");
    let connected = "connected to the broker 192.168.1.10:8883 as web1";
    eventually(connected, || web1.journal().contains(connected));
}

#[test]
fn publishing_as_other_host_is_refused_by_broker() {
    let rig = example_fleet();
    let hub = rig.host("hub");
    // A recorder subscribes to all topics, as each host may.
    hub.sh("systemd-run -q -u record -p StandardOutput=append:/root/seen \
            --working-directory=/root/fleet mosquitto_sub -h 192.168.1.10 -p 8883 --cafile ca.crt \
            --cert web1.crt --key web1.key -q 1 -t '#' -v");
    eventually("the recorder subscribes", || {
        publish_as(hub, "web1", "f2bmqtt/blacklist/host/web1", "probe");
        hub.try_sh("grep -q probe /root/seen").is_ok()
    });
    let table = [
        ("f2bmqtt/blacklist/state/web2/0", true),
        ("f2bmqtt/blacklist/host/web2", true),
        ("blacklist/ban", true),
        ("blacklist/unban", true),
        ("f2bmqtt/blacklist/state/web1/0", false),
        ("f2bmqtt/blacklist/state/web1", false),
        ("f2bmqtt/blacklist/host/web1", false),
        ("f2bmqtt/blacklist/host/web2/more", false),
        ("blacklist/else", false),
        ("another/ban", false),
    ];
    for (topic, _) in table {
        publish_as(hub, "web2", topic, "word-of-web2");
    }
    // All accepted messages arrive before this one.
    publish_as(hub, "web2", "f2bmqtt/blacklist/host/web2", "last-of-web2");
    eventually("the last message is recorded", || {
        hub.try_sh("grep -q last-of-web2 /root/seen").is_ok()
    });
    let seen = hub.sh("cat /root/seen");
    for (topic, passes) in table {
        let passed = seen.lines().any(|line| line == format!("{topic} word-of-web2"));
        assert_eq!(passed, passes, "{topic}\n{seen}");
    }
    // The hub rejects clients without TLS or without a certificate of the CA.
    for arguments in ["-p 8883 --cafile ca.crt", "-p 8883", "-p 1883 -u fail2ban -P fail2ban"] {
        let result = hub.try_sh(&format!(
            "cd /root/fleet; timeout 10 mosquitto_pub -h 192.168.1.10 {arguments} -t blacklist/ban -m x"
        ));
        assert!(result.is_err(), "{arguments}");
    }
}

/// Changes settings of a host and restarts the service; an empty value removes a setting.
fn set(host: Host<'_>, settings: &[(&str, &str)]) {
    let mut script = String::new();
    for (key, value) in settings {
        let _ = writeln!(script, "sed -i '/^{key}=/d' /etc/fail2ban/mqtt.env");
        if !value.is_empty() {
            let _ = writeln!(script, "echo {key}={value} >>/etc/fail2ban/mqtt.env");
        }
    }
    host.sh(&format!("{script} systemctl restart f2bmqttsub"));
}

/// A TLS fault: commands on the hub, settings of the host, and texts in a line of the journal.
struct Fault {
    hub: &'static str,
    host: &'static [(&'static str, &'static str)],
    logged: &'static [&'static str],
}

const VALID_SETTINGS: [(&str, &str); 6] = [
    ("MQTT_HOST", "hub"),
    ("MQTT_PORT", ""),
    ("MQTT_TLS", ""),
    ("MQTT_CAFILE", "/etc/tls/ca.crt"),
    ("MQTT_CERT", "/etc/tls/a.crt"),
    ("MQTT_KEY", "/etc/tls/a.key"),
];

const FAULTS: [Fault; 12] = [
    Fault { hub: "", host: &[], logged: &["connected to the broker hub:8883 as a"] },
    Fault {
        hub: "",
        host: &[("MQTT_CAFILE", "/etc/tls/other/ca.crt")],
        logged: &[
            "hub:8883: the broker's certificate is signed by an unknown CA; MQTT_CAFILE must be",
        ],
    },
    Fault {
        hub: "",
        host: &[("MQTT_CAFILE", ""), ("MQTT_TLS", "on")],
        logged: &[
            "hub:8883: the broker's certificate is signed by an unknown CA; MQTT_CAFILE must be",
        ],
    },
    Fault {
        hub: "faketime '2020-01-01 12:00:00' ./certificates hub hub",
        host: &[],
        logged: &[
            "hub:8883: the broker's certificate expired on 2022-04-05T",
            "); renew the certificate on the broker",
        ],
    },
    Fault {
        hub: "faketime '2030-01-01 12:00:00' ./certificates hub hub",
        host: &[],
        logged: &[
            "hub:8883: the broker's certificate is not valid before 2030-01-01T",
            "check the clocks of both",
        ],
    },
    Fault {
        hub: "./certificates hub other.example 10.213.77.99",
        host: &[],
        logged: &[
            "hub:8883: the broker's certificate is for other.example, 10.213.77.99, not for hub; \
                 set MQTT_HOST to a name in the certificate",
        ],
    },
    Fault {
        hub: "./certificates hub hub",
        host: &[("MQTT_HOST", "10.213.77.11")],
        logged: &[
            "10.213.77.11:8883: the broker's certificate is for hub, not for 10.213.77.11; set MQTT_HOST",
        ],
    },
    Fault {
        hub: "",
        host: &[("MQTT_CERT", ""), ("MQTT_KEY", "")],
        logged: &["hub:8883: the broker requires a client certificate; set MQTT_CERT and MQTT_KEY"],
    },
    Fault {
        hub: "",
        host: &[("MQTT_CERT", "/etc/tls/other/a.crt"), ("MQTT_KEY", "/etc/tls/other/a.key")],
        logged: &["hub:8883: the broker rejected this host's certificate (MQTT_CERT): "],
    },
    Fault {
        hub: "",
        host: &[("MQTT_CERT", "/etc/tls/old.crt"), ("MQTT_KEY", "/etc/tls/old.key")],
        logged: &[
            "hub:8883: the broker rejected this host's certificate (MQTT_CERT): the certificate has expired",
        ],
    },
    Fault {
        hub: "",
        host: &[("MQTT_PORT", "1883")],
        logged: &["hub:1883: the broker does not speak TLS on this port; check MQTT_PORT"],
    },
    Fault {
        hub: "",
        host: &[("MQTT_CAFILE", ""), ("MQTT_CERT", ""), ("MQTT_KEY", ""), ("MQTT_PORT", "8883")],
        logged: &[
            "hub:8883: the broker closed the connection before the MQTT handshake; if the port is for TLS, \
             set MQTT_CAFILE",
        ],
    },
];

const INSTALL_CERTIFICATES: &str = "install -m 0644 ca.crt ca.crl hub.crt /etc/mosquitto/certs
     install -m 0400 -o mosquitto hub.key /etc/mosquitto/certs
     systemctl reset-failed mosquitto; systemctl restart mosquitto";

/// The hub of the example with a second port without TLS, and a host with valid and invalid certificates.
fn hub_with_certificates() -> Rig {
    let rig = Rig::fleet(&["a"]);
    let (hub, a) = (rig.host("hub"), rig.host("a"));
    copy_example(hub);
    hub.sh(&format!(
        "cd /root/fleet; set -e
         ./certificates ca; ./certificates hub hub; ./certificates host a
         faketime '2020-01-01 12:00:00' ./certificates host old
         mkdir other; cd other; ../certificates ca; ../certificates host a; cd ..
         install -m 0400 -o mosquitto fleet.acl /etc/mosquitto
         {{ echo per_listener_settings true; cat fleet.conf
            printf 'listener 1883\\nallow_anonymous true\\n'; }} >/etc/mosquitto/conf.d/fleet.conf
         {INSTALL_CERTIFICATES}"
    ));
    copy_files(hub, a, &["ca.crt", "a.crt", "a.key", "old.crt", "old.key"], "/etc/tls");
    copy_files(hub, a, &["other/ca.crt", "other/a.crt", "other/a.key"], "/etc/tls");
    rig
}

#[test]
fn each_certificate_error_is_explained() {
    let rig = hub_with_certificates();
    let (hub, a) = (rig.host("hub"), rig.host("a"));
    for fault in &FAULTS {
        if !fault.hub.is_empty() {
            hub.sh(&format!("cd /root/fleet; set -e; {}; {INSTALL_CERTIFICATES}", fault.hub));
        }
        set(a, &[&VALID_SETTINGS, fault.host].concat());
        let mut journal = String::new();
        let is_logged = support::becomes(CONDITION_LIMIT, || {
            journal = a.journal();
            journal.lines().any(|line| fault.logged.iter().all(|part| line.contains(part)))
        });
        assert!(is_logged, "{:?}\n{journal}", fault.logged);
    }
}

#[test]
fn renewed_certificate_is_used_on_next_connection() {
    let rig = hub_with_certificates();
    let a = rig.host("a");
    a.sh("cp /etc/tls/a.crt /etc/tls/new.crt; cp /etc/tls/a.key /etc/tls/new.key
          cp /etc/tls/old.crt /etc/tls/a.crt; cp /etc/tls/old.key /etc/tls/a.key");
    set(a, &VALID_SETTINGS);
    eventually("the broker rejects the certificate", || {
        a.journal().contains("the broker rejected this host's certificate")
    });
    // The files change one after the other, so for a moment they do not match.
    a.sh("cp /etc/tls/new.crt /etc/tls/a.crt; sleep 1; cp /etc/tls/new.key /etc/tls/a.key");
    eventually("the host is connected", || {
        a.journal().contains("connected to the broker hub:8883")
    });
    // The journal and check warn of a certificate that expires within 30 days.
    let hub = rig.host("hub");
    hub.sh("cd /root/fleet; DAYS=15 ./certificates host a");
    copy_files(hub, a, &["a.crt", "a.key"], "/etc/tls");
    set(a, &VALID_SETTINGS);
    eventually("the journal names the certificate", || {
        let line =
            "this host's certificate, MQTT_CERT (a) expires in 14 days; renew the certificate";
        a.journal().contains(line)
    });
    let findings = String::from_utf8(a.run("f2bmqtt check").stdout).unwrap();
    assert!(
        findings.contains("! this host's certificate, MQTT_CERT (a) expires on 20"),
        "{findings}"
    );
    // The example's access rules allow a host its topics for Home Assistant.
    set(a, &[&VALID_SETTINGS[..], &[("MQTT_HA_PREFIX", "homeassistant")]].concat());
    eventually("check finds the messages for Home Assistant", || {
        let output = a.run("f2bmqtt check").stdout;
        let line = "✓ the broker hub:8883 keeps this host's messages for Home Assistant";
        String::from_utf8_lossy(&output).contains(line)
    });
}

#[test]
fn system_cas_are_trusted_with_mqtt_tls() {
    let rig = hub_with_certificates();
    let a = rig.host("a");
    a.sh("cp /etc/tls/ca.crt /usr/local/share/ca-certificates/; update-ca-certificates 2>&1");
    set(a, &[&VALID_SETTINGS[..], &[("MQTT_CAFILE", ""), ("MQTT_TLS", "on")]].concat());
    eventually("the host is connected", || {
        a.journal().contains("connected to the broker hub:8883")
    });
}

#[test]
fn ineffective_tls_settings_stop_service() {
    let rig = Rig::fleet(&["a"]);
    let a = rig.host("a");
    a.sh("openssl req -x509 -newkey rsa:2048 -noenc -subj /CN=x -keyout /etc/x.key -out /etc/x.crt 2>&1
          chmod 600 /etc/x.key; chown games /etc/x.key
          printf 'MQTT_TLS=insecure\\nMQTT_CAFILE=/etc/missing.crt\\nMQTT_CERT=/etc/x.crt\\nMQTT_KEY=/etc/x.key\\n' \
            >>/etc/fail2ban/mqtt.env; systemctl restart --no-block f2bmqttsub");
    eventually("the service fails", || a.try_sh("systemctl is-failed f2bmqttsub").is_ok());
    let journal = a.journal();
    for line in [
        "MQTT_TLS must be on or off",
        "MQTT_CAFILE cannot be read: /etc/missing.crt: No such file or directory",
        "MQTT_KEY cannot be read: /etc/x.key: Permission denied (os error 13); the file must belong to root",
    ] {
        assert!(journal.contains(line), "{line}\n{journal}");
    }
    assert_eq!(a.sh("systemctl show -P ExecMainStatus f2bmqttsub"), "78");
}
