//! The rig's interface for tests: booted Debian hosts with the package installed, and a hub with mosquitto.
//! `tests/rig/rig` boots them from one root.
//!
//! No test is skipped: if a tool or the package is missing, a test fails and names the fix.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod docs;
pub(crate) mod reports;
pub(crate) mod terminal;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a test waits for a condition. The limit is generous, because the machine may be busy.
pub(crate) const CONDITION_LIMIT: Duration = Duration::from_mins(4);

/// Three such lines in a log cause a ban.
pub(crate) const FAILED_LOGIN: &str = "sshd[99]: Failed password for root from {} port 4711 ssh2";

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn rig_path() -> PathBuf {
    tests().join("rig/rig")
}

/// The package that `tests/support/build` made.
pub(crate) fn package() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/f2bmqtt.deb");
    assert!(path.exists(), "{} is missing: run tests/support/build", path.display());
    path
}

fn output(command: &mut Command) -> String {
    let out = command.stdin(Stdio::null()).output().expect("the rig runs");
    assert!(
        out.status.success(),
        "{command:?} failed:\n{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap().trim_end().to_owned()
}

/// The root of a release with some packages, built once and cached.
pub(crate) fn root(suite: &str, packages: &[&str]) -> String {
    output(Command::new(rig_path()).args(["root", suite]).args(packages))
}

/// A set of hosts. Dropping it shuts them down.
pub(crate) struct Rig {
    id: String,
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.rig().arg("down").status();
    }
}

impl Rig {
    /// Boots hosts from a root.
    pub(crate) fn up(root: &str, hosts: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // `tests/run` sets another RIG_RUN for each test binary, and shuts down hosts that the binary leaves.
        let run = std::env::var("RIG_RUN")
            .unwrap_or_else(|_| format!("xx{:02x}", std::process::id() % 0x100));
        let id = format!("{run}{number:02x}");
        let rig = Self { id };
        output(rig.rig().arg("up").arg(root).args(hosts));
        rig
    }

    /// A hub with mosquitto, and servers with the package installed and fail2ban running. Their
    /// jails: `sshd` bans by ipset, `web` by nftables, `both` shares by two actions.
    pub(crate) fn fleet(servers: &[&str]) -> Self {
        Self::fleet_of("bookworm", servers)
    }

    /// The same of another Debian release.
    pub(crate) fn fleet_of(suite: &str, servers: &[&str]) -> Self {
        Self::fleet_with(suite, &[], servers)
    }

    /// The same with more packages.
    pub(crate) fn fleet_with(suite: &str, packages: &[&str], servers: &[&str]) -> Self {
        Self::fleet_from(&fleet_root(suite, packages), servers)
    }

    /// The same from a root on which the package is installed.
    pub(crate) fn fleet_from(root: &str, servers: &[&str]) -> Self {
        let rig = Self::up(root, &[&["hub"], servers].concat());
        rig.host("hub").sh("systemctl stop f2bmqttsub fail2ban && systemctl start mosquitto");
        for server in servers {
            let server = rig.host(server);
            server.ready();
        }
        rig
    }

    fn rig(&self) -> Command {
        let mut command = Command::new(rig_path());
        command.env("RIG_ID", &self.id);
        command
    }

    /// A command of the rig, for a caller that uses its input or output.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.rig();
        command.args(arguments);
        command
    }

    pub(crate) fn host<'a>(&'a self, name: &'a str) -> Host<'a> {
        Host { rig: self, name }
    }

    pub(crate) fn hosts<'a>(&'a self, names: &[&'a str]) -> Vec<Host<'a>> {
        names.iter().map(|name| self.host(name)).collect()
    }

    /// Runs a program on the network, outside the hosts.
    pub(crate) fn lan(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = self.rig();
        command.args(["lan", program]).args(arguments);
        command
    }

    /// Adds an address to the network, from which an attacker can connect.
    pub(crate) fn attacker(&self, address: &str) {
        let bits = if address.contains(':') { 64 } else { 24 };
        let address = format!("{address}/{bits}");
        output(&mut self.lan("ip", &["addr", "add", &address, "dev", "br0", "nodad"]));
    }

    /// Starts a record of all published messages.
    pub(crate) fn record(&self) -> Record<'_> {
        let hub = self.host("hub");
        hub.sh("systemd-run -q -u record -p StandardOutput=append:/root/seen mosquitto_sub \
                -h 127.0.0.1 -u fail2ban -P fail2ban -q 1 -t 'blacklist/#' -t 'f2bmqtt/blacklist/#' -v");
        eventually("the recorder subscribes", || {
            hub.publish("blacklist/probe", "probe");
            hub.try_sh("grep -q probe /root/seen").is_ok()
        });
        Record { hub }
    }
}

/// The messages that the broker delivered.
pub(crate) struct Record<'a> {
    hub: Host<'a>,
}

impl Record<'_> {
    /// The events so far, one line each: topic and payload.
    pub(crate) fn events(&self) -> Vec<String> {
        let mut events = self.messages();
        events.retain(|line| !line.starts_with("blacklist/probe") && !line.starts_with("f2bmqtt/"));
        events
    }

    /// All messages so far: events, shards, presences.
    pub(crate) fn messages(&self) -> Vec<String> {
        self.hub.sh("cat /root/seen").lines().map(str::to_owned).collect()
    }

    /// How many events contain all of these texts.
    pub(crate) fn count(&self, parts: &[&str]) -> usize {
        let mut events = self.events();
        events.retain(|event| parts.iter().all(|part| event.contains(part)));
        events.len()
    }
}

/// The root of a fleet's hosts: a server's packages, our package, jails and settings.
pub(crate) fn fleet_root(suite: &str, packages: &[&str]) -> String {
    let mut command = Command::new(tests().join("support/server-root"));
    output(command.arg(suite).arg(package()).args(packages))
}

/// The root of a fleet's host without our package.
pub(crate) fn server_root(suite: &str) -> String {
    output(Command::new(tests().join("support/server-root")).args([suite, "-"]))
}

/// A root after a script, which finds the files in /mnt.
pub(crate) fn layer(root: &str, script: &str, files: &[PathBuf]) -> String {
    output(Command::new(rig_path()).args(["layer", root, script]).args(files))
}

/// The root of a Debian 13 host with the package, Home Assistant and Prometheus' tools.
pub(crate) fn home_root() -> String {
    output(Command::new(tests().join("support/home-root")).arg(package()))
}

/// One booted host.
#[derive(Clone, Copy)]
pub(crate) struct Host<'a> {
    rig: &'a Rig,
    pub(crate) name: &'a str,
}

impl Host<'_> {
    /// Runs a shell script, which must succeed. Returns its standard output.
    pub(crate) fn sh(&self, script: &str) -> String {
        output(self.rig.rig().args(["sh", self.name, script]))
    }

    /// Runs a shell script. Returns its output as `Ok` or `Err`, by its exit code.
    pub(crate) fn try_sh(&self, script: &str) -> Result<String, String> {
        let out = self.run(script);
        let text = [out.stdout, out.stderr].concat();
        let text = String::from_utf8_lossy(&text).trim_end().to_owned();
        if out.status.success() { Ok(text) } else { Err(text) }
    }

    /// Runs a shell script.
    pub(crate) fn run(&self, script: &str) -> Output {
        let mut command = self.rig.rig();
        command.args(["sh", self.name, script]).stdin(Stdio::null()).output().expect("the rig runs")
    }

    /// The command line on this machine that runs a shell script on the host, for a terminal.
    pub(crate) fn by_hand(&self, script: &str) -> String {
        let (rig, name) = (rig_path(), self.name);
        format!("RIG_ID={} {} sh {name} '{script}'", self.rig.id, rig.display())
    }

    /// Copies a file to the host.
    pub(crate) fn push(&self, file: &Path, to: &str) {
        output(self.rig.rig().args(["push", self.name]).arg(file).arg(to));
    }

    /// Runs a command of the rig on this host: cut, join, kill, boot.
    pub(crate) fn rig(&self, verb: &str) -> String {
        output(self.rig.rig().args([verb, self.name]))
    }

    /// Waits until fail2ban runs, and the daemon is connected to fail2ban and the broker.
    pub(crate) fn ready(&self) {
        eventually(&format!("{} is ready", self.name), || {
            let journal = self.journal();
            self.ask("get sshd banip").and(self.ask("get both banip")).is_ok()
                && journal.contains("connected to fail2ban; jails:")
                && journal.contains("connected to the broker")
        });
    }

    /// The service's log since its last start.
    pub(crate) fn journal(&self) -> String {
        self.sh("journalctl -u f2bmqttsub -o cat --no-pager \
                 _SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID f2bmqttsub)")
    }

    /// Writes log lines that make a jail ban addresses.
    pub(crate) fn attack(&self, log: &str, addresses: &[&str]) {
        let mut lines = String::new();
        for address in addresses {
            for _ in 0..3 {
                lines.push_str("$t ");
                lines.push_str(self.name);
                lines.push(' ');
                lines.push_str(&FAILED_LOGIN.replace("{}", address));
                lines.push('\n');
            }
        }
        self.sh(&format!("t=$(date '+%b %e %H:%M:%S'); cat >>/var/log/{log}.log <<E\n{lines}E\n"));
    }

    /// fail2ban's reply to a command.
    pub(crate) fn ask(&self, question: &str) -> Result<String, String> {
        let ask = include_str!("ask.py");
        self.try_sh(&format!("python3 -IS - {question} <<'E'\n{ask}\nE\n"))
    }

    /// Whether fail2ban bans the address in a jail.
    pub(crate) fn bans(&self, jail: &str, address: &str) -> bool {
        self.ask(&format!("get {jail} banned {address}")).is_ok_and(|answer| answer == "1")
    }

    /// Whether an ipset has the address.
    pub(crate) fn in_ipset(&self, set: &str, address: &str) -> bool {
        self.try_sh(&format!("ipset test {set} {address}")).is_ok()
    }

    /// Publishes a message, as the scripts do.
    pub(crate) fn publish(&self, topic: &str, payload: &str) {
        self.sh(&format!(
            "mosquitto_pub -h 10.213.77.11 -u fail2ban -P fail2ban -q 1 -t {topic} -m '{payload}'"
        ));
    }

    /// Publishes an event with the scripts' fields in the name of any host.
    pub(crate) fn publish_event(&self, action: &str, jail: &str, address: &str, host: &str) {
        let payload = format!(
            r#"{{"action":"{action}","ipmset":"{jail}","ip":"{address}","bantime":600,"host":"{host}","restored":0,"failures":3}}"#
        );
        self.publish(&format!("blacklist/{action}"), &payload);
    }
}

/// Replaces the package's programs on a host by stand-ins for the scripts, and starts their subscriber.
pub(crate) fn install_scripts(host: Host<'_>) {
    host.sh("systemctl disable --now f2bmqttsub 2>&1; rm /etc/fail2ban/mqtt*bans /etc/fail2ban/mqttnotifyban");
    let scripts = tests().join("support/scripts");
    for name in ["mqttnotifyban", "mqttsubscribebans"] {
        host.push(&scripts.join(name), &format!("/etc/fail2ban/{name}"));
    }
    let action = "/etc/fail2ban/action.d/iptables-ipset.local";
    host.push(&scripts.join("iptables-ipset.local"), action);
    host.sh(
        "systemctl restart fail2ban; systemd-run -q -u scripts /etc/fail2ban/mqttsubscribebans",
    );
    eventually("the scripts run", || {
        host.ask("get sshd banip").and(host.try_sh("pgrep -x mosquitto_sub")).is_ok()
    });
}

/// Waits until a condition holds.
pub(crate) fn eventually(what: &str, so: impl FnMut() -> bool) {
    within(CONDITION_LIMIT, what, so);
}

/// Waits until a condition holds, for `limit` and at least for [`CONDITION_LIMIT`]: only a failing test waits that long,
/// and a busy machine must not make a test fail.
pub(crate) fn within(limit: Duration, what: &str, so: impl FnMut() -> bool) {
    let limit = limit.max(CONDITION_LIMIT);
    assert!(becomes(limit, so), "not seen within {} s: {what}", limit.as_secs());
}

/// Waits until a condition holds, for at most `limit`. Returns whether it holds.
pub(crate) fn becomes(limit: Duration, mut so: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while !so() {
        if started.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}
