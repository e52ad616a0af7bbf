//! Bodies of methods: walked instruction by instruction, so that the same code gives the same digest whatever the
//! constant pool's order.

use std::collections::BTreeSet;

use sha2::{Digest as _, Sha256};

use super::{
    ClassFileError, Constant, Reader,
    pool::{Entry, Pool},
};
use crate::digest::Digest;

/// How deep constants may refer to each other, bootstrap methods included.
const MAX_DEPTH: u8 = 16;
/// How many constants one method may spell out. Bootstrap arguments may fan out; a real body stays far below.
const MAX_SPELT: u32 = 1_000_000;

/// The class's bootstrap methods: a method handle and arguments each, as indices.
#[derive(Default)]
pub(super) struct Bootstraps(Vec<(u16, Vec<u16>)>);

impl Bootstraps {
    pub(super) fn read(from: &mut Reader<'_>) -> Result<Self, ClassFileError> {
        let mut methods = Vec::new();
        for _ in 0..from.u2()? {
            let handle = from.u2()?;
            let arguments = (0..from.u2()?).map(|_| from.u2()).collect::<Result<_, _>>()?;
            methods.push((handle, arguments));
        }
        Ok(Self(methods))
    }
}

/// Hashes one body.
struct Body<'p, 'a> {
    pool: &'p Pool<'a>,
    bootstraps: &'p Bootstraps,
    hash: Sha256,
    spelt: u32,
}

/// The digest of a `Code` attribute. Numbers that the code itself holds are added to `constants`.
pub(super) fn digest(
    mut from: Reader<'_>,
    pool: &Pool<'_>,
    bootstraps: &Bootstraps,
    constants: &mut BTreeSet<Constant>,
) -> Result<Digest, ClassFileError> {
    let mut body = Body { pool, bootstraps, hash: Sha256::new(), spelt: 0 };
    // The sizes of stack and frame follow from the code.
    from.take(4)?;
    let length = from.u4()?;
    let mut code = from.part(length)?;
    while !code.is_done() {
        body.instruction(&mut code, constants)?;
    }
    for _ in 0..from.u2()? {
        body.hash.update(from.take(6)?);
        match from.u2()? {
            0 => body.hash.update([0]),
            class => body.constant(class, 0)?,
        }
    }
    // Attributes of code are line numbers, local variables and stack maps: debug information, or a consequence.
    for _ in 0..from.u2()? {
        from.u2()?;
        let length = from.u4()?;
        from.part(length)?;
    }
    Ok(Digest(body.hash.finalize().into()))
}

impl Body<'_, '_> {
    fn instruction(
        &mut self,
        code: &mut Reader<'_>,
        constants: &mut BTreeSet<Constant>,
    ) -> Result<(), ClassFileError> {
        let opcode = code.u1()?;
        if let Some(constant) = pushed(opcode) {
            constants.insert(constant);
        }
        // `ldc` and `ldc_w` say the same; which one it is depends on the pool.
        self.hash.update([if opcode == 0x13 { 0x12 } else { opcode }]);
        match opcode {
            0x10 => {
                let value = code.u1()?.cast_signed();
                constants.insert(Constant::Int(value.into()));
                self.hash.update(value.to_be_bytes());
            }
            0x11 => {
                let value = code.u2()?.cast_signed();
                constants.insert(Constant::Int(value.into()));
                self.hash.update(value.to_be_bytes());
            }
            0x12 => self.constant(code.u1()?.into(), 0)?,
            0x13 | 0x14 | 0xb2..=0xb8 | 0xbb | 0xbd | 0xc0 | 0xc1 => self.constant(code.u2()?, 0)?,
            0xb9 | 0xba => {
                self.constant(code.u2()?, 0)?;
                self.hash.update(code.take(2)?);
            }
            0xc5 => {
                self.constant(code.u2()?, 0)?;
                self.hash.update(code.take(1)?);
            }
            0xaa | 0xab => self.switch(opcode, code)?,
            0xc4 => {
                let widened = code.u1()?;
                self.hash.update([widened]);
                self.hash.update(code.take(if widened == 0x84 { 4 } else { 2 })?);
            }
            0x00..=0xc9 => self.hash.update(code.take(operands(opcode))?),
            _ => return Err(code.error("an instruction is none")),
        }
        Ok(())
    }

    fn switch(&mut self, opcode: u8, code: &mut Reader<'_>) -> Result<(), ClassFileError> {
        // Its operands are aligned from the beginning of the code.
        while !code.at().is_multiple_of(4) {
            code.take(1)?;
        }
        let default = code.u4()?;
        self.hash.update(default.to_be_bytes());
        let words = if opcode == 0xaa {
            let (low, high) = (code.u4()?.cast_signed(), code.u4()?.cast_signed());
            self.hash.update(low.to_be_bytes());
            u64::try_from(i64::from(high) - i64::from(low) + 1)
        } else {
            Ok(u64::from(code.u4()?) * 2)
        };
        let bytes = words.ok().and_then(|words| usize::try_from(words).ok()?.checked_mul(4));
        let bytes = bytes.ok_or_else(|| code.error("a switch has no valid size"))?;
        self.hash.update(code.take(bytes)?);
        Ok(())
    }

    /// Spells a constant out.
    fn constant(&mut self, index: u16, depth: u8) -> Result<(), ClassFileError> {
        self.spelt += 1;
        if depth > MAX_DEPTH || self.spelt > MAX_SPELT {
            return Err(ClassFileError {
                problem: "constants refer to each other too deeply",
                at: index.into(),
            });
        }
        match self.pool.get(index)? {
            Entry::Utf8(bytes) => self.text(1, bytes),
            Entry::Integer(value) => self.text(3, &value.to_be_bytes()),
            Entry::Float(bits) => self.text(4, &bits.to_be_bytes()),
            Entry::Long(value) => self.text(5, &value.to_be_bytes()),
            Entry::Double(bits) => self.text(6, &bits.to_be_bytes()),
            Entry::Class(name) => self.text(7, self.pool.raw(name)?),
            Entry::String(text) => self.text(8, self.pool.raw(text)?),
            Entry::MethodType(desc) => self.text(16, self.pool.raw(desc)?),
            Entry::Named { tag, name } => self.text(tag, self.pool.raw(name)?),
            Entry::NameAndType { name, desc } => {
                self.text(12, self.pool.raw(name)?);
                self.text(12, self.pool.raw(desc)?);
            }
            Entry::Member { tag, class, name_and_type } => {
                self.hash.update([tag]);
                self.constant(class, depth + 1)?;
                self.constant(name_and_type, depth + 1)?;
            }
            Entry::MethodHandle { kind, member } => {
                self.hash.update([15, kind]);
                self.constant(member, depth + 1)?;
            }
            Entry::Dynamic { tag, bootstrap, name_and_type } => {
                self.hash.update([tag]);
                self.constant(name_and_type, depth + 1)?;
                let (handle, arguments) =
                    self.bootstraps.0.get(usize::from(bootstrap)).ok_or(ClassFileError {
                        problem: "a bootstrap method is referred to that is not there",
                        at: index.into(),
                    })?;
                self.constant(*handle, depth + 1)?;
                for argument in arguments {
                    self.constant(*argument, depth + 1)?;
                }
            }
            Entry::Unusable => {}
        }
        Ok(())
    }

    /// With its length, so that no two sequences of constants look alike.
    fn text(&mut self, tag: u8, bytes: &[u8]) {
        self.hash.update([tag]);
        self.hash.update((bytes.len() as u64).to_be_bytes());
        self.hash.update(bytes);
    }
}

/// The constant that an instruction without operands pushes.
fn pushed(opcode: u8) -> Option<Constant> {
    Some(match opcode {
        0x02..=0x08 => Constant::Int(i32::from(opcode) - 3),
        0x09 | 0x0a => Constant::Long(i64::from(opcode) - 9),
        0x0b..=0x0d => Constant::Float(f32::from(opcode - 0x0b).to_bits()),
        0x0e | 0x0f => Constant::Double(f64::from(opcode - 0x0e).to_bits()),
        _ => return None,
    })
}

/// How many bytes follow an opcode that refers to no constant.
fn operands(opcode: u8) -> usize {
    match opcode {
        0x15..=0x19 | 0x36..=0x3a | 0xa9 | 0xbc => 1,
        0x84 | 0x99..=0xa8 | 0xc6 | 0xc7 => 2,
        0xc8 | 0xc9 => 4,
        _ => 0,
    }
}
