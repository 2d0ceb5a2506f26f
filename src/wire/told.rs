//! What fail2ban on this host told us of one ban, as it waits in the spool: an event that does not
//! know yet which host it speaks for.

use serde_json::json;

use super::fields::{Malformed, StrictObject};
use super::{Action, Address, Event, HostName, Jail, Reason};

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
    const MAX: usize = 1024;

    /// Reads what [`SpooledEvent::encode`] wrote.
    ///
    /// # Errors
    /// [`Malformed`] where the text is something else.
    pub fn parse(json: &[u8]) -> Result<Self, Malformed> {
        let fields = StrictObject::parse(json, Self::MAX)?;
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

    /// Writes it as JSON.
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

    /// The event that `host` sends of it.
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

    /// Whether this and an `earlier` call tell of the same thing: a jail may have two actions that
    /// call the notifier, one of which may not know the time.
    #[must_use]
    pub fn repeats(&self, earlier: &Self) -> bool {
        let same_time = self.time == earlier.time || self.time == 0 || earlier.time == 0;
        // A ban that is told again with another length was prolonged.
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
    fn what_is_written_is_read_again() {
        let told = SpooledEvent {
            action: Action::Unban,
            jail: Jail::new("sshd").unwrap(),
            address: Address::new("2001:db8::1").unwrap(),
            bantime: -1,
            restored: 1,
            failures: 5,
            time: 1_795_342_588,
        };
        assert_eq!(SpooledEvent::parse(told.encode().as_bytes()), Ok(told));
    }
}
