//! What travels between hosts: the messages, as types, and their JSON. Pure.
//!
//! - [`Event`]: a host banned an address, or freed it.
//! - [`Shard`]: what a host detected and holds now, or a part of that.
//! - [`Presence`]: that a host is there.
//! - [`seal`]: the signature that any of these may have.
//! - [`range`]: the numbers that any of these may contain.
//! - [`SpooledEvent`]: what fail2ban told this host, on its way to an event.
//!
//! An event's first seven fields are those of the scripts that this program replaces: their names,
//! order and types stay, so that each side reads the other.

mod event;
mod fields;
mod names;
mod part;
mod presence;
pub mod range;
pub mod seal;
mod told;

pub(crate) use event::MAX_EVENT_BYTES;
pub use event::{ACK_REQUEST, Action, Event, PROBE_ACTION, Reason};
pub use fields::Malformed;
pub use names::{Address, Fnv1a64, HostName, Jail, JailScope, UnbanId};
pub(crate) use part::MAX_SHARD_BYTES;
pub use part::{Ban, FleetUnban, MAX_SHARDS, Shard, ShardEntry, ShardId};
pub(crate) use presence::MAX_PRESENCE_BYTES;
pub use presence::{Ack, HostState, MAX_ACKS, Presence};
pub use told::SpooledEvent;
