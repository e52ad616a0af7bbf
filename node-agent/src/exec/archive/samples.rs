//! Archives made byte by byte for tests: sound ones, and the ways in which one can be hostile.

use std::io::Write as _;

use flate2::{
    Compression,
    write::{DeflateEncoder, GzEncoder},
};

/// One tar entry: header, content, padding.
pub(in crate::exec) fn tar_entry(name: &[u8], kind: u8, mode: u32, content: &[u8], link: &str) -> Vec<u8> {
    let mut head = [0u8; 512];
    head[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
    let field = |head: &mut [u8; 512], at: usize, width: usize, value: u64| {
        let text = format!("{value:0width$o}\0", width = width - 1);
        head[at..at + width].copy_from_slice(text.as_bytes());
    };
    field(&mut head, 100, 8, mode.into());
    field(&mut head, 108, 8, 0);
    field(&mut head, 116, 8, 0);
    field(&mut head, 124, 12, content.len() as u64);
    field(&mut head, 136, 12, 0);
    head[156] = kind;
    head[157..157 + link.len()].copy_from_slice(link.as_bytes());
    head[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut head);
    let mut bytes = head.to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn seal(head: &mut [u8; 512]) {
    head[148..156].fill(b' ');
    let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
    head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

pub(in crate::exec) fn file(name: &str, content: &str) -> Vec<u8> {
    tar_entry(name.as_bytes(), b'0', 0o644, content.as_bytes(), "")
}

pub(in crate::exec) fn tar(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = entries.concat();
    bytes.extend([0; 1024]);
    bytes
}

pub(in crate::exec) fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut text = String::new();
    for (key, value) in records {
        let rest = format!(" {key}={value}\n").len();
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length += 1;
        }
        text += &format!("{length} {key}={value}\n");
    }
    tar_entry(b"pax", b'x', 0o644, text.as_bytes(), "")
}

/// One zip entry, and what its local header says instead.
#[derive(Clone)]
pub(in crate::exec) struct Zipped {
    name: Vec<u8>,
    content: Vec<u8>,
    packed: Vec<u8>,
    method: u16,
    flags: u16,
    mode: u32,
    crc: u32,
    size: u32,
    local_name: Vec<u8>,
    local_size: u32,
    local_method: u16,
    extra: Vec<u8>,
    after: Vec<u8>,
}

pub(in crate::exec) fn zipped(name: &str, content: &str) -> Zipped {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(content.as_bytes()).unwrap();
    let size = content.len() as u32;
    Zipped {
        name: name.into(),
        content: content.into(),
        packed: encoder.finish().unwrap(),
        method: 8,
        flags: 0,
        mode: 0,
        crc: crc32fast::hash(content.as_bytes()),
        size,
        local_name: name.into(),
        local_size: size,
        local_method: 8,
        extra: vec![],
        after: vec![],
    }
}

impl Zipped {
    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn stored(self) -> Self {
        self.with(|e| {
            e.packed = e.content.clone();
            (e.method, e.local_method) = (0, 0);
        })
    }

    /// As programs write it that do not know the sizes beforehand.
    pub(in crate::exec) fn streamed(self) -> Self {
        self.with(|e| {
            e.flags = 1 << 3;
            e.after = [
                &0x0807_4b50_u32.to_le_bytes()[..],
                &e.crc.to_le_bytes(),
                &(e.packed.len() as u32).to_le_bytes(),
                &e.size.to_le_bytes(),
            ]
            .concat();
        })
    }
}

pub(in crate::exec) fn zip(entries: &[Zipped]) -> Vec<u8> {
    zip_at(entries, |index, offsets| offsets[index])
}

/// A zip whose directory says for each entry that it lies at `at(index, real offsets)`.
fn zip_at(entries: &[Zipped], at: impl Fn(usize, &[u32]) -> u32) -> Vec<u8> {
    let (mut bytes, mut directory, mut offsets) = (Vec::new(), Vec::new(), Vec::new());
    let halves =
        |bytes: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|v| bytes.extend(v.to_le_bytes()));
    let words =
        |bytes: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|v| bytes.extend(v.to_le_bytes()));
    for entry in entries {
        offsets.push(bytes.len() as u32);
        let streamed = entry.flags & 8 != 0;
        let said =
            if streamed { [0, 0, 0] } else { [entry.crc, entry.packed.len() as u32, entry.local_size] };
        words(&mut bytes, &[0x0403_4b50]);
        halves(&mut bytes, &[20, entry.flags, entry.local_method, 0, 0]);
        words(&mut bytes, &said);
        halves(&mut bytes, &[entry.local_name.len() as u16, 0]);
        bytes.extend(&entry.local_name);
        bytes.extend(&entry.packed);
        bytes.extend(&entry.after);
    }
    for (index, entry) in entries.iter().enumerate() {
        words(&mut directory, &[0x0201_4b50]);
        halves(&mut directory, &[0x0314, 20, entry.flags, entry.method, 0, 0]);
        words(&mut directory, &[entry.crc, entry.packed.len() as u32, entry.size]);
        halves(&mut directory, &[entry.name.len() as u16, entry.extra.len() as u16, 0, 0, 0]);
        words(&mut directory, &[entry.mode << 16, at(index, &offsets)]);
        directory.extend(&entry.name);
        directory.extend(&entry.extra);
    }
    let begins = bytes.len() as u32;
    bytes.extend(&directory);
    words(&mut bytes, &[0x0605_4b50]);
    halves(&mut bytes, &[0, 0, entries.len() as u16, entries.len() as u16]);
    words(&mut bytes, &[directory.len() as u32, begins]);
    halves(&mut bytes, &[0]);
    bytes
}

/// Hostile archives by name, each with a part of what is said about it. The limits they are read with are 8 files of
/// together 4096 bytes.
pub(in crate::exec) fn hostile() -> Vec<(String, Vec<u8>, &'static str)> {
    let mut all = names();
    all.extend(tars());
    all.extend(zips());
    all
}

/// Names that lead elsewhere, in a tar and in a zip.
fn names() -> Vec<(String, Vec<u8>, &'static str)> {
    let long = "d/".repeat(600) + "x";
    let cases: [(&str, &str, &str); 13] = [
        ("leaves", "../escaped", "leaves the directory"),
        ("leaves in the middle", "a/../../escaped", "leaves the directory"),
        ("ends above", "a/..", "leaves the directory"),
        ("absolute", "/tmp/upfleet-escaped", "is absolute"),
        ("backslash", "..\\escaped", "backslash"),
        ("drive", "C:escaped", "holds a `:`"),
        ("splits a class path", "a.jar:b.jar", "holds a `:`"),
        ("newline", "a\nb", "control character"),
        ("escape sequence", "a\u{1b}[2Jb", "control character"),
        ("turned around", "a\u{202e}gpj.exe", "control character"),
        ("empty part", "a//b", "empty part"),
        ("dot in the middle", "a/./b", "holds `.`"),
        ("too long", &long, "longer than"),
    ];
    let mut all = Vec::new();
    for (what, name, said) in cases {
        let long = tar_entry(b"long", b'L', 0o644, format!("{name}\0").as_bytes(), "");
        let tar_bytes = tar(&[long, file("short", "x")]);
        let said_of_tar = if what == "too long" { "long name is empty or too long" } else { said };
        all.push((format!("tar: {what}"), gz(&tar_bytes), said_of_tar));
        all.push((format!("zip: {what}"), zip(&[zipped(name, "x")]), said));
    }
    all.push(("tar: not UTF-8".into(), tar(&[tar_entry(b"a\xff", b'0', 0o644, b"x", "")]), "not UTF-8"));
    all.push(("tar: leaves behind a dot".into(), tar(&[file("./../escaped", "x")]), "leaves the directory"));
    all
}

/// Entries that are neither files nor directories.
fn odd_kinds() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let odd = |kind: u8, link: &str| tar(&[tar_entry(b"odd", kind, 0o644, b"", link)]);
    vec![
        ("symbolic link", odd(b'2', "/etc/passwd"), "a symbolic link"),
        ("hard link", odd(b'1', "../../outside"), "a hard link"),
        ("character device", odd(b'3', ""), "a device"),
        ("block device", odd(b'4', ""), "a device"),
        ("named pipe", odd(b'6', ""), "a named pipe"),
        ("sparse file", odd(b'S', ""), "a sparse file"),
        ("unknown kind", odd(b'Z', ""), "of an unknown kind"),
    ]
}

fn tars() -> Vec<(String, Vec<u8>, &'static str)> {
    let good = tar(&[file("a", "x")]);
    let mut damaged = good.clone();
    damaged[0] = b'b';
    let mut hidden = good.clone();
    hidden[600] = b'!';
    let mut half = file("a", "x");
    half.extend([0; 512]);
    half.extend(file("b", "x"));
    let mut negative = tar_entry(b"a", b'0', 0o644, b"", "");
    negative[124..136].fill(0xff);
    let head: &mut [u8; 512] = negative.first_chunk_mut().unwrap();
    seal(head);
    let many: Vec<_> = (0..9).map(|n| file(&format!("f{n}"), "x")).collect();
    let folders: Vec<_> =
        (0..200).map(|n| tar_entry(format!("d{n}/").as_bytes(), b'5', 0o755, b"", "")).collect();
    let bomb = gz(&tar(&[file("bomb", &"\0".repeat(1 << 20))]));
    let mut zeros = good.clone();
    zeros.resize(4 << 20, 0);
    let cases: Vec<(&str, Vec<u8>, &'static str)> = vec![
        (
            "link by way of a directory",
            tar(&[tar_entry(b"d", b'2', 0o777, b"", ".."), file("d/escaped", "x")]),
            "a symbolic link",
        ),
        ("twice", tar(&[file("a", "x"), file("a", "y")]), "it is there twice"),
        ("twice behind a dot", tar(&[file("a", "x"), file("./a", "y")]), "it is there twice"),
        ("file and directory", tar(&[file("a", "x"), file("a/b", "y")]), "below a file"),
        ("directory and file", tar(&[file("a/b", "x"), file("a", "y")]), "both a file and a directory"),
        (
            "directory with content",
            tar(&[tar_entry(b"d/", b'5', 0o755, b"x", "")]),
            "a directory with content",
        ),
        (
            "name of its extension header leaves",
            tar(&[pax(&[("path", "../escaped")]), file("a", "x")]),
            "leaves the directory",
        ),
        ("size in its extension header", tar(&[pax(&[("size", "0")]), file("a", "x")]), "says `size`"),
        (
            "link in its extension header",
            tar(&[pax(&[("linkpath", "/etc")]), file("a", "x")]),
            "says `linkpath`",
        ),
        (
            "two long names",
            tar(&[pax(&[("path", "b")]), pax(&[("path", "c")]), file("a", "x")]),
            "two long names",
        ),
        ("long name of nothing", tar(&[pax(&[("path", "b")])]), "followed by no entry"),
        ("damaged header", damaged, "header is damaged"),
        ("bytes hidden in padding", hidden, "hidden behind its content"),
        ("an end in the middle", half, "half an end"),
        ("a size below zero", tar(&[negative]), "number that is none"),
        ("too many files", tar(&many), "more than 8 files"),
        ("too many directories", tar(&folders), "too many entries"),
        ("bomb", bomb, "more than 4096 bytes"),
        ("zeros without end", gz(&zeros), "bytes follow its end"),
        (
            "rubbish at the end",
            [good.clone(), b"rubbish".to_vec()].concat(),
            "cut off in the middle of a block",
        ),
        ("another archive at the end", [good.clone(), file("b", "x")].concat(), "bytes follow its end"),
        ("rubbish behind gzip", [gz(&good), b"rubbish".to_vec()].concat(), "bytes follow its end"),
        ("a second gzip", [gz(&good), gz(&good)].concat(), "bytes follow its end"),
        ("cut off", good[..700].to_vec(), "cut off"),
        ("gzip cut off", gz(&good)[..20].to_vec(), "cut off"),
        ("no archive", b"#!/bin/sh\nrm -rf /\n".repeat(40), "no tar, gzipped tar or zip"),
        ("empty", vec![], "cut off"),
    ];
    let cases = odd_kinds().into_iter().chain(cases);
    cases.map(|(what, bytes, said)| (format!("tar: {what}"), bytes, said)).collect()
}

fn zips() -> Vec<(String, Vec<u8>, &'static str)> {
    let one = || zipped("a", "content");
    let good = zip(&[one()]);
    let mut commented = good.clone();
    let at = commented.len() - 2;
    commented[at] = 4;
    commented.extend(b"hide");
    let mut large = good.clone();
    let at = large.len() - 12;
    large[at..at + 2].fill(0xff);
    let split = zip_at(&[one(), zipped("b", "content")], |_, offsets| offsets[0]);
    let many: Vec<_> = (0..9).map(|n| zipped(&format!("f{n}"), "x")).collect();
    let bomb = zipped("bomb", &"\0".repeat(1 << 20));
    let unicode = [&0x7075_u16.to_le_bytes()[..], &1u16.to_le_bytes(), b"x"].concat();
    let liar = bomb.clone().with(|e| (e.size, e.local_size) = (10, 10));
    let hidden = one().with(|e| e.packed.extend(b"hidden"));
    let cases: Vec<(&str, Vec<u8>, &'static str)> = vec![
        ("other name in its header", zip(&[one().with(|e| e.local_name = b"b".to_vec())]), "header differs"),
        ("other size in its header", zip(&[one().with(|e| e.local_size = 1)]), "header differs"),
        ("other method in its header", zip(&[one().with(|e| e.local_method = 0)]), "header differs"),
        ("symbolic link", zip(&[one().stored().with(|e| e.mode = 0o120_777)]), "a link or a device"),
        ("device", zip(&[one().with(|e| e.mode = 0o060_644)]), "a link or a device"),
        ("encrypted", zip(&[one().with(|e| e.flags = 1)]), "encrypted"),
        (
            "unknown method",
            zip(&[one().with(|e| (e.method, e.local_method) = (12, 12))]),
            "a method that is not read",
        ),
        ("wrong checksum", zip(&[one().with(|e| e.crc ^= 1)]), "checksum does not fit"),
        ("two sizes", zip(&[one().stored().with(|e| e.size += 1)]), "two sizes differ"),
        ("a size too small", zip(&[liar]), "longer or shorter"),
        ("a size too large", zip(&[one().with(|e| (e.size, e.local_size) = (99, 99))]), "longer or shorter"),
        ("bomb", zip(&[bomb]), "more than 4096 bytes"),
        ("too many files", zip(&many), "more than 8 files"),
        ("overlapping", split, "overlaps"),
        (
            "bytes hidden behind an entry",
            zip(&[one().with(|e| e.after = b"hidden".to_vec()), zipped("b", "x")]),
            "hidden",
        ),
        ("bytes hidden in packed content", zip(&[hidden]), "hidden in its packed content"),
        ("descriptor that lies", zip(&[one().streamed().with(|e| e.after[5] ^= 1)]), "sizes differ"),
        (
            "a program before it",
            [b"#!/bin/sh\n".to_vec(), good.clone()].concat(),
            "cut off in the middle of a block",
        ),
        ("rubbish at the end", [good.clone(), b"rubbish".to_vec()].concat(), "bytes or a comment follow"),
        ("a comment", commented, "bytes or a comment follow"),
        ("another name in an extra field", zip(&[one().with(|e| e.extra = unicode)]), "another size or name"),
        ("zip64", large, "zip64"),
        ("twice", zip(&[one(), one()]), "it is there twice"),
        ("file and directory", zip(&[zipped("a", "x"), zipped("a/b", "x")]), "below a file"),
        ("NUL in its name", zip(&[zipped("a\0b", "x")]), "control character"),
        ("cut off", good[..good.len() - 30].to_vec(), "does not end with its directory"),
    ];
    cases.into_iter().map(|(what, bytes, said)| (format!("zip: {what}"), bytes, said)).collect()
}
