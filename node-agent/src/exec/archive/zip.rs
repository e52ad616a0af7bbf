//! The zip: what the central directory says and what lies in the file have to be the same, without gaps between the
//! entries and without anything before the first or after the end.

use std::{
    fs::File,
    io::{self, Read, Take},
    os::unix::fs::FileExt as _,
};

use flate2::read::DeflateDecoder;

use super::{Fault, Gate, Member, Visit, bytes::Checked};

const END: u32 = 0x0605_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const LOCAL: u32 = 0x0403_4b50;
const DESCRIPTOR: u32 = 0x0807_4b50;
const END_SIZE: u64 = 22;
const CENTRAL_SIZE: usize = 46;
const LOCAL_SIZE: usize = 30;
/// The largest central directory that is read.
const MAX_DIRECTORY: u64 = 64 * 1024 * 1024;
/// Sizes follow the content instead of standing before it.
const STREAMED: u16 = 1 << 3;
/// Encrypted, patched, strongly encrypted, masked: bits that nobody here reads.
const REFUSED_FLAGS: u16 = 1 | 1 << 5 | 1 << 6 | 1 << 13;
/// Extra fields that would say something else of sizes or names: zip64, another name.
const REFUSED_EXTRA: [u16; 2] = [0x0001, 0x7075];

/// What the central directory says of an entry.
#[derive(Clone, PartialEq)]
struct Entry {
    name: Vec<u8>,
    flags: u16,
    method: u16,
    crc: u32,
    packed: u64,
    size: u64,
    /// Permissions and type as a Unix program wrote them, else 0.
    mode: u32,
    at: u64,
}

impl Entry {
    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }
}

pub(super) fn read(file: &File, gate: &mut Gate, visit: Visit<'_>) -> Result<(), Fault> {
    let (entries, directory_at) = directory(file, gate)?;
    let mut expected = 0;
    for (index, entry) in entries.iter().enumerate() {
        let shown = entry.shown();
        if entry.at != expected {
            return Err(Fault::hostile(&shown, "its entry overlaps another, or bytes are hidden before it"));
        }
        let end = entries.get(index + 1).map_or(directory_at, |next| next.at);
        let data = local(file, entry, &shown)?;
        let over = end.checked_sub(data + entry.packed);
        descriptor(file, entry, data + entry.packed, over, &shown)?;
        content(file, gate, entry, data, visit)?;
        expected = end;
    }
    if expected != directory_at {
        return Err(Fault::hostile("", "bytes are hidden before its directory"));
    }
    Ok(())
}

/// The entries in the order in which they lie, and where the directory begins.
fn directory(file: &File, gate: &Gate) -> Result<(Vec<Entry>, u64), Fault> {
    let whole = |problem: &str| Fault::hostile("", problem);
    let length = file.metadata()?.len();
    let end_at = length.checked_sub(END_SIZE).ok_or_else(|| whole("it is cut off"))?;
    let end = bytes(file, end_at, END_SIZE as usize)?;
    if u32_at(&end, 0) != END || u16_at(&end, 20) != 0 {
        return Err(whole("it does not end with its directory: bytes or a comment follow it"));
    }
    let (count, size, at) = (u16_at(&end, 10), u64::from(u32_at(&end, 12)), u64::from(u32_at(&end, 16)));
    if count == u16::MAX || size == u64::from(u32::MAX) || at == u64::from(u32::MAX) {
        return Err(whole("it is a zip64, which is not read; use a .tar.gz"));
    }
    if u16_at(&end, 4) != 0 || u16_at(&end, 6) != 0 || u16_at(&end, 8) != count {
        return Err(whole("it is a part of several"));
    }
    if at.checked_add(size) != Some(end_at) || size > MAX_DIRECTORY {
        return Err(whole("its directory does not lie where it says"));
    }
    if usize::from(count) > gate.limits.files.saturating_mul(2).saturating_add(64) {
        return Err(whole("it has too many entries"));
    }
    let directory = bytes(file, at, size as usize)?;
    let (mut rest, mut entries) = (directory.as_slice(), Vec::new());
    for _ in 0..count {
        let (entry, length) = central(rest)?;
        entries.push(entry);
        rest = &rest[length..];
    }
    if !rest.is_empty() {
        return Err(whole("its directory holds more entries than it says"));
    }
    entries.sort_by_key(|entry| entry.at);
    Ok((entries, at))
}

fn central(bytes: &[u8]) -> Result<(Entry, usize), Fault> {
    let cut = || Fault::hostile("", "its directory is damaged");
    if bytes.len() < CENTRAL_SIZE || u32_at(bytes, 0) != CENTRAL {
        return Err(cut());
    }
    let (name, extra, comment) = (u16_at(bytes, 28), u16_at(bytes, 30), u16_at(bytes, 32));
    let length = CENTRAL_SIZE + usize::from(name) + usize::from(extra) + usize::from(comment);
    if bytes.len() < length {
        return Err(cut());
    }
    let extra_at = CENTRAL_SIZE + usize::from(name);
    let unix = bytes[5] == 3;
    let entry = Entry {
        name: bytes[CENTRAL_SIZE..extra_at].to_vec(),
        flags: u16_at(bytes, 8),
        method: u16_at(bytes, 10),
        crc: u32_at(bytes, 16),
        packed: u64::from(u32_at(bytes, 20)),
        size: u64::from(u32_at(bytes, 24)),
        mode: if unix { u32_at(bytes, 38) >> 16 } else { 0 },
        at: u64::from(u32_at(bytes, 42)),
    };
    check(&entry, &bytes[extra_at..extra_at + usize::from(extra)])?;
    Ok((entry, length))
}

fn check(entry: &Entry, extra: &[u8]) -> Result<(), Fault> {
    let fault = |problem: &str| Err(Fault::hostile(&entry.shown(), problem));
    if entry.flags & REFUSED_FLAGS != 0 {
        return fault("it is encrypted");
    }
    if !matches!(entry.method, 0 | 8) {
        return fault("it is packed by a method that is not read; stored and deflated are");
    }
    if entry.method == 0 && entry.packed != entry.size {
        return fault("its two sizes differ");
    }
    if [entry.packed, entry.size, entry.at].contains(&u64::from(u32::MAX)) {
        return fault("it is a zip64 entry, which is not read; use a .tar.gz");
    }
    if entry.name.contains(&0) {
        return fault("its name holds a control character");
    }
    let kind = entry.mode & 0o170_000;
    let directory = entry.name.ends_with(b"/");
    // A directory marked as a file is one all the same: it can have no content.
    if !(kind == 0 || kind == 0o100_000 || kind == 0o040_000 && directory) {
        return fault("it is a link or a device; only regular files and directories are taken");
    }
    extra_fields(extra, &entry.shown())
}

fn extra_fields(mut extra: &[u8], shown: &str) -> Result<(), Fault> {
    // Less than a header is what some programs align with.
    while extra.len() >= 4 {
        let (id, length) = (u16_at(extra, 0), usize::from(u16_at(extra, 2)));
        if REFUSED_EXTRA.contains(&id) {
            return Err(Fault::hostile(shown, "an extra field gives it another size or name"));
        }
        extra = extra.get(4 + length..).unwrap_or_default();
    }
    Ok(())
}

/// Where the content begins, if the header before it says what the directory says.
fn local(file: &File, entry: &Entry, shown: &str) -> Result<u64, Fault> {
    let head = bytes(file, entry.at, LOCAL_SIZE)?;
    let differs = || Fault::hostile(shown, "its header differs from what the directory says");
    let (name, extra) = (usize::from(u16_at(&head, 26)), usize::from(u16_at(&head, 28)));
    let rest = bytes(file, entry.at + LOCAL_SIZE as u64, name + extra)?;
    let said = (u32_at(&head, 14), u64::from(u32_at(&head, 18)), u64::from(u32_at(&head, 22)));
    let streamed = entry.flags & STREAMED != 0 && said == (0, 0, 0);
    let same = u32_at(&head, 0) == LOCAL
        && u16_at(&head, 6) == entry.flags
        && u16_at(&head, 8) == entry.method
        && (streamed || said == (entry.crc, entry.packed, entry.size))
        && rest[..name] == entry.name;
    if !same {
        return Err(differs());
    }
    extra_fields(&rest[name..], shown)?;
    Ok(entry.at + (LOCAL_SIZE + name + extra) as u64)
}

/// What lies between the content and the next entry: nothing, or the sizes of a streamed one.
fn descriptor(file: &File, entry: &Entry, at: u64, over: Option<u64>, shown: &str) -> Result<(), Fault> {
    let hidden = || Fault::hostile(shown, "its entry overlaps another, or bytes are hidden behind it");
    let over = over.ok_or_else(hidden)?;
    if entry.flags & STREAMED == 0 {
        return if over == 0 { Ok(()) } else { Err(hidden()) };
    }
    let found = match over {
        12 => bytes(file, at, 12)?,
        16 => {
            let mut found = bytes(file, at, 16)?;
            if u32_at(&found, 0) != DESCRIPTOR {
                return Err(hidden());
            }
            found.split_off(4)
        }
        _ => return Err(hidden()),
    };
    let said = (u32_at(&found, 0), u64::from(u32_at(&found, 4)), u64::from(u32_at(&found, 8)));
    if said != (entry.crc, entry.packed, entry.size) {
        return Err(Fault::hostile(shown, "its sizes differ from what the directory says"));
    }
    Ok(())
}

fn content(file: &File, gate: &mut Gate, entry: &Entry, at: u64, visit: Visit<'_>) -> Result<(), Fault> {
    let name = gate.name(&entry.name)?;
    if let Some(directory) = name.strip_suffix('/') {
        // Some programs pack the nothing that a directory holds.
        let packed_nothing = entry.method == 8 && entry.packed == 2 && bytes(file, at, 2)? == [3, 0];
        return gate.directory(directory, entry.size + if packed_nothing { 0 } else { entry.packed });
    }
    let member = gate.file(name, entry.size, entry.mode & 0o100 != 0)?;
    let packed = At { file, at }.take(entry.packed);
    if entry.method == 0 {
        return checked(packed, entry, &member, visit).map(drop);
    }
    let decoder = checked(DeflateDecoder::new(packed), entry, &member, visit)?;
    if decoder.total_in() != entry.packed {
        return Err(Fault::hostile(name, "bytes are hidden in its packed content"));
    }
    Ok(())
}

/// Shows the content, and sees that it has the length and checksum that were said.
fn checked<R: Read>(reader: R, entry: &Entry, member: &Member, visit: Visit<'_>) -> Result<R, Fault> {
    // One byte more than was said shows that there is more.
    let mut content: Take<Checked<R>> = Checked::new(reader).take(entry.size + 1);
    {
        let mut exact = (&mut content).take(entry.size);
        visit(member, &mut exact)?;
        io::copy(&mut exact, &mut io::sink())?;
    }
    io::copy(&mut content, &mut io::sink())?;
    let (crc, length, reader) = content.into_inner().finish();
    if length != entry.size {
        return Err(Fault::hostile(&member.path, "its content is longer or shorter than it says"));
    }
    if crc != entry.crc {
        return Err(Fault::hostile(&member.path, "its checksum does not fit its content"));
    }
    Ok(reader)
}

/// Reads from a place of a file, leaving its position alone.
struct At<'a> {
    file: &'a File,
    at: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

fn bytes(file: &File, at: u64, length: usize) -> Result<Vec<u8>, Fault> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
