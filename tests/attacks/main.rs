//! Attacks on real hosts.

#[path = "../support/mod.rs"]
mod support;

mod dns;
mod files;
mod rounds;
mod siege;
