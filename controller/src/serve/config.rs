//! `controller.toml`: what an operator may set. Unknown keys are refused by name.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
};

use serde::Deserialize;

use super::{Endpoints, Options};
use crate::{
    files::{self, FileError},
    ops::Doors,
};

/// The configuration file can't be used. For the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// It can't be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not valid.
    #[error("could not use the configuration `{path}`")]
    Invalid {
        /// The file.
        path: String,
        /// What is wrong in it, with line and key.
        #[source]
        source: toml::de::Error,
    },
}

/// The configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The name that agents and enrollment tokens are told, without a port.
    pub host: String,
    /// The main listener.
    pub api: SocketAddr,
    /// The enrollment listener.
    pub enroll: SocketAddr,
    /// The listener for metrics and health, which has no TLS.
    pub metrics: SocketAddr,
    /// What agents are told of the main listener, `host:port`; where a proxy or a NAT stands before it.
    pub advertise_api: Option<String>,
    /// What tokens tell of the enrollment listener, `host:port`.
    pub advertise_enroll: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        Self {
            host: "localhost".to_owned(),
            api: any(7443),
            enroll: any(7444),
            metrics: SocketAddr::from((Ipv4Addr::LOCALHOST, 7480)),
            advertise_api: None,
            advertise_enroll: None,
        }
    }
}

impl Config {
    /// Reads the file; where there is none, the defaults hold.
    ///
    /// # Errors
    /// Where it can't be read or is not valid.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = files::read_text(path)?;
        toml::from_str(&text)
            .map_err(|source| ConfigError::Invalid { path: path.display().to_string(), source })
    }

    /// What the command line says goes before it.
    #[must_use]
    pub fn with(mut self, options: &Options) -> Self {
        self.api = options.api.unwrap_or(self.api);
        self.enroll = options.enroll.unwrap_or(self.enroll);
        self.metrics = options.metrics.unwrap_or(self.metrics);
        self
    }

    /// Where the controller is reached, once it listens.
    #[must_use]
    pub fn doors(&self, endpoints: &Endpoints) -> Doors {
        let host = match self.host.parse::<IpAddr>() {
            Ok(IpAddr::V6(address)) => format!("[{address}]"),
            _ => self.host.clone(),
        };
        let at = |advertised: &Option<String>, bound: SocketAddr| {
            advertised.clone().unwrap_or_else(|| format!("{host}:{}", bound.port()))
        };
        Doors {
            api: at(&self.advertise_api, endpoints.api),
            enroll: at(&self.advertise_enroll, endpoints.enroll),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("controller.toml");
        std::fs::write(&path, "host = \"fleet\"\nlisten = 1\n").unwrap();
        let error = Config::load(&path).unwrap_err();
        assert!(crate::failure::chain(&error).contains("listen"), "{error}");
    }

    #[test]
    fn advertised_addresses_have_the_bound_port() {
        let endpoints = Endpoints {
            api: SocketAddr::from(([0, 0, 0, 0], 41)),
            enroll: SocketAddr::from(([0, 0, 0, 0], 42)),
            metrics: SocketAddr::from(([127, 0, 0, 1], 43)),
        };
        let config = Config { host: "::1".into(), ..Config::default() };
        assert_eq!(config.doors(&endpoints).api, "[::1]:41");
        let config = Config { advertise_enroll: Some("lb:7444".into()), ..Config::default() };
        assert_eq!(config.doors(&endpoints), Doors { api: "localhost:41".into(), enroll: "lb:7444".into() });
    }
}
