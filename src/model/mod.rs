//! The terms that all layers share: names and addresses, the filter of jails, text for people. No I/O.

pub mod address_map;
mod bips_row;
pub(crate) mod ids;
pub(crate) mod jail_filter;
mod network;
pub mod range;
pub mod text;

pub use bips_row::BipsRow;
pub use ids::{Address, Fnv1a64, HostName, Jail, JailScope, UnbanId};
pub use jail_filter::JailFilter;
pub use network::network;
