//! Role and ClusterRole.

use serde_json::Value;

use crate::fault::{Fault, Path};
use crate::labels::validate_selector;
use crate::names;
use crate::read::list;
use crate::rules::Rules;

pub(crate) const ROLE: Rules = Rules {
    name: names::path_segment_name,
    validate: |role, faults| rules(role, true, faults),
    validate_update: |new, _, _, faults| rules(new, true, faults),
    ..Rules::PLAIN
};

pub(crate) const CLUSTER_ROLE: Rules = Rules {
    name: names::path_segment_name,
    validate: validate_cluster_role,
    validate_update: |new, _, _, faults| validate_cluster_role(new, faults),
    ..Rules::PLAIN
};

fn validate_cluster_role(role: &Value, faults: &mut Vec<Fault>) {
    rules(role, false, faults);
    let rule = &role["aggregationRule"];
    if !rule.is_object() {
        return;
    }
    let path = Path::new("aggregationRule");
    let path = path.child("clusterRoleSelectors");
    let selectors = list(rule, "clusterRoleSelectors");
    if selectors.is_empty() {
        let text = "at least one clusterRoleSelector required if aggregationRule is non-nil";
        faults.push(Fault::required(path, text));
    }
    for (index, selector) in selectors.iter().enumerate() {
        let before = faults.len();
        validate_selector(selector, path.index(index), faults);
        if faults.len() > before {
            faults.push(Fault::invalid(
                path.index(index),
                Value::Null,
                "invalid label selector.",
            ));
        }
    }
}

fn rules(role: &Value, namespaced: bool, faults: &mut Vec<Fault>) {
    const RULES: Path<'static> = Path::new("rules");
    for (index, rule) in list(role, "rules").iter().enumerate() {
        let path = RULES.index(index);
        if list(rule, "verbs").is_empty() {
            faults.push(Fault::required(
                path.child("verbs"),
                "verbs must contain at least one value",
            ));
        }
        let urls = list(rule, "nonResourceURLs");
        if !urls.is_empty() {
            let path = path.child("nonResourceURLs");
            if namespaced {
                let text = "namespaced rules cannot apply to non-resource URLs";
                faults.push(Fault::invalid(path, Value::from(urls.to_vec()), text));
            }
            let resources = ["apiGroups", "resources", "resourceNames"]
                .iter()
                .any(|field| !list(rule, field).is_empty());
            if resources {
                let text = "rules cannot apply to both regular resources and non-resource URLs";
                faults.push(Fault::invalid(path, Value::from(urls.to_vec()), text));
            }
            continue;
        }
        if list(rule, "apiGroups").is_empty() {
            faults.push(Fault::required(
                path.child("apiGroups"),
                "resource rules must supply at least one api group",
            ));
        }
        if list(rule, "resources").is_empty() {
            faults.push(Fault::required(
                path.child("resources"),
                "resource rules must supply at least one resource",
            ));
        }
    }
}
