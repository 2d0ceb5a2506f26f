//! f2bmqtt makes a fleet of fail2ban servers ban as one.
//!
//! # The way of a ban
//!
//! ```text
//! detecting host                                    every other host
//! fail2ban ── actionban ──> notify ──> spool        ┌─> guard::gate ─> wire ─> guard ─> fleet ─> apply ─> fail2ban
//!                                        │ inotify  │   (admits)      (parses)  (judges) (decides) (executes)
//!                                     outbox ──> broker
//! ```
//!
//! 1. fail2ban on one host detects an attack, bans the address, and calls [`spool::notify`]. `notify` writes one file to
//!    the [`spool`] and exits. If no daemon runs, `notify` starts [`spool::publish_once`], which publishes the spool once.
//! 2. The [`daemon`] reads the spool. Its [`spool::outbox`] publishes an event, and keeps the event until the [`broker`]
//!    acknowledges it.
//! 3. On every other host, [`guard::gate`] checks the topic, the size and the signature of the message. [`wire`]
//!    parses the message. [`guard`] accepts or rejects the event. [`fleet`] records the claim that the event makes,
//!    compares the desired with the observed bans, and decides what to do.
//! 4. [`daemon::driver`] executes that decision on [`fail2ban`], which bans the address in its firewall.
//!
//! An event may be lost, duplicated or late. Therefore each host also publishes a *snapshot*: all bans that the host
//! detected and still holds. The broker retains the snapshot in one or more *shards*. A shard that arrives corrects
//! whatever the events left wrong, so that all hosts reach the same set of bans. Only three things survive on the
//! host alone, in the [`store`]: imports (bans made for peers), overrides (bans that the operator lifted here) and
//! tombstones (unbans of the whole fleet).
//!
//! # Modules
//!
//! | modules | what they do |
//! |---|---|
//! | [`spool::notify`], [`spool`], [`spool::outbox`], [`spool::publish_once`] | from fail2ban's action to the broker |
//! | [`daemon`] | the service: one loop that serves the broker, the spool, the clock and the service manager |
//! | [`broker`] | the MQTT connection: connect, retry, sign, publish, subscribe |
//! | [`wire`] | the messages as types, and their JSON |
//! | [`guard`], [`guard::ignorelist`] | which messages and which addresses this host accepts |
//! | [`fleet`] | claims, imports, overrides, tombstones; the controller that decides |
//! | [`daemon::driver`], [`fail2ban`] | observe fail2ban, and execute what the controller decides |
//! | [`daemon::state`] | the state that the daemon's loop and `apply` share |
//! | [`store`], [`sys::private_files`], [`sys::paths`], [`spool::owner_lock`] | what is on disk, where, and which process may use it |
//! | [`sys::conntrack`] | ends the open connections of a banned address |
//! | [`abuseipdb`] | reports local detections to AbuseIPDB |
//! | [`daemon::exporters`] | metrics for Prometheus, and entities for Home Assistant |
//! | [`operator`], [`cli`] | the operator's commands; the command line |
//! | [`config`] | reads and validates the settings |
//! | [`sys::log`], [`error`], [`model::text`] | log lines, errors with their exit codes, and text for people |
//! | [`sys::clock`], [`sys::jitter`], [`sys::runtime`], [`sys::detach`] | time, random numbers, threads, detached processes |
//!
//! [`wire`], [`guard`] and [`fleet`] are pure: values in, values out. The caller passes the time. The daemon and the
//! simulation in `tests/simulation/` drive the same code.
//!
//! `docs/architecture.md` has the rules R1 to R24 that comments cite, and their reasons; `docs/protocol.md` has the
//! messages.

pub mod abuseipdb;
pub mod broker;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod error;
pub mod fail2ban;
pub mod fleet;
pub mod guard;
pub mod model;
pub mod operator;
pub mod spool;
pub mod store;
pub mod sys;
pub mod wire;
