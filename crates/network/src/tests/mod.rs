//! The crate against the kernel: each test is a machine of its own (a network namespace), with
//! sandboxes beside it. Needs root; leaves nothing, because the namespaces end with their threads.

mod instances;
mod listing;
mod passage;
mod sandboxes;
mod services;
mod under_load;

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
