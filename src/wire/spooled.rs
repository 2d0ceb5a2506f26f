//! A call of the notifier as it waits in the spool: an event that has no host, stamp or reason yet.

use serde_json::json;

use super::json::{Malformed, StrictObject};
use super::{Action, Event, Reason};
use crate::model::{Address, HostName, Jail};

/// One call of the notifier. The fields are those of [`Event`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct SpooledEvent {
    pub action: Action,
    pub jail: Jail,
    pub address: Address,
    pub bantime: i64,
    pub restored: i64,
    pub failures: i64,
    pub time: i64,
}

impl SpooledEvent {
    const MAX_BYTES: usize = 1024;

    /// Parses the text of [`SpooledEvent::encode`].
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn parse(json: &[u8]) -> Result<Self, Malformed> {
        let fields = StrictObject::parse(json, Self::MAX_BYTES)?;
        Ok(Self {
            action: fields.required("action", |text| Ok(Action::new(text)))?,
            jail: fields.required("ipmset", Jail::new)?,
            address: fields.required("ip", Address::new)?,
            bantime: fields.number("bantime")?,
            restored: fields.number("restored")?,
            failures: fields.number("failures")?,
            time: fields.number("time")?,
        })
    }

    /// The call as JSON.
    #[must_use]
    pub fn encode(&self) -> String {
        json!({
            "action": self.action.as_str(),
            "ipmset": self.jail.as_str(),
            "ip": self.address.to_string(),
            "bantime": self.bantime,
            "restored": self.restored,
            "failures": self.failures,
            "time": self.time,
        })
        .to_string()
    }

    /// The event that `host` publishes for this call.
    #[must_use]
    pub fn event(self, host: &HostName, stamp: i64, reason: Reason) -> Event {
        Event {
            action: self.action,
            jail: self.jail,
            address: self.address,
            bantime: self.bantime,
            host: host.clone(),
            restored: self.restored,
            failures: self.failures,
            time: self.time,
            stamp,
            reason: Some(reason),
            id: None,
            all_jails: false,
            unbans: Vec::new(),
        }
    }

    /// Whether this call repeats an `earlier` one: a jail may have two actions that call the notifier, one of which may
    /// not pass the time.
    #[must_use]
    pub fn repeats(&self, earlier: &Self) -> bool {
        let same_time = self.time == earlier.time || self.time == 0 || earlier.time == 0;
        // A repeated ban with another bantime was extended, so it is another event.
        let same_length =
            self.bantime == earlier.bantime || self.bantime == 0 || earlier.bantime == 0;
        same_time
            && (same_length || self.action == Action::Unban)
            && self.action == earlier.action
            && self.jail == earlier.jail
            && self.address == earlier.address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoded_event_is_parsed_unchanged() {
        let event = SpooledEvent {
            action: Action::Unban,
            jail: Jail::new("sshd").unwrap(),
            address: Address::new("2001:db8::1").unwrap(),
            bantime: -1,
            restored: 1,
            failures: 5,
            time: 1_795_342_588,
        };
        assert_eq!(SpooledEvent::parse(event.encode().as_bytes()), Ok(event));
    }
}
