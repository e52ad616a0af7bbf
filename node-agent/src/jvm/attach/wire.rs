//! The bytes of HotSpot's attach protocol. Pure: what is sent and how an answer reads, no sockets.
//!
//! Version 1, which every JVM speaks: `1\0`, the command and exactly three arguments, each ended by a zero byte
//! and at most 1024 bytes long; a longer one makes the JVM close the connection without a word. Version 2, which
//! came with later JDKs: `2\0`, the length of the rest in decimal, and any number of arguments.

use super::Failure;

/// How long each part of a request of version 1 may be, in bytes.
pub const MAX_V1: usize = 1024;
/// How many arguments a request of version 1 has.
const ARGUMENTS_V1: usize = 3;
/// How long all parts of a request of version 2 may be together, in bytes.
pub const MAX_V2: usize = 256 * 1024;

/// The version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// With three short arguments.
    V1,
    /// With any number of arguments of nearly any length.
    V2,
}

/// What a JVM answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The first line: 0 where the JVM carried the command out, which need not mean that it succeeded.
    pub code: i32,
    /// The rest, as text.
    pub text: String,
}

/// The oldest version that can carry `words`, a command and its arguments.
///
/// # Errors
/// Where none can.
pub fn version_for(words: &[&str]) -> Result<Version, Failure> {
    if words.iter().any(|word| word.contains('\0')) {
        return Err(Failure::ZeroByte);
    }
    if words.len() <= ARGUMENTS_V1 + 1 && words.iter().all(|word| word.len() <= MAX_V1) {
        return Ok(Version::V1);
    }
    let actual = length(words);
    if actual > MAX_V2 { Err(Failure::TooLong { actual, max: MAX_V2 }) } else { Ok(Version::V2) }
}

/// What a JVM that speaks only version 1 is told of a request that needs version 2.
#[must_use]
pub fn too_long(words: &[&str]) -> Failure {
    let longest = words.iter().map(|word| word.len()).max().unwrap_or_default();
    Failure::TooLong { actual: longest, max: MAX_V1 }
}

/// The request for `words`, a command and its arguments.
#[must_use]
pub fn request(version: Version, words: &[&str]) -> Vec<u8> {
    let mut bytes = match version {
        Version::V1 => b"1\0".to_vec(),
        Version::V2 => format!("2\0{}\0", length(words)).into_bytes(),
    };
    for word in words {
        bytes.extend_from_slice(word.as_bytes());
        bytes.push(0);
    }
    if version == Version::V1 {
        bytes.resize(bytes.len() + (ARGUMENTS_V1 + 1).saturating_sub(words.len()), 0);
    }
    bytes
}

fn length(words: &[&str]) -> usize {
    words.iter().map(|word| word.len() + 1).sum()
}

/// What the bytes of an answer say.
///
/// # Errors
/// Where there are none, or they don't begin with a number.
pub fn reply(bytes: &[u8]) -> Result<Reply, Failure> {
    if bytes.is_empty() {
        return Err(Failure::NoAnswer);
    }
    let text = String::from_utf8_lossy(bytes);
    let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
    let code = first.trim().parse().map_err(|_| Failure::Garbled(excerpt(&text)))?;
    if code == 101 && rest.trim().is_empty() {
        return Err(Failure::Version);
    }
    Ok(Reply { code, text: rest.to_owned() })
}

/// Whether `reply` to a `getversion` says that version 2 is spoken.
#[must_use]
pub fn speaks_v2(reply: &Reply) -> bool {
    let number = reply.text.split_whitespace().next().and_then(|word| word.parse::<u32>().ok());
    reply.code == 0 && number.is_some_and(|number| number >= 2)
}

/// Whether an agent was loaded and ran: both lines must say so, since the first is 0 also for a jar that is
/// missing, and for JDK 21 and later even where loading is forbidden.
///
/// # Errors
/// With what went wrong.
pub fn loaded(reply: &Reply) -> Result<(), Failure> {
    let text = reply.text.trim();
    if text.contains("Dynamic agent loading is not enabled") {
        return Err(Failure::LoadingForbidden);
    }
    if reply.code != 0 {
        return Err(Failure::Answer { code: reply.code, text: excerpt(text) });
    }
    let second = text.lines().next().unwrap_or_default();
    // JDK 8 says the bare number.
    match second.strip_prefix("return code: ").unwrap_or(second).trim().parse() {
        Ok(0) => Ok(()),
        Ok(100) => Err(Failure::BadJar),
        Ok(101) => Err(Failure::NotOnClassPath),
        Ok(102) => Err(Failure::AgentThrew),
        Ok(code) => Err(Failure::LoadFailed(code)),
        Err(_) => Err(Failure::Garbled(excerpt(text))),
    }
}

/// The beginning of what a JVM said, for a sentence.
#[must_use]
pub fn excerpt(text: &str) -> String {
    text.trim().chars().take(300).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_to_the_byte() {
        assert_eq!(request(Version::V1, &["properties"]), b"1\0properties\0\0\0\0");
        let load = request(Version::V1, &["load", "instrument", "false", "/tmp/a.jar=x"]);
        assert_eq!(load, b"1\0load\0instrument\0false\0/tmp/a.jar=x\0");
        assert_eq!(request(Version::V2, &["getversion"]), b"2\x0011\0getversion\0");
    }

    #[test]
    fn the_oldest_version_that_fits_is_used() {
        let long = "x".repeat(MAX_V1);
        assert_eq!(version_for(&["load", "instrument", "false", &long]), Ok(Version::V1));
        let longer = "x".repeat(MAX_V1 + 1);
        assert_eq!(version_for(&["load", "instrument", "false", &longer]), Ok(Version::V2));
        assert_eq!(version_for(&["jcmd", "a", "b", "c", "d"]), Ok(Version::V2));
        let longest = "x".repeat(MAX_V2);
        assert!(matches!(version_for(&["load", &longest]), Err(Failure::TooLong { .. })));
        assert_eq!(version_for(&["a\0b"]), Err(Failure::ZeroByte));
    }

    #[test]
    fn every_way_to_fail_is_told_apart() {
        let outcome = |bytes: &[u8]| reply(bytes).and_then(|reply| loaded(&reply));
        for success in ["0\nreturn code: 0\n", "0\nreturn code: 0", "0\n0\n"] {
            assert_eq!(outcome(success.as_bytes()), Ok(()));
        }
        let failures = [
            ("", Failure::NoAnswer),
            ("0\nreturn code: 100\n", Failure::BadJar),
            ("0\n100\n", Failure::BadJar),
            ("0\nreturn code: 101\n", Failure::NotOnClassPath),
            ("0\nreturn code: 102\n", Failure::AgentThrew),
            ("0\nreturn code: -4\n", Failure::LoadFailed(-4)),
            ("0\nDynamic agent loading is not enabled. Use -XX:+…", Failure::LoadingForbidden),
            ("-1\nDynamic agent loading is not enabled. Use -XX:+…", Failure::LoadingForbidden),
            ("101\n", Failure::Version),
            ("0\n", Failure::Garbled(String::new())),
            ("0\nwhat\n", Failure::Garbled("what".into())),
            ("what", Failure::Garbled("what".into())),
            ("-1\nOperation no!", Failure::Answer { code: -1, text: "Operation no!".into() }),
        ];
        for (bytes, failure) in failures {
            assert_eq!(outcome(bytes.as_bytes()), Err(failure), "{bytes:?}");
        }
    }

    #[test]
    fn version_2_is_spoken_by_those_who_say_so() {
        let speaks = |bytes: &str| speaks_v2(&reply(bytes.as_bytes()).unwrap());
        assert!(speaks("0\n2") && speaks("0\n2 streaming"));
        assert!(!speaks("-1\nOperation getversion not recognized!") && !speaks("0\n1"));
    }
}
