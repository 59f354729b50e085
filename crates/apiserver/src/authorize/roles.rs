//! The built-in authorizer: nodes by what runs on them, everybody else by roles and bindings.
//!
//! The roles are read from the store into an [`access::Policy`] when they are first asked for, and
//! again when the store says that one of them was written since. Nothing has to tell of the write:
//! a request that is given up after its write was queued would not come to that.

use std::sync::Arc;

use access::{Policy, Rule, Subject, User};
use parking_lot::Mutex;
use serde_json::{Value, json};
use store::{Revision, Snapshot, Store};

use super::node;
use super::{Attributes, Authorizer, Decision, RuleList};
use crate::caller::{Caller, MASTERS};
use crate::meta::Meta;

/// The group whose objects make the policy.
pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";

const SPACES: [&str; 4] = [
    "clusterroles.rbac.authorization.k8s.io",
    "clusterrolebindings.rbac.authorization.k8s.io",
    "roles.rbac.authorization.k8s.io",
    "rolebindings.rbac.authorization.k8s.io",
];

/// The role that says what the agent of any node may do.
const NODE_ROLE: &str = "system:node";

/// The revision of each of [`SPACES`].
type Written = [Revision; SPACES.len()];

fn written(snapshot: &Snapshot<Meta>) -> Written {
    SPACES.map(|space| snapshot.space_revision(space))
}

/// Roles and bindings, as they are in the store.
pub(crate) struct Roles {
    store: Store<Meta>,
    /// The policy, and when the objects that made it were last written.
    made: Mutex<Option<(Written, Arc<Policy>)>>,
}

impl Roles {
    pub(crate) fn new(store: Store<Meta>) -> Roles {
        Roles {
            store,
            made: Mutex::default(),
        }
    }

    /// The policy as of now.
    pub(crate) fn policy(&self) -> Arc<Policy> {
        let mut made = self.made.lock();
        // Taken under the lock, so that no older state replaces a newer one.
        let snapshot = self.store.snapshot();
        let written = written(&snapshot);
        if let Some((seen, policy)) = &*made
            && *seen == written
        {
            return policy.clone();
        }
        let mut policy = Policy::default();
        for space in SPACES {
            for entry in snapshot.range(space, "", None, usize::MAX) {
                if let Ok(object) = serde_json::from_slice::<Value>(&entry.bytes) {
                    policy.add(&object);
                }
            }
        }
        let policy = Arc::new(policy);
        *made = Some((written, policy.clone()));
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
