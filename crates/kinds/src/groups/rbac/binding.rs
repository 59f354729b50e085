//! RoleBinding and ClusterRoleBinding.

use jiff::Timestamp;
use serde_json::Value;

use crate::fault::{Fault, Path};
use crate::metadata;
use crate::names;
use crate::read::{fill, list, text};
use crate::rules::Rules;
use crate::table::{Heading, age_cell};

const GROUP: &str = "rbac.authorization.k8s.io";

pub(crate) const ROLE_BINDING: Rules = Rules {
    name: names::path_segment_name,
    default,
    validate: |binding, faults| validate(binding, true, faults),
    validate_update: |new, old, _, faults| validate_update(new, old, true, faults),
    columns: &[
        Heading::NAME,
        Heading::text(
            "Role",
            "RoleRef can reference a Role in the current namespace or a ClusterRole in the global namespace. If the RoleRef cannot be resolved, the Authorizer must return an error.",
        ),
        Heading::AGE,
        Heading::text("Users", "Users in the roleBinding").wide(),
        Heading::text("Groups", "Groups in the roleBinding").wide(),
        Heading::text("ServiceAccounts", "ServiceAccounts in the roleBinding").wide(),
    ],
    cells,
    ..Rules::PLAIN
};

pub(crate) const CLUSTER_ROLE_BINDING: Rules = Rules {
    name: names::path_segment_name,
    default,
    validate: |binding, faults| validate(binding, false, faults),
    validate_update: |new, old, _, faults| validate_update(new, old, false, faults),
    columns: &[
        Heading::NAME,
        Heading::text(
            "Role",
            "RoleRef can only reference a ClusterRole in the global namespace. If the RoleRef cannot be resolved, the Authorizer must return an error.",
        ),
        Heading::AGE,
        Heading::text("Users", "Users in the clusterRoleBinding").wide(),
        Heading::text("Groups", "Groups in the clusterRoleBinding").wide(),
        Heading::text(
            "ServiceAccounts",
            "ServiceAccounts in the clusterRoleBinding",
        )
        .wide(),
    ],
    cells,
    ..Rules::PLAIN
};

fn default(binding: &mut Value) {
    fill(&mut binding["roleRef"], "apiGroup", GROUP);
    for subject in binding["subjects"].as_array_mut().into_iter().flatten() {
        if ["User", "Group"].contains(&text(subject, "kind")) {
            fill(subject, "apiGroup", GROUP);
        }
    }
}

fn validate(binding: &Value, namespaced: bool, faults: &mut Vec<Fault>) {
    const ROLE: Path<'static> = Path::new("roleRef");
    const SUBJECTS: Path<'static> = Path::new("subjects");
    let role = &binding["roleRef"];
    let group = text(role, "apiGroup");
    if group != GROUP {
        faults.push(Fault::not_supported(
            ROLE.child("apiGroup"),
            group,
            &[GROUP],
        ));
    }
    let kind = text(role, "kind");
    let known: &[&str] = if namespaced {
        &["ClusterRole", "Role"]
    } else {
        &["ClusterRole"]
    };
    if !known.contains(&kind) {
        faults.push(Fault::not_supported(ROLE.child("kind"), kind, known));
    }
    let name = text(role, "name");
    if name.is_empty() {
        faults.push(Fault::required(ROLE.child("name"), ""));
    } else {
        let problems = names::path_segment_name(name, false).into_iter();
        faults.extend(problems.map(|problem| Fault::invalid(ROLE.child("name"), name, problem)));
    }
    for (index, subject) in list(binding, "subjects").iter().enumerate() {
        self::subject(subject, namespaced, SUBJECTS.index(index), faults);
    }
}

fn subject(subject: &Value, namespaced: bool, path: Path<'_>, faults: &mut Vec<Fault>) {
    let (name, group) = (text(subject, "name"), text(subject, "apiGroup"));
    if name.is_empty() {
        faults.push(Fault::required(path.child("name"), ""));
    }
    match text(subject, "kind") {
        "ServiceAccount" => {
            if !name.is_empty() {
                let problems = names::subdomain_name(name, false).into_iter();
                faults.extend(
                    problems.map(|problem| Fault::invalid(path.child("name"), name, problem)),
                );
            }
            if !group.is_empty() {
                faults.push(Fault::not_supported(path.child("apiGroup"), group, &[""]));
            }
            if !namespaced && text(subject, "namespace").is_empty() {
                faults.push(Fault::required(path.child("namespace"), ""));
            }
        }
        "User" | "Group" => {
            if group != GROUP {
                faults.push(Fault::not_supported(
                    path.child("apiGroup"),
                    group,
                    &[GROUP],
                ));
            }
        }
        other => faults.push(Fault::not_supported(
            path.child("kind"),
            other,
            &["ServiceAccount", "User", "Group"],
        )),
    }
}

fn validate_update(new: &Value, old: &Value, namespaced: bool, faults: &mut Vec<Fault>) {
    validate(new, namespaced, faults);
    if new["roleRef"] != old["roleRef"] {
        let role = &new["roleRef"];
        let shown = format!(
            "{{\"APIGroup\":{},\"Kind\":{},\"Name\":{}}}",
            role["apiGroup"], role["kind"], role["name"]
        );
        faults.push(
            Fault::invalid(Path::new("roleRef"), role.clone(), "cannot change roleRef")
                .showing(shown),
        );
    }
}

fn cells(binding: &Value, now: Timestamp) -> Vec<Value> {
    let role = &binding["roleRef"];
    let of_kind = |kind: &'static str| {
        list(binding, "subjects")
            .iter()
            .filter(move |subject| text(subject, "kind") == kind)
    };
    let names = |kind: &'static str| {
        of_kind(kind)
            .map(|subject| text(subject, "name"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let accounts: Vec<String> = of_kind("ServiceAccount")
        .map(|subject| format!("{}/{}", text(subject, "namespace"), text(subject, "name")))
        .collect();
    vec![
        metadata::name(binding).into(),
        format!("{}/{}", text(role, "kind"), text(role, "name")).into(),
        age_cell(binding, now),
        names("User").into(),
        names("Group").into(),
        accounts.join(", ").into(),
    ]
}
