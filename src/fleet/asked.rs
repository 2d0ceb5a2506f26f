//! **Asked**: what became here of a ban that an operator of another host made (`f2bmqtt ban`). That host
//! marks its event, and this one says in its presence what it did: that it bans the address, or why not;
//! nothing before that is decided. Somebody waits for it, so it is said at once, but never so often that who
//! asks a lot makes it chatter; and it is kept in memory alone, for as long as anybody may wait.

use std::collections::{BTreeSet, VecDeque};

use super::look::Heartbeat;
use super::{BanKey, Controller, secs};
use crate::guard::RejectReason;
use crate::ignored::IgnoreReason;
use crate::wire::{Action, Answer, Event, HostName, MAX_ANSWERS};

/// How long an answer is given, in milliseconds.
const KEPT: i64 = 600_000;

/// A host that has not decided by then says so; in milliseconds.
const LATE: i64 = 10_000;

/// A fail2ban that starts makes its jails one by one, and the next within this; in milliseconds.
const MAKES: i64 = 5_000;

/// How often in a minute answers are news; what comes then waits, as the counts do.
const NEWS: u32 = 20;
const MINUTE: i64 = 60_000;

/// One ban that is asked about.
#[derive(Debug)]
struct Question {
    key: BanKey,
    origin: HostName,
    stamp: i64,
    /// The guard refused it, or there was no room for it.
    refused: Option<RejectReason>,
    /// When it was heard, in milliseconds.
    heard: i64,
}

/// The last ones, and how often answers were news in the minute that began then.
#[derive(Debug, Default)]
pub(super) struct Asked {
    questions: VecDeque<Question>,
    minute: i64,
    news: u32,
}

impl Asked {
    /// Takes a question up; the newest one of an origin on an address counts.
    fn ask(&mut self, question: Question) {
        let same = |other: &Question| other.key == question.key && other.origin == question.origin;
        if self.questions.iter().any(|other| same(other) && other.stamp >= question.stamp) {
            return;
        }
        self.questions.retain(|other| !same(other));
        if self.questions.len() >= MAX_ANSWERS {
            self.questions.pop_front();
        }
        self.questions.push_back(question);
    }

    /// Answers were news.
    pub(super) fn told(&mut self, now: i64) {
        if !(0..MINUTE).contains(&(now - self.minute)) {
            (self.minute, self.news) = (now, 0);
        }
        self.news += 1;
    }

    /// Whether they may be news again.
    pub(super) fn may_tell(&self, now: i64) -> bool {
        self.news < NEWS || !(0..MINUTE).contains(&(now - self.minute))
    }
}

/// All that counts for an answer.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "the columns of a table")]
struct Facts {
    /// The guard refused it, or there was no room for it.
    refused: Option<RejectReason>,
    /// Its origin still claims it,
    claimed: bool,
    /// or did, and this host's operator lifted that.
    lifted: bool,
    /// fail2ban answers and has nothing to do about it.
    settled: bool,
    /// fail2ban has the jail.
    jail: bool,
    /// fail2ban bans it,
    held: bool,
    /// by an import that is not done yet.
    doing: bool,
    /// It is never to be banned here.
    ignored: Option<IgnoreReason>,
    /// It was heard some time ago.
    late: bool,
}

/// What is said of it, if anything.
fn word(facts: Facts) -> Option<&'static str> {
    let Facts { refused, claimed, lifted, settled, jail, held, doing, ignored, late } = facts;
    // What there was no room for a snapshot may have brought since.
    let banned = held && claimed && settled && !doing;
    let refused = refused.filter(|refusal| !(banned && *refusal == RejectReason::TooMany));
    let refused = refused.or((settled && !jail).then_some(RejectReason::UnknownJail));
    let ignored = ignored.filter(|_| settled).map(IgnoreReason::reject_reason);
    match (refused, held) {
        (Some(refusal), _) => Some(refusal.name()),
        // It is over, or was freed for all: nobody waits for that.
        (None, _) if !claimed && !lifted => None,
        (None, true) if settled && !doing => Some("banned"),
        (None, false) if settled && lifted => Some("lifted"),
        (None, false) if ignored.is_some() => ignored.map(RejectReason::name),
        (None, _) => late.then_some("waiting"),
    }
}

impl Controller {
    /// An event came in that may ask what becomes of it: it was heard, or refused.
    pub fn asked(&mut self, event: &Event, refused: Option<RejectReason>, now: i64) {
        if event.asked && event.action == Action::Ban && event.is_new() && event.stamp > 0 {
            self.asked.ask(Question {
                key: (event.jail.clone(), event.address),
                origin: event.host.clone(),
                stamp: event.stamp,
                refused,
                heard: now,
            });
        }
    }

    /// What was asked lately, answered as it stands now.
    pub(super) fn answers(&self, now: i64) -> Vec<Answer> {
        let fresh = |question: &&Question| (now - question.heard).abs() < KEPT;
        let answer = |question: &Question| {
            let (jail, address) = question.key.clone();
            let (origin, stamp) = (question.origin.clone(), question.stamp);
            let word = word(self.facts_of(question, now))?.to_owned();
            Some(Answer { jail, address, origin, stamp, word })
        };
        self.asked.questions.iter().filter(fresh).filter_map(answer).collect()
    }

    fn facts_of(&self, question: &Question, now: i64) -> Facts {
        let Question { key, origin, refused, heard, .. } = question;
        let local = self.jails.get(&key.0);
        let case = local.and_then(|local| Some((local, local.cases.get(&key.1)?)));
        let jail = self.names.as_ref().is_some_and(|names| names.contains(&key.0));
        // A jail that is not there may be yet to be made.
        let comes = |pulse: Heartbeat| {
            let lately = (now - self.named).abs() < MAKES;
            self.is_starting(pulse.server, now)
                && (lately || self.names.iter().all(BTreeSet::is_empty))
        };
        let settled = self.pulse.is_some_and(|pulse| jail || !comes(pulse));
        let late = !(0..LATE).contains(&(now - heard));
        let here = Facts { refused: *refused, settled, jail, late, ..Facts::default() };
        let Some((local, case)) = case else { return here };
        let ban = self.said(key, origin).and_then(|said| said.ban);
        Facts {
            claimed: self.claimants(key, local, case, secs(now)).any(|said| said.host == *origin),
            lifted: ban.is_some_and(|ban| self.lifts.covers(key, origin, ban, &self.pace)),
            settled: here.settled && case.queued.is_none() && !case.restoring,
            held: case.end.is_some(),
            doing: case.mark.as_ref().is_some_and(|mark| !mark.done),
            ignored: self.ignored(key),
            ..here
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::look::ServerInstance;
    use crate::fleet::{PersistedState, Timing};
    use crate::wire::{Address, Jail};

    #[test]
    fn each_case_has_its_word() {
        let heard = Facts { claimed: true, settled: true, jail: true, ..Facts::default() };
        let lifted = Facts { claimed: false, lifted: true, ..heard };
        let table = [
            (heard, None),
            (Facts { late: true, ..heard }, Some("waiting")),
            (Facts { held: true, ..heard }, Some("banned")),
            (Facts { held: true, doing: true, ..heard }, None),
            (Facts { held: true, doing: true, late: true, ..heard }, Some("waiting")),
            // What it shows is old: it was not looked at since, or fail2ban is away.
            (Facts { held: true, settled: false, ..heard }, None),
            (Facts { ignored: Some(IgnoreReason::Jail), settled: false, ..heard }, None),
            (Facts { jail: false, settled: false, ..heard }, None),
            (Facts { settled: false, late: true, ..heard }, Some("waiting")),
            (Facts { ignored: Some(IgnoreReason::Jail), ..heard }, Some("ignored")),
            (Facts { ignored: Some(IgnoreReason::Own), ..heard }, Some("ignored")),
            (Facts { ignored: Some(IgnoreReason::Settings), ..heard }, Some("never_ban")),
            // Its own ban, although others may not ban it here.
            (Facts { ignored: Some(IgnoreReason::Jail), held: true, ..heard }, Some("banned")),
            (Facts { jail: false, ..heard }, Some("unknown_jail")),
            (Facts { refused: Some(RejectReason::NotShared), ..heard }, Some("not_shared")),
            (
                Facts { refused: Some(RejectReason::TooMany), claimed: false, ..heard },
                Some("too_many"),
            ),
            (Facts { refused: Some(RejectReason::TooMany), held: true, ..heard }, Some("banned")),
            (
                Facts { refused: Some(RejectReason::Unbannable), settled: false, ..heard },
                Some("unbannable"),
            ),
            (lifted, Some("lifted")),
            (Facts { held: true, ..lifted }, Some("banned")),
            (Facts { settled: false, ..lifted }, None),
            // Its origin freed it meanwhile, or somebody did for the whole fleet.
            (Facts { claimed: false, ..heard }, None),
            (Facts { claimed: false, late: true, ..heard }, None),
            (Facts { claimed: false, held: true, ..heard }, None),
        ];
        for (facts, expected) in table {
            assert_eq!(word(facts), expected, "{facts:?}");
        }
    }

    #[test]
    fn a_jail_that_is_yet_to_be_made_is_not_unknown() {
        let web = Jail::new("web").unwrap();
        // fail2ban started so long ago, has these jails, and since so long -> what is said.
        let table = [
            (30_000, &["sshd"][..], 0, None),
            (30_000, &["sshd"], 4_999, None),
            (30_000, &["sshd"], 5_000, Some("unknown_jail")),
            (30_000, &[], 5_000, None),
            (90_000, &["sshd"], 0, Some("unknown_jail")),
            (90_000, &[], 0, Some("unknown_jail")),
        ];
        for (started, jails, since, expected) in table {
            const NOW: i64 = 1_795_342_588_000;
            let me = HostName::new("me").unwrap();
            let mut fleet = Controller::new(me, Timing::default(), PersistedState::default());
            let server = ServerInstance { pid: 1, started: (NOW - started) / 1000 };
            let jails: BTreeSet<_> = jails.iter().map(|jail| Jail::new(jail).unwrap()).collect();
            for at in [NOW - since, NOW] {
                fleet.begin(at);
                fleet.pulse(Heartbeat { server, data_version: Some(1) }, jails.clone(), at);
            }
            let address = Address::new("203.0.113.9").unwrap();
            let origin = HostName::new("web1").unwrap();
            let key = (web.clone(), address);
            fleet.asked.ask(Question { key, origin, stamp: 5, refused: None, heard: NOW });
            let words: Vec<_> = fleet.answers(NOW).into_iter().map(|answer| answer.word).collect();
            assert_eq!(words.first().map(String::as_str), expected, "{started} {jails:?} {since}");
        }
    }

    fn question(n: usize, origin: &str, stamp: i64) -> Question {
        let address = Address::new(&format!("203.0.113.{n}")).unwrap();
        let key = (Jail::new("web").unwrap(), address);
        Question { key, origin: HostName::new(origin).unwrap(), stamp, refused: None, heard: 0 }
    }

    #[test]
    fn the_last_questions_are_kept_and_of_one_ban_the_newest() {
        let mut asked = Asked::default();
        (0..40).for_each(|n| asked.ask(question(n, "web1", 5)));
        assert_eq!(asked.questions.len(), MAX_ANSWERS);
        assert_eq!(asked.questions[0].key, question(24, "web1", 5).key);
        asked.ask(question(30, "web1", 4));
        asked.ask(question(30, "web1", 6));
        asked.ask(question(30, "web2", 1));
        let of_30 = asked.questions.iter().filter(|one| one.key == question(30, "a", 0).key);
        let stamps: Vec<_> = of_30.map(|one| one.stamp).collect();
        assert_eq!((asked.questions.len(), stamps), (MAX_ANSWERS, vec![6, 1]));
    }

    #[test]
    fn who_asks_a_lot_makes_nobody_chatter() {
        let mut asked = Asked::default();
        let mut tells = |now| {
            let may = asked.may_tell(now);
            if may {
                asked.told(now);
            }
            may
        };
        let minute = |from: i64| (from..from + MINUTE).step_by(1_000);
        assert_eq!(minute(1_000_000).filter(|now| tells(*now)).count(), NEWS as usize);
        assert_eq!(minute(1_060_000).filter(|now| tells(*now)).count(), NEWS as usize);
        assert!(tells(500_000), "the clock was set back");
    }
}
