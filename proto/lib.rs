//! The Upfleet wire: types generated from `proto/upfleet/v1`, and their conversion to and from domain types.
//!
//! This is the only crate that knows both languages. It decides nothing and does no I/O.

pub mod codec;
pub mod convert;
#[cfg(feature = "next")]
mod next;
pub mod reason;

/// Types, clients and servers of `upfleet.v1`.
#[expect(clippy::all, reason = "generated; documented in proto/upfleet/v1")]
pub mod v1 {
    tonic::include_proto!("upfleet.v1");
    include!(concat!(env!("OUT_DIR"), "/upfleet.v1.serde.rs"));
}

/// The minor version of `upfleet.v1` that this code speaks: what was added since the package began. Both sides say theirs
/// when a session begins, and pass over what a later one adds.
pub const WIRE_MINOR: u32 = if cfg!(feature = "next") { 1 } else { 0 };

/// The encoded `FileDescriptorSet` of `upfleet.v1`, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/upfleet_descriptor.bin"));

/// A client that offers this protocol in its TLS handshake, before `h2`, says that the connection will carry
/// artifacts' bytes. It is HTTP/2 all the same; a server that does not know it takes `h2`.
pub const BULK_ALPN: &[u8] = b"upfleet-bulk";
