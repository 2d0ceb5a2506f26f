//! Attacks on a fleet of real hosts, by clients of the broker, brokers, local users and name servers.

#[path = "../support/mod.rs"]
mod support;

mod dns;
mod files;
mod rounds;
mod siege;
