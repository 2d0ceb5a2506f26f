//! Checks that a jail or a host exists: a misspelled name is an error, not an empty result.

use std::collections::BTreeSet;

use crate::broker::fleet_view::FleetView;
use crate::error::Error;
use crate::model::text::{list, sanitize};
use crate::model::{HostName, Jail};

/// The most names that an error lists.
const MAX_NAMES: usize = 20;

/// Checks a jail: some host of the fleet has it, or bans in it; or this host's fail2ban has it.
///
/// # Errors
/// [`Error::Failed`], with the jails that exist.
pub(super) fn check_jail(
    jail: &Jail,
    view: &FleetView,
    local_jails: &BTreeSet<Jail>,
) -> Result<(), Error> {
    let mut jails = view.all_jails();
    jails.extend(local_jails);
    check_name(jail, "jail", &jails, |jail| jail.as_str())
}

/// Checks a host: the broker keeps something of it.
///
/// # Errors
/// [`Error::Failed`], with the hosts that exist.
pub(super) fn check_host(host: &HostName, view: &FleetView) -> Result<(), Error> {
    check_name(host, "host", &view.hosts().keys().collect(), |host| host.as_str())
}

fn check_name<'a, T: Ord + std::fmt::Display>(
    name: &T,
    kind: &str,
    known: &BTreeSet<&'a T>,
    text: impl Fn(&'a T) -> &'a str,
) -> Result<(), Error> {
    // Without any known name, the view is empty, and proves nothing.
    if known.is_empty() || known.contains(name) {
        return Ok(());
    }
    let names: Vec<String> = known.iter().map(|name| sanitize(text(name)).into_owned()).collect();
    let more = names.len().saturating_sub(MAX_NAMES);
    let shown = list(&names[..names.len() - more]);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Err(Error::Failed(format!("no such {kind}: {name}; the fleet has {shown}{more}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Jail {
        Jail::new(name).unwrap()
    }

    fn find_host(name: &str, view: &FleetView) -> Result<(), Error> {
        check_host(&HostName::new(name).unwrap(), view)
    }

    #[test]
    fn names_that_exist_are_listed_for_one_that_does_not() {
        let mut view = FleetView::default();
        view.apply_raw("host/web1", br#"{"v":1,"state":"online","jails":["sshd"]}"#);
        let bans = br#"{"v":1,"host":"web2","stamp":5,"part":0,"parts":1,"bans":[["mail","192.0.2.1",0,600]]}"#;
        view.apply_raw("state/web2/0", bans);
        let local_jails = [named("recidive")].into();
        for known in ["sshd", "mail", "recidive"] {
            assert!(check_jail(&named(known), &view, &local_jails).is_ok(), "{known}");
        }
        let error = check_jail(&named("nope"), &view, &local_jails).unwrap_err();
        assert_eq!(error.to_string(), "no such jail: nope; the fleet has mail, recidive and sshd");
        assert_eq!(error.exit_code(), 1);
        assert!(find_host("web1", &view).is_ok() && find_host("web2", &view).is_ok());
        let error = find_host("web9", &view).unwrap_err();
        assert_eq!(error.to_string(), "no such host: web9; the fleet has web1 and web2");
        assert!(find_host("web9", &FleetView::default()).is_ok(), "nothing is known");
    }
}
