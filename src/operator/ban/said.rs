//! What the other hosts said they did with the bans, put together for whoever waits: a line for each host,
//! or its JSON. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::operator::view::{Member, View};
use crate::wire::{Address, HostName, Jail};

/// A ban that was made, or was there before.
#[derive(Clone, Debug)]
pub(super) struct Made {
    pub(super) address: Address,
    /// It was banned before: nothing was done, and nobody asked.
    pub(super) already: bool,
    /// How long it is banned, in seconds; below 0 is for ever.
    pub(super) seconds: i64,
}

/// What the other hosts said.
#[derive(Debug)]
pub(super) struct Said {
    me: HostName,
    jail: Jail,
    /// Answers to what was asked before are of another ban; in milliseconds since 1970.
    since: i64,
    words: BTreeMap<HostName, BTreeMap<Address, String>>,
}

/// What a host's word comes to, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Deed<'a> {
    Bans,
    Refuses(&'a str),
    NoJail,
    Waits,
    Silent,
}

impl<'a> Deed<'a> {
    fn of(word: Option<&'a str>) -> Self {
        match word {
            Some("banned") => Self::Bans,
            Some("waiting") => Self::Waits,
            Some("unknown_jail") => Self::NoJail,
            Some(reason) => Self::Refuses(reason),
            None => Self::Silent,
        }
    }
}

impl Said {
    pub(super) fn new(me: HostName, jail: Jail, since: i64) -> Self {
        Self { me, jail, since, words: BTreeMap::new() }
    }

    /// Takes up what the others say now. Of bans that were there before, what they did with those counts.
    pub(super) fn hear(&mut self, view: &View, made: &[Made]) {
        let said =
            view.hosts().iter().filter_map(|(host, member)| Some((host, member.presence()?)));
        for (host, presence) in said {
            for answer in presence.asked.iter().filter(|answer| answer.jail == self.jail) {
                let of_this = answer.origin == self.me && answer.stamp >= self.since;
                let counts = |one: &Made| one.address == answer.address && (of_this || one.already);
                if made.iter().any(counts) {
                    let words = self.words.entry(host.clone()).or_default();
                    words.insert(answer.address, answer.word.clone());
                }
            }
        }
    }

    fn deed(&self, host: &HostName, address: Address) -> Deed<'_> {
        let word = self.words.get(host).and_then(|words| words.get(&address));
        Deed::of(word.map(String::as_str))
    }

    /// The hosts that are connected and have not said, or not done, what they do with new ones of these.
    pub(super) fn waits_for(&self, view: &View, made: &[Made]) -> BTreeSet<HostName> {
        let waits = |host: &HostName| {
            let mut new = made.iter().filter(|one| !one.already);
            new.any(|one| self.deed(host, one.address) >= Deed::Waits)
        };
        let online = self.others(view).filter(|(_, member)| member.is_online());
        online.map(|(host, _)| host).filter(|host| waits(host)).cloned().collect()
    }

    /// The hosts that are not connected.
    pub(super) fn offline<'a>(&'a self, view: &'a View) -> impl Iterator<Item = &'a HostName> {
        self.others(view).filter(|(_, member)| !member.is_online()).map(|(host, _)| host)
    }

    fn others<'a>(&'a self, view: &'a View) -> impl Iterator<Item = (&'a HostName, &'a Member)> {
        view.hosts().iter().filter(|(host, _)| **host != self.me)
    }

    /// A line for each host, and where it did not do the same with all, for each deed; the best first.
    pub(super) fn lines(&self, view: &View, made: &[Made]) -> Vec<String> {
        let mut lines = Vec::new();
        for (host, _) in self.others(view).filter(|(_, member)| member.is_online()) {
            let mut deeds: BTreeMap<Deed<'_>, Vec<&Made>> = BTreeMap::new();
            for one in made {
                deeds.entry(self.deed(host, one.address)).or_default().push(one);
            }
            lines.extend(
                deeds
                    .into_iter()
                    .map(|(deed, of)| (deed, host, self.text(deed, &of, of.len() == made.len()))),
            );
        }
        lines.sort();
        let mut lines: Vec<_> =
            lines.iter().map(|(_, host, text)| format!("{host}: {text}")).collect();
        let away = |host| format!("{host}: not connected; it hears of it when it is back");
        lines.extend(self.offline(view).map(away));
        lines
    }

    fn text(&self, deed: Deed<'_>, of: &[&Made], all: bool) -> String {
        let names = || {
            let names: Vec<_> = of.iter().map(|one| one.address.to_string()).collect();
            names.join(", ")
        };
        let (what, not, still) = match (all, of.len()) {
            (true, 1) => ("it".to_owned(), "does not".to_owned(), String::new()),
            (true, _) => ("them".to_owned(), "does not ban them".to_owned(), String::new()),
            (false, _) => {
                (names(), format!("does not ban {}", names()), format!(" of {}", names()))
            }
        };
        let jail = &self.jail;
        match deed {
            Deed::Bans => format!("bans {what}, too"),
            Deed::NoJail => format!("{not}: it has no jail {jail}"),
            Deed::Refuses("not_shared") => {
                format!("{not}: by its settings {jail} does not take part")
            }
            Deed::Refuses("never_ban") => format!("{not}: its MQTT_NEVER_BAN has it"),
            Deed::Refuses("ignored") => {
                format!("{not}: there it is in ignoreip, or its own address, or the broker's")
            }
            Deed::Refuses("lifted") => format!("{not}: its operator lifted the ban there"),
            Deed::Refuses(reason) => format!("{not}: it refuses it ({reason})"),
            Deed::Waits => format!("does not ban {what} yet: its fail2ban is busy or away"),
            Deed::Silent if of.iter().all(|one| one.already) => {
                format!("was not asked{still} again")
            }
            Deed::Silent => format!("has not said yet{still}"),
        }
    }

    /// What there is in JSON of one address: the hosts' words.
    pub(super) fn answers(&self, address: Address) -> Value {
        let word = |(host, words): (&HostName, &BTreeMap<Address, String>)| {
            Some((host.as_str().to_owned(), Value::from(words.get(&address)?.as_str())))
        };
        Value::Object(self.words.iter().filter_map(word).collect::<Map<_, _>>())
    }

    /// What there is in JSON of each host: it is in one list, by the worst that it did.
    pub(super) fn hosts(&self, view: &View, made: &[Made]) -> Value {
        let (mut bans, mut no_jail, mut waiting, mut silent) = (vec![], vec![], vec![], vec![]);
        let mut refused = Map::new();
        for (host, _) in self.others(view).filter(|(_, member)| member.is_online()) {
            let name = host.as_str();
            match made.iter().map(|one| self.deed(host, one.address)).max() {
                Some(Deed::Bans) => bans.push(name),
                Some(Deed::Refuses(reason)) => drop(refused.insert(name.to_owned(), reason.into())),
                Some(Deed::NoJail) => no_jail.push(name),
                Some(Deed::Waits) => waiting.push(name),
                Some(Deed::Silent) | None => silent.push(name),
            }
        }
        let offline: Vec<_> = self.offline(view).map(HostName::as_str).collect();
        json!({
            "hosts": bans, "without_jail": no_jail, "refused": refused, "waiting": waiting,
            "silent": silent, "offline": offline,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SINCE: i64 = 1_795_342_588_000;

    fn made(n: usize, already: bool) -> Made {
        let address = Address::new(&format!("203.0.113.{n}")).unwrap();
        Made { address, already, seconds: 600 }
    }

    /// A host that says this of each of these addresses.
    fn says(view: &mut View, host: &str, origin: &str, stamp: i64, words: &[(usize, &str)]) {
        let answer = |(n, word): &(usize, &str)| {
            format!(r#"["web","203.0.113.{n}","{origin}",{stamp},"{word}"]"#)
        };
        let answers = words.iter().map(answer).collect::<Vec<_>>().join(",");
        let json = format!(r#"{{"v":1,"state":"online","jails":["web"],"asked":[{answers}]}}"#);
        view.hear_on(&format!("host/{host}"), json.as_bytes());
    }

    fn said() -> Said {
        Said::new(HostName::new("web1").unwrap(), Jail::new("web").unwrap(), SINCE)
    }

    #[test]
    fn each_word_has_its_line_and_its_list() {
        let (mut view, mut said) = (View::default(), said());
        let words = [
            ("a1", "never_ban"),
            ("a2", "unknown_jail"),
            ("a3", "banned"),
            ("a4", "waiting"),
            ("a5", "ignored"),
            ("a6", "lifted"),
            ("a7", "not_shared"),
            ("a8", "later"),
        ];
        for (host, word) in words {
            says(&mut view, host, "web1", SINCE + 1, &[(9, word)]);
        }
        says(&mut view, "b1", "web1", SINCE - 1, &[(9, "banned")]);
        says(&mut view, "b2", "web2", SINCE + 1, &[(9, "banned")]);
        says(&mut view, "b3", "web1", SINCE + 1, &[(8, "banned")]);
        says(&mut view, "web1", "web2", SINCE, &[]);
        view.hear_on("host/c1", br#"{"v":1,"state":"offline"}"#);
        let new = [made(9, false)];
        said.hear(&view, &new);
        assert_eq!(
            said.lines(&view, &new),
            [
                "a3: bans it, too",
                "a5: does not: there it is in ignoreip, or its own address, or the broker's",
                "a8: does not: it refuses it (later)",
                "a6: does not: its operator lifted the ban there",
                "a1: does not: its MQTT_NEVER_BAN has it",
                "a7: does not: by its settings web does not take part",
                "a2: does not: it has no jail web",
                "a4: does not ban it yet: its fail2ban is busy or away",
                "b1: has not said yet",
                "b2: has not said yet",
                "b3: has not said yet",
                "c1: not connected; it hears of it when it is back",
            ]
        );
        assert_eq!(
            said.hosts(&view, &new),
            json!({
                "hosts": ["a3"], "without_jail": ["a2"], "waiting": ["a4"], "silent": ["b1", "b2", "b3"],
                "refused": { "a1": "never_ban", "a5": "ignored", "a6": "lifted", "a7": "not_shared",
                    "a8": "later" },
                "offline": ["c1"],
            })
        );
        let waits: Vec<_> = said.waits_for(&view, &new).iter().map(ToString::to_string).collect();
        assert_eq!(waits, ["a4", "b1", "b2", "b3"]);
        // What was said last counts, and stays said.
        says(&mut view, "a4", "web1", SINCE + 1, &[(9, "banned")]);
        said.hear(&view, &new);
        says(&mut view, "a4", "web1", SINCE + 1, &[]);
        said.hear(&view, &new);
        assert_eq!(said.answers(new[0].address)["a4"], "banned");
        assert_eq!(said.answers(made(7, false).address), json!({}));
    }

    #[test]
    fn of_several_addresses_a_host_has_a_line_for_each_deed() {
        let (mut view, mut said) = (View::default(), said());
        let all = [made(1, false), made(2, false), made(3, false)];
        let ignored = [(1, "banned"), (2, "ignored"), (3, "banned")];
        says(&mut view, "a1", "web1", SINCE, &[1, 2, 3].map(|n| (n, "banned")));
        says(&mut view, "a2", "web1", SINCE, &[1, 2, 3].map(|n| (n, "unknown_jail")));
        says(&mut view, "a3", "web1", SINCE, &ignored);
        says(&mut view, "a4", "web1", SINCE, &ignored[..1]);
        said.hear(&view, &all);
        assert_eq!(
            said.lines(&view, &all),
            [
                "a1: bans them, too",
                "a3: bans 203.0.113.1, 203.0.113.3, too",
                "a4: bans 203.0.113.1, too",
                "a3: does not ban 203.0.113.2: there it is in ignoreip, or its own address, or the broker's",
                "a2: does not ban them: it has no jail web",
                "a4: has not said yet of 203.0.113.2, 203.0.113.3",
            ]
        );
        let hosts = said.hosts(&view, &all);
        assert_eq!(hosts["hosts"], json!(["a1"]), "those that ban all of them");
        assert_eq!(hosts["refused"], json!({ "a3": "ignored" }));
        assert_eq!(hosts["silent"], json!(["a4"]));
    }

    #[test]
    fn of_what_was_banned_before_nobody_is_asked() {
        let (mut view, mut said) = (View::default(), said());
        says(&mut view, "a1", "web2", 5, &[(9, "banned")]);
        says(&mut view, "a2", "web1", SINCE, &[]);
        let old = [made(9, true)];
        said.hear(&view, &old);
        assert_eq!(said.lines(&view, &old), ["a1: bans it, too", "a2: was not asked again"]);
        assert!(said.waits_for(&view, &old).is_empty());
        assert_eq!(said.hosts(&view, &old)["silent"], json!(["a2"]));
    }
}
