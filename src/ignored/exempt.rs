//! Collects the exempt addresses of a jail. It does so at every request, because `ignoreip`, its files and names, this
//! host's network and the broker's address may have changed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use if_addrs::IfAddr;
use ipnet::{IpNet, Ipv4Net};

use super::names::{MAX_NAMES, Names, Resolution};
use super::{IgnoreList, IgnoreReason, network};
use crate::broker::PeerAddresses;
use crate::wire::Jail;

/// The largest address file, in bytes.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// The settings, and caches of names and files.
#[derive(Debug, Default)]
pub struct IgnoreListResolver {
    /// `MQTT_NEVER_BAN`.
    never: Vec<IpNet>,
    /// The brokers' names or addresses.
    brokers: Vec<String>,
    /// The addresses of connected brokers, exempt whatever the resolver returns.
    peers: PeerAddresses,
    /// This host's name.
    own: String,
    names: Names,
    files: Files,
}

impl IgnoreListResolver {
    /// A resolver for a host of this name with these settings.
    #[must_use]
    pub fn new(never: Vec<IpNet>, brokers: Vec<String>, own: String) -> Self {
        Self { never, brokers, own, ..Self::default() }
    }

    /// Also exempts the brokers that a link was connected to.
    #[must_use]
    pub fn with_peers(self, peers: PeerAddresses) -> Self {
        Self { peers, ..self }
    }

    /// A resolver without settings, for a caller that can wait for names.
    #[must_use]
    pub fn patient(first_wait: Duration) -> Self {
        Self { names: Names::with_first_wait(first_wait), ..Self::default() }
    }

    /// The exempt addresses of a jail with these entries in `ignoreip`, and warnings.
    pub async fn resolve(&mut self, jail: &Jail, entries: &[String]) -> (IgnoreList, Vec<String>) {
        let (mut ignored, mut wrong) = (IgnoreList::default(), Vec::new());
        for network in &self.never {
            ignored.add(*network, IgnoreReason::Settings);
        }
        for network in own_networks() {
            ignored.add(network, IgnoreReason::Own);
        }
        for address in self.peers.addresses() {
            ignored.add(IpNet::from(address), IgnoreReason::Broker);
        }
        let mut names = vec![(self.own.clone(), IgnoreReason::Own)];
        names.extend(self.brokers.iter().map(|broker| (broker.clone(), IgnoreReason::Broker)));
        for entry in entries.iter().map(|entry| entry.trim()) {
            let Some(path) = file(entry) else {
                sort(entry, IgnoreReason::Jail, &mut ignored, &mut names);
                continue;
            };
            let (entries, error) = self.files.read(&path);
            for entry in entries {
                sort(entry, IgnoreReason::Jail, &mut ignored, &mut names);
            }
            wrong.extend(error.map(|error| {
                format!("ignoreip of {jail}: cannot read {}: {error}", path.display())
            }));
        }
        names.retain(|(name, _)| !name.is_empty());
        if names.len() > MAX_NAMES {
            wrong.push(format!(
                "ignoreip of {jail}: limit of {MAX_NAMES} names reached; the remaining names exempt no \
                 address"
            ));
            names.truncate(MAX_NAMES);
        }
        self.names.refresh(names.iter().map(|(name, _)| name.as_str())).await;
        for (name, reason) in names {
            let resolution = self.names.resolution(&name);
            wrong.extend(fault(&name, reason, &resolution, jail));
            match resolution {
                Resolution::Addresses(addresses) => {
                    for address in addresses {
                        ignored.add(IpNet::from(address.to_canonical()), reason);
                    }
                }
                // Any address may be exempt by this name. A broker's address is known once it is connected.
                Resolution::Unknown(_) if reason == IgnoreReason::Jail => ignored.set_incomplete(),
                Resolution::None(_) | Resolution::Unknown(_) => {}
            }
        }
        (ignored, wrong)
    }
}

/// The warning about a name that does not resolve, with the consequence.
fn fault(name: &str, reason: IgnoreReason, resolution: &Resolution, jail: &Jail) -> Option<String> {
    match (reason, resolution) {
        (_, Resolution::Addresses(_)) | (IgnoreReason::Own, _) => None,
        (IgnoreReason::Jail, Resolution::Unknown(why)) => Some(format!(
            "ignoreip of {jail}: cannot resolve {name}: {why}; no bans are imported into {jail} until \
             the name resolves"
        )),
        (IgnoreReason::Jail, Resolution::None(why)) => {
            Some(format!("ignoreip of {jail}: cannot resolve {name}: {why}; it exempts no address"))
        }
        (_, Resolution::Unknown(why) | Resolution::None(why)) => Some(format!(
            "cannot resolve the broker's name {name}: {why}; its address is exempt only once this host \
             is connected to it"
        )),
    }
}

/// Adds an entry to the addresses or to the names.
fn sort(
    entry: &str,
    reason: IgnoreReason,
    ignored: &mut IgnoreList,
    names: &mut Vec<(String, IgnoreReason)>,
) {
    match network(entry) {
        Some(network) => ignored.add(network, reason),
        None => names.push((entry.to_owned(), reason)),
    }
}

/// The file that an entry names: `file:/path`, also with two slashes more.
fn file(entry: &str) -> Option<PathBuf> {
    let path = entry.strip_prefix("file:")?;
    Some(Path::new("/").join(path.trim_start_matches('/')))
}

/// The addresses of this host's interfaces; none if the system does not list them.
#[must_use]
pub fn own_addresses() -> Vec<IpAddr> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    interfaces.iter().map(if_addrs::Interface::ip).collect()
}

/// The addresses of this host: those of its interfaces, and the network and broadcast addresses of
/// their IPv4 subnets, to which this host answers as well.
fn own_networks() -> Vec<IpNet> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    let mut own = Vec::new();
    for interface in interfaces {
        own.push(IpNet::from(interface.ip().to_canonical()));
        if let IfAddr::V4(address) = interface.addr {
            own.extend(edges(address.ip, address.netmask));
        }
    }
    own
}

/// The network and broadcast addresses of a subnet; a /31 or /32 has none (RFC 3021).
fn edges(address: Ipv4Addr, mask: Ipv4Addr) -> Vec<IpNet> {
    match Ipv4Net::with_netmask(address, mask) {
        Ok(subnet) if subnet.prefix_len() < 31 => {
            [subnet.network(), subnet.broadcast()].map(|edge| IpNet::from(IpAddr::V4(edge))).into()
        }
        _ => Vec::new(),
    }
}

/// Address files, read when they change. The entries of a file that becomes unreadable stay exempt.
#[derive(Debug, Default)]
struct Files {
    known: HashMap<PathBuf, (Option<Version>, Vec<String>)>,
}

/// Modification time and size, which identify the version of a file.
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
                return Err(io::Error::other(format!(
                    "the file is larger than {} MiB",
                    MAX_FILE >> 20
                )));
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
        let entries = str::split(line, |c: char| c.is_whitespace() || c == ',');
        let entries = entries.filter(|word| !word.is_empty());
        entries.take_while(|word| !word.starts_with(['#', ';'])).map(str::to_owned)
    };
    text.lines().flat_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Address;

    fn jail() -> Jail {
        Jail::new("sshd").unwrap()
    }

    fn why(ignored: &IgnoreList, address: &str) -> Option<IgnoreReason> {
        ignored.lookup(Address::new(address).unwrap())
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
        let mut exempt =
            IgnoreListResolver::new(never, vec!["203.0.113.7".to_owned()], "localhost".to_owned());
        let entries = [format!("file:/{}", path.display()), "203.0.113.9".to_owned()];
        let (ignored, wrong) = exempt.resolve(&jail(), &entries).await;
        assert_eq!(wrong, [""; 0]);
        let table = [
            ("198.18.7.1", Some(IgnoreReason::Jail)),
            ("198.18.7.2", Some(IgnoreReason::Jail)),
            ("198.18.7.20", Some(IgnoreReason::Jail)),
            ("198.18.7.98", None),
            ("198.18.7.99", None),
            ("203.0.113.9", Some(IgnoreReason::Jail)),
            ("203.0.113.7", Some(IgnoreReason::Broker)),
            ("198.51.100.4", Some(IgnoreReason::Settings)),
            ("127.0.0.1", Some(IgnoreReason::Own)),
        ];
        for (address, reason) in table {
            assert_eq!(why(&ignored, address), reason, "{address}");
        }
        // It changes; it is gone, and the last that it said still counts.
        std::fs::write(&path, "198.18.7.1").unwrap();
        let (ignored, _) = exempt.resolve(&jail(), &entries).await;
        assert_eq!(why(&ignored, "198.18.7.2"), None);
        std::fs::remove_file(&path).unwrap();
        let (ignored, wrong) = exempt.resolve(&jail(), &entries).await;
        assert_eq!(why(&ignored, "198.18.7.1"), Some(IgnoreReason::Jail));
        assert!(wrong[0].starts_with("ignoreip of sshd: cannot read /"), "{wrong:?}");
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
    async fn unresolved_name_of_a_jail_holds_every_address_back() {
        let broker = "broker of no answer".to_owned();
        let mut exempt = IgnoreListResolver::new(Vec::new(), vec![broker], String::new());
        exempt.names = Names::unanswered();
        let (ignored, wrong) = exempt.resolve(&jail(), &["friend.example".to_owned()]).await;
        assert_eq!(why(&ignored, "198.18.7.1"), Some(IgnoreReason::Unresolved));
        assert_eq!(why(&ignored, "127.0.0.1"), Some(IgnoreReason::Own));
        assert!(wrong.iter().any(|text| text.contains("friend.example")), "{wrong:?}");
        assert!(wrong.iter().any(|text| text.contains("the broker's name")), "{wrong:?}");
        // Without it, the broker's name alone holds nothing back.
        let (ignored, _) = exempt.resolve(&jail(), &[]).await;
        assert_eq!(why(&ignored, "198.18.7.1"), None);
    }

    #[tokio::test]
    async fn connected_broker_is_exempt_whatever_its_name_stands_for() {
        let peers = PeerAddresses::default();
        let mut exempt = IgnoreListResolver::default().with_peers(peers.clone());
        peers.record("203.0.113.7".parse().unwrap());
        let (ignored, _) = exempt.resolve(&jail(), &[]).await;
        assert_eq!(why(&ignored, "203.0.113.7"), Some(IgnoreReason::Broker));
    }

    #[test]
    fn each_fault_of_a_name_has_its_message() {
        use Resolution::{Addresses, None, Unknown};
        let table = [
            (IgnoreReason::Jail, Addresses(Vec::new()), ""),
            (
                IgnoreReason::Jail,
                None("the name does not exist".to_owned()),
                "ignoreip of sshd: cannot resolve x: the name does not exist; it exempts no address",
            ),
            (
                IgnoreReason::Jail,
                Unknown("why".to_owned()),
                "ignoreip of sshd: cannot resolve x: why; no bans are imported into sshd until the name resolves",
            ),
            (
                IgnoreReason::Broker,
                Unknown("why".to_owned()),
                "cannot resolve the broker's name x: why; its address is exempt only once this host is \
              connected to it",
            ),
            (IgnoreReason::Own, Unknown("why".to_owned()), ""),
        ];
        for (reason, resolution, text) in table {
            assert_eq!(fault("x", reason, &resolution, &jail()).unwrap_or_default(), text);
        }
    }

    #[test]
    fn subnet_has_a_network_and_a_broadcast_address() {
        let table: [(&str, &str, &[&str]); 4] = [
            ("192.0.2.77", "255.255.255.192", &["192.0.2.64/32", "192.0.2.127/32"]),
            ("192.0.2.77", "255.255.255.254", &[]),
            ("192.0.2.77", "255.255.255.255", &[]),
            ("192.0.2.77", "255.0.255.0", &[]),
        ];
        for (address, mask, expected) in table {
            let edges = edges(address.parse().unwrap(), mask.parse().unwrap());
            let edges: Vec<_> = edges.iter().map(ToString::to_string).collect();
            assert_eq!(edges, expected, "{address} {mask}");
        }
    }

    #[test]
    fn this_host_s_own_addresses_are_known() {
        assert!(own_addresses().iter().any(IpAddr::is_loopback));
    }
}
