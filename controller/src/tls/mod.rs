//! The controller's doors: TLS 1.3 only, bounded, reloadable, and closed to whom the store does not know.
//!
//! Tonic's own TLS has no reload, no revocation and no limits, so connections are accepted here and handed
//! to it. What a caller may do is not decided here (`auth`), only whether it is let in.

mod accept;
mod bulk;
mod config;
mod live;
mod peer;
mod renew;
mod trust;

pub use accept::{Door, incoming};
pub use bulk::{Handover, Lanes};
pub use config::{ServerIdentity, TlsError, provider, server_config};
pub use live::Live;
pub use peer::{Credentials, Leaf, Peer, PeerStream};
pub use renew::{Certificates, keep_renewed, mend, record, store_new};
pub use trust::{StoreTrust, Trust, cut_refused};

#[cfg(test)]
mod tests;
