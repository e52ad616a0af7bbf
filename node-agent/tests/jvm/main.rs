//! Tests with real JVMs, of every JDK that is installed or named by `UPFLEET_JDKS` (directories, with `:` between).

#![expect(clippy::unwrap_used, reason = "a test says by panicking what went wrong")]

mod agent;
mod attach;
mod component;
mod discover;
mod java_jar;
mod live;
mod mechanism;
mod namespaces;
mod patches;
mod proof;
mod support;
