//! Fleets with many bans: a joining server learns them within seconds, and its fail2ban stays responsive during the
//! imports.

mod support;

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use support::{Host, Rig, within};

fn push_script(host: Host<'_>, name: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support").join(name);
    host.push(&file, &format!("/root/{name}"));
}

/// Publishes the snapshots of simulated hosts to a broker with default settings.
fn fleet(rig: &Rig, hosts: usize, bans: usize) -> Host<'_> {
    let hub = rig.host("hub");
    push_script(hub, "far.py");
    println!("{}", hub.sh(&format!("python3 /root/far.py leave 127.0.0.1 {hosts} {bans}")));
    hub
}

/// Starts the daemon of a server with a stand-in for fail2ban.
fn start_stand_in(host: Host<'_>) {
    start_stand_in_with(host, "");
}

/// The same with local bans: their number, and the path of the database that has them.
fn start_stand_in_with(host: Host<'_>, own: &str) {
    push_script(host, "stand_in.py");
    host.sh(&format!(
        "systemctl stop f2bmqttsub fail2ban; rm -rf /var/lib/f2bmqtt/*
         systemd-run -q -u stand-in python3 /root/stand_in.py /run/fail2ban/fail2ban.sock /run/count {own}
         until [ -S /run/fail2ban/fail2ban.sock ]; do sleep 0.05; done; systemctl start f2bmqttsub"
    ));
}

/// How many bans the stand-in holds, and how many seconds after the connection to the broker their number last changed.
fn progress(host: Host<'_>) -> (usize, f64) {
    let line = host.try_sh("cat /run/count").unwrap_or_default();
    let connected = host.sh("journalctl -u f2bmqttsub -o short-unix --no-pager | grep 'connected to the broker' | tail -1 | cut -d' ' -f1");
    let (count, changed) = line.split_once(' ').unwrap_or_default();
    let [changed, connected] = [changed, &connected].map(|text| text.parse().unwrap_or(0.0));
    (count.parse().unwrap_or(0), changed - connected)
}

/// The peak and the current memory of the daemon, in MiB.
fn memory(host: Host<'_>) -> [u64; 2] {
    ["VmHWM", "VmRSS"].map(|name| {
        let text = host.sh(&format!(
            "awk '/{name}/ {{ print $2 }}' /proc/$(systemctl show -P MainPID f2bmqttsub)/status"
        ));
        text.parse::<u64>().unwrap() / 1024
    })
}

/// The processor time of the daemon.
fn processor_time(host: Host<'_>) -> Duration {
    let nanos = host.sh("systemctl show -P CPUUsageNSec f2bmqttsub");
    Duration::from_nanos(nanos.parse().unwrap())
}

fn wait_until_known(host: Host<'_>, count: usize) -> f64 {
    within(Duration::from_mins(2), "all are banned", || progress(host).0 == count);
    let seconds = progress(host).1;
    println!("{count} bans known and made {seconds:.1} s after the connection");
    seconds
}

#[test]
fn joining_host_learns_20_000_bans_within_seconds() {
    let rig = Rig::fleet(&["a"]);
    fleet(&rig, 4, 5_000);
    let a = rig.host("a");
    start_stand_in(a);
    let seconds = wait_until_known(a, 20_000);
    println!("memory {:?} MiB", memory(a));
    // An idle machine needs five seconds.
    assert!(seconds < 15.0, "{seconds}");
}

#[test]
#[ignore = "a measurement: docs/performance.md"]
fn host_in_fleet_of_200_hosts_with_500_bans_each() {
    let rig = Rig::fleet(&["a"]);
    fleet(&rig, 200, 500);
    let a = rig.host("a");
    start_stand_in(a);
    wait_until_known(a, 100_000);
    sleep(Duration::from_secs(10));
    let (before, started) = (processor_time(a), Instant::now());
    // An observation of a fail2ban without a database holds all bans a second time.
    let mut samples: Vec<u64> = (0..40)
        .map(|_| {
            sleep(Duration::from_millis(500));
            memory(a)[1]
        })
        .collect();
    let spent = processor_time(a).saturating_sub(before).as_secs_f64();
    println!("processor time: {:.2} %", spent / started.elapsed().as_secs_f64() * 100.0);
    samples.sort_unstable();
    let [most, _] = memory(a);
    let (low, median, high) = (samples[0], samples[20], samples[39]);
    println!(
        "memory of the daemon: {median} MiB (median), {low} to {high} MiB, {most} MiB at most so far"
    );
    assert!(median <= 40, "{median} MiB");
}

/// The value of one of the daemon's metrics.
fn metric(host: Host<'_>, name: &str) -> Option<usize> {
    let text = host.try_sh("cat /run/f2bmqtt/f2bmqtt.prom").ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[test]
#[ignore = "a measurement, which tests/bench makes"]
fn daemon_with_100_000_shared_local_bans_survives_restart() {
    const BANS: usize = 100_000;
    let rig = Rig::fleet(&["a"]);
    let (a, hub) = (rig.host("a"), fleet(&rig, 1, BANS));
    a.sh("echo MQTT_METRICS=on >>/etc/fail2ban/mqtt.env");
    println!(
        "100,000 bans in one jail, all of another host, too: the daemon, and a stand-in for fail2ban"
    );
    for (restart, address) in [(false, "203.0.113.8"), (true, "203.0.113.9")] {
        let started = Instant::now();
        if restart {
            a.sh("systemctl restart f2bmqttsub");
        } else {
            start_stand_in_with(a, &format!("{BANS} /var/lib/fail2ban/fail2ban.sqlite3"));
        }
        hub.publish_event("ban", "sshd", address, "old1");
        let expected = BANS + 1 + usize::from(restart);
        within(Duration::from_mins(5), "an event bans an address", || progress(a).0 == expected);
        let first = started.elapsed();
        within(Duration::from_mins(2), "the bans of both hosts are known", || {
            let detected = metric(a, r#"f2bmqtt_bans{jail="sshd",kind="detected"}"#);
            detected == Some(BANS) && metric(a, "f2bmqtt_fleet_bans") >= Some(BANS)
        });
        let all = started.elapsed();
        let [most, now] = memory(a);
        println!(
            "  {}: an event of that time bans after {first:.1?}; all known after {all:.1?} (seen every 10 s); \
             {:.1?} of processor time; {now} MiB, {most} MiB at most",
            if restart { "a restart" } else { "a first start" },
            processor_time(a),
        );
    }
    assert_eq!(a.sh("systemctl show -P NRestarts f2bmqttsub"), "0");
    let journal = a.sh("journalctl -u f2bmqttsub -o cat --no-pager");
    for word in ["panicked", "core-dump", "Failed with result", "status=9/KILL"] {
        assert!(!journal.contains(word), "{word}: {journal}");
    }
}

/// A fleet of many hosts on one machine, and the broker on another. Some hosts are real daemons; the others only publish
/// and subscribe as daemons do.
struct LoadFleet<'a> {
    host: Host<'a>,
    hub: Host<'a>,
    hosts: usize,
}

impl<'a> LoadFleet<'a> {
    fn of(rig: &'a Rig, hosts: usize, bans: usize, real: usize) -> Self {
        let (host, hub) = (rig.host("a"), rig.host("hub"));
        push_script(host, "crowd.py");
        push_script(host, "far.py");
        let far = hosts - real;
        host.sh(&format!(
            "systemctl stop f2bmqttsub fail2ban
             systemd-run -q -u far python3 /root/far.py stay 10.213.77.11 {far} {bans}
             systemd-run -q -u crowd -p LimitNOFILE=65536 -p TasksMax=infinity \
                python3 /root/crowd.py {real} {bans} 10.213.77.11 {}",
            far * bans
        ));
        Self { host, hub, hosts }
    }

    /// The least and the most bans of a daemon's fail2ban, whether all hold the same bans, and the mean and the largest
    /// memory of a daemon in MiB.
    fn state(&self) -> [f64; 5] {
        let line = self.host.try_sh("cat /run/crowd/state").unwrap_or_default();
        let numbers: Vec<f64> = line.split(' ').filter_map(|text| text.parse().ok()).collect();
        let [least, most, same, mean, largest] = numbers.try_into().unwrap_or_default();
        [least, most, same, mean / 1024.0, largest / 1024.0]
    }

    /// Waits until all daemons hold the same bans. Returns the seconds.
    fn wait_until_equal(&self, what: &str) -> f64 {
        let started = Instant::now();
        sleep(Duration::from_secs(2)); // the state is written each second
        within(Duration::from_mins(40), what, || self.state()[2] > 0.0);
        let seconds = started.elapsed().as_secs_f64();
        println!("{what}: {seconds:.1} s");
        seconds
    }

    /// How many bytes and how many messages the broker has sent so far.
    fn sent(&self) -> (f64, f64) {
        let bytes =
            self.hub.sh("awk '!/lo:/ && /:/ { sum += $10 } END { print sum }' /proc/net/dev");
        let messages = self.hub.sh(
            "mosquitto_sub -h 127.0.0.1 -u fail2ban -P fail2ban -C 1 -t '$SYS/broker/publish/messages/sent'",
        );
        (bytes.parse().unwrap(), messages.parse().unwrap())
    }

    /// Prints the bytes and messages per second to each host, over some time.
    fn measure_idle_traffic(&self, time: Duration) {
        let (before, started) = (self.sent(), Instant::now());
        sleep(time);
        let (after, seconds) = (self.sent(), started.elapsed().as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        let each = seconds * self.hosts as f64;
        let (bytes, messages) = ((after.0 - before.0) / each, (after.1 - before.1) / each);
        println!("at rest, to each host: {bytes:.0} bytes/s, {messages:.2} messages/s");
    }

    /// Makes the first host detect this number of addresses at once.
    fn burst(&self, count: usize) {
        self.host.sh(&format!("echo {count} >/run/crowd/new; mv /run/crowd/new /run/crowd/burst"));
    }

    /// Measures the start of the fleet, its idle traffic, a burst, and an outage of the broker.
    fn measure(&self, burst: usize, rest: Duration) {
        self.wait_until_equal("all daemons started at once: until all hold the same");
        if !rest.is_zero() {
            self.measure_idle_traffic(rest);
        }
        let before = self.sent();
        self.burst(burst);
        self.wait_until_equal(&format!("{burst} bans on one host: until all hold them"));
        sleep(Duration::from_secs(12)); // the broker counts every ten seconds
        let after = self.sent();
        #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
        let each = (burst * self.hosts) as f64;
        println!(
            "a ban of a burst, to each host: {:.0} bytes, {:.2} messages",
            (after.0 - before.0) / each,
            (after.1 - before.1) / each
        );
        self.hub.sh("systemctl stop mosquitto");
        self.burst(burst);
        sleep(Duration::from_secs(20));
        self.hub.sh("systemctl start mosquitto");
        self.wait_until_equal(&format!(
            "{burst} more while the broker was away: until all hold them"
        ));
        let [.., mean, largest] = self.state();
        println!("memory of a daemon: {mean:.1} MiB (mean), {largest:.1} MiB (largest)");
    }
}

fn number(name: &str, otherwise: usize) -> usize {
    std::env::var(name).ok().map_or(otherwise, |text| text.parse().expect("a number"))
}

#[test]
fn many_daemons_converge_also_after_outage() {
    let (hosts, bans) = (number("HOSTS", 24), number("BANS", 50));
    let real = number("REAL", hosts / 2);
    let rig = Rig::fleet(&["a"]);
    println!("{hosts} hosts with {bans} bans each; {real} of them real daemons");
    // Within a quarter of an hour each host publishes its snapshot at least once.
    let rest = Duration::from_secs(number("REST", 0).try_into().unwrap());
    LoadFleet::of(&rig, hosts, bans, real).measure(number("BURST", 200), rest);
}

#[test]
#[ignore = "takes minutes: tests/long"]
fn overflowing_broker_queue_loses_no_ban() {
    // mosquitto queues 1,000 messages for an offline client, and drops further ones.
    const COUNT: usize = 10_000;
    let rig = Rig::fleet(&["a", "b"]);
    let b = rig.host("b");
    start_stand_in(b);
    let fleet = LoadFleet::of(&rig, 1, 10, 1);
    within(Duration::from_mins(1), "b has the initial bans", || progress(b).0 == 10);
    b.rig("cut");
    fleet.burst(COUNT);
    sleep(Duration::from_secs(30));
    assert_eq!(progress(b).0, 10);
    let queued = fleet.hub.sh("mosquitto_sub -h 127.0.0.1 -u fail2ban -P fail2ban -C 1 -t '$SYS/broker/publish/messages/dropped'");
    assert!(queued.parse::<usize>().unwrap() > COUNT / 2, "dropped: {queued}");
    b.rig("join");
    within(Duration::from_mins(5), "b has all bans", || progress(b).0 == 10 + COUNT);
}

#[test]
fn fail2ban_stays_responsive_while_importing_20_000_bans() {
    let rig = Rig::fleet(&["a", "idle"]);
    let (a, idle) = (rig.host("a"), rig.host("idle"));
    idle.sh("systemctl stop f2bmqttsub");
    fleet(&rig, 4, 5_000);
    within(Duration::from_mins(1), "a imports bans", || ban_count(a) > 500);
    // Both hosts share the same busy machine.
    let (mut times, mut others): (Vec<_>, Vec<_>) = (0..20).map(|_| (ping(a), ping(idle))).unzip();
    times.sort();
    others.sort();
    println!(
        "fail2ban-client ping: {:?} (median), {:?} (max), with {} bans; {:?} of one that is idle",
        times[10],
        times[19],
        ban_count(a),
        others[10]
    );
    assert!(times[10] < 6 * others[10], "{times:?}, and idle {others:?}");
    let before = ban_count(a);
    within(Duration::from_mins(1), "the imports continue", || ban_count(a) > before + 500);
}

fn ban_count(host: Host<'_>) -> usize {
    host.sh("fail2ban-client get sshd banip | wc -w").parse().unwrap_or(0)
}

/// How long fail2ban takes to answer.
fn ping(host: Host<'_>) -> Duration {
    let started = Instant::now();
    host.sh("fail2ban-client ping");
    started.elapsed()
}
