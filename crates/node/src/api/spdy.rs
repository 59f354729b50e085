//! Commands over SPDY/3.1, and the connection that port-forwards share with them.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use streams::channel::{STDERR, STDOUT, terminal_size};
use streams::remote_command::Version;
use streams::{Event, Headers, Mux, Side, StreamId};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use crate::api::Failure;
use crate::api::command::{Output, Remote, WAITING_MAX, Wanted};

/// The name of the protocol in `Upgrade`.
const NAME: &str = "SPDY/3.1";
/// The header that names what the streams carry.
const VERSION: &str = "x-stream-protocol-version";
/// How long a client may take to open the streams that it announced.
const STREAMS_WITHIN: Duration = Duration::from_secs(30);
/// Bytes that are read at once.
const PIECE: usize = 32 * 1024;
/// Events that wait to be handled.
const EVENTS_MAX: usize = 64;

/// Whether a request wants to go on in SPDY.
pub(super) fn is_asked_for<B>(request: &Request<B>) -> bool {
    let upgrade = request.headers().get(header::UPGRADE);
    upgrade.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(NAME.as_bytes()))
}

/// What the client says that its streams may carry.
pub(super) fn versions<B>(request: &Request<B>) -> Vec<String> {
    let headers = request.headers().get_all(VERSION).iter();
    headers
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|value| value.trim().to_owned())
        .collect()
}

/// Switches protocols; `run` gets the connection.
pub(super) fn upgrade<Run, Running>(
    mut request: Request<Body>,
    version: &str,
    run: Run,
) -> Result<Response, Failure>
where
    Run: FnOnce(TokioIo<hyper::upgrade::Upgraded>) -> Running + Send + 'static,
    Running: Future<Output = ()> + Send + 'static,
{
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgraded.await {
            Ok(upgraded) => run(TokioIo::new(upgraded)).await,
            Err(error) => tracing::debug!(%error, "a connection was not upgraded"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(NAME));
    if !version.is_empty() {
        let version = HeaderValue::from_str(version).map_err(Failure::internal)?;
        headers.insert(VERSION, version);
    }
    Ok(response)
}

/// One end of a connection, to be written to by many.
pub(super) struct Connection<S> {
    mux: parking_lot::Mutex<Mux>,
    writer: tokio::sync::Mutex<WriteHalf<S>>,
}

impl<S: AsyncRead + AsyncWrite + Send + 'static> Connection<S> {
    /// Takes a connection over. What the client does comes out of the channel, which ends with the
    /// connection.
    pub(super) fn start(stream: S) -> (Arc<Connection<S>>, mpsc::Receiver<Event>) {
        let (reader, writer) = tokio::io::split(stream);
        let connection = Arc::new(Connection {
            mux: parking_lot::Mutex::new(Mux::new(Side::Server)),
            writer: tokio::sync::Mutex::new(writer),
        });
        let (sender, receiver) = mpsc::channel(EVENTS_MAX);
        tokio::spawn(read(connection.clone(), reader, sender));
        (connection, receiver)
    }

    /// Does something, and writes what comes of it.
    async fn act<T>(&self, act: impl FnOnce(&mut Mux) -> T) -> io::Result<T> {
        let result = act(&mut self.mux.lock());
        let mut writer = self.writer.lock().await;
        loop {
            // Taken under the writer's lock, so that frames go out in their order.
            let bytes = self.mux.lock().output();
            if bytes.is_empty() {
                return Ok(result);
            }
            writer.write_all(&bytes).await?;
            writer.flush().await?;
        }
    }

    pub(super) async fn accept(&self, id: StreamId) -> io::Result<()> {
        self.act(|mux| mux.reply(id, &Headers::default())).await
    }

    pub(super) async fn refuse(&self, id: StreamId) -> io::Result<()> {
        self.act(|mux| mux.refuse(id)).await
    }

    /// False when nobody takes it any more.
    pub(super) async fn send(&self, id: StreamId, bytes: &[u8]) -> io::Result<bool> {
        self.act(|mux| mux.send(id, bytes)).await
    }

    pub(super) async fn finish(&self, id: StreamId) -> io::Result<()> {
        self.act(|mux| mux.finish(id)).await
    }

    pub(super) async fn reset(&self, id: StreamId) -> io::Result<()> {
        self.act(|mux| mux.reset(id)).await
    }

    /// Ends the connection in order.
    pub(super) async fn close(&self) {
        // The client may have been quicker.
        let _ = self.act(Mux::go_away).await;
        let _ = self.writer.lock().await.shutdown().await;
    }
}

async fn read<S: AsyncRead + AsyncWrite + Send + 'static>(
    connection: Arc<Connection<S>>,
    mut reader: ReadHalf<S>,
    events: mpsc::Sender<Event>,
) {
    let mut piece = vec![0; PIECE];
    loop {
        let count = tokio::select! {
            result = reader.read(&mut piece) => match result {
                Ok(count @ 1..) => count,
                Ok(0) | Err(_) => return,
            },
            () = events.closed() => return,
        };
        let received = connection.act(|mux| mux.receive(&piece[..count])).await;
        if let Ok(Err(error)) = &received {
            tracing::debug!(%error, "a SPDY connection is given up");
        }
        loop {
            let event = connection.mux.lock().event();
            let Some(event) = event else { break };
            if events.send(event).await.is_err() {
                return;
            }
        }
        if !matches!(received, Ok(Ok(()))) {
            return;
        }
    }
}

/// Switches to SPDY, and hands the client's end to `run` when all streams are there.
pub(super) fn command<Run, Running>(
    request: Request<Body>,
    version: Version,
    wanted: Wanted,
    run: Run,
) -> Result<Response, Failure>
where
    Run: FnOnce(Remote) -> Running + Send + 'static,
    Running: Future<Output = ()> + Send + 'static,
{
    let name = match versions(&request).is_empty() {
        true => "",
        false => version.name(),
    };
    upgrade(request, name, move |stream| async move {
        let (connection, mut events) = Connection::start(stream);
        let collected = collect(&connection, &mut events, version, wanted);
        match tokio::time::timeout(STREAMS_WITHIN, collected).await {
            Ok(Some(collected)) => serve(&connection, events, collected, version, run).await,
            Ok(None) => {}
            Err(_) => tracing::debug!("a client did not open its streams in time"),
        }
        connection.close().await;
    })
}

/// The streams of a command, and what came on them before the last one was open.
#[derive(Default)]
struct Collected {
    by_type: HashMap<String, StreamId>,
    early: Vec<Event>,
}

async fn collect<S: AsyncRead + AsyncWrite + Send + 'static>(
    connection: &Connection<S>,
    events: &mut mpsc::Receiver<Event>,
    version: Version,
    wanted: Wanted,
) -> Option<Collected> {
    let expected = [
        (true, "error"),
        (wanted.stdin, "stdin"),
        (wanted.stdout, "stdout"),
        (wanted.stderr, "stderr"),
        (wanted.tty && version.has_resize(), "resize"),
    ];
    let mut collected = Collected::default();
    let is_complete = |collected: &Collected| {
        expected
            .iter()
            .all(|(wanted, name)| !wanted || collected.by_type.contains_key(*name))
    };
    while !is_complete(&collected) {
        match events.recv().await? {
            Event::Opened { id, headers, .. } => {
                let kind = headers.get("streamtype").unwrap_or_default().to_owned();
                let is_expected = expected
                    .iter()
                    .any(|(wanted, name)| *wanted && *name == kind);
                if is_expected {
                    connection.accept(id).await.ok()?;
                    collected.by_type.insert(kind, id);
                } else {
                    connection.refuse(id).await.ok()?;
                }
            }
            other => collected.early.push(other),
        }
    }
    Some(collected)
}

async fn serve<S, Run, Running>(
    connection: &Arc<Connection<S>>,
    mut events: mpsc::Receiver<Event>,
    collected: Collected,
    version: Version,
    run: Run,
) where
    S: AsyncRead + AsyncWrite + Send + 'static,
    Run: FnOnce(Remote) -> Running + Send + 'static,
    Running: Future<Output = ()> + Send + 'static,
{
    let (stdin, stdin_of_remote) = mpsc::channel(WAITING_MAX);
    let (sizes, sizes_of_remote) = mpsc::channel(WAITING_MAX);
    let (output_of_remote, mut output) = mpsc::channel(WAITING_MAX);
    let remote = Remote {
        stdin: stdin_of_remote,
        sizes: sizes_of_remote,
        output: output_of_remote,
    };
    let Collected { by_type, early } = collected;
    let input = Input {
        stdin_id: by_type.get("stdin").copied(),
        resize_id: by_type.get("resize").copied(),
        stdin: Some(stdin),
        sizes,
    };
    let mut reading = tokio::spawn(async move {
        let mut input = input;
        for event in early {
            input.take(event).await;
        }
        while let Some(event) = events.recv().await {
            input.take(event).await;
        }
    });
    tokio::spawn(run(remote));
    loop {
        let next = tokio::select! {
            next = output.recv() => next,
            // The client is gone. Dropping `output` tells the process's side.
            _ = &mut reading => return,
        };
        let sent = match next {
            Some(Output::Data(channel, bytes)) => {
                let name = match channel {
                    STDOUT => "stdout",
                    STDERR => "stderr",
                    _ => continue,
                };
                let Some(id) = by_type.get(name) else {
                    continue;
                };
                connection.send(*id, &bytes).await.map(drop)
            }
            Some(Output::End(ending)) => {
                end(connection, &by_type, ending.text(version)).await;
                break;
            }
            None => break,
        };
        if sent.is_err() {
            break;
        }
    }
    reading.abort();
}

/// Closes the output first: by then the client has read all of it, and hears how it ended.
async fn end<S: AsyncRead + AsyncWrite + Send + 'static>(
    connection: &Connection<S>,
    by_type: &HashMap<String, StreamId>,
    text: Option<Bytes>,
) {
    let of = |name: &str| by_type.get(name).copied();
    let write = async {
        for id in [of("stdout"), of("stderr")].into_iter().flatten() {
            connection.finish(id).await?;
        }
        if let Some(id) = of("error") {
            if let Some(text) = text {
                connection.send(id, &text).await?;
            }
            connection.finish(id).await?;
        }
        for id in [of("stdin"), of("resize")].into_iter().flatten() {
            connection.finish(id).await?;
        }
        io::Result::Ok(())
    };
    // A client that left before the end has missed it.
    let _ = write.await;
}

struct Input {
    stdin_id: Option<StreamId>,
    resize_id: Option<StreamId>,
    stdin: Option<mpsc::Sender<Bytes>>,
    sizes: mpsc::Sender<(u16, u16)>,
}

impl Input {
    async fn take(&mut self, event: Event) {
        match event {
            Event::Data { id, bytes } if Some(id) == self.stdin_id => {
                if let Some(stdin) = &self.stdin
                    && stdin.send(bytes).await.is_err()
                {
                    // The process takes no more; the rest of the session goes on.
                    self.stdin = None;
                }
            }
            Event::Data { id, bytes } if Some(id) == self.resize_id => {
                // Sizes may come several at once; the last one counts.
                for text in bytes.split(|byte| *byte == b'\n') {
                    if let Some(size) = terminal_size(text) {
                        let _ = self.sizes.try_send(size);
                    }
                }
            }
            Event::Finished(id) | Event::Reset(id) if Some(id) == self.stdin_id => {
                self.stdin = None;
            }
            _ => {}
        }
    }
}
