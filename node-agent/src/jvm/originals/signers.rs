//! Who signed a jar: the certificates in its signature blocks. That the signatures hold is the JVM's to check.

use upfleet_domain::digest::Digest;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::exec::jar::Jar;

/// The largest signature block that is read, in bytes.
const MAX_BLOCK: u64 = 1 << 20;

/// One line per certificate in the jar's signature blocks, sorted: its subject and the beginning of its SHA-256.
/// Empty where nobody signed it.
#[must_use]
pub fn signers(jar: &mut Jar) -> Vec<String> {
    let names = jar.names();
    let upper: Vec<String> = names.iter().map(|name| name.to_ascii_uppercase()).collect();
    let mut signers = Vec::new();
    for (name, up) in names.iter().zip(&upper) {
        let Some(file) = up.strip_prefix("META-INF/").filter(|file| !file.contains('/')) else { continue };
        let block = [".RSA", ".DSA", ".EC"].iter().find_map(|end| file.strip_suffix(end));
        // A block without its file of digests signs nothing.
        let Some(stem) = block.filter(|stem| upper.contains(&format!("META-INF/{stem}.SF"))) else {
            continue;
        };
        let bytes = jar.read(name, MAX_BLOCK).unwrap_or_default();
        let found = certificates(&bytes);
        if found.is_empty() {
            signers.push(stem.to_owned());
        }
        signers.extend(found);
    }
    signers.sort();
    signers.dedup();
    signers
}

/// The certificates of a PKCS #7 block, wherever in it they lie.
fn certificates(block: &[u8]) -> Vec<String> {
    // ContentInfo: SEQUENCE { type, [0] { SignedData: SEQUENCE { version, digests, content, [0] { certificates } … } } }
    let inner = |bytes: &[u8], tag: u8| {
        elements(bytes).into_iter().find(|(found, _, _)| *found == tag).map(|e| e.2.to_vec())
    };
    let certificates = inner(block, 0x30)
        .and_then(|info| inner(&info, 0xa0))
        .and_then(|content| inner(&content, 0x30))
        .and_then(|signed| inner(&signed, 0xa0))
        .unwrap_or_default();
    let line = |(_, whole, _): (u8, &[u8], &[u8])| {
        let (_, certificate) = X509Certificate::from_der(whole).ok()?;
        Some(format!("{} ({})", certificate.subject(), Digest::of(whole).short()))
    };
    elements(&certificates).into_iter().filter_map(line).collect()
}

/// The elements of a DER encoding, one after the other: tag, all of it, what is in it.
fn elements(mut bytes: &[u8]) -> Vec<(u8, &[u8], &[u8])> {
    let mut found = Vec::new();
    while let [tag, first, ..] = bytes {
        let (header, length) = match first {
            0..=0x7f => (2, usize::from(*first)),
            0x81..=0x84 => {
                let more = usize::from(first & 0x7f);
                let Some(digits) = bytes.get(2..2 + more) else { break };
                (2 + more, digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)))
            }
            _ => break,
        };
        let Some(whole) = header.checked_add(length).and_then(|end| bytes.get(..end)) else { break };
        found.push((*tag, whole, &whole[header..]));
        bytes = &bytes[whole.len()..];
    }
    found
}
