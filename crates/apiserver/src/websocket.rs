//! Answers that go on and on, as WebSocket messages: for browsers, which cannot read a response as
//! it comes. Logs are bytes, each piece a message; of a watch, each event is a message.

use axum::extract::FromRequestParts as _;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use http::{HeaderMap, Request, Response, header};
use lifecycle::Drain;

use crate::Body;
use crate::status::Failure;

/// How pieces of an answer become messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Each piece as it comes, as bytes.
    Pieces,
    /// Each line, as text.
    Lines,
}

/// The subprotocol in which bytes are text.
const BASE64: &str = "base64.binary.k8s.io";
const BINARY: &str = "binary.k8s.io";

/// Whether the client wants messages.
pub(crate) fn is_wanted(headers: &HeaderMap) -> bool {
    headers
        .get(header::UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Sends the body of a successful answer as messages, on the connection of the request.
///
/// # Errors
/// 400 when the client's handshake is malformed.
pub(crate) async fn send(
    request: Request<Body>,
    headers: &HeaderMap,
    response: Response<Body>,
    framing: Framing,
    drain: Drain,
) -> Result<Response<Body>, Failure> {
    if !response.status().is_success() {
        return Ok(response);
    }
    let (mut parts, _) = request.into_parts();
    parts.headers = headers.clone();
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &())
        .await
        .map_err(|rejection| Failure::bad_request(rejection.to_string()))?
        .protocols([BINARY, BASE64]);
    let is_base64 = upgrade
        .selected_protocol()
        .is_some_and(|protocol| protocol == BASE64);
    let body = response.into_body();
    Ok(upgrade.on_upgrade(move |socket| async move {
        tokio::select! {
            () = copy(socket, body, framing, is_base64) => {}
            () = drain.signaled() => {}
        }
    }))
}

/// Until the body ends or the client goes. What the client says is not listened to, but for its end.
async fn copy(socket: WebSocket, body: Body, framing: Framing, is_base64: bool) {
    let (mut sink, mut messages) = socket.split();
    let mut pieces = body.into_data_stream();
    let mut unfinished = BytesMut::new();
    loop {
        let piece = tokio::select! {
            piece = pieces.next() => piece,
            message = messages.next() => match message {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => continue,
            },
        };
        // A body that breaks off has been read as far as it went.
        let Some(Ok(piece)) = piece else { break };
        for message in messages_of(piece, framing, is_base64, &mut unfinished) {
            if futures::SinkExt::send(&mut sink, message).await.is_err() {
                return;
            }
        }
    }
    futures::SinkExt::send(&mut sink, Message::Close(None))
        .await
        .ok();
}

/// The messages that a piece completes; `unfinished` keeps the beginning of the next line.
fn messages_of(
    piece: Bytes,
    framing: Framing,
    is_base64: bool,
    unfinished: &mut BytesMut,
) -> Vec<Message> {
    if framing == Framing::Pieces {
        return vec![match is_base64 {
            true => Message::Text(STANDARD.encode(&piece).into()),
            false => Message::Binary(piece),
        }];
    }
    let mut messages = Vec::new();
    unfinished.extend_from_slice(&piece);
    while let Some(end) = memchr::memchr(b'\n', unfinished) {
        let line = unfinished.split_to(end + 1);
        messages.push(Message::Text(
            String::from_utf8_lossy(&line).into_owned().into(),
        ));
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_and_pieces_are_as_they_come() {
        let check = |pieces: &[&str], framing, is_base64, expected: &[&str]| {
            let mut unfinished = BytesMut::new();
            let got: Vec<String> = pieces
                .iter()
                .flat_map(|piece| {
                    let piece = Bytes::copy_from_slice(piece.as_bytes());
                    messages_of(piece, framing, is_base64, &mut unfinished)
                })
                .map(|message| match message {
                    Message::Text(text) => format!("text {text}"),
                    other => format!("bytes {}", String::from_utf8_lossy(&other.into_data())),
                })
                .collect();
            assert_eq!(got, expected, "{pieces:?}");
        };
        check(
            &["{a}\n{", "b}\n{c"],
            Framing::Lines,
            false,
            &["text {a}\n", "text {b}\n"],
        );
        check(&["a\nb"], Framing::Pieces, false, &["bytes a\nb"]);
        check(&["ab"], Framing::Pieces, true, &["text YWI="]);
    }
}
