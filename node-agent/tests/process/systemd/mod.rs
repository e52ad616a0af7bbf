//! Components that systemd units run, against a manager faked over D-Bus.

mod crash;
mod fake;
pub mod support;
mod trouble;
mod upgrades;
