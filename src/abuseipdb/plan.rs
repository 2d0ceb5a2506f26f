//! Chooses the reporter's next step, as a pure function of the queue and the time.
//!
//! Bans of one address form a group. Its first report is sent at once. Bans within the next 15 minutes are merged
//! into one more report, because `AbuseIPDB` accepts one report per address in 15 minutes. If more than a few
//! groups are due, one bulk call reports them all.

use std::collections::BTreeMap;

use super::report::{Categories, Report};
use crate::model::Address;

/// `AbuseIPDB` accepts one report per address in this time (docs.abuseipdb.com).
pub const REPORT_INTERVAL_SECS: i64 = 15 * 60;

/// Tolerance for the difference between the server's clock and this host's.
const CLOCK_MARGIN_SECS: i64 = 10;

/// Older bans must not be reported (60 days, `AbuseIPDB`'s reporting policy).
pub const MAX_AGE_SECS: i64 = 60 * 86_400;

/// If more groups than this are due, one bulk call reports them.
const BULK_THRESHOLD: usize = 20;

/// A bulk call without a clear response is repeated once. After that, and if a bulk call rejects them, reports are
/// sent one by one.
pub const MAX_BULK_TRIES: u32 = 2;

/// Identifies a queued report.
pub type Id = i64;

/// The state of a queued report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Not yet compared with ledger and queue.
    New,
    /// The ledger has the address: report it only if `AbuseIPDB` no longer lists it.
    Check,
    /// Ready to be sent.
    Due,
    /// In doubt: a single call was made, and no response settled it.
    Sent,
    /// In doubt: a bulk call was made, and no response settled it.
    SentInBulk,
}

/// A report in the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedReport {
    /// The ban to report.
    pub report: Report,
    /// The state of the report.
    pub stage: Stage,
    /// The number of failed attempts in this stage.
    pub tries: u32,
    /// When the next attempt is allowed, in seconds since 1970.
    pub next: i64,
    /// The first attempt that is in doubt, in seconds since 1970; 0: none.
    pub sent: i64,
}

impl QueuedReport {
    /// Records that the report is about to be sent.
    pub fn mark_sending(&mut self, stage: Stage, now: i64) {
        if !self.is_in_doubt() {
            self.sent = now;
        }
        self.stage = stage;
    }

    /// Whether the server may have the report already.
    #[must_use]
    pub fn is_in_doubt(&self) -> bool {
        matches!(self.stage, Stage::Sent | Stage::SentInBulk)
    }

    /// Whether sending again cannot create a second report. Within 15 minutes the server rejects a duplicate; later,
    /// only a check shows whether the first attempt arrived.
    #[must_use]
    pub fn is_safe_to_repeat(&self, now: i64) -> bool {
        self.sent == 0 || now < self.sent + REPORT_INTERVAL_SECS - CLOCK_MARGIN_SECS
    }
}

/// The last accepted report of an address, while it limits the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecentReport {
    /// When the server accepted it, in seconds since 1970.
    pub at: i64,
    /// The categories that it had.
    pub categories: Categories,
    /// The comment that it had.
    pub comment: String,
}

impl RecentReport {
    /// When the next report of the address is allowed, in seconds since 1970.
    #[must_use]
    pub fn end(&self) -> i64 {
        self.at + REPORT_INTERVAL_SECS + CLOCK_MARGIN_SECS
    }
}

/// When the next call of each endpoint is allowed, in seconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallLimits {
    /// Any call.
    pub all: i64,
    /// A check.
    pub check: i64,
    /// A single report.
    pub report: i64,
    /// A bulk report.
    pub bulk: i64,
}

/// The worker's next step.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Drop a report that is too old.
    DropExpired(Id),
    /// Compare a new report with ledger and queue.
    Admit(Id),
    /// Report one group.
    Single(Vec<Id>),
    /// Report these groups in one call.
    Bulk(Vec<Vec<Id>>),
    /// Wait until this time, in seconds since 1970.
    Sleep(i64),
    /// The queue is empty.
    Idle,
}

/// Reports of one address that are sent together.
struct PlannedGroup {
    ids: Vec<Id>,
    stage: Stage,
    tries: u32,
    /// The time of the first ban, in seconds since 1970.
    time: i64,
    /// When the group may be sent, in seconds since 1970.
    due: i64,
    safe_to_repeat: bool,
}

impl PlannedGroup {
    /// When a single call for this group is allowed, in seconds since 1970.
    fn single_call_at(&self, limits: &CallLimits) -> i64 {
        let at = match self.stage {
            Stage::Due => self.due.max(limits.report),
            _ => self.due,
        };
        at.max(limits.all)
    }

    fn may_go_in_bulk(&self) -> bool {
        match self.stage {
            Stage::Due => self.tries < MAX_BULK_TRIES,
            // Later, only a check of the single address shows whether the report arrived.
            Stage::SentInBulk => self.tries < MAX_BULK_TRIES && self.safe_to_repeat,
            _ => false,
        }
    }
}

/// Chooses the next step; `now` is in seconds since 1970.
#[must_use]
pub fn next(
    waiting: &BTreeMap<Id, QueuedReport>,
    recent: &BTreeMap<Address, RecentReport>,
    limits: &CallLimits,
    now: i64,
) -> Next {
    if let Some((id, _)) =
        waiting.iter().find(|(_, one)| one.report.time.saturating_add(MAX_AGE_SECS) <= now)
    {
        return Next::DropExpired(*id);
    }
    if let Some((id, _)) =
        waiting.iter().find(|(_, one)| one.stage == Stage::New && one.next <= now)
    {
        return Next::Admit(*id);
    }
    let mut groups = groups(waiting, recent, limits, now);
    groups.sort_by_key(|group| group.time);
    if limits.all <= now && limits.bulk <= now {
        let due: Vec<_> =
            groups.iter().filter(|group| group.may_go_in_bulk() && group.due <= now).collect();
        if due.len() > BULK_THRESHOLD {
            return Next::Bulk(due.into_iter().map(|group| group.ids.clone()).collect());
        }
    }
    if let Some(group) = groups.iter().find(|group| group.single_call_at(limits) <= now) {
        return Next::Single(group.ids.clone());
    }
    let admitted = waiting.values().filter(|one| one.stage == Stage::New).map(|one| one.next);
    let calls = groups.iter().map(|group| group.single_call_at(limits));
    calls.chain(admitted).min().map_or(Next::Idle, Next::Sleep)
}

/// Groups reports by address. A report is in doubt if the server may already have it. Reports in doubt are sent before
/// newer reports and in separate calls, so that a check can recognise them in the server's list.
fn groups(
    waiting: &BTreeMap<Id, QueuedReport>,
    recent: &BTreeMap<Address, RecentReport>,
    limits: &CallLimits,
    now: i64,
) -> Vec<PlannedGroup> {
    let mut addresses: BTreeMap<Address, Vec<(Id, &QueuedReport)>> = BTreeMap::new();
    for (id, queued) in waiting.iter().filter(|(_, queued)| queued.stage != Stage::New) {
        addresses.entry(queued.report.address).or_default().push((*id, queued));
    }
    addresses
        .into_iter()
        .filter_map(|(address, reports)| plan_group(reports, recent.get(&address), limits, now))
        .collect()
}

/// The group to send next among the reports of one address; `None` if there are none.
fn plan_group(
    mut reports: Vec<(Id, &QueuedReport)>,
    recent: Option<&RecentReport>,
    limits: &CallLimits,
    now: i64,
) -> Option<PlannedGroup> {
    if reports.iter().any(|(_, queued)| queued.is_in_doubt()) {
        reports.retain(|(_, queued)| queued.is_in_doubt());
    }
    let (_, first) = *reports.first()?;
    let stage = first.stage;
    reports.retain(|(_, queued)| queued.stage == stage && queued.sent == first.sent);
    let next = reports.iter().map(|(_, queued)| queued.next).max()?;
    let safe_to_repeat = first.is_safe_to_repeat(now);
    let due = match stage {
        Stage::Due => next.max(recent.map_or(0, RecentReport::end)),
        Stage::Check => next.max(limits.check),
        _ if safe_to_repeat => next,
        // Only a check can show whether the report arrived.
        _ => next.max(limits.check),
    };
    Some(PlannedGroup {
        ids: reports.iter().map(|(id, _)| *id).collect(),
        stage,
        tries: reports.iter().map(|(_, queued)| queued.tries).max()?,
        time: reports.iter().map(|(_, queued)| queued.report.time).min()?,
        due,
        safe_to_repeat,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_342_588;

    fn address(n: usize) -> Address {
        Address::new(&format!("203.0.{}.{}", 113 + n / 200, n % 200 + 1)).unwrap()
    }

    fn one(n: usize, stage: Stage, next: i64) -> QueuedReport {
        let report =
            Report { address: address(n), time: NOW - 60, ..Report::sample("203.0.113.1") };
        QueuedReport { report, stage, tries: 0, next, sent: 0 }
    }

    /// The next step for a queue; `recent` has addresses with the time of their last accepted report.
    fn planned(ones: &[QueuedReport], recent: &[(usize, i64)], limits: CallLimits) -> Next {
        let waiting = (1..).zip(ones.iter().cloned()).collect();
        let recent = recent.iter().map(|(n, at)| {
            let categories = Categories::new("18").unwrap();
            (address(*n), RecentReport { at: *at, categories, comment: String::new() })
        });
        next(&waiting, &recent.collect(), &limits, NOW)
    }

    #[test]
    fn address_is_reported_once_per_interval() {
        use Stage::{Check, Due, New, Sent};
        let free = CallLimits::default();
        assert_eq!(planned(&[], &[], free), Next::Idle);
        let new = one(1, New, 0);
        assert_eq!(planned(&[one(1, Due, 0), new.clone()], &[], free), Next::Admit(2));
        assert_eq!(planned(&[one(1, New, NOW + 5)], &[], free), Next::Sleep(NOW + 5));
        let due = [one(1, Due, 0), one(2, Due, 0), one(1, Due, 0)];
        assert_eq!(planned(&due, &[], free), Next::Single(vec![1, 3]));
        assert_eq!(planned(&due, &[(1, NOW - 60)], free), Next::Single(vec![2]));
        let end = NOW - 60 + REPORT_INTERVAL_SECS + CLOCK_MARGIN_SECS;
        assert_eq!(planned(&due[2..], &[(1, NOW - 60)], free), Next::Sleep(end));
        assert_eq!(
            planned(&due[2..], &[(1, NOW - REPORT_INTERVAL_SECS - CLOCK_MARGIN_SECS)], free),
            Next::Single(vec![1])
        );
        assert_eq!(planned(&[one(1, Check, 0)], &[], free), Next::Single(vec![1]));
        // A report in doubt is sent alone, before newer reports of the address.
        let sent = QueuedReport { sent: NOW - 60, ..one(1, Sent, NOW - 30) };
        assert_eq!(planned(&[one(1, Due, 0), sent], &[], free), Next::Single(vec![2]));
    }

    #[test]
    fn limit_of_an_endpoint_delays_only_its_calls() {
        use Stage::{Check, Due, Sent};
        let later = NOW + 100;
        let recent = QueuedReport { sent: NOW - 60, ..one(1, Sent, 0) };
        let old = QueuedReport { sent: NOW - REPORT_INTERVAL_SECS, ..one(1, Sent, 0) };
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
            (recent, CallLimits { check: later, ..CallLimits::default() }, true),
            (old.clone(), CallLimits { check: later, ..CallLimits::default() }, false),
            (old, CallLimits::default(), true),
        ];
        for (waiting, limits, goes) in table {
            let expected = if goes { Next::Single(vec![1]) } else { Next::Sleep(later) };
            assert_eq!(
                planned(std::slice::from_ref(&waiting), &[], limits),
                expected,
                "{waiting:?}"
            );
        }
    }

    #[test]
    fn backlog_is_sent_in_one_call() {
        use Stage::{Check, Due, Sent, SentInBulk};
        let mut due: Vec<_> = (1..=20).map(|n| one(n, Due, 0)).collect();
        due.extend([one(1, Due, 0), one(30, Check, 0), one(31, Sent, 0), one(32, Due, NOW + 1)]);
        assert_eq!(planned(&due, &[], CallLimits::default()), Next::Single(vec![1, 21]));
        due.push(QueuedReport { sent: NOW - 60, ..one(40, SentInBulk, 0) });
        let Next::Bulk(groups) =
            planned(&due, &[], CallLimits { report: NOW + 1, ..CallLimits::default() })
        else {
            panic!("the limit of single reports does not delay a bulk report")
        };
        assert_eq!(groups.len(), 21);
        assert!(groups.contains(&vec![1, 21]) && groups.contains(&vec![25]));
        let spent = CallLimits { bulk: NOW + 1, ..CallLimits::default() };
        assert_eq!(planned(&due, &[], spent), Next::Single(vec![1, 21]));
        due[24].sent = NOW - REPORT_INTERVAL_SECS;
        assert_eq!(planned(&due, &[], CallLimits::default()), Next::Single(vec![1, 21]));
        (due[24].sent, due[24].tries) = (NOW - 60, MAX_BULK_TRIES);
        assert_eq!(planned(&due, &[], CallLimits::default()), Next::Single(vec![1, 21]));
    }

    #[test]
    fn report_older_than_60_days_is_dropped() {
        let mut old = one(1, Stage::Due, NOW + 1000);
        old.report.time = NOW - MAX_AGE_SECS;
        assert_eq!(
            planned(&[one(2, Stage::New, 0), old], &[], CallLimits::default()),
            Next::DropExpired(2)
        );
    }
}
