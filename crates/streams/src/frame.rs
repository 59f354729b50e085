//! SPDY/3.1 frames.
//!
//! ```text
//!  control  1 version(15) type(16)   flags(8) length(24)   payload
//!  data     0 stream id(31)          flags(8) length(24)   payload
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The longest payload that is taken.
const PAYLOAD_BYTES_MAX: usize = 1 << 20;

const VERSION: u16 = 3;
const HEAD_BYTES: usize = 8;
const FLAG_FIN: u8 = 1;
const FLAG_UNIDIRECTIONAL: u8 = 2;
const ID_MASK: u32 = 0x7fff_ffff;

/// Names a stream: odd ones were opened by the client, even ones by the server.
pub type StreamId = u32;

/// One frame. Header blocks are still compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Opens a stream.
    SynStream {
        /// The stream.
        id: StreamId,
        /// 0, or the stream that it belongs to.
        associated: StreamId,
        /// 0 (highest) to 7.
        priority: u8,
        /// The sender will send nothing on it.
        fin: bool,
        /// The receiver may send nothing on it.
        unidirectional: bool,
        /// Compressed headers.
        block: Bytes,
    },
    /// Accepts a stream.
    SynReply {
        /// The stream.
        id: StreamId,
        /// The sender will send nothing on it.
        fin: bool,
        /// Compressed headers.
        block: Bytes,
    },
    /// Ends a stream in both directions.
    RstStream {
        /// The stream.
        id: StreamId,
        /// Why (section 2.6.3).
        status: u32,
    },
    /// Settings: (flags, id, value).
    Settings(Vec<(u8, u32, u32)>),
    /// To be sent back as it is, if its number is the other side's.
    Ping(u32),
    /// No new streams.
    GoAway {
        /// The last stream that was taken.
        last: StreamId,
        /// Why.
        status: u32,
    },
    /// More headers for a stream.
    Headers {
        /// The stream.
        id: StreamId,
        /// The sender will send nothing more on it.
        fin: bool,
        /// Compressed headers.
        block: Bytes,
    },
    /// Allows more bytes.
    WindowUpdate {
        /// The stream; 0 for the connection.
        id: StreamId,
        /// How many more.
        delta: u32,
    },
    /// Bytes of a stream.
    Data {
        /// The stream.
        id: StreamId,
        /// The sender will send nothing more on it.
        fin: bool,
        /// The bytes.
        bytes: Bytes,
    },
}

/// Bytes that are no SPDY/3.1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A control frame of another version.
    #[error("SPDY version {0} instead of 3")]
    Version(u16),
    /// Longer than what is taken.
    #[error("a frame of {0} bytes is longer than the {PAYLOAD_BYTES_MAX} that are taken")]
    TooLong(usize),
    /// A control frame's payload does not fit its type.
    #[error("a frame of type {kind} with a payload of {length} bytes")]
    Payload {
        /// The frame's type.
        kind: u16,
        /// The payload's length.
        length: usize,
    },
}

/// Cuts frames out of a stream of bytes.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: BytesMut,
}

impl FrameDecoder {
    /// Takes bytes as they come.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame. Frames of unknown types are skipped, as the specification asks.
    ///
    /// # Errors
    ///
    /// The bytes are no SPDY/3.1; nothing that follows can be understood.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            let Some(head) = self.buffer.first_chunk::<HEAD_BYTES>() else {
                return Ok(None);
            };
            let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            let flags = head[4];
            let length = u32::from_be_bytes([0, head[5], head[6], head[7]]);
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if length > PAYLOAD_BYTES_MAX {
                return Err(FrameError::TooLong(length));
            }
            if self.buffer.len() < HEAD_BYTES + length {
                return Ok(None);
            }
            self.buffer.advance(HEAD_BYTES);
            let payload = self.buffer.split_to(length).freeze();
            if first & !ID_MASK == 0 {
                return Ok(Some(Frame::Data {
                    id: first,
                    fin: flags & FLAG_FIN != 0,
                    bytes: payload,
                }));
            }
            let version = u16::try_from(first >> 16 & 0x7fff).expect("fifteen bits");
            if version != VERSION {
                return Err(FrameError::Version(version));
            }
            let kind = u16::try_from(first & 0xffff).expect("sixteen bits");
            if let Some(frame) = control(kind, flags, payload)? {
                return Ok(Some(frame));
            }
        }
    }
}

fn control(kind: u16, flags: u8, mut payload: Bytes) -> Result<Option<Frame>, FrameError> {
    let length = payload.len();
    let wrong = FrameError::Payload { kind, length };
    let needs = |least: usize| match length >= least {
        true => Ok(()),
        false => Err(wrong.clone()),
    };
    let fin = flags & FLAG_FIN != 0;
    Ok(Some(match kind {
        1 => {
            needs(10)?;
            Frame::SynStream {
                id: payload.get_u32() & ID_MASK,
                associated: payload.get_u32() & ID_MASK,
                priority: payload.get_u8() >> 5,
                fin,
                unidirectional: flags & FLAG_UNIDIRECTIONAL != 0,
                block: {
                    payload.advance(1);
                    payload
                },
            }
        }
        2 => {
            needs(4)?;
            Frame::SynReply {
                id: payload.get_u32() & ID_MASK,
                fin,
                block: payload,
            }
        }
        3 => {
            needs(8)?;
            Frame::RstStream {
                id: payload.get_u32() & ID_MASK,
                status: payload.get_u32(),
            }
        }
        4 => {
            needs(4)?;
            let count = usize::try_from(payload.get_u32()).unwrap_or(usize::MAX);
            if count.checked_mul(8) != Some(payload.len()) {
                return Err(wrong);
            }
            let entries = (0..count).map(|_| {
                let first = payload.get_u32();
                let flags = u8::try_from(first >> 24).expect("eight bits");
                (flags, first & 0x00ff_ffff, payload.get_u32())
            });
            Frame::Settings(entries.collect())
        }
        6 => {
            needs(4)?;
            Frame::Ping(payload.get_u32())
        }
        7 => {
            needs(8)?;
            Frame::GoAway {
                last: payload.get_u32() & ID_MASK,
                status: payload.get_u32(),
            }
        }
        8 => {
            needs(4)?;
            Frame::Headers {
                id: payload.get_u32() & ID_MASK,
                fin,
                block: payload,
            }
        }
        9 => {
            needs(8)?;
            Frame::WindowUpdate {
                id: payload.get_u32() & ID_MASK,
                delta: payload.get_u32() & ID_MASK,
            }
        }
        _ => return Ok(None),
    }))
}

/// Appends a frame to `output`.
///
/// # Panics
///
/// If a payload is longer than the format can say (16 MiB): callers cut data before.
pub fn encode(frame: &Frame, output: &mut BytesMut) {
    match frame {
        Frame::SynStream {
            id,
            associated,
            priority,
            fin,
            unidirectional,
            block,
        } => {
            let flags = u8::from(*fin) * FLAG_FIN + u8::from(*unidirectional) * FLAG_UNIDIRECTIONAL;
            head(output, 1, flags, 10 + block.len());
            output.put_u32(*id);
            output.put_u32(*associated);
            output.put_u8(priority << 5);
            output.put_u8(0);
            output.put_slice(block);
        }
        Frame::SynReply { id, fin, block } => {
            head(output, 2, u8::from(*fin), 4 + block.len());
            output.put_u32(*id);
            output.put_slice(block);
        }
        Frame::RstStream { id, status } => {
            head(output, 3, 0, 8);
            output.put_u32(*id);
            output.put_u32(*status);
        }
        Frame::Settings(entries) => {
            head(output, 4, 0, 4 + entries.len() * 8);
            output.put_u32(u32::try_from(entries.len()).expect("fewer than the format can say"));
            for (flags, id, value) in entries {
                output.put_u32(u32::from(*flags) << 24 | id & 0x00ff_ffff);
                output.put_u32(*value);
            }
        }
        Frame::Ping(id) => {
            head(output, 6, 0, 4);
            output.put_u32(*id);
        }
        Frame::GoAway { last, status } => {
            head(output, 7, 0, 8);
            output.put_u32(*last);
            output.put_u32(*status);
        }
        Frame::Headers { id, fin, block } => {
            head(output, 8, u8::from(*fin), 4 + block.len());
            output.put_u32(*id);
            output.put_slice(block);
        }
        Frame::WindowUpdate { id, delta } => {
            head(output, 9, 0, 8);
            output.put_u32(*id);
            output.put_u32(*delta);
        }
        Frame::Data { id, fin, bytes } => {
            output.put_u32(id & ID_MASK);
            flags_and_length(output, u8::from(*fin), bytes.len());
            output.put_slice(bytes);
        }
    }
}

fn head(output: &mut BytesMut, kind: u16, flags: u8, length: usize) {
    output.put_u16(0x8000 | VERSION);
    output.put_u16(kind);
    flags_and_length(output, flags, length);
}

fn flags_and_length(output: &mut BytesMut, flags: u8, length: usize) {
    let length = u32::try_from(length).expect("callers keep to 24 bits");
    assert!(length < 1 << 24, "callers keep to 24 bits");
    output.put_u32(u32::from(flags) << 24 | length);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames() -> impl Strategy<Value = Frame> {
        let id = 0..=ID_MASK;
        let block = || proptest::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
        prop_oneof![
            (
                id.clone(),
                id.clone(),
                0..8_u8,
                any::<bool>(),
                any::<bool>(),
                block()
            )
                .prop_map(|(id, associated, priority, fin, unidirectional, block)| {
                    Frame::SynStream {
                        id,
                        associated,
                        priority,
                        fin,
                        unidirectional,
                        block,
                    }
                }),
            (id.clone(), any::<bool>(), block()).prop_map(|(id, fin, block)| Frame::SynReply {
                id,
                fin,
                block
            }),
            (id.clone(), any::<u32>()).prop_map(|(id, status)| Frame::RstStream { id, status }),
            proptest::collection::vec((any::<u8>(), 0..1_u32 << 24, any::<u32>()), 0..4)
                .prop_map(Frame::Settings),
            any::<u32>().prop_map(Frame::Ping),
            (id.clone(), any::<u32>()).prop_map(|(last, status)| Frame::GoAway { last, status }),
            (id.clone(), any::<bool>(), block()).prop_map(|(id, fin, block)| Frame::Headers {
                id,
                fin,
                block
            }),
            (id.clone(), id.clone()).prop_map(|(id, delta)| Frame::WindowUpdate { id, delta }),
            (id, any::<bool>(), block()).prop_map(|(id, fin, bytes)| Frame::Data {
                id,
                fin,
                bytes
            }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_however_it_is_cut(
            frames in proptest::collection::vec(frames(), 0..6),
            cut in 1_usize..40,
        ) {
            let mut bytes = BytesMut::new();
            for frame in &frames {
                encode(frame, &mut bytes);
            }
            let mut decoder = FrameDecoder::default();
            let mut seen = Vec::new();
            for part in bytes.chunks(cut) {
                decoder.push(part);
                while let Some(frame) = decoder.next_frame().expect("well formed") {
                    seen.push(frame);
                }
            }
            prop_assert_eq!(seen, frames);
        }

        #[test]
        fn any_bytes_are_an_error_or_frames(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut decoder = FrameDecoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_frame() {}
        }
    }

    #[test]
    fn frames_as_they_are_on_the_wire() {
        let check = |frame: Frame, expected: &[u8]| {
            let mut bytes = BytesMut::new();
            encode(&frame, &mut bytes);
            assert_eq!(&bytes[..], expected);
        };
        check(Frame::Ping(1), &[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]);
        check(
            Frame::RstStream { id: 3, status: 5 },
            &[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 5],
        );
        check(
            Frame::Data {
                id: 1,
                fin: true,
                bytes: Bytes::from_static(b"hi"),
            },
            &[0, 0, 0, 1, 1, 0, 0, 2, b'h', b'i'],
        );
    }

    #[test]
    fn what_is_no_frame() {
        let check = |bytes: &[u8], expected: FrameError| {
            let mut decoder = FrameDecoder::default();
            decoder.push(bytes);
            assert_eq!(decoder.next_frame(), Err(expected));
        };
        check(b"\x80\x02\0\x01\0\0\0\0", FrameError::Version(2));
        check(
            b"\x80\x03\0\x01\0\0\0\x01x",
            FrameError::Payload { kind: 1, length: 1 },
        );
        check(
            b"\x80\x03\0\x04\0\0\0\x08\x01\0\0\0\0\0\0\0",
            FrameError::Payload { kind: 4, length: 8 },
        );
        check(b"\0\0\0\x01\0\xff\xff\xff", FrameError::TooLong(0xff_ffff));
    }

    #[test]
    fn frames_of_unknown_types_are_skipped() {
        let mut decoder = FrameDecoder::default();
        decoder.push(b"\x80\x03\0\x0a\0\0\0\x01x\x80\x03\0\x06\0\0\0\x04\0\0\0\x07");
        assert_eq!(decoder.next_frame(), Ok(Some(Frame::Ping(7))));
    }
}
