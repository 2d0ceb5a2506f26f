//! That a host is there, retained at `<topic>/host/<host>`, with a last will for when it is not.
//! Nothing is correct or wrong by it: it is for people, and tells of whose snapshots there are.
//!
//! ```json
//! {"v":1,"state":"online","version":"1.0.0","jails":["sshd"],"bans":12,"machine":"8f1d…"}
//! ```

use std::collections::BTreeSet;

use serde_json::Value;

use super::Jail;
use super::fields::{Fields, Malformed};

/// The largest presence that is read, in bytes, and the most jails in it.
const MAX_PRESENCE: usize = 32 * 1024;
const MAX_JAILS: usize = 500;

/// Whether a host's daemon is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum State {
    Online,
    Offline,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
        }
    }
}

/// What a host says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    /// Whether it is connected. A last will says offline.
    pub state: State,
    /// Which version of this program it runs; printable, at most 32 characters.
    pub version: String,
    /// The jails of its fail2ban that take part.
    pub jails: BTreeSet<Jail>,
    /// How many bans of its own it holds.
    pub bans: usize,
    /// A hash of its machine id: two machines of one name are told apart by it.
    pub machine: String,
}

impl Presence {
    /// Reads a presence.
    ///
    /// # Errors
    /// [`Malformed`], with nothing of the payload in its text.
    pub fn parse(payload: &[u8]) -> Result<Self, Malformed> {
        let fields = Fields::parse(payload, MAX_PRESENCE)?;
        if fields.number("v")? != 1 {
            return Err(Malformed::Field(
                "v",
                "must be 1: this host needs a newer version".to_owned(),
            ));
        }
        let printable = |name| {
            let text = fields.text(name).unwrap_or_default();
            text.chars().filter(|c| !c.is_control()).take(32).collect::<String>()
        };
        let state = fields.needed("state", |text| {
            let state = [State::Online, State::Offline].into_iter().find(|s| s.as_str() == text);
            state.ok_or_else(|| "must be online or offline".to_owned())
        })?;
        Ok(Self {
            state,
            version: printable("version"),
            jails: fields.texts("jails", MAX_JAILS, Jail::new)?.into_iter().collect(),
            bans: usize::try_from(fields.number("bans")?).unwrap_or_default(),
            machine: printable("machine"),
        })
    }

    /// Writes it as one line of JSON.
    #[must_use]
    pub fn encode(&self) -> String {
        let jails: Vec<&str> = self.jails.iter().map(Jail::as_str).collect();
        format!(
            r#"{{"v":1,"state":"{}","version":{},"jails":{},"bans":{},"machine":{}}}"#,
            self.state.as_str(),
            Value::from(self.version.as_str()),
            Value::from(jails),
            self.bans,
            Value::from(self.machine.as_str()),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let presence = Presence {
            state: State::Online,
            version: "1.0.0".to_owned(),
            jails: ["sshd", "web"].map(|jail| Jail::new(jail).unwrap()).into(),
            bans: 12,
            machine: "8f1d".to_owned(),
        };
        let json = r#"{"v":1,"state":"online","version":"1.0.0","jails":["sshd","web"],"bans":12,"machine":"8f1d"}"#;
        assert_eq!(presence.encode(), json);
        assert_eq!(Presence::parse(json.as_bytes()), Ok(presence));
        let least = Presence::parse(br#"{"v":1,"state":"offline"}"#).unwrap();
        assert_eq!((least.state, least.bans, least.jails.len()), (State::Offline, 0, 0));
        let refused = [
            "",
            "{}",
            r#"{"v":2,"state":"online"}"#,
            r#"{"v":1,"state":"asleep"}"#,
            r#"{"v":1,"state":"online","jails":["a b"]}"#,
            r#"{"v":1,"state":"online","state":"online"}"#,
        ];
        for payload in refused {
            assert!(Presence::parse(payload.as_bytes()).is_err(), "{payload}");
        }
    }
}
