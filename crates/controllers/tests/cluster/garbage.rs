//! What goes with its owner, and what stays.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, DeleteParams, PropagationPolicy};
use serde_json::{Value, json};

use crate::{House, deployment, runs};

async fn delete(house: &House, policy: PropagationPolicy) {
    let deployments: Api<Deployment> = house.api();
    let params = DeleteParams {
        propagation_policy: Some(policy),
        ..DeleteParams::default()
    };
    deployments
        .delete("web", &params)
        .await
        .expect("is deleted");
}

async fn running() -> House {
    let house = House::new().await;
    house
        .create::<Deployment>(deployment("web", 2, Value::Null))
        .await;
    house
        .wait_all::<Pod>("two run", |pods| {
            pods.iter().filter(|pod| runs(pod)).count() == 2
        })
        .await;
    house
}

#[tokio::test]
async fn in_the_background_the_dependents_follow_their_owner() {
    let house = running().await;
    delete(&house, PropagationPolicy::Background).await;
    house.wait_gone::<Deployment>("web").await;
    house
        .wait_all::<ReplicaSet>("no set is left", |sets| sets.is_empty())
        .await;
    house
        .wait_all::<Pod>("no pod is left", |pods| pods.is_empty())
        .await;
}

#[tokio::test]
async fn in_the_foreground_the_owner_is_the_last_to_go() {
    let house = running().await;
    delete(&house, PropagationPolicy::Foreground).await;
    house.wait_gone::<Deployment>("web").await;
    let sets: Api<ReplicaSet> = house.api();
    let pods: Api<Pod> = house.api();
    let params = kube::api::ListParams::default();
    assert!(
        sets.list(&params)
            .await
            .expect("is listed")
            .items
            .is_empty()
    );
    assert!(
        pods.list(&params)
            .await
            .expect("is listed")
            .items
            .is_empty()
    );
}

#[tokio::test]
async fn orphans_stay_and_forget_their_owner() {
    let house = running().await;
    delete(&house, PropagationPolicy::Orphan).await;
    house.wait_gone::<Deployment>("web").await;
    let sets = house
        .wait_all::<ReplicaSet>("the set is free", |sets| {
            sets.iter().all(|set| {
                set.metadata
                    .owner_references
                    .as_ref()
                    .is_none_or(Vec::is_empty)
            })
        })
        .await;
    assert_eq!(sets.len(), 1);
    let pods = house
        .wait_all::<Pod>("both run", |pods| {
            pods.iter().filter(|pod| runs(pod)).count() == 2
        })
        .await;
    assert!(
        pods.iter()
            .all(|pod| pod.metadata.owner_references.is_some())
    );
}

#[tokio::test]
async fn what_is_born_to_an_owner_that_is_gone_goes_at_once_and_others_stay() {
    let house = House::new().await;
    let owner = house
        .create::<ConfigMap>(json!({"metadata": {"name": "owner"}}))
        .await;
    let reference = |name: &str, uid: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid});
    let uid = owner.metadata.uid.clone().unwrap_or_default();
    let map =
        |name: &str, owners: Value| json!({"metadata": {"name": name, "ownerReferences": owners}});
    let stranger = reference("owner", "00000000-0000-0000-0000-000000000000");
    house
        .create::<ConfigMap>(map("kept", json!([reference("owner", &uid)])))
        .await;
    house
        .create::<ConfigMap>(map("half", json!([reference("owner", &uid), stranger])))
        .await;
    house
        .create::<ConfigMap>(map("lost", json!([stranger])))
        .await;
    house.wait_gone::<ConfigMap>("lost").await;
    house
        .wait::<ConfigMap>("half", "has one owner left", |map| {
            map.metadata
                .owner_references
                .as_ref()
                .is_some_and(|all| all.len() == 1 && all[0].uid == uid)
        })
        .await;
    let maps: Api<ConfigMap> = house.api();
    maps.get("kept").await.expect("is there");
    maps.delete("owner", &DeleteParams::default())
        .await
        .expect("is deleted");
    house.wait_gone::<ConfigMap>("kept").await;
    house.wait_gone::<ConfigMap>("half").await;
}

/// Whether an owner is there can be asked of a version only that there is.
#[tokio::test]
async fn who_belongs_to_an_unknown_kind_or_version_stays() {
    let house = House::new().await;
    let uid = map(&house, "owner", json!([])).await;
    let mut unknown = owner("owner", &uid, true);
    unknown["apiVersion"] = json!("v9");
    map(&house, "unknown-version", json!([unknown])).await;
    unknown["apiVersion"] = json!("example.com/v1");
    map(&house, "unknown-kind", json!([unknown])).await;
    map(&house, "known", json!([owner("owner", &uid, true)])).await;
    delete_map(&house, "owner", PropagationPolicy::Background).await;
    house.wait_gone::<ConfigMap>("known").await;
    let maps: Api<ConfigMap> = house.api();
    for name in ["unknown-version", "unknown-kind"] {
        assert!(maps.get_opt(name).await.expect("is asked").is_some());
    }
}

fn owner(name: &str, uid: &str, blocks: bool) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid, "blockOwnerDeletion": blocks})
}

async fn map(house: &House, name: &str, owners: Value) -> String {
    let map = json!({"metadata": {"name": name, "ownerReferences": owners}});
    let made = house.create::<ConfigMap>(map).await;
    made.metadata.uid.unwrap_or_default()
}

async fn delete_map(house: &House, name: &str, policy: PropagationPolicy) {
    let maps: Api<ConfigMap> = house.api();
    let params = DeleteParams {
        propagation_policy: Some(policy),
        ..DeleteParams::default()
    };
    maps.delete(name, &params).await.expect("is deleted");
}

#[tokio::test]
async fn a_circle_of_owners_blocks_nobody() {
    let house = House::new().await;
    let first = map(&house, "first", json!([])).await;
    let second = map(&house, "second", json!([owner("first", &first, true)])).await;
    let third = map(&house, "third", json!([owner("second", &second, true)])).await;
    let closed = json!({"metadata": {"ownerReferences": [owner("third", &third, true)]}});
    house.patch::<ConfigMap>("first", closed).await;
    delete_map(&house, "first", PropagationPolicy::Foreground).await;
    for name in ["first", "second", "third"] {
        house.wait_gone::<ConfigMap>(name).await;
    }
}

#[tokio::test]
async fn who_has_another_owner_stays_when_one_waits_for_its_dependents() {
    let house = House::new().await;
    let going = map(&house, "going", json!([])).await;
    let staying = map(&house, "staying", json!([])).await;
    let both = json!([
        owner("going", &going, true),
        owner("staying", &staying, true)
    ]);
    map(&house, "both", both).await;
    map(&house, "lone", json!([owner("going", &going, true)])).await;
    delete_map(&house, "going", PropagationPolicy::Foreground).await;
    house.wait_gone::<ConfigMap>("going").await;
    house.wait_gone::<ConfigMap>("lone").await;
    let both = house
        .wait::<ConfigMap>("both", "has forgotten it", |map| {
            let owners = map.metadata.owner_references.iter().flatten();
            let names: Vec<_> = owners.map(|owner| owner.name.as_str()).collect();
            names == ["staying"]
        })
        .await;
    assert_eq!(both.metadata.deletion_timestamp, None);
}

#[tokio::test]
async fn an_owner_waits_no_longer_for_who_has_let_go_of_it() {
    let house = House::new().await;
    let uid = map(&house, "owner", json!([])).await;
    let held = json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"],
        "ownerReferences": [owner("owner", &uid, true)]}});
    house.create::<ConfigMap>(held).await;
    delete_map(&house, "owner", PropagationPolicy::Foreground).await;
    house
        .wait::<ConfigMap>("held", "is to go", |map| {
            map.metadata.deletion_timestamp.is_some()
        })
        .await;
    house
        .patch::<ConfigMap>(
            "held",
            json!({"metadata": {"ownerReferences": [owner("owner", &uid, false)]}}),
        )
        .await;
    house.wait_gone::<ConfigMap>("owner").await;
    let maps: Api<ConfigMap> = house.api();
    assert!(maps.get_opt("held").await.expect("is asked").is_some());
}
