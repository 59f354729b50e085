//! A client that costs little: HTTP/1.1 over TLS, one connection per caller, bodies as they come; and
//! HTTP/2 for many watches over one connection, as client-go has them.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use anyhow::{Context, bail};
use base64::Engine as _;
use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Everything is measured in a namespace of its own.
pub(crate) const NAMESPACE: &str = "wharf-bench";

/// Requests that Kubernetes 1.36 lets one HTTP/2 connection have open.
const STREAMS: usize = 100;
/// Bytes that are read from a connection at once.
const READ_BYTES: usize = 64 * 1024;

/// A cluster.
#[derive(Clone)]
pub(crate) struct Api {
    address: String,
    host: ServerName<'static>,
    tls: TlsConnector,
    /// The same, and asks for HTTP/2.
    tls_http2: TlsConnector,
}

type Stream = TokioIo<TlsStream<BufReader<TcpStream>>>;

/// One connection.
pub(crate) struct Connection(http1::SendRequest<Full<Bytes>>);

impl Api {
    pub(crate) fn of_kubeconfig(path: &Path) -> anyhow::Result<Api> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let config: Value = serde_saphyr::from_str(&text)
            .map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
        let current = named(&config["contexts"], &config["current-context"])?;
        let cluster = &named(&config["clusters"], &current["context"]["cluster"])?["cluster"];
        let user = &named(&config["users"], &current["context"]["user"])?["user"];
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&blob(
            cluster,
            "certificate-authority",
        )?)?)?;
        let certificate = CertificateDer::from_pem_slice(&blob(user, "client-certificate")?)?;
        let key = PrivateKeyDer::from_pem_slice(&blob(user, "client-key")?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)?;
        let mut tls_http2 = tls.clone();
        tls_http2.alpn_protocols = vec![b"h2".to_vec()];
        let server: Uri = cluster["server"]
            .as_str()
            .context("the cluster has no server")?
            .parse()?;
        let host = server.host().context("the server has no host")?.to_string();
        Ok(Api {
            address: format!("{host}:{}", server.port_u16().unwrap_or(443)),
            host: ServerName::try_from(host)?,
            tls: TlsConnector::from(Arc::new(tls)),
            tls_http2: TlsConnector::from(Arc::new(tls_http2)),
        })
    }

    pub(crate) async fn connect(&self) -> anyhow::Result<Connection> {
        let (sender, connection) = http1::handshake(self.stream(&self.tls).await?).await?;
        tokio::spawn(connection);
        Ok(Connection(sender))
    }

    /// Begins a watch on a connection of its own.
    pub(crate) async fn watch(&self, path: &str) -> anyhow::Result<Watch> {
        let (mut sender, connection) = http1::handshake(self.stream(&self.tls).await?).await?;
        let mut driver: Driver = Box::pin(async move {
            // That it ended is seen in the body, with the reason.
            connection.await.ok();
        });
        let asked = sender.send_request(request(Method::GET, path, "bench", Bytes::new())?);
        let response = tokio::select! {
            response = asked => response?,
            () = &mut driver => bail!("watch {path}: the connection ended"),
        };
        let body = watched(path, response)?;
        Ok(Watch {
            body,
            buffer: Vec::new(),
            driver: Some(driver),
            _sender: Some(sender),
        })
    }

    /// Begins `count` watches over as few HTTP/2 connections as a genuine server allows.
    pub(crate) async fn watches_together(
        &self,
        path: &str,
        count: usize,
    ) -> anyhow::Result<Vec<Watch>> {
        let address = format!("https://{}{path}", self.address);
        let mut watches = Vec::new();
        while watches.len() < count {
            let stream = self.stream(&self.tls_http2).await?;
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
            tokio::spawn(connection);
            for _ in watches.len()..count.min(watches.len() + STREAMS) {
                let asked = request(Method::GET, &address, &self.address, Bytes::new())?;
                watches.push(Watch {
                    body: watched(path, sender.send_request(asked).await?)?,
                    buffer: Vec::new(),
                    driver: None,
                    _sender: None,
                });
            }
        }
        Ok(watches)
    }

    async fn stream(&self, tls: &TlsConnector) -> anyhow::Result<Stream> {
        let stream = TcpStream::connect(&self.address)
            .await
            .with_context(|| format!("connect to {}", self.address))?;
        stream.set_nodelay(true)?;
        // TLS reads 4 KB at a time.
        let stream = BufReader::with_capacity(READ_BYTES, stream);
        let stream = tls.connect(self.host.clone(), stream).await?;
        Ok(TokioIo::new(stream))
    }

    /// A fresh namespace with its default ServiceAccount.
    pub(crate) async fn prepare_namespace(&self) -> anyhow::Result<()> {
        self.remove_namespace().await?;
        let mut connection = self.connect().await?;
        let body =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        connection
            .ask(Method::POST, "/api/v1/namespaces", Some(&body))
            .await?;
        let path = format!(
            "/api/v1/namespaces/{NAMESPACE}/serviceaccounts?watch=1&fieldSelector=metadata.name%3Ddefault"
        );
        let mut accounts = self.watch(&path).await?;
        accounts.until(|event| event["type"] == "ADDED").await
    }

    /// Waits until the namespace is gone.
    pub(crate) async fn remove_namespace(&self) -> anyhow::Result<()> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}");
        let mut connection = self.connect().await?;
        if connection.status(Method::GET, &path).await? == StatusCode::NOT_FOUND {
            return Ok(());
        }
        let watching =
            format!("/api/v1/namespaces?watch=1&fieldSelector=metadata.name%3D{NAMESPACE}");
        let mut namespaces = self.watch(&watching).await?;
        connection.status(Method::DELETE, &path).await?;
        namespaces.until(|event| event["type"] == "DELETED").await
    }
}

impl Connection {
    async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<http::Response<Incoming>> {
        let request = request(method, path, "bench", body)?;
        self.0.ready().await?;
        Ok(self.0.send_request(request).await?)
    }

    /// The answer to a request, which must be a success.
    pub(crate) async fn ask(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Bytes> {
        let body = body.map(|body| body.to_string().into()).unwrap_or_default();
        let response = self.send(method.clone(), path, body).await?;
        let status = response.status();
        let answer = response.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            bail!(
                "{method} {path}: {status}: {}",
                String::from_utf8_lossy(&answer)
            );
        }
        Ok(answer)
    }

    /// Reads what is at `path` to the last byte and keeps none of it; how many there are.
    pub(crate) async fn read(&mut self, path: &str) -> anyhow::Result<usize> {
        let mut response = self.send(Method::GET, path, Bytes::new()).await?;
        if !response.status().is_success() {
            bail!("GET {path}: {}", response.status());
        }
        let mut count = 0;
        while let Some(frame) = response.frame().await {
            count += frame?.data_ref().map_or(0, Bytes::len);
        }
        Ok(count)
    }

    async fn status(&mut self, method: Method, path: &str) -> anyhow::Result<StatusCode> {
        let response = self.send(method, path, Bytes::new()).await?;
        let status = response.status();
        response.into_body().collect().await?;
        Ok(status)
    }
}

fn request(
    method: Method,
    uri: &str,
    host: &str,
    body: Bytes,
) -> anyhow::Result<Request<Full<Bytes>>> {
    Ok(Request::builder()
        .method(method)
        .uri(uri)
        .header("host", host)
        .header("accept", "application/json")
        .header("content-type", "application/json")
        .body(Full::new(body))?)
}

fn watched(path: &str, response: http::Response<Incoming>) -> anyhow::Result<Incoming> {
    if !response.status().is_success() {
        bail!("watch {path}: {}", response.status());
    }
    Ok(response.into_body())
}

/// Moves a connection's bytes.
type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Events as they come.
pub(crate) struct Watch {
    body: Incoming,
    buffer: Vec<u8>,
    /// The watch's own connection, moved by whoever waits for an event: a task of its own would have to
    /// be woken first, and what it costs would be counted for the server.
    driver: Option<Driver>,
    /// Dropped, it would end the connection.
    _sender: Option<http1::SendRequest<Full<Bytes>>>,
}

impl Watch {
    /// The next event's line.
    pub(crate) async fn line(&mut self) -> anyhow::Result<Vec<u8>> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.buffer) {
                let rest = self.buffer.split_off(end + 1);
                return Ok(std::mem::replace(&mut self.buffer, rest));
            }
            let frame = self.frame().await.context("the watch ended")??;
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }

    async fn frame(&mut self) -> Option<hyper::Result<Frame<Bytes>>> {
        if let Some(driver) = &mut self.driver {
            tokio::select! {
                biased;
                frame = self.body.frame() => return frame,
                () = driver => self.driver = None,
            }
        }
        self.body.frame().await
    }

    /// The next event.
    pub(crate) async fn event(&mut self) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&self.line().await?)?)
    }

    /// Reads until an event is what is waited for, for a minute and a half at most.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
        let reading = async {
            while !wanted(&self.event().await?) {}
            anyhow::Ok(())
        };
        tokio::time::timeout(std::time::Duration::from_secs(90), reading)
            .await
            .context("waited in vain for an event")?
    }
}

fn named<'a>(list: &'a Value, name: &Value) -> anyhow::Result<&'a Value> {
    let entries = list.as_array().into_iter().flatten();
    entries
        .into_iter()
        .find(|entry| entry["name"] == *name)
        .with_context(|| format!("the kubeconfig names {name} and has it not"))
}

fn blob(object: &Value, key: &str) -> anyhow::Result<Vec<u8>> {
    if let Some(data) = object[format!("{key}-data")].as_str() {
        return Ok(base64::engine::general_purpose::STANDARD.decode(data)?);
    }
    let path = object[key]
        .as_str()
        .with_context(|| format!("the kubeconfig has no {key}"))?;
    std::fs::read(path).with_context(|| format!("read {path}"))
}
