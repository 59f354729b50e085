//! The netlink wire form: messages with nested attributes, sent as one batch, and what comes back.
//!
//! One writer serves all three families in use (routing, nf_tables, conntrack), because what matters
//! here is that several messages leave in one `sendmsg`: the kernel works through them before the
//! call returns, so a batch costs one system call to send and one to hear the verdicts.
//!
//! ```text
//! nlmsghdr { length u32, kind u16, flags u16, sequence u32, port u32 }
//!   family header (ifinfomsg, rtmsg, nfgenmsg, …)
//!   attribute { length u16, kind u16, payload, padding to 4 } …     payload may be attributes again
//! ```
//!
//! What the kinds and attributes mean is left to `route`, `nft` and `conntrack`. Source: netlink(7),
//! rtnetlink(7), `linux/netlink.h`.

use std::io;
use std::ops::Range;

use netlink_sys::{Socket, SocketAddr};

/// `NLM_F_REQUEST`: every message to the kernel carries it.
const REQUEST: u16 = 0x01;
/// `NLM_F_ACK`: answer also when it went well.
pub(crate) const ACK: u16 = 0x04;
/// `NLM_F_REPLACE`: an existing object is changed.
pub(crate) const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`: an existing object is an error.
pub(crate) const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_CREATE`: an absent object is made.
pub(crate) const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`: after what is there.
pub(crate) const APPEND: u16 = 0x800;
/// `NLM_F_DUMP`: all objects.
const DUMP: u16 = 0x300;

const KIND_ERROR: u16 = 2;
const KIND_DONE: u16 = 3;
const HEADER: usize = 16;
const NESTED: u16 = 0x8000;
/// `NLMSGERR_ATTR_MSG`
const ATTRIBUTE_TEXT: u16 = 1;
/// In the flags of an error reply: attributes follow (`NLM_F_ACK_TLVS`).
const FLAG_ATTRIBUTES: u16 = 0x200;
/// In the flags of an error reply: the request is not repeated in it (`NLM_F_CAPPED`).
const FLAG_CAPPED: u16 = 0x100;
/// Receive buffer of one read; the kernel fills at most 32 KiB at a time for dumps.
const READ_BYTES: usize = 64 * 1024;
/// The smallest send buffer asked for; larger batches ask for what they need.
const SEND_BYTES: usize = 256 * 1024;

/// Why the kernel refused a batch: the first message that it did not take.
#[derive(Debug)]
pub(crate) struct Refused {
    /// What that message was to do.
    pub(crate) step: &'static str,
    /// Why not; carries the kernel's own text where it gave one.
    pub(crate) source: io::Error,
}

impl Refused {
    fn io(step: &'static str, source: io::Error) -> Refused {
        Refused { step, source }
    }

    /// The error number, if the kernel gave one.
    pub(crate) fn errno(&self) -> Option<i32> {
        match self
            .source
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<Told>())
        {
            Some(told) => Some(told.errno),
            None => self.source.raw_os_error(),
        }
    }
}

/// An error number with the words that the kernel said to it (extended acknowledgement).
#[derive(Debug)]
struct Told {
    errno: i32,
    text: String,
}

impl std::fmt::Display for Told {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "{}: {}",
            io::Error::from_raw_os_error(self.errno),
            self.text
        )
    }
}

impl std::error::Error for Told {}

/// A batch under construction.
#[derive(Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    steps: Vec<&'static str>,
}

impl Batch {
    /// Appends one message. `step` says in an error what it was to do.
    pub(crate) fn message(
        &mut self,
        step: &'static str,
        kind: u16,
        flags: u16,
        body: impl FnOnce(&mut Payload<'_>),
    ) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes
            .extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        let sequence = self.steps.len() as u32;
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        body(&mut Payload(&mut self.bytes));
        pad(&mut self.bytes);
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.steps.push(step);
    }

    /// What goes over the wire.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Size on the wire.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    fn step(&self, sequence: u32) -> &'static str {
        self.steps
            .get(sequence as usize)
            .copied()
            .unwrap_or("commit")
    }
}

/// The inside of a message or of a nesting attribute.
pub(crate) struct Payload<'a>(&'a mut Vec<u8>);

impl Payload<'_> {
    /// Bytes as they are: a family header.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// An attribute.
    pub(crate) fn attribute(&mut self, kind: u16, payload: &[u8]) {
        let length = (payload.len() + 4) as u16;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(payload);
        pad(self.0);
    }

    /// An attribute that holds a 32-bit number in the machine's order (routing).
    pub(crate) fn native(&mut self, kind: u16, number: u32) {
        self.attribute(kind, &number.to_ne_bytes());
    }

    /// An attribute that holds a 32-bit number in network order (netfilter).
    pub(crate) fn network(&mut self, kind: u16, number: u32) {
        self.attribute(kind, &number.to_be_bytes());
    }

    /// An attribute that holds a 64-bit number in network order (netfilter).
    pub(crate) fn network_long(&mut self, kind: u16, number: u64) {
        self.attribute(kind, &number.to_be_bytes());
    }

    /// An attribute that holds text with a closing NUL.
    pub(crate) fn text(&mut self, kind: u16, text: &str) {
        let mut bytes = Vec::with_capacity(text.len() + 1);
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    /// An attribute that holds attributes.
    pub(crate) fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Payload<'_>)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        body(&mut Payload(self.0));
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// Bytes written to the whole batch so far; for limits.
    pub(crate) fn position(&self) -> usize {
        self.0.len()
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// Attributes of a received message. What does not fit its frame ends the iteration.
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(number16(self.0, 0)?);
        let kind = number16(self.0, 2)? & 0x3fff;
        let payload = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    }
}

impl<'a> Attributes<'a> {
    /// The payload of the first attribute of a kind.
    pub(crate) fn find(bytes: &'a [u8], kind: u16) -> Option<&'a [u8]> {
        Attributes(bytes)
            .find(|(other, _)| *other == kind)
            .map(|(_, payload)| payload)
    }

    /// The text of the first attribute of a kind.
    pub(crate) fn find_text(bytes: &'a [u8], kind: u16) -> Option<&'a str> {
        let payload = Attributes::find(bytes, kind)?;
        std::str::from_utf8(payload.strip_suffix(&[0]).unwrap_or(payload)).ok()
    }
}

fn number16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// A 32-bit number in the machine's order.
pub(crate) fn number32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Kinds and payloads of the messages in a datagram that was received.
pub(crate) fn messages(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    Received(bytes).map(|message| (message.kind, message.payload))
}

/// A socket to one family, in the network namespace of the thread that opened it, for good.
pub(crate) struct Connection {
    socket: Socket,
    send_bytes: usize,
    buffer: Vec<u8>,
}

impl Connection {
    /// Opens a socket: `libc::NETLINK_ROUTE` or `libc::NETLINK_NETFILTER`.
    pub(crate) fn open(protocol: libc::c_int) -> io::Result<Connection> {
        let mut socket = Socket::new(protocol as isize)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Both only make answers shorter or clearer; kernels before 4.12 do without.
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_ext_ack(true);
        let mut connection = Connection {
            socket,
            send_bytes: 0,
            buffer: Vec::new(),
        };
        connection.grow(SEND_BYTES)?;
        Ok(connection)
    }

    /// Sends the batch; the kernel has worked through it when this returns. The first refusal is
    /// returned (routing goes on with the messages behind it, nf_tables takes all or nothing).
    pub(crate) fn execute(&mut self, batch: &Batch) -> Result<(), Refused> {
        self.exchange(batch, |_, _| {})
    }

    /// As [`Connection::execute`], and shows each answer that is not a verdict: kind and payload.
    pub(crate) fn exchange(
        &mut self,
        batch: &Batch,
        mut each: impl FnMut(u16, &[u8]),
    ) -> Result<(), Refused> {
        self.send(batch)
            .map_err(|source| Refused::io(batch.step(0), source))?;
        let mut first: Option<(u32, io::Error)> = None;
        let mut heard = false;
        loop {
            // Nothing to wait for: the answers were queued before `send` returned.
            let range = match self.receive(libc::MSG_DONTWAIT) {
                Ok(range) => range,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(Refused::io(batch.step(0), error)),
            };
            for message in Received(&self.buffer[range]) {
                heard = true;
                if message.kind != KIND_ERROR {
                    each(message.kind, message.payload);
                    continue;
                }
                if let Some(error) = message.error()
                    && first
                        .as_ref()
                        .is_none_or(|(sequence, _)| message.sequence < *sequence)
                {
                    first = Some((message.sequence, error));
                }
            }
        }
        match first {
            Some((sequence, error)) => Err(Refused::io(batch.step(sequence), error)),
            None if heard => Ok(()),
            None => Err(Refused::io(
                batch.step(0),
                io::Error::new(io::ErrorKind::UnexpectedEof, "the kernel gave no answer"),
            )),
        }
    }

    /// Asks for all objects of a kind and shows each answer: message kind and payload.
    pub(crate) fn dump(
        &mut self,
        step: &'static str,
        kind: u16,
        body: impl FnOnce(&mut Payload<'_>),
        mut each: impl FnMut(u16, &[u8]),
    ) -> Result<(), Refused> {
        let mut batch = Batch::default();
        batch.message(step, kind, DUMP, body);
        self.send(&batch)
            .map_err(|source| Refused::io(step, source))?;
        loop {
            let range = self
                .receive(0)
                .map_err(|source| Refused::io(step, source))?;
            for message in Received(&self.buffer[range]) {
                match message.kind {
                    KIND_DONE => return Ok(()),
                    KIND_ERROR => match message.error() {
                        Some(error) => return Err(Refused::io(step, error)),
                        None => return Ok(()),
                    },
                    other => each(other, message.payload),
                }
            }
        }
    }

    fn send(&mut self, batch: &Batch) -> io::Result<()> {
        // A batch is one datagram, and a datagram larger than the send buffer is refused.
        self.grow(batch.len() + 4096)?;
        let sent = self.socket.send(&batch.bytes, 0)?;
        debug_assert_eq!(sent, batch.bytes.len());
        Ok(())
    }

    fn grow(&mut self, bytes: usize) -> io::Result<()> {
        if bytes <= self.send_bytes {
            return Ok(());
        }
        nix::sys::socket::setsockopt(&self.socket, nix::sys::socket::sockopt::SndBufForce, &bytes)
            .map_err(io::Error::from)?;
        self.send_bytes = bytes;
        Ok(())
    }

    fn receive(&mut self, flags: libc::c_int) -> io::Result<Range<usize>> {
        self.buffer.clear();
        self.buffer.reserve(READ_BYTES);
        let length = self.socket.recv(&mut self.buffer, flags)?;
        Ok(0..length.min(self.buffer.len()))
    }
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

impl Message<'_> {
    /// What an error message says; `None` is an acknowledgement.
    fn error(&self) -> Option<io::Error> {
        let errno = number32(self.payload, 0)? as i32;
        if errno == 0 {
            return None;
        }
        let errno = errno.wrapping_neg();
        match self.text() {
            Some(text) => Some(io::Error::other(Told { errno, text })),
            None => Some(io::Error::from_raw_os_error(errno)),
        }
    }

    fn text(&self) -> Option<String> {
        if self.flags & FLAG_ATTRIBUTES == 0 {
            return None;
        }
        let repeated = if self.flags & FLAG_CAPPED != 0 {
            HEADER
        } else {
            (number32(self.payload, 4)? as usize).next_multiple_of(4)
        };
        let attributes = self.payload.get(4 + repeated..)?;
        Attributes::find_text(attributes, ATTRIBUTE_TEXT).map(str::to_owned)
    }
}

struct Received<'a>(&'a [u8]);

impl<'a> Iterator for Received<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let length = number32(self.0, 0)? as usize;
        let message = Message {
            kind: number16(self.0, 4)?,
            flags: number16(self.0, 6)?,
            sequence: number32(self.0, 8)?,
            payload: self.0.get(HEADER..length)?,
        };
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    }
}
