//! Resolves exempt names. A slow or unreachable name server neither removes a name from the list nor delays bans
//! without names: lookups run in the background, one per name.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::net::lookup_host;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// How long an answer is valid, and when a lookup without an answer is repeated.
const ANSWER_TTL: Duration = Duration::from_mins(1);
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// How long a request waits for names that are looked up for the first time. Later answers count for the next request.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// The most concurrent lookups. The runtime has few threads for them, and the broker's name needs one, too.
const MAX_LOOKUPS: usize = 2;

/// The most names of a list that are looked up; a longer list is a mistake.
pub(in crate::guard) const MAX_NAMES: usize = 500;

/// The result of a lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::guard) enum Resolution {
    /// The addresses of the last answer that had some.
    Addresses(Vec<IpAddr>),
    /// An authoritative answer: the name has no address.
    None(String),
    /// The resolver did not answer, or could not: the cause.
    Unknown(String),
}

/// The state of a name.
#[derive(Debug)]
struct NameEntry {
    resolution: Resolution,
    /// When the last lookup started or ended.
    looked_up_at: Instant,
    is_pending: bool,
}

impl NameEntry {
    /// Records an answer. A name that had addresses keeps them until a lookup returns others.
    fn update(&mut self, answer: io::Result<Vec<IpAddr>>) {
        self.is_pending = false;
        self.looked_up_at = Instant::now();
        let answer = match answer {
            Ok(addresses) if !addresses.is_empty() => Resolution::Addresses(addresses),
            Ok(_) => Resolution::None("the name has no address".to_owned()),
            Err(error) => unresolved(&error.to_string()),
        };
        let had_addresses = matches!(self.resolution, Resolution::Addresses(_));
        if !had_addresses || matches!(answer, Resolution::Addresses(_)) {
            self.resolution = answer;
        }
    }

    fn is_due(&self) -> bool {
        let pause = if matches!(self.resolution, Resolution::Unknown(_)) {
            RETRY_PAUSE
        } else {
            ANSWER_TTL
        };
        !self.is_pending && self.looked_up_at.elapsed() >= pause
    }
}

/// What the resolver's error means. The standard library hands on only the text of getaddrinfo(3), which is
/// English here: this process never calls setlocale(3).
fn unresolved(error: &str) -> Resolution {
    /// Of `EAI_NONAME`, `EAI_NODATA` and `EAI_ADDRFAMILY` in glibc (`gai_strerror-strs.h`).
    const AUTHORITATIVE: [&str; 3] = [
        "Name or service not known",
        "No address associated with hostname",
        "Address family for hostname not supported",
    ];
    // `failed to lookup address information: Name or service not known`
    let cause = error.rsplit(": ").next().unwrap_or_default();
    if AUTHORITATIVE.contains(&cause) {
        Resolution::None("the name does not exist".to_owned())
    } else {
        Resolution::Unknown(cause.to_owned())
    }
}

/// The names and their lookups. Invariant: at most one lookup of a name runs at a time.
#[derive(Debug)]
pub(in crate::guard) struct Names {
    entries: Arc<Mutex<HashMap<String, NameEntry>>>,
    lookups: Arc<Semaphore>,
    first_wait: Duration,
}

impl Default for Names {
    fn default() -> Self {
        let lookups = Arc::new(Semaphore::new(MAX_LOOKUPS));
        Self { entries: Arc::default(), lookups, first_wait: FIRST_WAIT }
    }
}

impl Names {
    /// Names with another first wait.
    pub(in crate::guard) fn with_first_wait(first_wait: Duration) -> Self {
        Self { first_wait, ..Self::default() }
    }

    /// Names without a name server.
    #[cfg(test)]
    pub(in crate::guard) fn unanswered() -> Self {
        let lookups = Arc::new(Semaphore::new(0));
        Self { lookups, ..Self::with_first_wait(Duration::ZERO) }
    }

    /// Starts lookups of names without a valid answer. Waits only for new names, for a short time.
    pub(in crate::guard) async fn refresh(&self, names: impl IntoIterator<Item = &str>) {
        let mut first = Vec::new();
        for name in names.into_iter().collect::<HashSet<_>>() {
            let Some(is_new) = self.begin_lookup(name) else { continue };
            let (name, entries) = (name.to_owned(), Arc::clone(&self.entries));
            let lookups = Arc::clone(&self.lookups);
            let lookup = tokio::spawn(async move {
                let _permit = lookups.acquire().await;
                let answer = lookup_host((name.as_str(), 0)).await;
                let answer = answer.map(|found| found.map(|address| address.ip()).collect());
                if let Some(entry) = lock(&entries).get_mut(&name) {
                    entry.update(answer);
                }
            });
            first.extend(is_new.then_some(lookup));
        }
        if !first.is_empty() {
            let _ = timeout(self.first_wait, join_all(first)).await;
        }
    }

    /// Marks a name as pending if a lookup is due; then returns whether the name is new.
    fn begin_lookup(&self, name: &str) -> Option<bool> {
        let mut entries = lock(&self.entries);
        if let Some(entry) = entries.get_mut(name) {
            let is_due = entry.is_due();
            entry.is_pending |= is_due;
            return is_due.then_some(false);
        }
        let resolution = Resolution::Unknown("no name server answered".to_owned());
        let entry = NameEntry { resolution, looked_up_at: Instant::now(), is_pending: true };
        entries.insert(name.to_owned(), entry);
        Some(true)
    }

    /// The current result for a name.
    pub(in crate::guard) fn resolution(&self, name: &str) -> Resolution {
        let entries = lock(&self.entries);
        entries.get(name).map_or_else(
            || Resolution::Unknown("not resolved yet".to_owned()),
            |entry| entry.resolution.clone(),
        )
    }
}

/// Locks the table. Never hold the lock during a lookup.
fn lock(entries: &Mutex<HashMap<String, NameEntry>>) -> MutexGuard<'_, HashMap<String, NameEntry>> {
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_are_resolved_or_do_not_exist() {
        let names = Names::with_first_wait(Duration::from_secs(20));
        names.refresh(["localhost", "not a name"]).await;
        let Resolution::Addresses(addresses) = names.resolution("localhost") else { panic!() };
        assert!(!addresses.is_empty() && addresses.iter().all(IpAddr::is_loopback));
        assert_eq!(
            names.resolution("not a name"),
            Resolution::None("the name does not exist".to_owned())
        );
        assert!(matches!(names.resolution("another"), Resolution::Unknown(_)));
    }

    #[test]
    fn only_an_authoritative_answer_says_that_a_name_does_not_exist() {
        let table = [
            ("Name or service not known", true),
            ("No address associated with hostname", true),
            ("Temporary failure in name resolution", false),
            ("Non-recoverable failure in name resolution", false),
            ("System error", false),
        ];
        for (cause, none) in table {
            let resolution = unresolved(&format!("failed to lookup address information: {cause}"));
            assert_eq!(matches!(resolution, Resolution::None(_)), none, "{cause}");
            assert_eq!(resolution == Resolution::Unknown(cause.to_owned()), !none, "{cause}");
        }
    }

    #[test]
    fn name_that_had_addresses_keeps_them() {
        let resolution = Resolution::Unknown(String::new());
        let mut entry = NameEntry { resolution, looked_up_at: Instant::now(), is_pending: true };
        entry.update(Err(io::Error::other("failed: Name or service not known")));
        assert!(matches!(entry.resolution, Resolution::None(_)));
        entry.update(Err(io::Error::other("failed: Temporary failure in name resolution")));
        assert!(matches!(entry.resolution, Resolution::Unknown(_)));
        let addresses: Vec<IpAddr> = vec!["192.0.2.1".parse().unwrap()];
        entry.update(Ok(addresses.clone()));
        for error in ["failed: Name or service not known", "failed: x"] {
            entry.update(Err(io::Error::other(error)));
            assert_eq!(entry.resolution, Resolution::Addresses(addresses.clone()), "{error}");
        }
        entry.update(Ok(Vec::new()));
        assert_eq!(entry.resolution, Resolution::Addresses(addresses));
    }

    #[tokio::test(start_paused = true)]
    async fn name_without_an_answer_is_not_waited_for_twice() {
        let names = Names { first_wait: FIRST_WAIT, ..Names::unanswered() };
        let started = tokio::time::Instant::now();
        for _ in 0..2 {
            names.refresh(["localhost"]).await;
            assert!((FIRST_WAIT..2 * FIRST_WAIT).contains(&started.elapsed()));
        }
        assert!(matches!(names.resolution("localhost"), Resolution::Unknown(_)));
    }
}
