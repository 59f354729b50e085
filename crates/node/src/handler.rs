//! The actions that probes and hooks are made of: run a command, ask by HTTP, open a connection.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engine::{ContainerId, Engine, ExecSpec};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::failure;

/// The most of a command's output, or of an answer's body, that is kept.
const OUTPUT_BYTES_MAX: usize = 10 * 1024;
/// Redirects to the same host that are followed.
const REDIRECTS_MAX: usize = 10;

/// Why an action could not be done, or was answered by an error.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandlerError {
    #[error("couldn't find port: {0}")]
    NoPort(String),
    #[error("invalid port number: {0}")]
    BadPort(i32),
    #[error("invalid URL {url}: {source}")]
    Url {
        url: String,
        #[source]
        source: http::Error,
    },
    #[error("dial tcp {address}: connect: {}", plain(source))]
    Connect {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("Get \"{url}\": {message}")]
    Http { url: String, message: String },
}

/// Why a command could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecFailure {
    #[error("{}", failure::of_exec(.0))]
    Start(#[source] engine::Error),
    #[error("command timed out: \"{command}\" timed out after {}", seconds(*limit))]
    TimedOut { command: String, limit: Duration },
}

/// `1s`, as Go prints durations of whole seconds.
pub(crate) fn seconds(limit: Duration) -> String {
    match limit.as_secs() {
        minutes if minutes >= 60 && minutes % 60 == 0 => format!("{}m0s", minutes / 60),
        seconds if seconds >= 60 => format!("{}m{}s", seconds / 60, seconds % 60),
        seconds => format!("{seconds}s"),
    }
}

/// The error without Rust's ` (os error 111)`, in lower case: as Go prints it.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text.to_lowercase()
}

/// The number of a port that may be given by its name.
pub(crate) fn port(port: &IntOrString, container: &Container) -> Result<u16, HandlerError> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = container
                .ports
                .iter()
                .flatten()
                .find(|port| port.name.as_deref() == Some(name))
                .map(|port| port.container_port);
            match named.or_else(|| name.parse().ok()) {
                Some(number) => number,
                None => return Err(HandlerError::NoPort(name.clone())),
            }
        }
    };
    u16::try_from(number)
        .ok()
        .filter(|number| *number > 0)
        .ok_or(HandlerError::BadPort(number))
}

/// Runs a command in a container; gives its exit code and what it wrote (both streams, at most 10 KiB).
pub(crate) async fn exec(
    engine: &dyn Engine,
    id: &ContainerId,
    spec: ExecSpec,
    limit: Duration,
) -> Result<(i32, String), ExecFailure> {
    let command = spec.argv.join(" ");
    let run = engine.exec(id, spec).await.map_err(ExecFailure::Start)?;
    let kill = run.kill.clone();
    // A probe that is abandoned leaves no command behind.
    let guard = KillOnDrop(Some(kill));
    let mut output = Vec::new();
    let mut errors = Vec::new();
    let mut stdout = run.streams.stdout;
    let mut stderr = run.streams.stderr;
    let finish = async {
        let read_errors = async {
            if let Some(stderr) = &mut stderr {
                collect(stderr, &mut errors).await;
            }
        };
        let (_, (), code) = tokio::join!(collect(&mut stdout, &mut output), read_errors, run.exit);
        code
    };
    let code = match tokio::time::timeout(limit, finish).await {
        Ok(code) => code.map_err(ExecFailure::Start)?,
        Err(_) => return Err(ExecFailure::TimedOut { command, limit }),
    };
    guard.disarm();
    output.append(&mut errors);
    output.truncate(OUTPUT_BYTES_MAX);
    Ok((code, String::from_utf8_lossy(&output).into_owned()))
}

struct KillOnDrop(Option<Arc<dyn Fn() + Send + Sync>>);

impl KillOnDrop {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(kill) = &self.0 {
            kill();
        }
    }
}

/// Reads to the end, keeping the first 10 KiB.
async fn collect(reader: &mut engine::Reader, output: &mut Vec<u8>) {
    let mut buffer = [0_u8; 4096];
    while let Ok(count) = reader.read(&mut buffer).await {
        if count == 0 {
            return;
        }
        let room = OUTPUT_BYTES_MAX.saturating_sub(output.len());
        output.extend_from_slice(&buffer[..count.min(room)]);
    }
}

/// Opens a connection.
pub(crate) async fn connect(host: &str, port: u16) -> Result<TcpStream, HandlerError> {
    let fail = |source| HandlerError::Connect {
        address: join_host_port(host, port),
        source,
    };
    let stream = TcpStream::connect((host.trim_matches(['[', ']']), port))
        .await
        .map_err(fail)?;
    Ok(stream)
}

pub(crate) fn join_host_port(host: &str, port: u16) -> String {
    match host.contains(':') && !host.starts_with('[') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

/// A GET request to a container.
pub(crate) struct HttpGet {
    is_tls: bool,
    host: String,
    port: u16,
    path: String,
    headers: Vec<(String, String)>,
    user_agent: &'static str,
}

/// What was answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
    /// Set when it was a redirect to elsewhere, which is not followed.
    pub(crate) elsewhere: bool,
}

impl HttpGet {
    pub(crate) fn new(
        action: &HTTPGetAction,
        container: &Container,
        pod_address: &str,
        user_agent: &'static str,
    ) -> Result<HttpGet, HandlerError> {
        let host = action.host.as_deref().filter(|host| !host.is_empty());
        let path = action.path.as_deref().unwrap_or_default();
        let slash = if path.starts_with('/') { "" } else { "/" };
        let headers = action.http_headers.iter().flatten();
        Ok(HttpGet {
            is_tls: action
                .scheme
                .as_deref()
                .is_some_and(|s| s.eq_ignore_ascii_case("https")),
            host: host.unwrap_or(pod_address).to_owned(),
            port: port(&action.port, container)?,
            path: format!("{slash}{path}"),
            headers: headers.map(|h| (h.name.clone(), h.value.clone())).collect(),
            user_agent,
        })
    }

    fn url(&self, path: &str) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://{}{path}", join_host_port(&self.host, self.port))
    }

    /// Sends it, following redirects to the same host. Certificates are not verified.
    pub(crate) async fn send(&self) -> Result<Answer, HandlerError> {
        let mut path = self.path.clone();
        for _ in 0..REDIRECTS_MAX {
            match self.send_once(&path).await? {
                Once::Answer(answer) => return Ok(answer),
                Once::Redirect(next) => path = next,
            }
        }
        Err(HandlerError::Http {
            url: self.url(&self.path),
            message: format!("stopped after {REDIRECTS_MAX} redirects"),
        })
    }

    async fn send_once(&self, path: &str) -> Result<Once, HandlerError> {
        let url = self.url(path);
        let fail = |message: String| HandlerError::Http {
            url: url.clone(),
            message,
        };
        let stream = connect(&self.host, self.port)
            .await
            .map_err(|error| fail(error.to_string()))?;
        if self.is_tls {
            let name =
                ServerName::try_from(self.host.clone()).map_err(|error| fail(error.to_string()))?;
            let stream = TlsConnector::from(pki::unverified_client())
                .connect(name, stream)
                .await
                .map_err(|error| fail(error.to_string()))?;
            self.exchange(stream, path, &url).await
        } else {
            self.exchange(stream, path, &url).await
        }
    }

    async fn exchange<S>(&self, stream: S, path: &str, url: &str) -> Result<Once, HandlerError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let fail = |message: String| HandlerError::Http {
            url: url.to_owned(),
            message,
        };
        let request = self.request(path).map_err(|source| HandlerError::Url {
            url: url.to_owned(),
            source,
        })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
                .await
                .map_err(|error| fail(error.to_string()))?;
        let exchange = async {
            let answer = sender
                .send_request(request)
                .await
                .map_err(|error| fail(error.to_string()))?;
            let status = answer.status().as_u16();
            let location = answer
                .headers()
                .get(http::header::LOCATION)
                .and_then(|value| value.to_str().ok())
                .filter(|_| matches!(status, 301 | 302 | 303 | 307 | 308))
                .map(str::to_owned);
            let mut body = Vec::new();
            let mut incoming = answer.into_body();
            while let Some(frame) = incoming.frame().await {
                let frame = frame.map_err(|error| fail(error.to_string()))?;
                let Some(data) = frame.data_ref() else {
                    continue;
                };
                let room = OUTPUT_BYTES_MAX.saturating_sub(body.len());
                body.extend_from_slice(&data[..data.len().min(room)]);
                if body.len() == OUTPUT_BYTES_MAX {
                    break;
                }
            }
            let body = String::from_utf8_lossy(&body).into_owned();
            Ok(
                match location.map(|location| self.on_same_host(&location)) {
                    Some(Some(path)) => Once::Redirect(path),
                    elsewhere => Once::Answer(Answer {
                        status,
                        body,
                        elsewhere: elsewhere.is_some(),
                    }),
                },
            )
        };
        tokio::select! {
            result = exchange => result,
            // The connection only ends before the exchange when it broke.
            Err(error) = connection => Err(fail(error.to_string())),
        }
    }

    fn request(&self, path: &str) -> Result<http::Request<Empty<Bytes>>, http::Error> {
        let mut request = http::Request::get(path);
        let has = |name: &str| {
            self.headers
                .iter()
                .any(|(known, _)| known.eq_ignore_ascii_case(name))
        };
        if !has("host") {
            request = request.header("Host", join_host_port(&self.host, self.port));
        }
        if !has("user-agent") {
            request = request.header("User-Agent", format!("{}/1.36", self.user_agent));
        }
        if !has("accept") {
            request = request.header("Accept", "*/*");
        }
        for (name, value) in self.headers.iter().filter(|(_, value)| !value.is_empty()) {
            request = request.header(name, value);
        }
        request.header("Connection", "close").body(Empty::new())
    }

    /// The path of a redirect that stays here.
    fn on_same_host(&self, location: &str) -> Option<String> {
        if location.starts_with('/') && !location.starts_with("//") {
            return Some(location.to_owned());
        }
        let uri: http::Uri = location.parse().ok()?;
        let is_tls = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let stays =
            uri.host() == Some(self.host.as_str()) && port == self.port && is_tls == self.is_tls;
        stays.then(|| {
            uri.path_and_query()
                .map_or_else(|| "/".to_owned(), ToString::to_string)
        })
    }
}

enum Once {
    Answer(Answer),
    Redirect(String),
}
