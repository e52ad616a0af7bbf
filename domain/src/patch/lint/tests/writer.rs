//! A tiny writer of class files: members without bodies, and references to those of others.

use crate::patch::JarContents;

/// A class in the making. Names are as in class files, with `/`.
#[derive(Default)]
pub(crate) struct Writer {
    pool: Vec<Vec<u8>>,
    access: u16,
    this: u16,
    parent: Option<u16>,
    interfaces: Vec<u16>,
    fields: Vec<Vec<u8>>,
    methods: Vec<Vec<u8>>,
}

impl Writer {
    pub(crate) fn new(name: &str) -> Self {
        let mut writer = Self { access: 0x0021, ..Self::default() };
        writer.this = writer.class(name);
        writer
    }

    fn add(&mut self, entry: Vec<u8>) -> u16 {
        self.pool.push(entry);
        u16::try_from(self.pool.len()).unwrap()
    }

    fn utf8(&mut self, text: &str) -> u16 {
        let length = u16::try_from(text.len()).unwrap().to_be_bytes();
        self.add([&[1][..], &length, text.as_bytes()].concat())
    }

    fn class(&mut self, name: &str) -> u16 {
        let name = self.utf8(name);
        self.add([&[7][..], &name.to_be_bytes()].concat())
    }

    pub(crate) fn access(mut self, access: u16) -> Self {
        self.access = access;
        self
    }

    pub(crate) fn extends(mut self, name: &str) -> Self {
        self.parent = Some(self.class(name));
        self
    }

    pub(crate) fn implements(mut self, name: &str) -> Self {
        let class = self.class(name);
        self.interfaces.push(class);
        self
    }

    pub(crate) fn method(mut self, access: u16, name: &str, desc: &str) -> Self {
        let (name, desc) = (self.utf8(name), self.utf8(desc));
        self.methods.push(shorts(&[access, name, desc, 0]));
        self
    }

    /// A `public static final int`.
    pub(crate) fn constant(mut self, name: &str, value: i32) -> Self {
        let (name, desc, attribute) = (self.utf8(name), self.utf8("I"), self.utf8("ConstantValue"));
        let value = self.add([&[3][..], &value.to_be_bytes()].concat());
        self.fields.push(shorts(&[0x0019, name, desc, 1, attribute, 0, 2, value]));
        self
    }

    /// Links against a method.
    pub(crate) fn calls(mut self, owner: &str, name: &str, desc: &str) -> Self {
        let (owner, name, desc) = (self.class(owner), self.utf8(name), self.utf8(desc));
        let name_and_type = self.add([&[12][..], &shorts(&[name, desc])].concat());
        self.add([&[10][..], &shorts(&[owner, name_and_type])].concat());
        self
    }

    pub(crate) fn bytes(mut self) -> Vec<u8> {
        let parent = self.parent.unwrap_or_else(|| self.class("java/lang/Object"));
        let count = |list: usize| u16::try_from(list).unwrap();
        let mut bytes = shorts(&[0xCAFE, 0xBABE, 0, 52, count(self.pool.len() + 1)]);
        bytes.extend(self.pool.concat());
        bytes.extend(shorts(&[self.access, self.this, parent, count(self.interfaces.len())]));
        bytes.extend(shorts(&self.interfaces));
        for members in [&self.fields, &self.methods] {
            bytes.extend(shorts(&[count(members.len())]));
            bytes.extend(members.concat());
        }
        bytes.extend(shorts(&[0]));
        bytes
    }
}

fn shorts(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

/// A jar of these files.
pub(crate) fn jar(name: &str, entries: &[(&str, &[u8])]) -> JarContents {
    let entries = entries.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.to_vec())).collect();
    JarContents { name: name.into(), entries }
}
