//! `f2bmqtt forget`: takes what a host that is gone for good left on the broker: its presence and its
//! snapshot. What it alone banned then ends on the others.

use std::time::{Duration, Instant};

use serde_json::json;

use super::out::{self, count};
use super::view::{Member, View};
use super::visit::{Message, Visit};
use crate::abuseipdb::service::now;
use crate::cli::operator::ForgetArgs;
use crate::config::Config;
use crate::error::Error;
use crate::journal::say;
use crate::runtime;
use crate::wire::Host;

/// What the broker took is heard within moments.
const PATIENCE: Duration = Duration::from_secs(5);

/// Forgets a host.
///
/// # Errors
/// Any [`Error`]
pub fn run(args: &ForgetArgs) -> Result<(), Error> {
    let host = Host::new(&args.host).map_err(|what| Error::Usage(format!("HOST {what}")))?;
    let config = Config::load()?;
    runtime::run(async {
        let mut visit = Visit::begin(&config).await?;
        // Parts of a snapshot that once was larger may be left, too.
        visit.look_into(&host).await?;
        let Some(member) = visit.view().hosts().get(&host) else {
            return Err(unknown(&host, visit.view()));
        };
        if member.is_online() && !args.yes {
            return Err(Error::Undone(format!(
                "{host} is connected, and would publish all anew: stop it first \
                 (systemctl disable --now f2bmqttsub there), or say --yes"
            )));
        }
        let bans = visit.view().banned(now());
        let alone = bans.iter().filter(|ban| ban.origin == host && ban.also.is_empty()).count();
        let topics = topics(&host, member);
        visit.publish(&topics).await?;
        let until = Instant::now() + PATIENCE;
        while visit.view().hosts().contains_key(&host) {
            if visit.listen(until).await?.is_none() {
                return Err(Error::Undone(format!(
                    "the broker still has what {host} left: its access rules may let {} write its own \
                     branch alone; run this with a login that may write {}",
                    config.node,
                    config.topic.below(&format!("state/{host}/#"))
                )));
            }
        }
        visit.end().await;
        if args.json {
            out::print_json(
                &json!({ "host": host.as_str(), "topics": topics.len(), "bans": alone }),
            );
        } else {
            let bans = count(alone, "ban");
            say(out::shown(&format!(
                "{host} is forgotten; {bans} that it alone had made end with it"
            )));
        }
        Ok(())
    })
}

fn unknown(host: &Host, view: &View) -> Error {
    let known: Vec<&str> = view.hosts().keys().map(Host::as_str).take(20).collect();
    let known = known.join(", ");
    Error::Undone(format!("the broker has nothing of {host}; it knows: {}", out::shown(&known)))
}

/// Everything of a host, part 0 last: without that one it counts as forgotten.
fn topics(host: &Host, member: &Member) -> Vec<Message> {
    let mut numbers: Vec<u32> = member.numbers().collect();
    numbers.sort_unstable_by_key(|number| std::cmp::Reverse(*number));
    let parts = numbers.into_iter().map(|number| format!("state/{host}/{number}"));
    let presence = member.presence().map(|_| format!("host/{host}"));
    presence.into_iter().chain(parts).map(Message::Clear).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_a_host_is_cleared_and_part_0_last() {
        let (mut view, host) = (View::default(), Host::new("web3").unwrap());
        view.hear("host/web3", br#"{"v":1,"state":"offline"}"#);
        for n in [0, 1, 7] {
            let parts = if n == 7 { 8 } else { 2 };
            let part = format!(r#"{{"v":1,"host":"web3","stamp":5,"part":{n},"parts":{parts}}}"#);
            view.hear(&format!("state/web3/{n}"), part.as_bytes());
        }
        let expected = ["host/web3", "state/web3/7", "state/web3/1", "state/web3/0"];
        let expected = expected.map(|topic| Message::Clear(topic.to_owned()));
        assert_eq!(topics(&host, &view.hosts()[&host]), expected);
        assert!(unknown(&host, &view).to_string().ends_with("it knows: web3"));
    }
}
