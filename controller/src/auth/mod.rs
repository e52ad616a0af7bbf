//! Who calls, and what they may: identities, principals, roles and the table of methods.

mod caller;
mod layer;
mod table;

pub use caller::{Identity, Principal, Role, role_from_wire, role_to_wire};
pub use layer::{AuthLayer, principal};
pub use table::{Callers, METHODS, callers};
