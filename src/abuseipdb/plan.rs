//! What the reporter does next. Pure: all that waits goes in, with the time; one step comes out.
//!
//! Bans of one address are one group. Its first report goes at once, and what comes within 15
//! minutes after that becomes one more report, because `AbuseIPDB` takes one of an address in 15
//! minutes. Beyond a few groups, all that are due go in one bulk call.

use std::collections::BTreeMap;

use super::report::{Categories, Report};
use crate::wire::Address;

/// `AbuseIPDB` takes one report of an address in this many seconds (docs.abuseipdb.com).
pub const WINDOW: i64 = 15 * 60;

/// Its clock and ours need not agree to the second on when a report came.
const MARGIN: i64 = 10;

/// Reports are to be no older than this many seconds (60 days, `AbuseIPDB`'s reporting policy).
pub const OLDEST: i64 = 60 * 86_400;

/// Beyond this many groups that are due, they go by a bulk call.
const BACKLOG: usize = 20;

/// A bulk call is repeated once if nobody knows what became of it; then each goes alone, and so does
/// what a bulk call did not take.
pub const BULK_TRIES: u32 = 2;

/// Names what waits.
pub type Id = i64;

/// How far a report came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Just come in.
    New,
    /// Its address was reported before: it is to be reported again if it is listed no longer.
    Check,
    /// To be reported.
    Due,
    /// Perhaps it was reported, alone: the call did not end as it should.
    Sent,
    /// The same, by a bulk call.
    SentInBulk,
}

/// A report that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedReport {
    /// What is to be told.
    pub report: Report,
    /// How far it came.
    pub stage: Stage,
    /// How often it was tried in vain.
    pub tries: u32,
    /// Not before, in seconds since 1970.
    pub next: i64,
    /// When it was first sent of the times that are in doubt, in seconds since 1970; 0 is never.
    pub sent: i64,
}

impl QueuedReport {
    /// It is about to be sent.
    pub fn send(&mut self, stage: Stage, now: i64) {
        if !self.in_doubt() {
            self.sent = now;
        }
        self.stage = stage;
    }

    /// Whether the server may have it.
    #[must_use]
    pub fn in_doubt(&self) -> bool {
        matches!(self.stage, Stage::Sent | Stage::SentInBulk)
    }

    /// Whether a repetition could not be taken twice: within the window the server itself refuses a
    /// second report. After it, only a check tells whether the first one arrived.
    #[must_use]
    pub fn is_safe_to_repeat(&self, now: i64) -> bool {
        self.sent == 0 || now < self.sent + WINDOW - MARGIN
    }
}

/// What `AbuseIPDB` took of an address not long ago.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecentReport {
    /// When, in seconds since 1970.
    pub at: i64,
    /// For what.
    pub categories: Categories,
    /// With which comment.
    pub comment: String,
}

impl RecentReport {
    /// When the next report of the address may go.
    #[must_use]
    pub fn end(&self) -> i64 {
        self.at + WINDOW + MARGIN
    }
}

/// Until when, in seconds since 1970, nothing of a kind is to be asked of the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallLimits {
    /// Anything at all.
    pub all: i64,
    /// Checks.
    pub check: i64,
    /// Reports.
    pub report: i64,
    /// Bulk reports.
    pub bulk: i64,
}

/// The next step.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// It is too old to be told.
    GiveUp(Id),
    /// Find out what it is.
    Admit(Id),
    /// Report this group by itself.
    Alone(Vec<Id>),
    /// Report these groups in one call.
    Bulk(Vec<Vec<Id>>),
    /// Nothing until then, in seconds since 1970.
    Sleep(i64),
    /// Nothing waits.
    Nothing,
}

/// One address's reports that go together.
struct PlannedGroup {
    ids: Vec<Id>,
    stage: Stage,
    tries: u32,
    /// When the first of the bans was.
    time: i64,
    /// When it is due.
    due: i64,
    safe_to_repeat: bool,
}

impl PlannedGroup {
    fn may_go_in_bulk(&self) -> bool {
        match self.stage {
            Stage::Due => self.tries < BULK_TRIES,
            // Later than that, only a check tells what became of it.
            Stage::SentInBulk => self.tries < BULK_TRIES && self.safe_to_repeat,
            _ => false,
        }
    }
}

/// Decides.
#[must_use]
pub fn next(
    waiting: &BTreeMap<Id, QueuedReport>,
    told: &BTreeMap<Address, RecentReport>,
    limits: &CallLimits,
    now: i64,
) -> Next {
    if let Some((id, _)) =
        waiting.iter().find(|(_, one)| one.report.time.saturating_add(OLDEST) <= now)
    {
        return Next::GiveUp(*id);
    }
    let new = |one: &QueuedReport| one.stage == Stage::New && one.next <= now;
    if let Some((id, _)) = waiting.iter().find(|(_, one)| new(one)) {
        return Next::Admit(*id);
    }
    let mut groups = groups(waiting, told, limits, now);
    groups.sort_by_key(|group| group.time);
    if limits.all <= now && limits.bulk <= now {
        let due = |group: &&PlannedGroup| group.may_go_in_bulk() && group.due <= now;
        if groups.iter().filter(due).count() > BACKLOG {
            return Next::Bulk(groups.iter().filter(due).map(|group| group.ids.clone()).collect());
        }
    }
    let alone = |group: &PlannedGroup| match group.stage {
        Stage::Due => group.due.max(limits.report),
        _ => group.due,
    };
    let alone = |group: &PlannedGroup| alone(group).max(limits.all);
    if let Some(group) = groups.iter().find(|group| alone(group) <= now) {
        return Next::Alone(group.ids.clone());
    }
    let admitted = waiting.values().filter(|one| one.stage == Stage::New).map(|one| one.next);
    groups.iter().map(alone).chain(admitted).min().map_or(Next::Nothing, Next::Sleep)
}

/// The groups. What may have been told already goes before what came since, and by itself: so that
/// it can be recognised.
fn groups(
    waiting: &BTreeMap<Id, QueuedReport>,
    told: &BTreeMap<Address, RecentReport>,
    limits: &CallLimits,
    now: i64,
) -> Vec<PlannedGroup> {
    let mut addresses: BTreeMap<Address, Vec<(Id, &QueuedReport)>> = BTreeMap::new();
    for (id, one) in waiting.iter().filter(|(_, one)| one.stage != Stage::New) {
        addresses.entry(one.report.address).or_default().push((*id, one));
    }
    let group = |(address, mut ones): (Address, Vec<(Id, &QueuedReport)>)| {
        if ones.iter().any(|(_, one)| one.in_doubt()) {
            ones.retain(|(_, one)| one.in_doubt());
        }
        let (_, first) = *ones.first()?;
        let stage = first.stage;
        ones.retain(|(_, one)| one.stage == stage && one.sent == first.sent);
        let next = ones.iter().map(|(_, one)| one.next).max()?;
        let due = match stage {
            Stage::Due => next.max(told.get(&address).map_or(0, RecentReport::end)),
            Stage::Check => next.max(limits.check),
            _ if first.is_safe_to_repeat(now) => next,
            _ => next.max(limits.check),
        };
        Some(PlannedGroup {
            ids: ones.iter().map(|(id, _)| *id).collect(),
            stage,
            tries: ones.iter().map(|(_, one)| one.tries).max()?,
            time: ones.iter().map(|(_, one)| one.report.time).min()?,
            due,
            safe_to_repeat: first.is_safe_to_repeat(now),
        })
    };
    addresses.into_iter().filter_map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::super::report::CommentSource;
    use super::*;

    const NOW: i64 = 1_795_342_588;

    fn address(n: usize) -> Address {
        Address::new(&format!("203.0.{}.{}", 113 + n / 200, n % 200 + 1)).unwrap()
    }

    fn one(n: usize, stage: Stage, next: i64) -> QueuedReport {
        let report = Report {
            address: address(n),
            categories: Categories::new("18").unwrap(),
            comment: "x".to_owned(),
            source: CommentSource::Log,
            bantime: 600,
            failures: 3,
            time: NOW - 60,
            key: None,
            ledger: "l".into(),
            log: "l".into(),
        };
        QueuedReport { report, stage, tries: 0, next, sent: 0 }
    }

    /// What is planned for these, of which the reports of some addresses were taken at some time.
    fn planned(ones: &[QueuedReport], told: &[(usize, i64)], limits: CallLimits) -> Next {
        let waiting = (1..).zip(ones.iter().cloned()).collect();
        let told = told.iter().map(|(n, at)| {
            let categories = Categories::new("18").unwrap();
            (address(*n), RecentReport { at: *at, categories, comment: String::new() })
        });
        next(&waiting, &told.collect(), &limits, NOW)
    }

    #[test]
    fn one_at_a_time_and_each_address_once_in_its_window() {
        use Stage::{Check, Due, New, Sent};
        let free = CallLimits::default();
        assert_eq!(planned(&[], &[], free), Next::Nothing);
        let new = one(1, New, 0);
        assert_eq!(planned(&[one(1, Due, 0), new.clone()], &[], free), Next::Admit(2));
        assert_eq!(planned(&[one(1, New, NOW + 5)], &[], free), Next::Sleep(NOW + 5));
        let due = [one(1, Due, 0), one(2, Due, 0), one(1, Due, 0)];
        assert_eq!(planned(&due, &[], free), Next::Alone(vec![1, 3]));
        assert_eq!(planned(&due, &[(1, NOW - 60)], free), Next::Alone(vec![2]));
        let end = NOW - 60 + WINDOW + MARGIN;
        assert_eq!(planned(&due[2..], &[(1, NOW - 60)], free), Next::Sleep(end));
        assert_eq!(planned(&due[2..], &[(1, NOW - WINDOW - MARGIN)], free), Next::Alone(vec![1]));
        assert_eq!(planned(&[one(1, Check, 0)], &[], free), Next::Alone(vec![1]));
        // What was perhaps sent goes by itself, before what came since.
        let sent = QueuedReport { sent: NOW - 60, ..one(1, Sent, NOW - 30) };
        assert_eq!(planned(&[one(1, Due, 0), sent], &[], free), Next::Alone(vec![2]));
    }

    #[test]
    fn limits_hold_back_what_they_are_of() {
        use Stage::{Check, Due, Sent};
        let later = NOW + 100;
        let sent = |at| QueuedReport { sent: at, ..one(1, Sent, 0) };
        let table = [
            (one(1, Due, 0), CallLimits { all: later, ..CallLimits::default() }, false),
            (one(1, Due, 0), CallLimits { report: later, ..CallLimits::default() }, false),
            (
                one(1, Due, 0),
                CallLimits { check: later, bulk: later, ..CallLimits::default() },
                true,
            ),
            (one(1, Check, 0), CallLimits { check: later, ..CallLimits::default() }, false),
            (one(1, Check, 0), CallLimits { report: later, ..CallLimits::default() }, true),
            (sent(NOW - 60), CallLimits { check: later, ..CallLimits::default() }, true),
            (sent(NOW - WINDOW), CallLimits { check: later, ..CallLimits::default() }, false),
            (sent(NOW - WINDOW), CallLimits::default(), true),
        ];
        for (waiting, limits, goes) in table {
            let expected = if goes { Next::Alone(vec![1]) } else { Next::Sleep(later) };
            assert_eq!(
                planned(std::slice::from_ref(&waiting), &[], limits),
                expected,
                "{waiting:?}"
            );
        }
    }

    #[test]
    fn a_backlog_goes_in_one_call() {
        use Stage::{Check, Due, Sent, SentInBulk};
        let mut due: Vec<_> = (1..=20).map(|n| one(n, Due, 0)).collect();
        due.extend([one(1, Due, 0), one(30, Check, 0), one(31, Sent, 0), one(32, Due, NOW + 1)]);
        assert_eq!(planned(&due, &[], CallLimits::default()), Next::Alone(vec![1, 21]));
        due.push(QueuedReport { sent: NOW - 60, ..one(40, SentInBulk, 0) });
        let Next::Bulk(groups) =
            planned(&due, &[], CallLimits { report: NOW + 1, ..CallLimits::default() })
        else {
            panic!("a backlog goes in bulk, whatever single reports wait for")
        };
        assert_eq!(groups.len(), 21);
        assert!(groups.contains(&vec![1, 21]) && groups.contains(&vec![25]));
        let spent = CallLimits { bulk: NOW + 1, ..CallLimits::default() };
        assert_eq!(planned(&due, &[], spent), Next::Alone(vec![1, 21]));
        due[24].sent = NOW - WINDOW;
        assert_eq!(planned(&due, &[], CallLimits::default()), Next::Alone(vec![1, 21]));
        (due[24].sent, due[24].tries) = (NOW - 60, BULK_TRIES);
        assert_eq!(planned(&due, &[], CallLimits::default()), Next::Alone(vec![1, 21]));
    }

    #[test]
    fn what_is_too_old_is_given_up() {
        let mut old = one(1, Stage::Due, NOW + 1000);
        old.report.time = NOW - OLDEST;
        assert_eq!(
            planned(&[one(2, Stage::New, 0), old], &[], CallLimits::default()),
            Next::GiveUp(2)
        );
    }
}
