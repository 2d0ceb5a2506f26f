//! The reporter: what fail2ban detected here is told to AbuseIPDB, once, and nothing private with it.
//!
//! ```text
//! fail2ban ── actionban ──> call ──> inbox ─ inotify ─> worker ──> api.abuseipdb.com
//!                        (rules)                       │  │ plan: what is next
//!                                                 queue┘  └ answer: what came back means
//! ```
//!
//! - [`call`]: what the action calls. It decides by the script's rules, and queues.
//!   [`by_hand`]: which bans an operator made, and are not to be reported.
//! - [`worker`]: works the queue off, step by step; `sending` and `bulk`: the steps that ask the server;
//!   [`service`]: when, in the daemon or in a child that the call leaves.
//! - [`queue`]: what waits, on disk; [`plan`]: what is to be done next (pure).
//! - [`api`]: the requests; [`answer`]: what each answer means (pure).
//! - [`comment`]: what a report says (pure); [`private`]: what it must not say.
//! - [`glance`]: what an operator sees of the queue.
//! - [`ledger`] and [`log`]: the script's database and log, which people know; [`key`]: the API key;
//!   [`times`]: points in time as text; [`glance`]: how it all stands, for people.

pub mod answer;
pub mod api;
mod bulk;
pub mod by_hand;
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
pub mod times;
pub mod worker;

#[cfg(test)]
mod tests;
