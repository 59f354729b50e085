//! The crate against the kernel: each test is a machine of its own (a network namespace), with
//! sandboxes beside it. Needs root; leaves nothing, because the namespaces end with their threads.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};

use super::*;
use crate::netlink::Batch;
use crate::route::LinkChange;

const NODE: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 77);
/// Long enough for a busy machine; reached only when something is wrong.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test as the only inhabitant of a machine with an instance's configuration.
fn on_a_machine<F: Future<Output = ()>>(test: impl FnOnce(Config) -> F + Send + 'static) {
    let machine = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("tests of the network run as root");
        loopback_up();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let state = tempfile::tempdir().expect("a temporary directory");
        let config = Config {
            instance: "wharf".to_owned(),
            state_dir: state.path().join("network"),
            node_address: NODE,
            pod_subnet: "10.244.0.0/24".parse().expect("a network"),
            pod_cidr: "10.244.0.0/16".parse().expect("a network"),
            service_cidr: "10.96.0.0/16".parse().expect("a network"),
        };
        runtime.expect("a runtime").block_on(test(config));
    });
    if let Err(panic) = machine.join() {
        std::panic::resume_unwind(panic);
    }
}

fn loopback_up() {
    let mut connection = Connection::open(libc::NETLINK_ROUTE).expect("a socket");
    let index = route::index_of_existing(&mut connection, "lo").expect("lo");
    let mut batch = Batch::default();
    route::change_link(&mut batch, index, &LinkChange::default());
    connection.execute(&batch).expect("lo goes up");
}

/// Makes the machine believe that it has a way to everywhere.
fn default_route() {
    let mut connection = Connection::open(libc::NETLINK_ROUTE).expect("a socket");
    let index = route::index_of_existing(&mut connection, "wharf0").expect("the bridge");
    let mut batch = Batch::default();
    let everywhere = Subnet::containing(Ipv4Addr::UNSPECIFIED, 0);
    route::add_route(
        &mut batch,
        everywhere,
        &route::Way::Link {
            index,
            source: None,
        },
    );
    connection.execute(&batch).expect("a route");
}

/// A network namespace that lives as long as this.
struct Namespace(File);

impl Namespace {
    fn new() -> Namespace {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root");
            Namespace(File::open("/proc/thread-self/ns/net").expect("a namespace"))
        });
        made.join().expect("the thread makes a namespace")
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }

    /// Runs something inside.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("enters");
                work()
            });
            inside.join().expect("work does not panic")
        })
    }
}

/// A sandbox on the network.
struct Pod {
    id: String,
    namespace: Namespace,
    address: Ipv4Addr,
}

impl Pod {
    async fn attach(network: &Network, id: &str) -> Pod {
        let namespace = Namespace::new();
        let attachment = network
            .attach(&namespace.path(), id)
            .await
            .expect("attaches");
        Pod {
            id: id.to_owned(),
            namespace,
            address: attachment.address,
        }
    }

    /// Serves `NAME CLIENT\n` to everyone who connects, until the test ends.
    fn serve(&self, port: u16) -> SocketAddrV4 {
        let address = SocketAddrV4::new(self.address, port);
        let listener = self
            .namespace
            .run(|| TcpListener::bind(address))
            .expect("listens");
        serve(listener, self.id.clone());
        address
    }

    fn get(&self, to: impl Into<SocketAddr>) -> std::io::Result<Answer> {
        let to = to.into();
        self.namespace.run(|| get(to))
    }
}

fn serve(listener: TcpListener, name: String) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let client = stream
                .peer_addr()
                .map(|peer| peer.ip().to_string())
                .unwrap_or_default();
            let _ = stream.write_all(format!("{name} {client}").as_bytes());
        }
    });
}

/// Who answered, and whom it saw.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    name: String,
    client: Ipv4Addr,
}

fn get(to: SocketAddr) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (name, client) = text.split_once(' ').expect("name and client");
    Ok(Answer {
        name: name.to_owned(),
        client: client.parse().expect("an address"),
    })
}

fn tcp(address: Option<Ipv4Addr>, port: u16) -> Frontend {
    Frontend {
        address,
        protocol: Protocol::Tcp,
        port,
    }
}

fn port(frontend: Frontend, backends: &[SocketAddrV4]) -> ServicePort {
    ServicePort {
        frontend,
        backends: backends.to_vec(),
        affinity: None,
        rewrite_source: false,
        unserved: Unserved::Refuse,
    }
}

fn service(name: &str, ports: Vec<ServicePort>) -> Vec<ServiceChange> {
    vec![ServiceChange {
        name: name.to_owned(),
        ports,
    }]
}

fn link_names() -> Vec<String> {
    let mut connection = Connection::open(libc::NETLINK_ROUTE).expect("a socket");
    let links = route::links(&mut connection).expect("lists");
    links
        .into_iter()
        .map(|link| link.name)
        .filter(|name| name.starts_with("wharf"))
        .collect()
}

fn chain_names() -> Vec<String> {
    let mut connection = Connection::open(libc::NETLINK_NETFILTER).expect("a socket");
    nft::chains(&mut connection, "wharf").expect("lists")
}

#[test]
fn sandboxes_reach_each_other_and_the_machine() {
    on_a_machine(|config| async move {
        let network = Network::open(config).await.expect("opens");
        let one = Pod::attach(&network, "one").await;
        let two = Pod::attach(&network, "two").await;
        let at = two.serve(80);
        let expected = Answer {
            name: "two".to_owned(),
            client: one.address,
        };
        assert_eq!(one.get(at).expect("pod to pod"), expected);
        assert_eq!(get(at.into()).expect("machine to pod").client, NODE);
        let listener = TcpListener::bind((NODE, 0)).expect("listens on the bridge's address");
        let node = listener.local_addr().expect("an address");
        serve(listener, "node".to_owned());
        assert_eq!(one.get(node).expect("pod to machine").client, one.address);
        // Nobody has this address: the answer is no, not silence.
        let nobody = SocketAddr::from(([10, 244, 0, 200], 80));
        assert_eq!(
            one.get(nobody).expect_err("nobody is there").kind(),
            std::io::ErrorKind::HostUnreachable
        );
        let lo = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        assert_eq!(
            one.get(lo).expect_err("nobody listens").kind(),
            std::io::ErrorKind::ConnectionRefused,
            "lo is up"
        );
    });
}

#[test]
fn a_service_balances_and_follows_its_backends() {
    on_a_machine(|config| async move {
        let network = Network::open(config).await.expect("opens");
        let client = Pod::attach(&network, "client").await;
        let one = Pod::attach(&network, "one").await;
        let two = Pod::attach(&network, "two").await;
        let (first, second) = (one.serve(8080), two.serve(8080));
        let vip = tcp(Some(VIP), 80);
        let at = SocketAddr::from((VIP, 80));
        let change = |backends: &[SocketAddrV4]| service("default/web", vec![port(vip, backends)]);
        network
            .change_services(change(&[first, second]))
            .await
            .expect("programs");

        let mut seen = BTreeSet::new();
        for _ in 0..64 {
            let answer = client.get(at).expect("pod to service");
            assert_eq!(
                answer.client, client.address,
                "between pods the source is kept"
            );
            seen.insert(answer.name);
        }
        assert_eq!(seen.len(), 2, "64 connections met one of two backends only");
        assert_eq!(get(at).expect("machine to service").client, NODE);

        // One that is open goes on; new ones go elsewhere.
        let listener = two
            .namespace
            .run(|| TcpListener::bind((two.address, 9000)))
            .expect("listens");
        let slow = SocketAddrV4::new(two.address, 9000);
        network
            .change_services(change(&[slow]))
            .await
            .expect("programs");
        let mut open = client
            .namespace
            .run(|| TcpStream::connect(at))
            .expect("connects");
        let (mut accepted, _) = listener.accept().expect("accepts");
        network
            .change_services(change(&[first]))
            .await
            .expect("programs");
        for _ in 0..16 {
            assert_eq!(client.get(at).expect("new connections").name, "one");
        }
        open.write_all(b"x").expect("the open connection goes on");
        let mut byte = [0];
        accepted
            .read_exact(&mut byte)
            .expect("and its backend hears it");

        network
            .change_services(service("default/web", Vec::new()))
            .await
            .expect("programs");
        let refused = client.get(at).expect_err("the service is gone");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    on_a_machine(|config| async move {
        let network = Network::open(config).await.expect("opens");
        let pod = Pod::attach(&network, "pod").await;
        let backend = pod.serve(80);
        let change = service("default/web", vec![port(tcp(Some(VIP), 80), &[backend])]);
        network.change_services(change).await.expect("programs");
        let answer = pod.get(SocketAddr::from((VIP, 80))).expect("hairpin");
        assert_eq!(
            answer,
            Answer {
                name: "pod".to_owned(),
                client: NODE
            }
        );
    });
}

#[test]
fn node_ports_answer_on_every_local_address() {
    on_a_machine(|config| async move {
        let network = Network::open(config).await.expect("opens");
        let client = Pod::attach(&network, "client").await;
        let pod = Pod::attach(&network, "pod").await;
        let backend = pod.serve(80);
        let mut cluster = port(tcp(None, 30_080), &[backend]);
        cluster.rewrite_source = true;
        let local = port(tcp(None, 30_081), &[backend]);
        network
            .change_services(service("default/web", vec![cluster, local]))
            .await
            .expect("programs");
        let at = |address: Ipv4Addr, port: u16| SocketAddr::from((address, port));
        for port in [30_080, 30_081] {
            for address in [Ipv4Addr::LOCALHOST, NODE] {
                let answer = get(at(address, port)).expect("machine to its own node port");
                assert_eq!(
                    answer,
                    Answer {
                        name: "pod".to_owned(),
                        client: NODE
                    },
                    "{address}:{port}"
                );
            }
        }
        assert_eq!(
            client.get(at(NODE, 30_080)).expect("rewritten").client,
            NODE
        );
        assert_eq!(
            client.get(at(NODE, 30_081)).expect("kept").client,
            client.address
        );
        // 127.0.0.1 is everybody's own.
        let refused = client
            .get(at(Ipv4Addr::LOCALHOST, 30_080))
            .expect_err("not the machine's");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn loopback_of_the_machine_is_out_of_reach_for_sandboxes() {
    on_a_machine(|config| async move {
        let network = Network::open(config).await.expect("opens");
        let pod = Pod::attach(&network, "pod").await;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 7777)).expect("listens");
        serve(listener, "machine".to_owned());
        // A sandbox that routes 127/8 to the machine, as CVE-2020-8558 did.
        let reached = pod.namespace.run(|| {
            for switch in ["all", "eth0"] {
                let path = format!("/proc/sys/net/ipv4/conf/{switch}/route_localnet");
                std::fs::write(path, "1").expect("the sandbox's own switch");
            }
            let mut connection = Connection::open(libc::NETLINK_ROUTE).expect("a socket");
            let lo = route::index_of_existing(&mut connection, "lo").expect("lo");
            let index = route::index_of_existing(&mut connection, "eth0").expect("eth0");
            let mut batch = Batch::default();
            // Without its own 127.0.0.1, only the route below leads there.
            batch.message("delete", libc::RTM_DELADDR, netlink::ACK, |message| {
                message.raw(&[libc::AF_INET as u8, 8, 0, 0]);
                message.raw(&lo.to_ne_bytes());
                message.attribute(libc::IFA_LOCAL, &[127, 0, 0, 1]);
            });
            let machine = Subnet::containing(Ipv4Addr::LOCALHOST, 32);
            let router = Ipv4Addr::new(169, 254, 1, 1);
            route::add_route(&mut batch, machine, &route::Way::Router { index, router });
            connection.execute(&batch).expect("routes");
            let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 7777));
            TcpStream::connect_timeout(&to, Duration::from_millis(300)).is_ok()
        });
        assert!(
            !reached,
            "a sandbox reached a service on the machine's 127.0.0.1"
        );
    });
}

#[test]
fn without_backends_clients_know_at_once() {
    on_a_machine(|config| async move {
        let network = Network::open(config).await.expect("opens");
        let client = Pod::attach(&network, "client").await;
        let external = Ipv4Addr::new(198, 51, 100, 7);
        default_route();
        let ports = [
            tcp(Some(VIP), 80),
            tcp(None, 30_080),
            tcp(Some(external), 80),
        ];
        let change = service("default/web", ports.map(|at| port(at, &[])).to_vec());
        network.change_services(change).await.expect("programs");
        let check = |reached: std::io::Result<Answer>, what: &str| {
            let kind = reached.expect_err(what).kind();
            assert_eq!(kind, std::io::ErrorKind::ConnectionRefused, "{what}");
        };
        // More often than the kernel would send ICMP errors.
        for _ in 0..20 {
            check(client.get(SocketAddr::from((VIP, 80))), "pod to service");
        }
        check(
            client.get(SocketAddr::from((VIP, 81))),
            "pod to a port that the service has not",
        );
        check(
            client.get(SocketAddr::from(([10, 96, 1, 1], 80))),
            "pod to no service",
        );
        check(
            client.get(SocketAddr::from((NODE, 30_080))),
            "pod to node port",
        );
        check(
            client.get(SocketAddr::from((external, 80))),
            "pod to external address",
        );
        check(get(SocketAddr::from((VIP, 80))), "machine to service");
        check(
            get(SocketAddr::from((Ipv4Addr::LOCALHOST, 30_080))),
            "machine to node port",
        );

        let socket = client
            .namespace
            .run(|| UdpSocket::bind((client.address, 0)))
            .expect("binds");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        socket.connect((VIP, 53)).expect("a peer");
        socket.send(b"x").expect("sends");
        let refused = socket.recv(&mut [0; 16]).expect_err("udp to service");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_client_with_affinity_stays_with_its_backend_while_it_lives() {
    on_a_machine(|config| async move {
        let network = Network::open(config.clone()).await.expect("opens");
        let client = Pod::attach(&network, "client").await;
        let mut pods = BTreeMap::new();
        for id in ["a", "b", "c", "d"] {
            let pod = Pod::attach(&network, id).await;
            pods.insert(id.to_owned(), pod.serve(80));
            std::mem::forget(pod);
        }
        let at = SocketAddr::from((VIP, 80));
        let change = |pods: &BTreeMap<String, SocketAddrV4>| {
            let backends: Vec<_> = pods.values().copied().collect();
            let mut sticky = port(tcp(Some(VIP), 80), &backends);
            sticky.affinity = Some(Duration::from_secs(10_800));
            service("default/web", vec![sticky])
        };
        network
            .change_services(change(&pods))
            .await
            .expect("programs");
        let stays = |pods: &BTreeMap<String, SocketAddrV4>| {
            let chosen = client.get(at).expect("answers").name;
            assert!(pods.contains_key(&chosen), "{chosen} is gone");
            for _ in 0..16 {
                assert_eq!(client.get(at).expect("answers").name, chosen);
            }
            chosen
        };
        let first = stays(&pods);
        pods.remove(&first);
        network
            .change_services(change(&pods))
            .await
            .expect("programs");
        let second = stays(&pods);
        // A daemon that starts anew does not make clients change.
        let again = Network::open(config).await.expect("opens again");
        again
            .replace_services(change(&pods))
            .await
            .expect("programs");
        assert_eq!(stays(&pods), second);
    });
}

#[test]
fn udp_clients_of_a_backend_that_went_meet_another() {
    on_a_machine(|config| async move {
        let network = Network::open(config).await.expect("opens");
        let client = Pod::attach(&network, "client").await;
        let frontend = Frontend {
            address: Some(VIP),
            protocol: Protocol::Udp,
            port: 53,
        };
        let mut backends = Vec::new();
        for id in ["one", "two"] {
            let pod = Pod::attach(&network, id).await;
            let at = SocketAddrV4::new(pod.address, 5353);
            let socket = pod.namespace.run(|| UdpSocket::bind(at)).expect("binds");
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(id.as_bytes(), from);
                }
            });
            backends.push(at);
            std::mem::forget(pod);
        }
        let socket = client
            .namespace
            .run(|| UdpSocket::bind((client.address, 0)))
            .expect("binds");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        socket.connect((VIP, 53)).expect("a peer");
        let ask = || {
            let mut buffer = [0; 64];
            socket.send(b"who").expect("sends");
            let length = socket.recv(&mut buffer).expect("an answer");
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        };
        let change = |backends: &[SocketAddrV4]| service("dns", vec![port(frontend, backends)]);
        network
            .change_services(change(&backends[..1]))
            .await
            .expect("programs");
        assert_eq!(ask(), "one");
        network
            .change_services(change(&backends))
            .await
            .expect("programs");
        assert_eq!(ask(), "one", "the flow goes on while its backend is there");
        network
            .change_services(change(&backends[1..]))
            .await
            .expect("programs");
        assert_eq!(ask(), "two");
    });
}

#[test]
fn published_ports_lead_to_their_sandbox_and_go_with_it() {
    on_a_machine(|config| async move {
        let network = Network::open(config).await.expect("opens");
        let one = Pod::attach(&network, "one").await;
        let two = Pod::attach(&network, "two").await;
        one.serve(80);
        let published = |frontend| vec![PublishedPort { frontend, port: 80 }];
        let everywhere = tcp(None, 8080);
        network
            .publish("one", published(everywhere))
            .await
            .expect("publishes");
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
        assert_eq!(get(local).expect("machine to published port").name, "one");
        let node = SocketAddr::from((NODE, 8080));
        assert_eq!(
            two.get(node).expect("pod to published port").client,
            two.address
        );
        let hairpin = one.get(node).expect("to itself");
        assert_eq!(
            hairpin,
            Answer {
                name: "one".to_owned(),
                client: NODE
            }
        );
        for frontend in [everywhere, tcp(Some(NODE), 8080)] {
            let taken = network
                .publish("two", published(frontend))
                .await
                .expect_err("taken");
            assert!(
                taken
                    .to_string()
                    .contains("already published by sandbox one"),
                "{taken}"
            );
        }
        network.detach("one").await.expect("detaches");
        let refused = get(local).expect_err("gone");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        network
            .publish("two", published(everywhere))
            .await
            .expect("the port is free again");
    });
}

#[test]
fn a_daemon_that_was_killed_finds_everything_and_repairs_what_is_not() {
    on_a_machine(|config| async move {
        let before = Network::open(config.clone()).await.expect("opens");
        let stays = Pod::attach(&before, "stays").await;
        let goes = Pod::attach(&before, "goes").await;
        let backend = stays.serve(80);
        let vip = port(tcp(Some(VIP), 80), &[backend]);
        let node_port = port(tcp(None, 30_080), &[backend]);
        let old = port(tcp(Some(VIP), 81), &[backend]);
        let mut changes = service("default/web", vec![vip.clone(), node_port.clone()]);
        changes.extend(service("default/old", vec![old]));
        before.change_services(changes).await.expect("programs");
        let published = PublishedPort {
            frontend: tcp(None, 8080),
            port: 80,
        };
        before
            .publish("stays", vec![published])
            .await
            .expect("publishes");
        let at = |port| SocketAddr::from((VIP, port));

        let mut connection = Connection::open(libc::NETLINK_ROUTE).expect("a socket");
        let mut batch = Batch::default();
        let way = route::Way::Link {
            index: route::index_of_existing(&mut connection, "wharf0").expect("the bridge"),
            source: Some(NODE),
        };
        route::remove_route(&mut batch, config.service_cidr, &way);
        connection
            .execute(&batch)
            .expect("somebody removes a route");

        let after = Network::open(config.clone()).await.expect("opens again");
        assert_eq!(after.attachments(), before.attachments());
        for port in [80, 81] {
            assert_eq!(
                get(at(port))
                    .expect("services go on before they are known")
                    .name,
                "stays"
            );
        }
        let (_, cost) = after
            .0
            .program
            .lock()
            .replace(service("default/web", vec![vip.clone(), node_port]))
            .expect("programs");
        assert_eq!(
            cost.elements, 2,
            "only what differs is sent: one service less"
        );
        get(at(81)).expect_err("the service that went meanwhile is gone");
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
        assert_eq!(get(local).expect("published port").name, "stays");

        after
            .release_except(["stays".to_owned()])
            .await
            .expect("releases");
        let ids: Vec<_> = after
            .attachments()
            .into_iter()
            .map(|attachment| attachment.id)
            .collect();
        assert_eq!(ids, ["stays"]);
        let gone = get(SocketAddr::from((goes.address, 80))).expect_err("cut off");
        assert_eq!(gone.kind(), std::io::ErrorKind::HostUnreachable);
        let next = Pod::attach(&after, "next").await;
        assert_ne!(next.address, goes.address, "an address rests after use");

        // Somebody flushes all rules of the machine.
        after.0.program.lock().remove().expect("removes");
        after
            .change_services(service(
                "default/other",
                vec![port(tcp(Some(VIP), 82), &[backend])],
            ))
            .await
            .expect("builds everything anew");
        for port in [80, 82] {
            assert_eq!(
                get(at(port)).expect("all services are there again").name,
                "stays"
            );
        }
    });
}

#[test]
fn closing_with_removal_leaves_nothing() {
    on_a_machine(|config| async move {
        let routes = || {
            let mut connection = Connection::open(libc::NETLINK_ROUTE).expect("a socket");
            route::routes(&mut connection).expect("lists")
        };
        let before = routes();
        let network = Network::open(config.clone()).await.expect("opens");
        let pod = Pod::attach(&network, "pod").await;
        let backend = SocketAddrV4::new(pod.address, 80);
        let change = service("default/web", vec![port(tcp(Some(VIP), 80), &[backend])]);
        network.change_services(change).await.expect("programs");
        network.close(false).await.expect("closes");
        assert_eq!(link_names(), ["wharf0", "wharfv2"], "containers go on");
        let network = Network::open(config.clone()).await.expect("opens again");
        network.close(true).await.expect("removes");
        assert_eq!(link_names(), Vec::<String>::new());
        assert_eq!(chain_names(), Vec::<String>::new());
        assert_eq!(routes(), before);
        assert!(!config.state_dir.exists());
    });
}

#[test]
fn two_instances_on_one_machine_do_not_meet() {
    on_a_machine(|config| async move {
        let mut other = config.clone();
        other.instance = "wharf-0a1b2c".to_owned();
        other.state_dir = config.state_dir.with_extension("other");
        let network = Network::open(config).await.expect("opens");
        let overlap = Network::open(other.clone())
            .await
            .err()
            .expect("same addresses")
            .to_string();
        assert!(
            overlap.contains("10.244.0.0/24 overlaps with 10.244.0.0/24"),
            "{overlap}"
        );
        other.node_address = Ipv4Addr::new(10, 144, 0, 1);
        other.pod_subnet = "10.144.0.0/24".parse().expect("a network");
        other.pod_cidr = "10.144.0.0/16".parse().expect("a network");
        let overlap = Network::open(other.clone())
            .await
            .err()
            .expect("same services")
            .to_string();
        assert!(overlap.contains("--service-cidr"), "{overlap}");
        other.service_cidr = "10.97.0.0/16".parse().expect("a network");
        let second = Network::open(other).await.expect("opens beside");
        let one = Pod::attach(&network, "one").await;
        let two = Pod::attach(&second, "two").await;
        let backend = one.serve(80);
        let change = service("default/web", vec![port(tcp(Some(VIP), 80), &[backend])]);
        network.change_services(change).await.expect("programs");
        assert_eq!(two.get(backend).expect("across").name, "one");
        second.close(true).await.expect("removes");
        assert_eq!(
            get(SocketAddr::from((VIP, 80))).expect("still there").name,
            "one"
        );
    });
}

#[test]
fn a_change_costs_what_changed() {
    on_a_machine(|config| async move {
        let network = Network::open(config).await.expect("opens");
        let backend = |number: u32| {
            SocketAddrV4::new(
                Ipv4Addr::from_bits(u32::from_be_bytes([10, 200, 0, 0]) + number),
                80,
            )
        };
        let many: Vec<_> = (0..10_000_u32)
            .map(|number| {
                let vip = Ipv4Addr::from_bits(u32::from_be_bytes([10, 96, 1, 0]) + number);
                let backends = [backend(2 * number), backend(2 * number + 1)];
                ServiceChange {
                    name: format!("default/s{number}"),
                    ports: vec![port(tcp(Some(vip), 80), &backends)],
                }
            })
            .collect();
        let mut program = network.0.program.lock();
        let started = std::time::Instant::now();
        let (_, all) = program.replace(many).expect("programs");
        println!("10000 services: {all:?} in {:?}", started.elapsed());
        assert_eq!(all.elements, 30_000);

        let mut cost = |backends: &[SocketAddrV4]| {
            let change = service("default/web", vec![port(tcp(Some(VIP), 80), backends)]);
            let started = std::time::Instant::now();
            let (_, cost) = program.change(change).expect("programs");
            println!(
                "{} backends: {cost:?} in {:?}",
                backends.len(),
                started.elapsed()
            );
            cost
        };
        assert_eq!(cost(&[backend(0)]).elements, 2);
        assert_eq!(
            cost(&[backend(0)]),
            program::Cost::default(),
            "the same again is nothing"
        );
        let ten: Vec<_> = (0..10).map(backend).collect();
        assert_eq!(cost(&ten).elements, 2 + 9, "the class changes, nine come");
        assert_eq!(
            cost(&ten[1..]).elements,
            2 + 3,
            "the last takes the place of the one that goes"
        );
        let replaced: Vec<_> = (2..11).map(backend).collect();
        let one_for_another = cost(&replaced);
        assert_eq!(one_for_another.elements, 2);
        assert!(one_for_another.bytes < 512, "{one_for_another:?}");
        assert_eq!(cost(&[]).elements, 1 + 9);
    });
}

#[test]
fn what_cannot_be_attached_is_named() {
    on_a_machine(|config| async move {
        let mut small = config.clone();
        small.pod_subnet = "10.244.0.0/30".parse().expect("a network");
        let network = Network::open(small).await.expect("opens");
        let namespace = Namespace::new();
        let check = async |path: PathBuf, id: &str, expected: &str| {
            let error = network
                .attach(&path, id)
                .await
                .expect_err(expected)
                .to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(namespace.path(), "../x", "is not a sandbox name").await;
        check(
            "/nowhere".into(),
            "x",
            "network namespace /nowhere: No such file",
        )
        .await;
        check(
            "/proc/thread-self/ns/net".into(),
            "x",
            "is the machine's own",
        )
        .await;
        check("/dev/null".into(), "x", "x: create the veth pair wharfv2").await;
        let pod = Pod::attach(&network, "pod").await;
        check(namespace.path(), "x", "no free address in 10.244.0.0/30").await;
        let again = network
            .attach(&pod.namespace.path(), "pod")
            .await
            .expect("again is harmless");
        assert_eq!(again.address, pod.address);
        network.detach("pod").await.expect("detaches");
        network.detach("pod").await.expect("again is harmless");
        let unknown = network
            .publish("pod", Vec::new())
            .await
            .expect_err("gone")
            .to_string();
        assert_eq!(unknown, "sandbox pod is not attached to the network");
        // What failed has left nothing in its namespace: another sandbox can have it.
        network
            .attach(&namespace.path(), "next")
            .await
            .expect("attaches");
    });
}

#[test]
fn many_at_once_all_get_addresses() {
    on_a_machine(|config| async move {
        let network = Network::open(config).await.expect("opens");
        let started = std::time::Instant::now();
        let mut attaching = tokio::task::JoinSet::new();
        let namespaces: Vec<_> = (0..30).map(|_| Namespace::new()).collect();
        let started = std::time::Instant::now();
        for (number, namespace) in namespaces.iter().enumerate() {
            let (network, path) = (network.clone(), namespace.path());
            attaching.spawn(async move {
                network
                    .attach(&path, &format!("pod-{number}"))
                    .await
                    .expect("attaches")
                    .address
            });
        }
        let addresses: BTreeSet<_> = attaching.join_all().await.into_iter().collect();
        println!("30 attached in {:?}", started.elapsed());
        assert_eq!(addresses.len(), 30);
        let started = std::time::Instant::now();
        network.release_except([]).await.expect("releases");
        println!("30 detached in {:?}", started.elapsed());
        assert_eq!(network.attachments(), []);
    });
}
