//! Creating and updating.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::house::{Answer, House, pod};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn a_client_makes_reads_changes_and_removes_an_object() {
    let house = House::new().await;
    let maps: Api<ConfigMap> = Api::namespaced(house.client.clone(), "default");
    let map: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "a"}, "data": {"x": "1"}}))
            .expect("a ConfigMap");
    let made = maps
        .create(&PostParams::default(), &map)
        .await
        .expect("made");
    assert!(made.metadata.uid.is_some() && made.metadata.creation_timestamp.is_some());
    let patched = maps
        .patch(
            "a",
            &PatchParams::default(),
            &Patch::Merge(json!({"data": {"y": "2"}})),
        )
        .await
        .expect("patched");
    assert_ne!(
        patched.metadata.resource_version,
        made.metadata.resource_version
    );
    let read = maps.get("a").await.expect("read");
    assert_eq!(read.data.expect("data").len(), 2);
    maps.delete("a", &Default::default())
        .await
        .expect("deleted");
    let error = maps.get("a").await.expect_err("gone");
    assert!(matches!(error, kube::Error::Api(status) if status.code == 404));
}

#[tokio::test]
async fn refusals_have_upstreams_texts() {
    let house = House::new().await;
    house.config_map("there", json!({})).await;
    let check = async |path: &str, body: Value, code: u16, reason: &str, message: &str| {
        house
            .post(path, body)
            .await
            .expect_failure(code, reason, message);
    };
    check(
        MAPS,
        json!({"metadata": {"name": "there"}}),
        409,
        "AlreadyExists",
        "configmaps \"there\" already exists",
    )
    .await;
    check(
        "/api/v1/namespaces/nope/configmaps",
        json!({"metadata": {"name": "a"}}),
        404,
        "NotFound",
        "namespaces \"nope\" not found",
    )
    .await;
    check(
        MAPS,
        json!({"metadata": {"name": "a", "namespace": "b"}}),
        400,
        "BadRequest",
        "the namespace of the provided object does not match the namespace sent on the request",
    )
    .await;
    check(
        MAPS,
        json!({"metadata": {"name": "a", "resourceVersion": "5"}}),
        500,
        "",
        "resourceVersion should not be set on objects to be created",
    )
    .await;
    check(MAPS, json!({"kind": "Service", "apiVersion": "v1"}), 400, "BadRequest", "Service in version \"v1\" cannot be handled as a ConfigMap: converting (v1.Service) to (core.ConfigMap): unknown conversion").await;
    check(MAPS, json!({"kind": "Foo", "apiVersion": "v1"}), 400, "BadRequest", "Foo in version \"v1\" cannot be handled as a ConfigMap: no kind \"Foo\" is registered for version \"v1\" in scheme \"pkg/runtime/scheme.go:111\"").await;
    check(&format!("{MAPS}?fieldValidation=Strict"), json!({"metadata": {"name": "a"}, "foo": 1}), 400, "BadRequest", "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"foo\"").await;
    check(
        "/api/v1/foos",
        json!({}),
        404,
        "NotFound",
        "the server could not find the requested resource",
    )
    .await;
    check(
        &format!("{MAPS}/there"),
        json!({}),
        405,
        "MethodNotAllowed",
        "the server does not allow this method on the requested resource",
    )
    .await;
    let answer = house.post("/apis/nope/v1/foos", json!({})).await;
    assert_eq!(
        (answer.code, answer.text.as_str()),
        (404, "404 page not found\n")
    );
    let answer = house.call(http::Method::POST, MAPS, "text/foo", "x").await;
    assert_eq!(
        (answer.code, answer.body["reason"].as_str()),
        (415, Some("UnsupportedMediaType"))
    );
    let answer = house
        .call(
            http::Method::POST,
            MAPS,
            "application/json",
            vec![b' '; 3 * 1024 * 1024 + 1],
        )
        .await;
    answer.expect_failure(
        413,
        "RequestEntityTooLarge",
        "Request entity too large: limit is 3145728",
    );
}

#[tokio::test]
async fn hostile_bodies_are_refused_and_nothing_breaks() {
    let house = House::new().await;
    let deep = "[".repeat(100_000);
    for body in [
        "",
        "{",
        "[]",
        "3",
        "null",
        "\u{0}",
        "{\"metadata\":3}",
        "{\"metadata\":{\"name\":3}}",
        "{\"metadata\":{\"labels\":{\"a\":{}}}}",
        "{\"data\":[]}",
        "{\"apiVersion\":{},\"kind\":[]}",
        deep.as_str(),
    ] {
        for media in ["application/json", "application/yaml"] {
            let answer = house
                .call(http::Method::POST, MAPS, media, body.to_owned())
                .await;
            assert!(
                (400..500).contains(&answer.code),
                "{media} {body:.40}: {}",
                answer.text
            );
        }
        let path = format!("{MAPS}/there");
        for media in [
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/strategic-merge-patch+json",
            "application/apply-patch+yaml",
        ] {
            let answer = house
                .call(http::Method::PATCH, &path, media, body.to_owned())
                .await;
            assert!(answer.code >= 400, "{media} {body:.40}: {}", answer.text);
            let panicked = answer.text.contains("caused apiserver to panic");
            assert!(!panicked, "{media} {body:.40}: {}", answer.text);
        }
    }
    house.get(MAPS).await.expect_code(200);
}

#[tokio::test]
async fn the_server_decides_identity_and_names() {
    let house = House::new().await;
    let made = house
        .post(MAPS, json!({"metadata": {"generateName": "gen-", "uid": "mine", "creationTimestamp": "2001-01-01T00:00:00Z", "deletionTimestamp": "2001-01-01T00:00:00Z"}}))
        .await
        .expect_code(201);
    assert!(
        made.name().starts_with("gen-") && made.name().len() == 9,
        "{}",
        made.name()
    );
    let metadata = &made.body["metadata"];
    assert_ne!(metadata["uid"], "mine");
    assert_ne!(metadata["creationTimestamp"], "2001-01-01T00:00:00Z");
    assert!(metadata["deletionTimestamp"].is_null());
    assert_eq!(metadata["namespace"], "default");
}

#[tokio::test]
async fn unknown_fields_warn_and_are_dropped() {
    let house = House::new().await;
    let answer = house
        .post(MAPS, json!({"metadata": {"name": "a"}, "foo": 1}))
        .await
        .expect_code(201);
    assert_eq!(answer.warnings, ["299 - \"unknown field \\\"foo\\\"\""]);
    assert!(answer.body.get("foo").is_none());
    let answer = house
        .post(
            &format!("{MAPS}?fieldValidation=Ignore"),
            json!({"metadata": {"name": "b"}, "foo": 1}),
        )
        .await
        .expect_code(201);
    assert!(answer.warnings.is_empty());
}

#[tokio::test]
async fn a_strict_reading_tells_all_faults_in_their_order() {
    const TEXT: &str = r#"{"zzz": {"a": 1, "a": 2}, "metadata": {"name": "a", "labels": {"l": "1", "l": "2"}, "foo": 1}, "data": {"x": "1", "x": "2"}, "aaa": 1}"#;
    const YAML: &str =
        "zzz: 1\ndata:\n  x: \"1\"\n  x: \"2\"\naaa: 1\nmetadata: {name: b, name: a}\n";
    const REFUSED: &str =
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: ";
    let house = House::new().await;
    let post = async |media: &str, text: &str, validation: &str| {
        let path = format!("{MAPS}?fieldValidation={validation}");
        let text = text.to_owned();
        house.call(http::Method::POST, &path, media, text).await
    };
    let json = "application/json";
    post(json, TEXT, "Strict").await.expect_failure(400, "BadRequest", &format!("{REFUSED}unknown field \"zzz\", duplicate field \"metadata.labels.l\", unknown field \"metadata.foo\", duplicate field \"data.x\", unknown field \"aaa\""));
    let yaml = "application/yaml";
    post(yaml, YAML, "Strict").await.expect_failure(400, "BadRequest", &format!("{REFUSED}yaml: unmarshal errors:\n  line 4: key \"x\" already set in map\n  line 6: key \"name\" already set in map, unknown field \"aaa\", unknown field \"zzz\""));
    let told = |answer: &Answer| {
        let texts = answer.warnings.iter();
        texts
            .map(|text| text.replace("299 - ", "").replace('\\', ""))
            .collect::<Vec<_>>()
    };
    let answer = post(yaml, YAML, "Warn").await.expect_code(201);
    assert_eq!(
        told(&answer),
        [
            "\"line 4: key \"x\" already set in map\"",
            "\"line 6: key \"name\" already set in map\"",
            "\"unknown field \"aaa\"\"",
            "\"unknown field \"zzz\"\""
        ]
    );
    let patch = async |media: &str, text: &str, validation: &str| {
        let path = format!("{MAPS}/a?fieldManager=me&fieldValidation={validation}");
        let text = text.to_owned();
        house.call(http::Method::PATCH, &path, media, text).await
    };
    let merge = "application/merge-patch+json";
    let answer = patch(merge, TEXT, "Warn").await.expect_code(200);
    assert_eq!(
        told(&answer),
        [
            "\"duplicate field \"zzz.a\"\"",
            "\"duplicate field \"metadata.labels.l\"\"",
            "\"duplicate field \"data.x\"\"",
            "\"unknown field \"aaa\"\"",
            "\"unknown field \"metadata.foo\"\"",
            "\"unknown field \"zzz\"\""
        ]
    );
    let operations = r#"[{"op": "add", "path": "/data/y", "value": "1", "value": "2"}]"#;
    let answer = patch("application/json-patch+json", operations, "Warn")
        .await
        .expect_code(200);
    assert_eq!(
        told(&answer),
        ["\"json patch duplicate field \"[0].value\"\""]
    );
    let apply = "application/apply-patch+yaml";
    let config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  z: a\n  z: b\n";
    patch(apply, config, "Strict").await.expect_failure(400, "BadRequest", "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  line 6: key \"z\" already set in map");
    let answer = patch(apply, config, "Warn").await.expect_code(200);
    assert_eq!(told(&answer), ["\"line 6: key \"z\" already set in map\""]);
    assert_eq!(answer.body["data"]["z"], "b");
}

#[tokio::test]
async fn yaml_bodies_are_read_and_written() {
    let house = House::new().await;
    let yaml = "metadata:\n  name: a\ndata:\n  x: \"yes\"\n";
    let answer = house
        .call(http::Method::POST, MAPS, "application/yaml", yaml)
        .await
        .expect_code(201);
    assert_eq!(answer.body["data"]["x"], "yes");
    let answer = house
        .get_as(&format!("{MAPS}/a"), "application/yaml")
        .await
        .expect_code(200);
    assert!(answer.text.contains("name: a"), "{}", answer.text);
}

#[tokio::test]
async fn of_two_writers_that_know_the_same_state_one_wins() {
    let house = House::new().await;
    let first = house.config_map("a", json!({})).await;
    let path = format!("{MAPS}/a");
    let mut object = first.body.clone();
    object["data"]["x"] = "1".into();
    house.put(&path, object.clone()).await.expect_code(200);
    house.put(&path, object.clone()).await.expect_failure(
        409,
        "Conflict",
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again",
    );
    object["metadata"]
        .as_object_mut()
        .expect("metadata")
        .remove("resourceVersion");
    object["data"]["x"] = "2".into();
    house.put(&path, object).await.expect_code(200);
    house
        .put(&path, json!({"metadata": {"name": "b"}}))
        .await
        .expect_failure(
            400,
            "BadRequest",
            "the name of the object (b) does not match the name on the URL (a)",
        );
    house
        .put(
            &format!("{MAPS}/nope"),
            json!({"metadata": {"name": "nope"}}),
        )
        .await
        .expect_failure(404, "NotFound", "configmaps \"nope\" not found");
}

#[tokio::test]
async fn what_tools_keep_by_its_name_is_made_by_replacing_it() {
    let house = House::new().await;
    let lease = "/apis/coordination.k8s.io/v1/namespaces/default/leases/a";
    let mut body = json!({"metadata": {"name": "a", "uid": "5"}});
    house.put(lease, body.clone()).await.expect_failure(
        409,
        "Conflict",
        "Operation cannot be fulfilled on leases.coordination.k8s.io \"a\": StorageError: invalid object, Code: 4, Key: /registry/leases/default/a, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: 5, UID in object meta: ",
    );
    body["metadata"] = json!({"name": "a", "resourceVersion": "7"});
    let dry = format!("{lease}?dryRun=All");
    house.put(&dry, body.clone()).await.expect_code(201);
    let made = house.put(lease, body.clone()).await.expect_code(201);
    assert!(made.body["metadata"]["uid"].is_string() && made.revision() != "7");
    house.put(lease, body).await.expect_code(409);
    house
        .put(lease, json!({"metadata": {"name": "a"}}))
        .await
        .expect_failure(
            422,
            "Invalid",
            "leases.coordination.k8s.io \"a\" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update",
        );
    let service = "/api/v1/namespaces/default/services/s";
    let body = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    let made = house.put(service, body).await.expect_code(201);
    assert!(made.body["spec"]["clusterIP"].is_string());
    let elsewhere = "/api/v1/namespaces/none/endpoints/e";
    let body = json!({"metadata": {"name": "e"}});
    let refused = house.put(elsewhere, body).await;
    refused.expect_failure(404, "NotFound", "namespaces \"none\" not found");
}

#[tokio::test]
async fn only_a_deletion_marks_an_object_as_deleted() {
    let house = House::new().await;
    house.config_map("a", json!({})).await;
    let path = format!("{MAPS}/a");
    let time = "2026-01-01T00:00:00Z";
    let marks = json!({"name": "a", "deletionTimestamp": time, "deletionGracePeriodSeconds": 4});
    let expected = "ConfigMap \"a\" is invalid: [metadata.deletionTimestamp: Invalid value: \"2026-01-01T00:00:00Z\": field is immutable, metadata.deletionGracePeriodSeconds: Invalid value: 4: field is immutable]";
    let refused = house.merge(&path, json!({"metadata": marks})).await;
    refused.expect_failure(422, "Invalid", expected);
    let refused = house.put(&path, json!({"metadata": marks})).await;
    refused.expect_failure(422, "Invalid", expected);
    let held = json!({"metadata": {"finalizers": ["a.example/b"]}});
    house.merge(&path, held).await.expect_code(200);
    house.delete(&path, Value::Null).await.expect_code(200);
    let moved = json!({"metadata": {"deletionTimestamp": time}});
    let kept = house.merge(&path, moved).await.expect_code(200);
    assert_ne!(kept.body["metadata"]["deletionTimestamp"], time);
}

#[tokio::test]
async fn a_write_that_changes_nothing_writes_nothing() {
    let house = House::new().await;
    let made = house.config_map("a", json!({})).await;
    let again = house
        .put(&format!("{MAPS}/a"), made.body.clone())
        .await
        .expect_code(200);
    assert_eq!(again.revision(), made.revision());
    let again = house
        .merge(&format!("{MAPS}/a"), json!({"data": {"a": "b"}}))
        .await
        .expect_code(200);
    assert_eq!(again.revision(), made.revision());
}

#[tokio::test]
async fn a_dry_run_leaves_no_trace() {
    let house = House::new().await;
    let before = house.get("/api/v1/namespaces").await.revision().to_owned();
    let made = house
        .post(
            &format!("{MAPS}?dryRun=All"),
            json!({"metadata": {"name": "a"}}),
        )
        .await
        .expect_code(201);
    assert!(made.body["metadata"]["uid"].is_string() && made.revision().is_empty());
    house.get(&format!("{MAPS}/a")).await.expect_code(404);
    assert_eq!(house.get("/api/v1/namespaces").await.revision(), before);
}

#[tokio::test]
async fn pods_get_an_account_its_token_and_tolerations() {
    let house = House::new().await;
    let made = house
        .post("/api/v1/namespaces/default/pods", pod("a"))
        .await
        .expect_code(201);
    let spec = &made.body["spec"];
    assert_eq!(
        (&spec["serviceAccountName"], &spec["serviceAccount"]),
        (&json!("default"), &json!("default"))
    );
    let volume = spec["volumes"][0]["name"].as_str().expect("a volume");
    assert!(volume.starts_with("kube-api-access-"));
    let mount = &spec["containers"][0]["volumeMounts"][0];
    assert_eq!(
        mount["mountPath"],
        "/var/run/secrets/kubernetes.io/serviceaccount"
    );
    assert_eq!(mount["readOnly"], true);
    let keys: Vec<&str> = spec["tolerations"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|toleration| toleration["key"].as_str())
        .collect();
    assert_eq!(
        keys,
        [
            "node.kubernetes.io/not-ready",
            "node.kubernetes.io/unreachable"
        ]
    );
    assert_eq!(
        (&spec["priority"], &spec["preemptionPolicy"]),
        (&json!(0), &json!("PreemptLowerPriority"))
    );
    let mut other = pod("b");
    other["spec"]["serviceAccountName"] = "nope".into();
    house.post("/api/v1/namespaces/default/pods", other).await.expect_failure(
        403,
        "Forbidden",
        "pods \"b\" is forbidden: error looking up service account default/nope: serviceaccount \"nope\" not found",
    );
}

#[tokio::test]
async fn a_namespace_says_how_much_its_pods_may_ask_for() {
    let house = House::new().await;
    let namespace = |level: &str| json!({"metadata": {"name": "n", "labels": {"pod-security.kubernetes.io/enforce": level, "pod-security.kubernetes.io/warn": "restricted"}}});
    house.post("/api/v1/namespaces", namespace("foo")).await.expect_failure(
        422,
        "Invalid",
        "Namespace \"n\" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"foo\": must be one of privileged, baseline, restricted",
    );
    house
        .post("/api/v1/namespaces", namespace("baseline"))
        .await
        .expect_code(201);
    house.account("n").await;
    let made = house
        .post("/api/v1/namespaces/n/pods", pod("a"))
        .await
        .expect_code(201);
    assert_eq!(made.warnings.len(), 1, "{:?}", made.warnings);
    assert!(made.warnings[0].contains("would violate PodSecurity"));
    let mut privileged = pod("b");
    privileged["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    house.post("/api/v1/namespaces/n/pods", privileged).await.expect_failure(
        403,
        "Forbidden",
        "pods \"b\" is forbidden: violates PodSecurity \"baseline:latest\": privileged (container \"main\" must not set securityContext.privileged=true)",
    );
}
