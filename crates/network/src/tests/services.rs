//! Services, by real connections.

use super::*;

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
            answer(socket, id);
            backends.push(at);
            std::mem::forget(pod);
        }
        let socket = ask_socket(&client, SocketAddrV4::new(VIP, 53));
        let ask = || ask(&socket);
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

        // Flows are forgotten a second time, a moment later; not those of a backend that came back.
        let stale = |backend| Stale {
            frontend,
            backend: Some(backend),
        };
        let both = backends.iter().copied().map(stale).collect();
        let found = network.0.program.lock().still_stale(both);
        assert_eq!(found, [stale(backends[0])]);
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
        let (_, all) = program.replace(many).expect("programs");
        assert_eq!(all.elements, 30_000);

        let mut cost = |backends: &[SocketAddrV4]| {
            let change = service("default/web", vec![port(tcp(Some(VIP), 80), backends)]);
            let (_, cost) = program.change(change).expect("programs");
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
fn chains_that_nobody_uses_go_even_those_of_an_earlier_daemon() {
    on_a_machine(|config| async move {
        let backend = |last: u8| SocketAddrV4::new(Ipv4Addr::new(10, 200, 0, last), 80);
        let change = |count: u8| {
            let backends: Vec<_> = (0..count).map(backend).collect();
            service("default/web", vec![port(tcp(Some(VIP), 80), &backends)])
        };
        let picks = || {
            let chains = chain_names().into_iter();
            chains.filter(|name| name.starts_with("pick-")).count()
        };
        let counts: Vec<u8> = (1..=50).collect();
        for counts in [&counts[..], &[51, 52, 53, 54, 55, 56, 57, 58, 59, 60], &[1]] {
            let network = Network::open(config.clone()).await.expect("opens");
            for count in counts {
                let changed = network.change_services(change(*count)).await;
                changed.expect("programs");
            }
        }
        assert_eq!(
            picks(),
            60,
            "they stay for the next, while they are not too many"
        );
        let network = Network::open(config).await.expect("opens");
        for count in 61..=80 {
            let changed = network.change_services(change(count)).await;
            changed.expect("programs");
        }
        assert!(picks() < 30, "{} chains", picks());
    });
}

#[test]
fn udp_clients_from_before_a_node_port_meet_its_backend() {
    on_a_machine(|config| async move {
        let network = Network::open(config).await.expect("opens");
        let client = Pod::attach(&network, "client").await;
        let pod = Pod::attach(&network, "pod").await;
        // Somebody of the machine's own answers on the port, until it becomes a node port.
        answer(UdpSocket::bind((NODE, 30_053)).expect("binds"), "machine");
        let at = SocketAddrV4::new(pod.address, 5353);
        answer(
            pod.namespace.run(|| UdpSocket::bind(at)).expect("binds"),
            "pod",
        );
        let socket = ask_socket(&client, SocketAddrV4::new(NODE, 30_053));
        assert_eq!(ask(&socket), "machine");
        let frontend = Frontend {
            address: None,
            protocol: Protocol::Udp,
            port: 30_053,
        };
        let change = service("dns", vec![port(frontend, &[at])]);
        network.change_services(change).await.expect("programs");
        assert_eq!(ask(&socket), "pod");
    });
}

/// Says its name to everyone who asks, until the test ends.
pub(super) fn answer(socket: UdpSocket, name: &'static str) {
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(name.as_bytes(), from);
        }
    });
}

fn ask_socket(client: &Pod, to: SocketAddrV4) -> UdpSocket {
    let bound = client
        .namespace
        .run(|| UdpSocket::bind((client.address, 0)));
    let socket = bound.expect("binds");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket.connect(to).expect("a peer");
    socket
}

fn ask(socket: &UdpSocket) -> String {
    let mut buffer = [0; 64];
    socket.send(b"who").expect("sends");
    let length = socket.recv(&mut buffer).expect("an answer");
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}
