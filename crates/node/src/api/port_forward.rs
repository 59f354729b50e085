//! `port-forward`: pairs of SPDY streams, raw or inside a WebSocket.
//!
//! For each connection to its local port the client opens two streams with the same `requestid`: one
//! for the data, and one for a text if something goes wrong.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use engine::SandboxId;
use http::Request;
use k8s_openapi::api::core::v1::Pod;
use streams::{Event, Headers, StreamId};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::api::spdy::{self, Connection};
use crate::api::{Failure, find_pod, observe, websocket};
use crate::context::Context;
use crate::pod;

/// What the streams carry, as the client names it.
const PROTOCOL: &str = "portforward.k8s.io";
/// Pieces of data that wait to be written to the pod.
const WAITING_MAX: usize = 16;
/// Bytes that are read at once.
const PIECE: usize = 32 * 1024;
/// Connections at once, and streams that wait for their other half.
const FORWARDS_MAX: usize = 512;

pub(super) async fn answer(
    State(context): State<Arc<Context>>,
    Path((namespace, name)): Path<(String, String)>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let pod = find_pod(&context, &namespace, &name, None)?;
    forward(context, &pod, request).await
}

pub(super) async fn answer_uid(
    State(context): State<Arc<Context>>,
    Path((namespace, name, uid)): Path<(String, String, String)>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let pod = find_pod(&context, &namespace, &name, Some(&uid))?;
    forward(context, &pod, request).await
}

async fn forward(
    context: Arc<Context>,
    pod: &Pod,
    request: Request<Body>,
) -> Result<Response, Failure> {
    if !observe(&context, pod).await?.alive {
        let name = pod::name(pod);
        return Err(Failure::internal(format!(
            "pod \"{name}\" has no running sandbox"
        )));
    }
    let sandbox = SandboxId(pod::uid(pod).to_owned());
    if spdy::is_asked_for(&request) {
        let offered = spdy::versions(&request);
        if !offered.is_empty() && !offered.iter().any(|name| name == PROTOCOL) {
            return Err(Failure::bad_request(format!(
                "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts [\"{PROTOCOL}\"]"
            )));
        }
        return spdy::upgrade(request, PROTOCOL, move |stream| {
            serve(context, sandbox, stream)
        });
    }
    let upgrade = websocket::upgrade(request).await?;
    websocket::tunnel(upgrade, move |stream| serve(context, sandbox, stream))
}

/// Streams that wait for their other half.
#[derive(Default)]
struct Half {
    data: Option<StreamId>,
    error: Option<StreamId>,
    port: String,
}

/// Serves one client until it is gone.
async fn serve<S>(context: Arc<Context>, sandbox: SandboxId, stream: S)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (connection, mut events) = Connection::start(stream);
    let mut session = Session {
        context,
        sandbox,
        connection: connection.clone(),
        halves: HashMap::new(),
        inputs: HashMap::new(),
        forwards: JoinSet::new(),
    };
    while let Some(event) = events.recv().await {
        session.take(event).await;
        while session.forwards.try_join_next().is_some() {}
    }
    // The client is gone: what is still open to the pod is closed with the session.
    drop(session);
    connection.close().await;
}

struct Session<S> {
    context: Arc<Context>,
    sandbox: SandboxId,
    connection: Arc<Connection<S>>,
    halves: HashMap<String, Half>,
    /// Where the data of a stream goes.
    inputs: HashMap<StreamId, mpsc::Sender<Bytes>>,
    forwards: JoinSet<()>,
}

impl<S: AsyncRead + AsyncWrite + Send + 'static> Session<S> {
    async fn take(&mut self, event: Event) {
        match event {
            Event::Opened { id, headers, .. } => self.opened(id, &headers).await,
            Event::Data { id, bytes } => {
                let Some(input) = self.inputs.get(&id) else {
                    return;
                };
                // A pod that reads slowly slows the whole connection, as upstream has it.
                if input.send(bytes).await.is_err() {
                    self.inputs.remove(&id);
                }
            }
            Event::Finished(id) => {
                self.inputs.remove(&id);
            }
            Event::Reset(id) => {
                self.inputs.remove(&id);
                self.halves.retain(|_, half| half.error != Some(id));
            }
            Event::Replied { .. } | Event::Pong(_) | Event::GoAway => {}
        }
    }

    async fn opened(&mut self, id: StreamId, headers: &Headers) {
        let kind = headers.get("streamtype").unwrap_or_default();
        let port = headers.get("port").unwrap_or_default();
        let is_known = matches!(kind, "data" | "error") && !port.is_empty();
        let is_full = self.forwards.len() >= FORWARDS_MAX
            || (kind == "error" && self.halves.len() >= FORWARDS_MAX);
        if !is_known || is_full {
            // A connection that breaks here is noticed where it is read.
            let _ = self.connection.refuse(id).await;
            return;
        }
        let _ = self.connection.accept(id).await;
        // Old clients number no requests, but open the error stream right before the data stream.
        let request = headers.get("requestid").map_or_else(
            || match kind {
                "error" => id.to_string(),
                _ => id.saturating_sub(2).to_string(),
            },
            str::to_owned,
        );
        if kind == "data" {
            // From now on data may come.
            let (sender, receiver) = mpsc::channel(WAITING_MAX);
            self.inputs.insert(id, sender);
            self.halves.entry(request.clone()).or_default().data = Some(id);
            self.waiting(&request, port, receiver);
        } else {
            let half = self.halves.entry(request.clone()).or_default();
            half.error = Some(id);
            port.clone_into(&mut half.port);
        }
    }

    /// Clients open the error stream first, so with the data stream a pair is complete.
    fn waiting(&mut self, request: &str, port: &str, input: mpsc::Receiver<Bytes>) {
        let Some(half) = self.halves.remove(request) else {
            return;
        };
        let Some(data) = half.data else { return };
        let forward = Forward {
            context: self.context.clone(),
            sandbox: self.sandbox.clone(),
            connection: self.connection.clone(),
            data,
            error: half.error,
            port: port.to_owned(),
        };
        self.forwards.spawn(forward.run(input));
    }
}

/// One connection into the pod.
struct Forward<S> {
    context: Arc<Context>,
    sandbox: SandboxId,
    connection: Arc<Connection<S>>,
    data: StreamId,
    error: Option<StreamId>,
    port: String,
}

impl<S: AsyncRead + AsyncWrite + Send + 'static> Forward<S> {
    async fn run(self, input: mpsc::Receiver<Bytes>) {
        let result = self.carry(input).await;
        let close = async {
            if let Some(id) = self.error {
                if let Err(text) = &result {
                    self.connection.send(id, text.as_bytes()).await?;
                }
                self.connection.finish(id).await?;
            }
            match result {
                Ok(()) => self.connection.finish(self.data).await,
                Err(_) => self.connection.reset(self.data).await,
            }
        };
        // A client that is gone needs no goodbye.
        let _ = close.await;
    }

    async fn carry(&self, mut input: mpsc::Receiver<Bytes>) -> Result<(), String> {
        let (port, uid) = (&self.port, &self.sandbox.0);
        let failed = |why: String| {
            format!(
                "error forwarding port {port} to pod {uid}, uid : failed to execute portforward in network namespace: {why}"
            )
        };
        let number: u16 = port
            .parse()
            .map_err(|_| failed(format!("\"{port}\" is not a port")))?;
        let stream = self
            .context
            .engine
            .dial(&self.sandbox, number)
            .await
            .map_err(|error| {
                failed(format!(
                    "failed to connect to localhost:{number} inside namespace \"{uid}\": {error}"
                ))
            })?;
        let (mut reader, mut writer) = stream.into_split();
        let inwards = async move {
            while let Some(bytes) = input.recv().await {
                if writer.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            let _ = writer.shutdown().await;
        };
        let outwards = async {
            let mut piece = vec![0; PIECE];
            while let Ok(count @ 1..) = reader.read(&mut piece).await {
                match self.connection.send(self.data, &piece[..count]).await {
                    Ok(true) => {}
                    Ok(false) | Err(_) => return,
                }
            }
        };
        // What the client still sends goes on until the pod has closed its side.
        tokio::select! {
            () = outwards => {}
            () = async {
                inwards.await;
                std::future::pending::<()>().await;
            } => {}
        }
        Ok(())
    }
}
