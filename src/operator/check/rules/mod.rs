//! Pure rules that turn facts into findings.

pub(super) mod broker;
pub(super) mod database;
pub(super) mod fleet;
pub(super) mod host;
pub(super) mod jails;
pub(super) mod reports;
pub(super) mod settings;
pub(super) mod status;
