//! A local user plants files at the reporter's paths that an action configures: a SQLite journal that names a file to
//! delete, a FIFO without a reader, a symbolic link. The reporter deletes nothing and does not hang.

use std::path::Path;

use crate::support::reports::jail_reports;
use crate::support::{Rig, eventually};

const CALL: &str = "/etc/fail2ban/action.d/fail2ban-abuseipdb.sh";
const LOG: &str = "/var/log/abuseipdb/abuseipdb.log";

#[test]
fn planted_files_cause_no_deletion_and_no_hang() {
    let rig = Rig::fleet(&["a"]);
    let a = rig.host("a");
    let hot = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/hot.py");
    a.push(&hot, "/srv/hot.py");
    a.sh("umask 077; echo APIKEY=$(printf 'a1%.0s' $(seq 40)) >/etc/fail2ban/abuseipdb.apikey
          useradd eve; install -d -m 0755 -o eve /srv/eve; echo precious >/root/victim
          setpriv --reuid eve --clear-groups --regid eve sh -c \
            'python3 /srv/hot.py /srv/eve /root/victim; mkfifo -m 0666 /srv/eve/fifo; ln -s /root/victim /srv/eve/link'
          mkfifo /srv/fifo; ln -s /root/victim /srv/link");
    let places = [
        ("/srv/eve/db", LOG, "/srv/eve belongs to the user with UID"),
        ("/srv/eve/new/db", LOG, "/srv/eve belongs to the user with UID"),
        ("/srv/fifo", LOG, "not a regular file but a FIFO"),
        ("/srv/link", LOG, "Too many levels of symbolic links"),
        ("''", "/srv/eve/fifo", "/srv/eve belongs to the user with UID"),
        ("''", "/srv/fifo", "not a regular file but a FIFO"),
        ("''", "/srv/eve/link", "/srv/eve belongs to the user with UID"),
    ];
    for (database, log, cause) in places {
        let call = format!("timeout 20 {CALL} --actionstart {database} {log}");
        let failed = a.run(&call);
        assert_eq!(failed.status.code(), Some(1), "{call}: {failed:?}");
        // A call for a ban with such a path also ends.
        a.sh(&format!("timeout 20 {CALL} '' x 192.31.196.9 18 600 0 0 {database} {log} 3"));
        eventually(cause, || {
            a.sh(&format!("cat {LOG} 2>/dev/null; journalctl -o cat --no-pager"))
                .lines()
                .any(|line| line.contains("Initialization failed!") && line.contains(cause))
        });
    }
    // The daemon also meets the planted files.
    eventually("the reports wait", || {
        a.sh(&format!("cat {LOG}")).contains("waits: cannot open /srv/eve/db: ")
    });
    assert_eq!(a.sh("cat /root/victim"), "precious");
    a.sh("test -e /srv/eve/db-journal && test ! -e /srv/eve/new");
    // check reports a jail with such paths, and the fix.
    jail_reports(a, "sqlite_db=/srv/eve/db, log_file=/srv/eve/link");
    eventually("check names both", || {
        let text = String::from_utf8(a.run("f2bmqtt check").stdout).unwrap();
        text.contains(
            "✗ the reporter cannot use /srv/eve/db: /srv/eve belongs to the user with UID",
        ) && text.contains("chown root:root /srv/eve")
            && text
                .contains("✗ the reporter cannot use /srv/eve/link: /srv/eve belongs to the user")
    });
    assert_eq!(a.sh("timeout 20 fail2ban-client ping"), "Server replied: pong");
    // The planted journal does delete the file if SQLite opens the database.
    a.sh("python3 -c \"import sqlite3; sqlite3.connect('/srv/eve/db').execute('SELECT * FROM banned_ips')\"; test ! -e /root/victim");
}
