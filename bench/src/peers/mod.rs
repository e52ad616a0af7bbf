//! Programs of other projects that figures are held against.

pub mod nats;
pub mod postgres;
pub mod raw;
