//! A ClusterRole with an `aggregationRule` has the rules of all ClusterRoles that it selects.

use informer::{Action, Informer, Queue};
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::api::{Api, Patch, PatchParams};
use kube::core::{Selector, SelectorExt};
use serde_json::json;

use crate::{Context, claim, follow};

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the aggregation rule of {role} has a selector that is none")]
    Selector {
        role: String,
        source: kube::core::labels::ParseExpressionError,
    },
    #[error("could not write the rules of {role}")]
    Write { role: String, source: kube::Error },
}

pub(crate) async fn run(context: Context) {
    let roles = context.informers.of::<ClusterRole>();
    roles.synced().await;
    let queue: Queue<String> = Queue::new();
    tokio::join!(
        follow(roles.clone(), |_| {
            // Any role may be selected by any other; those that select are few.
            for role in roles.list() {
                if role.aggregation_rule.is_some() {
                    queue.add(role.metadata.name.clone().unwrap_or_default());
                }
            }
        }),
        queue.clone().run(
            "cluster role aggregation",
            1,
            |name| {
                let (client, roles) = (context.client.clone(), roles.clone());
                async move { aggregate(client, &roles, &name).await }
            },
            context.drain.clone(),
        ),
    );
}

async fn aggregate(
    client: kube::Client,
    roles: &Informer<ClusterRole>,
    name: &str,
) -> Result<Action, Error> {
    let Some(role) = roles.get(None, name) else {
        return Ok(Action::Done);
    };
    let all = roles.list();
    let rules = rules_of(&role, all.iter().map(AsRef::as_ref))?;
    if role.rules.as_deref().unwrap_or_default() == rules {
        return Ok(Action::Done);
    }
    let patch = json!({"metadata": {"uid": role.metadata.uid}, "rules": rules});
    let params = PatchParams {
        field_manager: Some("clusterrole-aggregation-controller".to_owned()),
        ..PatchParams::default()
    };
    let api: Api<ClusterRole> = Api::all(client);
    match api.patch(name, &params, &Patch::Merge(&patch)).await {
        Ok(written) => roles.caught_up_with(&written).await,
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(source) => {
            let role = name.to_owned();
            return Err(Error::Write { role, source });
        }
    }
    Ok(Action::Done)
}

/// The rules of the roles that `role` selects, by their names, each rule once.
fn rules_of<'a>(
    role: &ClusterRole,
    all: impl Iterator<Item = &'a ClusterRole> + Clone,
) -> Result<Vec<PolicyRule>, Error> {
    let selectors = role
        .aggregation_rule
        .iter()
        .flat_map(|rule| &rule.cluster_role_selectors);
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in selectors.flatten() {
        let selector = Selector::try_from(selector.clone()).map_err(|source| Error::Selector {
            role: role.metadata.name.clone().unwrap_or_default(),
            source,
        })?;
        let mut picked: Vec<&ClusterRole> = all
            .clone()
            .filter(|other| other.metadata.name != role.metadata.name)
            .filter(|other| selector.matches(claim::labels(&other.metadata)))
            .collect();
        picked.sort_by_key(|other| other.metadata.name.as_deref());
        for rule in picked.into_iter().flat_map(|other| &other.rules).flatten() {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn role(value: Value) -> ClusterRole {
        serde_json::from_value(value).expect("is a role")
    }

    #[test]
    fn the_rules_of_the_selected_roles_are_joined_by_name_without_doubles() {
        let part = |name: &str, to: &str, verbs: &[&str]| {
            role(json!({"metadata": {"name": name, "labels": {"to": to}},
                "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": verbs}]}))
        };
        let whole = role(json!({"metadata": {"name": "view"},
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "view"}}]}}));
        let all = [
            part("b", "view", &["list"]),
            part("a", "view", &["get"]),
            part("c", "edit", &["delete"]),
            part("d", "view", &["get"]),
            whole.clone(),
        ];
        let rules = rules_of(&whole, all.iter()).expect("the selector is one");
        let verbs: Vec<_> = rules.iter().map(|rule| rule.verbs.join(",")).collect();
        assert_eq!(verbs, ["get", "list"]);
    }
}
