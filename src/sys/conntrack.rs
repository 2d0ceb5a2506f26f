//! Ends the open connections of a banned address. A firewall that accepts established connections before it checks
//! bans would keep serving them.
//!
//! `conntrack -D` walks the whole connection table, which takes some 15 ms of CPU time whatever it finds. Therefore
//! one worker at a time handles all queued addresses; other callers only queue theirs and return.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use rustix::process::setsid;

use crate::error::Error;
use crate::model::Address;
use crate::sys::paths::Paths;
use crate::sys::private_files;

/// The pause between two rounds, so that a burst of bans needs only a few walks.
const ROUND_PAUSE: Duration = Duration::from_millis(50);

/// Up to this many addresses, one deletion each is faster than listing all connections first.
const MAX_UNLISTED: usize = 2;

/// Queues an address, and processes the queue unless another worker does.
///
/// # Errors
/// [`Error::Usage`] for an invalid address, [`Error::File`] if the queue cannot be written.
pub fn run(address: &str, paths: &Paths) -> Result<(), Error> {
    let address = Address::new(address).map_err(|fault| Error::Usage(format!("IP {fault}")))?;
    // fail2ban kills the process group of an action that takes too long: leave that group.
    let _ = setsid();
    let queue = paths.run.join("cut");
    process_queue(address, &queue, &conntrack).map_err(Error::file("use", queue))
}

/// Queues an address, and drops the connections of all queued addresses unless another worker holds the lock.
fn process_queue(
    address: Address,
    queue: &Path,
    conntrack: &dyn Fn(&[&str]) -> io::Result<Output>,
) -> io::Result<()> {
    if let Some(run) = queue.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(run)?;
    }
    private_files::make_dir(queue)?;
    create(&queue.join(address.to_string()))?;
    let lock = create(&queue.with_extension("lock"))?;
    loop {
        if lock.try_lock().is_err() {
            return Ok(());
        }
        loop {
            let addresses = take_queued(queue)?;
            if addresses.is_empty() {
                break;
            }
            drop_connections(&addresses, conntrack);
            sleep(ROUND_PAUSE);
        }
        lock.unlock()?;
        // Another process may have queued an address while this one still held the lock.
        if fs::read_dir(queue)?.next().is_none() {
            return Ok(());
        }
    }
}

fn create(path: &Path) -> io::Result<fs::File> {
    private_files::options().create(true).truncate(false).write(true).open(path)
}

/// Removes and returns all queued addresses.
fn take_queued(queue: &Path) -> io::Result<BTreeSet<Address>> {
    let mut addresses = BTreeSet::new();
    for entry in fs::read_dir(queue)? {
        let entry = entry?;
        fs::remove_file(entry.path())?;
        addresses.extend(entry.file_name().to_str().and_then(|name| Address::new(name).ok()));
    }
    Ok(addresses)
}

/// The address family as conntrack's option `-f` takes it.
fn family(address: &Address) -> &'static str {
    if address.ip().is_ipv4() { "ipv4" } else { "ipv6" }
}

/// Ends the connections of these addresses. Usually there are none, so conntrack's failures are ignored.
fn drop_connections(
    addresses: &BTreeSet<Address>,
    conntrack: &dyn Fn(&[&str]) -> io::Result<Output>,
) {
    let mut connected: BTreeSet<Address> = BTreeSet::new();
    if addresses.len() > MAX_UNLISTED {
        for family in addresses.iter().map(family).collect::<BTreeSet<_>>() {
            if let Ok(output) = conntrack(&["-L", "-f", family]) {
                connected.extend(sources(&String::from_utf8_lossy(&output.stdout)));
            }
        }
    } else {
        connected.clone_from(addresses);
    }
    for address in addresses.intersection(&connected) {
        let _ = conntrack(&["-D", "-f", family(address), "-s", &address.to_string()]);
    }
}

/// The initiator of each connection in a `conntrack -L` listing: the first `src=` of a line.
fn sources(listing: &str) -> impl Iterator<Item = Address> {
    listing.lines().filter_map(|line| {
        let source = line.split_ascii_whitespace().find_map(|word| word.strip_prefix("src="))?;
        Address::new(source).ok()
    })
}

fn conntrack(arguments: &[&str]) -> io::Result<Output> {
    Command::new("conntrack").args(arguments).stdin(Stdio::null()).output()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    use super::*;

    const LISTING: &str = "\
tcp      6 431999 ESTABLISHED src=192.0.2.7 dst=10.0.0.1 sport=5000 dport=22 src=10.0.0.1 dst=192.0.2.7 sport=22 dport=5000 [ASSURED] mark=0 use=1
udp      17 29 src=198.51.100.1 dst=10.0.0.1 sport=53 dport=53 [UNREPLIED] src=10.0.0.1 dst=198.51.100.1 sport=53 dport=53 mark=0 use=1
";

    /// The conntrack calls for these addresses, all but the first queued by other processes.
    fn conntrack_calls(addresses: &[&str]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let queue = dir.path().join("run/cut");
        let calls = RefCell::new(Vec::new());
        let (first, rest) = addresses.split_first().unwrap();
        fs::create_dir_all(&queue).unwrap();
        for address in rest {
            fs::write(queue.join(address), "").unwrap();
        }
        process_queue(Address::new(first).unwrap(), &queue, &|arguments| {
            calls.borrow_mut().push(arguments.join(" "));
            let stdout = LISTING.as_bytes().to_vec();
            Ok(Output { status: ExitStatus::from_raw(0), stdout, stderr: Vec::new() })
        })
        .unwrap();
        assert!(fs::read_dir(&queue).unwrap().next().is_none(), "the queue is empty");
        calls.into_inner()
    }

    #[test]
    fn few_addresses_are_deleted_without_listing_and_many_only_if_connected() {
        assert_eq!(conntrack_calls(&["192.0.2.7"]), ["-D -f ipv4 -s 192.0.2.7"]);
        assert_eq!(conntrack_calls(&["2001:db8::1"]), ["-D -f ipv6 -s 2001:db8::1"]);
        let many = conntrack_calls(&["192.0.2.1", "192.0.2.7", "192.0.2.8", "2001:db8::1"]);
        assert_eq!(many, ["-L -f ipv4", "-L -f ipv6", "-D -f ipv4 -s 192.0.2.7"]);
    }

    #[test]
    fn second_worker_only_queues_its_address() {
        let dir = tempfile::tempdir().unwrap();
        let queue = dir.path().join("cut");
        let lock = fs::File::create(queue.with_extension("lock")).unwrap();
        lock.lock().unwrap();
        process_queue(Address::new("192.0.2.7").unwrap(), &queue, &|_| unreachable!()).unwrap();
        assert!(queue.join("192.0.2.7").exists());
    }
}
