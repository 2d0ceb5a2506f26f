//! The worker's steps that call the server, and the effect of each response on the queue.

use serde::de::DeserializeOwned;

use super::api::{Api, ApiRequest, Failure, Form};
use super::key::ApiKeys;
use super::log::Log;
use super::plan::{self, Id, QueuedReport, RecentReport, Stage};
use super::queue::Endpoint;
use super::redact::text;
use super::report::{Categories, Report};
use super::response::{Accepted, ApiError, ApiResponse, Listing, Quota};
use super::worker::{Worker, already_reported, retry_pause_secs};
use crate::config::Secret;
use crate::error::Error;
use crate::model::Address;

/// How long an endpoint is not called after the server denied this account the use of it.
pub(super) const REJECTED_PAUSE_SECS: i64 = 3600;

/// Reports of one address, merged into one.
pub(super) struct Submission {
    pub(super) ids: Vec<Id>,
    pub(super) address: Address,
    /// Never empty.
    pub(super) reports: Vec<Report>,
    stage: Stage,
    /// The first attempt that is in doubt, in seconds since 1970; 0: none.
    sent: i64,
    safe_to_repeat: bool,
    pub(super) form: Form,
    categories: Categories,
    pub(super) log: Log,
}

impl Submission {
    /// Logs an error together with the address.
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

/// The result of a call.
pub(super) enum Reply<T> {
    Data(T),
    Error(ApiResponse, ApiError),
    NoResponse(Failure),
}

/// The result of a check.
#[derive(PartialEq, Eq)]
enum CheckOutcome {
    Listing(Listing),
    /// Checks are not possible now. A report that needs no check may be sent.
    Unavailable,
    /// The group waits or was dropped.
    Handled,
}

/// A text without punctuation and blanks, which the server may change.
fn letters_and_digits(text: &str) -> String {
    text.chars().filter(|c| c.is_alphanumeric()).collect()
}

impl<A: Api> Worker<A> {
    /// Merges queued reports of one address; `None` if none of them is queued any more.
    pub(super) fn merge(&self, ids: &[Id]) -> Option<Submission> {
        let now = self.now();
        let waiting: Vec<_> = ids.iter().filter_map(|id| self.queue.waiting().get(id)).collect();
        let first = waiting.first()?;
        let reports: Vec<_> = waiting.iter().map(|one| one.report.clone()).collect();
        let address = first.report.address;
        let mut categories = Categories::default();
        for report in &reports {
            categories.merge(&report.categories);
        }
        let comments = reports.iter().map(|report| (report.comment.as_str(), report.source));
        let time = reports.iter().map(|report| report.time).min()?;
        let form = Form {
            address,
            categories: categories.to_string(),
            comment: text::compose(comments, address, &self.private),
            timestamp: Some(self.calendar.iso(time)),
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

    /// The key to send a group with. Without a key, or if the server rejected the key, the group waits.
    pub(super) fn usable_key(&mut self, group: &Submission) -> Result<Option<Secret>, Error> {
        let now = self.now();
        let key = group.reports.first().and_then(|report| self.keys.key_for(report)).cloned();
        let paused_until = match &key {
            Some(key) => self.keys.blocked_until(key),
            None => Some(ApiKeys::retry_at(now)),
        };
        let Some(until) = paused_until else { return Ok(key) };
        if key.is_none() {
            let error = self.keys.missing_key_error();
            self.queue.record_call(now, Some(&error))?;
            group
                .log
                .line(format_args!("ERROR: The report of IP {} waits: {error}.", group.address));
        }
        self.queue.update(&group.ids, |waiting| waiting.next = until)?;
        Ok(None)
    }

    /// Makes a call and records its result and quota.
    pub(super) async fn call_api<T: DeserializeOwned>(
        &mut self,
        call: Endpoint,
        key: &Secret,
        request: &ApiRequest,
    ) -> Result<Reply<T>, Error> {
        let result = self.api.call(key, request).await;
        let now = self.now();
        let response = match result {
            Ok(response) => response,
            Err(failure) => {
                self.queue.record_call(now, Some(&failure.to_string()))?;
                return Ok(Reply::NoResponse(failure));
            }
        };
        if response.quota != Quota::default() {
            self.queue.record_quota(call, response.quota, now)?;
        }
        let read = response.read(now);
        let error = read.as_ref().err().and_then(|error| response.error_text(error));
        self.queue.record_call(now, error.as_deref())?;
        if !matches!(read, Err(ApiError::Unexpected)) {
            self.failures = 0;
        }
        Ok(match read {
            Ok(data) => Reply::Data(data),
            Err(error) => Reply::Error(response, error),
        })
    }

    /// Reports one address, after a check.
    pub(super) async fn report_alone(&mut self, ids: &[Id]) -> Result<(), Error> {
        let Some(group) = self.merge(ids) else { return Ok(()) };
        let Some(key) = self.usable_key(&group)? else { return Ok(()) };
        let mut listing = None;
        if self.queue.limits().check <= self.now() {
            match self.check_listing(&group, &key).await? {
                CheckOutcome::Listing(found) => listing = Some(found),
                CheckOutcome::Unavailable => {}
                CheckOutcome::Handled => return Ok(()),
            }
        }
        let address = group.address;
        match (group.stage, &listing) {
            // A first report needs no check; the check only adds numbers to the log.
            (Stage::Due, _) => {}
            (Stage::Sent | Stage::SentInBulk, None) if group.safe_to_repeat => {}
            (_, None) => return Ok(()), // the plan delays this group until checks are possible
            (Stage::New | Stage::Check, Some(listing)) => {
                if listing.total_reports.unwrap_or(0) > 0 {
                    group.log.line(already_reported(address));
                    return self.queue.complete(&group.ids, Vec::new());
                }
                group.log.line(format_args!(
                    "INFO: IP {address} has already been reported but is no longer listed on \
                     AbuseIPDB. Resubmitting..."
                ));
            }
            (Stage::Sent | Stage::SentInBulk, Some(listing)) => {
                if self.is_listed(listing, &group) {
                    let line = self.success_line(&group, Some(listing), None);
                    return self.on_accepted(&group, &line);
                }
            }
        }
        self.submit(&group, &key, listing.as_ref()).await
    }

    /// Whether a report in doubt is listed. If the response lists no single reports because there are too many, and
    /// the server would accept a duplicate, the report counts as listed.
    fn is_listed(&self, listing: &Listing, group: &Submission) -> bool {
        if listing.reports.is_empty() {
            return listing.total_reports.unwrap_or(0) > 0 && !group.safe_to_repeat;
        }
        let time = group.form.timestamp.as_ref().and_then(|time| self.calendar.read(time));
        let comment = letters_and_digits(&group.form.comment);
        listing.reports.iter().any(|listed| {
            let at = self.calendar.read(&listed.reported_at);
            // A report without a timestamp is listed with the time of its arrival.
            let arrived = at.is_some_and(|at| {
                (group.sent - 60..group.sent + plan::REPORT_INTERVAL_SECS).contains(&at)
            });
            let same_text = group.form.timestamp.as_ref() == Some(&listed.reported_at);
            (same_text || at.is_some() && at == time || arrived)
                && listed
                    .comment
                    .as_deref()
                    .is_some_and(|listed| letters_and_digits(listed) == comment)
        })
    }

    async fn check_listing(
        &mut self,
        group: &Submission,
        key: &Secret,
    ) -> Result<CheckOutcome, Error> {
        let address = group.address;
        let mut verbose = true;
        loop {
            let request = ApiRequest::Check { address, verbose };
            let reply = self.call_api(Endpoint::Check, key, &request).await?;
            let checked = match reply {
                Reply::Data(listing) => return Ok(CheckOutcome::Listing(listing)),
                Reply::Error(_, ApiError::TooLong) if verbose => {
                    verbose = false;
                    continue;
                }
                Reply::Error(response, error) => {
                    group.log_failure(&response.log_text(key.reveal()));
                    self.on_check_rejected(group, key, &response, &error)?
                }
                Reply::NoResponse(Failure::Unknown(why)) => {
                    group.log_failure(&format!("ERROR: No answer from api.abuseipdb.com: {why}."));
                    self.on_check_failed(group, 0)?
                }
                Reply::NoResponse(failure) => {
                    self.on_no_answer(&group.log, &group.about(), &failure, Vec::new())?;
                    CheckOutcome::Handled
                }
            };
            if checked == CheckOutcome::Handled && group.stage == Stage::Check {
                group.log.line(format_args!(
                    "ERROR: Failed to check IP {address} in the AbuseIPDB API. The report waits."
                ));
            }
            return Ok(checked);
        }
    }

    fn on_check_rejected(
        &mut self,
        group: &Submission,
        key: &Secret,
        response: &ApiResponse,
        error: &ApiError,
    ) -> Result<CheckOutcome, Error> {
        match error {
            ApiError::QuotaExhausted(wait) => {
                self.on_quota_exhausted(&group.log, Endpoint::Check, *wait)?;
                Ok(CheckOutcome::Unavailable)
            }
            ApiError::NotAllowed => {
                self.queue.block(Endpoint::Check, self.now() + REJECTED_PAUSE_SECS)?;
                Ok(CheckOutcome::Unavailable)
            }
            ApiError::Rejected { .. } => match group.stage {
                Stage::Due => Ok(CheckOutcome::Unavailable),
                Stage::New | Stage::Check => {
                    self.drop_group(group)?;
                    Ok(CheckOutcome::Handled)
                }
                Stage::Sent | Stage::SentInBulk => self.on_check_failed(group, 0),
            },
            // For a first report, the response to the report itself shows a bad key, too.
            ApiError::InvalidKey if group.stage == Stage::Due => Ok(CheckOutcome::Unavailable),
            ApiError::InvalidKey => {
                self.on_key_rejected(key, response)?;
                Ok(CheckOutcome::Handled)
            }
            _ => self.on_check_failed(group, response.retry_delay()),
        }
    }

    /// Pauses checks, at least for the time that the server asks for. A first report is sent without a check; other
    /// groups wait.
    fn on_check_failed(&mut self, group: &Submission, wait: i64) -> Result<CheckOutcome, Error> {
        let now = self.now();
        self.queue.block(Endpoint::Check, now + retry_pause_secs(1).max(wait))?;
        if group.stage == Stage::Due {
            return Ok(CheckOutcome::Unavailable);
        }
        self.queue.update(&group.ids, |waiting| {
            waiting.tries = waiting.tries.saturating_add(1);
            waiting.next = now + 2 * retry_pause_secs(waiting.tries);
        })?;
        Ok(CheckOutcome::Handled)
    }

    async fn submit(
        &mut self,
        group: &Submission,
        key: &Secret,
        listing: Option<&Listing>,
    ) -> Result<(), Error> {
        let mut form = group.form.clone();
        let before = self.queue.copies(&group.ids);
        loop {
            let now = self.now();
            self.queue.update(&group.ids, |waiting| waiting.mark_sending(Stage::Sent, now))?;
            let request = ApiRequest::Report(form.clone());
            let (response, error) =
                match self.call_api::<Accepted>(Endpoint::Report, key, &request).await? {
                    Reply::Data(accepted) => {
                        let line = self.success_line(group, listing, accepted.score);
                        return self.on_accepted(group, &line);
                    }
                    Reply::NoResponse(failure) => {
                        return self.on_no_answer(&group.log, &group.about(), &failure, before);
                    }
                    Reply::Error(response, error) => (response, error),
                };
            let address = group.address;
            if error == ApiError::TooSoon {
                return self.on_accepted(
                    group,
                    &format!(
                        "INFO: IP {address} has already been reported with this key within the last 15 \
                         minutes (HTTP 429)."
                    ),
                );
            }
            group.log_failure(&response.log_text(key.reveal()));
            match error {
                // This host's clock is ahead: report without a time rather than not at all.
                ApiError::Rejected { timestamp: true } if form.timestamp.is_some() => {
                    form.timestamp = None;
                }
                ApiError::Rejected { .. } => return self.drop_group(group),
                ApiError::QuotaExhausted(wait) => {
                    self.queue.set(before)?;
                    return self.on_quota_exhausted(&group.log, Endpoint::Report, wait);
                }
                ApiError::InvalidKey => {
                    self.queue.set(before)?;
                    return self.on_key_rejected(key, &response);
                }
                ApiError::NotAllowed => {
                    self.queue.set(before)?;
                    self.queue.block(Endpoint::Report, self.now() + retry_pause_secs(1))?;
                    return self.back_off(&group.ids, 0);
                }
                _ => return self.back_off(&group.ids, response.retry_delay()),
            }
        }
    }

    /// The server has the report: completes the group.
    fn on_accepted(&mut self, group: &Submission, line: &str) -> Result<(), Error> {
        let recent = group.recent(self.now());
        self.queue.complete(&group.ids, vec![(group.address, recent)])?;
        self.add_to_ledger(&group.reports[0]);
        group.log.line(line);
        Ok(())
    }

    /// The script's log line for a success, which is a contract. `score` comes from the response to the report; the
    /// other numbers need a check, which is not always possible.
    pub(super) fn success_line(
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
            times.filter_map(|listed| self.calendar.read(&listed.reported_at)).min()
        });
        let oldest = match times {
            None => UNKNOWN.to_owned(),
            Some(None) => "Not Reported yet".to_owned(),
            Some(Some(time)) => self.calendar.local(time),
        };
        let failures: i64 = group.reports.iter().map(|report| report.failures).sum();
        format!(
            "SUCCESS: Reported {} - Score: {score}, Reports: {reports}, Oldest Report: {oldest}, \
             Failures:{failures}.",
            group.address
        )
    }

    /// The server rejects the report permanently: drops the group and removes its address from the reported addresses.
    fn drop_group(&mut self, group: &Submission) -> Result<(), Error> {
        self.remove_from_ledger(&group.reports[0]);
        self.queue.complete(&group.ids, Vec::new())
    }

    /// The server failed, or another server answered: delays all calls, and the reports `ids` longer. `wait` is the
    /// delay that the server asks for, in seconds.
    pub(super) fn back_off(&mut self, ids: &[Id], wait: i64) -> Result<(), Error> {
        let now = self.now();
        self.failures = self.failures.saturating_add(1);
        self.queue.update(ids, |waiting| {
            waiting.tries = waiting.tries.saturating_add(1);
            waiting.next = now + 2 * retry_pause_secs(waiting.tries);
        })?;
        if self.failures < 2 && !ids.is_empty() && wait == 0 {
            return Ok(()); // this report alone may have caused the error, so do not delay others
        }
        self.queue.block(Endpoint::All, now + retry_pause_secs(self.failures).max(wait))
    }

    /// A call got no response. Reports that were not sent return to their state `before`.
    pub(super) fn on_no_answer(
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
        self.back_off(&[], 0)
    }

    /// The daily quota of an endpoint is used up: blocks it for `wait` seconds.
    pub(super) fn on_quota_exhausted(
        &mut self,
        log: &Log,
        call: Endpoint,
        wait: i64,
    ) -> Result<(), Error> {
        let until = self.now() + wait;
        log.line(format_args!(
            "INFO: The daily limit of AbuseIPDB is reached for {} calls. The next call is at {}.",
            call.name(),
            self.calendar.local(until)
        ));
        self.queue.block(call, until)
    }

    /// The server rejected a key: its reports wait.
    pub(super) fn on_key_rejected(
        &mut self,
        key: &Secret,
        response: &ApiResponse,
    ) -> Result<(), Error> {
        let until = self.keys.on_rejected(key, self.now());
        (self.env.warn)(&format!(
            "AbuseIPDB rejected the API key (HTTP {}); check {}; reports wait",
            response.status,
            self.keys.path().display()
        ));
        let waiting = self.queue.waiting().iter();
        let with_key = waiting.filter(|(_, one)| self.keys.key_for(&one.report) == Some(key));
        let ids: Vec<Id> = with_key.map(|(id, _)| *id).collect();
        self.queue.update(&ids, |waiting| waiting.next = until)
    }
}
