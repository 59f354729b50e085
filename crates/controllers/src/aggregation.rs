//! A ClusterRole with an `aggregationRule` has the rules of all ClusterRoles that it selects.

use std::sync::Arc;

use informer::{Action, Informer, Queue};
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::api::{Api, Patch, PatchParams};
use kube::core::{Selector, SelectorExt};
use serde_json::json;

use crate::work::{Reconcile, work};
use crate::{Context, claim, follow};

/// The name under which this controller applies rules: upstream gives it one of its own.
const FIELD_MANAGER: &str = "clusterrole-aggregation-controller";

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

struct Controller {
    client: kube::Client,
    roles: Informer<ClusterRole>,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        roles: context.informers.of(),
    });
    controller.roles.synced().await;
    let queue: Queue<String> = Queue::new();
    tokio::join!(
        follow(controller.roles.clone(), |_| {
            // Any role may be selected by any other; those that select are few.
            for role in controller.roles.list() {
                if role.aggregation_rule.is_some() {
                    queue.add(role.metadata.name.clone().unwrap_or_default());
                }
            }
        }),
        work(&controller, &queue, &context.drain),
    );
}

impl Reconcile for Controller {
    type Key = String;
    type Error = Error;
    const NAME: &'static str = "cluster role aggregation";
    const WORKERS: usize = 1;

    async fn reconcile(&self, name: &String) -> Result<Action, Error> {
        let Some(role) = self.roles.get(None, name) else {
            return Ok(Action::Done);
        };
        let all = self.roles.list();
        let rules = rules_of(&role, all.iter().map(AsRef::as_ref))?;
        if role.rules.as_deref().unwrap_or_default() == rules {
            return Ok(Action::Done);
        }
        let applied = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": name, "uid": role.metadata.uid},
            "rules": rules,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let api: Api<ClusterRole> = Api::all(self.client.clone());
        match api.patch(name, &params, &Patch::Apply(&applied)).await {
            Ok(written) => self.roles.caught_up_with(&written).await,
            // It is gone, or another has its name by now.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(source) => {
                let role = name.to_owned();
                return Err(Error::Write { role, source });
            }
        }
        Ok(Action::Done)
    }
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
