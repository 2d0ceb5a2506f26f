//! What the first layout of the database held: one table of imports, with the words on each.

use rusqlite::Connection;
use serde_json::{Map, Value};

use super::{key, write};
use crate::fleet::Record;
use crate::fleet::marks::{Import, ImportSource, ImportSources};
use crate::wire::{Ban, HostName};

/// `words` is `{"web1":[stamp,heard,start,bantime],"web2":[stamp,heard]}`.
const IMPORTS: &str = "SELECT jail, ip, mark, words FROM imports";

/// Takes it over. When the imports were made is not known: they fit any row.
pub(super) fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    let tables = "SELECT count(*) FROM sqlite_master WHERE name = 'imports'";
    if connection.query_row(tables, [], |row| row.get::<_, i64>(0))? == 0 {
        return Ok(());
    }
    let transaction = connection.transaction()?;
    {
        let mut query = transaction.prepare(IMPORTS)?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let (mark, words): (String, String) = (row.get(2)?, row.get(3)?);
            let Some(key) = key(row)? else { continue };
            for (host, start) in scripts(&words) {
                write(&transaction, &Record::LegacyClaim(key.clone(), host, Some(start)))?;
            }
            if mark != "heard" {
                let claims = claims(&words);
                let (asked, answered, bantime) = (0, i64::MAX - 1, -1);
                let done = mark == "done";
                let mark = Import {
                    is_applied: done,
                    requested_at: asked,
                    confirmed_at: answered,
                    bantime,
                    row_seen: false,
                    sources: claims,
                    jail_epoch: None,
                };
                write(&transaction, &Record::Import(key, Some(mark)))?;
            }
        }
    }
    transaction.execute_batch("DROP TABLE imports")?;
    transaction.commit()
}

/// The claims in what was kept: host, stamp, when it was heard, and the ban.
fn words(text: &str) -> Vec<(HostName, i64, i64, Ban)> {
    let object: Map<String, Value> = serde_json::from_str(text).unwrap_or_default();
    let word = |(host, value): (String, Value)| {
        let numbers: Option<Vec<i64>> = value.as_array()?.iter().map(Value::as_i64).collect();
        match *numbers?.as_slice() {
            [stamp, heard, start, bantime] => {
                Some((HostName::new(&host).ok()?, stamp, heard, Ban { start, bantime }))
            }
            _ => None,
        }
    };
    object.into_iter().filter_map(word).collect()
}

fn claims(text: &str) -> ImportSources {
    let stamped = words(text).into_iter().filter(|(_, stamp, ..)| *stamp > 0);
    let claim = |(host, stamp, _, ban)| ImportSource { host, stamp, ban, unbans: None };
    stamped.map(claim).collect()
}

fn scripts(text: &str) -> impl Iterator<Item = (HostName, i64)> {
    let scripts = words(text).into_iter().filter(|(_, stamp, ..)| *stamp == 0);
    scripts.map(|(host, _, heard, _)| (host, heard))
}
