//! Patches: what a patch is, what a stack of them amounts to, and what may not be put together.
//!
//! Pure: class files and jars come in as bytes and names that others have read.

pub mod judge;
mod names;
mod spec;
pub mod stack;

pub use names::*;
pub use spec::*;
