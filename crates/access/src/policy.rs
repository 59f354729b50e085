//! All roles and bindings of a cluster, as one value that can be asked.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::OrdMap;
use serde::Deserialize;
use serde_json::Value;

use crate::binding::{Binding, Grantee};
use crate::{Attributes, Rule, Subject, User};

/// The group whose members may do everything, whatever the objects say.
const MASTERS: &str = "system:masters";

/// Parts of rules that [`Policy::escalation`] names: what is longer nobody reads.
const MISSING_MOST: usize = 64;
/// Parts of rules that are compared before one gives up and says that they are missing.
pub(crate) const COMPARED_MOST: usize = 65_536;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Allowed, and by what.
    Allowed(String),
    /// No rule allows it.
    NoOpinion,
}

/// The name of a role or of a binding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Empty for a ClusterRole or a ClusterRoleBinding.
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
}

impl Place {
    /// `namespace` is empty for a ClusterRole or a ClusterRoleBinding.
    pub fn new(namespace: &str, name: &str) -> Place {
        Place {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

/// A binding as it is found by whom it is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Grant {
    namespace: Arc<str>,
    grantee: Grantee,
    name: Arc<str>,
}

/// Roles and bindings. Objects that are not what they should be allow nothing.
///
/// A clone is O(1) and shares everything; a change of one object costs what that object is long,
/// whatever else there is. A question costs what is bound to the one who asks it.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    roles: OrdMap<Place, Arc<[Rule]>>,
    bindings: OrdMap<Place, Arc<Binding>>,
    grants: OrdMap<Grant, Arc<Binding>>,
}

impl Policy {
    /// Takes a Role or ClusterRole as it is now.
    pub fn set_role(&mut self, place: Place, object: &Value) {
        self.roles.insert(place, read(&object["rules"]).collect());
    }

    /// Forgets a Role or ClusterRole.
    pub fn remove_role(&mut self, place: &Place) {
        self.roles.remove(place);
    }

    /// Takes a RoleBinding or ClusterRoleBinding as it is now.
    pub fn set_binding(&mut self, place: Place, object: &Value) {
        self.remove_binding(&place);
        let Some(binding) = Binding::read(&place, object) else {
            return;
        };
        let binding = Arc::new(binding);
        for grant in grants(&place, &binding) {
            self.grants.insert(grant, binding.clone());
        }
        self.bindings.insert(place, binding);
    }

    /// Forgets a RoleBinding or ClusterRoleBinding.
    pub fn remove_binding(&mut self, place: &Place) {
        if let Some(binding) = self.bindings.remove(place) {
            for grant in grants(place, &binding) {
                self.grants.remove(&grant);
            }
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
        for (grant, binding) in self.granted(&attributes.user, namespace) {
            let rules = self.rules_behind(binding);
            if rules.iter().any(|rule| rule.allows(attributes)) {
                return Decision::Allowed(binding.reason(&grant.grantee));
            }
        }
        Decision::NoOpinion
    }

    /// Every rule that holds for a user in a namespace (empty: cluster-wide only), those of the
    /// cluster first.
    pub fn rules_of(&self, user: &User<'_>, namespace: &str) -> Vec<&Rule> {
        // Who is bound twice by one binding has its rules once.
        let bound: BTreeMap<_, _> = self
            .granted(user, namespace)
            .map(|(grant, binding)| ((&grant.namespace, &grant.name), binding))
            .collect();
        bound
            .into_values()
            .flat_map(|binding| self.rules_behind(binding))
            .collect()
    }

    /// The rules of a role that a binding in `namespace` would hand out.
    pub fn rules_of_role(&self, kind: &str, name: &str, namespace: &str) -> Option<&[Rule]> {
        let home = match kind {
            "ClusterRole" => "",
            _ if namespace.is_empty() => return None,
            _ => namespace,
        };
        self.roles
            .get(&Place::new(home, name))
            .map(|rules| &**rules)
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

    fn rules_behind(&self, binding: &Binding) -> &[Rule] {
        self.roles.get(&binding.role).map_or(&[], |rules| &**rules)
    }

    /// The bindings for a user, in the whole cluster and then in `namespace`. One that names the
    /// user and a group of theirs comes more than once.
    fn granted(
        &self,
        user: &User<'_>,
        namespace: &str,
    ) -> impl Iterator<Item = (&Grant, &Binding)> {
        let grantees: Vec<Grantee> = std::iter::once(Grantee::User(user.name.into()))
            .chain(
                user.groups
                    .iter()
                    .map(|group| Grantee::Group(group.as_str().into())),
            )
            .collect();
        let in_namespace = (!namespace.is_empty()).then(|| Arc::from(namespace));
        [Some(Arc::from("")), in_namespace]
            .into_iter()
            .flatten()
            .flat_map(move |namespace: Arc<str>| {
                grantees.clone().into_iter().map(move |grantee| Grant {
                    namespace: namespace.clone(),
                    grantee,
                    name: "".into(),
                })
            })
            .flat_map(|first| {
                self.grants
                    .range(first.clone()..)
                    .take_while(move |(grant, _)| {
                        grant.namespace == first.namespace && grant.grantee == first.grantee
                    })
            })
            .map(|(grant, binding)| (grant, &**binding))
    }
}

fn grants<'a>(place: &'a Place, binding: &'a Binding) -> impl Iterator<Item = Grant> + 'a {
    binding.grantees.iter().map(|grantee| Grant {
        namespace: place.namespace.clone(),
        grantee: grantee.clone(),
        name: place.name.clone(),
    })
}

/// The elements of a list; broken ones count as absent.
pub(crate) fn read<T: for<'de> Deserialize<'de>>(list: &Value) -> impl Iterator<Item = T> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(|element| T::deserialize(element).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap;
    use serde_json::json;

    /// Takes an object as a server does that finds it stored.
    fn set(policy: &mut Policy, object: &Value) {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        let place = Place::new(text("namespace"), text("name"));
        if object["roleRef"].is_null() {
            policy.set_role(place, object);
        } else {
            policy.set_binding(place, object);
        }
    }

    fn policy() -> Policy {
        let mut policy = Policy::default();
        for object in bootstrap() {
            set(&mut policy, &object);
        }
        set(
            &mut policy,
            &json!({"metadata": {"name": "jane", "namespace": "team"},
            "roleRef": {"kind": "ClusterRole", "name": "edit"},
            "subjects": [{"kind": "User", "name": "jane"}, {"kind": "ServiceAccount", "name": "bot"}]}),
        );
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
        let user = User {
            name: "x",
            groups: &[],
        };
        let place = Place::new("", "x");
        policy.set_role(place.clone(), &json!({"rules": [{"verbs": ["get"]}]}));
        let binding = json!({"roleRef": {"kind": "ClusterRole", "name": "x"}, "subjects": [{"kind": "User", "name": "x"}]});
        policy.set_binding(place.clone(), &binding);
        assert_eq!(policy.rules_of(&user, "").len(), 1);
        // A broken object is not what it was before either.
        for broken in [
            Value::Null,
            json!({}),
            json!({"roleRef": null, "subjects": [1]}),
            json!({"roleRef": {"kind": "Role", "name": "x"}, "subjects": [{"kind": "User", "name": "x"}]}),
        ] {
            policy.set_binding(place.clone(), &binding);
            policy.set_binding(place.clone(), &broken);
            assert!(policy.rules_of(&user, "").is_empty(), "{broken}");
        }
        policy.set_binding(place.clone(), &binding);
        policy.set_role(place, &json!({"rules": "all"}));
        assert!(policy.rules_of(&user, "").is_empty());
    }

    #[test]
    fn what_is_taken_away_is_gone_and_the_rest_stays_as_it_is() {
        let mut policy = policy();
        let before = policy.clone();
        let jane = User {
            name: "jane",
            groups: &["staff".to_owned()],
        };
        let place = Place::new("team", "jane");
        let count = |policy: &Policy| policy.rules_of(&jane, "team").len();
        let edit = count(&policy);
        assert!(edit > 0);
        let mut binding = json!({"roleRef": {"kind": "ClusterRole", "name": "edit"},
            "subjects": [{"kind": "Group", "name": "staff"}, {"kind": "User", "name": "jane"}]});
        policy.set_binding(place.clone(), &binding);
        assert_eq!(count(&policy), edit, "bound twice by one binding");
        binding["subjects"] = json!([{"kind": "User", "name": "john"}]);
        policy.set_binding(place.clone(), &binding);
        assert_eq!(count(&policy), 0);
        policy.remove_binding(&place);
        policy.remove_role(&Place::new("", "edit"));
        assert_eq!(count(&policy), 0);
        assert_eq!(policy.bindings.len() + 1, before.bindings.len());
        assert_eq!(count(&before), edit, "a clone is a value of its own");
        let view = |policy: &Policy| {
            let rules = policy.rules_of_role("ClusterRole", "view", "");
            rules.expect("a role").as_ptr()
        };
        assert_eq!(view(&policy), view(&before), "it is not read again");
    }

    #[test]
    fn a_reason_names_the_binding_the_role_and_whom_it_is_for() {
        let mut policy = policy();
        let binding = json!({"roleRef": {"kind": "ClusterRole", "name": "view"}, "subjects": [
            {"kind": "User", "name": "u"}, {"kind": "Group", "name": "g"}, {"kind": "ServiceAccount", "name": "bot"}]});
        policy.set_binding(Place::new("h", "x"), &binding);
        let check = |name: &str, groups: &[&str], namespace: &str, expected: &str| {
            let groups: Vec<String> = groups.iter().map(|group| group.to_string()).collect();
            let decision = policy.decide(&Attributes {
                user: User {
                    name,
                    groups: &groups,
                },
                verb: "get",
                subject: Subject::Resource {
                    group: "",
                    resource: "pods",
                    subresource: "",
                    namespace,
                    name: "",
                },
            });
            assert_eq!(decision, Decision::Allowed(expected.into()));
        };
        let bound = "RBAC: allowed by RoleBinding \"x/h\" of ClusterRole \"view\" to ";
        check("u", &[], "h", &format!("{bound}User \"u\""));
        check("zz", &["a", "g"], "h", &format!("{bound}Group \"g\""));
        let bot = "system:serviceaccount:h:bot";
        check(bot, &[], "h", &format!("{bound}ServiceAccount \"bot/h\""));
        check(
            "system:kube-scheduler",
            &[],
            "",
            "RBAC: allowed by ClusterRoleBinding \"system:kube-scheduler\" of ClusterRole \"system:kube-scheduler\" to User \"system:kube-scheduler\"",
        );
    }
}
