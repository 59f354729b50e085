//! Getting and listing.

use serde_json::json;

use crate::house::{House, pod};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn selectors_choose_by_label_and_field() {
    let house = House::new().await;
    house.config_map("a", json!({"tier": "web"})).await;
    house.config_map("b", json!({"tier": "db"})).await;
    house.config_map("c", json!({})).await;
    let check = async |query: &str, expected: &[&str]| {
        let answer = house.get(&format!("{MAPS}?{query}")).await.expect_code(200);
        assert_eq!(answer.names(), expected, "{query}");
    };
    check("labelSelector=tier%3Dweb", &["a"]).await;
    check("labelSelector=tier", &["a", "b"]).await;
    check("labelSelector=tier%20in%20(web%2Cdb)%2Ctier!%3Ddb", &["a"]).await;
    check("labelSelector=!tier", &["c"]).await;
    check("fieldSelector=metadata.name%3Db", &["b"]).await;
    check(
        "fieldSelector=metadata.name!%3Db,metadata.namespace%3Ddefault",
        &["a", "c"],
    )
    .await;
    let unknown = house.get("/api/v1/pods?fieldSelector=spec.foo%3Dx").await;
    unknown.expect_failure(400, "BadRequest", "field label not supported: spec.foo");
    let unknown = house.get(&format!("{MAPS}?fieldSelector=foo%3Dx")).await;
    unknown.expect_failure(
        400,
        "BadRequest",
        "\"foo\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
    );
}

#[tokio::test]
async fn a_list_is_the_stored_bytes_without_types() {
    let house = House::new().await;
    house.config_map("a", json!({})).await;
    let answer = house.get(MAPS).await.expect_code(200);
    assert_eq!(answer.body["kind"], "ConfigMapList");
    assert_eq!(answer.body["apiVersion"], "v1");
    assert!(answer.body["items"][0].get("kind").is_none());
    let one = house.get(&format!("{MAPS}/a")).await.expect_code(200);
    assert_eq!(one.body["kind"], "ConfigMap");
    assert_eq!(one.body["metadata"], answer.body["items"][0]["metadata"]);
    let empty = house
        .get("/api/v1/namespaces/kube-system/configmaps")
        .await
        .expect_code(200);
    assert_eq!(empty.body["items"], json!([]));
}

#[tokio::test]
async fn pages_show_the_state_of_the_first() {
    let house = House::new().await;
    for name in ["a", "b", "c", "d", "e"] {
        house.config_map(name, json!({})).await;
    }
    let first = house.get(&format!("{MAPS}?limit=2")).await.expect_code(200);
    assert_eq!(first.names(), ["a", "b"]);
    assert_eq!(first.body["metadata"]["remainingItemCount"], 3);
    house
        .delete(&format!("{MAPS}/c"), json!(null))
        .await
        .expect_code(200);
    house.config_map("aa", json!({})).await;
    let token = first.body["metadata"]["continue"]
        .as_str()
        .expect("a token");
    let second = house
        .get(&format!("{MAPS}?limit=2&continue={token}"))
        .await
        .expect_code(200);
    assert_eq!(second.names(), ["c", "d"]);
    assert_eq!(second.revision(), first.revision());
    let token = second.body["metadata"]["continue"]
        .as_str()
        .expect("a token");
    let third = house
        .get(&format!("{MAPS}?limit=2&continue={token}"))
        .await
        .expect_code(200);
    assert_eq!(third.names(), ["e"]);
    assert!(third.body["metadata"].get("continue").is_none());
    let bad = house.get(&format!("{MAPS}?limit=2&continue=abc")).await;
    bad.expect_failure(400, "BadRequest", "invalid continue token: continue key is not valid: invalid character 'i' looking for beginning of value");
}

#[tokio::test]
async fn a_token_of_a_forgotten_state_is_expired_and_shows_how_to_go_on() {
    let house = House::new().await;
    for name in ["a", "b", "c"] {
        house.config_map(name, json!({})).await;
    }
    // A well-formed token of a revision that nobody listed at: {"v":"meta.k8s.io/v1","rv":1,"start":"/a\u0000"}
    let token = "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MSwic3RhcnQiOiIvYVx1MDAwMCJ9";
    let answer = house.get(&format!("{MAPS}?limit=1&continue={token}")).await;
    assert_eq!(
        (answer.code, answer.body["reason"].as_str()),
        (410, Some("Expired"))
    );
    let next = answer.body["metadata"]["continue"]
        .as_str()
        .expect("a token");
    let rest = house
        .get(&format!("{MAPS}?continue={next}"))
        .await
        .expect_code(200);
    assert_eq!(rest.names(), ["b", "c"]);
}

#[tokio::test]
async fn lists_of_others_do_not_end_ones_own() {
    let house = House::new().await;
    for name in ["a", "b", "c"] {
        house.config_map(name, json!({})).await;
    }
    let first = house.get(&format!("{MAPS}?limit=1")).await;
    let token = first.body["metadata"]["continue"]
        .as_str()
        .expect("a token");
    for step in 0..70 {
        let data = json!({"data": {"step": step.to_string()}});
        house.merge(&format!("{MAPS}/c"), data).await;
        house.get(&format!("{MAPS}?limit=1")).await.expect_code(200);
    }
    let path = format!("{MAPS}?continue={token}");
    let rest = house.get(&path).await.expect_code(200);
    assert_eq!(rest.names(), ["b", "c"]);
    assert_eq!(rest.body["items"][1]["data"], json!({"a": "b"}));
    // As upstream's, a token says where to go on below the place that is listed.
    let path = format!("/api/v1/configmaps?limit=1&continue={token}");
    let elsewhere = house.get(&path).await.expect_code(200);
    assert_eq!(elsewhere.names(), ["a"]);
    let path = format!("{MAPS}?resourceVersion=1&continue={token}");
    let refused = house.get(&path).await;
    let why = "specifying resource version is not allowed when using continue";
    refused.expect_failure(400, "BadRequest", why);
}

#[tokio::test]
async fn revisions_of_the_future_and_of_the_past() {
    let house = House::new().await;
    let current: u64 = house.get(MAPS).await.revision().parse().expect("a number");
    for path in [
        format!("{MAPS}?resourceVersion=100000"),
        format!("{MAPS}?resourceVersion=100000&resourceVersionMatch=Exact"),
    ] {
        house.get(&path).await.expect_failure(
            504,
            "Timeout",
            &format!("Timeout: Too large resource version: 100000, current: {current}"),
        );
    }
    house.config_map("a", json!({})).await;
    house
        .get(&format!(
            "{MAPS}?resourceVersion=1&resourceVersionMatch=Exact"
        ))
        .await
        .expect_failure(
            410,
            "Expired",
            "The resourceVersion for the provided list is too old.",
        );
    house
        .get(&format!("{MAPS}?resourceVersion=1"))
        .await
        .expect_code(200);
}

#[tokio::test]
async fn tables_and_partial_objects() {
    let house = House::new().await;
    house
        .post("/api/v1/namespaces/default/pods", pod("a"))
        .await
        .expect_code(201);
    let table = house
        .get_as(
            "/api/v1/pods",
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
        )
        .await
        .expect_code(200);
    assert_eq!(table.body["kind"], "Table");
    assert_eq!(table.body["columnDefinitions"][0]["name"], "Name");
    assert_eq!(table.body["rows"][0]["cells"][0], "a");
    assert_eq!(
        table.body["rows"][0]["object"]["kind"],
        "PartialObjectMetadata"
    );
    let partial = house
        .get_as(
            "/api/v1/pods",
            "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
        )
        .await
        .expect_code(200);
    assert_eq!(partial.body["kind"], "PartialObjectMetadataList");
    assert!(partial.body["items"][0].get("spec").is_none());
    let refused = house.get_as("/api/v1/pods", "text/html").await;
    assert_eq!(
        (refused.code, refused.body["reason"].as_str()),
        (406, Some("NotAcceptable"))
    );
}

#[tokio::test]
async fn discovery_and_health() {
    let house = House::new().await;
    let check = async |path: &str, kind: &str| {
        let answer = house.get(path).await.expect_code(200);
        assert_eq!(answer.body["kind"], kind, "{path}");
    };
    check("/api", "APIVersions").await;
    check("/apis", "APIGroupList").await;
    check("/api/v1", "APIResourceList").await;
    check("/apis/apps", "APIGroup").await;
    check("/apis/apps/v1", "APIResourceList").await;
    let aggregated = house
        .get_as(
            "/apis",
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        )
        .await
        .expect_code(200);
    assert_eq!(aggregated.body["kind"], "APIGroupDiscoveryList");
    assert_eq!(house.get("/readyz").await.expect_code(200).text, "ok");
    assert!(
        house
            .get("/livez?verbose")
            .await
            .expect_code(200)
            .text
            .contains("[+]ping ok")
    );
    assert_eq!(
        house.get("/version").await.expect_code(200).body["minor"],
        "36"
    );
    house.get("/apis/apps/v9").await.expect_failure(
        404,
        "NotFound",
        "the server could not find the requested resource",
    );
    assert_eq!(
        house.get("/foo").await.expect_code(404).text,
        "404 page not found\n"
    );
}

#[tokio::test]
async fn a_server_whose_store_has_ended_is_not_well() {
    let mut store = None;
    let house = House::with(|config| store = Some(config.store.clone())).await;
    store.expect("the house has a store").close().await;
    for path in ["/readyz", "/livez", "/healthz"] {
        let told = house.get(path).await.expect_code(500).text;
        assert!(told.contains("[-]store failed"), "{told}");
    }
}

#[tokio::test]
async fn events_have_two_views() {
    let house = House::new().await;
    house
        .post("/apis/events.k8s.io/v1/namespaces/default/events", json!({
            "metadata": {"name": "e"}, "note": "hello", "reason": "Why", "type": "Normal", "action": "Do",
            "reportingController": "c", "reportingInstance": "i", "eventTime": "2026-01-01T00:00:00.000000Z",
            "regarding": {"kind": "Pod", "name": "a", "namespace": "default"},
        }))
        .await
        .expect_code(201);
    let core = house
        .get("/api/v1/namespaces/default/events/e")
        .await
        .expect_code(200);
    assert_eq!(
        (&core.body["message"], &core.body["apiVersion"]),
        (&json!("hello"), &json!("v1"))
    );
    assert_eq!(core.body["involvedObject"]["name"], "a");
    let list = house
        .get("/apis/events.k8s.io/v1/events")
        .await
        .expect_code(200);
    assert_eq!(list.body["items"][0]["note"], "hello");
    let chosen = house
        .get("/api/v1/events?fieldSelector=involvedObject.name%3Da")
        .await
        .expect_code(200);
    assert_eq!(chosen.names(), ["e"]);
}

#[tokio::test]
async fn events_are_selected_by_the_labels_of_their_group() {
    let house = House::new().await;
    let event = json!({"metadata": {"name": "e"}, "reportingController": "me", "reportingInstance": "me-1",
        "action": "Did", "reason": "Done", "type": "Normal", "eventTime": "2026-01-01T00:00:00.000000Z",
        "regarding": {"kind": "Pod", "name": "a", "namespace": "default"}});
    let newer = "/apis/events.k8s.io/v1/namespaces/default/events";
    let core = "/api/v1/namespaces/default/events";
    house.post(newer, event).await.expect_code(201);
    let check = async |path: &str, selector: &str, expected: Option<usize>| {
        let answer = house.get(&format!("{path}?fieldSelector={selector}")).await;
        let found = answer.body["items"].as_array().map(Vec::len);
        assert_eq!(found, expected, "{path} {selector}: {}", answer.text);
    };
    // Twice, in both orders: what was read for one must not be taken for the other.
    for _ in 0..2 {
        check(newer, "reportingController=me", Some(1)).await;
        check(newer, "reportingController=you", Some(0)).await;
        check(newer, "regarding.name=a,reason!=x", Some(1)).await;
        check(core, "reportingComponent=me", Some(1)).await;
        check(core, "involvedObject.name=a,source=me", Some(1)).await;
    }
    check(newer, "source=me", None).await;
    check(newer, "involvedObject.name=a", None).await;
    check(core, "reportingController=me", None).await;
}

#[tokio::test]
async fn what_has_one_form_only_must_be_accepted_in_it() {
    let house = House::new().await;
    let check = async |method: &str, path: &str, accept: &str, code: u16| {
        let body = r#"{"spec": {"nonResourceAttributes": {"path": "/"}}}"#;
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("accept", accept)
            .header("content-type", "application/json")
            .body(apiserver::Body::from(body))
            .expect("a request");
        let answer = house.send(request).await.expect_code(code);
        if code == 406 {
            answer.expect_failure(406, "NotAcceptable", "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf");
        }
    };
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    check("POST", reviews, table, 406).await;
    check("POST", reviews, &format!("{table},application/json"), 201).await;
    check("POST", reviews, "application/json", 201).await;
    check(
        "GET",
        "/apis",
        "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
        406,
    )
    .await;
    check(
        "GET",
        "/apis",
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        200,
    )
    .await;
}

#[tokio::test]
async fn who_asks_for_a_kind_that_will_go_is_told() {
    let house = House::new().await;
    let told =
        ["299 - \"v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice\""];
    for path in ["endpoints", "namespaces/default/endpoints/absent"] {
        let answer = house.get(&format!("/api/v1/{path}")).await;
        assert_eq!(answer.warnings, told, "{path}");
    }
    assert!(house.get(MAPS).await.warnings.is_empty());
}
