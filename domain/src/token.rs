//! The enrollment token as one string: where to enroll, whom to trust there, and the secret to show.
//!
//! `upf1.` and base64url of a small JSON object. It is made by the controller, carried by a person, and read by
//! the agent, which sends the secret only to a controller whose authority has the pinned key.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

const PREFIX: &str = "upf1.";
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
/// Far above any real token.
const MAX_LENGTH: usize = 4096;

/// What a token says. Its `Debug` does not show the secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollmentToken {
    /// `host:port` of the enrollment listener.
    #[serde(rename = "a")]
    pub address: String,
    /// SHA-256 of the authority's public key (its SubjectPublicKeyInfo in DER).
    #[serde(rename = "p")]
    pub pin: Digest,
    /// The secret: 32 random bytes in base64url. This text is what `EnrollRequest.token` carries.
    #[serde(rename = "s")]
    pub secret: String,
    /// The token's id, which is no secret.
    #[serde(rename = "i")]
    pub id: String,
}

impl fmt::Debug for EnrollmentToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrollmentToken").field("id", &self.id).field("address", &self.address).finish()
    }
}

impl fmt::Display for EnrollmentToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_vec(self).expect("four strings");
        write!(f, "{PREFIX}{}", encode(&json))
    }
}

/// A text that is no token. It does not repeat the text, which may hold a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the enrollment token is not valid: {0}")]
pub struct ParseTokenError(&'static str);

impl FromStr for EnrollmentToken {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, ParseTokenError> {
        let text = text.trim();
        let body = text.strip_prefix(PREFIX).ok_or(ParseTokenError("it does not begin with `upf1.`"))?;
        if body.len() > MAX_LENGTH {
            return Err(ParseTokenError("it is too long"));
        }
        let json = decode(body).ok_or(ParseTokenError("it was cut or changed on the way"))?;
        let token: Self =
            serde_json::from_slice(&json).map_err(|_| ParseTokenError("it was cut or changed on the way"))?;
        if decode(&token.secret).is_none_or(|secret| secret.len() != 32) {
            return Err(ParseTokenError("its secret does not have 32 bytes"));
        }
        let sound = token
            .address
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0));
        if sound { Ok(token) } else { Err(ParseTokenError("its address is not `host:port`")) }
    }
}

/// Base64url without padding.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let group = byte(0) << 16 | byte(1) << 8 | byte(2);
        for position in 0..=chunk.len() {
            let index = (group >> (18 - 6 * position)) & 63;
            text.push(char::from(ALPHABET[index as usize]));
        }
    }
    text
}

/// The bytes that base64url without padding stands for; `None` where the text is none, or not the one text
/// for its bytes.
#[must_use]
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for chunk in text.as_bytes().chunks(4) {
        let mut group = 0_u32;
        for character in chunk {
            let index = ALPHABET.iter().position(|letter| letter == character)?;
            group = group << 6 | u32::try_from(index).ok()?;
        }
        let whole = group << (6 * (4 - chunk.len()));
        bytes.extend(&whole.to_be_bytes()[1..chunk.len()]);
        if chunk.len() == 1 {
            return None;
        }
    }
    (encode(&bytes) == text).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> EnrollmentToken {
        EnrollmentToken {
            address: "controller.example.com:7444".into(),
            pin: Digest::of(b"key"),
            secret: encode(&[7; 32]),
            id: "t-1".into(),
        }
    }

    proptest! {
        #[test]
        fn bytes_survive(bytes: Vec<u8>) {
            prop_assert_eq!(decode(&encode(&bytes)), Some(bytes));
        }

        #[test]
        fn any_text_is_decoded_or_refused(text in ".{0,64}") {
            let _ = decode(&text);
            let _ = text.parse::<EnrollmentToken>();
        }
    }

    #[test]
    fn known_texts() {
        assert_eq!(encode(b""), "");
        assert_eq!(encode(&[0xfb, 0xff]), "-_8");
        assert_eq!(encode(b"hello"), "aGVsbG8");
        for wrong in ["a", "aGVsbG8=", "aGVsbG9", "a b", "aGVs+/"] {
            assert_eq!(decode(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_token_survives_being_carried() {
        let text = format!("  {}\n", token());
        assert_eq!(text.parse(), Ok(token()));
        assert!(!format!("{:?}", token()).contains(&token().secret));
    }

    #[test]
    fn a_damaged_token_is_refused_and_not_repeated() {
        let whole = token().to_string();
        let short = EnrollmentToken { secret: encode(&[7; 16]), ..token() }.to_string();
        let lost = EnrollmentToken { address: "controller".into(), ..token() }.to_string();
        for text in ["", "upf1.", "upf2.e30", &whole[..whole.len() - 9], &short, &lost] {
            let error = text.parse::<EnrollmentToken>().unwrap_err().to_string();
            assert!(text.len() < 10 || !error.contains(text), "{error}");
        }
    }
}
