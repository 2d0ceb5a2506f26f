//! Collectors of facts: from this host, from fail2ban, from the brokers.

pub(super) mod broker;
pub(super) mod fail2ban;
pub(super) mod host;
