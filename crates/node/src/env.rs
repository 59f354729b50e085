//! The environment of a container.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Container, EnvVar, Pod, PodSpec, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::downward::{self, Addresses, FieldError};
use crate::expand::expand;
use crate::pod;
use crate::sources::{Data, SourceError, SourceKey, SourceKind, Sources};

/// Why a container's environment cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnvError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("couldn't find key {key} in {} {}/{}", kind_of(source_key), source_key.namespace, source_key.name)]
    NoKey {
        key: String,
        source_key: Box<SourceKey>,
    },
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error("variable {0}: fileKeyRef is not available on this node")]
    File(String),
}

impl EnvError {
    /// The object whose change may mend it, and whether it is absent.
    pub(crate) fn waits_for(&self) -> Option<(SourceKey, bool)> {
        match self {
            EnvError::Source(SourceError::NotFound(key)) => Some((key.clone(), true)),
            EnvError::NoKey { source_key, .. } => Some(((**source_key).clone(), false)),
            EnvError::Source(_) | EnvError::Field(_) | EnvError::File(_) => None,
        }
    }
}

fn kind_of(key: &SourceKey) -> &'static str {
    match key.kind {
        SourceKind::ConfigMap => "ConfigMap",
        SourceKind::Secret => "Secret",
    }
}

/// What an environment is made from, besides the container's spec.
pub(crate) struct Surroundings<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) spec: &'a PodSpec,
    pub(crate) addresses: &'a Addresses,
    pub(crate) allocatable: &'a BTreeMap<String, Quantity>,
    pub(crate) services: &'a [Arc<Service>],
    pub(crate) sources: &'a Sources,
}

/// The variables of `container`, in the order in which they are set; `$(NAME)` is resolved.
///
/// # Errors
///
/// A ConfigMap, Secret or key that is not optional is missing, in upstream's words.
pub(crate) async fn environment(
    around: &Surroundings<'_>,
    container: &Container,
) -> Result<Vec<(String, String)>, EnvError> {
    let objects = fetch(around, container).await?;
    let mut values: Vec<(String, String)> = Vec::new();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let Some((key, _)) = env_from_key(around, from) else {
            continue;
        };
        for (name, value) in objects.get(&key).into_iter().flatten() {
            let text = String::from_utf8_lossy(value).into_owned();
            set(&mut values, format!("{prefix}{name}"), text);
        }
    }
    let links = around.spec.enable_service_links.unwrap_or(true);
    let services = service_variables(around.services, pod::namespace(around.pod), links);
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            None => {
                let text = variable.value.as_deref().unwrap_or_default();
                expand(text, |name| {
                    let own = values.iter().find(|(known, _)| known == name);
                    own.map(|(_, value)| value.clone())
                        .or_else(|| services.get(name).cloned())
                })
            }
            Some(_) => match referenced(around, container, variable, &objects)? {
                Some(value) => value,
                None => continue,
            },
        };
        set(&mut values, variable.name.clone(), value);
    }
    // Variables of services do not hide the container's own.
    for (name, value) in services {
        if !values.iter().any(|(known, _)| *known == name) {
            values.push((name, value));
        }
    }
    Ok(values)
}

fn set(values: &mut Vec<(String, String)>, name: String, value: String) {
    match values.iter_mut().find(|(known, _)| *known == name) {
        Some((_, known)) => *known = value,
        None => values.push((name, value)),
    }
}

fn env_from_key(
    around: &Surroundings<'_>,
    from: &k8s_openapi::api::core::v1::EnvFromSource,
) -> Option<(SourceKey, bool)> {
    let namespace = pod::namespace(around.pod).to_owned();
    let (kind, name, optional) = match (&from.config_map_ref, &from.secret_ref) {
        (Some(config_map), _) => (SourceKind::ConfigMap, &config_map.name, config_map.optional),
        (None, Some(secret)) => (SourceKind::Secret, &secret.name, secret.optional),
        (None, None) => return None,
    };
    let key = SourceKey {
        kind,
        namespace,
        name: name.clone(),
    };
    Some((key, optional == Some(true)))
}

/// The object, key in it, and whether it may be missing.
fn variable_key(around: &Surroundings<'_>, variable: &EnvVar) -> Option<(SourceKey, String, bool)> {
    let namespace = pod::namespace(around.pod).to_owned();
    let from = variable.value_from.as_ref()?;
    let (kind, name, key, optional) = match (&from.config_map_key_ref, &from.secret_key_ref) {
        (Some(selector), _) => (
            SourceKind::ConfigMap,
            &selector.name,
            &selector.key,
            selector.optional,
        ),
        (None, Some(selector)) => (
            SourceKind::Secret,
            &selector.name,
            &selector.key,
            selector.optional,
        ),
        (None, None) => return None,
    };
    let source = SourceKey {
        kind,
        namespace,
        name: name.clone(),
    };
    Some((source, key.clone(), optional == Some(true)))
}

/// All objects that the environment names, each asked for once, side by side. Optional ones may be missing.
async fn fetch(
    around: &Surroundings<'_>,
    container: &Container,
) -> Result<HashMap<SourceKey, Data>, EnvError> {
    let from = container.env_from.iter().flatten();
    let variables = container.env.iter().flatten();
    let mut wanted: Vec<(SourceKey, bool)> = from
        .filter_map(|from| env_from_key(around, from))
        .chain(variables.filter_map(|variable| {
            variable_key(around, variable).map(|(source, _, optional)| (source, optional))
        }))
        .collect();
    // Needed by one reference, it is needed.
    wanted.sort();
    wanted.dedup_by(|later, first| later.0 == first.0);
    let reads = wanted.into_iter().map(|(key, optional)| async move {
        match around.sources.read(&key).await {
            Ok(data) => Ok(Some((key, data))),
            Err(SourceError::NotFound(_)) if optional => Ok(None),
            Err(error) => Err(EnvError::from(error)),
        }
    });
    Ok(try_join_all(reads).await?.into_iter().flatten().collect())
}

fn referenced(
    around: &Surroundings<'_>,
    container: &Container,
    variable: &EnvVar,
    objects: &HashMap<SourceKey, Data>,
) -> Result<Option<String>, EnvError> {
    if let Some((source, key, optional)) = variable_key(around, variable) {
        return match objects.get(&source).and_then(|data| data.get(&key)) {
            Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
            None if optional => Ok(None),
            None => Err(EnvError::NoKey {
                key,
                source_key: Box::new(source),
            }),
        };
    }
    let Some(from) = &variable.value_from else {
        return Ok(None);
    };
    if from.file_key_ref.is_some() {
        return Err(EnvError::File(variable.name.clone()));
    }
    if let Some(selector) = &from.field_ref {
        return Ok(Some(downward::field(
            around.pod,
            around.addresses,
            selector,
        )?));
    }
    if let Some(selector) = &from.resource_field_ref {
        let all: Vec<Container> = pod::members(around.spec)
            .into_iter()
            .map(|member| member.container)
            .collect();
        let value = downward::resource(&all, Some(container), selector, around.allocatable)?;
        return Ok(Some(value));
    }
    Ok(None)
}

/// `NAME_SERVICE_HOST` and its kin (Kubernetes documentation, "Discovering services"): of the
/// namespace's services if `links`, and always of the API's own.
fn service_variables(
    services: &[Arc<Service>],
    namespace: &str,
    links: bool,
) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    let is_api = |service: &Service| {
        service.metadata.namespace.as_deref() == Some("default")
            && service.metadata.name.as_deref() == Some("kubernetes")
    };
    // The API's service first: one of that name in the pod's own namespace goes before it.
    let of_api = services.iter().filter(|service| is_api(service));
    let own = services
        .iter()
        .filter(|service| links && service.metadata.namespace.as_deref() == Some(namespace));
    for service in of_api.chain(own) {
        variables_of(service, &mut variables);
    }
    variables
}

fn variables_of(service: &Service, variables: &mut BTreeMap<String, String>) {
    let (Some(name), Some(spec)) = (&service.metadata.name, &service.spec) else {
        return;
    };
    let address = match spec.cluster_ip.as_deref() {
        None | Some("" | "None") => return,
        Some(address) => address,
    };
    let upper = |text: &str| text.to_uppercase().replace('-', "_");
    let prefix = upper(name);
    variables.insert(format!("{prefix}_SERVICE_HOST"), address.to_owned());
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        let number = port.port;
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!(
            "{}://{}",
            protocol.to_lowercase(),
            host_port(address, number)
        );
        if index == 0 {
            variables.insert(format!("{prefix}_SERVICE_PORT"), number.to_string());
            variables.insert(format!("{prefix}_PORT"), url.clone());
        }
        if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            let key = format!("{prefix}_SERVICE_PORT_{}", upper(port_name));
            variables.insert(key, number.to_string());
        }
        let of_port = format!("{prefix}_PORT_{number}_{}", protocol.to_uppercase());
        variables.insert(of_port.clone(), url);
        variables.insert(format!("{of_port}_PROTO"), protocol.to_lowercase());
        variables.insert(format!("{of_port}_PORT"), number.to_string());
        variables.insert(format!("{of_port}_ADDR"), address.to_owned());
    }
}

fn host_port(address: &str, port: i32) -> String {
    match address.contains(':') {
        true => format!("[{address}]:{port}"),
        false => format!("{address}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_variables_that_genuine_kubernetes_sets_for_its_api() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "kubernetes", "namespace": "default"},
            "spec": {"clusterIP": "10.97.0.1", "ports": [{"name": "https", "port": 443, "protocol": "TCP"}]},
        }))
        .expect("a service");
        let found = service_variables(&[Arc::new(service)], "elsewhere", false);
        let found: Vec<String> = found.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            found,
            [
                "KUBERNETES_PORT=tcp://10.97.0.1:443",
                "KUBERNETES_PORT_443_TCP=tcp://10.97.0.1:443",
                "KUBERNETES_PORT_443_TCP_ADDR=10.97.0.1",
                "KUBERNETES_PORT_443_TCP_PORT=443",
                "KUBERNETES_PORT_443_TCP_PROTO=tcp",
                "KUBERNETES_SERVICE_HOST=10.97.0.1",
                "KUBERNETES_SERVICE_PORT=443",
                "KUBERNETES_SERVICE_PORT_HTTPS=443",
            ]
        );
    }

    #[test]
    fn services_of_the_namespace_only_and_none_that_are_headless() {
        let service = |name: &str, namespace: &str, address: &str| -> Arc<Service> {
            let value = json!({
                "metadata": {"name": name, "namespace": namespace},
                "spec": {"clusterIP": address, "ports": [{"port": 80}]},
            });
            Arc::new(serde_json::from_value(value).expect("a service"))
        };
        let services = [
            service("my-db", "a", "10.96.0.5"),
            service("other", "b", "10.96.0.6"),
            service("headless", "a", "None"),
        ];
        let hosts = |links| -> Vec<String> {
            let variables = service_variables(&services, "a", links);
            let hosts = variables.keys().filter(|key| key.ends_with("_HOST"));
            hosts.cloned().collect()
        };
        assert_eq!(hosts(true), ["MY_DB_SERVICE_HOST"]);
        assert!(hosts(false).is_empty());
    }
}
