//! Messages of `channel.k8s.io`: one byte names the channel, the rest goes to it.

use bytes::{Bytes, BytesMut};

/// Standard input.
pub const STDIN: u8 = 0;
/// Standard output.
pub const STDOUT: u8 = 1;
/// Standard error.
pub const STDERR: u8 = 2;
/// How the command ended.
pub const ERROR: u8 = 3;
/// Sizes of the terminal.
pub const RESIZE: u8 = 4;
/// Closes the channel that the next byte names (`v5` and later).
pub const CLOSE: u8 = 255;

/// What a client sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Bytes for a channel.
    Data(u8, Bytes),
    /// A channel will get no more bytes.
    Close(u8),
}

/// A message without a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message that names no channel")]
pub struct MissingChannel;

/// Reads a message. `can_close`: the protocol knows [`CLOSE`].
///
/// # Errors
///
/// It is empty, or closes nothing.
pub fn decode(mut message: Bytes, can_close: bool) -> Result<Message, MissingChannel> {
    let Some(&channel) = message.first() else {
        return Err(MissingChannel);
    };
    let rest = message.split_off(1);
    if channel == CLOSE && can_close {
        return rest
            .first()
            .map(|closed| Message::Close(*closed))
            .ok_or(MissingChannel);
    }
    Ok(Message::Data(channel, rest))
}

/// Makes a message.
pub fn encode(channel: u8, bytes: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(bytes.len() + 1);
    message.extend_from_slice(&[channel]);
    message.extend_from_slice(bytes);
    message.freeze()
}

/// A size of a terminal as it comes on [`RESIZE`]: `{"Width":80,"Height":24}`. Columns and rows;
/// nothing for a text that is no size.
pub fn terminal_size(text: &[u8]) -> Option<(u16, u16)> {
    let text = std::str::from_utf8(text).ok()?;
    let number = |name: &str| -> Option<u16> {
        let (_, rest) = text.split_once(&format!("\"{name}\""))?;
        let rest = rest.trim_start().strip_prefix(':')?.trim_start();
        let end = rest
            .find(|character: char| !character.is_ascii_digit())
            .unwrap_or(rest.len());
        rest[..end].parse().ok()
    };
    Some((number("Width")?, number("Height")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        let check = |bytes: &'static [u8], can_close, expected| {
            assert_eq!(decode(Bytes::from_static(bytes), can_close), expected);
        };
        check(
            b"\0abc",
            true,
            Ok(Message::Data(0, Bytes::from_static(b"abc"))),
        );
        check(b"\x04", true, Ok(Message::Data(4, Bytes::new())));
        check(b"\xff\0", true, Ok(Message::Close(0)));
        check(b"\xff", true, Err(MissingChannel));
        check(
            b"\xff\0",
            false,
            Ok(Message::Data(255, Bytes::from_static(b"\0"))),
        );
        check(b"", true, Err(MissingChannel));
        assert_eq!(encode(STDOUT, b"x"), Bytes::from_static(b"\x01x"));
    }

    #[test]
    fn sizes() {
        let check = |text: &str, expected| assert_eq!(terminal_size(text.as_bytes()), expected);
        check("{\"Width\":80,\"Height\":24}\n", Some((80, 24)));
        check("{ \"Height\" : 5 , \"Width\" : 7 }", Some((7, 5)));
        check("{\"Width\":80}", None);
        check("{\"Width\":-1,\"Height\":2}", None);
        check("{\"Width\":99999,\"Height\":2}", None);
        check("", None);
    }
}
