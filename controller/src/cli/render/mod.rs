//! How things look on a terminal: pure functions from API messages to text.
//!
//! Nothing here prints, connects or reads a clock.

mod failure;
mod line;
mod node;
mod plan;
mod rollout;
mod table;
mod text;
mod tree;

pub use failure::failure;
pub use line::{rollout_line, upgrade_line};
pub use node::{node_details, node_table, upgrade_state};
pub use plan::plan;
pub use rollout::{Model, rollout_details, rollout_table, summary};
pub use table::Table;
pub use text::{Paint, bytes, clock, component_state, date, duration, hex, id, reason, safe, short, since};
pub use tree::tree;
