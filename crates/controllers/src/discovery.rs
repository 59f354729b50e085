//! Which kinds of objects the server has, as it says itself.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResourceList;
use kube::core::ApiResource;

/// A kind as discovery names it.
#[derive(Clone, Debug)]
pub(crate) struct Resource {
    pub(crate) api: ApiResource,
    pub(crate) namespaced: bool,
    pub(crate) verbs: Vec<String>,
}

impl Resource {
    pub(crate) fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }
}

/// All kinds, each in the version that its group prefers.
pub(crate) async fn resources(client: &kube::Client) -> Result<Vec<Resource>, kube::Error> {
    let mut resources = of_list("", "v1", client.list_core_api_resources("v1").await?);
    for group in client.list_api_groups().await?.groups {
        let preferred = group.preferred_version.as_ref();
        let Some(version) = preferred.or(group.versions.first()) else {
            continue;
        };
        let list = client
            .list_api_group_resources(&version.group_version)
            .await?;
        resources.extend(of_list(&group.name, &version.version, list));
    }
    Ok(resources)
}

fn of_list(group: &str, version: &str, list: APIResourceList) -> Vec<Resource> {
    let whole = list
        .resources
        .into_iter()
        .filter(|resource| !resource.name.contains('/'));
    let resources = whole.map(|resource| {
        let group = resource.group.as_deref().unwrap_or(group).to_owned();
        let version = resource.version.as_deref().unwrap_or(version).to_owned();
        let api_version = match group.as_str() {
            "" => version.clone(),
            group => format!("{group}/{version}"),
        };
        Resource {
            api: ApiResource {
                group,
                version,
                api_version,
                kind: resource.kind,
                plural: resource.name,
            },
            namespaced: resource.namespaced,
            verbs: resource.verbs,
        }
    });
    resources.collect()
}
