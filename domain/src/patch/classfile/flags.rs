//! Modifiers of classes, fields and methods.

/// `private`.
pub const ACC_PRIVATE: u16 = 0x0002;
/// `static`.
pub const ACC_STATIC: u16 = 0x0008;
/// `final`.
pub const ACC_FINAL: u16 = 0x0010;
/// Made by the compiler, e.g. the body of a lambda.
pub const ACC_SYNTHETIC: u16 = 0x1000;
/// The file is a module's description.
pub const ACC_MODULE: u16 = 0x8000;
