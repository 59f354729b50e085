//! The control socket: how commands reach the running server.
//!
//! HTTP/1.1 over a unix socket that only root can open. The server's side is in the roof; this is
//! the client's, and the words that both use.
//!
//! ```text
//! GET    /status                  → Status
//! GET    /ready                   → Status, once the start is complete
//! POST   /down?grace=SECONDS      → 200 when every container and link is gone; the server then ends
//! GET    /images                  → [ImageLine]
//! POST   /images/load             archive → [ImageLine]
//! POST   /images/import?reference archive → ImageLine
//! DELETE /images?name&force       → Removed
//! ```

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

/// What runs, and what is not ready and why.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// `starting`, `running`, `stopping` or `stopped`.
    pub state: State,
    /// Everything that `wharf up` waits for is there.
    pub ready: bool,
    /// What is being waited for, and what has failed.
    pub not_ready: Vec<NotReady>,
    /// The server's process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// When it started, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// Versions of the server that runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<crate::Version>,
    /// Name of the instance on this machine.
    pub instance: String,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Addresses>,
    /// Name of this machine's node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Sandboxes (pods) and containers that run on this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running: Option<Running>,
}

/// Of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It answers, and is not ready.
    Starting,
    /// It answers, and is ready.
    Running,
    /// It was told to end, and gives its containers time.
    Stopping,
    /// No server has this data directory.
    Stopped,
}

/// Something that is not ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotReady {
    /// What.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Where things are reached.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Addresses {
    /// URL of the API, for people.
    pub api: String,
    /// URL of the API, for pods.
    pub api_in_cluster: String,
    /// The cluster's name server.
    pub dns: String,
    /// This machine's node.
    pub node: String,
    /// Addresses of pods.
    pub pod_cidr: String,
    /// Addresses of Services.
    pub service_cidr: String,
}

/// What runs on this machine.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Running {
    /// Sandboxes.
    pub pods: usize,
    /// Containers.
    pub containers: usize,
}

/// One image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ImageLine {
    /// Names, in full form.
    pub references: Vec<String>,
    /// `sha256:…` of its config.
    pub id: String,
    /// Unpacked size in bytes.
    pub size: u64,
    /// When it was made, RFC 3339, if it says so.
    pub created: Option<String>,
}

/// What removing an image did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Removed {
    /// Names taken away.
    pub untagged: Vec<String>,
    /// Ids of images that are gone.
    pub deleted: Vec<String>,
}

/// Why a request was refused.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Message {
    /// For people.
    pub message: String,
}

/// A line that the server writes for `wharf up` while it starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Progress {
    /// What is being done now.
    Step {
        /// For people.
        message: String,
    },
    /// Everything is ready.
    Ready,
    /// It cannot start.
    Failed {
        /// Why.
        message: String,
    },
}

/// The server went away before it answered: it was ending, or was killed.
#[derive(Debug, thiserror::Error)]
#[error("the server ended the connection; `wharf status` says whether it still runs")]
pub struct Ended(#[source] hyper::Error);

/// A connection to the server of one instance.
pub struct Control {
    sender: hyper::client::conn::http1::SendRequest<BoxBody<Bytes, io::Error>>,
}

impl Control {
    /// Connects; `None` when no server listens.
    pub async fn connect(socket: &Path) -> anyhow::Result<Option<Control>> {
        let stream = match UnixStream::connect(socket).await {
            Ok(stream) => stream,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            Err(error) => {
                return Err(error).with_context(|| format!("connect to {}", socket.display()));
            }
        };
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .context("speak to the server")?;
        tokio::spawn(connection);
        Ok(Some(Control { sender }))
    }

    /// Asks, and reads the answer. The error is [`Ended`] if the server went away meanwhile.
    pub async fn ask<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
    ) -> anyhow::Result<T> {
        let body = Full::new(Bytes::new())
            .map_err(|never| match never {})
            .boxed();
        self.send(method, path, body).await
    }

    /// Sends a stream of bytes, and reads the answer.
    pub async fn send_stream<T: DeserializeOwned>(
        &mut self,
        path: &str,
        stream: impl tokio::io::AsyncRead + Send + Sync + Unpin + 'static,
    ) -> anyhow::Result<T> {
        let frames = tokio_util::io::ReaderStream::with_capacity(stream, 256 * 1024);
        let frames = futures::StreamExt::map(frames, |chunk| chunk.map(Frame::data));
        self.send(Method::POST, path, BodyExt::boxed(StreamBody::new(frames)))
            .await
    }

    async fn send<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: BoxBody<Bytes, io::Error>,
    ) -> anyhow::Result<T> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "wharf")
            .body(body)?;
        let response = self.sender.send_request(request).await.map_err(Ended)?;
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .context("read the server's answer")?
            .to_bytes();
        if status != StatusCode::OK {
            match serde_json::from_slice::<Message>(&body) {
                Ok(refusal) => bail!("{}", refusal.message),
                Err(_) => bail!(
                    "the server answered {status}: it is of another version; end it (`wharf status` names its process; containers go on), and try again"
                ),
            }
        }
        serde_json::from_slice(&body).context(
            "the server's answer is of another version; restart it (`wharf down`, `wharf up`)",
        )
    }
}
