//! What callers may not do, however they ask.

use apiserver::{Body, Caller};
use futures::FutureExt as _;
use http::{Method, Request};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::house::{Answer, House};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";

fn user(name: &str) -> Caller {
    Caller::authenticated(name, &[])
}

fn request(method: Method, path: &str, body: &Value) -> Request<Body> {
    let body = match body {
        Value::Null => Body::empty(),
        body => Body::from(body.to_string()),
    };
    Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .body(body)
        .expect("a request")
}

async fn get_as(house: &House, name: &str, path: &str) -> Answer {
    let request = request(Method::GET, path, &Value::Null);
    house.send_as(user(name), request).await
}

/// Gives a user what `rules` say, in the whole cluster.
async fn allow(house: &House, name: &str, rules: Value) {
    let role = json!({"metadata": {"name": name}, "rules": rules});
    let path = format!("{RBAC}/clusterroles");
    house.post(&path, role).await.expect_code(201);
    let binding = json!({
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "User", "name": name, "apiGroup": "rbac.authorization.k8s.io"}],
    });
    let path = format!("{RBAC}/clusterrolebindings");
    house.post(&path, binding).await.expect_code(201);
}

#[tokio::test]
async fn a_right_ends_with_its_binding_though_nobody_waits_for_the_answer() {
    let house = House::new().await;
    let binding = json!({
        "metadata": {"name": "eve"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "User", "name": "eve", "apiGroup": "rbac.authorization.k8s.io"}],
    });
    let pods = "/api/v1/namespaces/default/pods";
    let path = format!("{BINDINGS}/eve");
    let mut given_up = false;
    // The writer may be so quick that there is nothing left to give up.
    while !given_up {
        house.post(BINDINGS, binding.clone()).await.expect_code(201);
        get_as(&house, "eve", pods).await.expect_code(200);
        let service = house.server.service(Some(Caller::system_masters()));
        given_up = service
            .oneshot(request(Method::DELETE, &path, &Value::Null))
            .now_or_never()
            .is_none();
        while house.get(&path).await.code != 404 {
            tokio::task::yield_now().await;
        }
        get_as(&house, "eve", pods).await.expect_code(403);
    }
}

const SECRETS: &str = "/api/v1/namespaces/default/secrets";

async fn secrets(house: &House) {
    for name in ["foo", "bar"] {
        let secret = json!({"metadata": {"name": name}});
        house.post(SECRETS, secret).await.expect_code(201);
    }
}

#[tokio::test]
async fn a_right_on_one_name_shows_no_other() {
    let house = House::new().await;
    secrets(&house).await;
    let verbs = ["get", "list", "watch"];
    let rule = json!([{"verbs": verbs, "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["foo"]}]);
    allow(&house, "joe", rule).await;
    let check = async |query: &str, code: u16, names: &[&str]| {
        let answer = get_as(&house, "joe", &format!("{SECRETS}?{query}")).await;
        assert_eq!(answer.code, code, "{query}");
        assert_eq!(answer.names(), names, "{query}");
    };
    check("fieldSelector=metadata.name=foo", 200, &["foo"]).await;
    check("fieldSelector=metadata.name==foo,type!=x", 200, &["foo"]).await;
    check(
        "fieldSelector=metadata.name=foo,metadata.name=bar",
        200,
        &[],
    )
    .await;
    check("", 403, &[]).await;
    // No comma ends the first comparison: what looks like a name is a part of its value.
    check("fieldSelector=type!=x\\,metadata.name=foo", 403, &[]).await;
    check("fieldSelector=type!=x%5C,metadata.name=foo", 403, &[]).await;
}

#[tokio::test]
async fn a_watch_of_one_name_is_of_no_other() {
    let house = House::new().await;
    secrets(&house).await;
    let check = async |path: &str, code: u16, shown: &[&str]| {
        let path = format!("/api/v1/watch/namespaces/default/{path}timeoutSeconds=1");
        let answer = house.get(&path).await.expect_code(code);
        for name in ["foo", "bar"] {
            let text = format!("\"name\":\"{name}\"");
            assert_eq!(answer.text.contains(&text), shown.contains(&name), "{path}");
        }
        answer
    };
    check("secrets/foo?", 200, &["foo"]).await;
    check(
        "secrets/foo?fieldSelector=metadata.name=foo&",
        200,
        &["foo"],
    )
    .await;
    check("secrets?", 200, &["foo", "bar"]).await;
    for other in ["metadata.name!=zzz", "metadata.name=bar", "type!=x"] {
        let path = format!("secrets/foo?fieldSelector={other}&");
        check(&path, 400, &[]).await.expect_failure(
            400,
            "BadRequest",
            "fieldSelector metadata.name doesn't match requested name",
        );
    }
}

#[tokio::test]
async fn what_is_asked_in_the_form_of_a_watch_is_a_watch() {
    let house = House::new().await;
    let watch = json!([{"verbs": ["watch"], "apiGroups": ["*"], "resources": ["*"]}]);
    allow(&house, "joe", watch).await;
    let path = "/api/v1/watch/namespaces/default/pods/a/proxy/x";
    let posted = request(Method::POST, path, &json!({}));
    house.send_as(user("joe"), posted).await.expect_code(403);
    get_as(&house, "joe", path).await.expect_code(404);
    house.post(path, json!({})).await.expect_code(404);
}

#[tokio::test]
async fn a_watch_may_be_meant_to_last_for_ever() {
    let house = House::new().await;
    let path = format!("{SECRETS}?watch=true&timeoutSeconds=9223372036854775807");
    let service = house.server.service(Some(Caller::system_masters()));
    let response = service
        .oneshot(request(Method::GET, &path, &Value::Null))
        .await
        .unwrap_or_else(|never| match never {});
    assert_eq!(response.status(), 200);
    let path = format!("{SECRETS}?watch=true&timeoutSeconds=99999999999999999999");
    house.get(&path).await.expect_failure(
        400,
        "BadRequest",
        "strconv.ParseInt: parsing \"99999999999999999999\": value out of range",
    );
}

#[tokio::test]
async fn who_reads_pods_does_not_act_in_them() {
    let house = House::new().await;
    let pods = "/api/v1/namespaces/default/pods";
    house
        .post(pods, crate::house::pod("a"))
        .await
        .expect_code(201);
    let read = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["*"]}]);
    allow(&house, "joe", read).await;
    let act = json!([{"verbs": ["get", "create"], "apiGroups": [""], "resources": ["pods/exec", "pods/attach", "pods/portforward"]}]);
    allow(&house, "jim", act).await;
    for sub in [
        "exec?command=ls&stdout=1",
        "attach?stdout=1",
        "portforward?ports=80",
    ] {
        let path = format!("{pods}/a/{sub}");
        let answer = get_as(&house, "joe", &path).await;
        answer.expect_failure(403, "Forbidden", "pods \"a\" is forbidden: ");
        let answer = get_as(&house, "jim", &path).await;
        answer.expect_failure(400, "BadRequest", "pod a does not have a host assigned");
    }
}

async fn patch_as(house: &House, name: &str, path: &str, patch: Value) -> Answer {
    let mut request = request(Method::PATCH, path, &patch);
    let media = http::HeaderValue::from_static("application/merge-patch+json");
    request.headers_mut().insert("content-type", media);
    house.send_as(user(name), request).await
}

#[tokio::test]
async fn an_aggregation_needs_every_right() {
    let house = House::new().await;
    let verbs = ["get", "create", "update", "patch"];
    let roles = json!([{"verbs": verbs, "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"]}]);
    allow(&house, "joe", roles).await;
    let own = format!("{RBAC}/clusterroles/joe");
    let gathering = json!({"clusterRoleSelectors": [{"matchLabels": {"kubernetes.io/bootstrapping": "rbac-defaults"}}]});
    let refused = |answer: Answer, name: &str| {
        let text = format!(
            "clusterroles.rbac.authorization.k8s.io \"{name}\" is forbidden: must have cluster-admin privileges to use the aggregationRule"
        );
        answer.expect_failure(403, "Forbidden", &text);
    };
    let patch = json!({"aggregationRule": gathering});
    refused(patch_as(&house, "joe", &own, patch.clone()).await, "joe");
    let labels = json!({"metadata": {"labels": {"a": "b"}}});
    patch_as(&house, "joe", &own, labels).await.expect_code(200);
    let path = format!("{RBAC}/clusterroles");
    let role = json!({"metadata": {"name": "new"}, "aggregationRule": gathering});
    let answer = house
        .send_as(user("joe"), request(Method::POST, &path, &role))
        .await;
    refused(answer, "new");
    house.post(&path, role).await.expect_code(201);
    let path = format!("{path}/new");
    let patch = json!({"aggregationRule": null});
    refused(patch_as(&house, "joe", &path, patch).await, "new");
    house
        .merge(&own, json!({"aggregationRule": gathering}))
        .await
        .expect_code(200);
}

#[tokio::test]
async fn verbs_may_be_any_word() {
    let house = House::new().await;
    let rules = json!([
        {"verbs": ["frobnicate", "unknown"], "apiGroups": [""], "resources": ["pods"]},
        {"verbs": ["knock"], "nonResourceURLs": ["/door"]},
    ]);
    allow(&house, "joe", rules).await;
    let check = async |what: &str, attributes: Value, expected: bool| {
        let review = json!({"spec": {"user": "joe", what: attributes}});
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let answer = house.post(path, review).await.expect_code(201);
        assert_eq!(
            answer.body["status"]["allowed"], expected,
            "{}",
            answer.text
        );
    };
    for (verb, expected) in [("frobnicate", true), ("unknown", true), ("other", false)] {
        let attributes = json!({"verb": verb, "resource": "pods"});
        check("resourceAttributes", attributes, expected).await;
    }
    for (verb, expected) in [("knock", true), ("ring", false)] {
        let attributes = json!({"verb": verb, "path": "/door"});
        check("nonResourceAttributes", attributes, expected).await;
    }
}

async fn as_node(house: &House, method: Method, path: &str, body: Value) -> Answer {
    let mut request = request(method.clone(), path, &body);
    if method == Method::PATCH {
        let media = http::HeaderValue::from_static("application/merge-patch+json");
        request.headers_mut().insert("content-type", media);
    }
    house.send_as(Caller::node("n"), request).await
}

const PODS: &str = "/api/v1/namespaces/default/pods";
const NODES: &str = "/api/v1/nodes";

async fn house_with_nodes() -> House {
    let house = House::new().await;
    for name in ["n", "other"] {
        let node = json!({"metadata": {"name": name}});
        house.post(NODES, node).await.expect_code(201);
        let mut pod = crate::house::pod(&format!("on-{name}"));
        pod["spec"]["nodeName"] = name.into();
        house.post(PODS, pod).await.expect_code(201);
    }
    house
}

#[tokio::test]
async fn a_node_sees_itself_and_its_pods() {
    let house = house_with_nodes().await;
    let check = async |path: &str, expected: Result<(), &str>| {
        let answer = as_node(&house, Method::GET, path, Value::Null).await;
        match expected {
            Ok(()) => drop(answer.expect_code(200)),
            Err(why) => {
                assert_eq!(answer.code, 403, "{path}: {}", answer.text);
                let message = answer.body["message"].as_str().expect("a message");
                assert!(message.ends_with(why), "{path}: {message}");
            }
        }
    };
    let selector = Err("can only list/watch pods with spec.nodeName field selector");
    check("/api/v1/pods", selector).await;
    check("/api/v1/pods?fieldSelector=spec.nodeName=n", Ok(())).await;
    check("/api/v1/pods?fieldSelector=spec.nodeName=other", selector).await;
    check("/api/v1/pods?fieldSelector=spec.nodeName!=n", selector).await;
    check(&format!("{PODS}?watch=1&timeoutSeconds=1"), selector).await;
    check(&format!("{PODS}/on-n"), Ok(())).await;
    let unrelated = Err("no relationship found between node 'n' and this object");
    check(&format!("{PODS}/on-other"), unrelated).await;
    let gone = as_node(&house, Method::GET, &format!("{PODS}/gone"), Value::Null).await;
    gone.expect_code(404);
    let all = Err("node 'n' cannot read all nodes, only its own Node object");
    check(NODES, all).await;
    check("/api/v1/nodes?fieldSelector=metadata.name=n", Ok(())).await;
    check("/api/v1/nodes/n", Ok(())).await;
    let other = Err("node 'n' cannot read 'other', only its own Node object");
    check("/api/v1/nodes/other", other).await;
    let leases = Err("can only get, create, update, patch, or delete a node lease");
    check("/apis/coordination.k8s.io/v1/leases", leases).await;
    check(
        "/api/v1/secrets",
        Err("can only read namespaced object of this type"),
    )
    .await;
}

#[tokio::test]
async fn a_mirror_pod_opens_nothing_to_its_node() {
    let house = house_with_nodes().await;
    let node = house.get("/api/v1/nodes/n").await;
    let owner = json!({"apiVersion": "v1", "kind": "Node", "name": "n", "uid": node.body["metadata"]["uid"], "controller": true});
    let check = async |owners: Value, spec: Value, expected: &str| {
        let mut pod = crate::house::pod("m");
        pod["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
        pod["metadata"]["ownerReferences"] = owners;
        pod["spec"]["nodeName"] = "n".into();
        for (field, value) in spec.as_object().expect("fields") {
            pod["spec"][field] = value.clone();
        }
        let path = format!("{PODS}?dryRun=All");
        let answer = as_node(&house, Method::POST, &path, pod).await;
        if expected.is_empty() {
            answer.expect_code(201);
        } else {
            let text = format!("pods \"m\" is forbidden: {expected}");
            answer.expect_failure(403, "Forbidden", &text);
        }
    };
    let owners = json!([owner]);
    check(owners.clone(), json!({}), "").await;
    check(
        json!([]),
        json!({}),
        "node \"n\" can only create pods with an owner reference set to itself",
    )
    .await;
    let mut foreign = owner.clone();
    foreign["uid"] = "x".into();
    let text = format!(
        "node n UID mismatch: expected x got {}",
        owner["uid"].as_str().expect("a uid")
    );
    check(json!([foreign]), json!({}), &text).await;
    for (spec, expected) in [
        (
            json!({"serviceAccountName": "default"}),
            "a mirror pod may not reference service accounts",
        ),
        (
            json!({"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}),
            "a mirror pod may not reference secrets",
        ),
        (
            json!({"imagePullSecrets": [{"name": "s"}]}),
            "a mirror pod may not reference secrets",
        ),
        (
            json!({"volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "x"}}]}}]}),
            "a mirror pod may not use ServiceAccountToken volume projections",
        ),
        (
            json!({"volumes": [{"name": "v", "configMap": {"name": "c"}}]}),
            "node \"n\" can not create pods that reference configmaps",
        ),
        (
            json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}),
            "node \"n\" can not create pods that reference persistentvolumeclaims",
        ),
    ] {
        check(owners.clone(), spec, expected).await;
    }
}

#[tokio::test]
async fn a_node_gets_tokens_for_its_pods_only() {
    let house = house_with_nodes().await;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let bound = async |name: &str| {
        let pod = house.get(&format!("{PODS}/{name}")).await;
        json!({"kind": "Pod", "apiVersion": "v1", "name": name, "uid": pod.body["metadata"]["uid"]})
    };
    let check = async |spec: Value, expected: &str| {
        let body = json!({"spec": spec});
        let answer = as_node(&house, Method::POST, path, body).await;
        let text = format!("serviceaccounts \"default\" is forbidden: {expected}");
        answer.expect_failure(403, "Forbidden", &text);
    };
    let (own, other) = (bound("on-n").await, bound("on-other").await);
    check(json!({}), "node requested token not bound to a pod").await;
    check(
        json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "on-n"}}),
        "node requested token with a pod binding without a uid",
    )
    .await;
    check(
        json!({"boundObjectRef": other}),
        "node requested token bound to a pod scheduled on a different node",
    )
    .await;
    check(json!({"boundObjectRef": own, "audiences": ["vault"]}), "audience \"vault\" not found in pod spec volume, system:node:n is not authorized to request tokens for this audience").await;
    let body = json!({"spec": {"boundObjectRef": own}});
    as_node(&house, Method::POST, path, body)
        .await
        .expect_code(201);
}

#[tokio::test]
async fn a_node_does_not_say_what_is_to_run_on_it() {
    let house = house_with_nodes().await;
    let check = async |path: &str, patch: Value, expected: &str| {
        let answer = as_node(&house, Method::PATCH, path, patch).await;
        if expected.is_empty() {
            answer.expect_code(200);
        } else {
            assert_eq!(answer.body["message"], expected, "{}", answer.text);
            answer.expect_code(403);
        }
    };
    let path = "/api/v1/nodes/n";
    let labels = |name: &str| json!({"metadata": {"labels": {name: "x"}}});
    check(path, labels("example.com/a"), "").await;
    check(path, labels("node-restriction.kubernetes.io/a"), "nodes \"n\" is forbidden: is not allowed to modify labels: node-restriction.kubernetes.io/a").await;
    check(
        "/api/v1/nodes/n/status",
        labels("foo.kubernetes.io/a"),
        "nodes \"n\" is forbidden: is not allowed to modify labels: foo.kubernetes.io/a",
    )
    .await;
    check(
        path,
        json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}}),
        "nodes \"n\" is forbidden: node \"n\" is not allowed to modify taints",
    )
    .await;
    let pod = format!("{PODS}/on-n/status");
    check(
        &pod,
        labels("a"),
        "pods \"on-n\" is forbidden: node \"n\" cannot update labels through pod status",
    )
    .await;
    check(&pod, json!({"status": {"phase": "Running"}}), "").await;
}

#[tokio::test]
async fn who_may_change_and_not_create_makes_nothing() {
    let house = House::new().await;
    let rule = json!({"apiGroups": ["", "coordination.k8s.io"], "resources": ["*"], "verbs": ["get", "patch", "update"]});
    allow(&house, "joe", json!([rule])).await;
    let send = async |method: Method, path: &str, media_type: &str, body: Value| {
        let mut request = request(method, path, &body);
        let value = media_type.parse().expect("a media type");
        request.headers_mut().insert("content-type", value);
        house.send_as(user("joe"), request).await
    };
    let refusal = |resource: &str, group: &str| {
        let name = [resource, group].join(".");
        let name = name.trim_end_matches('.');
        format!(
            "{name} \"a\" is forbidden: User \"joe\" cannot create resource \"{resource}\" in API group \"{group}\" in the namespace \"default\""
        )
    };
    let apply = "application/apply-patch+yaml";
    let path = "/api/v1/namespaces/default/configmaps/a?fieldManager=joe";
    let mut body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
    let refused = send(Method::PATCH, path, apply, body.clone()).await;
    refused.expect_failure(403, "Forbidden", &refusal("configmaps", ""));
    house.config_map("a", json!({})).await;
    body["data"] = json!({"b": "c"});
    send(Method::PATCH, path, apply, body)
        .await
        .expect_code(200);
    let path = "/apis/coordination.k8s.io/v1/namespaces/default/leases/a";
    let body = json!({"metadata": {"name": "a"}});
    let refused = send(Method::PUT, path, "application/json", body).await;
    let expected = refusal("leases", "coordination.k8s.io");
    refused.expect_failure(403, "Forbidden", &expected);
}
