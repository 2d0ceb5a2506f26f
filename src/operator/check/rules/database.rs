//! Checks whether fail2ban's database is readable: every decision about a ban needs the database.

use std::path::Path;

use super::jails::RunningFail2ban;
use crate::fail2ban::database::Database;
use crate::operator::check::finding::Finding;

/// The result of a read of the database.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::operator::check) enum Contents {
    /// fail2ban keeps no database.
    Off,
    Missing,
    Unreadable(String),
    /// A text for each row that cannot be read.
    Readable(Vec<String>),
}

/// Reads all rows of the server's jails.
pub(in crate::operator::check) fn read(server: &RunningFail2ban) -> Contents {
    let Some(path) = &server.database else { return Contents::Off };
    let mut database = Database::new(Some(path.clone()));
    if !database.exists() {
        return Contents::Missing;
    }
    for jail in &server.jails {
        if let Err(error) = database.all(&jail.name) {
            return Contents::Unreadable(error.to_string());
        }
    }
    Contents::Readable(database.take_unreadable())
}

/// The findings about the database.
pub(in crate::operator::check) fn findings(
    path: Option<&Path>,
    contents: &Contents,
) -> Vec<Finding> {
    let path = path.unwrap_or(Path::new("")).display();
    let finding = match contents {
        Contents::Off => {
            let text =
                "fail2ban keeps no database (dbfile = None): it forgets its bans when it stops";
            Finding::warning("fail2ban_database", text).next(
                "remove the line dbfile from /etc/fail2ban/fail2ban.local\n\
                 then: systemctl restart fail2ban",
            )
        }
        Contents::Missing => {
            let text = format!("fail2ban's database {path} is missing: it was removed or moved");
            Finding::fault("fail2ban_database", text).next("systemctl restart fail2ban")
        }
        Contents::Unreadable(why) => {
            let text =
                format!("cannot read fail2ban's database {path}: {why}; the daemon postpones bans");
            Finding::fault("fail2ban_database", text).next(format!(
                "systemctl restart fail2ban\nif that does not help: sqlite3 {path} 'PRAGMA integrity_check'"
            ))
        }
        Contents::Readable(rows) if !rows.is_empty() => {
            let next = format!(
                "show the row: sqlite3 {path} \"SELECT * FROM bips WHERE ip = 'ADDRESS'\"\n\
                 remove the row: fail2ban-client unban ADDRESS"
            );
            let findings = rows
                .iter()
                .map(|row| Finding::warning("fail2ban_database", row.as_str()).next(&next));
            return findings.collect();
        }
        Contents::Readable(_) => {
            Finding::ok("fail2ban_database", format!("fail2ban's database {path} is readable"))
        }
    };
    vec![finding]
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::super::jails::RunningJail;
    use super::*;
    use crate::model::Jail;
    use crate::operator::check::finding::Status;

    #[test]
    fn unreadable_database_is_a_fault_and_invalid_row_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let jail = RunningJail {
            name: Jail::new("sshd").unwrap(),
            actions: Vec::new(),
            logs: Vec::new(),
            ignore_command: String::new(),
            ignoreip_faults: Vec::new(),
        };
        let mut server = RunningFail2ban { jails: vec![jail], ..RunningFail2ban::default() };
        let found = &findings(None, &read(&server))[0];
        let text = "fail2ban keeps no database (dbfile = None): it forgets its bans when it stops";
        assert_eq!((found.state, found.text.as_str()), (Status::Warning, text));
        server.database = Some(path.clone());
        // Each batch adds to the database; without one, it does not exist.
        let table = [
            ("", Status::Fault, "fail2ban's database DB is missing: it was removed or moved"),
            (
                "CREATE TABLE other(x)",
                Status::Fault,
                "cannot read fail2ban's database DB: no such table: bips",
            ),
            (
                "CREATE TABLE bips(ip, jail, timeofban, bantime, data);
                 INSERT INTO bips VALUES('192.0.2.1', 'sshd', 1000, 612.5, '{}')",
                Status::Ok,
                "fail2ban's database DB is readable",
            ),
            (
                "INSERT INTO bips VALUES('192.0.2.2', 'sshd', 1000, 'x', '{}')",
                Status::Warning,
                "skipped the ban of 192.0.2.2 in sshd",
            ),
        ];
        for (sql, state, text) in table {
            if !sql.is_empty() {
                Connection::open(&path).unwrap().execute_batch(sql).unwrap();
            }
            let found = findings(Some(&path), &read(&server));
            assert_eq!((found.len(), found[0].state), (1, state), "{found:?}");
            let text = text.replace("DB", path.to_str().unwrap());
            assert!(found[0].text.starts_with(&text), "{found:?}");
        }
    }
}
