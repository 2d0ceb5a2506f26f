//! Redaction: a report names nothing private of this host.

pub mod sources;
pub mod text;
