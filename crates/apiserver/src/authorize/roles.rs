//! The built-in authorizer: nodes by what runs on them, everybody else by roles and bindings.
//!
//! The roles are kept as an [`access::Policy`] that is brought up to what the store says when it is
//! asked: what was written since is read, and nothing else. Nothing has to tell of a write: a
//! request that is given up after its write was queued would not come to that.

use std::sync::Arc;

use access::{Place, Policy, Rule, Subject, User};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde_json::{Value, json};
use store::{Difference, Snapshot, Space, Store};

use super::node;
use super::{Attributes, Authorizer, Decision, RuleList};
use crate::caller::{Caller, MASTERS};
use crate::meta::Meta;

/// The group whose objects make the policy.
pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";

/// What is stored in a space.
#[derive(Clone, Copy)]
enum Part {
    Role,
    Binding,
}

const SPACES: [(Part, &str); 4] = [
    (Part::Role, "clusterroles.rbac.authorization.k8s.io"),
    (Part::Role, "roles.rbac.authorization.k8s.io"),
    (
        Part::Binding,
        "clusterrolebindings.rbac.authorization.k8s.io",
    ),
    (Part::Binding, "rolebindings.rbac.authorization.k8s.io"),
];

/// The role that says what the agent of any node may do.
const NODE_ROLE: &str = "system:node";

/// A policy and what it was made from.
#[derive(Default)]
struct Made {
    policy: Arc<Policy>,
    /// The states of [`SPACES`] that it follows from.
    read: [Space<Meta>; SPACES.len()],
}

impl Made {
    /// Whether it knows all that was written before `snapshot`.
    fn is_of(&self, snapshot: &Snapshot<Meta>) -> bool {
        let mut read = SPACES.iter().zip(&self.read);
        read.all(|((_, space), read)| read.written() >= snapshot.space_revision(space))
    }

    /// The same brought up to `snapshot`, which is not older.
    fn followed_to(&self, snapshot: &Snapshot<Meta>) -> Made {
        let mut policy = Policy::clone(&self.policy);
        let read = SPACES.map(|(_, space)| snapshot.space(space));
        for ((part, _), (now, before)) in SPACES.iter().zip(read.iter().zip(&self.read)) {
            for difference in now.since(before) {
                follow(&mut policy, *part, &difference);
            }
        }
        Made {
            policy: Arc::new(policy),
            read,
        }
    }
}

fn follow(policy: &mut Policy, part: Part, difference: &Difference<'_, Meta>) {
    let (Difference::Put(entry) | Difference::Gone(entry)) = difference;
    let name = &*entry.key.name;
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    let place = Place::new(namespace, name);
    match (part, difference) {
        (Part::Role, Difference::Gone(_)) => policy.remove_role(&place),
        (Part::Binding, Difference::Gone(_)) => policy.remove_binding(&place),
        (_, Difference::Put(entry)) => {
            // What cannot be read allows nothing.
            let object: Value = serde_json::from_slice(&entry.bytes).unwrap_or_default();
            match part {
                Part::Role => policy.set_role(place, &object),
                Part::Binding => policy.set_binding(place, &object),
            }
        }
    }
}

/// Roles and bindings, as they are in the store.
pub(crate) struct Roles {
    store: Store<Meta>,
    made: ArcSwap<Made>,
    /// Held by the one who makes the next policy; the others wait for that and make none.
    turn: Mutex<()>,
}

impl Roles {
    pub(crate) fn new(store: Store<Meta>) -> Roles {
        Roles {
            store,
            made: ArcSwap::default(),
            turn: Mutex::default(),
        }
    }

    /// The policy as of now: it knows every write that was acknowledged before this was called.
    pub(crate) fn policy(&self) -> Arc<Policy> {
        let made = self.made.load();
        if made.is_of(&self.store.snapshot()) {
            return made.policy.clone();
        }
        let _turn = self.turn.lock();
        let made = self.made.load();
        // Taken in turn, so that no older state replaces a newer one.
        let snapshot = self.store.snapshot();
        if made.is_of(&snapshot) {
            return made.policy.clone();
        }
        let made = made.followed_to(&snapshot);
        let policy = made.policy.clone();
        self.made.store(Arc::new(made));
        policy
    }
}

/// An identity as the policy knows it.
pub(crate) fn user(caller: &Caller) -> User<'_> {
    User {
        name: &caller.name,
        groups: &caller.groups,
    }
}

fn question<'a>(attributes: &Attributes<'a>) -> access::Attributes<'a> {
    let request = attributes.request;
    access::Attributes {
        user: user(attributes.caller),
        verb: &request.verb,
        subject: if request.is_resource {
            Subject::Resource {
                group: &request.group,
                resource: &request.resource,
                subresource: &request.subresource,
                namespace: &request.namespace,
                name: &request.name,
            }
        } else {
            Subject::Path(&request.path)
        },
    }
}

impl Authorizer for Roles {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        // No policy has to be made to know this.
        if attributes.caller.in_group(MASTERS) {
            return Decision::Allow(String::new());
        }
        let policy = self.policy();
        let question = question(attributes);
        let mut reason = String::new();
        if let Some(node_name) = attributes.caller.node_name() {
            let rules = policy
                .rules_of_role("ClusterRole", NODE_ROLE, "")
                .unwrap_or_default();
            let allowed = rules.iter().any(|rule| rule.allows(&question));
            match node::related(&self.store, node_name, attributes.request) {
                Ok(()) if allowed => return Decision::Allow(String::new()),
                Ok(()) => {}
                Err(why) => reason = why,
            }
        }
        match policy.decide(&question) {
            access::Decision::Allowed(reason) => Decision::Allow(reason),
            access::Decision::NoOpinion => Decision::Deny(reason),
        }
    }

    fn rules(&self, caller: &Caller, namespace: &str) -> RuleList {
        let policy = self.policy();
        let mut list = RuleList::default();
        let every = Rule {
            verbs: vec!["*".into()],
            api_groups: vec!["*".into()],
            resources: vec!["*".into()],
            ..Rule::default()
        };
        let every_path = Rule {
            verbs: vec!["*".into()],
            non_resource_urls: vec!["*".into()],
            ..Rule::default()
        };
        let mut rules = policy.rules_of(&user(caller), namespace);
        if caller.in_group(MASTERS) {
            rules.extend([&every, &every_path]);
        }
        for rule in rules {
            if !rule.resources.is_empty() {
                let mut shown = json!({
                    "verbs": rule.verbs,
                    "apiGroups": rule.api_groups,
                    "resources": rule.resources,
                });
                if !rule.resource_names.is_empty() {
                    shown["resourceNames"] = json!(rule.resource_names);
                }
                list.resource_rules.push(shown);
            }
            if !rule.non_resource_urls.is_empty() {
                list.non_resource_rules
                    .push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls}));
            }
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use store::{Body, Key, Options, Transaction};

    use super::*;

    async fn store() -> Store<Meta> {
        let engine = Box::new(store::Memory);
        let opened = Store::open(engine, crate::extract(), Options::default()).await;
        opened.expect("memory opens")
    }

    /// Writes an object, or takes it out if there is none.
    async fn set(store: &Store<Meta>, space: &str, name: &str, object: Option<Value>) {
        let key = Key::new(space, name);
        let write = match object {
            Some(object) => Transaction::new().put(key, Body::plain(object.to_string())),
            None if store.get(&key).is_none() => return,
            None => Transaction::new().delete(key, Body::plain("{}")),
        };
        store.commit(write).await.expect("a commit");
    }

    fn role(verb: &str) -> Value {
        json!({"rules": [{"verbs": [verb], "apiGroups": [""], "resources": ["pods"]}]})
    }

    #[tokio::test]
    async fn only_what_was_written_is_read_again() {
        let store = store().await;
        let roles = Roles::new(store.clone());
        let space = SPACES[0].1;
        set(&store, space, "a", Some(role("get"))).await;
        set(&store, space, "b", Some(role("get"))).await;
        let place = |policy: &Policy, name: &str| {
            let rules = policy.rules_of_role("ClusterRole", name, "");
            rules.expect("a role").as_ptr()
        };
        let before = roles.policy();
        set(&store, space, "b", Some(role("list"))).await;
        let after = roles.policy();
        assert_eq!(place(&before, "a"), place(&after, "a"));
        assert_ne!(place(&before, "b"), place(&after, "b"));
        set(&store, "configmaps", "x/y", Some(json!({}))).await;
        assert!(Arc::ptr_eq(&after, &roles.policy()));
    }

    #[tokio::test]
    async fn a_policy_that_followed_is_one_that_was_made_anew() {
        let store = store().await;
        let roles = Roles::new(store.clone());
        let user = User {
            name: "u",
            groups: &["g".to_owned()],
        };
        for step in 0..400_usize {
            let (_, space) = SPACES[step * 7 % SPACES.len()];
            let (number, other) = (step * 11 % 13, step % 5);
            let name = if space.starts_with("cluster") {
                format!("n{number}")
            } else {
                format!("t/n{number}")
            };
            let object = match step % 3 {
                0 => None,
                _ if space.contains("bindings") => Some(json!({
                    "roleRef": {"kind": if step % 2 == 0 { "Role" } else { "ClusterRole" }, "name": format!("n{other}")},
                    "subjects": [{"kind": "User", "name": "u"}, {"kind": "Group", "name": "g"}],
                })),
                _ => Some(role(&format!("v{step}"))),
            };
            set(&store, space, &name, object).await;
            if step % 4 == 1 {
                continue;
            }
            let (followed, anew) = (roles.policy(), Roles::new(store.clone()).policy());
            for namespace in ["", "t", "other"] {
                let rules = followed.rules_of(&user, namespace);
                assert_eq!(rules, anew.rules_of(&user, namespace), "at {step}");
            }
        }
        let rules = roles.policy().rules_of(&user, "t").len();
        assert!(rules > 3, "{rules}");
    }
}
