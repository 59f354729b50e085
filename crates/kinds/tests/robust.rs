//! No body makes the object model panic, whatever it holds.

use kinds::builtin;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// Names of fields, so that made-up bodies reach into the types.
const FIELDS: [&str; 40] = [
    "metadata",
    "name",
    "namespace",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "spec",
    "status",
    "template",
    "containers",
    "initContainers",
    "image",
    "ports",
    "containerPort",
    "env",
    "valueFrom",
    "resources",
    "limits",
    "requests",
    "cpu",
    "volumes",
    "configMap",
    "projected",
    "sources",
    "selector",
    "matchLabels",
    "strategy",
    "rollingUpdate",
    "type",
    "data",
    "rules",
    "subjects",
    "roleRef",
    "endpoints",
    "addresses",
    "securityContext",
    "taints",
    "tolerations",
    "conditions",
];

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-10_i64..100_000).prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        "[a-z0-9.%/:-]{0,12}".prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
        "[0-9]{1,4}(m|k|Mi|e3)?".prop_map(Value::from),
    ]
}

fn body() -> impl Strategy<Value = Value> {
    let field = prop_oneof![
        8 => prop::sample::select(FIELDS.to_vec()).prop_map(str::to_owned),
        1 => "[a-z]{1,6}",
    ];
    scalar().prop_recursive(7, 96, 6, move |inner| {
        prop_oneof![
            1 => prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            3 => prop::collection::btree_map(field.clone(), inner, 0..6)
                .prop_map(|fields| Value::Object(Map::from_iter(fields))),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_kind_bears_every_body(body in body(), old in body()) {
        let now = "2024-01-01T00:00:00Z".parse().expect("a time");
        for kind in builtin().all() {
            let (mut object, mut old) = (body.clone(), old.clone());
            let raw = object.to_string();
            if kind.decode(&mut object, Some(raw.as_bytes())).error.is_some() {
                continue;
            }
            kind.default(&mut object);
            kind.prepare_create(&mut object);
            let _ = (kind.validate_create(&object), kind.warnings(&object), kind.selectable_fields(&object));
            prop_assert_eq!(kind.cells(&object, now).len(), kind.columns().len());
            if kind.decode(&mut old, None).error.is_none() {
                for part in [None, Some("status")] {
                    let mut new = object.clone();
                    kind.prepare_update(&mut new, &old, part);
                    let _ = kind.validate_update(&new, &old, part);
                }
            }
            // What was read once is read again without a word.
            let mut again = object.clone();
            let decoded = kind.decode(&mut again, None);
            prop_assert!(decoded.error.is_none() && decoded.faults.is_empty(), "{:?}", decoded);
            prop_assert_eq!(again, object);
        }
    }
}
