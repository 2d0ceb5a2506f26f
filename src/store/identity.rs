//! The identity of this host at its broker: the client ID, and the settings under which the store was filled.

use rusqlite::{OptionalExtension as _, params};

use super::{Store, write};
use crate::config::{Broker, Config, Topic};
use crate::error::Error;
use crate::fleet::Record;
use crate::fleet::provenance::{Provenance, Trust};
use crate::model::HostName;
use crate::sys::jitter;

/// A former name and topic of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Former {
    /// The former name of this host (`MQTT_NODE`).
    pub node: HostName,
    /// The fleet's topic at that time (`MQTT_TOPIC`).
    pub topic: Topic,
}

/// The identity of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The secret half of the client ID. A client that knows it could take over the session.
    secret: String,
    /// The settings under which the store was filled.
    pub provenance: Provenance,
}

impl Identity {
    /// A new identity.
    ///
    /// # Errors
    /// [`Error::Start`]: the system provides no random numbers.
    pub fn draw(provenance: Provenance) -> Result<Self, Error> {
        Ok(Self { secret: jitter::token().map_err(Error::Start)?, provenance })
    }

    /// The same client ID with other settings.
    #[must_use]
    pub fn with(self, provenance: Provenance) -> Self {
        Self { provenance, ..self }
    }

    /// MQTT's client ID.
    #[must_use]
    pub fn client_id(&self) -> String {
        format!("f2bmqtt-{}-{}", self.provenance.node, self.secret)
    }
}

impl Provenance {
    /// The provenance of these settings.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let brokers: Vec<String> = config.brokers.iter().map(Broker::to_string).collect();
        let trust = match &config.signing {
            None => Trust::Open,
            Some(signing) if signing.accept_unsigned => Trust::Mixed,
            Some(_) => Trust::Strict,
        };
        Self {
            topic: config.topic.as_str().to_owned(),
            brokers: brokers.join(","),
            node: config.node.to_string(),
            trust,
            keys: config.signing.iter().flat_map(|signing| signing.keys.fingerprints()).collect(),
        }
    }
}

pub(super) const SELECT_IDENTITY: &str =
    "SELECT secret, topic, brokers, node, trust, keys FROM identity";

pub(super) const SELECT_FORMER: &str = "SELECT node, topic FROM former";
const DELETE_FORMER: &str = "DELETE FROM former WHERE node = ?1 AND topic = ?2";

impl Store {
    /// The former names and topics of this host. An unreadable row is skipped.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn former(&self) -> Result<Vec<Former>, Error> {
        let failed = Error::store("read", &self.path);
        let mut query = self.connection.prepare(SELECT_FORMER).map_err(failed)?;
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(failed)?;
        let parsed = rows.flatten().filter_map(|(node, topic): (String, String)| {
            Some(Former { node: HostName::new(&node).ok()?, topic: Topic::of_fleet(&topic).ok()? })
        });
        Ok(parsed.collect())
    }

    /// Drops a former name.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn forget_former(&mut self, former: &Former) -> Result<(), Error> {
        let row = params![former.node.as_str(), former.topic.as_str()];
        let deleted = self.connection.execute(DELETE_FORMER, row).map(drop);
        deleted.map_err(Error::store("write", &self.path))
    }

    /// The identity that was adopted last.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn identity(&self) -> Result<Option<Identity>, Error> {
        let row = self.connection.query_row(SELECT_IDENTITY, [], |row| {
            let trust = usize::try_from(row.get::<_, i64>(4)?).unwrap_or(0);
            let trust = Trust::ALL.get(trust).copied().unwrap_or(Trust::Open);
            let (topic, brokers, node) = (row.get(1)?, row.get(2)?, row.get(3)?);
            let keys: String = row.get(5)?;
            let keys = keys.split_whitespace().map(str::to_owned).collect();
            let provenance = Provenance { topic, brokers, node, trust, keys };
            Ok(Identity { secret: row.get(0)?, provenance })
        });
        row.optional().map_err(Error::store("read", &self.path))
    }

    /// Saves an identity and the records that change with it in one transaction.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn adopt(&mut self, identity: &Identity, changes: &[Record]) -> Result<(), Error> {
        let failed = Error::store("write", &self.path);
        let transaction = self.connection.transaction().map_err(failed)?;
        for change in changes {
            write(&transaction, change).map_err(failed)?;
        }
        let Identity { secret, provenance } = identity;
        let Provenance { topic, brokers, node, trust, keys } = provenance;
        let keys = keys.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
        // The broker may still retain messages under the former name or topic.
        let former = "INSERT OR IGNORE INTO former SELECT node, topic FROM identity \
                      WHERE node <> ?1 OR topic <> ?2";
        transaction.execute(former, params![node, topic]).map_err(failed)?;
        transaction.execute(DELETE_FORMER, params![node, topic]).map_err(failed)?;
        transaction.execute("DELETE FROM identity", []).map_err(failed)?;
        let row = params![secret, topic, brokers, node, *trust as i64, keys];
        transaction
            .execute("INSERT INTO identity VALUES(?1, ?2, ?3, ?4, ?5, ?6)", row)
            .map_err(failed)?;
        transaction.commit().map_err(failed)
    }
}
