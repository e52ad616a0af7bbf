//! The tar: POSIX ustar, with GNU long names and the pax records that change no more than a name.

use std::io::{self, Read};

use upfleet_domain::files::MAX_PATH_BYTES;

use super::{Fault, Gate, Visit};

/// Headers and contents are padded to this.
const BLOCK: usize = 512;
/// The longest extension header that is read.
const MAX_EXTENSION: u64 = 64 * 1024;
/// How many zeros may follow the end: what programs write to fill a tape's block, and more.
const MAX_ZEROS: u64 = 1024 * 1024;
/// Records of an extension header that change nothing about what is installed here.
const HARMLESS: [&str; 9] =
    ["mtime", "atime", "ctime", "uid", "gid", "uname", "gname", "comment", "LIBARCHIVE.creationtime"];

/// A header's fields.
struct Header {
    name: Vec<u8>,
    mode: u64,
    size: u64,
    kind: u8,
}

pub(super) fn read(input: &mut dyn Read, gate: &mut Gate, visit: Visit<'_>) -> Result<(), Fault> {
    let mut long: Option<Vec<u8>> = None;
    loop {
        let Some(block) = block(input)? else {
            return Err(Fault::hostile("", "it is cut off: it has no end"));
        };
        if block == [0; BLOCK] {
            return end(input, long.is_some());
        }
        let header = header(&block)?;
        let shown = String::from_utf8_lossy(&header.name).into_owned();
        match header.kind {
            b'L' | b'x' | b'g' => {
                let extension = extension(input, &header, &shown)?;
                let name = match header.kind {
                    b'L' => Some(gnu_name(&extension, &shown)?),
                    kind => pax_name(&extension, kind == b'g', &shown)?,
                };
                if name.is_some() && std::mem::replace(&mut long, name).is_some() {
                    return Err(Fault::hostile(&shown, "an entry is given two long names"));
                }
            }
            b'0' | 0 | b'5' => {
                let name = long.take().unwrap_or_else(|| header.name.clone());
                entry(input, gate, &name, &header, visit)?;
            }
            kind => return Err(Fault::hostile(&shown, refused(kind))),
        }
    }
}

fn refused(kind: u8) -> String {
    let what = match kind {
        b'1' => "a hard link",
        b'2' => "a symbolic link",
        b'3' | b'4' => "a device",
        b'6' => "a named pipe",
        b'S' => "a sparse file",
        b'K' => "a link's long target",
        _ => "of an unknown kind",
    };
    format!("it is {what}; only regular files and directories are taken")
}

fn entry(
    input: &mut dyn Read,
    gate: &mut Gate,
    name: &[u8],
    header: &Header,
    visit: Visit<'_>,
) -> Result<(), Fault> {
    let name = gate.name(name)?;
    // Archivers that are given `.` write every name like that.
    let plain = name.strip_prefix("./").unwrap_or(name);
    if header.kind == b'5' {
        let plain = plain.strip_suffix('/').unwrap_or(plain);
        if plain.is_empty() || plain == "." {
            return if header.size == 0 && name.starts_with('.') {
                Ok(())
            } else {
                Err(Fault::hostile(name, "it has no name"))
            };
        }
        return gate.directory(plain, header.size);
    }
    let member = gate.file(plain, header.size, header.mode & 0o100 != 0)?;
    let mut content = input.take(header.size);
    visit(&member, &mut content)?;
    io::copy(&mut content, &mut io::sink())?;
    if content.limit() != 0 {
        return Err(Fault::hostile(plain, "it is cut off in the middle of its content"));
    }
    padding(input, header.size, plain)
}

/// One block, or `None` at the end of the bytes.
fn block(input: &mut dyn Read) -> Result<Option<[u8; BLOCK]>, Fault> {
    let mut block = [0; BLOCK];
    let mut filled = 0;
    while filled < BLOCK {
        match input.read(&mut block[filled..])? {
            0 if filled == 0 => return Ok(None),
            0 => return Err(Fault::hostile("", "it is cut off in the middle of a block")),
            read => filled += read,
        }
    }
    Ok(Some(block))
}

/// What fills the last block of an entry holds nothing.
fn padding(input: &mut dyn Read, size: u64, shown: &str) -> Result<(), Fault> {
    let over = (size % BLOCK as u64) as usize;
    if over == 0 {
        return Ok(());
    }
    let mut rest = vec![0; BLOCK - over];
    input.read_exact(&mut rest)?;
    if rest.iter().any(|byte| *byte != 0) {
        return Err(Fault::hostile(shown, "bytes are hidden behind its content"));
    }
    Ok(())
}

/// After the first block of zeros: another one, then zeros only.
fn end(input: &mut dyn Read, named: bool) -> Result<(), Fault> {
    if named {
        return Err(Fault::hostile("", "a long name is followed by no entry"));
    }
    if block(input)? != Some([0; BLOCK]) {
        return Err(Fault::hostile("", "it has half an end"));
    }
    let mut zeros = 0;
    while let Some(block) = block(input)? {
        zeros += BLOCK as u64;
        if block != [0; BLOCK] || zeros > MAX_ZEROS {
            return Err(Fault::hostile("", "bytes follow its end"));
        }
    }
    Ok(())
}

fn header(block: &[u8; BLOCK]) -> Result<Header, Fault> {
    let text = |from: usize, length: usize| {
        let field = &block[from..from + length];
        let end = field.iter().position(|byte| *byte == 0).unwrap_or(length);
        field[..end].to_vec()
    };
    let mut name = text(0, 100);
    let shown = String::from_utf8_lossy(&name).into_owned();
    let magic = &block[257..265];
    if magic == b"ustar\x0000" {
        let prefix = text(345, 155);
        if !prefix.is_empty() {
            name = [prefix, b"/".to_vec(), name].concat();
        }
    } else if magic != b"ustar  \0" {
        return Err(Fault::hostile("", "it is no tar, gzipped tar or zip"));
    }
    let sum: u64 = block
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) })
        .sum();
    if number(&block[148..156], &shown)? != sum {
        return Err(Fault::hostile(&shown, "its header is damaged"));
    }
    let (mode, size) = (number(&block[100..108], &shown)?, number(&block[124..136], &shown)?);
    Ok(Header { name, mode, size, kind: block[156] })
}

/// An octal number, or a binary one as GNU writes it for what is too large.
fn number(field: &[u8], shown: &str) -> Result<u64, Fault> {
    let bad = || Fault::hostile(shown, "its header holds a number that is none");
    if field[0] & 0x80 != 0 {
        let (head, tail) = field.split_at(field.len() - 8);
        let small = field.len() > 8 && head[0] == 0x80 && head[1..].iter().all(|byte| *byte == 0);
        let bytes = tail.try_into().map_err(|_| bad())?;
        return if small { Ok(u64::from_be_bytes(bytes)) } else { Err(bad()) };
    }
    let text = std::str::from_utf8(field).map_err(|_| bad())?;
    let digits = text.trim_matches(|c| c == ' ' || c == '\0');
    if digits.is_empty() {
        return Ok(0);
    }
    if !digits.bytes().all(|byte| (b'0'..=b'7').contains(&byte)) {
        return Err(bad());
    }
    u64::from_str_radix(digits, 8).map_err(|_| bad())
}

fn extension(input: &mut dyn Read, header: &Header, shown: &str) -> Result<Vec<u8>, Fault> {
    if header.size > MAX_EXTENSION {
        return Err(Fault::hostile(shown, "its extension header is too long"));
    }
    let mut bytes = Vec::new();
    input.take(header.size).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != header.size {
        return Err(Fault::hostile(shown, "it is cut off in an extension header"));
    }
    padding(input, header.size, shown)?;
    Ok(bytes)
}

fn gnu_name(bytes: &[u8], shown: &str) -> Result<Vec<u8>, Fault> {
    let name = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    if name.is_empty() || name.len() > MAX_PATH_BYTES {
        return Err(Fault::hostile(shown, "its long name is empty or too long"));
    }
    Ok(name.to_vec())
}

/// The name that pax records give to the next entry, if they do.
fn pax_name(bytes: &[u8], global: bool, shown: &str) -> Result<Option<Vec<u8>>, Fault> {
    let bad = || Fault::hostile(shown, "its extension header is damaged");
    let (mut rest, mut name) = (bytes, None);
    while !rest.is_empty() {
        let space = rest.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
        let length = std::str::from_utf8(&rest[..space]).ok().and_then(|text| text.parse().ok());
        let length: usize =
            length.filter(|length| *length > space + 2 && *length <= rest.len()).ok_or_else(bad)?;
        let record = rest[space + 1..length].strip_suffix(b"\n").ok_or_else(bad)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
        let (key, value) = (String::from_utf8_lossy(&record[..equals]), &record[equals + 1..]);
        match key.as_ref() {
            "path" if !global && name.is_none() => name = Some(value.to_vec()),
            key if HARMLESS.contains(&key) => {}
            key => {
                let problem =
                    format!("its extension header says `{}`, which is not taken", key.escape_debug());
                return Err(Fault::hostile(shown, problem));
            }
        }
        rest = &rest[length..];
    }
    Ok(name)
}
