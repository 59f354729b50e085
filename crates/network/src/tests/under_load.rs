//! Clients that go on opening connections while what serves them is changed: none of them may notice.
//!
//! First each state that a packet can meet midway, held still; then thousands of changes under load.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::services::answer;
use super::*;
use crate::nft::{Element, Rules};
use crate::table::{self, Class};

/// Changes per test: the window in which a packet could meet half of one is a microsecond wide.
const ROUNDS: usize = 500;
/// What each client asks for at least, should the changes be over too soon.
const REQUESTS_MIN: usize = 200;

/// Asks again and again, until told to stop and at least so often; returns how often.
fn hammer(
    namespace: &File,
    stop: &Arc<AtomicBool>,
    mut ask: impl FnMut() -> std::io::Result<()> + Send + 'static,
) -> JoinHandle<Result<usize, String>> {
    let namespace = namespace.try_clone().expect("another descriptor");
    let stop = stop.clone();
    std::thread::spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET).expect("enters");
        let mut requests = 0;
        while !stop.load(Ordering::Relaxed) || requests < REQUESTS_MIN {
            ask().map_err(|error| format!("after {requests} requests: {error}"))?;
            requests += 1;
        }
        Ok(requests)
    })
}

/// One datagram there and one back, from a port of its own. What a backend answers after it has gone
/// is lost, as it is anywhere, so who hears nothing asks again; to be refused is an error.
fn ask_once(to: SocketAddrV4) -> std::io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let patience = Duration::from_millis(500);
    socket.set_read_timeout(Some(patience))?;
    socket.connect(to)?;
    let tries = PATIENCE.as_millis() / patience.as_millis();
    let mut last = Err(std::io::ErrorKind::TimedOut.into());
    for _ in 0..tries {
        socket.send(b"who")?;
        last = socket.recv(&mut [0; 16]).map(drop);
        match &last {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            _ => return last,
        }
    }
    last
}

/// Lets the kernel forget connections soon that have ended: it walks those of all machines at once.
fn forget_soon() {
    for timeout in [
        "udp_timeout",
        "udp_timeout_stream",
        "tcp_timeout_time_wait",
        "tcp_timeout_close",
    ] {
        let path = format!("/proc/sys/net/netfilter/nf_conntrack_{timeout}");
        std::fs::write(path, "1").expect("a sysctl of this namespace");
    }
}

/// Which of four backends serve, one change after the other: one replaced, all replaced, fewer, more.
const STEPS: [&[usize]; 9] = [
    &[0, 1, 2],
    &[1, 2, 3],
    &[0],
    &[1],
    &[0, 2, 3],
    &[1, 2],
    &[0, 3],
    &[3],
    &[0, 1, 2, 3],
];

fn nobody_notices(affinity: Option<Duration>) {
    on_a_machine(move |config| async move {
        let network = Network::open(config).await.expect("opens");
        forget_soon();
        let machine = File::open("/proc/thread-self/ns/net").expect("a namespace");
        let client = Pod::attach(&network, "client").await;
        let mut pods = Vec::new();
        for id in ["a", "b", "c", "d"] {
            let pod = Pod::attach(&network, id).await;
            pod.serve(80);
            let at = SocketAddrV4::new(pod.address, 80);
            let socket = pod.namespace.run(|| UdpSocket::bind(at)).expect("binds");
            answer(socket, id);
            pods.push((pod, at));
        }
        let udp = Frontend {
            protocol: Protocol::Udp,
            ..tcp(Some(VIP), 80)
        };
        let frontends = [tcp(Some(VIP), 80), udp, tcp(None, 30_080)];
        let change = |step: &[usize]| {
            let backends: Vec<_> = step.iter().map(|number| pods[*number].1).collect();
            let port = |frontend| ServicePort {
                affinity,
                ..port(frontend, &backends)
            };
            service("default/web", frontends.map(port).to_vec())
        };
        let programmed = "programs";
        network
            .change_services(change(STEPS[0]))
            .await
            .expect(programmed);

        let stop = Arc::new(AtomicBool::new(false));
        let service = SocketAddrV4::new(VIP, 80);
        let node_port = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 30_080);
        let clients = [
            ("a pod, TCP", {
                hammer(&client.namespace.0, &stop, move || {
                    get(service.into()).map(drop)
                })
            }),
            ("a pod, UDP", {
                hammer(&client.namespace.0, &stop, move || ask_once(service))
            }),
            ("the machine, TCP", {
                hammer(&machine, &stop, move || get(node_port.into()).map(drop))
            }),
        ];
        for _ in 0..ROUNDS {
            for step in STEPS {
                network
                    .change_services(change(step))
                    .await
                    .expect(programmed);
            }
        }
        stop.store(true, Ordering::Relaxed);
        let asked = clients.map(|(who, client)| (who, client.join().expect("ends")));
        let failed: Vec<_> = asked.iter().filter(|(_, result)| result.is_err()).collect();
        assert!(failed.is_empty(), "{failed:?}");
    });
}

#[test]
fn nobody_notices_that_endpoints_are_replaced() {
    nobody_notices(None);
}

#[test]
fn nobody_with_affinity_notices_that_endpoints_are_replaced() {
    nobody_notices(Some(Duration::from_secs(10_800)));
}

fn remove_element(set: &str, element: Element) {
    let mut rules = Rules::new("wharf");
    rules.delete_elements(set, &[element]);
    let mut connection = Connection::open(libc::NETLINK_NETFILTER).expect("a socket");
    connection.execute(&rules.finish()).expect("removes");
}

/// A client learnt that there are two backends, and comes when the second has gone.
#[test]
fn who_picked_a_place_that_went_is_served_by_another() {
    on_a_machine(|config| async move {
        let network = Network::open(config).await.expect("opens");
        let client = Pod::attach(&network, "client").await;
        let (one, two) = (
            Pod::attach(&network, "one").await,
            Pod::attach(&network, "two").await,
        );
        let backends = [one.serve(80), two.serve(80)];
        let socket = UdpSocket::bind;
        let socket = one.namespace.run(|| socket(backends[0])).expect("binds");
        answer(socket, "one");
        let udp = Frontend {
            protocol: Protocol::Udp,
            ..tcp(Some(VIP), 80)
        };
        for affinity in [None, Some(Duration::from_secs(10_800))] {
            let frontends = [tcp(Some(VIP), 80), udp, tcp(None, 30_080)];
            let change = |backends: &[SocketAddrV4]| {
                let port = |frontend| ServicePort {
                    affinity,
                    ..port(frontend, backends)
                };
                service("default/web", frontends.map(port).to_vec())
            };
            for backends in [&[], &backends[..]] {
                let changed = network.change_services(change(backends)).await;
                changed.expect("programs");
            }
            for frontend in &frontends {
                remove_element(
                    table::ENDPOINTS,
                    table::endpoint_element(frontend, 1, &backends[1]),
                );
                if affinity.is_some() {
                    let (mut places, mut pinned) = table::sticky_elements(frontend, &backends);
                    remove_element(table::STICKY_PLACES, places.remove(1));
                    remove_element(table::STICKY_BACKENDS, pinned.remove(1));
                }
            }
            for _ in 0..32 {
                let answer = client.get(SocketAddr::from((VIP, 80)));
                assert_eq!(answer.expect("pod to service").name, "one");
                let answer = get(SocketAddr::from((Ipv4Addr::LOCALHOST, 30_080)));
                assert_eq!(answer.expect("machine to node port").name, "one");
                let asked = client
                    .namespace
                    .run(|| ask_once(SocketAddrV4::new(VIP, 80)));
                asked.expect("pod to service, UDP");
            }
        }
    });
}

/// The frontend's own element cannot be found, as on kernels that miss what is being replaced.
#[test]
fn who_missed_the_frontend_is_served() {
    on_a_machine(|config| async move {
        let network = Network::open(config).await.expect("opens");
        let client = Pod::attach(&network, "client").await;
        let one = Pod::attach(&network, "one").await;
        let backend = one.serve(80);
        let frontends = [tcp(Some(VIP), 80), tcp(None, 30_080)];
        let change = service("web", frontends.map(|at| port(at, &[backend])).to_vec());
        network.change_services(change).await.expect("programs");
        for frontend in &frontends {
            let class = Class::new(frontend, 1, None);
            remove_element(table::SERVICES, table::service_element(frontend, class));
        }
        for to in [(VIP, 80), (NODE, 30_080)] {
            client.get(to).expect("pod");
            get(to.into()).expect("machine");
        }
    });
}

/// The packet was translated by no lookup at all, though there are endpoints.
#[test]
fn who_came_midway_is_dropped_and_not_refused() {
    const SHORT: Duration = Duration::from_millis(100);
    on_a_machine(|config| async move {
        let network = Network::open(config).await.expect("opens");
        let client = Pod::attach(&network, "client").await;
        let one = Pod::attach(&network, "one").await;
        let backend = one.serve(80);
        let udp = Frontend {
            protocol: Protocol::Udp,
            ..tcp(Some(VIP), 80)
        };
        let frontends = [tcp(Some(VIP), 80), udp, tcp(None, 30_080)];
        let change = service("web", frontends.map(|at| port(at, &[backend])).to_vec());
        network.change_services(change).await.expect("programs");
        let mut rules = Rules::new("wharf");
        for chain in ["prerouting", "nat-output"] {
            rules.flush_chain(chain);
        }
        let mut connection = Connection::open(libc::NETLINK_NETFILTER).expect("a socket");
        connection.execute(&rules.finish()).expect("empties");
        let connect = |to: SocketAddr| TcpStream::connect_timeout(&to, SHORT).map(drop);
        let service = SocketAddr::from((VIP, 80));
        let node_port = SocketAddr::from((NODE, 30_080));
        let from_pod = |to| client.namespace.run(|| connect(to));
        for (what, reached) in [
            ("pod to service", from_pod(service)),
            ("pod to node port", from_pod(node_port)),
            ("machine to service", connect(service)),
            ("machine to node port", connect(node_port)),
        ] {
            let kind = reached.expect_err(what).kind();
            assert_eq!(kind, std::io::ErrorKind::TimedOut, "{what}");
        }
        let asked = client.namespace.run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_read_timeout(Some(SHORT))?;
            socket.connect((VIP, 80))?;
            socket.send(b"who")?;
            socket.recv(&mut [0; 16])
        });
        let kind = asked.expect_err("nobody answers").kind();
        assert_eq!(kind, std::io::ErrorKind::WouldBlock, "pod to service, UDP");
        // Others are refused as ever.
        let refused = from_pod(SocketAddr::from((VIP, 81))).expect_err("no such port");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    });
}
