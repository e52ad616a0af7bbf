//! Patches: what a patch is, what a stack of them amounts to, and what may not be put together.
//!
//! Pure: class files and jars come in as bytes and names that others have read.

pub mod classfile;
#[cfg(test)]
mod fixtures;
pub mod judge;
pub mod live;
mod names;
mod spec;
pub mod stack;

pub use names::*;
pub use spec::*;
