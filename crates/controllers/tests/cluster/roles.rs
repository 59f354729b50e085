//! Roles that are made of other roles.

use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::api::{Api, PostParams};
use serde_json::{Value, json};

use crate::House;

async fn make(house: &House, role: Value) -> Api<ClusterRole> {
    let roles: Api<ClusterRole> = Api::all(house.client.clone());
    let role = serde_json::from_value(role).expect("is a role");
    roles
        .create(&PostParams::default(), &role)
        .await
        .expect("is created");
    roles
}

#[tokio::test]
async fn an_aggregated_role_follows_its_parts_and_its_rules_are_the_controller_s() {
    let house = House::new().await;
    let whole = json!({"metadata": {"name": "whole"},
        "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "whole"}}]}});
    make(&house, whole).await;
    let rules = json!([{"apiGroups": ["example.com"], "resources": ["things"], "verbs": ["get"]}]);
    let part = json!({"metadata": {"name": "part", "labels": {"to": "whole"}}, "rules": rules});
    let roles = make(&house, part).await;
    house
        .wait::<ClusterRole>("whole", "has the rules", |role| json!(role.rules) == rules)
        .await;
    let whole = roles.get("whole").await.expect("is there");
    let managers = whole.metadata.managed_fields.into_iter().flatten();
    let texts: Vec<_> = managers
        .filter(|entry| json!(entry.fields_v1).get("f:rules").is_some())
        .map(|entry| json!([entry.manager, entry.operation]))
        .collect();
    assert_eq!(
        json!(texts),
        json!([["clusterrole-aggregation-controller", "Apply"]])
    );
    roles
        .delete("part", &kube::api::DeleteParams::default())
        .await
        .expect("is deleted");
    house
        .wait::<ClusterRole>("whole", "has none left", |role| {
            role.rules.as_ref().is_none_or(Vec::is_empty)
        })
        .await;
}
