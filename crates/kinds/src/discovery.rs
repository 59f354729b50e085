//! The documents by which clients find out what there is: legacy discovery and the aggregated form.

use serde_json::{Value, json};

use crate::kind::Subresource;
use crate::{Kind, Registry};

impl Registry {
    /// The groups with a path of their own, each with its versions, in order; the core group is the empty string.
    pub fn group_versions(&self) -> Vec<(&str, Vec<&str>)> {
        let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
        for kind in self.all().filter(|kind| !kind.plural().is_empty()) {
            match groups.iter_mut().find(|(group, _)| *group == kind.group()) {
                Some((_, versions)) if versions.contains(&kind.version()) => {}
                Some((_, versions)) => versions.push(kind.version()),
                None => groups.push((kind.group(), vec![kind.version()])),
            }
        }
        groups
    }

    /// `GET /api`; `address` is where clients may reach the server.
    pub fn api_versions(&self, address: &str) -> Value {
        json!({
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
        })
    }

    /// `GET /apis`.
    pub fn group_list(&self) -> Value {
        let groups = self.group_versions();
        let groups: Vec<Value> = groups
            .iter()
            .filter(|(group, _)| !group.is_empty())
            .map(group_entry)
            .collect();
        json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
    }

    /// `GET /apis/GROUP`.
    pub fn group(&self, name: &str) -> Option<Value> {
        let groups = self.group_versions();
        let mut entry = groups
            .iter()
            .find(|(group, _)| !group.is_empty() && *group == name)
            .map(group_entry)?;
        entry["kind"] = "APIGroup".into();
        entry["apiVersion"] = "v1".into();
        Some(entry)
    }

    /// `GET /api/v1` and `GET /apis/GROUP/VERSION`.
    pub fn resource_list(&self, group: &str, version: &str) -> Option<Value> {
        let mut resources = Vec::new();
        for kind in self.served(group, version) {
            resources.push(resource_entry(kind));
            resources.extend(
                kind.subresources()
                    .iter()
                    .map(|subresource| subresource_entry(kind, subresource)),
            );
        }
        if resources.is_empty() {
            return None;
        }
        resources.sort_by(|left, right| left["name"].as_str().cmp(&right["name"].as_str()));
        let group_version = if group.is_empty() {
            version.to_owned()
        } else {
            format!("{group}/{version}")
        };
        let mut document = json!({"kind": "APIResourceList", "groupVersion": group_version, "resources": resources});
        if !group.is_empty() {
            document["apiVersion"] = "v1".into();
        }
        Some(document)
    }

    /// `GET /api` (`core`) and `GET /apis` in the aggregated form, `apidiscovery.k8s.io/v2`.
    pub fn aggregated(&self, core: bool) -> Value {
        let groups = self.group_versions();
        let groups = groups.iter().filter(|(group, _)| group.is_empty() == core);
        let items: Vec<Value> = groups
            .map(|(group, versions)| {
                let metadata = if core {
                    json!({})
                } else {
                    json!({"name": group})
                };
                let versions: Vec<Value> = versions
                    .iter()
                    .map(|version| {
                        let mut resources: Vec<Value> =
                            self.served(group, version).map(aggregated_entry).collect();
                        resources.sort_by(|left, right| {
                            left["resource"].as_str().cmp(&right["resource"].as_str())
                        });
                        json!({"version": version, "resources": resources, "freshness": "Current"})
                    })
                    .collect();
                json!({"metadata": metadata, "versions": versions})
            })
            .collect();
        json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
    }

    fn served(&self, group: &str, version: &str) -> impl Iterator<Item = &Kind> {
        self.all().filter(move |kind| {
            kind.group() == group && kind.version() == version && !kind.plural().is_empty()
        })
    }
}

fn group_entry((group, versions): &(&str, Vec<&str>)) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| json!({"groupVersion": format!("{group}/{version}"), "version": version}))
        .collect();
    json!({"name": group, "versions": versions, "preferredVersion": versions.first()})
}

fn resource_entry(kind: &Kind) -> Value {
    let mut entry = json!({
        "name": kind.plural(),
        "singularName": kind.singular(),
        "namespaced": kind.namespaced(),
        "kind": kind.kind(),
        "verbs": kind.verbs(),
    });
    if !kind.short_names().is_empty() {
        entry["shortNames"] = json!(kind.short_names());
    }
    if !kind.categories().is_empty() {
        entry["categories"] = json!(kind.categories());
    }
    entry
}

fn subresource_entry(kind: &Kind, subresource: &Subresource) -> Value {
    let mut entry = json!({
        "name": format!("{}/{}", kind.plural(), subresource.name),
        "singularName": "",
        "namespaced": kind.namespaced(),
        "kind": subresource.kind,
        "verbs": subresource.verbs,
    });
    if let (Some(group), Some(version)) = (&subresource.group, &subresource.version) {
        entry["group"] = json!(group);
        entry["version"] = json!(version);
    }
    entry
}

fn aggregated_entry(kind: &Kind) -> Value {
    let response = |group: &Option<String>, version: &Option<String>, name: &str| json!({"group": group.as_deref().unwrap_or(""), "version": version.as_deref().unwrap_or(""), "kind": name});
    let mut entry = json!({
        "resource": kind.plural(),
        "responseKind": response(&None, &None, kind.kind()),
        "scope": if kind.namespaced() { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular(),
        "verbs": kind.verbs(),
    });
    if !kind.short_names().is_empty() {
        entry["shortNames"] = json!(kind.short_names());
    }
    if !kind.categories().is_empty() {
        entry["categories"] = json!(kind.categories());
    }
    let subresources: Vec<Value> = kind
        .subresources()
        .iter()
        .map(|part| {
            json!({
                "subresource": part.name,
                "responseKind": response(&part.group, &part.version, &part.kind),
                "verbs": part.verbs,
            })
        })
        .collect();
    if !subresources.is_empty() {
        entry["subresources"] = json!(subresources);
    }
    entry
}
