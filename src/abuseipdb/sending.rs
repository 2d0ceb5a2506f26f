//! The steps of the worker that ask the server, and what becomes of a report by its answer.

use serde::de::DeserializeOwned;

use super::answer::{Accepted, ApiError, ApiResponse, Listing, Quota};
use super::api::{Api, Failure, Form, Request};
use super::comment;
use super::key::ApiKeys;
use super::log::Log;
use super::plan::{self, Id, QueuedReport, RecentReport, Stage};
use super::queue::Endpoint;
use super::report::{Categories, Report};
use super::worker::{Worker, already_reported, pause};
use crate::config::Secret;
use crate::error::Error;
use crate::wire::Address;

/// A kind of call that the server refuses as such rests for this long, in seconds.
pub(super) const PAUSE: i64 = 3600;

/// Reports of one address that go together.
pub(super) struct Submission {
    pub(super) ids: Vec<Id>,
    pub(super) address: Address,
    /// Never empty.
    pub(super) reports: Vec<Report>,
    stage: Stage,
    /// When it was first sent, if that is in doubt.
    sent: i64,
    safe_to_repeat: bool,
    pub(super) form: Form,
    categories: Categories,
    pub(super) log: Log,
}

impl Submission {
    /// Logs what went wrong, with the address that it happened to.
    fn log_failure(&self, line: &str) {
        self.log.line(format_args!("{line} ({})", self.about()));
    }

    fn about(&self) -> String {
        format!("IP {}", self.address)
    }

    pub(super) fn recent(&self, at: i64) -> RecentReport {
        RecentReport { at, categories: self.categories.clone(), comment: self.form.comment.clone() }
    }
}

/// What came of asking.
pub(super) enum Reply<T> {
    Done(T),
    Trouble(ApiResponse, ApiError),
    Failed(Failure),
}

/// What came of a check.
#[derive(PartialEq, Eq)]
enum Checked {
    Listing(Listing),
    /// Checks are spent for today; other calls may go.
    NotNow,
    /// The report waits, or is given up.
    Over,
}

impl<A: Api> Worker<A> {
    pub(super) fn group(&self, ids: &[Id]) -> Option<Submission> {
        let now = self.now();
        let waiting: Vec<_> = ids.iter().filter_map(|id| self.queue.waiting().get(id)).collect();
        let first = waiting.first()?;
        let reports: Vec<_> = waiting.iter().map(|one| one.report.clone()).collect();
        let address = first.report.address;
        let mut categories = Categories::default();
        for report in &reports {
            categories.join(&report.categories);
        }
        let comments = reports.iter().map(|report| (report.comment.as_str(), report.source));
        let time = reports.iter().map(|report| report.time).min()?;
        let form = Form {
            address,
            categories: categories.to_string(),
            comment: comment::compose(comments, address, &self.private),
            timestamp: Some(self.times.iso(time)),
        };
        Some(Submission {
            ids: ids.to_vec(),
            address,
            stage: first.stage,
            sent: first.sent,
            safe_to_repeat: waiting.iter().all(|one| one.is_safe_to_repeat(now)),
            form,
            categories,
            log: Log::new(first.report.log.clone()),
            reports,
        })
    }

    /// The key that a group goes with. Without one, or with one that was refused, the group waits.
    pub(super) fn key(&mut self, group: &Submission) -> Result<Option<Secret>, Error> {
        let now = self.now();
        let key = group.reports.first().and_then(|report| self.keys.of(report)).cloned();
        let rests = match &key {
            Some(key) => self.keys.rests(key),
            None => Some(ApiKeys::missing(now)),
        };
        let Some(until) = rests else { return Ok(key) };
        if key.is_none() {
            let fault = self.keys.fault();
            self.queue.record_call(now, Some(&fault))?;
            group
                .log
                .line(format_args!("ERROR: The report of IP {} waits: {fault}.", group.address));
        }
        self.queue.update(&group.ids, |waiting| waiting.next = until)?;
        Ok(None)
    }

    pub(super) async fn ask<T: DeserializeOwned>(
        &mut self,
        call: Endpoint,
        key: &Secret,
        request: &Request,
    ) -> Result<Reply<T>, Error> {
        let asked = self.api.ask(key, request).await;
        let now = self.now();
        let answer = match asked {
            Ok(answer) => answer,
            Err(failure) => {
                self.queue.record_call(now, Some(&failure.to_string()))?;
                return Ok(Reply::Failed(failure));
            }
        };
        if answer.quota != Quota::default() {
            self.queue.remains(call, answer.quota, now)?;
        }
        let read = answer.read(now);
        let error = read.as_ref().err().and_then(|trouble| answer.fault(trouble));
        self.queue.record_call(now, error.as_deref())?;
        if !matches!(read, Err(ApiError::Odd)) {
            self.failures = 0;
        }
        Ok(match read {
            Ok(data) => Reply::Done(data),
            Err(trouble) => Reply::Trouble(answer, trouble),
        })
    }

    /// One address by itself: asks what is listed of it, then reports it.
    pub(super) async fn alone(&mut self, ids: &[Id]) -> Result<(), Error> {
        let Some(group) = self.group(ids) else { return Ok(()) };
        let Some(key) = self.key(&group)? else { return Ok(()) };
        let mut listing = None;
        if self.queue.limits().check <= self.now() {
            match self.check(&group, &key).await? {
                Checked::Listing(found) => listing = Some(found),
                Checked::NotNow => {}
                Checked::Over => return Ok(()),
            }
        }
        let address = group.address;
        match (group.stage, &listing) {
            // Who was never told of needs no check.
            (Stage::Due, _) => {}
            (Stage::Sent | Stage::SentInBulk, None) if group.safe_to_repeat => {}
            (_, None) => return Ok(()), // the plan waits until checks are to be had again
            (Stage::New | Stage::Check, Some(listing)) => {
                if listing.total_reports.unwrap_or(0) > 0 {
                    group.log.line(already_reported(address));
                    return self.queue.done(&group.ids, Vec::new());
                }
                group.log.line(format_args!(
                    "INFO: IP {address} has already been reported but is no longer listed on \
                     AbuseIPDB. Resubmitting..."
                ));
            }
            (Stage::Sent | Stage::SentInBulk, Some(listing)) => {
                if self.is_among(listing, &group) {
                    let line = self.success(&group, Some(listing), None);
                    return self.accepted(&group, &line);
                }
            }
        }
        self.report(&group, &key, listing.as_ref()).await
    }

    /// Whether a report that is in doubt is listed. Where so many are that the answer has none of
    /// them, and the server would take a second one, it counts as listed.
    fn is_among(&self, listing: &Listing, group: &Submission) -> bool {
        if listing.reports.is_empty() {
            return listing.total_reports.unwrap_or(0) > 0 && !group.safe_to_repeat;
        }
        // A server may write it a little differently.
        let letters = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).collect::<String>();
        let ours = |time: &str| group.form.timestamp.as_deref() == Some(time);
        let time = group.form.timestamp.as_ref().and_then(|time| self.times.read(time));
        let comment = letters(&group.form.comment);
        listing.reports.iter().any(|listed| {
            let at = self.times.read(&listed.reported_at);
            // Without its own time it has the one at which it came.
            let came =
                at.is_some_and(|at| (group.sent - 60..group.sent + plan::WINDOW).contains(&at));
            (ours(&listed.reported_at) || at.is_some() && at == time || came)
                && listed.comment.as_deref().is_some_and(|listed| letters(listed) == comment)
        })
    }

    async fn check(&mut self, group: &Submission, key: &Secret) -> Result<Checked, Error> {
        let address = group.address;
        let mut verbose = true;
        loop {
            let request = Request::Check { address, verbose };
            let reply = self.ask(Endpoint::Check, key, &request).await?;
            let checked = match reply {
                Reply::Done(listing) => return Ok(Checked::Listing(listing)),
                Reply::Trouble(_, ApiError::TooLong) if verbose => {
                    verbose = false;
                    continue;
                }
                Reply::Trouble(answer, trouble) => {
                    group.log_failure(&answer.log_text(key.reveal()));
                    self.check_refused(group, key, &answer, &trouble)?
                }
                Reply::Failed(Failure::Unknown(why)) => {
                    group.log_failure(&format!("ERROR: No answer from api.abuseipdb.com: {why}."));
                    self.check_failed(group, 0)?
                }
                Reply::Failed(failure) => {
                    self.unanswered(&group.log, &group.about(), &failure, Vec::new())?;
                    Checked::Over
                }
            };
            if checked == Checked::Over && group.stage == Stage::Check {
                group.log.line(format_args!(
                    "ERROR: Failed to check IP {address} in the AbuseIPDB API. The report waits."
                ));
            }
            return Ok(checked);
        }
    }

    fn check_refused(
        &mut self,
        group: &Submission,
        key: &Secret,
        answer: &ApiResponse,
        trouble: &ApiError,
    ) -> Result<Checked, Error> {
        match trouble {
            ApiError::Spent(wait) => {
                self.spent(&group.log, Endpoint::Check, *wait)?;
                Ok(Checked::NotNow)
            }
            ApiError::NotAllowed => {
                self.queue.block(Endpoint::Check, self.now() + PAUSE)?;
                Ok(Checked::NotNow)
            }
            ApiError::Refused { .. } => match group.stage {
                Stage::Due => Ok(Checked::NotNow),
                Stage::New | Stage::Check => {
                    self.give_back(group)?;
                    Ok(Checked::Over)
                }
                Stage::Sent | Stage::SentInBulk => self.check_failed(group, 0),
            },
            // Of a new address the answer to the report says the same.
            ApiError::Key if group.stage == Stage::Due => Ok(Checked::NotNow),
            ApiError::Key => {
                self.key_refused(key, answer)?;
                Ok(Checked::Over)
            }
            _ => self.check_failed(group, answer.asks_for()),
        }
    }

    /// Checks rest for a while, and for as long as the server asks for. What was never reported needs none; of the
    /// rest, this one waits, and no other does.
    fn check_failed(&mut self, group: &Submission, wait: i64) -> Result<Checked, Error> {
        let now = self.now();
        self.queue.block(Endpoint::Check, now + pause(1).max(wait))?;
        if group.stage == Stage::Due {
            return Ok(Checked::NotNow);
        }
        self.queue.update(&group.ids, |waiting| {
            waiting.tries = waiting.tries.saturating_add(1);
            waiting.next = now + 2 * pause(waiting.tries);
        })?;
        Ok(Checked::Over)
    }

    async fn report(
        &mut self,
        group: &Submission,
        key: &Secret,
        listing: Option<&Listing>,
    ) -> Result<(), Error> {
        let mut form = group.form.clone();
        let before = self.queue.these(&group.ids);
        loop {
            let now = self.now();
            self.queue.update(&group.ids, |waiting| waiting.send(Stage::Sent, now))?;
            let request = Request::Report(form.clone());
            let (answer, trouble) =
                match self.ask::<Accepted>(Endpoint::Report, key, &request).await? {
                    Reply::Done(taken) => {
                        let line = self.success(group, listing, taken.score);
                        return self.accepted(group, &line);
                    }
                    Reply::Failed(failure) => {
                        return self.unanswered(&group.log, &group.about(), &failure, before);
                    }
                    Reply::Trouble(answer, trouble) => (answer, trouble),
                };
            let address = group.address;
            if trouble == ApiError::TooSoon {
                return self.accepted(
                    group,
                    &format!(
                        "INFO: IP {address} has already been reported with this key within the last 15 \
                         minutes (HTTP 429)."
                    ),
                );
            }
            group.log_failure(&answer.log_text(key.reveal()));
            match trouble {
                // A clock that is ahead: better reported as of now than not at all.
                ApiError::Refused { timestamp: true } if form.timestamp.is_some() => {
                    form.timestamp = None;
                }
                ApiError::Refused { .. } => return self.give_back(group),
                ApiError::Spent(wait) => {
                    self.queue.set(before)?;
                    return self.spent(&group.log, Endpoint::Report, wait);
                }
                ApiError::Key => {
                    self.queue.set(before)?;
                    return self.key_refused(key, &answer);
                }
                ApiError::NotAllowed => {
                    self.queue.set(before)?;
                    self.queue.block(Endpoint::Report, self.now() + pause(1))?;
                    return self.put_off(&group.ids, 0);
                }
                _ => return self.put_off(&group.ids, answer.asks_for()),
            }
        }
    }

    /// The server has it.
    fn accepted(&mut self, group: &Submission, line: &str) -> Result<(), Error> {
        let told = group.recent(self.now());
        self.queue.done(&group.ids, vec![(group.address, told)])?;
        self.note(&group.reports[0]);
        group.log.line(line);
        Ok(())
    }

    /// The line that log watchers know. `score` is that of the answer to the report, as in the scripts; the rest only
    /// a check tells, and it is not always known.
    pub(super) fn success(
        &self,
        group: &Submission,
        listing: Option<&Listing>,
        score: Option<i64>,
    ) -> String {
        const UNKNOWN: &str = "not known";
        let score = score.or_else(|| listing.and_then(|listing| listing.score));
        let score = score.map_or(UNKNOWN.to_owned(), |score| format!("{score}%"));
        let reports = listing.and_then(|listing| listing.total_reports);
        let reports = reports.map_or(UNKNOWN.to_owned(), |reports| reports.to_string());
        let times = listing.map(|listing| {
            let times = listing.reports.iter();
            times.filter_map(|listed| self.times.read(&listed.reported_at)).min()
        });
        let oldest = match times {
            None => UNKNOWN.to_owned(),
            Some(None) => "Not Reported yet".to_owned(),
            Some(Some(time)) => self.times.local(time),
        };
        let failures: i64 = group.reports.iter().map(|report| report.failures).sum();
        format!(
            "SUCCESS: Reported {} - Score: {score}, Reports: {reports}, Oldest Report: {oldest}, \
             Failures:{failures}.",
            group.address
        )
    }

    /// The server will never take it.
    fn give_back(&mut self, group: &Submission) -> Result<(), Error> {
        self.forget(&group.reports[0]);
        self.queue.done(&group.ids, Vec::new())
    }

    /// The server is in trouble, or what answered is not the server: it is left alone for a while,
    /// and what met with this goes last.
    /// `wait`: what it asks for, in seconds.
    pub(super) fn put_off(&mut self, ids: &[Id], wait: i64) -> Result<(), Error> {
        let now = self.now();
        self.failures = self.failures.saturating_add(1);
        self.queue.update(ids, |waiting| {
            waiting.tries = waiting.tries.saturating_add(1);
            waiting.next = now + 2 * pause(waiting.tries);
        })?;
        if self.failures < 2 && !ids.is_empty() && wait == 0 {
            return Ok(()); // perhaps the report's own doing, and no other is to wait for it
        }
        self.queue.block(Endpoint::All, now + pause(self.failures).max(wait))
    }

    /// There was no answer. What was not even sent is as it was before.
    pub(super) fn unanswered(
        &mut self,
        log: &Log,
        about: &str,
        failure: &Failure,
        before: Vec<(Id, QueuedReport)>,
    ) -> Result<(), Error> {
        let (what, why) = match failure {
            Failure::NotSent(why) => {
                self.queue.set(before)?;
                ("connection to", why)
            }
            Failure::Unknown(why) => ("answer from", why),
        };
        let count = self.queue.waiting().len();
        log.line(format_args!(
            "ERROR: No {what} api.abuseipdb.com: {why}. Queued reports: {count}. ({about})"
        ));
        self.put_off(&[], 0)
    }

    /// The day's calls are used up.
    pub(super) fn spent(&mut self, log: &Log, call: Endpoint, wait: i64) -> Result<(), Error> {
        let until = self.now() + wait;
        log.line(format_args!(
            "INFO: The daily limit of AbuseIPDB is reached for {} calls. The next call is at {}.",
            call.name(),
            self.times.local(until)
        ));
        self.queue.block(call, until)
    }

    pub(super) fn key_refused(&mut self, key: &Secret, answer: &ApiResponse) -> Result<(), Error> {
        let until = self.keys.refused(key, self.now());
        (self.surroundings.warn)(&format!(
            "AbuseIPDB rejected the API key (HTTP {}); check {}; reports wait",
            answer.status,
            self.keys.path().display()
        ));
        let its = |report: &Report| self.keys.of(report) == Some(key);
        let waiting = self.queue.waiting().iter().filter(|(_, one)| its(&one.report));
        let ids: Vec<Id> = waiting.map(|(id, _)| *id).collect();
        self.queue.update(&ids, |waiting| waiting.next = until)
    }
}
