//! What is asked: who wants to do what with which thing.

use serde::{Deserialize, Serialize};

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct User<'a> {
    /// User name; `system:serviceaccount:<namespace>:<name>` for a ServiceAccount.
    pub name: &'a str,
    /// All groups.
    pub groups: &'a [String],
}

/// One request, as an authorizer sees it.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    /// Who asks.
    pub user: User<'a>,
    /// `get`, `list`, `create`, …; for a path without a resource the HTTP method in lower case.
    pub verb: &'a str,
    /// What it is about.
    pub subject: Subject<'a>,
}

/// What a request is about.
#[derive(Clone, Copy, Debug)]
pub enum Subject<'a> {
    /// A resource of the API.
    Resource {
        /// API group, empty for the core group.
        group: &'a str,
        /// Plural name.
        resource: &'a str,
        /// Empty for the resource itself.
        subresource: &'a str,
        /// Empty for cluster-scoped resources and for all namespaces.
        namespace: &'a str,
        /// Empty for collections and for creation.
        name: &'a str,
    },
    /// A path outside the resources, such as `/healthz`.
    Path(&'a str),
}

/// The subject of a binding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BoundSubject {
    kind: String,
    name: String,
    #[serde(default)]
    namespace: String,
}

impl BoundSubject {
    /// Whether this subject is the user. A ServiceAccount without a namespace is in the binding's.
    pub(crate) fn is(&self, user: &User<'_>, binding_namespace: &str) -> bool {
        match self.kind.as_str() {
            "User" => self.name == user.name,
            "Group" => user.groups.contains(&self.name),
            "ServiceAccount" => {
                let namespace = if self.namespace.is_empty() {
                    binding_namespace
                } else {
                    &self.namespace
                };
                let account = user
                    .name
                    .strip_prefix("system:serviceaccount:")
                    .and_then(|account| account.split_once(':'));
                !namespace.is_empty() && account == Some((namespace, self.name.as_str()))
            }
            _ => false,
        }
    }
}
