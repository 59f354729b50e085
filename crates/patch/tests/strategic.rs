//! What the genuine server (1.36) makes of strategic merge patches of a Deployment's pod template.

mod schema;

use patch::{StrategicError, strategic};
use schema::Schema;
use serde_json::{Value, json};

/// The part of the pod template that the cases are about.
fn shape() -> Schema {
    Schema::new(json!({"type": "object", "properties": {
        "containers": {"type": "array", "merge": "name", "items": {"type": "object", "properties": {
            "ports": {"type": "array", "merge": "containerPort", "items": {"type": "object"}},
            "env": {"type": "array", "merge": "name", "items": {"type": "object", "properties": {
                "valueFrom": {"type": "object"}
            }}},
            "args": {"type": "array", "items": {"type": "string"}},
            "securityContext": {"type": "object"}
        }}},
        "finalizers": {"type": "array", "merge": "", "items": {"type": "string"}},
        "tolerations": {"type": "array", "items": {"type": "object"}},
        "strategy": {"type": "object"},
        "labels": {"type": "object"}
    }}))
}

fn doc() -> Value {
    json!({
        "containers": [
            {"name": "a", "image": "ia", "args": ["x", "w"],
             "ports": [{"containerPort": 80}, {"containerPort": 81}],
             "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
            {"name": "b", "image": "ib"},
            {"name": "c", "image": "ic"}
        ],
        "finalizers": ["a", "b"],
        "tolerations": [{"key": "k"}],
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}
    })
}

fn patched(patch: Value) -> Result<Value, StrategicError> {
    let mut patched = doc();
    let result = strategic(&mut patched, &patch, &shape());
    if result.is_err() {
        assert_eq!(patched, doc());
    }
    result.map(|()| patched)
}

/// The names and images of the containers.
fn containers(patch: Value, expected: &str) {
    let patched = patched(json!({ "containers": patch })).expect("applies");
    assert_eq!(summary(&patched), expected);
}

fn summary(doc: &Value) -> String {
    let containers = doc["containers"].as_array().expect("is a list");
    let texts: Vec<String> = containers
        .iter()
        .map(|container| format!("{}={}", text(&container["name"]), text(&container["image"])))
        .collect();
    texts.join(" ")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

fn member(patch: Value, name: &str, expected: Value) {
    let patched = patched(patch).expect("applies");
    assert_eq!(patched.get(name).unwrap_or(&Value::Null), &expected);
}

fn refused(patch: Value, expected: &str) {
    let error = patched(patch).expect_err("is refused");
    assert_eq!(error.to_string(), expected);
}

#[test]
fn keyed_lists_merge_and_new_items_come_first() {
    containers(
        json!([{"name": "x", "image": "ix"}, {"name": "c", "image": "new"}]),
        "x=ix a=ia b=ib c=new",
    );
    containers(json!([]), "a=ia b=ib c=ic");
    containers(
        json!([{"name": "n", "image": "i"}, {"name": "n", "image": "j"}]),
        "n=j a=ia b=ib c=ic",
    );
    let patch = json!({"containers": [{"name": "a", "args": ["z"],
        "ports": [{"containerPort": 81, "name": "n"}, {"containerPort": 82}],
        "env": [{"name": "B", "value": null}, {"name": "C", "value": "3"}]}]});
    let a = &patched(patch).expect("applies")["containers"][0];
    assert_eq!(
        a["ports"],
        json!([{"containerPort": 80}, {"containerPort": 81, "name": "n"}, {"containerPort": 82}])
    );
    assert_eq!(
        a["env"],
        json!([{"name": "A", "value": "1"}, {"name": "B"}, {"name": "C", "value": "3"}])
    );
    assert_eq!(a["args"], json!(["z"]));
}

#[test]
fn items_are_deleted_and_lists_replaced() {
    containers(json!([{"name": "b", "$patch": "delete"}]), "a=ia c=ic");
    containers(
        json!([{"name": "zz", "$patch": "delete"}]),
        "a=ia b=ib c=ic",
    );
    containers(
        json!([{"name": "b", "$patch": "delete"}, {"name": "y", "image": "iy"}]),
        "y=iy a=ia c=ic",
    );
    containers(
        json!([{"$patch": "replace"}, {"name": "y", "image": "iy"}]),
        "y=iy",
    );
    containers(
        json!([{"name": "a", "$patch": "replace", "image": "iy"}]),
        "",
    );
    member(json!({"containers": null}), "containers", Value::Null);
    // The list does not say that it is merged.
    member(
        json!({"tolerations": [{"key": "z"}]}),
        "tolerations",
        json!([{"key": "z"}]),
    );
}

#[test]
fn the_order_of_items_can_be_set() {
    let check = |patch: Value, expected: &str| {
        assert_eq!(summary(&patched(patch).expect("applies")), expected);
    };
    check(
        json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}],
               "containers": [{"name": "c", "image": "q"}]}),
        "b=ib c=q a=ia",
    );
    check(
        json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}]}),
        "b=ib c=ic a=ia",
    );
    check(
        json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "x"}, {"name": "a"}],
               "containers": [{"name": "x", "image": "q"}, {"name": "b", "$patch": "delete"}]}),
        "c=ic x=q a=ia",
    );
    refused(
        json!({"$setElementOrder/containers": [{"name": "c"}],
               "containers": [{"name": "a", "image": "q"}]}),
        "The order in patch list:\n[map[image:q name:a]]\n doesn't match $setElementOrder list:\n[map[name:c]]\n",
    );
    refused(
        json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}],
               "containers": [{"name": "a", "image": "q"}, {"name": "c", "image": "q"}]}),
        "The order in patch list:\n[map[image:q name:a] map[image:q name:c]]\n doesn't match $setElementOrder list:\n[map[name:c] map[name:a]]\n",
    );
    refused(
        json!({"$setElementOrder/containers": ["a"], "containers": [{"name": "x"}]}),
        "expected a map[string]interface {}, but received a string",
    );
    refused(
        json!({"$setElementOrder/containers": "a"}),
        "expected a []interface {}, but received a string",
    );
    refused(
        json!({"$setElementOrder/containers": [], "containers": null}),
        "expected a []interface {}, but received a %!s(<nil>)",
    );
}

#[test]
fn lists_of_scalars() {
    member(
        json!({"finalizers": ["b", "c"]}),
        "finalizers",
        json!(["a", "b", "c"]),
    );
    member(
        json!({"$deleteFromPrimitiveList/finalizers": ["a"]}),
        "finalizers",
        json!(["b"]),
    );
    member(
        json!({"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"],
               "$setElementOrder/finalizers": ["c", "b"]}),
        "finalizers",
        json!(["c", "b"]),
    );
    let unchanged = json!(["a", "b"]);
    member(
        json!({"$deleteFromPrimitiveList/finalizers": "a"}),
        "finalizers",
        unchanged.clone(),
    );
    member(
        json!({"$deleteFromPrimitiveList/none": ["a"]}),
        "finalizers",
        unchanged,
    );
    let patch = json!({"containers": [{"name": "a", "$deleteFromPrimitiveList/args": ["x"]}]});
    let args = &patched(patch).expect("applies")["containers"][0]["args"];
    assert_eq!(args, &json!(["w"]));
}

#[test]
fn maps_retain_keys_are_replaced_or_deleted() {
    let strategy = |patch: Value, expected: Value| {
        member(json!({ "strategy": patch }), "strategy", expected);
    };
    let recreate = json!({"type": "Recreate"});
    strategy(
        json!({"$retainKeys": ["type"], "type": "Recreate"}),
        recreate.clone(),
    );
    strategy(
        json!({"$retainKeys": ["type", 1], "type": "Recreate", "rollingUpdate": null}),
        recreate.clone(),
    );
    strategy(json!({"$patch": "replace", "type": "Recreate"}), recreate);
    strategy(json!({"$patch": "delete"}), json!({}));
    strategy(
        json!({"type": "Recreate"}),
        json!({"type": "Recreate", "rollingUpdate": {"maxSurge": 1}}),
    );
    for keys in [
        json!({"$retainKeys": ["type"], "type": "Recreate", "rollingUpdate": {"maxSurge": 1}}),
        json!({"$retainKeys": "type"}),
    ] {
        refused(
            json!({ "strategy": keys }),
            "invalid patch format of retainKeys",
        );
    }
}

#[test]
fn what_is_new_comes_without_nulls_and_directives() {
    member(
        json!({"labels": {"x": null, "y": "1"}}),
        "labels",
        json!({"y": "1"}),
    );
    member(
        json!({"labels": {"$patch": "replace", "y": "1"}}),
        "labels",
        Value::Null,
    );
    member(
        json!({"affinity": {"nodeAffinity": {"$patch": "delete"}}}),
        "affinity",
        json!({}),
    );
    let b = |patch: Value| {
        let patched = patched(json!({"containers": [patch]})).expect("applies");
        patched["containers"][1].clone()
    };
    assert_eq!(
        b(
            json!({"name": "b", "securityContext": {"$retainKeys": ["u"], "u": 1, "c": {"$patch": "replace"}}})
        ),
        json!({"name": "b", "image": "ib", "securityContext": {"u": 1}})
    );
    assert_eq!(
        b(json!({"name": "b", "env": [{"name": "A", "$patch": "delete"}, {"name": "Q"}]})),
        json!({"name": "b", "image": "ib", "env": [{"name": "Q"}]})
    );
    assert_eq!(
        b(json!({"name": "b", "env": [{"$patch": "replace"}, {"name": "Q"}]})),
        json!({"name": "b", "image": "ib", "env": [{"name": "Q"}]})
    );
}

#[test]
fn what_cannot_be_understood_is_refused_with_upstreams_texts() {
    let list = |item: Value, expected: &str| refused(json!({"containers": [item]}), expected);
    list(
        json!({"name": "a", "$patch": "merge"}),
        "merging lists cannot yet be specified in the patch",
    );
    list(
        json!({"name": "a", "$patch": "zap", "image": "iy"}),
        "unknown patch type: zap in map: map[$patch:zap image:iy name:a]",
    );
    list(
        json!({"image": "iy"}),
        "map: map[image:iy] does not contain declared merge key: name",
    );
    list(
        json!({"$patch": "delete"}),
        "map: map[$patch:delete] does not contain declared merge key: name",
    );
    refused(
        json!({"strategy": {"$patch": "merge", "type": "Recreate"}}),
        "unknown patch type: merge in map: map[$patch:merge type:Recreate]",
    );
    refused(
        json!({"strategy": {"$patch": 1, "type": "Recreate"}}),
        "unknown patch type: %!s(int64=1) in map: map[$patch:1 type:Recreate]",
    );
    refused(
        json!({"finalizers": [{"a": 1}]}),
        "list element types are not identical: [[a b] [map[a:1]]]",
    );
    refused(
        json!([]),
        "json: cannot unmarshal array into Go value of type map[string]interface {}",
    );
    assert_eq!(patched(Value::Null), Ok(doc()));
    assert_eq!(patched(json!({})), Ok(doc()));
}
