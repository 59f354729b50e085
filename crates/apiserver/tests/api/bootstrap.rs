//! What a cluster begins with, and what becomes of it at the next start.

use std::sync::Arc;

use apiserver::{ApiServer, Config};
use serde_json::{Value, json};
use store::Store;

use crate::house::House;

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

async fn house() -> (House, Store<apiserver::Meta>) {
    let mut store = None;
    let house = House::with(|config| store = Some(config.store.clone())).await;
    (house, store.expect("the house has a store"))
}

/// Another server begins on what the first has left.
async fn start_again(house: &mut House, store: &Store<apiserver::Meta>) {
    let authority = Arc::new(pki::Authority::in_memory().expect("an authority"));
    let key = Arc::new(pki::TokenKey::in_memory().expect("a key"));
    let config = Config::new(store.clone(), authority, key);
    house.server = ApiServer::new(config).await.expect("the server starts");
}

#[tokio::test]
async fn roles_and_bindings_are_brought_up_to_the_program_at_each_start() {
    let (mut house, store) = house().await;
    let role = format!("{RBAC}/clusterroles/system:controller:deployment-controller");
    let gone = format!("{RBAC}/clusterroles/system:discovery");
    let binding = format!("{RBAC}/clusterrolebindings/system:kube-scheduler");
    let other = format!("{RBAC}/clusterrolebindings/system:kube-dns");
    let before = house.get(&role).await.expect_code(200);
    let wanted = house.get(&other).await.expect_code(200).body["roleRef"].clone();

    let own = json!({"apiGroups": ["own.example"], "resources": ["things"], "verbs": ["get"]});
    let labels = json!({"labels": {"own": "yes"}});
    let body = json!({"metadata": labels, "rules": [own]});
    house.merge(&role, body).await.expect_code(200);
    house.delete(&gone, Value::Null).await.expect_code(200);
    let body = json!({"subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "own"}]});
    house.merge(&binding, body).await.expect_code(200);
    let mut body = house.get(&other).await.expect_code(200).body;
    house.delete(&other, Value::Null).await.expect_code(200);
    body["roleRef"]["name"] = "cluster-admin".into();
    body["metadata"] = json!({"name": "system:kube-dns"});
    let path = format!("{RBAC}/clusterrolebindings");
    house.post(&path, body).await.expect_code(201);

    start_again(&mut house, &store).await;
    let after = house.get(&role).await.expect_code(200);
    let rules = after.body["rules"].as_array().expect("rules");
    assert_eq!(rules[0], own, "what was added stays");
    let text = Value::from(rules.clone()).to_string();
    for rule in before.body["rules"].as_array().expect("rules") {
        for resource in rule["resources"].as_array().expect("resources") {
            assert!(text.contains(&resource.to_string()), "{resource} in {text}");
        }
    }
    assert_eq!(after.body["metadata"]["labels"]["own"], "yes");
    house.get(&gone).await.expect_code(200);
    let subjects = house.get(&binding).await.body["subjects"].clone();
    let names: Vec<&Value> = subjects
        .as_array()
        .expect("subjects")
        .iter()
        .map(|subject| &subject["name"])
        .collect();
    assert_eq!(names, ["own", "system:kube-scheduler"]);
    assert_eq!(house.get(&other).await.body["roleRef"], wanted);

    let revision = store.revision();
    start_again(&mut house, &store).await;
    assert_eq!(store.revision(), revision, "nothing is left to be done");
}

#[tokio::test]
async fn who_annotates_a_role_keeps_it() {
    let (mut house, store) = house().await;
    let role = format!("{RBAC}/clusterroles/system:basic-user");
    let annotations = json!({"rbac.authorization.kubernetes.io/autoupdate": "false"});
    let body = json!({"metadata": {"annotations": annotations}, "rules": []});
    let kept = house.merge(&role, body).await.expect_code(200).body;
    start_again(&mut house, &store).await;
    assert_eq!(house.get(&role).await.body, kept);
}
