//! Which kinds of objects the server has, as it says itself.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResourceList;
use kube::core::ApiResource;
use tracing::debug;

use crate::Context;

/// When to ask again what kinds there are, after the server could not say.
const RETRY: Duration = Duration::from_millis(500);

/// A kind as discovery names it.
#[derive(Clone, Debug)]
pub(crate) struct Resource {
    /// In the version that its group prefers.
    pub(crate) api: ApiResource,
    /// All versions of its group.
    pub(crate) versions: Vec<String>,
    pub(crate) namespaced: bool,
    pub(crate) verbs: Vec<String>,
}

impl Resource {
    pub(crate) fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }

    /// Whether its objects can be followed and deleted. Not so events, which belong to nobody and come
    /// in masses.
    pub(crate) fn is_collectable(&self) -> bool {
        let verbs = ["delete", "list", "watch"];
        verbs.into_iter().all(|verb| self.can(verb)) && self.api.plural != "events"
    }

    /// `plural.group`, as upstream names it where it tells of kinds; the core group is empty.
    pub(crate) fn name(&self) -> String {
        format!("{}.{}", self.api.plural, self.api.group)
    }
}

/// All kinds, as soon as the server can be asked; `None` if the drain comes first.
pub(crate) async fn when_known(context: &Context) -> Option<Vec<Resource>> {
    loop {
        match resources(&context.client).await {
            Ok(resources) => return Some(resources),
            Err(error) => debug!(%error, "could not ask which kinds there are"),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = context.drain.signaled() => return None,
        }
    }
}

/// All kinds, each in the version that its group prefers.
pub(crate) async fn resources(client: &kube::Client) -> Result<Vec<Resource>, kube::Error> {
    let core = client.list_core_api_resources("v1").await?;
    let mut resources = of_list("", "v1", &["v1".to_owned()], core);
    for group in client.list_api_groups().await?.groups {
        let preferred = group.preferred_version.as_ref();
        let Some(version) = preferred.or(group.versions.first()) else {
            continue;
        };
        let list = client
            .list_api_group_resources(&version.group_version)
            .await?;
        let all = group.versions.iter().map(|known| known.version.clone());
        let all: Vec<_> = all.collect();
        resources.extend(of_list(&group.name, &version.version, &all, list));
    }
    Ok(resources)
}

fn of_list(
    group: &str,
    version: &str,
    versions: &[String],
    list: APIResourceList,
) -> Vec<Resource> {
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
            versions: versions.to_vec(),
            namespaced: resource.namespaced,
            verbs: resource.verbs,
        }
    });
    resources.collect()
}
