//! Checks of the installation and the service. Pure; `gather::host` collects the facts.

use std::path::{Path, PathBuf};

use crate::model::text::{count, format_duration};
use crate::operator::check::finding::Finding;
use crate::spool::owner_lock::{Owner, Role};
use crate::sys::private_files::room::{FullDisk, Room};

/// An older event in the spool shows a problem; in seconds.
const MAX_SPOOL_AGE_SECS: u64 = 60;

/// The facts about this host.
#[derive(Debug, Default)]
pub(in crate::operator::check) struct HostFacts {
    /// The state of the service's unit; `None` without systemd.
    pub(in crate::operator::check) service: Option<UnitState>,
    /// The process that holds the lock, and so publishes this host's bans.
    pub(in crate::operator::check) owner: Option<Owner>,
    /// The process runs a binary that was replaced.
    pub(in crate::operator::check) replaced: bool,
    /// For how many seconds the settings are newer than the service.
    pub(in crate::operator::check) settings_newer: Option<u64>,
    /// Scripts that subscribe beside the daemon.
    pub(in crate::operator::check) scripts: Vec<Script>,
    /// Paths without the package's link, and whether another file is there.
    pub(in crate::operator::check) no_links: Vec<(PathBuf, bool)>,
    /// Locally modified action files with a newer packaged version beside them.
    pub(in crate::operator::check) customised: Vec<PathBuf>,
    /// Action files of the package that are missing.
    pub(in crate::operator::check) no_actions: Vec<PathBuf>,
    /// The free space on the file system of the state directory.
    pub(in crate::operator::check) room: Option<Room>,
    /// Full file systems.
    pub(in crate::operator::check) disks_full: Vec<FullDisk>,
    /// Private paths that users other than root can access, and their modes.
    pub(in crate::operator::check) exposed: Vec<(PathBuf, u32)>,
    /// The number of events in the spool, and the age of the oldest in seconds.
    pub(in crate::operator::check) spool: (usize, u64),
    /// systemd-timesyncd has set the clock.
    pub(in crate::operator::check) clock_is_set: bool,
    /// The daemon saw another machine with this host's name.
    pub(in crate::operator::check) namesake: bool,
    /// Names of other hosts that two machines have.
    pub(in crate::operator::check) duplicates: Vec<String>,
}

/// The state of the service's unit (systemctl show).
#[derive(Debug, Default)]
pub(in crate::operator::check) struct UnitState {
    /// `loaded`, `masked`, `not-found`.
    pub(in crate::operator::check) load: String,
    /// `active`, `inactive`, `failed`, `activating`.
    pub(in crate::operator::check) active: String,
    /// The unit's file.
    pub(in crate::operator::check) fragment: String,
    /// Its last exit code.
    pub(in crate::operator::check) status: String,
    /// `enabled`, `disabled`.
    pub(in crate::operator::check) enabled: String,
}

/// A script that subscribes.
#[derive(Debug)]
pub(in crate::operator::check) struct Script {
    pub(in crate::operator::check) pid: i32,
    pub(in crate::operator::check) unit: Option<String>,
}

/// fail2ban's view of the spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::operator::check) enum SpoolVisibility {
    /// fail2ban can write there, as far as its mounts and its user show.
    Same,
    ReadOnly,
    /// fail2ban sees another directory at the path, or none.
    Other,
    /// fail2ban runs as this user instead of root.
    User(u32),
}

/// The paths of the package's unit: `/lib` may be a link to `/usr/lib`, or `/usr/lib` to `/lib`.
const PACKAGE_UNITS: [&str; 2] =
    ["/lib/systemd/system/f2bmqttsub.service", "/usr/lib/systemd/system/f2bmqttsub.service"];

impl HostFacts {
    /// Whether the daemon holds the lock.
    pub(in crate::operator::check) fn is_running(&self) -> bool {
        self.owner.is_some_and(|owner| owner.role == Role::Daemon)
    }

    pub(in crate::operator::check) fn findings(
        &self,
        state: &Path,
        settings: &Path,
    ) -> Vec<Finding> {
        let mut found = self.service(settings);
        found.extend(self.scripts.iter().map(|Script { pid, unit }| {
            let text = format!("a script mqttsubscribebans still runs (PID {pid})");
            let next = match unit.as_deref() {
                Some("f2bmqttsub.service") => "systemctl restart f2bmqttsub".to_owned(),
                Some(unit) => format!("systemctl disable --now {unit}"),
                None => {
                    format!("kill {pid}\nremove the line that starts the script from crontab -l or /etc/rc.local")
                }
            };
            Finding::fault("scripts", text).about(pid).next(next)
        }));
        if self.no_links.is_empty() {
            found.push(Finding::ok("links", "fail2ban's actions call f2bmqtt"));
        }
        found.extend(self.no_links.iter().map(|(path, exists)| {
            let shown = path.display();
            let again = "dpkg-reconfigure f2bmqtt; systemctl enable --now f2bmqttsub";
            if *exists {
                let text = format!(
                    "{shown} is not a link to /usr/bin/f2bmqtt: its callers run another program"
                );
                let fix = format!("{again}\n(this moves the existing file to {shown}.pre-f2bmqtt)");
                return Finding::fault("links", text).about(&shown).next(fix);
            }
            let text = format!("the link {shown} to /usr/bin/f2bmqtt is missing: its callers fail");
            // fail2ban's actions call those in /etc/fail2ban; /usr/local may be read-only.
            let is_local = path.starts_with("/usr/local");
            let severity = if is_local { Finding::warning } else { Finding::fault };
            let dir = path.parent().unwrap_or(path).display();
            severity("links", text)
                .about(&shown)
                .next(format!("make {dir} writable, then: {again}"))
        }));
        found.extend(self.no_actions.iter().map(|path| {
            let name = path.file_name().unwrap_or_default().display();
            let text = format!("{} is missing", path.display());
            Finding::warning("action_file", text).about(&path.display()).next(format!(
                "cp /usr/share/f2bmqtt/action.d/{name} /etc/fail2ban/action.d/\n\
                 then: fail2ban-client reload"
            ))
        }));
        found.extend(self.customised.iter().map(|path| {
            let path = path.display();
            let text = format!("{path} is locally modified; the packaged version is in {path}.ucf-dist");
            Finding::warning("action_file", text).about(&path).next(format!(
                "diff -u {path} {path}.ucf-dist\ninstall the packaged version: mv {path}.ucf-dist {path}; \
                 fail2ban-client reload"
            ))
        }));
        found.extend(self.state(state));
        found
    }

    fn service(&self, settings: &Path) -> Vec<Finding> {
        const JOURNAL_COMMAND: &str = "journalctl -u f2bmqttsub -n 20";
        let mut found = Vec::new();
        let none = UnitState {
            load: "loaded".to_owned(),
            enabled: "enabled".to_owned(),
            ..UnitState::default()
        };
        let UnitState { load, active, fragment, status, enabled, .. } =
            self.service.as_ref().unwrap_or(&none);
        let is_shadowed = !fragment.is_empty() && !PACKAGE_UNITS.contains(&fragment.as_str());
        if load == "masked" {
            let text = "the service f2bmqttsub is masked: it cannot be started";
            found.push(
                Finding::fault("service_unit", text)
                    .next("systemctl unmask f2bmqttsub; systemctl enable --now f2bmqttsub"),
            );
        } else if load == "not-found" {
            let text = "the service f2bmqttsub is not installed";
            found.push(
                Finding::fault("service_unit", text)
                    .next("apt install --reinstall ./f2bmqtt.deb; systemctl daemon-reload"),
            );
        } else if is_shadowed {
            let text = format!("systemd runs {fragment} instead of the package's unit");
            found.push(Finding::fault("service_unit", text).about(fragment).next(format!(
                "mv {fragment} {fragment}.old; systemctl daemon-reload\n\
                 systemctl reenable f2bmqttsub; systemctl restart f2bmqttsub"
            )));
        }
        let is_active = if self.service.is_some() { active == "active" } else { self.is_running() };
        if is_active && (is_shadowed || self.is_running()) {
            found.push(Finding::ok("service", "the service f2bmqttsub runs"));
        } else if load == "loaded" {
            let (text, next) = match (active.as_str(), status.as_str()) {
                ("active", _) => (
                    "the service f2bmqttsub runs, but does not hold its lock".to_owned(),
                    JOURNAL_COMMAND,
                ),
                (_, "78") => (
                    "the service f2bmqttsub stopped: its settings are invalid".to_owned(),
                    "fix the settings, then: systemctl restart f2bmqttsub",
                ),
                ("" | "inactive", _) => (
                    "the service f2bmqttsub is not running: this host imports no bans".to_owned(),
                    "systemctl enable --now f2bmqttsub",
                ),
                (active, _) => (
                    format!("the service f2bmqttsub does not keep running ({active})"),
                    JOURNAL_COMMAND,
                ),
            };
            found.push(Finding::fault("service", text).next(next));
        }
        if load == "loaded" && enabled != "enabled" {
            let text = format!("the service f2bmqttsub does not start at boot: it is {enabled}");
            found.push(
                Finding::warning("service_enabled", text).next("systemctl enable f2bmqttsub"),
            );
        }
        if self.replaced && self.is_running() {
            let text = "the service still runs the previously installed version";
            found.push(
                Finding::warning("service_version", text).next("systemctl restart f2bmqttsub"),
            );
        }
        if let (Some(seconds), true) = (self.settings_newer, self.is_running()) {
            let settings = settings.display();
            let text = format!(
                "the service runs with old settings: {settings} changed {} after the service started",
                format_duration(seconds.cast_signed())
            );
            found.push(
                Finding::fault("service_settings", text).next("systemctl restart f2bmqttsub"),
            );
        }
        found
    }

    /// Findings about the state directory, the disks and the spool.
    fn state(&self, state: &Path) -> Vec<Finding> {
        let mut found = Vec::new();
        match self.room {
            None => {
                let state = state.display();
                let text = format!("the state directory {state} is missing");
                found.push(
                    Finding::fault("disk", text)
                        .next("dpkg-reconfigure f2bmqtt; systemctl restart f2bmqttsub"),
                );
            }
            Some(room) => {
                let free = room.bytes / 1024 / 1024; // MiB
                let text = format!("{free} MiB are free on the file system of {}", state.display());
                let shortage = room.shortage(state).map(|text| full_disk(&text, state));
                found.push(shortage.unwrap_or_else(|| Finding::ok("disk", text)));
            }
        }
        let others = self.disks_full.iter().filter(|disk| disk.path != state);
        found.extend(
            others.map(|disk| full_disk(&disk.text, &disk.path).about(&disk.path.display())),
        );
        found.extend(self.exposed.iter().map(|(path, mode)| {
            let path = path.display();
            let text =
                format!("users other than root can access {path} (mode {:04o})", mode & 0o7777);
            Finding::fault("modes", text)
                .about(&path)
                .next(format!("chown root: {path}; chmod go= {path}"))
        }));
        let (number, oldest) = self.spool;
        if oldest > MAX_SPOOL_AGE_SECS {
            let wait = if number == 1 { "waits" } else { "wait" };
            let (events, age) = (count(number, "event"), format_duration(oldest.cast_signed()));
            let text = format!("{events} {wait} to be published, the oldest for {age}");
            found.push(Finding::warning("spool", text).next("journalctl -u f2bmqttsub -n 20"));
        }
        found
    }
}

fn full_disk(text: &str, path: &Path) -> Finding {
    Finding::fault("disk", format!("{text}: a restart loses state that cannot be written"))
        .next(format!("free some space: df -h {}", path.display()))
}

/// The fault that the service's sandbox hides a path of fail2ban.
pub(in crate::operator::check) fn hidden(what: &str, path: &Path) -> Finding {
    let dir = path.parent().unwrap_or(path).display();
    let path = path.display();
    let text = format!("the service f2bmqttsub cannot see {what} {path}: its sandbox hides {dir}");
    Finding::fault("service_sandbox", text).about(&path).next(format!(
        "systemctl edit f2bmqttsub, and add:\n    [Service]\n    BindReadOnlyPaths={dir}\n\
         then: systemctl restart f2bmqttsub"
    ))
}

impl SpoolVisibility {
    /// Whether fail2ban's actions can write to the spool.
    pub(in crate::operator::check) fn finding(&self, spool: &Path) -> Finding {
        let path = spool.display();
        let why = match self {
            Self::Same => {
                return Finding::ok("fail2ban_sandbox", format!("fail2ban can write to {path}"));
            }
            Self::ReadOnly => "its unit makes the path read-only".to_owned(),
            Self::Other => "its unit hides or replaces the path".to_owned(),
            Self::User(user) => format!("it runs as user {user}"),
        };
        let text = format!(
            "fail2ban cannot write to {path}: {why}; bans that cannot be published at once are not shared"
        );
        let lines = match self {
            Self::User(_) => "remove User= from fail2ban's unit: systemctl edit --full fail2ban",
            Self::Other => {
                "systemctl edit fail2ban, and add:\n    [Service]\n    BindPaths=/var/lib/f2bmqtt"
            }
            _ => {
                "systemctl edit fail2ban, and add:\n    [Service]\n    ReadWritePaths=/var/lib/f2bmqtt"
            }
        };
        Finding::fault("fail2ban_sandbox", text)
            .next(lines)
            .next("then: systemctl restart fail2ban")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::check::finding::Status;

    fn sound() -> HostFacts {
        let service = UnitState {
            load: "loaded".to_owned(),
            active: "active".to_owned(),
            fragment: PACKAGE_UNITS[0].to_owned(),
            status: "0".to_owned(),
            enabled: "enabled".to_owned(),
        };
        HostFacts {
            service: Some(service),
            owner: Some(Owner { role: Role::Daemon, pid: 7 }),
            room: Some(Room { bytes: 1 << 30, files: 1000, is_read_only: false }),
            ..HostFacts::default()
        }
    }

    /// A sound host, except for a change of its service.
    fn with_service(change: impl FnOnce(&mut UnitState)) -> HostFacts {
        let mut host = sound();
        change(host.service.as_mut().unwrap());
        host
    }

    fn with_room(bytes: u64, files: u64) -> HostFacts {
        HostFacts { room: Some(Room { bytes, files, is_read_only: false }), ..sound() }
    }

    fn text(seen: &SpoolVisibility) -> String {
        seen.finding(Path::new("/s")).text
    }

    fn problems(host: &HostFacts) -> Vec<(&'static str, Status)> {
        let found = host.findings(Path::new("/state"), Path::new("/settings")).into_iter();
        let problems = found.filter(|finding| finding.state != Status::Ok);
        problems
            .inspect(|finding| assert!(!finding.next.is_empty(), "{finding:?}"))
            .map(|finding| (finding.id, finding.state))
            .collect()
    }

    #[test]
    fn each_host_problem_is_found_and_a_healthy_host_has_none() {
        use Status::{Fault, Warning};
        assert_eq!(problems(&sound()), []);
        let other_disk = FullDisk { path: "/var/lib/fail2ban".into(), text: "full".to_owned() };
        let table = [
            (
                HostFacts {
                    owner: None,
                    ..with_service(|service| service.active = "inactive".to_owned())
                },
                vec![("service", Fault)],
            ),
            (HostFacts { owner: None, ..sound() }, vec![("service", Fault)]),
            (
                with_service(|service| {
                    service.fragment = "/etc/systemd/system/f2bmqttsub.service".to_owned();
                }),
                vec![("service_unit", Fault)],
            ),
            (
                HostFacts {
                    owner: None,
                    ..with_service(|service| {
                        (service.load, service.active) =
                            ("masked".to_owned(), "inactive".to_owned());
                        service.fragment.clear();
                    })
                },
                vec![("service_unit", Fault)],
            ),
            (
                with_service(|service| service.enabled = "disabled".to_owned()),
                vec![("service_enabled", Warning)],
            ),
            (HostFacts { replaced: true, ..sound() }, vec![("service_version", Warning)]),
            (HostFacts { settings_newer: Some(3), ..sound() }, vec![("service_settings", Fault)]),
            (
                HostFacts { scripts: vec![Script { pid: 9, unit: None }], ..sound() },
                vec![("scripts", Fault)],
            ),
            (HostFacts { no_links: vec![("/x".into(), true)], ..sound() }, vec![("links", Fault)]),
            (HostFacts { no_links: vec![("/x".into(), false)], ..sound() }, vec![("links", Fault)]),
            (
                HostFacts { no_links: vec![("/usr/local/bin/x".into(), false)], ..sound() },
                vec![("links", Warning)],
            ),
            (
                HostFacts { customised: vec!["/x".into()], ..sound() },
                vec![("action_file", Warning)],
            ),
            (
                HostFacts { no_actions: vec!["/x".into()], ..sound() },
                vec![("action_file", Warning)],
            ),
            (with_room(5, 5), vec![("disk", Fault)]),
            (with_room(1 << 30, 0), vec![("disk", Fault)]),
            (HostFacts { disks_full: vec![other_disk], ..sound() }, vec![("disk", Fault)]),
            (HostFacts { room: None, ..sound() }, vec![("disk", Fault)]),
            (
                HostFacts { exposed: vec![(PathBuf::from("/x"), 0o40755)], ..sound() },
                vec![("modes", Fault)],
            ),
            (HostFacts { spool: (3, 500), ..sound() }, vec![("spool", Warning)]),
            (HostFacts { spool: (3, 5), ..sound() }, vec![]),
            // Without systemd, the lock shows whether the daemon runs.
            (HostFacts { service: None, ..sound() }, vec![]),
            (HostFacts { service: None, owner: None, ..sound() }, vec![("service", Fault)]),
        ];
        for (host, expected) in table {
            assert_eq!(problems(&host), expected, "{host:?}");
        }
    }

    #[test]
    fn path_that_the_sandbox_hides_is_a_fault_with_its_fix() {
        let found = hidden("fail2ban's socket", Path::new("/run/f2b/x.sock"));
        let text = "the service f2bmqttsub cannot see fail2ban's socket /run/f2b/x.sock: its sandbox hides /run/f2b";
        assert_eq!((found.state, found.text.as_str()), (Status::Fault, text));
        assert!(found.next.contains(&"    BindReadOnlyPaths=/run/f2b".to_owned()));
    }

    #[test]
    fn reason_why_fail2ban_cannot_write_the_spool_is_shown() {
        assert_eq!(text(&SpoolVisibility::Same), "fail2ban can write to /s");
        assert!(
            text(&SpoolVisibility::ReadOnly)
                .starts_with("fail2ban cannot write to /s: its unit makes the path read-only")
        );
        assert!(text(&SpoolVisibility::User(5)).contains("it runs as user 5"));
    }
}
