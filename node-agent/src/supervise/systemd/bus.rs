//! The connection to the system bus: made when it is first needed, made again when it broke, and its errors sorted
//! into those that say something of the unit and those that say nothing but that nobody answered.

use std::{fmt, time::Duration};

use rustix::io::Errno;
use tokio::sync::Mutex;
use zbus::{Connection, connection, fdo, proxy::CacheProperties};

use super::proxy::{ManagerProxy, ServiceProxy, UnitProxy};

/// How long one answer may take; a manager that reloads all its units takes seconds.
const ANSWER: Duration = Duration::from_secs(20);
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);

/// Why systemd has not done what it was asked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Nobody answered. That says nothing of the unit.
    Bus(String),
    /// It said no.
    Refused {
        /// The error's name, e.g. `org.freedesktop.systemd1.NoSuchUnit`.
        name: String,
        /// For people.
        text: String,
    },
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bus(text) => f.write_str(text),
            Self::Refused { text, .. } => f.write_str(text.trim_end_matches('.')),
        }
    }
}

impl From<zbus::Error> for Trouble {
    fn from(error: zbus::Error) -> Self {
        match error {
            zbus::Error::MethodError(name, text, _) => {
                let text = text.unwrap_or_else(|| name.to_string());
                Self::Refused { name: name.to_string(), text }
            }
            zbus::Error::FDO(error) => Self::of_bus(&error),
            other => Self::Bus(plain(&other)),
        }
    }
}

impl Trouble {
    fn of_bus(error: &fdo::Error) -> Self {
        let refused = |name: &str, text: &str| Self::Refused {
            name: format!("org.freedesktop.DBus.Error.{name}"),
            text: if text.is_empty() { "access denied".to_owned() } else { text.to_owned() },
        };
        match error {
            fdo::Error::AccessDenied(text) => refused("AccessDenied", text),
            fdo::Error::AuthFailed(text) => refused("AuthFailed", text),
            fdo::Error::InteractiveAuthorizationRequired(text) => {
                refused("InteractiveAuthorizationRequired", text)
            }
            fdo::Error::UnknownObject(text) => refused("UnknownObject", text),
            fdo::Error::InvalidArgs(text) => refused("InvalidArgs", text),
            fdo::Error::Failed(text) => refused("Failed", text),
            other => Self::Bus(other.to_string()),
        }
    }
}

/// What went wrong, without the layers above it.
fn plain(error: &zbus::Error) -> String {
    match error {
        zbus::Error::InputOutput(error) if error.kind() == std::io::ErrorKind::NotFound => {
            "there is no system bus".to_owned()
        }
        zbus::Error::InputOutput(error) => format!("the system bus: {error}"),
        other => other.to_string(),
    }
}

/// The bus of one component.
#[derive(Debug, Default)]
pub(super) struct Bus {
    /// Another one than the system's: tests have their own.
    address: Option<String>,
    connection: Mutex<Option<Connection>>,
}

impl Bus {
    pub(super) fn at(address: &str) -> Self {
        Self { address: Some(address.to_owned()), connection: Mutex::default() }
    }

    /// The connection there is, or a new one that systemd sends its signals to.
    async fn connection(&self) -> Result<Connection, Trouble> {
        let mut slot = self.connection.lock().await;
        if let Some(connection) = slot.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(connection.clone());
        }
        *slot = None;
        let connect = async {
            let builder = match &self.address {
                Some(address) => connection::Builder::address(address.as_str()),
                // Honours DBUS_SYSTEM_BUS_ADDRESS.
                None => connection::Builder::system(),
            };
            let connection = builder.method_timeout(ANSWER).build().await?;
            match manager(&connection).await?.subscribe().await.map_err(Trouble::from) {
                // It may say that we are subscribed already.
                Ok(()) | Err(Trouble::Refused { .. }) => Ok(connection),
                Err(trouble) => Err(trouble),
            }
        };
        let late = |_| Trouble::Bus(format!("no answer: {}", Errno::TIMEDOUT));
        let connection = tokio::time::timeout(CONNECT, connect).await.map_err(late)??;
        *slot = Some(connection.clone());
        Ok(connection)
    }

    /// The manager.
    pub(super) async fn manager(&self) -> Result<ManagerProxy<'static>, Trouble> {
        Ok(manager(&self.connection().await?).await?)
    }

    /// A unit's two faces. Loads the unit where systemd has not.
    pub(super) async fn unit(
        &self,
        name: &str,
    ) -> Result<(UnitProxy<'static>, ServiceProxy<'static>), Trouble> {
        let connection = self.connection().await?;
        let path = manager(&connection).await?.load_unit(name).await?;
        let unit = UnitProxy::builder(&connection).path(path.clone()).cache_properties(CacheProperties::No);
        let service = ServiceProxy::builder(&connection).path(path).cache_properties(CacheProperties::No);
        Ok((unit.build().await?, service.build().await?))
    }

    /// After trouble: the next question is asked over a new connection.
    pub(super) async fn forget(&self) {
        *self.connection.lock().await = None;
    }
}

async fn manager(connection: &Connection) -> zbus::Result<ManagerProxy<'static>> {
    ManagerProxy::builder(connection).cache_properties(CacheProperties::No).build().await
}
