//! Taints of nodes and tolerations of pods.

use k8s_openapi::api::core::v1::{Taint, Toleration};

/// Whether a toleration covers a taint (API reference, Toleration): an effect or key that it does not
/// name is any, a value counts with the operator `Equal` only, which is the default, and no key with
/// `Exists` covers everything. Operators that compare numbers are behind a gate that is off by default.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => {
            let value = toleration.value.as_deref().unwrap_or_default();
            !key.is_empty() && value == taint.value.as_deref().unwrap_or_default()
        }
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_toleration_covers_what_it_names_and_what_it_leaves_open() {
        let check = |toleration: Value, taint: Value, expected: bool| {
            let parsed: Toleration = serde_json::from_value(toleration.clone()).expect("is one");
            let against: Taint = serde_json::from_value(taint.clone()).expect("is a taint");
            assert_eq!(
                tolerates(&parsed, &against),
                expected,
                "{toleration} {taint}"
            );
        };
        let taint = json!({"key": "a", "value": "1", "effect": "NoSchedule"});
        let bare = json!({"key": "a", "effect": "NoExecute"});
        check(json!({"operator": "Exists"}), taint.clone(), true);
        check(
            json!({"key": "a", "operator": "Exists"}),
            taint.clone(),
            true,
        );
        check(
            json!({"key": "b", "operator": "Exists"}),
            taint.clone(),
            false,
        );
        check(json!({"key": "a", "value": "1"}), taint.clone(), true);
        check(
            json!({"key": "a", "operator": "", "value": "1"}),
            taint.clone(),
            true,
        );
        check(
            json!({"key": "a", "operator": "Equal", "value": "2"}),
            taint.clone(),
            false,
        );
        check(json!({"key": "a"}), taint.clone(), false);
        check(json!({"key": "a"}), bare.clone(), true);
        check(
            json!({"key": "a", "effect": "NoSchedule"}),
            bare.clone(),
            false,
        );
        check(
            json!({"operator": "Exists", "effect": "NoExecute"}),
            bare,
            true,
        );
        check(json!({"value": "1"}), taint.clone(), false);
        check(
            json!({"key": "a", "operator": "Gt", "value": "0"}),
            taint,
            false,
        );
    }
}
