//! Attaching, detaching, publishing ports.

use super::*;

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
fn a_new_sandbox_of_the_same_name_gets_links_of_its_own() {
    on_a_machine(|config| async move {
        let network = Network::open(config.clone()).await.expect("opens");
        let before = Pod::attach(&network, "pod").await;
        // Its namespace is gone or going; nobody has detached it.
        let after = Pod::attach(&network, "pod").await;
        assert_ne!(before.address, after.address);
        let at = after.serve(80);
        assert_eq!(get(at.into()).expect("answers").name, "pod");
        let again = Network::open(config).await.expect("opens again");
        let path = after.namespace.path();
        let attachment = again.attach(&path, "pod").await.expect("again is harmless");
        assert_eq!(attachment.address, after.address);
        assert_eq!(get(at.into()).expect("still answers").name, "pod");
    });
}

#[test]
fn many_at_once_all_get_addresses() {
    on_a_machine(|config| async move {
        let network = Network::open(config).await.expect("opens");
        let mut attaching = tokio::task::JoinSet::new();
        let namespaces: Vec<_> = (0..30).map(|_| Namespace::new()).collect();
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
        assert_eq!(addresses.len(), 30);
        network.release_except([]).await.expect("releases");
        assert_eq!(network.attachments(), []);
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
