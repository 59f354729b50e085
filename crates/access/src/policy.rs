//! All roles and bindings of a cluster, as one value that can be asked.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use crate::attributes::BoundSubject;
use crate::{Attributes, Rule, Subject, User};

/// The group whose members may do everything, whatever the objects say.
const MASTERS: &str = "system:masters";

/// Parts of rules that [`Policy::escalation`] names: what is longer nobody reads.
const MISSING_MOST: usize = 64;
/// Parts of rules that it looks at before it gives up and says no.
const COMPARED_MOST: usize = 65_536;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Allowed, and by what.
    Allowed(String),
    /// No rule allows it.
    NoOpinion,
}

/// Roles and bindings. Objects that are not what they should be allow nothing.
#[derive(Debug, Default)]
pub struct Policy {
    cluster_roles: HashMap<String, Vec<Rule>>,
    roles: HashMap<(String, String), Vec<Rule>>,
    bindings: Vec<Binding>,
}

#[derive(Debug)]
struct Binding {
    /// Absent for a ClusterRoleBinding.
    namespace: Option<String>,
    name: String,
    role: RoleRef,
    subjects: Vec<BoundSubject>,
}

#[derive(Clone, Debug, Deserialize)]
struct RoleRef {
    kind: String,
    name: String,
}

impl Policy {
    /// Adds a Role, ClusterRole, RoleBinding or ClusterRoleBinding.
    pub fn add(&mut self, object: &Value) {
        let text = |pointer: &str| {
            object
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_string()
        };
        let (name, namespace) = (text("/metadata/name"), text("/metadata/namespace"));
        match object["kind"].as_str() {
            Some("ClusterRole") => {
                self.cluster_roles.insert(name, read(&object["rules"]));
            }
            Some("Role") => {
                self.roles.insert((namespace, name), read(&object["rules"]));
            }
            Some(kind @ ("ClusterRoleBinding" | "RoleBinding")) => {
                if let Ok(role) = RoleRef::deserialize(&object["roleRef"]) {
                    self.bindings.push(Binding {
                        namespace: (kind == "RoleBinding").then_some(namespace),
                        name,
                        role,
                        subjects: read(&object["subjects"]),
                    });
                }
            }
            _ => {}
        }
    }

    /// Whether a request is allowed.
    pub fn decide(&self, attributes: &Attributes<'_>) -> Decision {
        if attributes.user.groups.iter().any(|group| group == MASTERS) {
            return Decision::Allowed(String::new());
        }
        let namespace = match attributes.subject {
            Subject::Resource { namespace, .. } => namespace,
            Subject::Path(_) => "",
        };
        for (binding, rules) in self.bound(&attributes.user, namespace) {
            if rules.iter().any(|rule| rule.allows(attributes)) {
                return Decision::Allowed(binding.reason());
            }
        }
        Decision::NoOpinion
    }

    /// Every rule that holds for a user in a namespace (empty: cluster-wide only).
    pub fn rules_of(&self, user: &User<'_>, namespace: &str) -> Vec<&Rule> {
        self.bound(user, namespace)
            .flat_map(|(_, rules)| rules)
            .collect()
    }

    /// The rules of a role that a binding in `namespace` would hand out.
    pub fn rules_of_role(&self, kind: &str, name: &str, namespace: &str) -> Option<&[Rule]> {
        let rules = match kind {
            "ClusterRole" => self.cluster_roles.get(name),
            _ => self.roles.get(&(namespace.to_string(), name.to_string())),
        };
        rules.map(Vec::as_slice)
    }

    /// What `user` would hand out without having it: the parts of `rules` that no rule of theirs covers,
    /// the first 64 of them. Members of `system:masters` have everything.
    pub fn escalation(&self, user: &User<'_>, namespace: &str, rules: &[Rule]) -> Vec<Rule> {
        if user.groups.iter().any(|group| group == MASTERS) {
            return Vec::new();
        }
        let owned = self.rules_of(user, namespace);
        let mut compared = COMPARED_MOST;
        let mut missing = Vec::new();
        for rule in rules {
            let left = MISSING_MOST - missing.len();
            missing.extend(rule.not_covered_by(&owned, &mut compared).take(left));
            if missing.len() == MISSING_MOST {
                break;
            }
        }
        missing
    }

    fn bound(&self, user: &User<'_>, namespace: &str) -> impl Iterator<Item = (&Binding, &[Rule])> {
        self.bindings.iter().filter_map(move |binding| {
            let home = match &binding.namespace {
                Some(home) if home == namespace => home.as_str(),
                Some(_) => return None,
                None => "",
            };
            if !binding
                .subjects
                .iter()
                .any(|subject| subject.is(user, home))
            {
                return None;
            }
            let rules = self.rules_of_role(&binding.role.kind, &binding.role.name, home)?;
            Some((binding, rules))
        })
    }
}

impl Binding {
    /// As upstream's audit annotation says it, without the subject.
    fn reason(&self) -> String {
        let RoleRef { kind, name } = &self.role;
        match &self.namespace {
            None => format!(
                "RBAC: allowed by ClusterRoleBinding {:?} of {kind} {name:?}",
                self.name
            ),
            Some(namespace) => format!(
                "RBAC: allowed by RoleBinding \"{}/{namespace}\" of {kind} {name:?}",
                self.name
            ),
        }
    }
}

/// A list whose broken elements count as absent.
fn read<T: for<'de> Deserialize<'de>>(list: &Value) -> Vec<T> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(|element| T::deserialize(element).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap;
    use serde_json::json;

    fn policy() -> Policy {
        let mut policy = Policy::default();
        bootstrap().iter().for_each(|object| policy.add(object));
        policy.add(&json!({"kind": "RoleBinding", "metadata": {"name": "jane", "namespace": "team"},
            "roleRef": {"kind": "ClusterRole", "name": "edit"},
            "subjects": [{"kind": "User", "name": "jane"}, {"kind": "ServiceAccount", "name": "bot"}]}));
        policy
    }

    fn check(
        user: &str,
        groups: &[&str],
        verb: &str,
        resource: &str,
        namespace: &str,
        expected: bool,
    ) {
        let groups: Vec<String> = groups.iter().map(|group| group.to_string()).collect();
        let (group, resource) = resource.split_once('/').expect("group/resource");
        let decision = policy().decide(&Attributes {
            user: User {
                name: user,
                groups: &groups,
            },
            verb,
            subject: Subject::Resource {
                group,
                resource,
                subresource: "",
                namespace,
                name: "",
            },
        });
        assert_eq!(
            decision != Decision::NoOpinion,
            expected,
            "{user} {verb} {resource} {namespace}"
        );
    }

    #[test]
    fn bindings_hold_for_their_subjects_in_their_namespace() {
        check("jane", &[], "create", "apps/deployments", "team", true);
        check("jane", &[], "create", "apps/deployments", "other", false);
        check(
            "jane",
            &[],
            "create",
            "rbac.authorization.k8s.io/roles",
            "team",
            false,
        );
        check("john", &[], "get", "/pods", "team", false);
        check(
            "system:serviceaccount:team:bot",
            &[],
            "get",
            "/pods",
            "team",
            true,
        );
        check(
            "system:serviceaccount:other:bot",
            &[],
            "get",
            "/pods",
            "team",
            false,
        );
        check("admin", &["system:masters"], "delete", "/nodes", "", true);
        check(
            "anybody",
            &["system:authenticated"],
            "create",
            "authorization.k8s.io/selfsubjectaccessreviews",
            "",
            true,
        );
        check(
            "system:anonymous",
            &["system:unauthenticated"],
            "list",
            "/secrets",
            "",
            false,
        );
    }

    #[test]
    fn nobody_hands_out_what_they_do_not_have() {
        let policy = policy();
        let user = User {
            name: "jane",
            groups: &[],
        };
        let rules = |name: &str| {
            policy
                .rules_of_role("ClusterRole", name, "")
                .expect("a role")
                .to_vec()
        };
        assert_eq!(policy.escalation(&user, "team", &rules("view")), []);
        assert_ne!(policy.escalation(&user, "other", &rules("view")), []);
        assert_ne!(
            policy.escalation(&user, "team", &rules("cluster-admin")),
            []
        );
    }

    #[test]
    fn broken_objects_allow_nothing() {
        let mut policy = Policy::default();
        for object in [
            json!({}),
            json!({"kind": "ClusterRole", "metadata": 7, "rules": "all"}),
            json!({"kind": "ClusterRoleBinding", "metadata": {"name": "x"}, "roleRef": null, "subjects": [1]}),
        ] {
            policy.add(&object);
        }
        let user = User {
            name: "x",
            groups: &[],
        };
        assert!(policy.rules_of(&user, "").is_empty());
    }
}
