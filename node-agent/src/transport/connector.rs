//! The way to the controller for everything that talks to it: sessions, downloads, proofs of certificates.

use tonic::transport::Channel;

use super::tls::{self, ConnectError};
use crate::{
    config::ControllerConfig,
    fault::{self, Fault},
    identity::{Identities, Identity},
};

/// Makes connections to the controller, each with the certificate in force at that moment. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connector {
    controller: ControllerConfig,
    identities: Identities,
}

impl Connector {
    /// To `controller`, as whoever is in force in `identities`.
    #[must_use]
    pub fn new(controller: ControllerConfig, identities: Identities) -> Self {
        Self { controller, identities }
    }

    /// Who connects.
    #[must_use]
    pub fn identities(&self) -> &Identities {
        &self.identities
    }

    /// Where to.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.controller.address
    }

    /// A new connection.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(&self) -> Result<Channel, ConnectError> {
        self.connect_as(&self.identities.current()).await
    }

    /// A new connection for artifacts' bytes: large windows and frames, and no small message behind them. The
    /// controller serves it apart where it knows how to.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect_bulk(&self) -> Result<Channel, ConnectError> {
        let mut config = tls::client_config(&self.identities.current()).map_err(ConnectError::Tls)?;
        config.alpn_protocols.insert(0, upfleet_api::BULK_ALPN.to_vec());
        tls::connect_bulk(&self.controller.address, self.controller.expected_name(), config).await
    }

    /// A new connection with an identity that is not in force yet.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect_as(&self, identity: &Identity) -> Result<Channel, ConnectError> {
        if fault::is(Fault::NoConnection) {
            return std::future::pending().await;
        }
        let config = tls::client_config(identity).map_err(ConnectError::Tls)?;
        tls::connect(&self.controller.address, self.controller.expected_name(), config).await
    }
}
