//! A jail whose actions do not share its bans: what the operator bans in it is told all the same, as notify would.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::clock::now_secs;
use crate::error::Error;
use crate::fail2ban::database::Database;
use crate::fail2ban::table::AddressMap;
use crate::fail2ban::{self, Client};
use crate::notify::{self, NotifyCall};
use crate::operator::local;
use crate::paths::Paths;
use crate::wire::{Address, Jail};

/// fail2ban writes a ban down within a moment; what it has not written by then it never will.
const WRITTEN: Duration = Duration::from_secs(5);

/// Times are rounded, each its own way; in seconds.
const SLACK: i64 = 2;

/// Whether an action of the jail calls notify.
///
/// # Errors
/// Any of [`fail2ban::Error`].
pub(super) async fn is_done(
    fail2ban: &mut Client,
    jail: &Jail,
) -> Result<bool, fail2ban::Fail2banError> {
    for action in fail2ban.actions(jail).await? {
        match fail2ban.property(jail, &action, "actionban").await {
            Ok(text) if notify::is_called_by(&text) => return Ok(true),
            Ok(_) | Err(fail2ban::Fail2banError::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Those of some addresses that a jail bans because somebody banned them with fail2ban itself: nobody detected them, and
/// they are no import.
///
/// # Errors
/// Any of [`fail2ban::Error`], or [`Error::Undone`].
pub(super) async fn banned_by_hand(
    fail2ban: &mut Client,
    jail: &Jail,
    addresses: &BTreeSet<Address>,
    paths: &Paths,
) -> Result<BTreeSet<Address>, Error> {
    if addresses.is_empty() {
        return Ok(BTreeSet::new());
    }
    let mut database = Database::new(fail2ban.database().await?);
    let unread =
        |what: &str, error: rusqlite::Error| Error::Undone(format!("cannot read {what}: {error}"));
    let all: Vec<Address> = addresses.iter().copied().collect();
    let rows = database.rows(jail, &all).map_err(|error| unread("fail2ban's database", error))?;
    let imports = local::imports(&paths.store(), jail, addresses);
    let imports = imports.map_err(|error| unread(&paths.store().display().to_string(), error))?;
    let by_hand = |address: &Address| {
        rows.get(*address).is_some_and(|row| row.failures == 0) && !imports.contains(address)
    };
    Ok(all.into_iter().filter(by_hand).collect())
}

/// Tells of bans as if they were made just now: a detection that is newer than fail2ban's row is this host's own ban.
///
/// # Errors
/// [`Error::Usage`], which is none of the operator's.
pub(super) fn tell_now(
    jail: &Jail,
    addresses: &BTreeSet<Address>,
    held: &AddressMap<Option<i64>>,
    failures: usize,
    paths: &Paths,
) -> Result<(), Error> {
    addresses.iter().try_for_each(|address| {
        let bantime = held.get(*address).copied().flatten().unwrap_or(0);
        notify(jail, *address, bantime, failures, now_secs() + 1, paths)
    })
}

fn notify(
    jail: &Jail,
    address: Address,
    bantime: i64,
    failures: usize,
    time: i64,
    paths: &Paths,
) -> Result<(), Error> {
    let text = |number: i64| number.to_string();
    let call = NotifyCall {
        jail: jail.as_str(),
        address: &address.to_string(),
        bantime: &text(bantime),
        action: "ban",
        restored: "0",
        failures: &failures.to_string(),
        time: &text(time),
    };
    notify::run(&call, paths)
}

/// Tells of bans that were just made, since then in seconds since 1970: for so long, after so many failures.
///
/// # Errors
/// [`Error::Usage`], which is none of the operator's, or any of [`fail2ban::Error`].
pub(super) async fn tell(
    fail2ban: &mut Client,
    jail: &Jail,
    new: &BTreeSet<Address>,
    held: &AddressMap<Option<i64>>,
    (since, failures): (i64, usize),
    paths: &Paths,
) -> Result<(), Error> {
    let mut database = Database::new(fail2ban.database().await?);
    let until = Instant::now() + WRITTEN;
    for address in new {
        // Its start is to be the one that fail2ban goes on showing.
        let time = loop {
            let rows = database.rows(jail, &[*address]).unwrap_or_default();
            // An older ban's row stays until the new one's takes its place.
            match rows.get(*address).filter(|row| row.timeofban >= since - SLACK) {
                Some(row) => break row.timeofban,
                None if !database.exists() || Instant::now() > until => break now_secs(),
                None => sleep(Duration::from_millis(50)).await,
            }
        };
        let bantime = held.get(*address).copied().flatten().unwrap_or(0);
        notify(jail, *address, bantime, failures, time, paths)?;
    }
    Ok(())
}
