//! The server as clients meet it: packets in, packets out.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::*;

/// Reached only when something is wrong.
const PATIENCE: Duration = Duration::from_secs(20);

async fn server(zone: &Zone, upstream: Upstream) -> Server {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Server::bind(&[address], zone.clone(), upstream)
        .await
        .expect("listens")
}

fn nobody() -> Upstream {
    Upstream::new("/nonexistent/resolv.conf", [])
}

fn zone_of(addresses: u8) -> Zone {
    let zone = Zone::new("cluster.local").expect("a zone");
    let name = zone.name("web.default.svc").expect("a name");
    let entries = (1..=addresses).map(|last| Entry {
        name: name.clone(),
        data: Data::Address(Ipv4Addr::new(10, 244, 0, last)),
    });
    zone.set("web", entries.collect());
    zone
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(full_name(name).expect("a name"), kind));
    message
}

async fn send(server: SocketAddr, bytes: &[u8]) -> (Message, usize) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("binds");
    socket.connect(server).await.expect("a peer");
    socket.send(bytes).await.expect("sends");
    let mut buffer = [0; 65_535];
    let received = timeout(PATIENCE, socket.recv(&mut buffer))
        .await
        .expect("an answer in time");
    let length = received.expect("an answer");
    (
        Message::from_vec(&buffer[..length]).expect("a DNS message"),
        length,
    )
}

async fn ask_message(server: &Server, message: &Message) -> (Message, usize) {
    send(server.addresses()[0], &message.to_vec().expect("encodes")).await
}

async fn ask(server: &Server, name: &str, kind: RecordType) -> Message {
    ask_message(server, &question(name, kind)).await.0
}

async fn ask_over_tcp(server: &Server, message: &Message) -> Message {
    let mut stream = TcpStream::connect(server.addresses()[0])
        .await
        .expect("connects");
    let bytes = message.to_vec().expect("encodes");
    stream.write_u16(bytes.len() as u16).await.expect("sends");
    stream.write_all(&bytes).await.expect("sends");
    let length = timeout(PATIENCE, stream.read_u16())
        .await
        .expect("in time")
        .expect("an answer");
    let mut answer = vec![0; length.into()];
    stream
        .read_exact(&mut answer)
        .await
        .expect("the whole answer");
    Message::from_vec(&answer).expect("a DNS message")
}

fn addresses(message: &Message) -> Vec<Ipv4Addr> {
    let address = |record: &Record| match &record.data {
        RData::A(A(address)) => Some(*address),
        _ => None,
    };
    message.answers.iter().filter_map(address).collect()
}

#[tokio::test]
async fn answers_carry_what_clients_check() {
    let server = server(&zone_of(1), nobody()).await;
    let answer = ask(&server, "Web.Default.svc.cluster.local", RecordType::A).await;
    assert_eq!(answer.metadata.id, 4711);
    assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
    assert!(answer.metadata.recursion_desired);
    let name = "Web.Default.svc.cluster.local.";
    assert_eq!(
        answer.queries[0].name().to_string(),
        name,
        "clients may check the case (0x20)"
    );
    assert_eq!(answer.answers[0].name.to_string(), name);
    assert_eq!(addresses(&answer), [Ipv4Addr::new(10, 244, 0, 1)]);
    assert!(
        answer.edns.is_none(),
        "who did not speak EDNS is not spoken to in it"
    );

    let missing = ask(&server, "nobody.default.svc.cluster.local", RecordType::A).await;
    assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(missing.authorities[0].record_type(), RecordType::SOA);
    let empty = ask(&server, "web.default.svc.cluster.local", RecordType::AAAA).await;
    assert_eq!(empty.metadata.response_code, ResponseCode::NoError);
    assert_eq!(empty.authorities[0].record_type(), RecordType::SOA);
}

#[tokio::test]
async fn what_does_not_fit_is_asked_for_again_by_tcp() {
    let server = server(&zone_of(100), nobody()).await;
    let mut message = question("web.default.svc.cluster.local", RecordType::A);
    let (answer, length) = ask_message(&server, &message).await;
    assert!(
        answer.metadata.truncation && length <= 512,
        "{length} bytes without EDNS"
    );
    let whole = ask_over_tcp(&server, &message).await;
    assert_eq!(
        (addresses(&whole).len(), whole.metadata.truncation),
        (100, false)
    );

    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    message.set_edns(edns);
    let (answer, _) = ask_message(&server, &message).await;
    assert_eq!(
        (addresses(&answer).len(), answer.metadata.truncation),
        (100, false)
    );
    assert_eq!(
        answer.edns.expect("EDNS is answered by EDNS").max_payload(),
        4096
    );
}

#[tokio::test]
async fn rubbish_is_survived() {
    let server = server(&zone_of(1), nobody()).await;
    let at = server.addresses()[0];
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("binds");
    for rubbish in [&b""[..], b"x", &[0xff; 11], &[0xff; 600], &[0; 12]] {
        socket.send_to(rubbish, at).await.expect("sends");
    }
    let code =
        |message: Message| async move { send(at, &message.to_vec().expect("encodes")).await.0 };
    let mut update = question("web.default.svc.cluster.local", RecordType::A);
    update.metadata.op_code = OpCode::Status;
    assert_eq!(
        code(update).await.metadata.response_code,
        ResponseCode::NotImp
    );
    let (malformed, _) = send(at, &[0x12, 0x67, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xff]).await;
    assert_eq!(malformed.metadata.response_code, ResponseCode::FormErr);
    assert_eq!(malformed.metadata.id, 0x1267);
    let transfer = question("cluster.local", RecordType::AXFR);
    assert_eq!(
        code(transfer).await.metadata.response_code,
        ResponseCode::Refused
    );
    let answer = ask(&server, "web.default.svc.cluster.local", RecordType::A).await;
    assert_eq!(addresses(&answer).len(), 1);
}

#[tokio::test]
async fn idle_connections_do_not_keep_others_out_for_ever() {
    let server = server(&zone_of(1), nobody()).await;
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(
            TcpStream::connect(server.addresses()[0])
                .await
                .expect("connects"),
        );
    }
    let message = question("web.default.svc.cluster.local", RecordType::A);
    assert_eq!(addresses(&ask_over_tcp(&server, &message).await).len(), 1);
}

/// A resolver that knows one address for every name but `nobody.…`, and does not answer for `silent.…`,
/// nor for anything while it is mute.
struct Resolver {
    address: SocketAddr,
    heard: Arc<AtomicUsize>,
    is_mute: Arc<AtomicBool>,
    _directory: tempfile::TempDir,
    resolv_conf: PathBuf,
}

impl Resolver {
    async fn start(knows: Ipv4Addr) -> Resolver {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("binds");
        let address = socket.local_addr().expect("an address");
        let (heard, is_mute) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        tokio::spawn(resolve(socket, knows, heard.clone(), is_mute.clone()));
        let directory = tempfile::tempdir().expect("a temporary directory");
        let resolv_conf = directory.path().join("resolv.conf");
        write_resolv_conf(&resolv_conf, "search example.com\nnameserver 127.0.0.1\n");
        Resolver {
            address,
            heard,
            is_mute,
            _directory: directory,
            resolv_conf,
        }
    }

    fn upstream(&self) -> Upstream {
        Upstream::at_port(self.resolv_conf.clone(), Vec::new(), self.address.port())
    }
}

fn write_resolv_conf(path: &Path, text: &str) {
    std::fs::write(path, text).expect("writes");
}

async fn resolve(
    socket: UdpSocket,
    knows: Ipv4Addr,
    heard: Arc<AtomicUsize>,
    is_mute: Arc<AtomicBool>,
) {
    let mut buffer = [0; 4096];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        heard.fetch_add(1, Ordering::SeqCst);
        let Ok(asked) = Message::from_vec(&buffer[..length]) else {
            continue;
        };
        let query = asked.queries[0].clone();
        let name = query.name().to_string();
        if name.starts_with("silent") || is_mute.load(Ordering::SeqCst) {
            continue;
        }
        let mut answer = Message::response(asked.metadata.id, OpCode::Query);
        if name.starts_with("nobody") {
            answer.metadata.response_code = ResponseCode::NXDomain;
        } else if query.query_type() == RecordType::A {
            answer.add_answer(Record::from_rdata(
                query.name().clone(),
                300,
                RData::A(A(knows)),
            ));
        }
        answer.add_query(query);
        let _ = socket
            .send_to(&answer.to_vec().expect("encodes"), from)
            .await;
    }
}

#[tokio::test]
async fn other_names_are_asked_of_the_machines_resolvers() {
    let known = Ipv4Addr::new(192, 0, 2, 7);
    let resolver = Resolver::start(known).await;
    let zone = zone_of(1);
    let target = full_name("www.example.com").expect("a name");
    let alias = zone.name("alias.default.svc").expect("a name");
    zone.set(
        "alias",
        vec![Entry {
            name: alias,
            data: Data::Alias(target),
        }],
    );
    let server = server(&zone, resolver.upstream()).await;

    let answer = ask(&server, "www.example.com", RecordType::A).await;
    assert_eq!(addresses(&answer), [known]);
    assert!(!answer.metadata.authoritative);
    let missing = ask(&server, "nobody.example.com", RecordType::A).await;
    assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
    let empty = ask(&server, "www.example.com", RecordType::AAAA).await;
    assert_eq!(
        (empty.metadata.response_code, empty.answers.len()),
        (ResponseCode::NoError, 0)
    );
    let aliased = ask(&server, "alias.default.svc.cluster.local", RecordType::A).await;
    assert_eq!(aliased.answers[0].record_type(), RecordType::CNAME);
    assert_eq!(
        addresses(&aliased),
        [known],
        "the alias is followed for the client"
    );
}

#[tokio::test]
async fn without_resolvers_clients_are_told() {
    let resolver = Resolver::start(Ipv4Addr::LOCALHOST).await;
    let server = server(&zone_of(1), resolver.upstream()).await;
    let ourselves = Upstream::at_port(
        resolver.resolv_conf.clone(),
        vec![IpAddr::from(Ipv4Addr::LOCALHOST)],
        resolver.address.port(),
    );
    for upstream in [nobody(), ourselves] {
        let server = self::server(&zone_of(1), upstream).await;
        let outside = ask(&server, "www.example.com", RecordType::A).await;
        assert_eq!(outside.metadata.response_code, ResponseCode::ServFail);
        // What a search list makes of it must not end the search.
        let inside = ask(&server, "www.example.com.svc.cluster.local", RecordType::A).await;
        assert_eq!(inside.metadata.response_code, ResponseCode::NXDomain);
    }
    let silent = ask(&server, "silent.example.com", RecordType::A).await;
    assert_eq!(silent.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn names_that_nobody_answers_for_do_not_keep_others_from_theirs() {
    let known = Ipv4Addr::new(192, 0, 2, 7);
    let resolver = Resolver::start(known).await;
    let server = server(&zone_of(1), resolver.upstream()).await;
    for round in 0..2 {
        let silent = (0..4).map(|number| {
            let (server, name) = (&server, format!("silent-{round}-{number}.example.com"));
            async move { ask(server, &name, RecordType::A).await }
        });
        for answer in futures::future::join_all(silent).await {
            assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        }
        for number in 0..20 {
            let name = format!("www-{round}-{number}.example.com");
            let answer = ask(&server, &name, RecordType::A).await;
            assert_eq!(addresses(&answer), [known], "{name}");
        }
    }
}

#[tokio::test]
async fn resolvers_that_are_silent_are_left_alone_until_they_speak() {
    let known = Ipv4Addr::new(192, 0, 2, 7);
    let resolver = Resolver::start(known).await;
    resolver.is_mute.store(true, Ordering::SeqCst);
    let server = server(&zone_of(1), resolver.upstream()).await;
    let left_alone = async {
        for number in 0.. {
            let before = resolver.heard.load(Ordering::SeqCst);
            let name = format!("www-{number}.example.com");
            let answer = ask(&server, &name, RecordType::A).await;
            assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
            if resolver.heard.load(Ordering::SeqCst) == before {
                return;
            }
        }
    };
    timeout(PATIENCE * 3, left_alone)
        .await
        .expect("they are left alone");
    resolver.is_mute.store(false, Ordering::SeqCst);
    let back = async {
        while addresses(&ask(&server, "www.example.com", RecordType::A).await).is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, back).await.expect("they are asked again");
}

#[tokio::test]
async fn another_resolv_conf_is_noticed() {
    let resolver = Resolver::start(Ipv4Addr::new(192, 0, 2, 7)).await;
    write_resolv_conf(&resolver.resolv_conf, "");
    let server = server(&zone_of(1), resolver.upstream()).await;
    let before = ask(&server, "www.example.com", RecordType::A).await;
    assert_eq!(before.metadata.response_code, ResponseCode::ServFail);
    write_resolv_conf(&resolver.resolv_conf, "nameserver 127.0.0.1\n");
    let changed = async {
        while addresses(&ask(&server, "www.example.com", RecordType::A).await).is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, changed)
        .await
        .expect("the file is looked at again");
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let first = server(&zone_of(1), nobody()).await;
    let at = first.addresses()[0];
    let error = Server::bind(&[at], zone_of(1), nobody())
        .await
        .err()
        .expect("taken")
        .to_string();
    assert!(
        error.starts_with(&format!("cannot listen for DNS on {at} (TCP)")),
        "{error}"
    );
    assert!(
        error.contains("another name server listens there"),
        "{error}"
    );
    first.close().await;
    Server::bind(&[at], zone_of(1), nobody())
        .await
        .expect("free again");
}
