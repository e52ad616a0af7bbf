//! How things look on a terminal: pure functions from API messages to text.
//!
//! Nothing here prints, connects or reads a clock.

mod diff;
mod failure;
mod fix;
mod jvm;
mod line;
mod node;
mod patch;
mod plan;
mod rollout;
mod stack;
mod table;
mod text;
mod tree;

pub use diff::{Difference, Side, differences, stack_diff};
pub use failure::failure;
pub use fix::{fix_table, patch_table};
pub use jvm::jvm_table;
pub use line::{rollout_line, upgrade_line};
pub use node::{node_details, node_table, upgrade_state};
pub use patch::{findings, patch_contents, patch_details};
pub use plan::plan;
pub use rollout::{Model, rollout_details, rollout_table, summary};
pub use stack::{history_table, proof, stack_table};
pub use table::Table;
pub use text::{Paint, bytes, clock, component_state, date, duration, hex, id, reason, safe, short, since};
pub use tree::tree;
