//! Bringing the roles and bindings that every cluster begins with up to what this program knows.
//!
//! The rules are upstream's (`kubectl auth reconcile` goes by the same): what is missing is added,
//! what somebody added stays, and who annotates an object keeps it as it is.

use serde_json::{Map, Value};

use crate::Rule;
use crate::policy::{COMPARED_MOST, read};

/// An object with this annotation set to `false` is left alone.
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// What has to be done to a stored object.
#[derive(Clone, Debug, PartialEq)]
pub enum Reconciled {
    /// Nothing: it has all that is wanted, or is not to be touched.
    Unchanged,
    /// It has to become this.
    Update(Value),
    /// It has to be deleted and made as wanted: the role of a binding cannot be changed.
    Recreate,
}

/// Compares a stored role or binding with the one that is wanted under its name.
///
/// Labels, annotations, rules, subjects and selectors of aggregated roles that are missing are
/// added; where both have a label or an annotation, the stored one holds. The rules of a role that
/// is aggregated are left to who aggregates.
pub fn reconcile(stored: &Value, wanted: &Value) -> Reconciled {
    if stored["metadata"]["annotations"][AUTOUPDATE] == "false" {
        return Reconciled::Unchanged;
    }
    let is_same = |field: &str| stored["roleRef"][field] == wanted["roleRef"][field];
    if !(is_same("kind") && is_same("name")) {
        return Reconciled::Recreate;
    }
    let mut new = stored.clone();
    for field in ["labels", "annotations"] {
        add_entries(&mut new["metadata"], field, &wanted["metadata"][field]);
    }
    if wanted["roleRef"].is_object() {
        add_elements(&mut new, "subjects", &wanted["subjects"], is_same_subject);
    } else {
        reconcile_role(&mut new, wanted);
    }
    if new == *stored {
        Reconciled::Unchanged
    } else {
        Reconciled::Update(new)
    }
}

fn reconcile_role(new: &mut Value, wanted: &Value) {
    const SELECTORS: &str = "clusterRoleSelectors";
    let aggregation = &wanted["aggregationRule"];
    if aggregation.is_object() {
        if new["aggregationRule"].is_object() {
            let new = &mut new["aggregationRule"];
            add_elements(new, SELECTORS, &aggregation[SELECTORS], |one, other| {
                one == other
            });
        } else {
            new["aggregationRule"] = aggregation.clone();
        }
        return;
    }
    if let Some(role) = new.as_object_mut() {
        role.remove("aggregationRule");
    }
    let stored: Vec<Rule> = read(&new["rules"]).collect();
    let stored: Vec<&Rule> = stored.iter().collect();
    let mut missing = Vec::new();
    for rule in read::<Rule>(&wanted["rules"]) {
        let mut compared = COMPARED_MOST;
        missing.extend(rule.not_covered_by(&stored, &mut compared));
    }
    let missing = serde_json::to_value(missing).expect("rules are lists of texts");
    add_elements(new, "rules", &missing, |_, _| false);
}

/// Adds the entries of a map whose keys are not there.
fn add_entries(object: &mut Value, field: &str, wanted: &Value) {
    let Some(wanted) = wanted.as_object().filter(|wanted| !wanted.is_empty()) else {
        return;
    };
    if !object[field].is_object() {
        object[field] = Map::new().into();
    }
    if let Some(entries) = object[field].as_object_mut() {
        for (key, value) in wanted {
            entries.entry(key.as_str()).or_insert_with(|| value.clone());
        }
    }
}

/// Adds the elements of a list that are not there.
fn add_elements(
    object: &mut Value,
    field: &str,
    wanted: &Value,
    is_same: fn(&Value, &Value) -> bool,
) {
    let is_missing = |element: &&Value| {
        let mut stored = object[field].as_array().into_iter().flatten();
        !stored.any(|one| is_same(one, element))
    };
    let wanted = wanted.as_array().into_iter().flatten();
    let missing: Vec<Value> = wanted.filter(is_missing).cloned().collect();
    if missing.is_empty() {
        return;
    }
    match object[field].as_array_mut() {
        Some(elements) => elements.extend(missing),
        None => object[field] = missing.into(),
    }
}

/// The group of a subject follows from its kind.
fn is_same_subject(one: &Value, other: &Value) -> bool {
    ["kind", "name", "namespace"]
        .iter()
        .all(|field| one[field] == other[field])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap;
    use serde_json::json;

    #[track_caller]
    fn check(stored: Value, wanted: Value, expected: Reconciled) {
        let got = reconcile(&stored, &wanted);
        assert_eq!(got, expected);
        if let Reconciled::Update(new) = got {
            assert_eq!(reconcile(&new, &wanted), Reconciled::Unchanged, "once more");
        }
    }

    #[test]
    fn a_role_gets_the_parts_of_rules_that_it_lacks() {
        let own = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "delete"]});
        check(
            json!({"metadata": {"labels": {"x": "mine", "own": "1"}}, "rules": [own]}),
            json!({
                "metadata": {"labels": {"x": "want", "new": "1"}, "annotations": {"r": "want"}},
                "rules": [
                    {"apiGroups": [""], "resources": ["pods", "services"], "verbs": ["get", "list"]},
                    {"nonResourceURLs": ["/a"], "verbs": ["get"]},
                    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"], "resourceNames": ["n"]},
                ],
            }),
            // As the genuine server's tool makes it of the same two.
            Reconciled::Update(json!({
                "metadata": {"labels": {"x": "mine", "own": "1", "new": "1"}, "annotations": {"r": "want"}},
                "rules": [
                    own,
                    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
                    {"apiGroups": [""], "resources": ["services"], "verbs": ["get"]},
                    {"apiGroups": [""], "resources": ["services"], "verbs": ["list"]},
                    {"nonResourceURLs": ["/a"], "verbs": ["get"]},
                ],
            })),
        );
        let rule = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]});
        check(
            json!({"metadata": {}, "rules": null}),
            json!({"metadata": {}, "rules": [rule]}),
            Reconciled::Update(json!({"metadata": {}, "rules": [rule]})),
        );
        check(
            json!({"metadata": {}, "rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]}),
            json!({"metadata": {}, "rules": [rule]}),
            Reconciled::Unchanged,
        );
    }

    #[test]
    fn an_aggregated_role_gets_selectors_and_no_rules() {
        let selects = |label: &str| json!({"matchLabels": {label: "true"}});
        let rule = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]});
        let aggregated = |selectors: Value| json!({"metadata": {}, "aggregationRule": {"clusterRoleSelectors": selectors}, "rules": []});
        let mut wanted = aggregated(json!([selects("a")]));
        wanted["rules"] = json!([rule]);
        check(
            aggregated(json!([selects("b")])),
            wanted.clone(),
            Reconciled::Update(aggregated(json!([selects("b"), selects("a")]))),
        );
        check(
            json!({"metadata": {}, "rules": []}),
            wanted.clone(),
            Reconciled::Update(aggregated(json!([selects("a")]))),
        );
        check(
            wanted,
            json!({"metadata": {}, "rules": [rule]}),
            Reconciled::Update(json!({"metadata": {}, "rules": [rule]})),
        );
    }

    #[test]
    fn a_binding_gets_subjects_and_is_made_anew_for_another_role() {
        let binding = |role: &str, users: &[&str]| {
            let subjects: Vec<Value> = users
                .iter()
                .map(|user| json!({"kind": "User", "name": user}))
                .collect();
            json!({"metadata": {}, "roleRef": {"kind": "ClusterRole", "name": role}, "subjects": subjects})
        };
        check(
            binding("a", &["own"]),
            binding("a", &["wanted"]),
            Reconciled::Update(binding("a", &["own", "wanted"])),
        );
        let mut none = binding("a", &[]);
        if let Some(none) = none.as_object_mut() {
            none.remove("subjects");
        }
        check(
            none,
            binding("a", &["wanted"]),
            Reconciled::Update(binding("a", &["wanted"])),
        );
        check(
            binding("b", &["wanted"]),
            binding("a", &["wanted"]),
            Reconciled::Recreate,
        );
        let mut kept = binding("b", &[]);
        kept["metadata"]["annotations"][AUTOUPDATE] = "false".into();
        check(kept, binding("a", &["wanted"]), Reconciled::Unchanged);
    }

    #[test]
    fn what_a_cluster_begins_with_needs_nothing() {
        for object in bootstrap() {
            check(object.clone(), object, Reconciled::Unchanged);
        }
    }
}
