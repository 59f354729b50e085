//! The loop: changes in, differences out.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use dns::Zone;
use informer::{Change, Changes, Index, Informer, Informers};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use lifecycle::{BlockReady, Drain};
use network::{Network, ServiceChange};

use crate::{names, namespace_names, ports, service_of, zone_names};

/// Between two tries to program what the kernel refused.
const RETRY: Duration = Duration::from_secs(2);
const BY_SERVICE: &str = "gateway: by service";

/// What the gateway must know about its place.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name: endpoints on it are local.
    pub node_name: String,
    /// The name server's Service address, for the zone's own names.
    pub dns_address: Ipv4Addr,
}

/// Keeps network and zone equal to Services, EndpointSlices and Namespaces until the drain is
/// signaled. `ready` is dropped when everything that is known has been programmed for the first time.
pub async fn run(
    informers: Informers,
    network: Network,
    zone: Zone,
    config: Config,
    ready: BlockReady,
    drain: Drain,
) {
    let mut gateway = Gateway::new(&informers, network, zone, config);
    tokio::select! {
        () = gateway.synced() => {}
        () = drain.signaled() => return,
    }
    gateway.start().await;
    drop(ready);
    loop {
        tokio::select! {
            dirty = gateway.heard() => match dirty {
                Some(dirty) => gateway.update(dirty).await,
                None => return,
            },
            () = tokio::time::sleep(RETRY), if gateway.failed => gateway.update(BTreeSet::new()).await,
            () = drain.signaled() => return,
        }
    }
}

struct Gateway {
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    namespaces: Informer<Namespace>,
    by_service: Index<EndpointSlice>,
    service_changes: Changes<Service>,
    slice_changes: Changes<EndpointSlice>,
    namespace_changes: Changes<Namespace>,
    network: Network,
    zone: Zone,
    config: Config,
    /// The kernel has not taken the last change; everything is to be programmed again.
    failed: bool,
}

/// Something that has to be looked at again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Dirty {
    /// `namespace/name`
    Service(String),
    Namespace(String),
}

impl Gateway {
    fn new(informers: &Informers, network: Network, zone: Zone, config: Config) -> Gateway {
        let services = informers.of::<Service>();
        let slices = informers.of::<EndpointSlice>();
        let namespaces = informers.of::<Namespace>();
        Gateway {
            by_service: slices
                .index_by(BY_SERVICE, |slice| service_of(slice).into_iter().collect()),
            service_changes: services.changes(),
            slice_changes: slices.changes(),
            namespace_changes: namespaces.changes(),
            services,
            slices,
            namespaces,
            network,
            zone,
            config,
            failed: false,
        }
    }

    async fn synced(&self) {
        self.services.synced().await;
        self.slices.synced().await;
        self.namespaces.synced().await;
    }

    /// Programs everything that is known, and takes away what an earlier daemon left.
    async fn start(&mut self) {
        match zone_names(&self.zone, self.config.dns_address) {
            Ok(entries) => self.zone.set("zone", entries),
            Err(error) => tracing::error!(%error, "the zone cannot have its own names"),
        }
        for namespace in self.namespaces.list() {
            self.name_namespace(namespace.metadata.name.as_deref().unwrap_or_default());
        }
        for service in self.services.list() {
            self.name_service(&key_of(&service));
        }
        self.program_all().await;
    }

    /// Waits for a change, and takes all that have come meanwhile with it. `None` at the end.
    async fn heard(&mut self) -> Option<BTreeSet<Dirty>> {
        let mut dirty = BTreeSet::new();
        tokio::select! {
            change = self.service_changes.next() => note_service(&mut dirty, &change?),
            change = self.slice_changes.next() => note_slice(&mut dirty, &change?),
            change = self.namespace_changes.next() => note_namespace(&mut dirty, &change?),
        }
        while let Some(change) = self.service_changes.try_next() {
            note_service(&mut dirty, &change);
        }
        while let Some(change) = self.slice_changes.try_next() {
            note_slice(&mut dirty, &change);
        }
        while let Some(change) = self.namespace_changes.try_next() {
            note_namespace(&mut dirty, &change);
        }
        Some(dirty)
    }

    async fn update(&mut self, dirty: BTreeSet<Dirty>) {
        let mut changes = Vec::new();
        for dirty in dirty {
            match dirty {
                Dirty::Namespace(name) => self.name_namespace(&name),
                Dirty::Service(key) => {
                    self.name_service(&key);
                    changes.push(self.change(&key));
                }
            }
        }
        if self.failed {
            return self.program_all().await;
        }
        if changes.is_empty() {
            return;
        }
        let result = self.network.change_services(changes).await;
        self.note(result);
    }

    async fn program_all(&mut self) {
        let keys = self
            .services
            .list()
            .into_iter()
            .map(|service| key_of(&service));
        let all = keys.map(|key| self.change(&key)).collect();
        let result = self.network.replace_services(all).await;
        self.note(result);
    }

    fn note(&mut self, result: Result<(), network::RulesError>) {
        if let Err(error) = &result {
            tracing::error!(%error, "Services are not programmed; trying again");
        }
        self.failed = result.is_err();
    }

    /// What a Service shall be in the network: nothing, if it is not there.
    fn change(&self, key: &str) -> ServiceChange {
        let Some((service, slices)) = self.service(key) else {
            return ServiceChange {
                name: key.to_owned(),
                ports: Vec::new(),
            };
        };
        let slices: Vec<&EndpointSlice> = slices.iter().map(Arc::as_ref).collect();
        let ports = ports(&service, &slices, &self.config.node_name);
        ServiceChange {
            name: key.to_owned(),
            ports,
        }
    }

    fn service(&self, key: &str) -> Option<(Arc<Service>, Vec<Arc<EndpointSlice>>)> {
        let (namespace, name) = key.split_once('/')?;
        Some((
            self.services.get(Some(namespace), name)?,
            self.by_service.get(key),
        ))
    }

    fn name_service(&self, key: &str) {
        let entries = match self.service(key) {
            None => Vec::new(),
            Some((service, slices)) => {
                let slices: Vec<&EndpointSlice> = slices.iter().map(Arc::as_ref).collect();
                names(&self.zone, &service, &slices).unwrap_or_else(|error| {
                    tracing::warn!(service = key, %error, "no names for this Service");
                    Vec::new()
                })
            }
        };
        self.zone.set(&format!("service {key}"), entries);
    }

    fn name_namespace(&self, name: &str) {
        let entries = match self.namespaces.get(None, name) {
            None => Vec::new(),
            Some(_) => namespace_names(&self.zone, name).unwrap_or_else(|error| {
                tracing::warn!(namespace = name, %error, "no names for this namespace");
                Vec::new()
            }),
        };
        self.zone.set(&format!("namespace {name}"), entries);
    }
}

fn key_of(service: &Service) -> String {
    let metadata = &service.metadata;
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    format!(
        "{namespace}/{}",
        metadata.name.as_deref().unwrap_or_default()
    )
}

fn note_service(dirty: &mut BTreeSet<Dirty>, change: &Change<Service>) {
    dirty.insert(Dirty::Service(key_of(change.object())));
}

/// A slice may have been moved from one Service to another.
fn note_slice(dirty: &mut BTreeSet<Dirty>, change: &Change<EndpointSlice>) {
    dirty.extend(service_of(change.object()).map(Dirty::Service));
    if let Change::Applied { old: Some(old), .. } = change {
        dirty.extend(service_of(old).map(Dirty::Service));
    }
}

fn note_namespace(dirty: &mut BTreeSet<Dirty>, change: &Change<Namespace>) {
    dirty.extend(change.object().metadata.name.clone().map(Dirty::Namespace));
}
