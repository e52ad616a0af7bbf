//! What benchmarks share: made-up fleets of any size, and timing. Nothing here is used by the product.

pub mod fleet;
pub mod timing;
