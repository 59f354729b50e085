//! Nobody hands out rights that they do not have (RBAC, "privilege escalation prevention").

use std::fmt::Write as _;

use access::Rule;
use serde::Deserialize;
use serde_json::Value;

use super::Admission;
use crate::authorize::roles::{GROUP, user};
use crate::authorize::{Attributes, Decision};
use crate::caller::Caller;
use crate::encode::metadata_str;
use crate::route::RequestInfo;
use crate::status::{Failure, ResourceName};

/// Refuses roles and bindings that give more than the caller has, unless the caller may `escalate`
/// roles or `bind` this one.
pub(super) fn check(admission: &Admission<'_>) -> Result<(), Failure> {
    if admission.call.resource.kind.group() != GROUP
        || admission.operation == super::Operation::Delete
    {
        return Ok(());
    }
    // Another authorizer has other rules.
    let Some(roles) = &admission.call.core.roles else {
        return Ok(());
    };
    let policy = roles.policy();
    let kind = admission.call.resource.kind.kind();
    let namespace = metadata_str(admission.object, "namespace");
    let rules: Vec<Rule> = match kind {
        "Role" | "ClusterRole" => {
            if (unchanged(admission, "rules") && unchanged(admission, "aggregationRule"))
                || may(
                    admission,
                    "escalate",
                    admission.call.resource.kind.plural(),
                    metadata_str(admission.object, "name"),
                )
            {
                return Ok(());
            }
            rules_in(&admission.object["rules"])
        }
        "RoleBinding" | "ClusterRoleBinding" => {
            let role = &admission.object["roleRef"];
            let (role_kind, name) = (
                role["kind"].as_str().unwrap_or_default(),
                role["name"].as_str().unwrap_or_default(),
            );
            let plural = if role_kind == "ClusterRole" {
                "clusterroles"
            } else {
                "roles"
            };
            if (unchanged(admission, "roleRef") && unchanged(admission, "subjects"))
                || may(admission, "bind", plural, name)
            {
                return Ok(());
            }
            match policy.rules_of_role(role_kind, name, namespace) {
                Some(rules) => rules.to_vec(),
                None => return Err(role_not_found(plural, name)),
            }
        }
        _ => return Ok(()),
    };
    let caller = &admission.call.caller;
    let missing = policy.escalation(&user(caller), namespace, &rules);
    let lacks_all = || {
        let missing = policy.escalation(&user(caller), "", &everything());
        !missing.is_empty()
    };
    let why = if !missing.is_empty() {
        attempt(caller, &missing)
    } else if gathers(admission) && lacks_all() {
        "must have cluster-admin privileges to use the aggregationRule".to_owned()
    } else {
        return Ok(());
    };
    let name = metadata_str(admission.object, "name");
    let resource = admission.call.resource.name();
    Err(Failure::forbidden(resource, name, why))
}

/// Whether it is, or was, a role that gathers what others write into roles later.
fn gathers(admission: &Admission<'_>) -> bool {
    admission.call.resource.kind.kind() == "ClusterRole"
        && [Some(&*admission.object), admission.old]
            .into_iter()
            .flatten()
            .any(|role| role["aggregationRule"].is_object())
}

/// What the caller is doing, in upstream's words.
fn attempt(caller: &Caller, missing: &[Rule]) -> String {
    let groups: Vec<String> = caller
        .groups
        .iter()
        .map(|group| kinds::quote(group))
        .collect();
    let mut text = format!(
        "user {} (groups=[{}]) is attempting to grant RBAC permissions not currently held:",
        kinds::quote(&caller.name),
        groups.join(" ")
    );
    for rule in missing {
        // Writing into a string cannot fail.
        let _ = write!(text, "\n{}", shown(rule));
    }
    text
}

/// Every verb on everything.
fn everything() -> [Rule; 2] {
    let all = || vec!["*".to_owned()];
    [
        Rule {
            verbs: all(),
            api_groups: all(),
            resources: all(),
            ..Rule::default()
        },
        Rule {
            verbs: all(),
            non_resource_urls: all(),
            ..Rule::default()
        },
    ]
}

fn unchanged(admission: &Admission<'_>, field: &str) -> bool {
    admission
        .old
        .is_some_and(|old| old[field] == admission.object[field])
}

/// Whether the caller has a verb on a role outright.
fn may(admission: &Admission<'_>, verb: &'static str, plural: &str, name: &str) -> bool {
    let request = RequestInfo {
        is_resource: true,
        verb: verb.into(),
        group: GROUP.into(),
        version: "v1".into(),
        namespace: metadata_str(admission.object, "namespace").into(),
        resource: plural.into(),
        name: name.into(),
        ..RequestInfo::default()
    };
    let caller = &admission.call.caller;
    let attributes = Attributes {
        caller,
        request: &request,
    };
    matches!(
        admission.call.core.authorizer.authorize(&attributes),
        Decision::Allow(_)
    )
}

fn rules_in(list: &Value) -> Vec<Rule> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(|rule| Rule::deserialize(rule).ok())
        .collect()
}

fn role_not_found(plural: &str, name: &str) -> Failure {
    Failure::not_found(
        ResourceName {
            group: GROUP,
            plural,
        },
        name,
    )
}

/// As upstream prints a rule: `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`.
fn shown(rule: &Rule) -> String {
    let lists = [
        ("APIGroups", &rule.api_groups),
        ("Resources", &rule.resources),
        ("ResourceNames", &rule.resource_names),
        ("NonResourceURLs", &rule.non_resource_urls),
        ("Verbs", &rule.verbs),
    ];
    let parts: Vec<String> = lists
        .into_iter()
        .filter(|(_, values)| !values.is_empty())
        .map(|(name, values)| {
            let values: Vec<String> = values.iter().map(|value| kinds::quote(value)).collect();
            format!("{name}:[{}]", values.join(" "))
        })
        .collect();
    format!("{{{}}}", parts.join(", "))
}
