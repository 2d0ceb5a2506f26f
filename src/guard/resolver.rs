//! Collects the exempt addresses of a jail. The resolver collects them again at every request, because `ignoreip`, its
//! files and names, this host's network and the broker's address may change at any time.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use if_addrs::IfAddr;
use ipnet::{IpNet, Ipv4Net};

use super::ignorelist::names::{MAX_NAMES, Names, Resolution};
use super::ignorelist::{IgnoreList, IgnoreReason};
use crate::model::{Jail, network};
use crate::sys::peer_addresses::PeerAddresses;

const MAX_ADDRESS_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// The settings, and caches of names and files.
#[derive(Debug, Default)]
pub struct IgnoreListResolver {
    /// `MQTT_NEVER_BAN`.
    never_ban: Vec<IpNet>,
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
    pub fn new(never_ban: Vec<IpNet>, brokers: Vec<String>, own: String) -> Self {
        Self { never_ban, brokers, own, ..Self::default() }
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
        let (mut ignore_list, mut warnings) = (IgnoreList::default(), Vec::new());
        for network in &self.never_ban {
            ignore_list.add(*network, IgnoreReason::Settings);
        }
        for network in own_networks() {
            ignore_list.add(network, IgnoreReason::Own);
        }
        for address in self.peers.addresses() {
            ignore_list.add(IpNet::from(address), IgnoreReason::Broker);
        }
        let mut names = vec![(self.own.clone(), IgnoreReason::Own)];
        names.extend(self.brokers.iter().map(|broker| (broker.clone(), IgnoreReason::Broker)));
        for entry in entries.iter().map(|entry| entry.trim()) {
            let Some(path) = file_path(entry) else {
                add_entry(entry, IgnoreReason::Jail, &mut ignore_list, &mut names);
                continue;
            };
            let (entries, error) = self.files.read(&path);
            for entry in entries {
                add_entry(entry, IgnoreReason::Jail, &mut ignore_list, &mut names);
            }
            warnings.extend(error.map(|error| {
                format!("ignoreip of {jail}: cannot read {}: {error}", path.display())
            }));
        }
        names.retain(|(name, _)| !name.is_empty());
        if names.len() > MAX_NAMES {
            warnings.push(format!(
                "ignoreip of {jail}: limit of {MAX_NAMES} names reached; the remaining names exempt no \
                 address"
            ));
            names.truncate(MAX_NAMES);
        }
        self.names.refresh(names.iter().map(|(name, _)| name.as_str())).await;
        for (name, reason) in names {
            let resolution = self.names.resolution(&name);
            warnings.extend(name_warning(&name, reason, &resolution, jail));
            match resolution {
                Resolution::Addresses(addresses) => {
                    for address in addresses {
                        ignore_list.add(IpNet::from(address.to_canonical()), reason);
                    }
                }
                // Any address may be exempt by this name. A broker's address is known once it is connected.
                Resolution::Unknown(_) if reason == IgnoreReason::Jail => {
                    ignore_list.set_incomplete();
                }
                Resolution::None(_) | Resolution::Unknown(_) => {}
            }
        }
        (ignore_list, warnings)
    }
}

/// The warning about a name that does not resolve, with the consequence.
fn name_warning(
    name: &str,
    reason: IgnoreReason,
    resolution: &Resolution,
    jail: &Jail,
) -> Option<String> {
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
fn add_entry(
    entry: &str,
    reason: IgnoreReason,
    ignore_list: &mut IgnoreList,
    names: &mut Vec<(String, IgnoreReason)>,
) {
    match network(entry) {
        Some(network) => ignore_list.add(network, reason),
        None => names.push((entry.to_owned(), reason)),
    }
}

/// The file that an entry names: `file:/path`, also with two slashes more.
fn file_path(entry: &str) -> Option<PathBuf> {
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
            own.extend(subnet_edges(address.ip, address.netmask));
        }
    }
    own
}

/// The network and broadcast addresses of a subnet; a /31 or /32 has none (RFC 3021).
fn subnet_edges(address: Ipv4Addr, mask: Ipv4Addr) -> Vec<IpNet> {
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
    entries_by_path: HashMap<PathBuf, (Option<Version>, Vec<String>)>,
}

/// Modification time and size, which identify the version of a file.
type Version = (SystemTime, u64);

impl Files {
    /// The entries of a file, and why it cannot be read.
    fn read(&mut self, path: &Path) -> (&[String], Option<io::Error>) {
        let (version, entries) = self.entries_by_path.entry(path.to_owned()).or_default();
        let changed = File::open(path).and_then(|file| {
            let metadata = file.metadata()?;
            let current = (metadata.modified()?, metadata.len());
            if *version == Some(current) {
                return Ok(None);
            }
            if metadata.len() > MAX_ADDRESS_FILE_BYTES {
                return Err(io::Error::other(format!(
                    "the file is larger than {} MiB",
                    MAX_ADDRESS_FILE_BYTES >> 20
                )));
            }
            let mut text = Vec::new();
            file.take(MAX_ADDRESS_FILE_BYTES).read_to_end(&mut text)?;
            Ok(Some((current, String::from_utf8_lossy(&text).into_owned())))
        });
        let error = match changed {
            Ok(Some((current, text))) => {
                (*version, *entries) = (Some(current), parse_entries(&text));
                None
            }
            Ok(None) => None,
            Err(error) => Some(error),
        };
        (entries, error)
    }
}

/// Parses such a file as fail2ban does: blanks, commas and line ends separate entries. An entry that starts with `#` or
/// `;` begins a comment, which ends with the line.
fn parse_entries(text: &str) -> Vec<String> {
    let mut entries = Vec::new();
    for line in text.lines() {
        let texts = line.split(|c: char| c.is_whitespace() || c == ',');
        let texts = texts.filter(|text| !text.is_empty());
        entries.extend(texts.take_while(|text| !text.starts_with(['#', ';'])).map(str::to_owned));
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Address;

    fn jail() -> Jail {
        Jail::new("sshd").unwrap()
    }

    fn lookup(ignore_list: &IgnoreList, address: &str) -> Option<IgnoreReason> {
        ignore_list.lookup(Address::new(address).unwrap())
    }

    #[tokio::test]
    async fn addresses_of_ignoreip_its_files_the_settings_the_broker_and_this_host_are_exempt() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("friends");
        std::fs::write(
            &path,
            "198.18.7.1, 198.18.7.16/28 # 198.18.7.99\n; 198.18.7.98\n198.18.7.2",
        )
        .unwrap();
        let never_ban = vec![network("198.51.100.0/24").unwrap()];
        let mut resolver = IgnoreListResolver::new(
            never_ban,
            vec!["203.0.113.7".to_owned()],
            "localhost".to_owned(),
        );
        let entries = [format!("file:/{}", path.display()), "203.0.113.9".to_owned()];
        let (ignore_list, warnings) = resolver.resolve(&jail(), &entries).await;
        assert_eq!(warnings, [""; 0]);
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
            assert_eq!(lookup(&ignore_list, address), reason, "{address}");
        }
        // The file changes. Then it is deleted, and its last entries stay exempt.
        std::fs::write(&path, "198.18.7.1").unwrap();
        let (ignore_list, _) = resolver.resolve(&jail(), &entries).await;
        assert_eq!(lookup(&ignore_list, "198.18.7.2"), None);
        std::fs::remove_file(&path).unwrap();
        let (ignore_list, warnings) = resolver.resolve(&jail(), &entries).await;
        assert_eq!(lookup(&ignore_list, "198.18.7.1"), Some(IgnoreReason::Jail));
        assert!(warnings[0].starts_with("ignoreip of sshd: cannot read /"), "{warnings:?}");
    }

    #[test]
    fn entry_with_the_prefix_names_a_file() {
        let table = [
            ("file:/etc/friends", Some("/etc/friends")),
            ("file:///etc/friends", Some("/etc/friends")),
            ("file://etc/friends", Some("/etc/friends")),
            ("files.example", None),
            ("/etc/friends", None),
        ];
        for (entry, path) in table {
            assert_eq!(file_path(entry), path.map(PathBuf::from), "{entry}");
        }
    }

    #[tokio::test]
    async fn unresolved_name_in_ignoreip_exempts_every_address() {
        let broker = "broker of no answer".to_owned();
        let mut resolver = IgnoreListResolver::new(Vec::new(), vec![broker], String::new());
        resolver.names = Names::unanswered();
        let (ignore_list, warnings) =
            resolver.resolve(&jail(), &["friend.example".to_owned()]).await;
        assert_eq!(lookup(&ignore_list, "198.18.7.1"), Some(IgnoreReason::Unresolved));
        assert_eq!(lookup(&ignore_list, "127.0.0.1"), Some(IgnoreReason::Own));
        assert!(warnings.iter().any(|text| text.contains("friend.example")), "{warnings:?}");
        assert!(warnings.iter().any(|text| text.contains("the broker's name")), "{warnings:?}");
        // An unresolved name of the broker exempts no address.
        let (ignore_list, _) = resolver.resolve(&jail(), &[]).await;
        assert_eq!(lookup(&ignore_list, "198.18.7.1"), None);
    }

    #[tokio::test]
    async fn address_of_a_connected_broker_is_exempt() {
        let peers = PeerAddresses::default();
        let mut resolver = IgnoreListResolver::default().with_peers(peers.clone());
        peers.record("203.0.113.7".parse().unwrap());
        let (ignore_list, _) = resolver.resolve(&jail(), &[]).await;
        assert_eq!(lookup(&ignore_list, "203.0.113.7"), Some(IgnoreReason::Broker));
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
            assert_eq!(name_warning("x", reason, &resolution, &jail()).unwrap_or_default(), text);
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
            let edges = subnet_edges(address.parse().unwrap(), mask.parse().unwrap());
            let edges: Vec<_> = edges.iter().map(ToString::to_string).collect();
            assert_eq!(edges, expected, "{address} {mask}");
        }
    }

    #[test]
    fn own_addresses_include_loopback() {
        assert!(own_addresses().iter().any(IpAddr::is_loopback));
    }
}
