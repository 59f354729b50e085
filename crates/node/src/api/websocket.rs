//! Commands, port-forwards and logs over WebSocket.

use std::io;

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use http::{Request, header};
use streams::channel::{self, ERROR, RESIZE, STDIN};
use streams::remote_command::{Version, negotiate};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

use crate::api::Failure;
use crate::api::command::{Output, Remote, WAITING_MAX};

/// The longest message that is taken.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Bytes between a tunnel and what goes through it.
const TUNNEL_BYTES: usize = 64 * 1024;

/// SPDY/3.1 as messages of a WebSocket.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// A stream of bytes, each message some of them; a client that names no subprotocol means the first.
const PIECES: &str = "binary.k8s.io";
/// The same for clients that only take text: in base64.
const PIECES_AS_TEXT: &str = "base64.binary.k8s.io";

const COMMANDS: [Version; 5] = [
    Version::V5,
    Version::V4,
    Version::V3,
    Version::V2,
    Version::V1,
];

/// Upgrades, and hands the client's end to `run`.
pub(super) fn command<Run, Running>(
    upgrade: WebSocketUpgrade,
    run: Run,
) -> Result<Response, Failure>
where
    Run: FnOnce(Remote) -> Running + Send + 'static,
    Running: Future<Output = ()> + Send + 'static,
{
    let upgrade = upgrade
        .max_message_size(MESSAGE_BYTES_MAX)
        .protocols(COMMANDS.map(Version::name));
    let chosen = upgrade
        .selected_protocol()
        .and_then(|name| name.to_str().ok())
        .and_then(|name| negotiate([name], Version::V5));
    // Without a subprotocol: the first version, as upstream.
    let version = chosen.unwrap_or(Version::V1);
    Ok(upgrade.on_upgrade(move |socket| serve(socket, version, run)))
}

async fn serve<Run, Running>(socket: WebSocket, version: Version, run: Run)
where
    Run: FnOnce(Remote) -> Running + Send + 'static,
    Running: Future<Output = ()> + Send + 'static,
{
    let (mut sink, stream) = socket.split();
    let (stdin, stdin_of_remote) = mpsc::channel(WAITING_MAX);
    let (sizes, sizes_of_remote) = mpsc::channel(WAITING_MAX);
    let (output_of_remote, mut output) = mpsc::channel(WAITING_MAX);
    let remote = Remote {
        stdin: stdin_of_remote,
        sizes: sizes_of_remote,
        output: output_of_remote,
    };
    let mut reading = tokio::spawn(read(stream, version, stdin, sizes));
    tokio::spawn(run(remote));
    loop {
        let next = tokio::select! {
            next = output.recv() => next,
            // The client is gone. Dropping `output` tells the process's side.
            _ = &mut reading => return,
        };
        let message = match next {
            Some(Output::Data(channel, bytes)) => channel::encode(channel, &bytes),
            Some(Output::End(ending)) => {
                if let Some(text) = ending.text(version) {
                    let message = channel::encode(ERROR, &text);
                    let _ = sink.send(Message::Binary(message)).await;
                }
                break;
            }
            None => break,
        };
        if sink.send(Message::Binary(message)).await.is_err() {
            break;
        }
    }
    close(sink).await;
    reading.abort();
}

/// Says goodbye; the client may be gone already.
async fn close(mut sink: SplitSink<WebSocket, Message>) {
    let goodbye = axum::extract::ws::CloseFrame {
        code: axum::extract::ws::close_code::NORMAL,
        reason: "".into(),
    };
    let _ = sink.send(Message::Close(Some(goodbye))).await;
    let _ = sink.close().await;
}

/// Reads what the client sends, until it is gone.
async fn read(
    mut stream: SplitStream<WebSocket>,
    version: Version,
    stdin: mpsc::Sender<Bytes>,
    sizes: mpsc::Sender<(u16, u16)>,
) {
    let mut stdin = Some(stdin);
    while let Some(Ok(message)) = stream.next().await {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => text.into(),
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(_) => return,
        };
        match channel::decode(bytes, version.can_close()) {
            Ok(channel::Message::Data(STDIN, bytes)) => {
                if let Some(input) = stdin.as_ref().filter(|_| !bytes.is_empty())
                    && input.send(bytes).await.is_err()
                {
                    // The process takes no more; the rest of the session goes on.
                    stdin = None;
                }
            }
            Ok(channel::Message::Data(RESIZE, text)) if version.has_resize() => {
                if let Some(size) = channel::terminal_size(&text) {
                    // Without a terminal nobody listens.
                    let _ = sizes.try_send(size);
                }
            }
            Ok(channel::Message::Close(STDIN)) => stdin = None,
            Ok(channel::Message::Data(..) | channel::Message::Close(_)) => {}
            Err(_) => return,
        }
    }
}

/// Whether a request wants its connection to become a WebSocket.
pub(super) fn is_asked_for(request: &Request<Body>) -> bool {
    let wanted = request.headers().get(header::UPGRADE);
    wanted.is_some_and(|name| name.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// The upgrade that a request asks for.
pub(super) async fn upgrade(request: Request<Body>) -> Result<WebSocketUpgrade, Failure> {
    let (mut parts, _) = request.into_parts();
    WebSocketUpgrade::from_request_parts(&mut parts, &())
        .await
        .map_err(|error| Failure::bad_request(format!("unable to upgrade: {error}")))
}

/// Upgrades, and sends the pieces until there are no more or the client is gone.
pub(super) fn pieces(
    upgrade: WebSocketUpgrade,
    mut pieces: mpsc::Receiver<io::Result<Bytes>>,
) -> Result<Response, Failure> {
    let offers_some = upgrade.requested_protocols().next().is_some();
    let upgrade = upgrade.protocols([PIECES, PIECES_AS_TEXT]);
    let chosen = upgrade.selected_protocol().cloned();
    if offers_some && chosen.is_none() {
        return Err(Failure::bad_request(format!(
            "unable to upgrade: the client speaks none of [{PIECES} {PIECES_AS_TEXT}]"
        )));
    }
    let as_text = chosen.is_some_and(|name| name == PIECES_AS_TEXT);
    let message = move |piece: Bytes| match as_text {
        true => Message::Text(BASE64.encode(piece).into()),
        false => Message::Binary(piece),
    };
    Ok(upgrade.on_upgrade(move |socket| async move {
        let (mut sink, mut stream) = socket.split();
        // An empty message first, as upstream: the client knows that it is served.
        if sink.send(message(Bytes::new())).await.is_err() {
            return;
        }
        loop {
            let piece = tokio::select! {
                piece = pieces.recv() => piece,
                said = stream.next() => match said {
                    // What a reader of a log says is of no interest.
                    Some(Ok(_)) => continue,
                    Some(Err(_)) | None => return,
                },
            };
            let Some(Ok(piece)) = piece else { break };
            if sink.send(message(piece)).await.is_err() {
                return;
            }
        }
        close(sink).await;
    }))
}

/// Upgrades, and hands what goes through the tunnel to `run`.
pub(super) fn tunnel<Run, Running>(upgrade: WebSocketUpgrade, run: Run) -> Result<Response, Failure>
where
    Run: FnOnce(DuplexStream) -> Running + Send + 'static,
    Running: Future<Output = ()> + Send + 'static,
{
    let upgrade = upgrade
        .max_message_size(MESSAGE_BYTES_MAX)
        .protocols([TUNNEL]);
    if upgrade.selected_protocol().is_none() {
        return Err(Failure::bad_request(format!(
            "unable to upgrade: the client speaks none of [{TUNNEL}]"
        )));
    }
    Ok(upgrade.on_upgrade(move |socket| async move {
        let (near, far) = tokio::io::duplex(TUNNEL_BYTES);
        let running = tokio::spawn(run(far));
        carry(socket, near).await;
        // What went through has seen the end of the connection.
        let _ = running.await;
    }))
}

/// Bytes of messages in, messages of bytes out, until one side ends.
async fn carry(socket: WebSocket, near: DuplexStream) {
    let (mut sink, mut stream) = socket.split();
    let (mut reader, mut writer) = tokio::io::split(near);
    let inwards = async move {
        while let Some(Ok(message)) = stream.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Close(_) => break,
                Message::Text(_) | Message::Ping(_) | Message::Pong(_) => continue,
            };
            if writer.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = writer.shutdown().await;
    };
    let outwards = async move {
        let mut piece = vec![0; TUNNEL_BYTES];
        while let Ok(count @ 1..) = reader.read(&mut piece).await {
            let message = Message::Binary(Bytes::copy_from_slice(&piece[..count]));
            if sink.send(message).await.is_err() {
                return;
            }
        }
        close(sink).await;
    };
    tokio::select! {
        () = inwards => {}
        () = outwards => {}
    }
}
