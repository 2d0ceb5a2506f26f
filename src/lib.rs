//! f2bmqtt makes a fleet of fail2ban servers ban as one.
//!
//! # The way of a ban
//!
//! ```text
//! detecting host                                    every other host
//! fail2ban ── actionban ──> notify ──> spool        ┌─> wire ─> guard ─> fleet ─> apply ─> fail2ban
//!                                        │ inotify  │    (what)  (may it)  (what it means)
//!                                     outbox ──> broker
//! ```
//!
//! Events are only fast. What each host detected and still bans it keeps on the broker, in a snapshot of
//! one part or more, and whatever was lost, doubled or late, the next part brings every host to the same
//! bans. A host remembers by itself what nobody else could tell it: what it banned for others, what its
//! operator lifted, and what was freed for the whole fleet.
//!
//! - [`notify`] is what fail2ban's actions call. It leaves an event in the [`spool`] and is gone;
//!   where no daemon runs it leaves [`publish`] behind.
//! - [`daemon`] is the service. Its [`outbox`] takes events from the spool to the [`broker`], and
//!   keeps each until the broker has it; parts go out, and others' are asked for, as [`fleet`] says.
//! - What comes from the broker passes [`guard::gate`] inside of [`broker`], is read by [`wire`], refused or let in by [`guard`], and given its
//!   meaning by [`fleet`]. These three are pure: values in, values out. Whom a jail is never to ban,
//!   [`ignored`] knows.
//! - [`apply`] looks at [`fail2ban`] and carries out on it what the fleet's words ask for, step by step as
//!   [`fleet`] says. [`memory`] is what both halves of the daemon know, and [`store`] what outlives a restart.
//! - [`cut`] ends the open connections of what was banned, where the firewall does not.
//! - [`figures`] shows how this host stands to Prometheus and to Home Assistant.
//! - [`operator`] shows a person the fleet, and acts on it: the broker has all that it takes.
//!
//! [`config`] reads the settings, [`paths`] says where things lie, [`files`] makes them for root
//! alone, [`lock`] says who publishes,
//! [`runtime`] on which threads, [`journal`] prints, [`error`] gives each failure its words and exit code, and [`cli`] is the
//! command line.
//!
//! `docs/architecture.md` has the rules that these modules keep, and why; `docs/protocol.md` has the messages.

pub mod abuseipdb;
pub mod apply;
pub mod broker;
pub mod child;
pub mod cli;
pub mod clock;
pub mod config;
pub mod cut;
pub mod daemon;
pub mod error;
pub mod fail2ban;
pub mod figures;
pub mod files;
pub mod fleet;
pub mod guard;
pub mod ignored;
pub mod journal;
pub mod lock;
pub mod memory;
pub mod notify;
pub mod operator;
pub mod outbox;
pub mod paths;
pub mod publish;
pub mod random;
pub mod runtime;
pub mod spool;
pub mod store;
pub mod text;
pub mod wire;
