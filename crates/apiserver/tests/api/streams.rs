//! Connections that are upgraded, and the listener.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use apiserver::{Body, Caller, Nodes, Service, tls_config};
use http::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tower::util::BoxCloneSyncService;

use crate::house::{House, pod};

const PODS: &str = "/api/v1/namespaces/default/pods";

/// A node that says which path it was asked for, and echoes on upgraded connections.
struct Echo;

impl Nodes for Echo {
    fn node(&self, name: &str) -> Option<Service> {
        (name == "n").then(|| BoxCloneSyncService::new(tower::service_fn(echo)))
    }
}

async fn echo(mut request: Request<Body>) -> Result<Response<Body>, std::convert::Infallible> {
    if !request.headers().contains_key("upgrade") {
        return Ok(Response::new(Body::from(request.uri().to_string())));
    }
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgraded.await else {
            return;
        };
        let mut io = TokioIo::new(upgraded);
        let mut bytes = [0; 5];
        if io.read_exact(&mut bytes).await.is_ok() {
            io.write_all(&bytes).await.ok();
            io.shutdown().await.ok();
        }
    });
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header("connection", "Upgrade")
        .header("upgrade", "echo")
        .body(Body::empty());
    Ok(response.expect("a response"))
}

async fn house_with_pod() -> House {
    let house = House::with(|config| config.nodes = Arc::new(Echo)).await;
    house.post(PODS, pod("a")).await.expect_code(201);
    let binding = json!({"metadata": {"name": "a"}, "target": {"kind": "Node", "name": "n"}});
    house
        .post(&format!("{PODS}/a/binding"), binding)
        .await
        .expect_code(201);
    house
}

#[tokio::test]
async fn logs_come_from_the_node() {
    let house = house_with_pod().await;
    let check = async |query: &str, expected: &str| {
        let answer = house
            .get(&format!("{PODS}/a/log{query}"))
            .await
            .expect_code(200);
        assert_eq!(answer.text, expected);
    };
    check("", "/containerLogs/default/a/main").await;
    check(
        "?container=main&follow=true&tailLines=3&evil=1",
        "/containerLogs/default/a/main?follow=true&tailLines=3",
    )
    .await;
    house
        .get(&format!("{PODS}/a/log?container=x"))
        .await
        .expect_failure(400, "BadRequest", "container x is not valid for pod a");
    house.post(PODS, pod("b")).await.expect_code(201);
    let nothing = house.get(&format!("{PODS}/b/log")).await.expect_code(204);
    assert_eq!(nothing.text, "");
    house
        .get(&format!("{PODS}/b/log?tailLines=-1"))
        .await
        .expect_failure(
            422,
            "Invalid",
            "PodLogOptions \"b\" is invalid: tailLines: Invalid value: -1: must be greater than or equal to 0",
        );
    let body = json!({"spec": {"nodeName": "elsewhere", "containers": [{"name": "main", "image": "a"}]}, "metadata": {"name": "c"}});
    house.post(PODS, body).await.expect_code(201);
    house.get(&format!("{PODS}/c/log")).await.expect_failure(
        503,
        "ServiceUnavailable",
        "node \"elsewhere\" of pod \"c\" cannot be reached",
    );
}

#[tokio::test]
async fn an_in_process_client_can_upgrade() {
    let house = house_with_pod().await;
    let request = Request::builder()
        .method("POST")
        .uri(format!(
            "{PODS}/a/exec?command=ls&command=-l%20x&stdout=true&stdin=1"
        ))
        .header("connection", "Upgrade")
        .header("upgrade", "echo")
        .body(kube::client::Body::empty())
        .expect("a request");
    let response = house.client.send(request).await.expect("an answer");
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let upgraded = hyper::upgrade::on(response)
        .await
        .expect("an upgraded connection");
    let mut io = TokioIo::new(upgraded);
    io.write_all(b"hello").await.expect("written");
    let mut text = String::new();
    io.read_to_string(&mut text).await.expect("read");
    assert_eq!(text, "hello");
}

/// A server behind TLS, and how to reach it.
struct Listening {
    house: House,
    url: String,
    trigger: lifecycle::DrainTrigger,
    serving: tokio::task::JoinHandle<()>,
    authority: Arc<pki::Authority>,
}

impl Listening {
    async fn new() -> Listening {
        let authority = Arc::new(pki::Authority::in_memory().expect("an authority"));
        let house = House::with(|config| config.authority = authority.clone()).await;
        let address = IpAddr::from(Ipv4Addr::LOCALHOST);
        let names = pki::ServerNames {
            names: Vec::new(),
            addresses: vec![address],
        };
        let issued = authority
            .issue_server("server", &names)
            .expect("a certificate");
        let tls = tls_config(&authority, &issued).expect("a TLS configuration");
        let listener = tokio::net::TcpListener::bind((address, 0))
            .await
            .expect("a port");
        let url = format!("https://{}", listener.local_addr().expect("an address"));
        let (trigger, drain) = lifecycle::drain();
        let server = house.server.clone();
        let serving = tokio::spawn(async move { server.serve(listener, tls, drain).await });
        Listening {
            house,
            url,
            trigger,
            serving,
            authority,
        }
    }

    /// A client with a certificate that may do everything.
    fn admin(&self) -> kube::Client {
        let issued = self.authority.issue_client("root", Some("system:masters"));
        let issued = issued.expect("a certificate");
        self.client(json!({
            "client-certificate-data": base64(&issued.certificate_pem),
            "client-key-data": base64(&issued.key_pem),
        }))
    }

    fn client(&self, user: Value) -> kube::Client {
        let kubeconfig = json!({
            "current-context": "t",
            "contexts": [{"name": "t", "context": {"cluster": "t", "user": "t"}}],
            "clusters": [{"name": "t", "cluster": {
                "server": self.url,
                "certificate-authority-data": base64(self.authority.certificate_pem()),
            }}],
            "users": [{"name": "t", "user": user}],
        });
        let kubeconfig = serde_json::from_value(kubeconfig).expect("a kubeconfig");
        let options = kube::config::KubeConfigOptions::default();
        let config =
            futures::executor::block_on(kube::Config::from_custom_kubeconfig(kubeconfig, &options))
                .expect("a configuration");
        kube::Client::try_from(config).expect("a client")
    }
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[tokio::test]
async fn certificates_and_tokens_are_identities_and_draining_ends_watches() {
    use futures::StreamExt as _;
    use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
    let listening = Listening::new().await;
    let admin = listening.admin();
    let namespaces: kube::Api<Namespace> = kube::Api::all(admin.clone());
    assert_eq!(
        namespaces
            .list(&Default::default())
            .await
            .expect("a list")
            .items
            .len(),
        4
    );

    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let answer = listening.house.post(path, json!({})).await.expect_code(201);
    let account = listening.client(json!({"token": answer.body["status"]["token"]}));
    let namespaces: kube::Api<Namespace> = kube::Api::all(account);
    let error = namespaces
        .list(&Default::default())
        .await
        .expect_err("not allowed");
    let text = error.to_string();
    assert!(
        text.contains("system:serviceaccount:default:default"),
        "{text}"
    );

    let nobody = listening.client(json!({}));
    let version = nobody
        .apiserver_version()
        .await
        .expect("the version is public");
    assert_eq!(version.minor, "36");

    let maps: kube::Api<ConfigMap> = kube::Api::namespaced(admin, "default");
    let watch = maps.watch(&Default::default(), "0").await.expect("a watch");
    let mut watch = std::pin::pin!(watch);
    listening.house.config_map("a", json!({})).await;
    assert!(watch.next().await.is_some());
    listening.trigger.signal();
    while watch.next().await.is_some() {}
    listening.serving.await.expect("the listener ends");
}

#[tokio::test]
async fn who_shows_a_token_needs_no_place_of_those_who_are_not_known() {
    let listening = Listening::new().await;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let answer = listening.house.post(path, json!({})).await.expect_code(201);
    let user = json!({"token": answer.body["status"]["token"]});
    // More than one address has places for those who have shown nothing. Each keeps its connection.
    let mut accounts = Vec::new();
    for _ in 0..300 {
        let account = listening.client(user.clone());
        let version = account.apiserver_version().await.expect("a version");
        assert_eq!(version.minor, "36");
        accounts.push(account);
    }
}

#[tokio::test]
async fn a_long_head_is_for_those_who_are_known() {
    let listening = Listening::new().await;
    let admin = listening.admin();
    let nobody = listening.client(json!({}));
    let check = async |client: &kube::Client, bytes: usize, expected: u16| {
        let request = http::Request::builder()
            .uri("/version")
            .header("x-long", "x".repeat(bytes))
            .body(kube::client::Body::empty())
            .expect("a request");
        let answer = client.send(request).await.expect("an answer");
        assert_eq!(answer.status().as_u16(), expected, "{bytes}");
    };
    check(&nobody, 50_000, 200).await;
    check(&nobody, 200_000, 431).await;
    check(&admin, 900_000, 200).await;
    check(&admin, 2_500_000, 431).await;
}

#[tokio::test]
async fn who_is_known_comes_in_though_the_unknown_hold_all_their_places() {
    let listening = Listening::new().await;
    let mut roots = rustls::RootCertStore::empty();
    let authority = listening.authority.certificate_der();
    roots.add(authority).expect("a certificate");
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let address = listening.url.trim_start_matches("https://");
    let mut held = Vec::new();
    // As many as one address may have.
    for _ in 0..256 {
        let stream = tokio::net::TcpStream::connect(address).await;
        let name = rustls_pki_types::ServerName::from(IpAddr::from(Ipv4Addr::LOCALHOST));
        let stream = connector.connect(name, stream.expect("connected")).await;
        held.push(stream.expect("a handshake"));
    }
    let admin = listening.admin();
    admin.apiserver_version().await.expect("it is served");
    drop(held);
    let nobody = listening.client(json!({}));
    nobody.apiserver_version().await.expect("there is a place");
}

#[tokio::test]
async fn garbage_on_the_port_does_no_harm() {
    let listening = Listening::new().await;
    let address = listening.url.trim_start_matches("https://").to_owned();
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 64],
        &[0x16, 3, 1, 0xff, 0xff],
    ] {
        let mut stream = tokio::net::TcpStream::connect(&address)
            .await
            .expect("connected");
        stream.write_all(garbage).await.expect("written");
        stream.shutdown().await.ok();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.ok();
    }
    let nobody = listening.client(json!({}));
    nobody.apiserver_version().await.expect("still there");
}

#[tokio::test]
async fn who_may_not_is_told_before_the_body_is_read() {
    let listening = Listening::new().await;
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(listening.authority.certificate_der())
        .expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let address = listening.url.trim_start_matches("https://");
    let stream = tokio::net::TcpStream::connect(address)
        .await
        .expect("connected");
    let name = rustls::pki_types::ServerName::from(IpAddr::from(Ipv4Addr::LOCALHOST));
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .expect("a handshake");
    let head = format!(
        "POST {PODS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{"
    );
    stream.write_all(head.as_bytes()).await.expect("written");
    stream.flush().await.expect("sent");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 403");
}

#[tokio::test]
async fn controllers_act_under_roles_of_their_own() {
    let house = House::new().await;
    let client = house
        .server
        .client(Caller::controller("replicaset-controller"));
    let pods: kube::Api<k8s_openapi::api::core::v1::Pod> =
        kube::Api::namespaced(client.clone(), "default");
    let body = serde_json::from_value(pod("a")).expect("a pod");
    pods.create(&Default::default(), &body)
        .await
        .expect("its role says so");
    let secrets: kube::Api<k8s_openapi::api::core::v1::Secret> =
        kube::Api::namespaced(client, "default");
    let error = secrets
        .list(&Default::default())
        .await
        .expect_err("its role does not say so");
    assert!(error.to_string().contains("forbidden"), "{error}");
}

#[tokio::test]
async fn a_node_reads_what_its_pods_use() {
    let house = House::new().await;
    house.config_map("used", json!({})).await;
    house.config_map("other", json!({})).await;
    let mut body = pod("a");
    body["spec"]["nodeName"] = "n".into();
    body["spec"]["volumes"] = json!([{"name": "v", "configMap": {"name": "used"}}]);
    house.post(PODS, body).await.expect_code(201);
    let client = house.server.client(Caller::node("n"));
    let maps: kube::Api<k8s_openapi::api::core::v1::ConfigMap> =
        kube::Api::namespaced(client.clone(), "default");
    maps.get("used").await.expect("a pod of the node uses it");
    let error = maps
        .get("other")
        .await
        .expect_err("nothing of the node uses it");
    assert!(
        error
            .to_string()
            .contains("no relationship found between node 'n' and this object"),
        "{error}"
    );
    maps.list(&Default::default())
        .await
        .expect_err("not all of them");
    let pods: kube::Api<k8s_openapi::api::core::v1::Pod> = kube::Api::namespaced(client, "default");
    let status = kube::api::Patch::Merge(json!({"status": {"phase": "Running"}}));
    pods.patch_status("a", &Default::default(), &status)
        .await
        .expect("its pod");
}

#[tokio::test]
async fn nobody_hands_out_what_they_lack() {
    let house = House::new().await;
    house
        .post("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", json!({
            "metadata": {"name": "b"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "joe"}],
        }))
        .await
        .expect_code(201);
    let ask = async |verbs: &[&str], resource: &str| {
        let body = json!({"metadata": {"generateName": "r-"}, "rules": [{"apiGroups": [""], "resources": [resource], "verbs": verbs}]});
        let request = Request::builder()
            .method("POST")
            .uri("/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles")
            .header("content-type", "application/json")
            .body(Body::from(body.to_string()))
            .expect("a request");
        house
            .send_as(Caller::authenticated("joe", &[]), request)
            .await
    };
    ask(&["get"], "pods").await.expect_code(201);
    let refused = ask(&["get"], "nodes").await.expect_code(403);
    let message = refused.body["message"].as_str().unwrap_or_default();
    assert!(message.contains("is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\"]}"), "{message}");
}

/// Begins a conversation in messages on a connection of a listener without TLS.
async fn messages(house: &House, path: &str, protocol: &str) -> TokioIo<hyper::upgrade::Upgraded> {
    let request = Request::builder()
        .uri(path)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("sec-websocket-protocol", protocol)
        .body(kube::client::Body::empty())
        .expect("a request");
    let response = house.client.send(request).await.expect("an answer");
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(
        response.headers()["sec-websocket-accept"],
        "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    );
    let upgraded = hyper::upgrade::on(response).await;
    TokioIo::new(upgraded.expect("an upgraded connection"))
}

/// A short message that the server sends: its kind and what it holds.
async fn message(io: &mut TokioIo<hyper::upgrade::Upgraded>) -> (u8, String) {
    let kind = io.read_u8().await.expect("a message");
    let mut length = usize::from(io.read_u8().await.expect("a length"));
    if length == 126 {
        length = usize::from(io.read_u16().await.expect("a length"));
    }
    let mut bytes = vec![0; length];
    io.read_exact(&mut bytes).await.expect("a whole message");
    (kind, String::from_utf8(bytes).expect("text"))
}

#[tokio::test]
async fn logs_and_events_are_had_as_messages() {
    let house = house_with_pod().await;
    let path = format!("{PODS}/a/log?tailLines=3");
    let mut log = messages(&house, &path, "binary.k8s.io").await;
    let text = "/containerLogs/default/a/main?tailLines=3".to_owned();
    assert_eq!(message(&mut log).await, (0x82, text));
    assert_eq!(message(&mut log).await, (0x88, String::new()));
    let path = "/api/v1/namespaces?watch=1&fieldSelector=metadata.name=default";
    let mut events = messages(&house, path, "").await;
    let (kind, event) = message(&mut events).await;
    assert_eq!(kind, 0x81);
    let event: Value = serde_json::from_str(&event).expect("one event");
    assert_eq!(
        (&event["type"], &event["object"]["metadata"]["name"]),
        (&json!("ADDED"), &json!("default"))
    );
}
