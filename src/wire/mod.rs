//! What travels between hosts: the messages, as types, and their JSON. Pure.
//!
//! - [`Event`]: a host banned an address, or freed it.
//! - [`Part`]: what a host detected and holds now, or a part of that.
//! - [`Presence`]: that a host is there.
//! - [`seal`]: the signature that any of these may have.
//! - [`range`]: the numbers that any of these may contain.
//! - [`Told`]: what fail2ban told this host, on its way to an event.
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

pub(crate) use event::MAX_EVENT;
pub use event::{ACK_REQUEST, Action, CHECK, Event, Reason};
pub use fields::Malformed;
pub use names::{Address, Fnv, Host, Jail, Scope, UnbanId, is_hidden};
pub(crate) use part::MAX_PART;
pub use part::{Ban, Listed, MAX_PARTS, Pardon, Part, Slice};
pub(crate) use presence::MAX_PRESENCE;
pub use presence::{Ack, MAX_ACKS, Presence, State};
pub use told::Told;
