//! Many streams over one connection: the state of SPDY/3.1, without IO.
//!
//! ```text
//!   SYN_STREAM ─► Opened ─ reply ─► open ─ FIN, both ways ─► gone
//!                    └──────── RST_STREAM, either way ──────► gone
//! ```
//!
//! The windows of SPDY/3.1 are neither kept to nor announced: the peers that speak it to a kubelet
//! (Go's `spdystream`, in every kubectl and API server) do neither, and a sender that waited for a
//! window would wait for ever. A caller that cannot take a stream's data stops reading the
//! connection.

use std::collections::{HashMap, VecDeque};

use bytes::{Bytes, BytesMut};

use crate::frame::{Frame, FrameDecoder, FrameError, StreamId, encode};
use crate::headers::{HeaderBlockError, HeaderReader, HeaderWriter, Headers};

/// Streams that may be open at once.
const STREAMS_MAX: usize = 1024;
/// The longest data frame that is sent.
const DATA_BYTES_MAX: usize = 32 * 1024;

/// RST_STREAM status codes (section 2.6.3).
const PROTOCOL_ERROR: u32 = 1;
const INVALID_STREAM: u32 = 2;
const REFUSED_STREAM: u32 = 3;
const CANCEL: u32 = 5;

/// Which end of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Opens streams with odd numbers.
    Client,
    /// Opens streams with even numbers.
    Server,
}

/// What the other side did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It opened a stream. To be answered by [`Mux::reply`] or [`Mux::reset`].
    Opened {
        /// The stream.
        id: StreamId,
        /// What it said about it.
        headers: Headers,
        /// It will send nothing on it.
        fin: bool,
    },
    /// It accepted a stream of ours.
    Replied {
        /// The stream.
        id: StreamId,
        /// What it said about it.
        headers: Headers,
    },
    /// Bytes on a stream; never empty.
    Data {
        /// The stream.
        id: StreamId,
        /// The bytes.
        bytes: Bytes,
    },
    /// It will send nothing more on a stream.
    Finished(StreamId),
    /// It ended a stream in both directions.
    Reset(StreamId),
    /// It answered a ping.
    Pong(u32),
    /// It will open no more streams.
    GoAway,
}

/// The connection cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MuxError {
    /// The bytes are no frames.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Header compression is lost.
    #[error(transparent)]
    Headers(#[from] HeaderBlockError),
    /// The other side opened more streams at once than are taken.
    #[error("more than {STREAMS_MAX} streams at once")]
    TooManyStreams,
}

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// The other side sends no more.
    remote_done: bool,
    /// We send no more.
    local_done: bool,
}

/// One end of a connection.
pub struct Mux {
    side: Side,
    decoder: FrameDecoder,
    reader: HeaderReader,
    writer: HeaderWriter,
    streams: HashMap<StreamId, Stream>,
    last_remote: StreamId,
    next_local: StreamId,
    events: VecDeque<Event>,
    output: BytesMut,
}

impl Mux {
    /// A connection on which nothing has been said yet.
    pub fn new(side: Side) -> Mux {
        Mux {
            side,
            decoder: FrameDecoder::default(),
            reader: HeaderReader::new(),
            writer: HeaderWriter::new(),
            streams: HashMap::new(),
            last_remote: 0,
            next_local: match side {
                Side::Client => 1,
                Side::Server => 2,
            },
            events: VecDeque::new(),
            output: BytesMut::new(),
        }
    }

    /// Takes bytes of the connection. What they mean comes out of [`Self::event`].
    ///
    /// # Errors
    ///
    /// The connection cannot go on; a GOAWAY frame for the other side waits in the output.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), MuxError> {
        self.decoder.push(bytes);
        let result = self.take_frames();
        if result.is_err() {
            let frame = Frame::GoAway {
                last: self.last_remote,
                status: PROTOCOL_ERROR,
            };
            encode(&frame, &mut self.output);
        }
        result
    }

    fn take_frames(&mut self) -> Result<(), MuxError> {
        while let Some(frame) = self.decoder.next_frame()? {
            self.take(frame)?;
        }
        Ok(())
    }

    fn take(&mut self, frame: Frame) -> Result<(), MuxError> {
        match frame {
            Frame::SynStream { id, fin, block, .. } => {
                let headers = self.reader.read(&block)?;
                self.opened(id, headers, fin)?;
            }
            Frame::SynReply { id, fin, block } => {
                let headers = self.reader.read(&block)?;
                if self.streams.contains_key(&id) {
                    self.events.push_back(Event::Replied { id, headers });
                    self.remote_done(id, fin);
                }
            }
            // Read in any case: the compression runs through all blocks.
            Frame::Headers { id, fin, block } => {
                self.reader.read(&block)?;
                self.remote_done(id, fin);
            }
            Frame::RstStream { id, .. } => {
                if self.streams.remove(&id).is_some() {
                    self.events.push_back(Event::Reset(id));
                }
            }
            Frame::Data { id, fin, bytes } => match self.streams.get(&id) {
                Some(stream) if !stream.remote_done => {
                    if !bytes.is_empty() {
                        self.events.push_back(Event::Data { id, bytes });
                    }
                    self.remote_done(id, fin);
                }
                _ => self.send_reset(id, INVALID_STREAM),
            },
            Frame::Ping(id) => {
                let is_ours = (id % 2 == 1) == (self.side == Side::Client);
                match is_ours {
                    true => self.events.push_back(Event::Pong(id)),
                    false => encode(&Frame::Ping(id), &mut self.output),
                }
            }
            Frame::GoAway { .. } => self.events.push_back(Event::GoAway),
            Frame::Settings(_) | Frame::WindowUpdate { .. } => {}
        }
        Ok(())
    }

    fn opened(&mut self, id: StreamId, headers: Headers, fin: bool) -> Result<(), MuxError> {
        let is_theirs = (id % 2 == 1) == (self.side == Side::Server);
        if !is_theirs || id <= self.last_remote {
            self.send_reset(id, PROTOCOL_ERROR);
            return Ok(());
        }
        if self.streams.len() >= STREAMS_MAX {
            return Err(MuxError::TooManyStreams);
        }
        self.last_remote = id;
        let stream = Stream {
            remote_done: fin,
            local_done: false,
        };
        self.streams.insert(id, stream);
        self.events.push_back(Event::Opened { id, headers, fin });
        Ok(())
    }

    fn remote_done(&mut self, id: StreamId, fin: bool) {
        let Some(stream) = self.streams.get_mut(&id).filter(|_| fin) else {
            return;
        };
        if !stream.remote_done {
            stream.remote_done = true;
            self.events.push_back(Event::Finished(id));
        }
        self.forget_if_done(id);
    }

    fn forget_if_done(&mut self, id: StreamId) {
        let done = |stream: &Stream| stream.remote_done && stream.local_done;
        if self.streams.get(&id).is_some_and(done) {
            self.streams.remove(&id);
        }
    }

    fn send_reset(&mut self, id: StreamId, status: u32) {
        encode(&Frame::RstStream { id, status }, &mut self.output);
    }

    /// What happened, in order.
    pub fn event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Bytes for the other side.
    pub fn output(&mut self) -> Bytes {
        self.output.split().freeze()
    }

    /// Opens a stream.
    pub fn open(&mut self, headers: &Headers) -> StreamId {
        let id = self.next_local;
        self.next_local += 2;
        let frame = Frame::SynStream {
            id,
            associated: 0,
            priority: 0,
            fin: false,
            unidirectional: false,
            block: self.writer.write(headers),
        };
        encode(&frame, &mut self.output);
        self.streams.insert(id, Stream::default());
        id
    }

    /// Accepts a stream that the other side opened.
    pub fn reply(&mut self, id: StreamId, headers: &Headers) {
        if self.streams.contains_key(&id) {
            let frame = Frame::SynReply {
                id,
                fin: false,
                block: self.writer.write(headers),
            };
            encode(&frame, &mut self.output);
        }
    }

    /// Refuses a stream that the other side opened.
    pub fn refuse(&mut self, id: StreamId) {
        if self.streams.remove(&id).is_some() {
            self.send_reset(id, REFUSED_STREAM);
        }
    }

    /// Sends bytes. False when the stream is closed for them: they are dropped.
    pub fn send(&mut self, id: StreamId, bytes: &[u8]) -> bool {
        let open = |stream: &Stream| !stream.local_done;
        if !self.streams.get(&id).is_some_and(open) {
            return false;
        }
        for part in bytes.chunks(DATA_BYTES_MAX) {
            let frame = Frame::Data {
                id,
                fin: false,
                bytes: Bytes::copy_from_slice(part),
            };
            encode(&frame, &mut self.output);
        }
        true
    }

    /// Says that no more will be sent on a stream.
    pub fn finish(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if !stream.local_done {
            stream.local_done = true;
            let frame = Frame::Data {
                id,
                fin: true,
                bytes: Bytes::new(),
            };
            encode(&frame, &mut self.output);
        }
        self.forget_if_done(id);
    }

    /// Ends a stream in both directions.
    pub fn reset(&mut self, id: StreamId) {
        if self.streams.remove(&id).is_some() {
            self.send_reset(id, CANCEL);
        }
    }

    /// Whether a stream is open in some direction.
    pub fn is_open(&self, id: StreamId) -> bool {
        self.streams.contains_key(&id)
    }

    /// Says that this side takes no more streams and ends the connection in order.
    pub fn go_away(&mut self) {
        let frame = Frame::GoAway {
            last: self.last_remote,
            status: 0,
        };
        encode(&frame, &mut self.output);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pass(from: &mut Mux, to: &mut Mux) -> Vec<Event> {
        let bytes = from.output();
        to.receive(&bytes).expect("well formed");
        std::iter::from_fn(|| to.event()).collect()
    }

    fn data(id: StreamId, text: &'static str) -> Event {
        let bytes = Bytes::from_static(text.as_bytes());
        Event::Data { id, bytes }
    }

    #[test]
    fn a_stream_from_its_opening_to_its_end() {
        let (mut client, mut server) = (Mux::new(Side::Client), Mux::new(Side::Server));
        let headers = Headers::from([("streamtype", "data"), ("port", "80")]);
        let id = client.open(&headers);
        client.send(id, b"GET");
        let events = pass(&mut client, &mut server);
        let opened = Event::Opened {
            id: 1,
            headers,
            fin: false,
        };
        assert_eq!(events, [opened, data(1, "GET")]);
        server.reply(1, &Headers::default());
        server.send(1, b"200");
        server.finish(1);
        assert!(!server.send(1, b"more"));
        let replied = Event::Replied {
            id: 1,
            headers: Headers::default(),
        };
        assert_eq!(
            pass(&mut server, &mut client),
            [replied, data(1, "200"), Event::Finished(1)]
        );
        client.finish(id);
        assert!(!client.is_open(id));
        assert_eq!(pass(&mut client, &mut server), [Event::Finished(1)]);
        assert!(!server.is_open(1));
    }

    #[test]
    fn resets_end_both_directions() {
        let (mut client, mut server) = (Mux::new(Side::Client), Mux::new(Side::Server));
        let id = client.open(&Headers::default());
        pass(&mut client, &mut server);
        server.reset(id);
        assert_eq!(pass(&mut server, &mut client), [Event::Reset(id)]);
        assert!(!client.send(id, b"x"));
        // What was under way when it was reset is answered, and ends nothing else.
        let other = client.open(&Headers::default());
        pass(&mut client, &mut server);
        assert!(server.is_open(other));
    }

    #[test]
    fn pings_go_back_and_windows_do_not_matter() {
        let mut server = Mux::new(Side::Server);
        let mut bytes = BytesMut::new();
        encode(&Frame::Ping(1), &mut bytes);
        encode(&Frame::WindowUpdate { id: 1, delta: 5 }, &mut bytes);
        encode(&Frame::Settings(vec![(0, 7, 65536)]), &mut bytes);
        server.receive(&bytes).expect("well formed");
        assert_eq!(server.event(), None);
        let mut pong = BytesMut::new();
        encode(&Frame::Ping(1), &mut pong);
        assert_eq!(server.output(), pong.freeze());
    }

    #[test]
    fn streams_that_must_not_be() {
        let mut client = Mux::new(Side::Client);
        let id = client.open(&Headers::default());
        let bytes = client.output();
        let mut server = Mux::new(Side::Server);
        server.receive(&bytes).expect("well formed");
        // The same number again, as a replay would have it; the compression is the writer's.
        let again = Frame::SynStream {
            id,
            associated: 0,
            priority: 0,
            fin: false,
            unidirectional: false,
            block: client.writer.write(&Headers::default()),
        };
        let mut bytes = BytesMut::new();
        encode(&again, &mut bytes);
        server.receive(&bytes).expect("the connection goes on");
        let mut decoder = FrameDecoder::default();
        decoder.push(&server.output());
        let status = PROTOCOL_ERROR;
        assert_eq!(
            decoder.next_frame(),
            Ok(Some(Frame::RstStream { id, status }))
        );
    }

    #[test]
    fn too_many_streams_end_the_connection() {
        let (mut client, mut server) = (Mux::new(Side::Client), Mux::new(Side::Server));
        for _ in 0..=STREAMS_MAX {
            client.open(&Headers::default());
        }
        let bytes = client.output();
        assert_eq!(server.receive(&bytes), Err(MuxError::TooManyStreams));
    }

    #[test]
    fn long_data_is_cut() {
        let (mut client, mut server) = (Mux::new(Side::Client), Mux::new(Side::Server));
        let id = client.open(&Headers::default());
        pass(&mut client, &mut server);
        client.send(id, &vec![7; DATA_BYTES_MAX * 2 + 1]);
        let events = pass(&mut client, &mut server);
        assert_eq!(events.len(), 3);
    }

    proptest! {
        #[test]
        fn any_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let mut server = Mux::new(Side::Server);
            let _ = server.receive(&bytes);
            while server.event().is_some() {}
        }

        #[test]
        fn a_frame_with_any_payload_does_no_harm(
            kind in 0_u8..12, flags in any::<u8>(),
            payload in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let length = u8::try_from(payload.len()).expect("below 200");
            let mut bytes = vec![0x80, 3, 0, kind, flags, 0, 0, length];
            bytes.extend(payload);
            let mut server = Mux::new(Side::Server);
            let _ = server.receive(&bytes);
            while server.event().is_some() {}
        }
    }
}
