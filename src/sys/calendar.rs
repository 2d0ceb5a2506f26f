//! Converts times to text and back, with the calendar and time zone that `SQLite` has built in.

use rusqlite::Connection;

/// Converts seconds since 1970 to text and back.
#[derive(Debug)]
pub struct Calendar(Connection);

impl Calendar {
    /// Opens a database in memory.
    ///
    /// # Errors
    /// Any error of `SQLite`, such as too little memory.
    pub fn new() -> rusqlite::Result<Self> {
        Connection::open_in_memory().map(Self)
    }

    /// `2026-11-22 15:04:05`, in this host's time zone.
    #[must_use]
    pub fn local(&self, seconds: i64) -> String {
        self.query("SELECT strftime('%Y-%m-%d %H:%M:%S', ?1, 'unixepoch', 'localtime')", seconds)
            .unwrap_or_default()
    }

    /// `2026-11-22T14:04:05+00:00` (ISO 8601), as the API writes and reads it.
    #[must_use]
    pub fn iso(&self, seconds: i64) -> String {
        self.query("SELECT strftime('%Y-%m-%dT%H:%M:%S+00:00', ?1, 'unixepoch')", seconds)
            .unwrap_or_default()
    }

    /// The seconds since 1970 of a time in ISO 8601 with its zone; `None` if the text is no such time.
    #[must_use]
    pub fn read(&self, iso: &str) -> Option<i64> {
        self.query("SELECT CAST(strftime('%s', ?1) AS INTEGER)", iso)
    }

    fn query<T: rusqlite::types::FromSql>(
        &self,
        sql: &str,
        value: impl rusqlite::ToSql,
    ) -> Option<T> {
        let mut query = self.0.prepare_cached(sql).ok()?;
        query.query_row([value], |row| row.get::<_, Option<T>>(0)).ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_and_read_in_iso_8601() {
        let times = Calendar::new().unwrap();
        assert_eq!(times.iso(1_795_342_588), "2026-11-22T10:16:28+00:00");
        assert_eq!(times.read("2026-11-22T10:16:28+00:00"), Some(1_795_342_588));
        assert_eq!(times.read("2026-11-22T11:16:28+01:00"), Some(1_795_342_588));
        assert_eq!(times.read("yesterday"), None);
        assert_eq!(times.local(0).len(), "1970-01-01 00:00:00".len());
    }
}
