//! One header of a tar archive: a plain file's name, length and whether it may be executed, and nothing else that tar
//! can say.

/// Headers and padding come in blocks of so many bytes.
pub(super) const BLOCK: usize = 512;
/// What eleven octal digits can say.
const OCTAL_MAX: u64 = 0o77_777_777_777;

/// The longest name that a header holds, in bytes.
pub(super) const MAX_NAME: usize = 100;

/// The header of a plain file, always the same for the same name and length.
pub(super) fn write(name: &str, executable: bool, size: u64) -> [u8; BLOCK] {
    of_kind(b'0', name, executable, size)
}

/// The header before a name that is too long for a header, as GNU tar writes it.
pub(super) fn long_name(size: u64) -> [u8; BLOCK] {
    of_kind(b'L', "././@LongLink", false, size)
}

/// `name` is cut to what a header holds.
fn of_kind(kind: u8, name: &str, executable: bool, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &name.as_bytes()[..name.len().min(MAX_NAME)]);
    put(100, if executable { b"0000755\0" } else { b"0000644\0" });
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    if size <= OCTAL_MAX {
        put(124, format!("{size:011o}\0").as_bytes());
    } else {
        // Longer ones as a binary number, as GNU tar writes them.
        put(124, &[0x80, 0, 0, 0]);
        put(128, &size.to_be_bytes());
    }
    let sum = checksum(&block);
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// The name and length of a plain file, or what else it is.
pub(super) fn read(block: &[u8; BLOCK]) -> Result<(String, u64), &'static str> {
    let text = |from: usize, length: usize| {
        let field = &block[from..from + length];
        let end = field.iter().position(|byte| *byte == 0).unwrap_or(length);
        std::str::from_utf8(&field[..end]).map_err(|_| "its header is not plain text")
    };
    let octal = |text: &str| u64::from_str_radix(text.trim_matches([' ', '\0']), 8);
    if octal(text(148, 8)?) != Ok(u64::from(checksum(block))) {
        return Err("it is no tar archive, or is damaged");
    }
    // Links, directories, devices, and names that another entry tells.
    if !matches!(block[156], b'0' | 0) || !text(345, 155)?.is_empty() {
        return Err("it is no plain file");
    }
    let size = if block[124] & 0x80 == 0 {
        octal(text(124, 12)?).map_err(|_| "its length can't be read")?
    } else {
        if block[124] != 0x80 || block[125..128] != [0; 3] {
            return Err("its length can't be read");
        }
        u64::from_be_bytes(block[128..136].try_into().expect("eight bytes"))
    };
    Ok((text(0, 100)?.to_owned(), size))
}

/// The sum of all bytes, the sum's own field counted as spaces.
fn checksum(block: &[u8; BLOCK]) -> u32 {
    let own = 148..156;
    block.iter().enumerate().map(|(at, byte)| if own.contains(&at) { 32 } else { u32::from(*byte) }).sum()
}

/// How many bytes fill a file's last block.
pub(super) fn padding(size: u64) -> usize {
    let rest = usize::try_from(size % BLOCK as u64).expect("less than a block");
    if rest == 0 { 0 } else { BLOCK - rest }
}
