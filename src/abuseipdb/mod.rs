//! The reporter: reports this host's own detections to AbuseIPDB, once and redacted (R23).
//!
//! ```text
//! fail2ban ── actionban ──> call ──> inbox ─ inotify ─> worker ──> api.abuseipdb.com
//!                        (rules)                       │  │ plan: next step
//!                                                 queue┘  └ answer: result of a call
//! ```
//!
//! - [`call`]: the action's command. It applies the script's rules and queues a report.
//!   [`crate::spool::manual_bans`]: the operator's manual bans, which are not reported.
//! - [`worker`]: processes the queue step by step; `sending` and `bulk`: the steps that call the server;
//!   [`service`]: runs a worker in the daemon, or in a child that the action's command starts.
//! - [`queue`]: queued reports on disk; [`plan`]: chooses the next step (pure).
//! - [`api`]: the requests; [`answer`]: interprets the responses (pure).
//! - [`comment`]: composes and redacts the text (pure); [`private`]: finds what to redact.
//! - [`ledger`] and [`log`]: the script's database and log, whose formats are a contract; [`key`]: the API key;
//!   [`crate::sys::calendar`]: converts times to text; [`glance`]: the queue's status for operators.

pub mod answer;
pub mod api;
mod bulk;
pub mod call;
pub mod comment;
pub mod glance;
pub mod key;
pub mod ledger;
pub mod log;
pub mod plan;
pub mod private;
pub mod queue;
pub mod report;
mod sending;
pub mod service;
pub mod worker;

#[cfg(test)]
mod tests;
