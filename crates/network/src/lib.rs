//! Links, addresses and packet rules of one instance on one machine, over netlink.
//!
//! Sandboxes are routed, not bridged: each has a pair of links, an address of its own and the machine
//! as its router, so all of its packets cross the machine's IP stack, and what rules rewrite on the
//! way there they see again on the way back. Services are elements of nf_tables maps, not rules: a
//! change costs what changed, and a lookup costs the same beside ten thousand others. All of it is
//! written here in the kernel's own messages: no helper program is run, and nothing is touched that
//! does not carry the instance's name; the one exception are two rules in a chain that all programs
//! share, where it drops what they forward (`passage`). What is in the kernel is the truth: a daemon that was killed
//! opens the network again and finds it working. `net.ipv4.ip_forward` is switched on and stays on,
//! because others may have come to rely on it.
//!
//! What a service is, which backends are ready, and what names it has, is left to the callers. IPv4
//! only.

mod attach;
mod conntrack;
mod error;
mod host;
mod netlink;
mod nft;
mod passage;
mod pool;
mod program;
mod record;
mod route;
mod service;
mod subnet;
mod table;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use netlink_sys::Socket;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::AbortHandle;

pub use error::{AttachError, OpenError, RecordError, RulesError};
pub use pool::Exhausted;
pub use service::{
    Frontend, Protocol, PublishedPort, ServiceChange, ServicePort, UnknownProtocol, Unserved,
};
pub use subnet::{Subnet, SubnetError};

use host::{Host, Purpose};
use netlink::Connection;
use passage::{Dropping, Passage};
use pool::Pool;
use program::{Program, Stale};
use record::Records;

/// Sandboxes that are attached side by side: the kernel does the work one by one anyway.
const ATTACHING_MAX: usize = 4;

/// How long a packet may take from the first chain to the last: microseconds, unless its processor is
/// taken away from it.
const UNDER_WAY_MAX: Duration = Duration::from_millis(500);

/// What an instance's network is to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the instance: links and the table are named after it (`[a-z0-9-]{1,14}`).
    pub instance: String,
    /// Directory for the records of attached sandboxes; made if absent.
    pub state_dir: PathBuf,
    /// The node's address in the pod subnet, on the bridge: DNS and API listen there.
    pub node_address: Ipv4Addr,
    /// Where this node's sandboxes get their addresses from.
    pub pod_subnet: Subnet,
    /// Where all nodes' sandboxes have their addresses; between them sources are kept.
    pub pod_cidr: Subnet,
    /// Where services have their addresses.
    pub service_cidr: Subnet,
}

/// A sandbox on the network.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Attachment {
    /// The sandbox's name.
    pub id: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// The machine's end of its pair of links.
    pub host_link: String,
    /// Ports of the machine that lead to it.
    pub ports: Vec<PublishedPort>,
    /// Which network namespace it has (inode number).
    pub namespace: u64,
}

/// The network of an instance. Clones share it.
#[derive(Clone)]
pub struct Network(Arc<Inner>);

struct Inner {
    config: Config,
    host: Host,
    records: Records,
    // Held one at a time, and never across an await.
    links: Mutex<Connection>,
    sandboxes: Mutex<Sandboxes>,
    program: Mutex<Program>,
    passage: Mutex<Passage>,
    tracked: Mutex<Connection>,
    attaching: Semaphore,
    /// Ends with the network.
    watching: Mutex<Option<AbortHandle>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop_watching();
    }
}

struct Sandboxes {
    pool: Pool,
    attached: BTreeMap<String, Attachment>,
    /// Being attached or detached; the name is taken.
    busy: BTreeSet<String>,
}

/// Chains of others that drop forwarded packets by default, as `table, chain`: what they drop, no rule
/// of this crate can let through. iptables' own is not among them: an instance opens it for its
/// sandboxes. For whoever looks for reasons why pods do not reach each other.
///
/// # Errors
/// When the kernel does not list its chains.
pub fn forward_drops() -> std::io::Result<Vec<(String, String)>> {
    let mut connection = Connection::open(libc::NETLINK_NETFILTER)?;
    let found = passage::forward_drops(&mut connection).map_err(|refused| refused.source)?;
    Ok(found
        .into_iter()
        .filter(|dropping| !dropping.is_common())
        .map(|Dropping { table, chain }| (table, chain))
        .collect())
}

/// Runs work that waits for the kernel beside the async workers.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => panic!("the runtime ended under a network call: {error}"),
        },
    }
}

impl Network {
    /// Makes or takes up links, routes, sysctls and the table of an instance, in the network
    /// namespace of the calling thread's process. Repeating it is harmless; what is missing is added.
    pub async fn open(config: Config) -> Result<Network, OpenError> {
        Network::open_for(config, Purpose::Use).await
    }

    /// The same for [`Network::close`] with everything: makes no link and no route, so that addresses
    /// that have come into use by others are no hindrance.
    pub async fn open_to_remove(config: Config) -> Result<Network, OpenError> {
        Network::open_for(config, Purpose::Removal).await
    }

    async fn open_for(config: Config, purpose: Purpose) -> Result<Network, OpenError> {
        let (inner, changes) = blocking(move || Inner::open(config, purpose)).await?;
        let inner = Arc::new(inner);
        let table = inner.config.instance.clone();
        let watching = tokio::spawn(watch::repair(changes, table, Arc::downgrade(&inner)));
        *inner.watching.lock() = Some(watching.abort_handle());
        Ok(Network(inner))
    }

    /// Puts the sandbox with this network namespace (`/proc/PID/ns/net`) on the network: an address,
    /// a link `eth0`, a default route, `lo` up. Attaching what is attached returns what it has.
    /// Dropping the future does not stop it: [`Network::detach`] undoes it in any case.
    pub async fn attach(&self, namespace: &Path, id: &str) -> Result<Attachment, AttachError> {
        if !attach::is_name(id) {
            return Err(AttachError::Name(id.to_owned()));
        }
        let thread = |source| AttachError::Thread {
            id: id.to_owned(),
            source,
        };
        let permit = self
            .0
            .attaching
            .acquire()
            .await
            .expect("the semaphore is never closed");
        let (sender, receiver) = oneshot::channel();
        let (inner, namespace, name) = (self.0.clone(), namespace.to_owned(), id.to_owned());
        // It ends inside the sandbox's namespace, so it cannot be a thread of the runtime's.
        std::thread::Builder::new()
            .name("attach".to_owned())
            .stack_size(256 * 1024)
            .spawn(move || {
                // Nobody listens when the caller has gone: what was done stays on record.
                let _ = sender.send(inner.attach(&namespace, &name));
            })
            .map_err(thread)?;
        let result = receiver.await;
        drop(permit);
        result.unwrap_or_else(|_| Err(thread(std::io::Error::other("the thread panicked"))))
    }

    /// Lets ports of the machine lead to the sandbox: these and no others.
    pub async fn publish(&self, id: &str, ports: Vec<PublishedPort>) -> Result<(), AttachError> {
        let (inner, id) = (self.0.clone(), id.to_owned());
        blocking(move || {
            let stale = inner.publish(&id, ports)?;
            inner.forget(stale);
            Ok(())
        })
        .await
    }

    /// Takes a sandbox off the network and gives its address back: from then on, nothing reaches it
    /// and nothing comes from it. Its links end with its namespace. One that is not attached is no
    /// error.
    pub async fn detach(&self, id: &str) -> Result<(), AttachError> {
        let (inner, id) = (self.0.clone(), id.to_owned());
        blocking(move || inner.detach(&id)).await
    }

    /// All attached sandboxes, by name.
    pub fn attachments(&self) -> Vec<Attachment> {
        self.0.sandboxes.lock().attached.values().cloned().collect()
    }

    /// One attached sandbox.
    pub fn attachment(&self, id: &str) -> Option<Attachment> {
        self.0.sandboxes.lock().attached.get(id).cloned()
    }

    /// Detaches all sandboxes but these; for a daemon that has found out which still live.
    pub async fn release_except(
        &self,
        keep: impl IntoIterator<Item = String>,
    ) -> Result<(), AttachError> {
        let keep: BTreeSet<String> = keep.into_iter().collect();
        let inner = self.0.clone();
        blocking(move || {
            let gone: Vec<_> = {
                let sandboxes = inner.sandboxes.lock();
                sandboxes
                    .attached
                    .keys()
                    .filter(|id| !keep.contains(*id))
                    .cloned()
                    .collect()
            };
            gone.iter().try_for_each(|id| inner.detach(id))
        })
        .await
    }

    /// Changes services. When this returns, new connections go by the new state; connections that
    /// exist go on, except UDP to backends that are gone. On an error nothing has changed in the
    /// kernel, and the change is made up for with the next one.
    pub async fn change_services(&self, changes: Vec<ServiceChange>) -> Result<(), RulesError> {
        let inner = self.0.clone();
        blocking(move || {
            let (stale, cost) = inner.program.lock().change(changes)?;
            tracing::debug!(
                bytes = cost.bytes,
                elements = cost.elements,
                "services changed"
            );
            inner.forget(stale);
            Ok(())
        })
        .await
    }

    /// As [`Network::change_services`], and these are all: others, also those that an earlier daemon
    /// left, are removed.
    pub async fn replace_services(&self, services: Vec<ServiceChange>) -> Result<(), RulesError> {
        let inner = self.0.clone();
        blocking(move || {
            let (stale, cost) = inner.program.lock().replace(services)?;
            tracing::debug!(
                bytes = cost.bytes,
                elements = cost.elements,
                "services replaced"
            );
            inner.forget(stale);
            Ok(())
        })
        .await
    }

    /// Ends the use of the network by this daemon. With `remove_all`, everything of the instance is
    /// taken off the machine: links, routes, table, records. Without, all of it goes on working.
    pub async fn close(&self, remove_all: bool) -> Result<(), OpenError> {
        let inner = self.0.clone();
        blocking(move || {
            inner.stop_watching();
            // Also for a repair that has begun to wait for the lock.
            inner.program.lock().close();
            inner.passage.lock().close();
            if remove_all {
                inner.remove_all()
            } else {
                Ok(())
            }
        })
        .await
    }
}

impl Inner {
    fn open(config: Config, purpose: Purpose) -> Result<(Inner, Socket), OpenError> {
        check(&config)?;
        let connect = |protocol| {
            Connection::open(protocol).map_err(|source| {
                OpenError::kernel(
                    "socket",
                    netlink::Refused {
                        step: "open a netlink",
                        source,
                    },
                )
            })
        };
        let mut links = connect(libc::NETLINK_ROUTE)?;
        let records = Records::open(&config.state_dir)?;
        let (host, found) = Host::open(&config, &mut links, purpose)?;
        let mut pool = Pool::new(config.pod_subnet, config.node_address, records.last());
        let mut attached = BTreeMap::new();
        for attachment in records.load()? {
            let Attachment {
                address, host_link, ..
            } = &attachment;
            let fits = config.pod_subnet.contains(*address)
                && *host_link == host.link_name(config.pod_subnet, *address);
            if fits && pool.claim(*address) {
                attached.insert(attachment.id.clone(), attachment);
            } else {
                // The subnet is another than it was.
                records.remove(&attachment.id)?;
            }
        }
        repair_links(&host, &mut links, &found, &attached)?;
        let shape = table::Shape {
            node_address: config.node_address,
            pod_cidr: config.pod_cidr,
            service_cidr: config.service_cidr,
            veth_prefix: host.veth_prefix.clone(),
        };
        let netfilter = connect(libc::NETLINK_NETFILTER)?;
        let passage = Passage::new(
            connect(libc::NETLINK_NETFILTER)?,
            &config.instance,
            config.pod_cidr,
        );
        let program =
            Program::open(netfilter, config.instance.clone(), shape).map_err(|refused| {
                OpenError::lacking("nf_tables with NAT", "CONFIG_NFT_NAT", refused)
            })?;
        let inner = Inner {
            host,
            records,
            links: Mutex::new(links),
            sandboxes: Mutex::new(Sandboxes {
                pool,
                attached,
                busy: BTreeSet::new(),
            }),
            program: Mutex::new(program),
            passage: Mutex::new(passage),
            tracked: Mutex::new(connect(libc::NETLINK_NETFILTER)?),
            attaching: Semaphore::new(ATTACHING_MAX),
            watching: Mutex::new(None),
            config,
        };
        inner.adopt()?;
        let changes = watch::listen().map_err(|source| {
            let step = "listen to changes of";
            OpenError::kernel("nf_tables", netlink::Refused { step, source })
        })?;
        // What changes from here on is heard.
        inner.open_passage();
        warn_of_forward_drops(inner.config.pod_cidr);
        Ok((inner, changes))
    }

    /// Puts what is on record into the rules.
    fn adopt(&self) -> Result<(), OpenError> {
        let attached: Vec<_> = self.sandboxes.lock().attached.values().cloned().collect();
        let mut program = self.program.lock();
        let rules = |error: RulesError| OpenError::Kernel {
            step: error.step,
            subject: error.table,
            source: error.source,
        };
        program
            .adopt_sandboxes(attached.iter().map(|attachment| attachment.address))
            .map_err(rules)?;
        for attachment in &attached {
            program
                .publish(&attachment.id, published(attachment))
                .map_err(rules)?;
        }
        Ok(())
    }

    fn attach(&self, path: &Path, id: &str) -> Result<Attachment, AttachError> {
        let namespace = attach::Namespace::open(path)?;
        if let Some(attachment) = self.existing(id, &namespace)? {
            return Ok(attachment);
        }
        let address = {
            let mut sandboxes = self.sandboxes.lock();
            if !sandboxes.busy.insert(id.to_owned()) {
                return Err(busy(id));
            }
            let taken = sandboxes
                .pool
                .take()
                .map_err(AttachError::from)
                .and_then(|address| {
                    // Under the lock: one writer at a time.
                    self.records.save_last(address)?;
                    Ok(address)
                });
            taken.inspect_err(|_| {
                sandboxes.busy.remove(id);
            })?
        };
        let link = self.host.link_name(self.config.pod_subnet, address);
        let pair = attach::Pair {
            id,
            namespace: &namespace,
            address,
            link: &link,
        };
        let result = self.attach_pair(&pair);
        if result.is_err() {
            self.undo(id, &pair);
        }
        let mut sandboxes = self.sandboxes.lock();
        sandboxes.busy.remove(id);
        match &result {
            Ok(attachment) => {
                sandboxes.attached.insert(id.to_owned(), attachment.clone());
            }
            Err(_) => sandboxes.pool.release(address),
        }
        result
    }

    /// What a sandbox has. If its link is not there, or leads to another namespace (a new sandbox of
    /// the same name), what is left of it is taken away.
    fn existing(
        &self,
        id: &str,
        namespace: &attach::Namespace,
    ) -> Result<Option<Attachment>, AttachError> {
        let Some(attachment) = self.sandboxes.lock().attached.get(id).cloned() else {
            return Ok(None);
        };
        let link = &attachment.host_link;
        let index = route::index_of(&mut self.links.lock(), link).map_err(|refused| {
            AttachError::Kernel {
                id: id.to_owned(),
                step: refused.step,
                subject: link.clone(),
                source: refused.source,
            }
        })?;
        if index.is_some() && attachment.namespace == namespace.inode {
            return Ok(Some(attachment));
        }
        self.detach(id).map(|()| None)
    }

    fn attach_pair(&self, pair: &attach::Pair<'_>) -> Result<Attachment, AttachError> {
        pair.make(&self.host, &mut self.links.lock())?;
        self.program.lock().add_sandbox(pair.address)?;
        let attachment = Attachment {
            id: pair.id.to_owned(),
            address: pair.address,
            host_link: pair.link.to_owned(),
            ports: Vec::new(),
            namespace: pair.namespace.inode,
        };
        self.records.save(&attachment)?;
        pair.enter_and_set_up(&self.host)?;
        Ok(attachment)
    }

    /// After a failure: whatever was made of the pair goes. Runs in any namespace.
    fn undo(&self, id: &str, pair: &attach::Pair<'_>) {
        let link = host::remove_link(&mut self.links.lock(), pair.link);
        if let Err(refused) = link {
            tracing::warn!(id, link = pair.link, error = %refused.source, "cannot remove the link");
        }
        if let Err(error) = self.program.lock().remove_sandbox(id, pair.address) {
            tracing::warn!(id, %error, "cannot take the sandbox out of the rules");
        }
        if let Err(error) = self.records.remove(id) {
            tracing::warn!(id, %error, "cannot remove the record");
        }
    }

    fn publish(&self, id: &str, ports: Vec<PublishedPort>) -> Result<Vec<Stale>, AttachError> {
        let mut attachment = match self.sandboxes.lock().attached.get(id) {
            Some(attachment) => attachment.clone(),
            None => return Err(AttachError::Unknown(id.to_owned())),
        };
        attachment.ports = ports;
        let stale = {
            let mut program = self.program.lock();
            for port in &attachment.ports {
                if let Some(holder) = program.publisher(&port.frontend, id) {
                    return Err(AttachError::PortTaken {
                        frontend: port.frontend,
                        holder,
                    });
                }
            }
            program.publish(id, published(&attachment))?
        };
        self.records.save(&attachment)?;
        self.sandboxes
            .lock()
            .attached
            .insert(id.to_owned(), attachment);
        Ok(stale)
    }

    fn detach(&self, id: &str) -> Result<(), AttachError> {
        let attachment = {
            let mut sandboxes = self.sandboxes.lock();
            if !sandboxes.busy.insert(id.to_owned()) {
                return Err(busy(id));
            }
            match sandboxes.attached.get(id) {
                Some(attachment) => attachment.clone(),
                None => {
                    sandboxes.busy.remove(id);
                    return Ok(());
                }
            }
        };
        let result = self.take_off(&attachment);
        let mut sandboxes = self.sandboxes.lock();
        sandboxes.busy.remove(id);
        if result.is_ok() {
            sandboxes.attached.remove(id);
            sandboxes.pool.release(attachment.address);
        }
        result
    }

    fn take_off(&self, attachment: &Attachment) -> Result<(), AttachError> {
        let id = &attachment.id;
        self.program.lock().remove_sandbox(id, attachment.address)?;
        let link = &attachment.host_link;
        self.host
            .cut_off(&mut self.links.lock(), link, attachment.address)
            .map_err(|refused| AttachError::Kernel {
                id: id.clone(),
                step: refused.step,
                subject: link.clone(),
                source: refused.source,
            })?;
        Ok(self.records.remove(id)?)
    }

    /// The kernel forgets UDP flows to backends that are gone: now, and once more when every packet
    /// has passed that was midway when the rules changed and may have begun such a flow.
    fn forget(self: &Arc<Self>, stale: Vec<Stale>) {
        self.forget_once(&stale);
        if stale.is_empty() {
            return;
        }
        let inner = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep(UNDER_WAY_MAX).await;
            if let Some(inner) = inner.upgrade() {
                blocking(move || {
                    let stale = inner.program.lock().still_stale(stale);
                    inner.forget_once(&stale);
                })
                .await;
            }
        });
    }

    /// A failure costs clients a timeout, not correctness, so it is only reported.
    fn forget_once(&self, stale: &[Stale]) {
        if stale.is_empty() {
            return;
        }
        match conntrack::forget(&mut self.tracked.lock(), stale) {
            Ok(count) => tracing::debug!(count, "forgot UDP flows to backends that are gone"),
            Err(refused) => {
                tracing::warn!(step = refused.step, error = %refused.source, "UDP flows stay");
            }
        }
    }

    /// Without it pods may not reach each other, but everything else works: a failure is reported.
    fn open_passage(&self) {
        let pods = self.config.pod_cidr;
        match self.passage.lock().open() {
            Ok(false) => {}
            Ok(true) => tracing::info!(
                "chain FORWARD of table ip filter drops by default; it has rules now that accept \
                 packets from and to {pods}"
            ),
            Err(refused) => tracing::warn!(
                step = refused.step,
                error = %refused.source,
                "chain FORWARD of table ip filter drops by default; if pods do not reach each other, \
                 accept packets from and to {pods} there"
            ),
        }
    }

    fn stop_watching(&self) {
        if let Some(watching) = self.watching.lock().take() {
            watching.abort();
        }
    }

    fn remove_all(&self) -> Result<(), OpenError> {
        self.program
            .lock()
            .remove()
            .map_err(|error| OpenError::Kernel {
                step: error.step,
                subject: error.table,
                source: error.source,
            })?;
        self.passage
            .lock()
            .remove()
            .map_err(|refused| OpenError::kernel("chain FORWARD of table ip filter", refused))?;
        self.host
            .remove(&mut self.links.lock())
            .map_err(|refused| OpenError::kernel(&self.host.bridge, refused))?;
        Ok(self.records.remove_all()?)
    }
}

/// What a firewall drops, no rule of ours can let through, and none is put there.
fn warn_of_forward_drops(pod_cidr: Subnet) {
    let found = forward_drops().unwrap_or_else(|error| {
        tracing::debug!(%error, "cannot list the chains of others");
        Vec::new()
    });
    for (table, chain) in found {
        tracing::warn!(
            "chain {chain} of table {table} drops forwarded packets unless a rule accepts them; \
             if pods do not reach each other, accept packets from and to {pod_cidr} there"
        );
    }
}

fn busy(id: &str) -> AttachError {
    AttachError::Kernel {
        id: id.to_owned(),
        step: "wait for",
        subject: "another call for the same sandbox".to_owned(),
        source: std::io::ErrorKind::ResourceBusy.into(),
    }
}

/// A sandbox's published ports as frontends with one backend.
fn published(attachment: &Attachment) -> Vec<ServicePort> {
    let port = |port: &PublishedPort| ServicePort {
        frontend: port.frontend,
        backends: vec![SocketAddrV4::new(attachment.address, port.port)],
        affinity: None,
        rewrite_source: false,
        unserved: Unserved::Refuse,
    };
    attachment.ports.iter().map(port).collect()
}

/// Sets up again what sandboxes on record have on the machine's side; removes links of nobody.
fn repair_links(
    host: &Host,
    connection: &mut Connection,
    found: &[route::Link],
    attached: &BTreeMap<String, Attachment>,
) -> Result<(), OpenError> {
    for link in found.iter().filter(|link| host.owns(link)) {
        let kernel = |refused| OpenError::kernel(&link.name, refused);
        match attached
            .values()
            .find(|attachment| attachment.host_link == link.name)
        {
            Some(attachment) => host
                .set_up(connection, link.index, &attachment.id, attachment.address)
                .map_err(kernel)?,
            None => host::remove_link(connection, &link.name).map_err(kernel)?,
        }
    }
    Ok(())
}

fn check(config: &Config) -> Result<(), OpenError> {
    let refuse = |text: String| Err(OpenError::Config(text));
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let name = &config.instance;
    if name.is_empty() || name.len() > 14 || !name.bytes().all(allowed) {
        return refuse(format!(
            "instance name {name:?} must match [a-z0-9-]{{1,14}}"
        ));
    }
    if !config.pod_cidr.contains(config.pod_subnet.address())
        || config.pod_subnet.prefix() < config.pod_cidr.prefix()
    {
        let (subnet, cidr) = (config.pod_subnet, config.pod_cidr);
        return refuse(format!(
            "pod subnet {subnet} does not lie in the pod CIDR {cidr}"
        ));
    }
    if config.pod_cidr.overlaps(&config.service_cidr) {
        let (pods, services) = (config.pod_cidr, config.service_cidr);
        return refuse(format!(
            "pod CIDR {pods} and service CIDR {services} overlap"
        ));
    }
    if !config.pod_subnet.contains(config.node_address) {
        let (node, subnet) = (config.node_address, config.pod_subnet);
        return refuse(format!(
            "node address {node} does not lie in the pod subnet {subnet}"
        ));
    }
    Ok(())
}
