//! The constant pool: every tag there is, and constants spelt out.

use std::collections::BTreeSet;

use super::{ClassFileError, Constant, MemberRef, Reader};

/// One slot. Numbers are indices into the pool, not checked yet.
#[derive(Clone, Copy, Debug)]
pub(super) enum Entry<'a> {
    /// Slot 0, and the second slot of a `long` or `double`.
    Unusable,
    Utf8(&'a [u8]),
    Integer(i32),
    Float(u32),
    Long(i64),
    Double(u64),
    Class(u16),
    String(u16),
    Member {
        tag: u8,
        class: u16,
        name_and_type: u16,
    },
    NameAndType {
        name: u16,
        desc: u16,
    },
    MethodHandle {
        kind: u8,
        member: u16,
    },
    MethodType(u16),
    /// `Dynamic` and `InvokeDynamic`.
    Dynamic {
        tag: u8,
        bootstrap: u16,
        name_and_type: u16,
    },
    /// `Module` and `Package`.
    Named {
        tag: u8,
        name: u16,
    },
}

/// The pool of one class.
pub(super) struct Pool<'a> {
    entries: Vec<Entry<'a>>,
}

impl<'a> Pool<'a> {
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, ClassFileError> {
        let count = usize::from(reader.u2()?);
        if count == 0 {
            return Err(reader.error("its constant pool has no slot 0"));
        }
        let mut entries = vec![Entry::Unusable];
        while entries.len() < count {
            let entry = Self::entry(reader)?;
            entries.push(entry);
            if matches!(entry, Entry::Long(_) | Entry::Double(_)) {
                entries.push(Entry::Unusable);
            }
        }
        if entries.len() != count {
            return Err(reader.error("the last constant takes two slots where there is one"));
        }
        Ok(Self { entries })
    }

    fn entry(reader: &mut Reader<'a>) -> Result<Entry<'a>, ClassFileError> {
        let tag = reader.u1()?;
        Ok(match tag {
            1 => {
                let length = usize::from(reader.u2()?);
                Entry::Utf8(reader.take(length)?)
            }
            3 => Entry::Integer(reader.u4()?.cast_signed()),
            4 => Entry::Float(reader.u4()?),
            5 => Entry::Long(reader.u8()?.cast_signed()),
            6 => Entry::Double(reader.u8()?),
            7 => Entry::Class(reader.u2()?),
            8 => Entry::String(reader.u2()?),
            9..=11 => Entry::Member { tag, class: reader.u2()?, name_and_type: reader.u2()? },
            12 => Entry::NameAndType { name: reader.u2()?, desc: reader.u2()? },
            15 => Entry::MethodHandle { kind: reader.u1()?, member: reader.u2()? },
            16 => Entry::MethodType(reader.u2()?),
            17 | 18 => Entry::Dynamic { tag, bootstrap: reader.u2()?, name_and_type: reader.u2()? },
            19 | 20 => Entry::Named { tag, name: reader.u2()? },
            _ => return Err(reader.error("a constant has an unknown tag")),
        })
    }

    pub(super) fn get(&self, index: u16) -> Result<Entry<'a>, ClassFileError> {
        match self.entries.get(usize::from(index)) {
            Some(Entry::Unusable) | None => Err(bad("a constant is referred to that is not there", index)),
            Some(entry) => Ok(*entry),
        }
    }

    pub(super) fn raw(&self, index: u16) -> Result<&'a [u8], ClassFileError> {
        match self.get(index)? {
            Entry::Utf8(bytes) => Ok(bytes),
            _ => Err(bad("a constant should be a text", index)),
        }
    }

    /// A text that has to be exact: a name or a descriptor.
    pub(super) fn utf8(&self, index: u16) -> Result<String, ClassFileError> {
        decode(self.raw(index)?).ok_or_else(|| bad("a name is no valid text", index))
    }

    /// A class by its binary name, with dots; arrays as descriptors.
    pub(super) fn class(&self, index: u16) -> Result<String, ClassFileError> {
        match self.get(index)? {
            Entry::Class(name) => Ok(dotted(self.utf8(name)?)),
            _ => Err(bad("a constant should be a class", index)),
        }
    }

    pub(super) fn class_or_none(&self, index: u16) -> Result<Option<String>, ClassFileError> {
        (index != 0).then(|| self.class(index)).transpose()
    }

    pub(super) fn name_and_type(&self, index: u16) -> Result<(String, String), ClassFileError> {
        match self.get(index)? {
            Entry::NameAndType { name, desc } => Ok((self.utf8(name)?, self.utf8(desc)?)),
            _ => Err(bad("a constant should be a name with a type", index)),
        }
    }

    /// The value of a `ConstantValue` attribute.
    pub(super) fn constant(&self, index: u16) -> Result<Constant, ClassFileError> {
        match self.value(self.get(index)?)? {
            Some(constant) => Ok(constant),
            None => Err(bad("a constant should be a value", index)),
        }
    }

    fn value(&self, entry: Entry<'a>) -> Result<Option<Constant>, ClassFileError> {
        Ok(Some(match entry {
            Entry::Integer(value) => Constant::Int(value),
            Entry::Long(value) => Constant::Long(value),
            Entry::Float(bits) => Constant::Float(bits),
            Entry::Double(bits) => Constant::Double(bits),
            Entry::String(text) => Constant::Text(lossy(self.raw(text)?)),
            _ => return Ok(None),
        }))
    }

    pub(super) fn references(&self) -> Result<BTreeSet<MemberRef>, ClassFileError> {
        let mut references = BTreeSet::new();
        for entry in &self.entries {
            if let Entry::Member { class, name_and_type, .. } = *entry {
                let (name, desc) = self.name_and_type(name_and_type)?;
                references.insert(MemberRef { owner: self.class(class)?, name, desc });
            }
        }
        Ok(references)
    }

    pub(super) fn classes(&self) -> Result<BTreeSet<String>, ClassFileError> {
        let names = self.entries.iter().filter_map(|entry| match entry {
            Entry::Class(name) => Some(*name),
            _ => None,
        });
        names.map(|name| self.utf8(name).map(dotted)).collect()
    }

    pub(super) fn constants(&self) -> Result<BTreeSet<Constant>, ClassFileError> {
        self.entries.iter().filter_map(|entry| self.value(*entry).transpose()).collect()
    }
}

fn bad(problem: &'static str, index: u16) -> ClassFileError {
    ClassFileError { problem, at: usize::from(index) }
}

fn dotted(name: String) -> String {
    // An array's descriptor stays one: `[Lcom/acme/A;` is no name that a patch could ship.
    if name.starts_with('[') { name } else { name.replace('/', ".") }
}

/// Java's own UTF-8: zero in two bytes, supplementary characters as two surrogates of three bytes each.
fn units(bytes: &[u8]) -> Option<Vec<u16>> {
    let mut units = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter().map(|byte| u16::from(*byte));
    while let Some(first) = rest.next() {
        let mut next = || rest.next().filter(|byte| byte & 0xC0 == 0x80).map(|byte| byte & 0x3F);
        units.push(match first {
            0x01..=0x7F => first,
            0xC0..=0xDF => (first & 0x1F) << 6 | next()?,
            0xE0..=0xEF => (first & 0x0F) << 12 | next()? << 6 | next()?,
            _ => return None,
        });
    }
    Some(units)
}

fn decode(bytes: &[u8]) -> Option<String> {
    String::from_utf16(&units(bytes)?).ok()
}

fn lossy(bytes: &[u8]) -> String {
    units(bytes)
        .map_or_else(|| String::from_utf8_lossy(bytes).into_owned(), |units| String::from_utf16_lossy(&units))
}
