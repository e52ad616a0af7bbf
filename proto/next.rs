//! What the wire's next minor version may add, for tests of two versions together: fields that the version before does
//! not know, in every message and in what a session's messages hold. Never in a release.

use std::marker::PhantomData;

use bytes::BufMut as _;
use prost::{
    Message,
    encoding::{WireType, decode_key, encode_key, encode_varint},
};
use tonic::{
    Status,
    codec::{BufferSettings, EncodeBuf},
};

/// A field's number that no message has.
const TEXT: u32 = 1000;
/// Another one.
const NUMBER: u32 = 1001;

/// Protobuf, with what the version before does not know.
#[derive(Clone, Debug)]
pub struct Encoder<T>(BufferSettings, PhantomData<T>);

pub fn encoder<T>(settings: BufferSettings) -> Encoder<T> {
    Encoder(settings, PhantomData)
}

impl<T: Message> tonic::codec::Encoder for Encoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&with_novelties(&item));
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0
    }
}

/// The message's bytes and what a later version adds to them.
pub fn with_novelties<T: Message>(message: &T) -> Vec<u8> {
    let mut bytes = message.encode_to_vec();
    let name = std::any::type_name::<T>();
    // All that these have is one message, and a field that comes twice adds to what came before.
    if (name.ends_with("::SessionRequest") || name.ends_with("::SessionResponse"))
        && let Ok((held, WireType::LengthDelimited)) = decode_key(&mut bytes.as_slice())
    {
        let inner = novelties();
        encode_key(held, WireType::LengthDelimited, &mut bytes);
        encode_varint(inner.len() as u64, &mut bytes);
        bytes.extend(inner);
    }
    bytes.extend(novelties());
    bytes
}

fn novelties() -> Vec<u8> {
    const SAID: &[u8] = b"of a later version";
    let mut bytes = Vec::new();
    encode_key(TEXT, WireType::LengthDelimited, &mut bytes);
    encode_varint(SAID.len() as u64, &mut bytes);
    bytes.extend(SAID);
    encode_key(NUMBER, WireType::Varint, &mut bytes);
    encode_varint(7, &mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1;

    #[test]
    fn what_is_added_is_passed_over() {
        let hello = v1::Hello { agent_version: "0.2.0".to_owned(), wire_minor: 1, ..Default::default() };
        let message = v1::session_request::Message::Hello(hello);
        let request = v1::SessionRequest { message: Some(message) };
        let bytes = with_novelties(&request);
        assert!(bytes.len() > request.encoded_len() + 2 * novelties().len());
        assert_eq!(v1::SessionRequest::decode(bytes.as_slice()).unwrap(), request);
        assert_eq!(
            v1::SessionRequest::decode(with_novelties(&v1::SessionRequest::default()).as_slice()),
            Ok(Default::default())
        );
    }
}
