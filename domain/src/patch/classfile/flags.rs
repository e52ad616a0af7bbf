//! Modifiers of classes, fields and methods.

/// `public`.
pub const ACC_PUBLIC: u16 = 0x0001;
/// `private`.
pub const ACC_PRIVATE: u16 = 0x0002;
/// `protected`.
pub const ACC_PROTECTED: u16 = 0x0004;
/// `static`.
pub const ACC_STATIC: u16 = 0x0008;
/// `final`.
pub const ACC_FINAL: u16 = 0x0010;
/// `abstract`.
pub const ACC_ABSTRACT: u16 = 0x0400;
/// Made by the compiler, e.g. the body of a lambda.
pub const ACC_SYNTHETIC: u16 = 0x1000;
