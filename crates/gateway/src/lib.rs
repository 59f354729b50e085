//! Services and EndpointSlices of the API become packet rules and names of this node.
//!
//! The heart is two pure functions over the objects of one Service: [`ports`] says where connections
//! go, [`names`] what it is called. Round it is a thin loop that hears of changes, takes together what
//! has queued up meanwhile, and hands over only the Services that are touched: the network and the
//! zone know what they have, and change what differs. The cluster's own name server is a Service like
//! any other ([`publish_dns_service`]), so that it is reached by the ordinary path.
//!
//! How rules and names look is left to `network` and `dns`; which endpoints a Service has, to the
//! EndpointSlice controller.

mod names;
mod own;
mod ports;
mod run;

pub use names::{names, namespace_names, zone_names};
pub use own::{PublishError, publish_dns_service};
pub use ports::ports;
pub use run::{Config, run};

use k8s_openapi::api::discovery::v1::EndpointSlice;

/// Names the Service of an EndpointSlice (well-known label).
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// `namespace/name` of the Service to which a slice belongs; `None` for a slice of nobody.
fn service_of(slice: &EndpointSlice) -> Option<String> {
    let namespace = slice.metadata.namespace.as_deref()?;
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(format!("{namespace}/{name}"))
}
