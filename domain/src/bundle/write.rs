//! Writes bundles.

use std::io::{self, Read, Write};

use super::{Bundle, INDEX, header};

/// Writes the beginning: the index. The files that it names have to follow in its order, then [`end`].
///
/// # Errors
/// Of the writer.
pub fn index(to: &mut dyn Write, bundle: &Bundle) -> io::Result<()> {
    let mut bytes = serde_json::to_vec_pretty(bundle)?;
    bytes.push(b'\n');
    file(to, INDEX, bytes.len() as u64, &mut &bytes[..])
}

/// Writes a file of the bundle.
///
/// # Errors
/// Of the reader or the writer, and where `from` does not have exactly `size` bytes.
pub fn file(to: &mut dyn Write, name: &str, size: u64, from: &mut dyn Read) -> io::Result<()> {
    entry(to, name, false, size, from)
}

/// Writes a file of any tar archive: the same header for the same name, length and permission to execute, whoever
/// writes it and when.
///
/// # Errors
/// Of the reader or the writer, and where `from` does not have exactly `size` bytes.
pub fn entry(
    to: &mut dyn Write,
    name: &str,
    executable: bool,
    size: u64,
    from: &mut dyn Read,
) -> io::Result<()> {
    if name.len() > header::MAX_NAME {
        let length = name.len() as u64 + 1;
        to.write_all(&header::long_name(length))?;
        to.write_all(name.as_bytes())?;
        to.write_all(&[0; 1 + header::BLOCK][..1 + header::padding(length)])?;
    }
    to.write_all(&header::write(name, executable, size))?;
    let copied = io::copy(&mut from.take(size), to)?;
    if copied != size {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than it was"));
    }
    to.write_all(&[0; header::BLOCK][..header::padding(size)])
}

/// Writes the end.
///
/// # Errors
/// Of the writer.
pub fn end(to: &mut dyn Write) -> io::Result<()> {
    to.write_all(&[0; 2 * header::BLOCK])
}
