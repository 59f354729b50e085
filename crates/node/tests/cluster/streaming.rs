//! Logs, exec and port-forward, through the node's service and a real HTTP connection in memory.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use streams::{Event, Headers, Mux, Side, StreamId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::ServiceExt as _;

use crate::House;

pub(crate) async fn get(house: &House, path: &str) -> (StatusCode, String) {
    let request = Request::get(path).body(Body::empty()).expect("a request");
    let answer = house.agent.service().oneshot(request).await;
    let answer = answer.expect("infallible");
    let status = answer.status();
    let body = answer.into_body().collect().await.expect("a body");
    (
        status,
        String::from_utf8(body.to_bytes().to_vec()).expect("text"),
    )
}

async fn running(house: &House, command: Value) {
    let spec = json!({"containers": [{"name": "c", "image": "app:1", "command": command}]});
    house.run("web", spec).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_of_this_run_and_of_the_one_before() {
    let house = House::new().await;
    running(&house, json!(["run"])).await;
    house.until_ready("web").await;
    let path = "/containerLogs/default/web/c";
    assert_eq!(
        get(&house, path).await,
        (StatusCode::OK, "run 0\n".to_owned())
    );
    let (_, text) = get(&house, &format!("{path}?timestamps=true")).await;
    assert_eq!(text, "2026-01-01T00:00:00.5Z run 0\n");
    let (_, text) = get(&house, &format!("{path}?limitBytes=3")).await;
    assert_eq!(text, "run");
    let (_, text) = get(&house, &format!("{path}?sinceTime=2026-01-02T00:00:00Z")).await;
    assert_eq!(text, "");
    let (_, text) = get(&house, &format!("{path}?tailLines=0")).await;
    assert_eq!(text, "");
    let (status, text) = get(&house, &format!("{path}?previous=true")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let wanted = "previous terminated container \\\"c\\\" in pod \\\"web\\\" not found";
    assert!(text.contains(wanted), "{text}");
    house.engine.exit("c", 1);
    house
        .until("web", "a restart", |pod| {
            let state = crate::container(pod, "c");
            state["restartCount"] == 1 && state["state"]["running"].is_object()
        })
        .await;
    assert_eq!(get(&house, path).await.1, "run 1\n");
    assert_eq!(
        get(&house, &format!("{path}?previous=true")).await.1,
        "run 0\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_followed_to_the_end_of_the_container() {
    let house = House::new().await;
    running(&house, json!(["run"])).await;
    house.until_ready("web").await;
    let request = Request::get("/containerLogs/default/web/c?follow=true").body(Body::empty());
    let answer = house
        .agent
        .service()
        .oneshot(request.expect("a request"))
        .await;
    let mut body = answer.expect("infallible").into_body();
    let first = body.frame().await.expect("a frame").expect("data");
    assert_eq!(first.into_data().expect("data"), "run 0\n");
    let (_, spec) = house.engine.containers("c").pop().expect("it runs");
    let append = |line: &str| {
        use std::io::Write as _;
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&spec.log_path);
        let mut file = file.expect("a log");
        writeln!(file, "2026-01-01T00:00:01Z stdout F {line}").expect("written");
    };
    append("more");
    let next = body.frame().await.expect("a frame").expect("data");
    assert_eq!(next.into_data().expect("data"), "more\n");
    // Rotation: what was written to the old file last, and to the new one first, comes in order.
    append("last of the old");
    let moved = spec.log_path.with_extension("log.20260101-000001.000");
    std::fs::rename(&spec.log_path, moved).expect("moved");
    append("first of the new");
    house.engine.exit("c", 0);
    let rest = body.collect().await.expect("data").to_bytes();
    assert_eq!(rest, "last of the old\nfirst of the new\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_shown_is_said() {
    let house = House::new().await;
    let spec = json!({"containers": [{"name": "c", "image": "late:1"}]});
    house.run("web", spec).await;
    house
        .until("web", "back-off", |pod| {
            crate::container(pod, "c")["state"]["waiting"]["reason"] == "ImagePullBackOff"
        })
        .await;
    // The agent's own cache follows what it wrote.
    let waiting = async {
        loop {
            let answer = get(&house, "/containerLogs/default/web/c").await;
            if answer.1.contains("trying and failing to pull image") {
                return answer.0;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let status = tokio::time::timeout(crate::PATIENCE, waiting).await;
    assert_eq!(status.expect("is said"), StatusCode::BAD_REQUEST);
    for (path, status) in [
        ("/containerLogs/default/none/c", StatusCode::NOT_FOUND),
        ("/containerLogs/default/web/x", StatusCode::NOT_FOUND),
        (
            "/containerLogs/default/web/c?tailLines=x",
            StatusCode::BAD_REQUEST,
        ),
        ("/exec/default/web/c?command=true", StatusCode::BAD_REQUEST),
        (
            "/exec/default/web/c?command=true&output=1",
            StatusCode::INTERNAL_SERVER_ERROR,
        ),
        ("/nothing", StatusCode::NOT_FOUND),
    ] {
        let (seen, text) = get(&house, path).await;
        assert_eq!(seen, status, "{path}: {text}");
        let answer: Value = serde_json::from_str(&text).expect("a Status");
        assert_eq!(answer["kind"], "Status", "{path}");
    }
}

/// Sends a request that upgrades over a connection in memory.
async fn upgrade(house: &House, request: Request<Empty<Bytes>>) -> Response<hyper::body::Incoming> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let service = hyper_util::service::TowerToHyperService::new(
        house
            .agent
            .service()
            .map_request(|request: Request<hyper::body::Incoming>| request.map(Body::new)),
    );
    tokio::spawn(async move {
        hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(far), service)
            .with_upgrades()
            .await
    });
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(near))
        .await
        .expect("a connection");
    tokio::spawn(connection.with_upgrades());
    sender.send_request(request).await.expect("an answer")
}

/// A client of SPDY.
struct Client {
    stream: TokioIo<hyper::upgrade::Upgraded>,
    mux: Mux,
}

impl Client {
    async fn new(answer: Response<hyper::body::Incoming>) -> Client {
        assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
        let upgraded = hyper::upgrade::on(answer).await.expect("is upgraded");
        Client {
            stream: TokioIo::new(upgraded),
            mux: Mux::new(Side::Client),
        }
    }

    async fn flush(&mut self) {
        let bytes = self.mux.output();
        self.stream.write_all(&bytes).await.expect("written");
    }

    async fn open<const N: usize>(&mut self, headers: [(&str, &str); N]) -> StreamId {
        let id = self.mux.open(&Headers::from(headers));
        self.flush().await;
        id
    }

    /// All that comes on a stream until its end.
    async fn read(&mut self, id: StreamId) -> String {
        let mut text = BytesMut::new();
        let mut piece = [0; 4096];
        loop {
            while let Some(event) = self.mux.event() {
                match event {
                    Event::Data { id: of, bytes } if of == id => text.extend_from_slice(&bytes),
                    Event::Finished(of) | Event::Reset(of) if of == id => {
                        return String::from_utf8_lossy(&text).into_owned();
                    }
                    _ => {}
                }
            }
            let reading = tokio::time::timeout(crate::PATIENCE, self.stream.read(&mut piece));
            let count = reading.await.expect("in time").expect("is read");
            assert!(count > 0, "the connection ended before stream {id}");
            self.mux.receive(&piece[..count]).expect("well formed");
        }
    }
}

fn spdy(path: &str, version: &str) -> Request<Empty<Bytes>> {
    Request::post(path)
        .header("host", "node")
        .header("connection", "Upgrade")
        .header("upgrade", "SPDY/3.1")
        .header("x-stream-protocol-version", version)
        .body(Empty::new())
        .expect("a request")
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_over_spdy() {
    let house = House::new().await;
    running(&house, json!(["run"])).await;
    house.until_ready("web").await;
    let path = "/exec/default/web/c?command=cat&input=1&output=1";
    let mut client = Client::new(upgrade(&house, spdy(path, "v4.channel.k8s.io")).await).await;
    let error = client.open([("streamtype", "error")]).await;
    let stdin = client.open([("streamtype", "stdin")]).await;
    let stdout = client.open([("streamtype", "stdout")]).await;
    client.mux.send(stdin, b"hello");
    client.mux.finish(stdin);
    client.flush().await;
    assert_eq!(client.read(stdout).await, "hello");
    let status: Value = serde_json::from_str(&client.read(error).await).expect("a Status");
    assert_eq!(status["status"], "Success");
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_and_commands_that_do_not_exist() {
    let house = House::new().await;
    running(&house, json!(["run"])).await;
    house.until_ready("web").await;
    let path = "/exec/default/web/c?command=exit&command=3&output=1";
    let mut client = Client::new(upgrade(&house, spdy(path, "v4.channel.k8s.io")).await).await;
    let error = client.open([("streamtype", "error")]).await;
    client.open([("streamtype", "stdout")]).await;
    let status: Value = serde_json::from_str(&client.read(error).await).expect("a Status");
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"][0]["message"], "3");
    let path = "/exec/default/web/c?command=nope&output=1";
    let mut client = Client::new(upgrade(&house, spdy(path, "v4.channel.k8s.io")).await).await;
    let error = client.open([("streamtype", "error")]).await;
    client.open([("streamtype", "stdout")]).await;
    let text = client.read(error).await;
    assert!(
        text.contains("executable file not found in $PATH"),
        "{text}"
    );
}

/// A request for a WebSocket; `protocols` may be empty.
fn web_socket(path: &str, protocols: &str) -> Request<Empty<Bytes>> {
    let mut request = Request::get(path)
        .header("host", "node")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    if !protocols.is_empty() {
        request = request.header("sec-websocket-protocol", protocols);
    }
    request.body(Empty::new()).expect("a request")
}

/// A log as messages: the kind of each (1 text, 2 binary, 8 the end) and what it holds.
async fn log_messages(house: &House, protocols: &str) -> Vec<(u8, String)> {
    let path = "/containerLogs/default/web/c";
    let answer = upgrade(house, web_socket(path, protocols)).await;
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    let upgraded = hyper::upgrade::on(answer).await.expect("is upgraded");
    let mut bytes = Vec::new();
    let mut stream = TokioIo::new(upgraded);
    let reading = tokio::time::timeout(crate::PATIENCE, stream.read_to_end(&mut bytes));
    reading.await.expect("in time").expect("is read");
    let mut messages = Vec::new();
    let mut rest = bytes.as_slice();
    while let [head, length, after @ ..] = rest {
        let (payload, next) = after.split_at(usize::from(*length));
        messages.push((head & 15, String::from_utf8_lossy(payload).into_owned()));
        rest = next;
    }
    messages
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_over_a_web_socket() {
    let house = House::new().await;
    running(&house, json!(["run"])).await;
    house.until_ready("web").await;
    for (protocols, kind, text) in [
        ("", 2, "run 0\n"),
        ("binary.k8s.io", 2, "run 0\n"),
        ("unknown, base64.binary.k8s.io", 1, "cnVuIDAK"),
    ] {
        let messages = log_messages(&house, protocols).await;
        let (end, pieces) = messages.split_last().expect("an end at least");
        assert_eq!(end.0, 8, "{protocols}");
        let wanted = [(kind, String::new()), (kind, text.to_owned())];
        assert_eq!(pieces, wanted, "{protocols}");
    }
    let answer = upgrade(
        &house,
        web_socket("/containerLogs/default/web/c", "v5.channel.k8s.io"),
    );
    assert_eq!(answer.await.status(), StatusCode::BAD_REQUEST);
    // What cannot be shown is told before anything is upgraded.
    let answer = upgrade(&house, web_socket("/containerLogs/default/web/x", ""));
    assert_eq!(answer.await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_over_a_web_socket() {
    let house = House::new().await;
    running(&house, json!(["run"])).await;
    house.until_ready("web").await;
    let path = "/exec/default/web/c?command=cat&input=1&output=1";
    let request = web_socket(path, "v5.channel.k8s.io");
    let answer = upgrade(&house, request).await;
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(
        answer.headers()["sec-websocket-protocol"],
        "v5.channel.k8s.io"
    );
    let upgraded = hyper::upgrade::on(answer).await.expect("is upgraded");
    let mut stream = TokioIo::new(upgraded);
    // Frames of a client, masked with zeros: input, and its end.
    for payload in [&b"\0hi"[..], b"\xff\0"] {
        let length = u8::try_from(payload.len()).expect("short");
        let mut frame = vec![0x82, 0x80 | length, 0, 0, 0, 0];
        frame.extend_from_slice(payload);
        stream.write_all(&frame).await.expect("written");
    }
    let mut seen = Vec::new();
    let reading = stream.read_to_end(&mut seen);
    let ended = tokio::time::timeout(crate::PATIENCE, reading).await;
    ended.expect("in time").expect("is read");
    let status = b"\x03{\"metadata\":{},\"status\":\"Success\"}";
    let mut expected = vec![
        0x82,
        3,
        1,
        b'h',
        b'i',
        0x82,
        u8::try_from(status.len()).expect("short"),
    ];
    expected.extend_from_slice(status);
    expected.extend_from_slice(&[0x88, 2, 0x03, 0xe8]);
    assert_eq!(seen, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_forwarded_and_failures_told() {
    let house = House::new().await;
    running(&house, json!(["run"])).await;
    house.until_ready("web").await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    house
        .engine
        .set_target(listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut line = [0; 4];
            stream.read_exact(&mut line).await.expect("is read");
            stream.write_all(b"pong").await.expect("is written");
        }
    });
    let request = spdy("/portForward/default/web", "portforward.k8s.io");
    let mut client = Client::new(upgrade(&house, request).await).await;
    for request in ["0", "1"] {
        let of = |kind| [("streamtype", kind), ("port", "80"), ("requestid", request)];
        let error = client.open(of("error")).await;
        client.mux.finish(error);
        let data = client.open(of("data")).await;
        client.mux.send(data, b"ping");
        client.flush().await;
        assert_eq!(client.read(data).await, "pong");
    }
    let of = |kind| [("streamtype", kind), ("port", "81"), ("requestid", "2")];
    let error = client.open(of("error")).await;
    client.open(of("data")).await;
    let text = client.read(error).await;
    assert!(text.contains("failed to connect to localhost:81"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_never_become_a_pair_are_not_kept_without_end() {
    let house = House::new().await;
    running(&house, json!(["run"])).await;
    house.until_ready("web").await;
    let request = spdy("/portForward/default/web", "portforward.k8s.io");
    let mut client = Client::new(upgrade(&house, request).await).await;
    fn of<'a>(kind: &'a str, request: &'a str) -> [(&'a str, &'a str); 3] {
        [("streamtype", kind), ("port", "81"), ("requestid", request)]
    }
    for number in 0..600 {
        let error = client.open(of("error", &number.to_string())).await;
        client.mux.reset(error);
        client.flush().await;
    }
    // Those that were given up have made room.
    let error = client.open(of("error", "pair")).await;
    client.open(of("data", "pair")).await;
    let text = client.read(error).await;
    assert!(text.contains("failed to connect to localhost:81"), "{text}");
    for number in 0..512 {
        client.open(of("error", &format!("left-{number}"))).await;
    }
    let refused = client.open(of("error", "one too many")).await;
    assert_eq!(client.read(refused).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_uid_means_that_pod_and_no_other_of_its_name() {
    let house = House::new().await;
    running(&house, json!(["run"])).await;
    let pod = house.until_ready("web").await;
    let uid = pod["metadata"]["uid"].as_str().expect("a uid");
    let check = async |path: String, protocol: &str, expected: u16| {
        let answer = upgrade(&house, spdy(&path, protocol)).await;
        assert_eq!(answer.status().as_u16(), expected, "{path}");
    };
    for (uid, expected) in [(uid, 101), ("another", 404)] {
        let exec = format!("/exec/default/web/{uid}/c?command=true&output=1");
        check(exec, "v4.channel.k8s.io", expected).await;
        let attach = format!("/attach/default/web/{uid}/c?output=1");
        check(attach, "v4.channel.k8s.io", expected).await;
        let forward = format!("/portForward/default/web/{uid}");
        check(forward, "portforward.k8s.io", expected).await;
    }
}
