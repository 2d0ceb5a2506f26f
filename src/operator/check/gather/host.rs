//! Collects facts from this host: processes, files, systemd. It changes nothing.

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::SystemTime;

use crate::abuseipdb::key::KeyFile;
use crate::operator::check::rules::host::{HostFacts, Script, SpoolVisibility, UnitState};
use crate::operator::check::rules::reports::KeyState;
use crate::operator::confirm::parent;
use crate::spool::owner_lock;
use crate::sys::paths::Paths;
use crate::sys::private_files::mounts;
use crate::sys::private_files::room::{Room, full_disks};

const LINKS_FILE: &str = "/usr/share/f2bmqtt/links";
const BINARY_PATH: &str = "/usr/bin/f2bmqtt";
const ACTIONS_DIR: &str = "/etc/fail2ban/action.d";

/// The most events of the spool that are counted.
const MAX_COUNTED_EVENTS: usize = 100_000;

/// Runs a program for at most 8 seconds.
pub(in crate::operator::check) fn command(program: &str, arguments: &[&str]) -> io::Result<Output> {
    Command::new("timeout")
        .args(["8", program])
        .args(arguments)
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .output()
}

pub(in crate::operator::check) fn host(paths: &Paths, settings: &Path) -> HostFacts {
    let path = paths.lock();
    let owner = owner_lock::owner(&path);
    let exe = owner.map(|owner| fs::read_link(format!("/proc/{}/exe", owner.pid)));
    let links = fs::read_to_string(LINKS_FILE).unwrap_or_default();
    let links = links.lines().map(PathBuf::from);
    let (no_actions, customised) = actions();
    HostFacts {
        namesake: false,
        duplicates: Vec::new(),
        service: service(),
        replaced: exe.is_some_and(|exe| {
            exe.is_ok_and(|exe| exe.as_os_str().as_bytes().ends_with(b" (deleted)"))
        }),
        settings_newer: seconds_changed_after_start(settings, &path),
        owner,
        scripts: scripts(),
        no_links: links
            .filter(|link| !is_link_to(link, Path::new(BINARY_PATH)))
            .map(|link| (link.clone(), fs::symlink_metadata(link).is_ok()))
            .collect(),
        no_actions,
        customised,
        room: Room::of(&paths.state),
        disks_full: full_disks(paths),
        exposed: exposed(paths),
        spool: count_spool(paths.spool().dir()),
        clock_is_set: Path::new("/run/systemd/timesync/synchronized").exists(),
    }
}

fn service() -> Option<UnitState> {
    if !Path::new("/run/systemd/system").exists() {
        return None;
    }
    let properties = "--property=LoadState,ActiveState,FragmentPath,ExecMainStatus,UnitFileState";
    let output = command("systemctl", &["show", properties, "f2bmqttsub.service"]).ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(UnitState {
        load: unit_property(&text, "LoadState"),
        active: unit_property(&text, "ActiveState"),
        fragment: unit_property(&text, "FragmentPath"),
        status: unit_property(&text, "ExecMainStatus"),
        enabled: unit_property(&text, "UnitFileState"),
    })
}

/// A property in the output of `systemctl show`: `ActiveState=active`.
fn unit_property(output: &str, name: &str) -> String {
    let mut values = output.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    values.next().unwrap_or_default().to_owned()
}

/// By how many seconds the settings are newer than the lock, which the daemon writes at its start.
fn seconds_changed_after_start(settings: &Path, lock: &Path) -> Option<u64> {
    let changed = fs::metadata(settings).ok()?.modified().ok()?;
    let started = fs::metadata(lock).ok()?.modified().ok()?;
    let newer = changed.duration_since(started).ok()?;
    Some(newer.as_secs()).filter(|seconds| *seconds > 0)
}

/// The shells that run the script `mqttsubscribebans`.
fn scripts() -> Vec<Script> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| is_script(*pid)).map(|pid| Script { pid, unit: unit(pid) }).collect()
}

fn is_script(pid: i32) -> bool {
    let is_shell = fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| {
        exe.file_name()
            .is_some_and(|name| ["bash", "dash", "sh"].iter().any(|shell| name == *shell))
    });
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut names = arguments
        .split(|byte| *byte == 0)
        .filter_map(|argument| Path::new(OsStr::from_bytes(argument)).file_name());
    // A subshell of the script has the same name; only its parent counts.
    is_shell
        && names.any(|name| name == "mqttsubscribebans")
        && parent(pid).is_none_or(|parent| !is_script(parent))
}

fn unit(pid: i32) -> Option<String> {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let mut levels = cgroups.lines().flat_map(|line| line.rsplit('/'));
    levels.find(|level| level.ends_with(".service")).map(str::to_owned)
}

fn is_link_to(link: &Path, target: &Path) -> bool {
    fs::read_link(link).is_ok_and(|to| to == target)
}

/// The package's action files that are missing, and those with a newer packaged version beside them.
fn actions() -> (Vec<PathBuf>, Vec<PathBuf>) {
    let all = ["iptables-ipset.local", "f2bmqtt.conf", "abuseipdb.local"];
    let all = all.map(|name| Path::new(ACTIONS_DIR).join(name));
    let missing = all.iter().filter(|path| !path.exists()).cloned().collect();
    let customised = all.iter().filter(|path| {
        let mut packaged = path.as_os_str().to_owned();
        packaged.push(".ucf-dist");
        Path::new(&packaged).exists()
    });
    (missing, customised.cloned().collect())
}

/// Private paths that users other than root can access.
fn exposed(paths: &Paths) -> Vec<(PathBuf, u32)> {
    let all = [
        paths.state.clone(),
        paths.spool().dir().to_owned(),
        paths.store(),
        paths.reports(),
        paths.report_queue(),
    ];
    let mut exposed = Vec::new();
    for path in all {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        let mode = meta.permissions().mode();
        if mode & 0o077 != 0 || meta.uid() != 0 {
            exposed.push((path, mode));
        }
    }
    exposed
}

/// The number of files in the spool, and the age of the oldest in seconds.
fn count_spool(spool: &Path) -> (usize, u64) {
    let Ok(entries) = fs::read_dir(spool) else { return (0, 0) };
    let files =
        entries.flatten().filter_map(|entry| entry.metadata().ok()).filter(Metadata::is_file);
    files
        .take(MAX_COUNTED_EVENTS)
        .fold((0, 0), |(count, oldest), meta| (count + 1, oldest.max(age_secs(&meta).unwrap_or(0))))
}

fn age_secs(meta: &Metadata) -> Option<u64> {
    let age = SystemTime::now().duration_since(meta.modified().ok()?).ok()?;
    Some(age.as_secs())
}

/// Whether a path exists, but not in the mount namespace of a process.
pub(in crate::operator::check) fn is_hidden_from(pid: i32, path: &Path) -> bool {
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let inside = path.strip_prefix("/").unwrap_or(path);
    path.exists() && root.exists() && !root.join(inside).exists()
}

/// How a process sees the spool.
pub(in crate::operator::check) fn spool_visibility(
    pid: i32,
    spool: &Path,
) -> Option<SpoolVisibility> {
    let user = fs::metadata(format!("/proc/{pid}/status")).ok()?.uid();
    if user != 0 {
        return Some(SpoolVisibility::User(user));
    }
    let own = fs::metadata(spool).ok()?;
    let inside = spool.strip_prefix("/").unwrap_or(spool);
    let seen = fs::metadata(Path::new(&format!("/proc/{pid}/root")).join(inside));
    if !seen.is_ok_and(|seen| (seen.dev(), seen.ino()) == (own.dev(), own.ino())) {
        return Some(SpoolVisibility::Other);
    }
    Some(if mounts::is_read_only_for(pid, spool)? {
        SpoolVisibility::ReadOnly
    } else {
        SpoolVisibility::Same
    })
}

/// The state of the key file, and a warning about it.
pub(in crate::operator::check) fn key(path: &Path) -> (KeyState, Option<String>) {
    let KeyFile { key, is_broken, warning } = KeyFile::read(path);
    let state = match key {
        Some(_) => KeyState::Usable,
        None if is_broken => KeyState::Broken,
        None if path.exists() => KeyState::None,
        None => KeyState::Missing,
    };
    (state, warning)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_sees_the_spool_and_hides_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        assert_eq!(spool_visibility(pid, dir.path()), Some(SpoolVisibility::Same));
        assert_eq!(spool_visibility(pid, &dir.path().join("none")), None);
        assert!(!is_script(pid) && parent(pid).is_some());
        assert!(!is_hidden_from(pid, dir.path()) && !is_hidden_from(pid, &dir.path().join("none")));
    }
}
