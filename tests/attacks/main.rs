//! Attacks on real hosts.

#[path = "../support/mod.rs"]
mod support;

mod dns;
mod rounds;
mod siege;
