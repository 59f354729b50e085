//! One binding: which role it hands to whom.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use crate::policy::{Place, read};

/// A RoleBinding or ClusterRoleBinding.
#[derive(Debug)]
pub(crate) struct Binding {
    place: Place,
    role_kind: RoleKind,
    pub(crate) role: Place,
    pub(crate) grantees: Vec<Grantee>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum RoleKind {
    ClusterRole,
    Role,
}

/// Whom something is bound to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Grantee {
    /// Also a ServiceAccount, which is the user `system:serviceaccount:<namespace>:<name>`.
    User(Arc<str>),
    Group(Arc<str>),
}

#[derive(Deserialize)]
struct RoleRef {
    kind: RoleKind,
    name: Arc<str>,
}

/// The subject of a binding as it is written.
#[derive(Deserialize)]
struct Written {
    kind: String,
    name: String,
    #[serde(default)]
    namespace: String,
}

impl Written {
    /// A ServiceAccount without a namespace is in the binding's.
    fn grantee(self, binding_namespace: &str) -> Option<Grantee> {
        match self.kind.as_str() {
            "User" => Some(Grantee::User(self.name.into())),
            "Group" => Some(Grantee::Group(self.name.into())),
            "ServiceAccount" => {
                let namespace = if self.namespace.is_empty() {
                    binding_namespace
                } else {
                    &self.namespace
                };
                let user = format!("system:serviceaccount:{namespace}:{}", self.name);
                (!namespace.is_empty()).then(|| Grantee::User(user.into()))
            }
            _ => None,
        }
    }
}

impl Binding {
    /// The object at `place`, if it can hand out a role at all.
    pub(crate) fn read(place: &Place, object: &Value) -> Option<Binding> {
        let RoleRef { kind, name } = RoleRef::deserialize(&object["roleRef"]).ok()?;
        let namespace = match kind {
            RoleKind::ClusterRole => "".into(),
            // A role of a namespace cannot be handed out for the whole cluster.
            RoleKind::Role if place.namespace.is_empty() => return None,
            RoleKind::Role => place.namespace.clone(),
        };
        Some(Binding {
            place: place.clone(),
            role_kind: kind,
            role: Place { namespace, name },
            grantees: read::<Written>(&object["subjects"])
                .filter_map(|subject| subject.grantee(&place.namespace))
                .collect(),
        })
    }

    /// As upstream says why it allowed something.
    pub(crate) fn reason(&self, grantee: &Grantee) -> String {
        let Place { namespace, name } = &self.place;
        let binding = if namespace.is_empty() {
            format!("ClusterRoleBinding {name:?}")
        } else {
            format!("RoleBinding \"{name}/{namespace}\"")
        };
        let (kind, role) = (self.role_kind, &self.role.name);
        format!("RBAC: allowed by {binding} of {kind:?} {role:?} to {grantee}")
    }
}

impl std::fmt::Display for Grantee {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let account = |name: &str| {
            let (namespace, name) = name
                .strip_prefix("system:serviceaccount:")?
                .split_once(':')?;
            Some(format!("ServiceAccount \"{name}/{namespace}\""))
        };
        match self {
            Grantee::User(name) => match account(name) {
                Some(account) => formatter.write_str(&account),
                None => write!(formatter, "User {name:?}"),
            },
            Grantee::Group(name) => write!(formatter, "Group {name:?}"),
        }
    }
}
