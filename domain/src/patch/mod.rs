//! Patches: what a patch is, what a stack of them amounts to, and what may not be put together.
//!
//! Pure: class files and jars come in as bytes and names that others have read.

mod check;
pub mod classfile;
pub mod finding;
#[cfg(test)]
mod fixtures;
mod jar;
pub mod judge;
pub mod lint;
pub mod live;
pub mod make;
mod names;
mod spec;
pub mod stack;

pub use check::*;
pub use jar::*;
pub use names::*;
pub use spec::*;
