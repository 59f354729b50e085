//! The gateway between a scripted API server and a real kernel: objects go in, and a sandbox finds
//! names and services. Needs root; the machine is a network namespace that ends with the test.

mod api;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use api::Api;
use lifecycle::Ready;
use network::Network;
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::{Value, json};

const NODE: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const WEB: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 7);
/// Reached only when something is wrong.
const PATIENCE: Duration = Duration::from_secs(20);

/// A sandbox on the network.
struct Pod {
    namespace: File,
    address: Ipv4Addr,
}

impl Pod {
    async fn attach(network: &Network, id: &str) -> Pod {
        let namespace = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("tests of the network run as root");
            File::open("/proc/thread-self/ns/net").expect("a namespace")
        });
        let namespace = namespace.join().expect("the thread makes a namespace");
        let path = format!("/proc/self/fd/{}", namespace.as_raw_fd());
        let attachment = network.attach(path.as_ref(), id).await.expect("attaches");
        Pod {
            namespace,
            address: attachment.address,
        }
    }

    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.namespace, CloneFlags::CLONE_NEWNET).expect("enters");
                work()
            });
            inside.join().expect("work does not panic")
        })
    }

    /// Says its name to everyone who connects, until the test ends.
    fn serve(&self, name: &'static str) {
        let address = SocketAddrV4::new(self.address, 8080);
        let listener = self.run(|| TcpListener::bind(address)).expect("listens");
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut stream = stream;
                let _ = stream.write_all(name.as_bytes());
            }
        });
    }
}

fn get() -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((WEB, 80)), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Asks the cluster's name server by its Service for an address: `Ok(None)` is NXDOMAIN.
fn resolve(name: &str) -> Option<Ipv4Addr> {
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("binds");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket.connect((DNS, 53)).expect("a peer");
    socket.send(&query).expect("sends");
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).expect("an answer");
    let (code, answers) = (answer[3] & 0x0f, answer[7]);
    match (code, answers) {
        (3, _) => None,
        (0, 1..) => {
            // A single address is the end of the message: there is nothing behind the answers.
            let octets: [u8; 4] = answer[length - 4..length].try_into().expect("an address");
            Some(octets.into())
        }
        other => panic!("{name}: code and answers are {other:?}"),
    }
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"clusterIP": WEB.to_string(), "ports": [{"name": "http", "port": 80}]},
    })
}

fn slice(endpoints: &[(&Pod, bool)]) -> Value {
    let endpoint = |(pod, ready): &(&Pod, bool)| {
        json!({"addresses": [pod.address.to_string()], "conditions": {
            "ready": ready, "serving": true, "terminating": !ready,
        }})
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "web-1", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
    })
}

/// Waits until something is so.
async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let waiting = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

#[test]
fn objects_become_services_and_names() {
    let machine = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("tests of the network run as root");
        // Its threads are born in this namespace.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(follow());
    });
    if let Err(panic) = machine.join() {
        std::panic::resume_unwind(panic);
    }
}

async fn follow() {
    let state = tempfile::tempdir().expect("a temporary directory");
    let network = Network::open(network::Config {
        instance: "wharf".to_owned(),
        state_dir: state.path().join("network"),
        node_address: NODE,
        pod_subnet: "10.244.0.0/24".parse().expect("a network"),
        pod_cidr: "10.244.0.0/16".parse().expect("a network"),
        service_cidr: "10.96.0.0/16".parse().expect("a network"),
    })
    .await
    .expect("opens");
    let api = Api::default();
    let client = api.client();
    let zone = dns::Zone::new("cluster.local").expect("a zone");
    let listens_at = SocketAddrV4::new(NODE, 53);
    let upstream = dns::Upstream::new("/nonexistent", []);
    let _server = dns::Server::bind(&[listens_at.into()], zone.clone(), upstream)
        .await
        .expect("listens");
    // The second time finds what the first has made.
    for _ in 0..2 {
        gateway::publish_dns_service(&client, DNS, listens_at)
            .await
            .expect("publishes");
    }
    let one = Pod::attach(&network, "one").await;
    let two = Pod::attach(&network, "two").await;
    let client_pod = Arc::new(Pod::attach(&network, "client").await);
    one.serve("one");
    two.serve("two");
    api.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}));
    api.put(service());
    api.put(slice(&[(&one, true)]));

    let (trigger, drain) = lifecycle::drain();
    let informers = informer::Informers::new(client, drain.clone());
    let ready = Ready::default();
    let config = gateway::Config {
        node_name: "here".to_owned(),
        dns_address: DNS,
    };
    let block = ready.block("gateway");
    let running = tokio::spawn(gateway::run(informers, network, zone, config, block, drain));
    tokio::time::timeout(PATIENCE, ready.wait())
        .await
        .expect("ready in time");

    // Ready means programmed: nothing here is waited for.
    let name = "web.default.svc.cluster.local";
    assert_eq!(client_pod.run(|| resolve(name)), Some(WEB));
    assert_eq!(
        client_pod.run(|| resolve("10-244-0-9.default.pod.cluster.local")),
        Some([10, 244, 0, 9].into())
    );
    assert_eq!(
        client_pod.run(|| resolve("nobody.default.svc.cluster.local")),
        None
    );
    assert_eq!(client_pod.run(get).expect("answers"), "one");

    let stop = Arc::new(AtomicBool::new(false));
    let load = std::thread::spawn({
        let (pod, stop) = (client_pod.clone(), stop.clone());
        move || {
            pod.run(|| {
                let mut requests = 0;
                while !stop.load(Ordering::Relaxed) {
                    get().expect("no request fails while endpoints come and go");
                    requests += 1;
                }
                requests
            })
        }
    });
    for _ in 0..20 {
        for (first, second) in [(&one, &two), (&two, &one)] {
            api.put(slice(&[(first, true), (second, true)]));
            api.put(slice(&[(first, false), (second, true)]));
            api.put(slice(&[(second, true)]));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let requests = load.join().expect("no request failed");
    assert!(requests > 0);

    // One that is ending serves where nobody else does.
    api.put(slice(&[(&two, false)]));
    until("the ending endpoint serves alone", || {
        client_pod.run(get).expect("answers") == "two"
    })
    .await;
    api.put(slice(&[]));
    until("a Service without endpoints refuses", || {
        client_pod.run(get).is_err()
    })
    .await;
    api.delete(service());
    until("the name is gone", || {
        client_pod.run(|| resolve(name)).is_none()
    })
    .await;

    trigger.signal();
    tokio::time::timeout(PATIENCE, running)
        .await
        .expect("drains in time")
        .expect("without a panic");
}
