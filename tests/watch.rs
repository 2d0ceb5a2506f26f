//! `f2bmqtt watch` in a real terminal: the screen is that of the docs, and each end of the command restores the terminal.

mod support;
#[path = "support/svg.rs"]
mod svg;

use support::docs::{block, repository};
use support::terminal::Terminal;
use support::{Host, Rig, eventually};

/// Whether a word is a date or a time.
fn is_time(word: &str) -> bool {
    word.starts_with("20") && word.matches('-').count() == 2
        || word.len() == 8 && word.matches(':').count() == 2
}

/// A screen without the parts that differ in each run: times, bars, and the peak rate.
fn mask_times(screen: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for line in screen.trim_end().lines() {
        let line = line.replace(|c: char| "▁▂▃▄▅▆▇█".contains(c), " ");
        let mut fields: Vec<String> = line.trim_end().split(' ').map(str::to_owned).collect();
        for field in fields.iter_mut().filter(|field| is_time(field)) {
            *field = "*".repeat(field.len());
        }
        if let Some(n) = fields.iter().position(|field| field == "peak") {
            "N".clone_into(&mut fields[n + 1]);
            // The length of the frame's line depends on the digits of the rate.
            fields.retain(|field| !field.starts_with('─'));
        }
        lines.push(fields.join(" "));
    }
    lines
}

/// Makes the bans of the screen in the docs: two before the start of watch, then fourteen, of which one is lifted.
fn assert_matches_docs(rig: &Rig) {
    let (web1, web2, db1) = (rig.host("web1"), rig.host("web2"), rig.host("db1"));
    web1.attack("web", &["203.0.113.20"]);
    web2.attack("web", &["203.0.113.21"]);
    eventually("the snapshots list both bans", || {
        let list = web1.sh("f2bmqtt list");
        list.contains("113.20\t") && list.contains("113.21\t")
    });
    let terminal = Terminal::open_in_colour(web1, "f2bmqtt watch");
    terminal
        .wait_for("watch shows the fleet", |screen| screen.contains("3 hosts, 3 online; 2 bans"));
    for (host, log, net) in [(db1, "auth", "203.0.113"), (web2, "both", "198.51.100")] {
        let addresses: Vec<_> = (61..=67).map(|n| format!("{net}.{n}")).collect();
        host.attack(log, &addresses.iter().map(String::as_str).collect::<Vec<_>>());
        terminal.wait_for("watch shows the last ban", |screen| screen.contains(&addresses[6]));
    }
    web2.sh("fail2ban-client set both unbanip 198.51.100.61");
    // The counts come from the snapshots of two hosts, which arrive in either order.
    let screen = terminal.wait_for("watch counts all bans", |screen| {
        let counted = ["db1", "web2"].iter().all(|host| {
            screen.lines().any(|line| {
                line.contains(&format!("│ {host} ")) && line.contains(" online        7 ")
            })
        });
        counted
            && screen.contains(" 15 bans ")
            && screen.contains("by hand")
            && screen.contains('█')
    });
    let shown = block("watch");
    let shown = shown.strip_prefix("$ f2bmqtt watch\n").unwrap();
    assert_eq!(mask_times(&screen), mask_times(shown), "{screen}");
    assert_matches_picture(&terminal);
    terminal.type_keys(&["q"]);
    terminal.assert_restored();
}

/// The README's picture shows this screen. `BLESS=1 cargo test --locked --test watch` draws it.
fn assert_matches_picture(terminal: &Terminal) {
    let path = repository().join("docs/watch.svg");
    let drawn = svg::picture(&terminal.tmux(&["capture-pane", "-p", "-e"]));
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &drawn).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(svg::timeless(&drawn), svg::timeless(&kept), "BLESS=1 draws {}", path.display());
}

/// Waits until the whole screen is drawn.
fn assert_drawn(terminal: &Terminal) {
    terminal.wait_for("the screen is drawn", |screen| {
        screen.starts_with(" f2bmqtt on web1, blacklist/#  broker 10.213.77.11:1883")
            && screen.trim_end().ends_with('┘')
    });
}

fn end_by_signal(host: Host<'_>, signal: &str) {
    let terminal = Terminal::open(host, "f2bmqtt watch");
    assert_drawn(&terminal);
    host.sh(&format!("kill -{signal} $(pgrep -f '^f2bmqtt watch$')"));
    terminal.assert_restored();
}

/// Makes watch panic during its start, because it may not create a thread.
fn assert_panic_restores_terminal(host: Host<'_>) {
    host.sh("install -m 0644 /etc/fail2ban/mqtt.env /tmp/mqtt.env");
    let one_thread =
        "setpriv --reuid games prlimit --nproc=1 env F2BMQTT_ENV=/tmp/mqtt.env f2bmqtt watch";
    let terminal = Terminal::open(host, one_thread);
    let screen = terminal.assert_restored();
    assert!(screen.contains("panicked at"), "{screen}");
}

/// No size of the terminal ends watch, and a sufficient size shows the whole screen again.
fn assert_any_size(host: Host<'_>) {
    let terminal = Terminal::open(host, "stty rows 0 cols 0; f2bmqtt watch");
    eventually("watch runs", || host.try_sh("pgrep -f '^f2bmqtt watch$'").is_ok());
    for (width, height) in [(1, 1), (2, 9), (90, 1), (3, 3), (300, 5), (80, 24)] {
        terminal.resize(width, height);
        std::thread::sleep(std::time::Duration::from_millis(300)); // watch draws five times a second
    }
    assert_drawn(&terminal);
    drop(terminal);
    eventually("watch ends with its terminal", || {
        host.try_sh("pgrep -f '^f2bmqtt watch$'").is_err()
    });
}

#[test]
fn watch_matches_docs_and_restores_terminal() {
    let rig = Rig::fleet(&["web1", "web2", "db1"]);
    assert_matches_docs(&rig);
    let web1 = rig.host("web1");
    for signal in ["TERM", "INT", "HUP"] {
        end_by_signal(web1, signal);
    }
    assert_panic_restores_terminal(web1);
    assert_any_size(web1);
}

#[test]
fn watch_follows_fleet_live() {
    let rig = Rig::fleet(&["web1", "web2"]);
    let (web1, web2) = (rig.host("web1"), rig.host("web2"));
    web1.sh("systemd-run -q -u lines -p StandardOutput=append:/root/lines f2bmqtt watch");
    let terminal = Terminal::open(web1, "f2bmqtt watch");
    terminal
        .wait_for("watch shows the fleet", |screen| screen.contains("2 hosts, 2 online; 0 bans"));
    web2.attack("auth", &["203.0.113.9"]);
    terminal.wait_for("watch shows a ban", |screen| {
        screen.contains("ban     203.0.113.9      sshd           web2             for 10m")
            && screen.contains("┌ 1 bans in the last minute, peak 1 a second ")
    });
    terminal.wait_for("watch counts the ban", |screen| {
        screen.contains("│ web2                 online        1")
            && screen.contains("│ sshd                      1")
    });
    web2.sh("systemctl stop f2bmqttsub");
    let screen = terminal.wait_for("watch shows an offline host", |screen| {
        screen.contains("│ web2                 offline       1") && screen.contains("offline")
    });
    let lines: Vec<&str> = screen.lines().collect();
    assert!(
        lines.len() == 24 && lines[23].starts_with('└') && lines[23].ends_with('┘'),
        "{screen}"
    );
    terminal.resize(60, 20);
    terminal.wait_for("watch uses another size", |screen| {
        let wide = screen.lines().nth(2).is_some_and(|line| line.ends_with('┐'));
        wide && screen.lines().nth(19).is_some_and(|line| line.ends_with('┘'))
    });
    rig.host("hub").sh("systemctl stop mosquitto");
    terminal.wait_for("watch shows a broker outage", |screen| {
        screen.contains("no connection to the broker")
    });
    rig.host("hub").sh("systemctl start mosquitto");
    terminal.wait_for("watch shows the broker again", |screen| {
        screen.contains("broker 10.213.77.11:1883")
    });
    terminal.type_keys(&["C-c"]);
    terminal.assert_restored();
    let lines = web1.sh("cat /root/lines");
    let ban = lines.lines().find(|line| line.contains("\tban\t")).unwrap();
    assert_eq!(
        ban.split('\t').skip(1).collect::<Vec<_>>(),
        ["ban", "203.0.113.9", "sshd", "web2", "for 10m"]
    );
    assert!(lines.lines().any(|line| line.ends_with("\toffline\t\t\tweb2\t")), "{lines}");
}
