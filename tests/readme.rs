//! The documents: the tests run the README's commands unchanged on bare machines, and check links, names and promises.

mod support;

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use f2bmqtt::guard::RejectReason;
use f2bmqtt::wire::{Action, Event, Reason};
use support::docs::{Document, block, documents, named_blocks, repository};
use support::{Rig, eventually, package, root};

#[test]
fn documented_install_lets_ban_cross() {
    let [hub, server, attack, look, report] =
        ["hub", "server", "attack", "look", "report"].map(block);
    let rig = Rig::up(&root("bookworm", &[]), &["hub", "web1", "web2"]);
    for host in rig.hosts(&["hub", "web1", "web2"]) {
        // apt must not ask questions.
        host.sh("echo 'APT::Get::Assume-Yes true;' >/etc/apt/apt.conf.d/yes; apt-get update");
    }
    rig.host("hub").sh("ip addr add 192.168.1.10/24 dev eth0");
    rig.host("hub").sh(&format!("set -e; {hub}"));
    // The same commands on a hub in use keep its users and its listeners.
    rig.host("hub").sh(&format!(
        "set -e; mosquitto_passwd -b /etc/mosquitto/passwd other secret; {hub}
         grep -q ^other: /etc/mosquitto/passwd; [ \"$(cat /etc/mosquitto/conf.d/*.conf | grep -c ^listener)\" = 1 ]"
    ));
    for (number, host) in rig.hosts(&["web1", "web2"]).into_iter().enumerate() {
        host.sh(&format!("ip addr add 192.168.1.{}/24 dev eth0", 11 + number));
        // A server in use already has a working jail. On a bare Debian fail2ban has no log to read.
        host.sh("apt-get install fail2ban ipset iptables
            printf '[DEFAULT]\\nbackend = polling\\nbanaction = iptables-ipset\\n' >/etc/fail2ban/jail.local
            touch /var/log/auth.log; systemctl restart fail2ban");
        host.push(&package(), "/root/f2bmqtt.deb");
        eventually("fail2ban runs", || host.ask("ping").is_ok());
        host.sh(&format!("set -e; {server}"));
        eventually("the host is connected", || {
            host.journal().contains("connected to the broker 192.168.1.10")
        });
    }
    rig.host("web1").sh(&attack);
    let expected = block("look-output");
    eventually("web2 bans it", || rig.host("web2").bans("sshd", "203.0.113.9"));
    assert_eq!(rig.host("web2").sh(&look).trim(), expected.trim());
    let web1 = rig.host("web1");
    web1.sh("useradd ann; ip addr add 192.0.2.10/24 dev eth0");
    let expected = block("report-output");
    let output = web1.sh(&report);
    let [output, expected] =
        [&output, &expected].map(|text| text.trim().rsplit_once("\ntimestamp=2026-").unwrap().0);
    assert_eq!(output, expected);
    rig.host("web1").sh("fail2ban-client set sshd unbanip 203.0.113.9");
    eventually("web2 releases the ban", || {
        rig.host("web2").sh("fail2ban-client get sshd banip").is_empty()
    });
}

#[test]
fn message_for_a_button_is_a_fleet_unban() {
    let event = Event::parse(block("button").as_bytes()).unwrap();
    assert_eq!((event.action, event.all_jails), (Action::Unban, true));
    assert_eq!(event.reason, Some(Reason::Fleet));
    assert_eq!(event.id.unwrap().to_string(), "button-1795342588123");
}

/// A test that uses a block contains the block's name as a string.
#[test]
fn block_names_are_unique_and_used_by_tests() {
    let mut names: Vec<_> =
        documents().iter().flat_map(named_blocks).map(|block| block.name).collect();
    names.sort();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
    let tests = tests_text(&repository().join("tests"));
    for name in names {
        assert!(tests.contains(&format!("\"{name}\"")), "no test uses the block {name}");
    }
}

fn tests_text(dir: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text += &tests_text(&path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text += &std::fs::read_to_string(&path).unwrap();
        }
    }
    text
}

#[test]
fn relative_links_lead_to_document_and_heading() {
    let documents = documents();
    for Document { path, text } in &documents {
        for link in links(&prose(text)) {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = match file {
                "" => path.clone(),
                file => normal(&path.with_file_name(file)),
            };
            // The package ships these documents, and pictures.
            if target.extension().is_some_and(|extension| extension == "svg") {
                assert!(repository().join(&target).is_file(), "{}: {link}", path.display());
                continue;
            }
            let target = documents.iter().find(|document| document.path == target);
            let target = target.unwrap_or_else(|| panic!("{}: no document {link}", path.display()));
            assert!(
                anchor.is_empty() || anchors(&target.text).contains(anchor),
                "{}: no heading {link}",
                path.display()
            );
        }
    }
}

#[test]
fn links_and_anchors_match_rendered_page() {
    let text =
        "# A, `b` & c\n[x](a.md#b), `[no](c.md)`\n```\n[no](d.md)\n# no\n```\n## A, `b` & c\n";
    assert_eq!(links(&prose(text)), ["a.md#b"]);
    assert_eq!(anchors(text), ["a-b--c", "a-b--c-1"].map(String::from).into());
    assert_eq!(normal(Path::new("docs/../README.md")), Path::new("README.md"));
}

/// A text without code blocks and code spans.
fn prose(text: &str) -> String {
    let blocks = text.split("```").step_by(2);
    blocks.flat_map(|outside| outside.split('`').step_by(2)).collect()
}

fn links(prose: &str) -> Vec<String> {
    let ends = prose.split("](").skip(1);
    ends.map(|rest| rest.split(')').next().unwrap().to_owned()).collect()
}

/// GitHub's anchors of the headings: lower case, hyphens for blanks, no other punctuation.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let outside: String = text.split("```").step_by(2).collect();
    for heading in outside.lines().filter(|line| line.starts_with('#')) {
        let mut title = heading.trim_start_matches('#').trim().to_lowercase();
        title.retain(|c| c.is_alphanumeric() || " -_".contains(c));
        let anchor = title.replace(' ', "-");
        let again = (1..).map(|number| format!("{anchor}-{number}"));
        let mut names = std::iter::once(anchor.clone()).chain(again);
        names.find(|name| anchors.insert(name.clone()));
    }
    anchors
}

/// A path without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => _ = normal.pop(),
            component => normal.push(component),
        }
    }
    normal
}

/// The code spans of a document.
fn code_spans(path: &str) -> Vec<String> {
    let documents = documents();
    let document = documents.iter().find(|document| document.path == Path::new(path)).unwrap();
    let outside: String = document.text.split("```").step_by(2).collect();
    outside.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn each_promise_names_existing_tests() {
    let tests = tests_text(&repository().join("tests"));
    let named: Vec<_> = code_spans("docs/guarantees.md")
        .into_iter()
        .filter_map(|span| Some(span.split_once("::")?.1.to_owned()))
        .collect();
    for name in &named {
        assert!(tests.contains(&format!("\nfn {name}()")), "no test {name}");
    }
    assert!(named.len() > 20, "{named:?}");
    let text =
        documents().into_iter().find(|page| page.path.ends_with("guarantees.md")).unwrap().text;
    let promises = text.lines().filter(|line| line.starts_with("| G"));
    for promise in promises {
        assert!(promise.contains("::"), "no test: {promise}");
    }
}

#[test]
fn architecture_names_existing_modules_and_each_rule_once() {
    let path = "docs/architecture.md";
    for span in code_spans(path).iter().filter(|span| span.starts_with("src/")) {
        assert!(repository().join(span).exists(), "{path}: {span}");
    }
    let text = documents().into_iter().find(|page| page.path == Path::new(path)).unwrap().text;
    let rules = text.lines().filter_map(|line| line.strip_prefix("| R")?.split(' ').next());
    let expected: Vec<_> = (1..=24).map(|number| number.to_string()).collect();
    assert_eq!(rules.collect::<Vec<_>>(), expected);
}

#[test]
fn each_rejection_reason_is_documented() {
    let spans = code_spans("docs/security.md");
    for reason in RejectReason::ALL {
        assert!(
            spans.iter().any(|span| span == reason.name()),
            "docs/security.md, Reasons: no `{reason}`"
        );
    }
}

/// The commands of the steps in .github/workflows, and the entries of a matrix of commands.
fn commands_of_jobs() -> Vec<String> {
    let mut commands = Vec::new();
    for entry in std::fs::read_dir(repository().join(".github/workflows")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for line in text.lines().map(str::trim_start) {
            let command = line
                .strip_prefix("- run: ")
                .or_else(|| line.strip_prefix("- ").filter(|entry| entry.starts_with("tests/")));
            commands.extend(command.map(str::to_owned));
        }
    }
    commands.retain(|command| command != "${{ matrix.script }}");
    commands
}

#[test]
fn each_ci_step_calls_a_script() {
    let commands = commands_of_jobs();
    assert!(commands.len() > 5, "{commands:?}");
    for command in commands {
        let script = command.split(' ').next().unwrap();
        assert!(repository().join(script).is_file(), ".github/workflows: no script {script}");
        assert!(!command.contains(['|', '&', ';', '$']), "more than a call: {command}");
    }
}

#[test]
fn each_test_script_is_run_by_ci() {
    let jobs = commands_of_jobs();
    let callers: String = [".ci/run", "tests/run", "tests/quick", "tests/demo"]
        .map(|path| std::fs::read_to_string(repository().join(path)).unwrap())
        .concat();
    for dir in ["tests", "tests/fuzz", "tests/rig"] {
        for entry in std::fs::read_dir(repository().join(dir)).unwrap() {
            let path = entry.unwrap().path();
            let script = path.strip_prefix(repository()).unwrap().to_str().unwrap();
            let is_script = path.is_file() && path.extension().is_none();
            let is_run = jobs.iter().any(|command| command.split(' ').next() == Some(script))
                || callers.contains(&format!("/{script}"))
                || callers.contains(&format!("{script} "));
            assert!(!is_script || is_run, "no job runs {script}");
        }
    }
}

#[test]
fn changelogs_start_with_current_version() {
    let version = env!("CARGO_PKG_VERSION");
    let [text, debian] = ["CHANGELOG.md", "debian/changelog"]
        .map(|path| std::fs::read_to_string(repository().join(path)).unwrap());
    let newest = text.lines().find_map(|line| line.strip_prefix("## ["));
    assert!(newest.is_some_and(|line| line.starts_with(&format!("{version}]"))), "{newest:?}");
    assert!(debian.starts_with(&format!("f2bmqtt ({version}-1) ")), "debian/changelog");
}
