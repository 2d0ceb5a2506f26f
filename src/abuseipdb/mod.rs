//! The reporter: reports this host's own detections to AbuseIPDB, once and redacted (R23).
//!
//! ```text
//! fail2ban ── actionban ──> enqueue ──> inbox ─ inotify ─> worker ──> api.abuseipdb.com
//!                        (rules)                       │  │ plan: next step
//!                                                 queue┘  └ response: result of a call
//! ```
//!
//! - [`enqueue`]: the action's command. It applies the script's rules and queues a report.
//!   [`crate::spool::manual_bans`]: the operator's manual bans, which are not reported.
//! - [`worker`]: processes the queue step by step; `submit` and `submit_bulk`: the steps that call the server;
//!   [`service`]: runs a worker in the daemon, or in a child that the action's command starts.
//! - [`queue`]: queued reports on disk; [`plan`]: chooses the next step (pure).
//! - [`api`]: the requests; [`response`]: interprets the responses (pure).
//! - [`redact::text`]: composes and redacts the text (pure); [`redact::sources`]: finds what to redact.
//! - [`reported_db`] and [`log`]: the script's database and log, whose formats are a contract; [`key`]: the API key;
//!   [`crate::sys::calendar`]: converts times to text; [`queue_status`]: the queue's status for operators.

pub mod api;
pub mod enqueue;
pub mod key;
pub mod log;
pub mod plan;
pub mod queue;
pub mod queue_status;
pub mod report;
pub mod reported_db;
pub mod response;
pub mod service;
mod submit;
mod submit_bulk;
pub mod worker;

pub mod redact;
#[cfg(test)]
mod tests;
