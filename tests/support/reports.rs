//! A host that reports to AbuseIPDB. The hub simulates api.abuseipdb.com under the real name, with a test CA in the
//! host's trust store. Documentation addresses are never reported, so tests use those of AS112 (192.31.196.0/24,
//! 192.175.48.0/24), which belong to no machine that a report could harm.

use std::path::Path;

use super::{Host, Rig, eventually};

/// The API key that the server accepts.
pub(crate) fn key() -> String {
    "a1".repeat(40)
}

/// Starts the server on the hub, and makes a host use and trust it.
pub(crate) fn reports_to_hub(rig: &Rig, host: Host<'_>) {
    let support = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support");
    let hub = rig.host("hub");
    for file in ["abuseipdb.py", "abuseipdb.sh"] {
        hub.push(&support.join(file), &format!("/root/{file}"));
    }
    hub.sh("sh /root/abuseipdb.sh");
    let ca = hub.sh("cat /root/ca.pem");
    host.sh(&format!(
        "echo '{ca}' >/usr/local/share/ca-certificates/tests.crt
         update-ca-certificates >/dev/null 2>&1
         echo '10.213.77.11 api.abuseipdb.com' >>/etc/hosts
         umask 077; echo APIKEY={} >/etc/fail2ban/abuseipdb.apikey",
        key()
    ));
    eventually("the server listens", || hub.try_sh("ss -ltn | grep -q :443").is_ok());
}

/// Makes the jail sshd report, with these settings of the action.
pub(crate) fn jail_reports(host: Host<'_>, settings: &str) {
    host.sh(&format!(
        "cat >/etc/fail2ban/jail.d/report.local <<'E'\n[sshd]\naction = %(action_)s\n         \
         %(action_abuseipdb)s[{settings}]\nE\nfail2ban-client reload --restart sshd"
    ));
}

/// The reports that the server accepted: address, categories, comment, time.
pub(crate) fn taken(rig: &Rig) -> Vec<[String; 4]> {
    let taken = rig.host("hub").sh("cat /root/api/taken 2>/dev/null; true");
    taken.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
