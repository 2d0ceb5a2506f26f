//! Gathers whom a jail is never to ban, anew each time it is asked: `ignoreip` may have changed, and so may
//! the files and names in it, this host's network, and where the broker is.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::join_all;
use ipnet::IpNet;
use tokio::net::lookup_host;
use tokio::time::timeout;

use super::{Because, Ignored, network};

/// The largest file of addresses that is read, in bytes.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// What does not change, and what was learned last.
#[derive(Debug, Default)]
pub struct Exempt {
    /// What the settings name.
    never: Vec<IpNet>,
    /// Where the brokers are: names or addresses.
    brokers: Vec<String>,
    /// This host's own name.
    own: String,
    names: Names,
    files: Files,
}

impl Exempt {
    /// For a host of this name and these settings.
    #[must_use]
    pub fn new(never: Vec<IpNet>, brokers: Vec<String>, own: String) -> Self {
        Self { never, brokers, own, ..Self::default() }
    }

    /// Whom a jail with these entries in `ignoreip` is never to ban, and what is wrong with its files.
    pub async fn of(&mut self, entries: &[String]) -> (Ignored, Vec<String>) {
        let (mut ignored, mut wrong) = (Ignored::default(), Vec::new());
        for network in &self.never {
            ignored.add(*network, Because::Settings);
        }
        for address in own_addresses() {
            ignored.add(IpNet::from(address.to_canonical()), Because::Own);
        }
        let mut names = vec![(self.own.clone(), Because::Own)];
        names.extend(self.brokers.iter().map(|broker| (broker.clone(), Because::Broker)));
        for entry in entries.iter().map(|entry| entry.trim()) {
            let Some(path) = file(entry) else {
                sort(entry, Because::Jail, &mut ignored, &mut names);
                continue;
            };
            let (entries, error) = self.files.read(&path);
            for entry in entries {
                sort(entry, Because::Jail, &mut ignored, &mut names);
            }
            wrong.extend(error.map(|error| format!("cannot read {}: {error}", path.display())));
        }
        self.names.refresh(names.iter().map(|(name, _)| name.as_str())).await;
        for (name, because) in names {
            for address in self.names.addresses(&name) {
                ignored.add(IpNet::from(address.to_canonical()), because);
            }
        }
        (ignored, wrong)
    }
}

/// An entry is an address or a network, or else a name.
fn sort(entry: &str, because: Because, ignored: &mut Ignored, names: &mut Vec<(String, Because)>) {
    match network(entry) {
        Some(network) => ignored.add(network, because),
        None => names.push((entry.to_owned(), because)),
    }
}

/// The file that an entry names: `file:/path`, also with two slashes more.
fn file(entry: &str) -> Option<PathBuf> {
    let path = entry.strip_prefix("file:")?;
    Some(Path::new("/").join(path.trim_start_matches('/')))
}

/// The addresses of this host's own interfaces; none where they cannot be had.
#[must_use]
pub fn own_addresses() -> Vec<IpAddr> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    interfaces.iter().map(if_addrs::Interface::ip).collect()
}

/// What names stand for, asked again each minute. A name server that is away takes nobody's name from
/// the list.
#[derive(Debug, Default)]
struct Names {
    known: HashMap<String, (Instant, Vec<IpAddr>)>,
}

impl Names {
    const FRESH: Duration = Duration::from_mins(1);
    const PATIENCE: Duration = Duration::from_secs(2);
    /// More are not asked for: a list of so many is one of addresses, or broken.
    const MOST: usize = 500;

    /// Asks for those of which nothing fresh is known, all at once.
    async fn refresh(&mut self, names: impl Iterator<Item = &str>) {
        let fresh = |name: &&str| {
            self.known.get(*name).is_some_and(|(asked, _)| asked.elapsed() < Self::FRESH)
        };
        let old =
            names.filter(|name| !name.is_empty()).take(Self::MOST).filter(|name| !fresh(name));
        let asked = join_all(old.map(|name| async move {
            let found = timeout(Self::PATIENCE, lookup_host((name, 0))).await;
            let found = found.ok().and_then(Result::ok);
            (name, found.map(|found| found.map(|address| address.ip()).collect::<Vec<_>>()))
        }))
        .await;
        for (name, found) in asked {
            let last = || self.known.remove(name).map(|(_, addresses)| addresses);
            let addresses = found.or_else(last).unwrap_or_default();
            self.known.insert(name.to_owned(), (Instant::now(), addresses));
        }
    }

    /// The addresses of a name; none where it never resolved.
    fn addresses(&self, name: &str) -> Vec<IpAddr> {
        self.known.get(name).map(|(_, addresses)| addresses.clone()).unwrap_or_default()
    }
}

/// Files of addresses, read when they change. One that cannot be read takes nobody from the list.
#[derive(Debug, Default)]
struct Files {
    known: HashMap<PathBuf, (Option<Version>, Vec<String>)>,
}

/// What changes with each change of a file.
type Version = (SystemTime, u64);

impl Files {
    /// The entries of a file, and why it cannot be read.
    fn read(&mut self, path: &Path) -> (&[String], Option<io::Error>) {
        let (version, entries) = self.known.entry(path.to_owned()).or_default();
        let changed = File::open(path).and_then(|file| {
            let about = file.metadata()?;
            let now = (about.modified()?, about.len());
            if *version == Some(now) {
                return Ok(None);
            }
            if about.len() > MAX_FILE {
                return Err(io::Error::other(format!("it is larger than {MAX_FILE} bytes")));
            }
            let mut text = Vec::new();
            file.take(MAX_FILE).read_to_end(&mut text)?;
            Ok(Some((now, String::from_utf8_lossy(&text).into_owned())))
        });
        let error = match changed {
            Ok(Some((now, text))) => {
                (*version, *entries) = (Some(now), self::entries(&text));
                None
            }
            Ok(None) => None,
            Err(error) => Some(error),
        };
        (entries, error)
    }
}

/// As fail2ban reads such a file: entries with blanks, commas or line ends between; `#` or `;` at the
/// beginning of one makes the rest of its line a comment.
fn entries(text: &str) -> Vec<String> {
    let of_line = |line| {
        let words = str::split(line, |c: char| c.is_whitespace() || c == ',');
        let words = words.filter(|word| !word.is_empty());
        words.take_while(|word| !word.starts_with(['#', ';'])).map(str::to_owned)
    };
    text.lines().flat_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Address;

    fn why(ignored: &Ignored, address: &str) -> Option<Because> {
        ignored.covers(Address::new(address).unwrap())
    }

    #[tokio::test]
    async fn what_is_in_ignoreip_its_names_and_files_the_settings_and_this_host() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("friends");
        std::fs::write(
            &path,
            "198.18.7.1, 198.18.7.16/28 # 198.18.7.99\n; 198.18.7.98\n198.18.7.2",
        )
        .unwrap();
        let never = vec![network("198.51.100.0/24").unwrap()];
        let mut exempt = Exempt::new(never, vec!["203.0.113.7".to_owned()], "localhost".to_owned());
        let entries = [format!("file:/{}", path.display()), "203.0.113.9".to_owned()];
        let (ignored, wrong) = exempt.of(&entries).await;
        assert_eq!(wrong, [""; 0]);
        let table = [
            ("198.18.7.1", Some(Because::Jail)),
            ("198.18.7.2", Some(Because::Jail)),
            ("198.18.7.20", Some(Because::Jail)),
            ("198.18.7.98", None),
            ("198.18.7.99", None),
            ("203.0.113.9", Some(Because::Jail)),
            ("203.0.113.7", Some(Because::Broker)),
            ("198.51.100.4", Some(Because::Settings)),
            ("127.0.0.1", Some(Because::Own)),
        ];
        for (address, because) in table {
            assert_eq!(why(&ignored, address), because, "{address}");
        }
        // It changes; it is gone, and the last that it said still counts.
        std::fs::write(&path, "198.18.7.1").unwrap();
        let (ignored, _) = exempt.of(&entries).await;
        assert_eq!(why(&ignored, "198.18.7.2"), None);
        std::fs::remove_file(&path).unwrap();
        let (ignored, wrong) = exempt.of(&entries).await;
        assert_eq!(why(&ignored, "198.18.7.1"), Some(Because::Jail));
        assert!(wrong[0].starts_with("cannot read /"), "{wrong:?}");
    }

    #[test]
    fn an_entry_may_name_a_file() {
        let table = [
            ("file:/etc/friends", Some("/etc/friends")),
            ("file:///etc/friends", Some("/etc/friends")),
            ("file://etc/friends", Some("/etc/friends")),
            ("files.example", None),
            ("/etc/friends", None),
        ];
        for (entry, path) in table {
            assert_eq!(file(entry), path.map(PathBuf::from), "{entry}");
        }
    }

    #[tokio::test]
    async fn a_name_stands_for_its_addresses_and_one_that_does_not_resolve_for_none() {
        let mut names = Names::default();
        names.refresh(["localhost", "no.such.host.invalid"].into_iter()).await;
        let addresses = names.addresses("localhost");
        assert!(!addresses.is_empty() && addresses.iter().all(IpAddr::is_loopback));
        assert!(names.addresses("no.such.host.invalid").is_empty());
    }

    #[test]
    fn this_host_s_own_addresses_are_known() {
        assert!(own_addresses().iter().any(IpAddr::is_loopback));
    }
}
