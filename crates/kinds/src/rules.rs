//! What is special about a kind, as a table of functions, and which kind has which table.

use jiff::Timestamp;
use serde_json::Value;

use crate::groups::{
    apps, authentication, coordination, core, discovery, events, rbac, scheduling,
};
use crate::names::{self, NameCheck};
use crate::table::Heading;
use crate::{Fault, metadata};

/// The rules of a kind. A kind's file holds one constant of these, starting from [`Rules::PLAIN`].
pub(crate) struct Rules {
    /// What the name of an object must look like.
    pub(crate) name: NameCheck,
    pub(crate) default: fn(&mut Value),
    pub(crate) prepare_create: fn(&mut Value),
    pub(crate) prepare_update: fn(&mut Value, &Value, Option<&str>),
    pub(crate) validate: fn(&Value, &mut Vec<Fault>),
    pub(crate) validate_update: fn(&Value, &Value, Option<&str>, &mut Vec<Fault>),
    /// What every request for the kind is warned of.
    pub(crate) deprecated: Option<&'static str>,
    pub(crate) warnings: fn(&Value) -> Vec<String>,
    pub(crate) columns: &'static [Heading],
    pub(crate) cells: fn(&Value, Timestamp) -> Vec<Value>,
    pub(crate) fields: fn(&Value) -> Vec<(&'static str, String)>,
}

impl std::fmt::Debug for Rules {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Rules")
    }
}

impl Rules {
    /// A kind with nothing special about it.
    pub(crate) const PLAIN: Rules = Rules {
        name: names::subdomain_name,
        default: |_| {},
        prepare_create: |_| {},
        prepare_update: |_, _, _| {},
        validate: |_, _| {},
        validate_update: |_, _, _, _| {},
        deprecated: None,
        warnings: |_| Vec::new(),
        columns: &[Heading::NAME, Heading::CREATED_AT],
        cells: |object, _| {
            vec![
                metadata::name(object).into(),
                object["metadata"]["creationTimestamp"].clone(),
            ]
        },
        fields: |_| Vec::new(),
    };
}

/// The rules of a built-in kind. A new kind that has some is a line here.
pub(crate) fn of(group: &str, kind: &str) -> &'static Rules {
    match (group, kind) {
        ("", "ConfigMap") => &core::config_map::RULES,
        ("", "Endpoints") => &core::endpoints::RULES,
        ("", "Event") => &core::event::RULES,
        ("", "Namespace") => &core::namespace::RULES,
        ("", "Node") => &core::node::RULES,
        ("", "Pod") => &core::pod::RULES,
        ("", "Secret") => &core::secret::RULES,
        ("", "Service") => &core::service::RULES,
        ("", "ServiceAccount") => &core::service_account::RULES,
        ("apps", "Deployment") => &apps::deployment::RULES,
        ("apps", "ReplicaSet") => &apps::replica_set::RULES,
        ("authentication.k8s.io", "TokenRequest") => &authentication::token_request::RULES,
        ("coordination.k8s.io", "Lease") => &coordination::lease::RULES,
        ("discovery.k8s.io", "EndpointSlice") => &discovery::endpoint_slice::RULES,
        ("events.k8s.io", "Event") => &events::event::RULES,
        ("rbac.authorization.k8s.io", "Role") => &rbac::role::ROLE,
        ("rbac.authorization.k8s.io", "ClusterRole") => &rbac::role::CLUSTER_ROLE,
        ("rbac.authorization.k8s.io", "RoleBinding") => &rbac::binding::ROLE_BINDING,
        ("rbac.authorization.k8s.io", "ClusterRoleBinding") => &rbac::binding::CLUSTER_ROLE_BINDING,
        ("scheduling.k8s.io", "PriorityClass") => &scheduling::priority_class::RULES,
        _ => &Rules::PLAIN,
    }
}
