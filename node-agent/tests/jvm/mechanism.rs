//! How patches get into JVMs of every kind: each mechanism with real JVMs, and each way that would start cleanly and
//! run the old code, refused.

mod app;
mod boot;
mod packages;
mod sequences;
mod stacks;
mod starting;

use app::App;
