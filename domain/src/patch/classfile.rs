//! Java class files, as far as it matters what may stand in for what: members, references, constants, families.
//!
//! Written for files that somebody made to do harm: every length is checked, nothing is trusted to be in range, and
//! the worst answer is an error. Nothing is verified beyond that; what a class does is the JVM's business.

use std::collections::BTreeSet;

use crate::digest::Digest;

mod attributes;
mod code;
mod flags;
mod pool;
mod reader;

pub use flags::*;
use pool::Pool;
use reader::Reader;

/// The largest class file, in bytes, that is read at all. The format itself sets no limit; the largest seen in use is
/// a tenth of it.
pub const MAX_CLASS_BYTES: usize = 16 * 1024 * 1024;
/// The oldest major version: Java 1.1.
pub const MIN_MAJOR: u16 = 45;

/// Why bytes are no class file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid class file: {problem} at byte {at}")]
pub struct ClassFileError {
    /// What is wrong.
    pub problem: &'static str,
    /// Where, counted from the beginning; of a part that is read by itself, from that part's beginning.
    pub at: usize,
}

/// A value that stands in a class file as a constant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Constant {
    /// `int`, and whatever is narrower.
    Int(i32),
    /// `long`.
    Long(i64),
    /// `float`, by its bits.
    Float(u32),
    /// `double`, by its bits.
    Double(u64),
    /// `String`; what no text can hold is replaced.
    Text(String),
}

/// A field that a class declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its type as a descriptor, e.g. `Ljava/lang/String;`.
    pub desc: String,
    /// Its modifiers.
    pub access: u16,
    /// Its value, where that is a compile-time constant.
    pub constant: Option<Constant>,
}

/// A method that a class declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Method {
    /// Its name; `<init>` and `<clinit>` as well.
    pub name: String,
    /// Its parameters and result as a descriptor.
    pub desc: String,
    /// Its modifiers.
    pub access: u16,
    /// SHA-256 over instructions and exception table with their constants spelt out: the same for the same code,
    /// whatever the constant pool's order and the line numbers. `None` where it has no body.
    pub body: Option<Digest>,
}

/// A member that a class links against.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemberRef {
    /// The class that it is looked up in, with dots; arrays as descriptors.
    pub owner: String,
    /// Its name.
    pub name: String,
    /// Its descriptor: a method's begins with `(`.
    pub desc: String,
}

/// An entry of the `InnerClasses` attribute.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Inner {
    /// The class, with dots.
    pub name: String,
    /// The class it is a member of; `None` for local and anonymous ones.
    pub outer: Option<String>,
    /// Its modifiers as in the source.
    pub access: u16,
}

/// A class file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassFile {
    /// The format's major version, e.g. 52 for Java 8.
    pub major: u16,
    /// The minor version; 65535 marks preview features.
    pub minor: u16,
    /// Modifiers.
    pub access: u16,
    /// Its binary name, with dots.
    pub name: String,
    /// The superclass; `None` for `java.lang.Object` and for modules.
    pub super_class: Option<String>,
    /// Interfaces in order.
    pub interfaces: Vec<String>,
    /// Fields in order.
    pub fields: Vec<Field>,
    /// Methods in order.
    pub methods: Vec<Method>,
    /// Members that it links against, its own included.
    pub references: BTreeSet<MemberRef>,
    /// Classes that it names, itself and its superclass included.
    pub classes: BTreeSet<String>,
    /// Constants that stand in its pool or its code.
    pub constants: BTreeSet<Constant>,
    /// Its `InnerClasses`.
    pub inner: Vec<Inner>,
    /// The class whose nest it is in.
    pub nest_host: Option<String>,
    /// The members of the nest that it hosts, sorted.
    pub nest_members: Vec<String>,
    /// What a sealed class permits, sorted; `None` where it is not sealed.
    pub permitted: Option<Vec<String>>,
    /// The components of a record, `name descriptor`, in order; `None` where it is none.
    pub record: Option<Vec<String>>,
    /// SHA-256 over what is neither debug information nor in the other fields: signatures, annotations, attributes that
    /// this code does not know.
    pub rest: Digest,
}

impl ClassFile {
    /// Reads a class file.
    ///
    /// # Errors
    /// Where the bytes are none, or are cut off, or point to what is not there.
    pub fn parse(bytes: &[u8]) -> Result<Self, ClassFileError> {
        let mut reader = Reader::new(bytes);
        if bytes.len() > MAX_CLASS_BYTES {
            return Err(reader.error("it is too large"));
        }
        if reader.u4()? != 0xCAFE_BABE {
            return Err(ClassFileError { problem: "it does not begin with CAFEBABE", at: 0 });
        }
        let minor = reader.u2()?;
        let major = reader.u2()?;
        if major < MIN_MAJOR {
            return Err(reader.error("its version is older than Java 1.1"));
        }
        let pool = Pool::read(&mut reader)?;
        let access = reader.u2()?;
        let name = pool.class(reader.u2()?)?;
        let super_class = pool.class_or_none(reader.u2()?)?;
        let interfaces = (0..reader.u2()?).map(|_| pool.class(reader.u2()?)).collect::<Result<_, _>>()?;
        let mut class = Self {
            major,
            minor,
            access,
            name,
            super_class,
            interfaces,
            fields: Vec::new(),
            methods: Vec::new(),
            references: pool.references()?,
            classes: pool.classes()?,
            constants: pool.constants()?,
            inner: Vec::new(),
            nest_host: None,
            nest_members: Vec::new(),
            permitted: None,
            record: None,
            rest: Digest([0; 32]),
        };
        attributes::read(&mut class, &mut reader, &pool)?;
        if !reader.is_done() {
            return Err(reader.error("something follows its end"));
        }
        Ok(class)
    }

    /// The method of that name and descriptor that it declares.
    #[must_use]
    pub fn method(&self, name: &str, desc: &str) -> Option<&Method> {
        self.methods.iter().find(|method| method.name == name && method.desc == desc)
    }

    /// The field of that name and descriptor that it declares.
    #[must_use]
    pub fn field(&self, name: &str, desc: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name && field.desc == desc)
    }

    /// Whether two class files differ in debug information only: line numbers, names of local variables, source file,
    /// the order of the constant pool.
    #[must_use]
    pub fn same_but_for_debug(&self, other: &Self) -> bool {
        // References, classes and constants are what the pool has; what is used of it is in the bodies.
        let plain = |class: &Self| Self {
            references: BTreeSet::new(),
            classes: BTreeSet::new(),
            constants: BTreeSet::new(),
            ..class.clone()
        };
        plain(self) == plain(other)
    }
}

#[cfg(test)]
pub(super) mod tests;
