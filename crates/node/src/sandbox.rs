//! A pod's sandbox in the engine's words: names, DNS, ports, limits.

use std::net::IpAddr;

use engine::{NetworkMode, PortMapping, SandboxSpec};
use k8s_openapi::api::core::v1::{Pod, PodSpec};

use crate::context::Context;
use crate::pod;
use crate::resources;
use crate::start::pod_labels;

/// glibc and musl look no further than this.
const NAMESERVERS_MAX: usize = 3;
/// What Kubernetes allows.
const SEARCH_MAX: usize = 32;

/// The sandbox that `pod` wants.
pub(crate) fn spec(context: &Context, pod: &Pod) -> SandboxSpec {
    let spec = pod.spec.clone().unwrap_or_default();
    let host_network = spec.host_network == Some(true);
    let hostname = match host_network {
        true => context.config.node_name.clone(),
        false => pod::hostname(pod),
    };
    let domain = domain(pod, &hostname, &context.config.cluster_domain);
    let full_as_hostname = spec.set_hostname_as_fqdn == Some(true);
    let host_resolver = std::fs::read_to_string(&context.config.resolv_conf).unwrap_or_default();
    let class = resources::quality_of_service(&spec);
    SandboxSpec {
        hostname: match &domain {
            Some(domain) if full_as_hostname => domain.clone(),
            _ => hostname.clone(),
        },
        network: match host_network {
            true => NetworkMode::Host,
            false => NetworkMode::Own,
        },
        ports: match host_network {
            true => Vec::new(),
            false => ports(&spec),
        },
        resolv_conf: Some(resolver(context, pod, &spec, &host_resolver)),
        hosts: hosts(&spec),
        own_names: domain.into_iter().chain([hostname]).collect(),
        sysctls: spec
            .security_context
            .iter()
            .flat_map(|context| context.sysctls.iter().flatten())
            .map(|sysctl| (sysctl.name.clone(), sysctl.value.clone()))
            .collect(),
        cgroup: class.cgroup(pod::uid(pod)),
        resources: resources::of_pod(&spec),
        share_processes: spec.share_process_namespace == Some(true),
        host_processes: spec.host_pid == Some(true),
        host_ipc: spec.host_ipc == Some(true),
        labels: pod_labels(pod),
    }
}

/// `hostname.subdomain.namespace.svc.cluster.local`, for pods with a subdomain.
fn domain(pod: &Pod, hostname: &str, cluster_domain: &str) -> Option<String> {
    let subdomain = pod.spec.as_ref()?.subdomain.as_deref()?;
    if subdomain.is_empty() {
        return None;
    }
    let namespace = pod::namespace(pod);
    Some(format!(
        "{hostname}.{subdomain}.{namespace}.svc.{cluster_domain}"
    ))
}

fn ports(spec: &PodSpec) -> Vec<PortMapping> {
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    sidecars
        .chain(&spec.containers)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            Some(PortMapping {
                host_port: u16::try_from(port.host_port?)
                    .ok()
                    .filter(|port| *port > 0)?,
                host_address: port
                    .host_ip
                    .as_deref()
                    .and_then(|address| address.parse().ok()),
                port: u16::try_from(port.container_port).ok()?,
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            })
        })
        .collect()
}

fn hosts(spec: &PodSpec) -> Vec<(IpAddr, Vec<String>)> {
    spec.host_aliases
        .iter()
        .flatten()
        .filter_map(|alias| {
            let address = alias.ip.parse().ok()?;
            Some((address, alias.hostnames.clone().unwrap_or_default()))
        })
        .collect()
}

/// The parts of a resolv.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Resolver {
    search: Vec<String>,
    nameservers: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    fn parse(text: &str) -> Resolver {
        let mut resolver = Resolver::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let rest = |words: std::str::SplitWhitespace<'_>| words.map(str::to_owned).collect();
            match words.next() {
                Some("nameserver") => resolver.nameservers.extend(words.next().map(str::to_owned)),
                // The last one counts (resolv.conf(5)).
                Some("search" | "domain") => resolver.search = rest(words),
                Some("options") => resolver.options = rest(words),
                _ => {}
            }
        }
        resolver.search.retain(|domain| domain != ".");
        resolver
    }

    /// In the order in which upstream writes it.
    fn print(&self) -> String {
        let mut text = String::new();
        if !self.search.is_empty() {
            text.push_str(&format!("search {}\n", self.search.join(" ")));
        }
        for nameserver in &self.nameservers {
            text.push_str(&format!("nameserver {nameserver}\n"));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        text
    }
}

fn resolver(context: &Context, pod: &Pod, spec: &PodSpec, host: &str) -> String {
    let config = &context.config;
    let cluster = (
        config.cluster_dns.to_string(),
        config.cluster_domain.as_str(),
    );
    resolver_of(pod, spec, host, &cluster.0, cluster.1).print()
}

/// By `dnsPolicy`, then what `dnsConfig` adds.
fn resolver_of(
    pod: &Pod,
    spec: &PodSpec,
    host: &str,
    cluster_dns: &str,
    cluster_domain: &str,
) -> Resolver {
    let host_network = spec.host_network == Some(true);
    let mut resolver = match spec.dns_policy.as_deref() {
        Some("None") => Resolver::default(),
        Some("Default") => Resolver::parse(host),
        Some("ClusterFirstWithHostNet") => {
            of_cluster(pod::namespace(pod), host, cluster_dns, cluster_domain)
        }
        // Pods in the machine's network ask as the machine does.
        _ if host_network => Resolver::parse(host),
        _ => of_cluster(pod::namespace(pod), host, cluster_dns, cluster_domain),
    };
    if let Some(own) = &spec.dns_config {
        resolver
            .nameservers
            .extend(own.nameservers.iter().flatten().cloned());
        resolver
            .search
            .extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let name = option.name.as_deref().unwrap_or_default();
            let text = match option.value.as_deref().filter(|value| !value.is_empty()) {
                Some(value) => format!("{name}:{value}"),
                None => name.to_owned(),
            };
            let same = |known: &str| known.split(':').next() == Some(name);
            resolver.options.retain(|known| !same(known));
            resolver.options.push(text);
        }
    }
    let mut seen = std::collections::HashSet::new();
    resolver
        .nameservers
        .retain(|entry| seen.insert(entry.clone()));
    let mut seen = std::collections::HashSet::new();
    resolver.search.retain(|entry| seen.insert(entry.clone()));
    resolver.nameservers.truncate(NAMESERVERS_MAX);
    resolver.search.truncate(SEARCH_MAX);
    resolver
}

fn of_cluster(namespace: &str, host: &str, dns: &str, domain: &str) -> Resolver {
    let mut search = vec![
        format!("{namespace}.svc.{domain}"),
        format!("svc.{domain}"),
        domain.to_owned(),
    ];
    search.extend(Resolver::parse(host).search);
    Resolver {
        search,
        nameservers: vec![dns.to_owned()],
        options: vec!["ndots:5".to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const HOST: &str =
        "# made by hand\nnameserver 192.0.2.1\nsearch corp.example\noptions rotate\n";

    #[track_caller]
    fn check(spec: serde_json::Value, expected: &str) {
        let mut spec = spec;
        spec["containers"] = json!([]);
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop"}, "spec": spec,
        }))
        .expect("a pod");
        let spec = pod.spec.clone().expect("spec");
        let text = resolver_of(&pod, &spec, HOST, "10.96.0.10", "cluster.local").print();
        assert_eq!(text, expected);
    }

    #[test]
    fn resolvers_by_policy() {
        let cluster = "search shop.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.96.0.10\noptions ndots:5\n";
        let host = "search corp.example\nnameserver 192.0.2.1\noptions rotate\n";
        check(json!({}), cluster);
        check(json!({"dnsPolicy": "ClusterFirst"}), cluster);
        check(json!({"dnsPolicy": "Default"}), host);
        check(
            json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true}),
            host,
        );
        check(
            json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}),
            cluster,
        );
        check(
            json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["a.b"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
            "search a.b\nnameserver 1.1.1.1\noptions ndots:2 edns0\n",
        );
        check(
            json!({"dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}}),
            &cluster.replace("ndots:5", "ndots:1"),
        );
    }

    #[test]
    fn domains_of_pods_with_a_subdomain() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web-0", "namespace": "shop"},
            "spec": {"subdomain": "web", "containers": []},
        }))
        .expect("a pod");
        assert_eq!(
            domain(&pod, "web-0", "cluster.local").as_deref(),
            Some("web-0.web.shop.svc.cluster.local")
        );
    }

    #[test]
    fn host_ports_of_main_containers_and_sidecars() {
        let spec: PodSpec = serde_json::from_value(json!({
            "initContainers": [
                {"name": "i", "ports": [{"containerPort": 1, "hostPort": 1}]},
                {"name": "s", "restartPolicy": "Always", "ports": [{"containerPort": 2, "hostPort": 2002}]},
            ],
            "containers": [{"name": "c", "ports": [
                {"containerPort": 80, "hostPort": 8080, "hostIP": "127.0.0.1", "protocol": "UDP"},
                {"containerPort": 81},
            ]}],
        }))
        .expect("a spec");
        let seen: Vec<_> = ports(&spec)
            .into_iter()
            .map(|port| (port.host_port, port.port, port.protocol))
            .collect();
        assert_eq!(
            seen,
            [(2002, 2, "TCP".to_owned()), (8080, 80, "UDP".to_owned())]
        );
    }
}
