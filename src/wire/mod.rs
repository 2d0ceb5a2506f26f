//! What travels between hosts: the messages, as types, and their JSON. Pure.
//!
//! An event's first seven fields are those of the scripts that this program replaces: their names,
//! order and types stay, so that each side reads the other.

mod event;
mod fields;
mod names;
mod told;

pub use event::{Action, Event, Reason};
pub use fields::Malformed;
pub use names::{Address, Host, Jail};
pub use told::Told;
