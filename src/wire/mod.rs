//! What travels between hosts: the messages, as types, and their JSON. Pure.
//!
//! - [`Event`]: a host banned or unbanned an address.
//! - [`Shard`]: one shard of a host's snapshot, the bans that the host detected and holds.
//! - [`Presence`]: whether a host is online, and its own account of its state.
//! - [`signature`]: the signature of a message.
//! - [`crate::model::range`]: the valid ranges of numbers.
//! - [`SpooledEvent`]: a call of the notifier, which becomes an event.
//!
//! The first seven fields of an event are those of the scripts that this program replaces. Their names, order and
//! types are a contract, so that scripts and daemons understand each other.

mod event;
mod json;
mod presence;
mod shard;
pub mod signature;
mod spooled;

pub(crate) use event::MAX_EVENT_BYTES;
pub use event::{ACK_REQUEST, Action, Event, PROBE_ACTION, Reason};
pub use json::Malformed;
pub(crate) use presence::MAX_PRESENCE_BYTES;
pub use presence::{Ack, HostState, MAX_ACKS, Presence};
pub(crate) use shard::MAX_SHARD_BYTES;
pub use shard::{Ban, FleetUnban, MAX_SHARDS, Shard, ShardEntry, ShardId};
pub use spooled::SpooledEvent;
