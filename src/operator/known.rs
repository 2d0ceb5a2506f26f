//! Whether a jail or a host that an operator names exists: a name that does not is an error, not an empty result.

use std::collections::BTreeSet;

use super::view::FleetView;
use crate::error::Error;
use crate::text::{list, sanitize};
use crate::wire::{HostName, Jail};

/// The most names that an error lists.
const MAX_NAMED: usize = 20;

/// Checks a jail: some host of the fleet has it, or bans in it; or this host's fail2ban has it.
///
/// # Errors
/// [`Error::Failed`], with the jails that exist.
pub(super) fn jail(jail: &Jail, view: &FleetView, here: &BTreeSet<Jail>) -> Result<(), Error> {
    let mut jails = view.all_jails();
    jails.extend(here);
    is_known(jail, "jail", &jails, |jail| jail.as_str())
}

/// Checks a host: the broker keeps something of it.
///
/// # Errors
/// [`Error::Failed`], with the hosts that exist.
pub(super) fn host(host: &HostName, view: &FleetView) -> Result<(), Error> {
    is_known(host, "host", &view.hosts().keys().collect(), |host| host.as_str())
}

fn is_known<'a, T: Ord + std::fmt::Display>(
    name: &T,
    kind: &str,
    known: &BTreeSet<&'a T>,
    text: impl Fn(&'a T) -> &'a str,
) -> Result<(), Error> {
    // Without any known name, the view is empty, and proves nothing.
    if known.is_empty() || known.contains(name) {
        return Ok(());
    }
    let names: Vec<String> = known.iter().map(|one| sanitize(text(one)).into_owned()).collect();
    let more = names.len().saturating_sub(MAX_NAMED);
    let shown = list(&names[..names.len() - more]);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Err(Error::Failed(format!("no such {kind}: {name}; the fleet has {shown}{more}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_exist_are_listed_for_one_that_does_not() {
        let mut view = FleetView::default();
        view.apply_raw("host/web1", br#"{"v":1,"state":"online","jails":["sshd"]}"#);
        let bans = br#"{"v":1,"host":"web2","stamp":5,"part":0,"parts":1,"bans":[["mail","192.0.2.1",0,600]]}"#;
        view.apply_raw("state/web2/0", bans);
        let name = |name: &str| Jail::new(name).unwrap();
        let here = [name("recidive")].into();
        for known in ["sshd", "mail", "recidive"] {
            assert!(jail(&name(known), &view, &here).is_ok(), "{known}");
        }
        let error = jail(&name("nope"), &view, &here).unwrap_err();
        assert_eq!(error.to_string(), "no such jail: nope; the fleet has mail, recidive and sshd");
        assert_eq!(error.exit_code(), 1);
        let of = |name: &str| host(&HostName::new(name).unwrap(), &view);
        assert!(of("web1").is_ok() && of("web2").is_ok());
        assert_eq!(
            of("web9").unwrap_err().to_string(),
            "no such host: web9; the fleet has web1 and web2"
        );
        assert!(
            host(&HostName::new("web9").unwrap(), &FleetView::default()).is_ok(),
            "nothing is known"
        );
    }
}
