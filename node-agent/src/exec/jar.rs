//! Reading jars as Java reads them, within bounds; and writing the small ones that a stack needs. Unpacks nothing.

use std::{
    fs::File,
    io::{self, BufReader, Cursor, Read, Seek, Write as _},
    path::Path,
};

use upfleet_domain::jvm::manifest::Manifest;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter, write::SimpleFileOptions};

/// The name of the manifest's entry.
pub const MANIFEST: &str = "META-INF/MANIFEST.MF";
/// The largest entry that is read at all, unpacked. Nested jars are entries as well.
const MAX_ENTRY: u64 = 512 << 20;

/// Where a jar's bytes come from.
pub trait Bytes: Read + Seek + Send {}

impl<T: Read + Seek + Send> Bytes for T {}

/// A jar that can be read.
pub struct Jar {
    archive: ZipArchive<Box<dyn Bytes>>,
    manifest: Manifest,
}

impl Jar {
    /// Opens one.
    ///
    /// # Errors
    /// Where it can't be read, or is no jar.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::of(Box::new(BufReader::new(File::open(path)?)))
    }

    /// One that is open already.
    ///
    /// # Errors
    /// As [`Jar::open`].
    pub fn of_file(file: File) -> io::Result<Self> {
        Self::of(Box::new(BufReader::new(file)))
    }

    /// One within another.
    ///
    /// # Errors
    /// As [`Jar::open`].
    pub fn nested(bytes: Vec<u8>) -> io::Result<Self> {
        Self::of(Box::new(Cursor::new(bytes)))
    }

    fn of(bytes: Box<dyn Bytes>) -> io::Result<Self> {
        let mut jar = Self { archive: ZipArchive::new(bytes)?, manifest: Manifest::default() };
        // Java finds it whatever its case.
        let named = jar.names().into_iter().find(|name| name.eq_ignore_ascii_case(MANIFEST));
        if let Some(name) = named {
            jar.manifest = Manifest::parse(&String::from_utf8_lossy(&jar.read(&name, 16 << 20)?));
        }
        Ok(jar)
    }

    /// What its manifest says; nothing where it has none.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The names of its entries, in the order of its directory. Of several of one name there is one.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let name = |at| self.archive.name_for_index(at)?.ok().map(std::borrow::Cow::into_owned);
        (0..self.archive.len()).filter_map(name).collect()
    }

    /// The bytes of an entry, unpacked.
    ///
    /// # Errors
    /// Where it is not there, damaged, or longer than `limit`.
    pub fn read(&mut self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        let entry = self.archive.by_name(name)?;
        let limit = limit.min(MAX_ENTRY);
        let mut bytes = Vec::new();
        // The length in the directory may be a lie; what is unpacked counts.
        entry.take(limit + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(io::Error::other(format!("`{name}` is longer than {limit} bytes")));
        }
        Ok(bytes)
    }

    /// The bytes of an entry of any usual size.
    ///
    /// # Errors
    /// As [`Jar::read`].
    pub fn read_all(&mut self, name: &str) -> io::Result<Vec<u8>> {
        self.read(name, MAX_ENTRY)
    }
}

/// A jar with these entries, the same bytes each time. The manifest comes first, as some readers want it.
///
/// # Errors
/// Never but for lack of memory.
pub fn write(manifest: &str, entries: &[(String, Vec<u8>)]) -> io::Result<Vec<u8>> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default());
    writer.start_file(MANIFEST, options)?;
    writer.write_all(manifest.as_bytes())?;
    for (name, bytes) in entries {
        writer.start_file(name.as_str(), options)?;
        writer.write_all(bytes)?;
    }
    Ok(writer.finish()?.into_inner())
}
