//! Starting again, two at once, and leaving nothing.

use super::*;

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
    });
}

#[test]
fn a_table_that_somebody_removed_comes_back() {
    on_a_machine(|config| async move {
        let network = Network::open(config).await.expect("opens");
        let pod = Pod::attach(&network, "pod").await;
        let backend = pod.serve(80);
        let vip = tcp(Some(VIP), 80);
        let change = service("default/web", vec![port(vip, &[backend])]);
        network.change_services(change).await.expect("programs");
        // What `nft flush ruleset` does to everybody.
        let flush = || {
            let mut rules = nft::Rules::new("wharf");
            rules.delete_table();
            let mut connection = Connection::open(libc::NETLINK_NETFILTER).expect("a socket");
            connection.execute(&rules.finish()).expect("removes");
        };
        flush();
        let healed = async {
            while chain_names().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, healed)
            .await
            .expect("it comes back by itself");
        let whole = get(SocketAddr::from((VIP, 80)));
        assert_eq!(whole.expect("services are there again").name, "pod");
        flush();
        let other = service("default/other", vec![port(tcp(Some(VIP), 82), &[backend])]);
        network
            .change_services(other)
            .await
            .expect("a change builds it anew, too");
        for port in [80, 82] {
            assert_eq!(
                get(SocketAddr::from((VIP, port)))
                    .expect("all is there")
                    .name,
                "pod"
            );
        }
        // Removed on purpose, it stays away.
        network.close(true).await.expect("removes");
        tokio::task::yield_now().await;
        assert_eq!(chain_names(), Vec::<String>::new());
    });
}

#[test]
fn elements_that_somebody_put_in_the_way_are_overruled() {
    on_a_machine(|config| async move {
        let network = Network::open(config).await.expect("opens");
        let pod = Pod::attach(&network, "pod").await;
        let backend = pod.serve(80);
        let frontend = tcp(Some(VIP), 80);
        let wrong = SocketAddrV4::new(pod.address, 81);
        let mut rules = nft::Rules::new("wharf");
        let element = table::endpoint_element(&frontend, 0, &wrong);
        rules.add_elements(table::ENDPOINTS, &[element]);
        let mut connection = Connection::open(libc::NETLINK_NETFILTER).expect("a socket");
        connection.execute(&rules.finish()).expect("adds");
        let change = service("default/web", vec![port(frontend, &[backend])]);
        network.change_services(change).await.expect("programs");
        assert_eq!(
            get(SocketAddr::from((VIP, 80))).expect("answers").name,
            "pod"
        );
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
fn other_ranges_than_last_time_leave_nothing_of_those() {
    on_a_machine(|config| async move {
        let routes = || {
            let mut connection = Connection::open(libc::NETLINK_ROUTE).expect("a socket");
            let mut found = route::routes(&mut connection).expect("lists");
            found.retain(|route| route.to.prefix() > 0);
            found.into_iter().map(|route| route.to).collect::<Vec<_>>()
        };
        let before = routes();
        let range = |text: &str| text.parse::<Subnet>().expect("a network");
        let other = Config {
            node_address: Ipv4Addr::new(10, 144, 0, 1),
            pod_subnet: range("10.144.0.0/24"),
            pod_cidr: range("10.144.0.0/16"),
            service_cidr: range("10.97.0.0/16"),
            ..config.clone()
        };
        let network = Network::open(other.clone()).await.expect("opens");
        Pod::attach(&network, "pod").await;
        // Killed, and asked to go on with other ranges.
        drop(network);
        let network = Network::open(config.clone()).await.expect("opens");
        assert_eq!(link_names(), ["wharf0"], "whose addresses mean nothing now");
        assert_eq!(routes(), [config.service_cidr, config.pod_subnet]);
        drop(network);
        // Killed again, and asked to remove it by who does not know the ranges.
        let network = Network::open_to_remove(other).await.expect("opens");
        network.close(true).await.expect("removes");
        assert_eq!(link_names(), Vec::<String>::new());
        assert_eq!(routes(), before);
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
            overlap.contains("ip route del unreachable 10.244.0.0/24 metric"),
            "{overlap}"
        );
        let nothing = Network::open_to_remove(other.clone()).await;
        let nothing = nothing.expect("addresses of others are no hindrance to going");
        nothing.close(true).await.expect("removes");
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
