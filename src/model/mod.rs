//! The terms that all layers share: names and addresses, the filter of jails, text for people. No I/O.

pub(crate) mod ids;
pub(crate) mod jail_filter;
pub mod text;

pub use ids::{Address, Fnv1a64, HostName, Jail, JailScope, UnbanId};
pub use jail_filter::JailFilter;
