//! f2bmqtt makes a fleet of fail2ban servers ban as one.
//!
//! # The way of a ban
//!
//! ```text
//! detecting host                                    every other host
//! fail2ban ── actionban ──> notify ──> spool        ┌─> guard::gate ─> wire ─> guard ─> fleet ─> driver ─> fail2ban
//!                                        │ inotify  │   (admits)      (parses)  (judges) (decides) (executes)
//!                                     outbox ──> broker
//! ```
//!
//! 1. fail2ban on one host detects an attack, bans the address, and calls [`spool::notify`]. `notify` writes one file
//!    to the [`spool`] and exits. If no daemon runs, `notify` starts [`spool::publish_once`], which publishes the spool
//!    once.
//! 2. The [`daemon`] reads the spool. Its [`spool::outbox`] publishes an event, and keeps the event until the
//!    [`broker`] acknowledges the event.
//! 3. On every other host, [`guard::gate`] checks the topic, the size and the signature of the message. [`wire`]
//!    parses the message. [`guard`] accepts or rejects the event. [`fleet`] records the claim that the event makes,
//!    compares the desired with the observed bans, and decides what to do.
//! 4. [`daemon::driver`] executes that decision on [`fail2ban`], which bans the address in its firewall.
//!
//! An event may be lost, duplicated or late. Therefore each host also publishes a *snapshot*: all bans that the host
//! detected and still holds. The broker retains the snapshot in one or more *shards*. A shard that arrives corrects
//! every error that lost or late events caused, so that all hosts reach the same set of bans. The [`store`] keeps on
//! disk what neither fail2ban nor a snapshot has: imports (bans made for peers), overrides (bans that the operator
//! lifted on this host), tombstones (unbans of the whole fleet), and a few smaller records.
//!
//! # Modules
//!
//! A module uses only modules of its own layer and of lower layers, without a circle (`tests/layers.rs`).
//!
//! | layer | modules | what they do |
//! |---|---|---|
//! | 6 | [`cli`], [`operator`] | the command line; the operator's commands |
//! | 5 | [`daemon`] | the service: one loop for the broker, the spool, the clock and the service manager; the driver of fail2ban; metrics and Home Assistant |
//! | 5 | [`abuseipdb`] | reports local detections to AbuseIPDB |
//! | 4 | [`fail2ban`] | the client of fail2ban's socket, and its database |
//! | 4 | [`broker`] | the MQTT connection: connect, retry, sign, publish, subscribe; the state that a broker retains |
//! | 4 | [`store`] | the state database |
//! | 4 | [`spool`] | from fail2ban's action to the broker: notify, spool, outbox, publish |
//! | 3 | [`guard`] | which messages and which addresses this host accepts |
//! | 3 | [`fleet`] | claims, imports, overrides, tombstones; the controller that decides |
//! | 2 | [`wire`], [`config`] | the messages and their JSON; the settings |
//! | 1 | [`model`] | names, addresses, rows of bans: the terms that all layers share |
//! | 1 | [`sys`] | clock, private files, paths, log, threads, detached processes, open connections |
//! | 1 | [`error`] | errors with their exit codes |
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
