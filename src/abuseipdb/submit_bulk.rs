//! The worker's step that reports many addresses in one call, once a backlog has built up.

use std::collections::BTreeMap;

use super::api::{Api, ApiRequest, BULK_HEADER};
use super::log::Log;
use super::plan::{self, Id, QueuedReport, Stage};
use super::queue::Endpoint;
use super::response::{ApiError, BulkAccepted};
use super::submit::{REJECTED_PAUSE_SECS, Reply, Submission};
use super::worker::Worker;
use crate::error::Error;
use crate::model::Address;

/// The size limit of a bulk report (docs.abuseipdb.com: 2 MB).
const MAX_BULK_BYTES: usize = 1_900_000;

impl<A: Api> Worker<A> {
    /// Reports all groups that use the same API key as the first, within the size limit.
    pub(super) async fn report_in_bulk(&mut self, groups: &[Vec<Id>]) -> Result<(), Error> {
        let (mut csv, mut together, mut key) = (BULK_HEADER.to_owned(), Vec::new(), None);
        for ids in groups {
            let Some(group) = self.merge(ids) else { continue };
            let Some(group_key) = self.usable_key(&group)? else { continue };
            let line = group.form.csv_line();
            if *key.get_or_insert_with(|| group_key.clone()) == group_key
                && csv.len() + line.len() < MAX_BULK_BYTES
            {
                csv.push_str(&line);
                together.push(group);
            }
        }
        let Some((key, first)) = key.zip(together.first()) else { return Ok(()) };
        let log = first.log.clone();
        let about = format!("{} IPs in one call", together.len());
        let ids: Vec<Id> = together.iter().flat_map(|group| group.ids.clone()).collect();
        let (now, before) = (self.now(), self.queue.copies(&ids));
        self.queue.update(&ids, |waiting| {
            // Count the attempt before sending, so that an attempt counts even if the process dies in between.
            waiting.tries = if waiting.is_in_doubt() { waiting.tries + 1 } else { 1 };
            waiting.mark_sending(Stage::SentInBulk, now);
        })?;
        let reply =
            self.call_api::<BulkAccepted>(Endpoint::Bulk, &key, &ApiRequest::Bulk(csv)).await?;
        let (response, error) = match reply {
            Reply::Data(accepted) => {
                return self.on_bulk_accepted(&together, before, &accepted, &log);
            }
            Reply::NoResponse(failure) => return self.on_no_answer(&log, &about, &failure, before),
            Reply::Error(response, error) => (response, error),
        };
        log.line(format_args!("{} ({about})", response.log_text(key.reveal())));
        match error {
            ApiError::QuotaExhausted(wait) => {
                self.queue.set(before)?;
                self.on_quota_exhausted(&log, Endpoint::Bulk, wait)
            }
            ApiError::InvalidKey => {
                self.queue.set(before)?;
                self.on_key_rejected(&key, &response)
            }
            // The API rejects the file, not a line of it: report each address in a call of its own.
            ApiError::Rejected { .. } | ApiError::NotAllowed => {
                self.queue.set(before)?;
                self.queue.block(Endpoint::Bulk, self.now() + REJECTED_PAUSE_SECS)
            }
            _ => self.back_off(&[], response.retry_delay()),
        }
    }

    /// Requeues rejected lines as single reports, whose responses give the reason. If the response accounts for
    /// fewer lines than were sent, every report stays in doubt.
    fn on_bulk_accepted(
        &mut self,
        groups: &[Submission],
        before: Vec<(Id, QueuedReport)>,
        accepted: &BulkAccepted,
        log: &Log,
    ) -> Result<(), Error> {
        let mut rejected = BTreeMap::new();
        for invalid in accepted.invalid_reports.iter().filter(|invalid| !invalid.is_known()) {
            if let Ok(address) = Address::new(invalid.input.trim()) {
                rejected.insert(address, invalid.error.as_str());
            }
        }
        let accounted =
            accepted.saved_reports.saturating_add_unsigned(accepted.invalid_reports.len() as u64);
        if accounted < i64::try_from(groups.len()).unwrap_or(i64::MAX) {
            log.line(format_args!(
                "ERROR: AbuseIPDB accounts for only {accounted} of {} IPs in one call. The reporter checks \
                 each IP.",
                groups.len()
            ));
            return self.back_off(&[], 0);
        }
        let now = self.now();
        let accepted_groups: Vec<&Submission> =
            groups.iter().filter(|group| !rejected.contains_key(&group.address)).collect();
        let ids: Vec<Id> = accepted_groups.iter().flat_map(|group| group.ids.clone()).collect();
        // With this number of tries, the plan no longer puts a report into a bulk call.
        let singles = before.into_iter().filter(|(id, _)| !ids.contains(id));
        let singles =
            singles.map(|(id, one)| (id, QueuedReport { tries: plan::MAX_BULK_TRIES, ..one }));
        self.queue.set(singles.collect())?;
        let recent = accepted_groups.iter().map(|group| (group.address, group.recent(now)));
        self.queue.complete(&ids, recent.collect())?;
        log.line(format_args!(
            "INFO: Reported {} of {} IPs in one call.",
            accepted.saved_reports,
            groups.len()
        ));
        for group in groups {
            if let Some(why) = rejected.get(&group.address) {
                group.log.line(format_args!(
                    "ERROR: AbuseIPDB rejected IP {} in a call with other IPs ({why}). The reporter sends \
                     this report again by itself.",
                    group.address
                ));
            } else {
                self.add_to_ledger(&group.reports[0]);
                group.log.line(self.success_line(group, None, None));
            }
        }
        Ok(())
    }
}
