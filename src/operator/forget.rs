//! `f2bmqtt forget`: takes what a host that is gone for good left on the broker: its presence and its
//! snapshot. What it alone banned then ends on the others.

use std::time::{Duration, Instant, SystemTime};

use serde_json::json;

use super::out::{self, count};
use super::view::{Member, View};
use super::visit::{Message, Visit};
use crate::abuseipdb::service::now;
use crate::cli::operator::ForgetArgs;
use crate::config::Config;
use crate::error::Error;
use crate::figures::homeassistant;
use crate::journal::say;
use crate::outbox::millis;
use crate::paths::Paths;
use crate::runtime;
use crate::wire::{Host, Part, Slice};

/// What the broker took is heard within moments.
const PATIENCE: Duration = Duration::from_secs(5);

/// Forgets a host.
///
/// # Errors
/// Any [`Error`]
pub fn run(args: &ForgetArgs, paths: &Paths) -> Result<(), Error> {
    let host = Host::new(&args.host).map_err(|what| Error::Usage(format!("HOST {what}")))?;
    let config = Config::load()?;
    runtime::run(async {
        let mut visit = Visit::begin(&config, paths).await?;
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
        let mut farewell = farewell(&host, member, millis(SystemTime::now()));
        if let Some(prefix) = &config.ha_prefix {
            farewell.extend(homeassistant::topics(prefix, &host).map(Message::Clear));
        }
        visit.publish(&farewell).await?;
        let until = Instant::now() + PATIENCE;
        while visit.view().hosts().contains_key(&host) {
            if visit.listen(until).await?.is_none() {
                return Err(Error::Undone(format!(
                    "the broker still has what {host} left: its access rules may let {} write its own \
                     branch alone; run this with a login that may write {}",
                    config.node,
                    config.topic.retained(&format!("state/{host}/#"))
                )));
            }
        }
        visit.end().await;
        if args.json {
            out::print_json(&json!({ "host": host.as_str(), "bans": alone }));
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

/// First a word in the host's name that it holds nothing: that can be signed, and an empty payload cannot.
/// Then everything is cleared, part 0 last: without that one it counts as forgotten.
fn farewell(host: &Host, member: &Member, millis: i64) -> Vec<Message> {
    let stamp = millis.max(member.stamp().unwrap_or(0).saturating_add(1));
    let part = Slice::new(0, 1).map(|slice| Part {
        host: host.clone(),
        stamp,
        slice,
        bans: Vec::new(),
        unbans: Vec::new(),
    });
    let nothing = part.map(|part| Message::Keep(format!("state/{host}/0"), part.encode()));
    let mut numbers: Vec<u32> = member.numbers().filter(|number| *number > 0).collect();
    numbers.sort_unstable_by_key(|number| std::cmp::Reverse(*number));
    numbers.push(0);
    let parts = numbers.into_iter().map(|number| format!("state/{host}/{number}"));
    let topics = [format!("host/{host}")].into_iter().chain(parts);
    let clear = topics.map(|topic| Message::Keep(topic, String::new()));
    nothing.into_iter().chain(clear).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_holds_nothing_and_then_all_of_it_is_cleared_part_0_last() {
        let (mut view, host) = (View::default(), Host::new("web3").unwrap());
        view.hear_on("host/web3", br#"{"v":1,"state":"offline"}"#);
        for n in [0, 1, 7] {
            let parts = if n == 7 { 8 } else { 2 };
            let part = format!(r#"{{"v":1,"host":"web3","stamp":50,"part":{n},"parts":{parts}}}"#);
            view.hear_on(&format!("state/web3/{n}"), part.as_bytes());
        }
        let nothing =
            r#"{"v":1,"host":"web3","stamp":51,"part":0,"parts":1,"bans":[],"unbans":[]}"#;
        let expected = [
            ("state/web3/0", nothing),
            ("host/web3", ""),
            ("state/web3/7", ""),
            ("state/web3/1", ""),
            ("state/web3/0", ""),
        ];
        let expected =
            expected.map(|(topic, text)| Message::Keep(topic.to_owned(), text.to_owned()));
        assert_eq!(farewell(&host, &view.hosts()[&host], 49), expected);
        assert!(unknown(&host, &view).to_string().ends_with("it knows: web3"));
    }
}
