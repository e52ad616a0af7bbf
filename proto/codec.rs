//! The codec of all methods: protobuf, with buffers that begin small.
//!
//! tonic sets aside 8 KiB per stream and direction at once. An agent's session is open for weeks and carries messages of
//! some hundred bytes now and then: with thousands of them those buffers were most of what a connection cost. They grow
//! with the messages that come.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::ProstCodec;

#[cfg(feature = "next")]
use crate::next::{Encoder, encoder};

/// The first size of a buffer, in bytes: most messages of a session fit.
const FIRST: usize = 512;
/// So much is gathered before it is handed on, in bytes; tonic's own value.
const YIELD: usize = 32 * 1024;

/// Protobuf with buffers that begin small.
#[derive(Clone, Debug)]
pub struct LeanCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for LeanCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for LeanCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = Encoder<T>;
    type Decoder = <ProstCodec<T, U> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        encoder(BufferSettings::new(FIRST, YIELD))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(FIRST, YIELD))
    }
}

#[cfg(not(feature = "next"))]
type Encoder<T> = tonic_prost::ProstEncoder<T>;

#[cfg(not(feature = "next"))]
fn encoder<T>(settings: BufferSettings) -> Encoder<T> {
    Encoder::new(settings)
}

#[cfg(test)]
mod tests {
    use tonic::codec::{Decoder as _, Encoder as _};

    use super::*;

    #[test]
    fn buffers_begin_small() {
        let mut codec = LeanCodec::<String, String>::default();
        let sizes = [codec.encoder().buffer_settings(), codec.decoder().buffer_settings()];
        for settings in sizes {
            assert_eq!(format!("{settings:?}"), format!("{:?}", BufferSettings::new(FIRST, YIELD)));
        }
    }
}
