//! What a namespace has from the beginning, and how it ends.

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, ServiceAccount};
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::{Value, json};

use crate::{House, PATIENCE};

async fn put<K>(objects: &Api<K>, object: Value)
where
    K: Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    let object = serde_json::from_value(object).expect("is of the kind");
    let created = objects.create(&PostParams::default(), &object).await;
    created.expect("is created");
}

async fn make(house: &House, name: &str) -> Api<Namespace> {
    let namespaces: Api<Namespace> = Api::all(house.client.clone());
    put(&namespaces, json!({"metadata": {"name": name}})).await;
    let accounts = house.informers.of::<ServiceAccount>();
    accounts
        .until(|accounts| accounts.get(Some(name), "default"))
        .await;
    let maps = house.informers.of::<ConfigMap>();
    let map = maps
        .until(|maps| maps.get(Some(name), "kube-root-ca.crt"))
        .await;
    assert_eq!(json!(map.data), json!({"ca.crt": "certificate"}));
    assert!(map.metadata.annotations.as_ref().is_some_and(|all| all["kubernetes.io/description"].starts_with("Contains a CA bundle")));
    namespaces
}

#[tokio::test]
async fn a_namespace_has_an_account_and_certificates_and_takes_all_along() {
    let house = House::new().await;
    let namespaces = make(&house, "other").await;
    let pods: Api<Pod> = Api::namespaced(house.client.clone(), "other");
    let secrets: Api<Secret> = Api::namespaced(house.client.clone(), "other");
    let pod =
        json!({"metadata": {"name": "web"}, "spec": {"containers": [{"name": "c", "image": "a"}]}});
    put(&pods, pod).await;
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"a": "b"}});
    put(&secrets, secret).await;
    namespaces
        .delete("other", &DeleteParams::default())
        .await
        .expect("is deleted");
    house.wait_gone::<Namespace>("other").await;
    assert!(house.informers.of::<Pod>().list_in("other").is_empty());
    assert!(secrets.get_opt("s").await.expect("is asked").is_none());
    assert!(
        house
            .informers
            .of::<ServiceAccount>()
            .list_in("other")
            .is_empty()
    );
}

#[tokio::test]
async fn what_was_deleted_by_mistake_is_made_again() {
    let house = House::new().await;
    make(&house, "other").await;
    let accounts: Api<ServiceAccount> = Api::namespaced(house.client.clone(), "other");
    let old = accounts.get("default").await.expect("is there");
    accounts
        .delete("default", &DeleteParams::default())
        .await
        .expect("is deleted");
    let informer = house.informers.of::<ServiceAccount>();
    let again = informer.until(|accounts| {
        accounts
            .get(Some("other"), "default")
            .filter(|account| account.metadata.uid != old.metadata.uid)
    });
    tokio::time::timeout(PATIENCE, again)
        .await
        .expect("is made again");
}

#[tokio::test]
async fn a_namespace_says_what_keeps_it() {
    let house = House::new().await;
    let namespaces = make(&house, "other").await;
    let maps: Api<ConfigMap> = Api::namespaced(house.client.clone(), "other");
    let map = json!({"metadata": {"name": "held", "finalizers": ["example.com/wait"]}});
    put(&maps, map).await;
    namespaces
        .delete("other", &DeleteParams::default())
        .await
        .expect("is deleted");
    house
        .wait::<Namespace>("other", "says why it stays", |namespace| {
            let conditions = namespace.status.as_ref().and_then(|status| status.conditions.as_ref());
            conditions.into_iter().flatten().any(|condition| {
                condition.message.as_deref() == Some("Some content in the namespace has finalizers remaining: example.com/wait in 1 resource instances")
            })
        })
        .await;
    let patch = json!({"metadata": {"finalizers": null}});
    maps.patch(
        "held",
        &kube::api::PatchParams::default(),
        &kube::api::Patch::Merge(&patch),
    )
    .await
    .expect("is patched");
    house.wait_gone::<Namespace>("other").await;
}

#[tokio::test]
async fn pods_go_before_everything_else() {
    let house = House::new().await;
    let namespaces = make(&house, "other").await;
    let pods: Api<Pod> = Api::namespaced(house.client.clone(), "other");
    let maps: Api<ConfigMap> = Api::namespaced(house.client.clone(), "other");
    let pod = json!({"metadata": {"name": "web", "finalizers": ["example.com/hold"]},
        "spec": {"containers": [{"name": "c", "image": "a"}]}});
    let map = json!({"metadata": {"name": "settings"}});
    put(&pods, pod).await;
    put(&maps, map).await;
    namespaces
        .delete("other", &DeleteParams::default())
        .await
        .expect("is deleted");
    let namespace = house
        .wait::<Namespace>("other", "has been looked at", |namespace| {
            let status = namespace.status.as_ref();
            status.is_some_and(|status| status.conditions.is_some())
        })
        .await;
    let conditions = namespace
        .status
        .clone()
        .and_then(|status| status.conditions);
    let remaining = conditions
        .into_iter()
        .flatten()
        .find(|one| one.type_ == "NamespaceContentRemaining");
    let message = remaining.and_then(|one| one.message).unwrap_or_default();
    assert_eq!(
        message,
        "Some resources are remaining: pods. has 1 resource instances"
    );
    let pod = pods.get("web").await.expect("waits for its finalizer");
    assert!(pod.metadata.deletion_timestamp.is_some());
    let map = maps.get("settings").await.expect("waits for the pod");
    assert_eq!(map.metadata.deletion_timestamp, None);
    let patch = json!({"metadata": {"finalizers": null}});
    let patch = kube::api::Patch::Merge(&patch);
    pods.patch("web", &kube::api::PatchParams::default(), &patch)
        .await
        .expect("is patched");
    house.wait_gone::<Namespace>("other").await;
    assert!(maps.get_opt("settings").await.expect("is asked").is_none());
}
