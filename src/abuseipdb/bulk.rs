//! The step of the worker that tells of many addresses in one call, when a backlog has built up.

use std::collections::BTreeMap;

use super::answer::{ApiError, BulkAccepted};
use super::api::{Api, BULK_HEAD, Request};
use super::log::Log;
use super::plan::{self, Id, QueuedReport, Stage};
use super::queue::Endpoint;
use super::sending::{PAUSE, Reply, Submission};
use super::worker::Worker;
use crate::error::Error;
use crate::wire::Address;

/// A bulk call carries at most this many bytes (docs.abuseipdb.com: 2 MB).
const MAX_BULK: usize = 1_900_000;

impl<A: Api> Worker<A> {
    /// Many addresses in one call.
    pub(super) async fn bulk(&mut self, groups: &[Vec<Id>]) -> Result<(), Error> {
        let (mut csv, mut together, mut key) = (BULK_HEAD.to_owned(), Vec::new(), None);
        for ids in groups {
            let Some(group) = self.group(ids) else { continue };
            let Some(its) = self.key(&group)? else { continue };
            let line = group.form.line();
            if *key.get_or_insert_with(|| its.clone()) == its && csv.len() + line.len() < MAX_BULK {
                csv.push_str(&line);
                together.push(group);
            }
        }
        let Some((key, first)) = key.zip(together.first()) else { return Ok(()) };
        let log = first.log.clone();
        let about = format!("{} IPs in one call", together.len());
        let ids: Vec<Id> = together.iter().flat_map(|group| group.ids.clone()).collect();
        let (now, before) = (self.now(), self.queue.these(&ids));
        self.queue.update(&ids, |waiting| {
            // Counted before it is sent: a process that dies meanwhile has tried, too.
            waiting.tries = if waiting.in_doubt() { waiting.tries + 1 } else { 1 };
            waiting.send(Stage::SentInBulk, now);
        })?;
        let reply = self.ask::<BulkAccepted>(Endpoint::Bulk, &key, &Request::Bulk(csv)).await?;
        let (answer, trouble) = match reply {
            Reply::Done(taken) => return self.taken_in_bulk(&together, before, &taken, &log),
            Reply::Failed(failure) => return self.unanswered(&log, &about, &failure, before),
            Reply::Trouble(answer, trouble) => (answer, trouble),
        };
        log.line(format_args!("{} ({about})", answer.log_text(key.reveal())));
        match trouble {
            ApiError::Spent(wait) => {
                self.queue.set(before)?;
                self.spent(&log, Endpoint::Bulk, wait)
            }
            ApiError::Key => {
                self.queue.set(before)?;
                self.key_refused(&key, &answer)
            }
            // The file, not a line of it: each report goes by itself.
            ApiError::Refused { .. } | ApiError::NotAllowed => {
                self.queue.set(before)?;
                self.queue.block(Endpoint::Bulk, self.now() + PAUSE)
            }
            _ => self.put_off(&[], answer.asks_for()),
        }
    }

    /// What a bulk call did not take goes by itself, so that it is known why. Where the answer does
    /// not tell of all, the rest is in doubt.
    fn taken_in_bulk(
        &mut self,
        groups: &[Submission],
        before: Vec<(Id, QueuedReport)>,
        taken: &BulkAccepted,
        log: &Log,
    ) -> Result<(), Error> {
        let mut refused = BTreeMap::new();
        for invalid in taken.invalid_reports.iter().filter(|invalid| !invalid.is_known()) {
            if let Ok(address) = Address::new(invalid.input.trim()) {
                refused.insert(address, invalid.error.as_str());
            }
        }
        let told_of =
            taken.saved_reports.saturating_add_unsigned(taken.invalid_reports.len() as u64);
        if told_of < i64::try_from(groups.len()).unwrap_or(i64::MAX) {
            log.line(format_args!(
                "ERROR: AbuseIPDB accounts for only {told_of} of {} IPs in one call. The reporter checks \
                 each IP.",
                groups.len()
            ));
            return self.put_off(&[], 0);
        }
        let (not, now) = (|group: &&Submission| refused.contains_key(&group.address), self.now());
        let told = |group: &Submission| (group.address, group.recent(now));
        let ids = groups.iter().filter(|group| !not(group)).flat_map(|group| group.ids.clone());
        let ids: Vec<Id> = ids.collect();
        let alone = before.into_iter().filter(|(id, _)| !ids.contains(id));
        let alone = alone.map(|(id, one)| (id, QueuedReport { tries: plan::BULK_TRIES, ..one }));
        self.queue.set(alone.collect())?;
        self.queue.done(&ids, groups.iter().filter(|group| !not(group)).map(told).collect())?;
        log.line(format_args!(
            "INFO: Reported {} of {} IPs in one call.",
            taken.saved_reports,
            groups.len()
        ));
        for group in groups {
            if let Some(why) = refused.get(&group.address) {
                group.log.line(format_args!(
                    "ERROR: AbuseIPDB rejected IP {} in a call with other IPs ({why}). The reporter sends \
                     this report again by itself.",
                    group.address
                ));
            } else {
                self.note(&group.reports[0]);
                group.log.line(self.success(group, None, None));
            }
        }
        Ok(())
    }
}
