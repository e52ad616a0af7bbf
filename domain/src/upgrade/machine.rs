//! The upgrade machine of one component.
