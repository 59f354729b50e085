//! Handing a request on to another HTTP server, as a reverse proxy does.
//!
//! What belongs to one connection (RFC 9110 section 7.6.1) and what proves who the caller is stays
//! behind; where the answer points to the server itself, in a header or in an HTML page
//! ([`super::links`]), it is made to point back through the API.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::client::conn::http1;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tower::ServiceExt as _;

use super::links::Links;
use crate::handle::Call;
use crate::serve::Peer;
use crate::status::Failure;
use crate::{Body, Service};

/// How long a connection may take to come about; upstream's dialer waits as long.
const TIMEOUT_CONNECT: Duration = Duration::from_secs(30);

/// Headers that concern one connection only.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
];
/// What a server behind the API may not allow on the API's behalf.
const CORS: [HeaderName; 4] = [
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
];
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");

/// How a server is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    Http,
    /// With a certificate that nobody checks: pods have none that the cluster could know.
    Https,
}

impl Scheme {
    /// The port where nothing else is said.
    pub(super) fn port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

/// Where a request goes.
pub(super) enum Target {
    /// A server on the network.
    Address { scheme: Scheme, address: SocketAddr },
    /// The agent of a node.
    Agent(Service),
}

impl Target {
    pub(super) fn address(scheme: Scheme, address: IpAddr, port: u16) -> Target {
        let address = SocketAddr::new(address, port);
        Target::Address { scheme, address }
    }
}

/// Sends the request on and returns the answer, which streams.
pub(super) async fn send(
    call: &Call,
    target: Target,
    mut request: Request<Body>,
) -> Result<Response<Body>, Failure> {
    let path = request.uri().path().to_owned();
    let (before, rest) = split_path(&path, call.resource.kind.namespaced());
    let upgrade = upgrade_of(&call.headers);
    if rest.is_empty()
        && upgrade.is_none()
        && matches!(*request.method(), Method::GET | Method::HEAD)
    {
        return redirect(before, request.uri().query());
    }
    let host = host_of(&request, &call.headers);
    prepare(call, &mut request, before, rest, upgrade.as_ref())?;
    let client = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let (mut response, server) = match target {
        // The agent is inside: it is to have the connection itself.
        Target::Agent(agent) => {
            if let Some(client) = client {
                request.extensions_mut().insert(client);
            }
            let answered = agent.oneshot(request).await;
            return Ok(answered.unwrap_or_else(|never| match never {}));
        }
        Target::Address { scheme, address } => {
            if let Some(host) = &host {
                request.headers_mut().insert(header::HOST, host.clone());
            }
            exchange(scheme, address, request).await?
        }
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        if let Some(client) = client {
            tokio::spawn(splice(client, server, call.drain.clone()));
        }
        return Ok(response);
    }
    let headers = response.headers_mut();
    remove_hop_by_hop(headers);
    CORS.iter().for_each(|name| drop(headers.remove(name)));
    let location = headers
        .get(header::LOCATION)
        .and_then(|location| location.to_str().ok())
        .and_then(|location| {
            let host = host.as_ref().and_then(|host| host.to_str().ok());
            back_through(location, before, host.unwrap_or_default())
        });
    if let Some(location) = location.and_then(|text| HeaderValue::try_from(text).ok()) {
        headers.insert(header::LOCATION, location);
    }
    if is_page(headers) {
        // Its length changes.
        headers.remove(header::CONTENT_LENGTH);
        response = response.map(|page| Links::new(before).of_body(page));
    }
    Ok(response)
}

/// Whether the answer is HTML that can be read.
fn is_page(headers: &HeaderMap) -> bool {
    let media = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next());
    let plain = headers
        .get(header::CONTENT_ENCODING)
        .is_none_or(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"identity"));
    plain && media.is_some_and(|media| media.trim().eq_ignore_ascii_case("text/html"))
}

/// The path up to and including `proxy`, and what follows it with its leading slash, both as they
/// came.
fn split_path(path: &str, namespaced: bool) -> (&str, &str) {
    // /api/v1/namespaces/NS/pods/NAME/proxy or /api/v1/nodes/NAME/proxy
    let mut left = if namespaced { 7 } else { 5 };
    let mut in_segment = false;
    for (index, byte) in path.bytes().enumerate() {
        if byte == b'/' && in_segment && left == 0 {
            return path.split_at(index);
        }
        if byte != b'/' && !in_segment {
            left -= 1;
        }
        in_segment = byte != b'/';
    }
    (path, "")
}

/// To the same place with a slash at its end, so that relative links of a page lead below it.
fn redirect(path: &str, query: Option<&str>) -> Result<Response<Body>, Failure> {
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    Response::builder()
        .status(StatusCode::MOVED_PERMANENTLY)
        .header(header::LOCATION, format!("{path}/{query}"))
        .body(Body::empty())
        .map_err(|error| Failure::bad_request(format!("redirect: {error}")))
}

/// The protocol that the client wants to change to.
fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let wanted = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    headers.get(header::UPGRADE).filter(|_| wanted).cloned()
}

/// The host that the client has asked.
fn host_of(request: &Request<Body>, headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(header::HOST).cloned().or_else(|| {
        let authority = request.uri().authority()?;
        HeaderValue::from_str(authority.as_str()).ok()
    })
}

/// Makes of the client's request the one that goes on.
fn prepare(
    call: &Call,
    request: &mut Request<Body>,
    before: &str,
    rest: &str,
    upgrade: Option<&HeaderValue>,
) -> Result<(), Failure> {
    let rest = if rest.is_empty() { "/" } else { rest };
    let query = request.uri().query();
    let target = match query {
        Some(query) => format!("{rest}?{query}"),
        None => rest.to_owned(),
    };
    let forwarded_uri = HeaderValue::try_from(format!("{before}{rest}"));
    *request.uri_mut() = target
        .parse::<Uri>()
        .map_err(|error| Failure::bad_request(format!("address the server: {error}")))?;
    *request.version_mut() = Version::HTTP_11;
    let mut headers = call.headers.clone();
    remove_hop_by_hop(&mut headers);
    headers.remove(header::UPGRADE);
    headers.remove(header::AUTHORIZATION);
    let wants_page = headers
        .get_all(header::ACCEPT)
        .iter()
        .any(|value| memchr::memmem::find(value.as_bytes(), b"text/html").is_some());
    if wants_page {
        // A page is to come as text, so that its links can be rewritten.
        headers.remove(header::ACCEPT_ENCODING);
    }
    let impersonating: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("impersonate-"))
        .cloned()
        .collect();
    for name in impersonating {
        headers.remove(name);
    }
    if let Some(protocol) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, protocol.clone());
    }
    if let Ok(uri) = forwarded_uri {
        headers.insert(FORWARDED_URI, uri);
    }
    if let Some(Peer(address)) = request.extensions().get::<Peer>() {
        let known = headers
            .get_all(FORWARDED_FOR)
            .iter()
            .filter_map(|value| value.to_str().ok());
        let chain: Vec<String> = known
            .map(str::to_owned)
            .chain([address.to_string()])
            .collect();
        if let Ok(chain) = HeaderValue::try_from(chain.join(", ")) {
            headers.insert(FORWARDED_FOR, chain);
        }
    }
    *request.headers_mut() = headers;
    Ok(())
}

/// Removes what concerns one connection, also what the connection itself names.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|token| HeaderName::try_from(token.trim()).ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Where a redirection of the server leads when it is followed through the API; `None` if it is
/// right as it is: relative, to another host, or through the API already.
fn back_through(location: &str, before: &str, asked_host: &str) -> Option<String> {
    let uri: Uri = location.parse().ok()?;
    let elsewhere = uri
        .authority()
        .is_some_and(|authority| authority.as_str() != asked_host);
    let path = uri.path();
    if elsewhere || !path.starts_with('/') || path.starts_with(before) {
        return None;
    }
    let query = uri
        .query()
        .map(|query| format!("?{query}"))
        .unwrap_or_default();
    let fragment = location
        .split_once('#')
        .map(|(_, fragment)| format!("#{fragment}"))
        .unwrap_or_default();
    Some(format!("{before}{path}{query}{fragment}"))
}

/// One request on a connection of its own, which ends with the answer.
async fn exchange(
    scheme: Scheme,
    address: SocketAddr,
    request: Request<Body>,
) -> Result<(Response<Body>, OnUpgrade), Failure> {
    let unreachable = |why: &dyn std::fmt::Display| {
        Failure::unavailable(format!("error trying to reach service: {why}"))
    };
    let dial = |why: &str| unreachable(&format_args!("dial tcp {address}: {why}"));
    let connecting = tokio::time::timeout(TIMEOUT_CONNECT, TcpStream::connect(address));
    let stream = match connecting.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(dial(&go_text(&error))),
        Err(_) => return Err(dial("i/o timeout")),
    };
    stream.set_nodelay(true).ok();
    let mut response = match scheme {
        Scheme::Http => over(stream, request).await,
        Scheme::Https => {
            let name = ServerName::IpAddress(address.ip().into());
            let handshake = TlsConnector::from(pki::unverified_client()).connect(name, stream);
            let stream = match tokio::time::timeout(TIMEOUT_CONNECT, handshake).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return Err(unreachable(&error)),
                Err(_) => return Err(unreachable(&"net/http: TLS handshake timeout")),
            };
            over(stream, request).await
        }
    }
    .map_err(|error| unreachable(&error))?;
    let upgraded = hyper::upgrade::on(&mut response);
    Ok((response, upgraded))
}

async fn over(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Body>,
) -> hyper::Result<Response<Body>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends when the answer has been read or nobody wants the rest of it.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to a proxied server");
        }
    });
    Ok(sender.send_request(request).await?.map(Body::new))
}

/// Passes bytes between two upgraded connections until both are done, or the server drains.
async fn splice(client: OnUpgrade, server: OnUpgrade, drain: lifecycle::Drain) {
    let both = async {
        let (client, server): (Upgraded, Upgraded) = tokio::try_join!(client, server)?;
        let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
        // An error is the end of a conversation like any other.
        tokio::io::copy_bidirectional(&mut client, &mut server)
            .await
            .ok();
        Ok::<(), hyper::Error>(())
    };
    tokio::select! {
        ended = both => {
            if let Err(error) = ended {
                tracing::debug!(%error, "upgrade a proxied connection");
            }
        }
        () = drain.signaled() => {}
    }
}

/// Why a connection was not made, in Go's words.
fn go_text(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".into(),
        io::ErrorKind::HostUnreachable => "connect: no route to host".into(),
        io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".into(),
        io::ErrorKind::TimedOut => "connect: connection timed out".into(),
        _ => format!("connect: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use http_body_util::BodyExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::handle::Core;

    /// A call on a pod of a server on a store that forgets.
    async fn call(headers: &[(&'static str, &str)]) -> Call {
        let store = store::Store::open(
            Box::new(store::Memory),
            crate::extract(),
            store::Options::default(),
        )
        .await
        .expect("a store in memory opens");
        let authority = Arc::new(pki::Authority::in_memory().expect("an authority"));
        let token_key = Arc::new(pki::TokenKey::in_memory().expect("a key"));
        let config = crate::Config::new(store, authority, token_key);
        let core = Arc::new(Core::new(config).expect("a core"));
        let pods = core.builtin("", "v1", "pods").clone();
        let mut call = Call::internal(&core, &pods, "a", "web");
        for (name, value) in headers {
            let value = HeaderValue::from_str(value).expect("a header");
            call.headers.insert(*name, value);
        }
        call
    }

    /// A server that reads one request head, answers with these bytes, and then echoes.
    async fn server(answer: impl Into<String>) -> (SocketAddr, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        let answer = answer.into();
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.expect("a request"));
            }
            stream.write_all(answer.as_bytes()).await.expect("answered");
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.ok();
            String::from_utf8(head).expect("text")
        });
        (address, asked)
    }

    fn request(uri: &str) -> Request<Body> {
        Request::get(uri).body(Body::empty()).expect("a request")
    }

    const PROXY: &str = "/api/v1/namespaces/a/pods/web/proxy";

    #[tokio::test]
    async fn a_request_is_rewritten_on_its_way_and_the_answer_too() {
        let (address, asked) = server(
            "HTTP/1.1 302 Found\r\nLocation: /login\r\nAccess-Control-Allow-Origin: *\r\nX-Own: 1\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi",
        )
        .await;
        let call = call(&[
            ("host", "api:6443"),
            ("authorization", "Bearer secret"),
            ("impersonate-user", "me"),
            ("accept", "text/html"),
            ("connection", "keep-alive"),
        ])
        .await;
        let target = Target::address(Scheme::Http, address.ip(), address.port());
        let mut sent = request(&format!("{PROXY}/a%2Fb/?c=d"));
        sent.extensions_mut()
            .insert(Peer(Ipv4Addr::new(192, 0, 2, 1).into()));
        let response = send(&call, target, sent).await.expect("an answer");
        assert_eq!(response.status(), StatusCode::FOUND);
        let mut headers: Vec<String> = response
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap_or_default()))
            .collect();
        headers.sort();
        assert_eq!(
            headers,
            [
                "content-length: 2".to_owned(),
                format!("location: {PROXY}/login"),
                "x-own: 1".to_owned()
            ]
        );
        let body = response.into_body().collect().await.expect("a body");
        assert_eq!(body.to_bytes(), "hi");
        let asked = asked.await.expect("asked");
        let mut lines: Vec<&str> = asked.trim_end().split("\r\n").collect();
        assert_eq!(lines.remove(0), "GET /a%2Fb/?c=d HTTP/1.1");
        lines.sort();
        assert_eq!(
            lines,
            [
                "accept: text/html".to_owned(),
                "host: api:6443".to_owned(),
                "x-forwarded-for: 192.0.2.1".to_owned(),
                format!("x-forwarded-uri: {PROXY}/a%2Fb/"),
            ]
        );
    }

    #[tokio::test]
    async fn links_of_a_page_lead_back_and_other_texts_stay() {
        let check = async |headers: &str, expected: &str| {
            let page = r#"<a href="/x">"#;
            let answer = format!(
                "HTTP/1.1 200 OK\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n{page}",
                page.len()
            );
            let (address, asked) = server(answer).await;
            let call = call(&[
                ("host", "api:6443"),
                ("accept", "text/html"),
                ("accept-encoding", "br"),
            ])
            .await;
            let target = Target::address(Scheme::Http, address.ip(), address.port());
            let response = send(&call, target, request(&format!("{PROXY}/")))
                .await
                .expect("an answer");
            let length = response.headers().get(header::CONTENT_LENGTH).cloned();
            let body = response.into_body().collect().await.expect("a body");
            assert_eq!(body.to_bytes(), expected, "{headers}");
            // What is told of the length is true.
            let told = length.map(|length| length.to_str().expect("a number").to_owned());
            assert!(told.is_none_or(|told| told == expected.len().to_string()));
            let asked = asked.await.expect("asked").to_ascii_lowercase();
            assert!(!asked.contains("\r\naccept-encoding: br"), "{asked}");
        };
        let back = format!(r#"<a href="{PROXY}/x">"#);
        check("Content-Type: text/html; charset=utf-8\r\n", &back).await;
        let same = r#"<a href="/x">"#;
        check("Content-Type: text/plain\r\n", same).await;
        check("Content-Type: text/html\r\nContent-Encoding: br\r\n", same).await;
    }

    #[tokio::test]
    async fn an_upgraded_connection_is_spliced() {
        let (address, _asked) = server(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n",
        )
        .await;
        let call = call(&[("connection", "Upgrade"), ("upgrade", "echo")]).await;
        // The client's side of a connection that hyper serves.
        let (near, far) = tokio::io::duplex(64);
        let call = Arc::new(call);
        let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
            let call = call.clone();
            async move {
                let target = Target::address(Scheme::Http, address.ip(), address.port());
                send(&call, target, request.map(Body::new))
                    .await
                    .map_err(|failure| failure.message().to_owned())
            }
        });
        tokio::spawn(
            hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(far), service)
                .with_upgrades(),
        );
        let (mut sender, connection) = http1::handshake(TokioIo::new(near)).await.expect("ready");
        tokio::spawn(connection.with_upgrades());
        let mut asked = request(PROXY);
        asked
            .headers_mut()
            .insert("connection", HeaderValue::from_static("Upgrade"));
        asked
            .headers_mut()
            .insert("upgrade", HeaderValue::from_static("echo"));
        let mut response = sender.send_request(asked).await.expect("an answer");
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        let upgraded = hyper::upgrade::on(&mut response).await.expect("upgraded");
        let mut io = TokioIo::new(upgraded);
        io.write_all(b"hello").await.expect("written");
        let mut echoed = [0; 5];
        io.read_exact(&mut echoed).await.expect("echoed");
        assert_eq!(&echoed, b"hello");
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_told_in_gos_words() {
        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .and_then(|listener| listener.local_addr())
            .expect("a port that nobody listens on");
        let call = call(&[]).await;
        let target = Target::address(Scheme::Https, closed.ip(), closed.port());
        let failure = send(&call, target, request(&format!("{PROXY}/")))
            .await
            .expect_err("refused");
        assert_eq!(failure.code(), 503);
        assert_eq!(
            failure.message(),
            format!(
                "error trying to reach service: dial tcp {closed}: connect: connection refused"
            )
        );
    }

    #[tokio::test]
    async fn a_place_without_a_slash_is_redirected() {
        let call = call(&[]).await;
        let target = Target::address(Scheme::Http, Ipv4Addr::LOCALHOST.into(), 1);
        let response = send(&call, target, request(&format!("{PROXY}?a=b")))
            .await
            .expect("an answer");
        assert_eq!(response.status(), StatusCode::MOVED_PERMANENTLY);
        assert_eq!(response.headers()["location"], format!("{PROXY}/?a=b"));
    }

    #[test]
    fn a_path_is_split_after_proxy() {
        let check = |path, namespaced, expected: (&str, &str)| {
            assert_eq!(split_path(path, namespaced), expected, "{path}");
        };
        let pod = "/api/v1/namespaces/a/pods/proxy/proxy";
        check(pod, true, (pod, ""));
        let slash = format!("{pod}/");
        check(&slash, true, (pod, "/"));
        let below = format!("{pod}//a%2Fb/proxy/");
        check(&below, true, (pod, "//a%2Fb/proxy/"));
        let node = "/api/v1/nodes/n/proxy";
        let metrics = format!("{node}/metrics");
        check(&metrics, false, (node, "/metrics"));
    }

    #[test]
    fn redirections_lead_back_through_the_api() {
        let check = |location, expected: Option<&str>| {
            let got = back_through(location, "/p/proxy", "api:6443");
            assert_eq!(got.as_deref(), expected, "{location}");
        };
        check("/login?next=1#top", Some("/p/proxy/login?next=1#top"));
        check("http://api:6443/login/", Some("/p/proxy/login/"));
        check("http://elsewhere/login", None);
        check("login", None);
        check("/p/proxy/login", None);
        check("http://[", None);
    }

    #[test]
    fn headers_of_the_connection_stay_behind() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Mine"),
            ("x-mine", "1"),
            ("te", "trailers"),
            ("accept", "*/*"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        assert_eq!(upgrade_of(&headers), None);
        remove_hop_by_hop(&mut headers);
        let left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["accept"]);
    }
}
