//! Publishes the operator's bans in a jail whose actions do not call notify.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::error::Error;
use crate::fail2ban::Client;
use crate::fail2ban::database::Database;
use crate::model::address_map::AddressMap;
use crate::model::{Address, Jail};
use crate::spool::notify;
use crate::spool::notify::NotifyCall;
use crate::store::reader;
use crate::sys::clock::now_secs;
use crate::sys::paths::Paths;

/// How long fail2ban may take to write the row of a new ban.
const ROW_TIMEOUT: Duration = Duration::from_secs(5);

/// How far a row's `timeofban` may precede the attempt, in seconds, because both are rounded.
const START_TOLERANCE_SECS: i64 = 2;

/// Whether an action of the jail calls notify.
///
/// # Errors
/// Any of [`crate::error::Fail2banError`].
pub(super) async fn is_shared(
    fail2ban: &mut Client,
    jail: &Jail,
) -> Result<bool, crate::error::Fail2banError> {
    for action in fail2ban.actions(jail).await? {
        match fail2ban.property(jail, &action, "actionban").await {
            Ok(text) if notify::is_called_by(&text) => return Ok(true),
            Ok(_) | Err(crate::error::Fail2banError::Rejected { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// The addresses among these that the operator banned with fail2ban-client: neither detected (R6) nor imported (R9).
///
/// # Errors
/// Any of [`crate::error::Fail2banError`], or [`Error::Failed`].
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
    let mut by_hand: Vec<Address> = addresses.iter().copied().collect();
    let rows = database
        .rows(jail, &by_hand)
        .map_err(|error| Error::Failed(format!("cannot read fail2ban's database: {error}")))?;
    let store = paths.store();
    let imports = reader::imports(&store, jail, addresses).map_err(|error| {
        Error::Failed(format!("cannot read the state database {}: {error}", store.display()))
    })?;
    by_hand.retain(|address| {
        rows.get(*address).is_some_and(|row| row.failures == 0) && !imports.contains(address)
    });
    Ok(by_hand.into_iter().collect())
}

/// Publishes existing bans with the current time: a detection that is newer than fail2ban's row is a local ban (R10).
///
/// # Errors
/// [`Error::Usage`] from notify, never for valid addresses.
pub(super) fn notify_fleet_now(
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
    let call = NotifyCall {
        jail: jail.as_str(),
        address: &address.to_string(),
        bantime: &bantime.to_string(),
        action: "ban",
        restored: "0",
        failures: &failures.to_string(),
        time: &time.to_string(),
    };
    notify::run(&call, paths)
}

/// Publishes bans that were made at or after `since` (seconds since 1970), with their bantime and number of failures.
///
/// # Errors
/// Any [`Error`] of fail2ban; [`Error::Usage`] from notify, never for valid addresses.
pub(super) async fn notify_fleet(
    fail2ban: &mut Client,
    jail: &Jail,
    new: &BTreeSet<Address>,
    held: &AddressMap<Option<i64>>,
    (since, failures): (i64, usize),
    paths: &Paths,
) -> Result<(), Error> {
    let mut database = Database::new(fail2ban.database().await?);
    let until = Instant::now() + ROW_TIMEOUT;
    for address in new {
        // The event carries the start that fail2ban's row has, so that snapshot and event agree.
        let time = loop {
            let rows = database.rows(jail, &[*address]).unwrap_or_default();
            // The row of an older ban stays until fail2ban replaces it.
            match rows.get(*address).filter(|row| row.timeofban >= since - START_TOLERANCE_SECS) {
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
