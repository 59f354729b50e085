//! Who may do what: the question, and who answers it.

pub(crate) mod node;
pub(crate) mod roles;

use std::sync::Arc;

use serde_json::Value;

use crate::caller::{Caller, MASTERS};
use crate::route::RequestInfo;
use crate::status::{Failure, ResourceName};

/// An action that somebody wants to take.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    /// Who.
    pub caller: &'a Caller,
    /// What.
    pub request: &'a RequestInfo,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Yes, for this reason.
    Allow(String),
    /// No. The reason is shown to the caller and may be empty.
    Deny(String),
}

/// What a caller may do in a namespace, as `SelfSubjectRulesReview` lists it.
#[derive(Clone, Debug, Default)]
pub struct RuleList {
    /// `{verbs, apiGroups, resources, resourceNames}` each.
    pub resource_rules: Vec<Value>,
    /// `{verbs, nonResourceURLs}` each.
    pub non_resource_rules: Vec<Value>,
    /// What could not be looked at, or empty.
    pub evaluation_error: String,
}

/// Decides on actions. Called for every request, so it must answer from memory.
pub trait Authorizer: Send + Sync {
    /// Whether the action may be taken.
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision;

    /// What the caller may do in the namespace.
    fn rules(&self, caller: &Caller, namespace: &str) -> RuleList;
}

/// Lets administrators do everything, and nobody else anything but look at the server's health.
#[derive(Clone, Copy, Debug, Default)]
pub struct MastersOnly;

impl Authorizer for MastersOnly {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        if attributes.caller.in_group(MASTERS) {
            return Decision::Allow(String::new());
        }
        let health = matches!(
            attributes.request.path.as_str(),
            "/healthz" | "/livez" | "/readyz" | "/version" | "/version/"
        );
        if health && attributes.request.verb == "get" {
            return Decision::Allow(String::new());
        }
        Decision::Deny(String::new())
    }

    fn rules(&self, caller: &Caller, _namespace: &str) -> RuleList {
        if !caller.in_group(MASTERS) {
            return RuleList::default();
        }
        RuleList {
            resource_rules: vec![
                serde_json::json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}),
            ],
            non_resource_rules: vec![serde_json::json!({"verbs": ["*"], "nonResourceURLs": ["*"]})],
            evaluation_error: String::new(),
        }
    }
}

/// Asks the authorizer and turns a no into upstream's 403.
pub(crate) fn require(
    authorizer: &Arc<dyn Authorizer>,
    caller: &Caller,
    request: &RequestInfo,
) -> Result<(), Failure> {
    match authorizer.authorize(&Attributes { caller, request }) {
        Decision::Allow(_) => Ok(()),
        Decision::Deny(reason) => Err(forbidden(caller, request, &reason)),
    }
}

/// Upstream's 403 for this action.
pub(crate) fn forbidden(caller: &Caller, request: &RequestInfo, reason: &str) -> Failure {
    let suffix = if reason.is_empty() {
        String::new()
    } else {
        format!(": {reason}")
    };
    if !request.is_resource {
        return Failure::forbidden_path(format!(
            "User \"{}\" cannot {} path \"{}\"{suffix}",
            caller.name, request.verb, request.path
        ));
    }
    let mut resource = request.resource.clone();
    if !request.subresource.is_empty() {
        resource.push('/');
        resource.push_str(&request.subresource);
    }
    let scope = if request.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace \"{}\"", request.namespace)
    };
    Failure::forbidden(
        ResourceName {
            group: &request.group,
            plural: &request.resource,
        },
        &request.name,
        format!(
            "User \"{}\" cannot {} resource \"{resource}\" in API group \"{}\" {scope}{suffix}",
            caller.name, request.verb, request.group
        ),
    )
}
