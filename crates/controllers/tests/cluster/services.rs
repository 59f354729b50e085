//! The addresses behind a Service.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams};
use serde_json::{Value, json};

use crate::House;

fn pod(name: &str, labels: Value) -> Value {
    json!({"metadata": {"name": name, "labels": labels}, "spec": {"containers": [
        {"name": "c", "image": "a", "ports": [{"name": "http", "containerPort": 8080}]}]}})
}

fn service(name: &str, spec: Value) -> Value {
    let mut service = json!({"metadata": {"name": name, "labels": {"svc": "a"}},
        "spec": {"selector": {"app": "web"}, "ports": [{"name": "web", "port": 80, "targetPort": "http"}]}});
    for (field, value) in spec.as_object().into_iter().flatten() {
        service["spec"][field] = value.clone();
    }
    service
}

/// Each endpoint as `pod ready/serving/terminating`, sorted.
fn endpoints(slices: &[Arc<EndpointSlice>], service: &str) -> Vec<String> {
    let mine = slices.iter().filter(|slice| {
        let labels = slice.metadata.labels.as_ref();
        labels
            .and_then(|labels| labels.get("kubernetes.io/service-name"))
            .is_some_and(|name| name == service)
    });
    let all = mine.flat_map(|slice| slice.endpoints.iter().flatten());
    let mut texts: Vec<_> = all
        .map(|endpoint| {
            let name = endpoint
                .target_ref
                .as_ref()
                .and_then(|target| target.name.clone())
                .unwrap_or_default();
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            let flag = |value: Option<bool>| u8::from(value.unwrap_or_default());
            format!(
                "{name} {}{}{}",
                flag(conditions.ready),
                flag(conditions.serving),
                flag(conditions.terminating)
            )
        })
        .collect();
    texts.sort();
    texts
}

#[tokio::test]
async fn endpoints_follow_the_pods() {
    let house = House::new().await;
    house.create::<Service>(service("web", json!({}))).await;
    let slices = house
        .wait_all::<EndpointSlice>("an empty slice", |slices| {
            slices
                .iter()
                .any(|slice| slice.metadata.generate_name.as_deref() == Some("web-"))
        })
        .await;
    let empty = slices
        .iter()
        .find(|slice| slice.metadata.generate_name.as_deref() == Some("web-"))
        .expect("is there");
    assert_eq!((&empty.endpoints, &empty.ports), (&None, &None));
    house
        .create::<Pod>(pod("good", json!({"app": "web"})))
        .await;
    house
        .create::<Pod>(pod("bad", json!({"app": "web", "stuck": "yes"})))
        .await;
    house
        .create::<Pod>(pod("other", json!({"app": "other"})))
        .await;
    let slices = house
        .wait_all::<EndpointSlice>("both are in", |slices| {
            endpoints(slices, "web") == ["bad 000", "good 110"]
        })
        .await;
    let mine: Vec<_> = slices
        .iter()
        .filter(|slice| slice.metadata.generate_name.as_deref() == Some("web-"))
        .collect();
    assert_eq!(mine.len(), 1, "the empty slice was filled");
    assert_eq!(
        json!(mine[0].ports),
        json!([{"name": "web", "port": 8080, "protocol": "TCP"}])
    );
    assert_eq!(
        json!(mine[0].metadata.labels),
        json!({"endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        "kubernetes.io/service-name": "web", "svc": "a"})
    );
    let good = mine[0]
        .endpoints
        .iter()
        .flatten()
        .find(|endpoint| {
            endpoint
                .conditions
                .as_ref()
                .is_some_and(|all| all.ready == Some(true))
        })
        .expect("is there");
    assert_eq!(good.node_name.as_deref(), Some("node-1"));
    let legacy =
        house
            .wait::<Endpoints>("web", "has both", |endpoints| {
                endpoints.subsets.iter().flatten().any(|subset| {
                    subset.addresses.is_some() && subset.not_ready_addresses.is_some()
                })
            })
            .await;
    let subsets = legacy.subsets.clone().unwrap_or_default();
    assert_eq!(subsets.len(), 1);
    assert_eq!(
        json!(subsets[0].ports),
        json!([{"name": "web", "port": 8080, "protocol": "TCP"}])
    );
    assert_eq!(
        json!(legacy.metadata.labels),
        json!({"endpoints.kubernetes.io/managed-by": "endpoint-controller", "svc": "a"})
    );

    let mut lingering = pod("lingering", json!({"app": "web"}));
    lingering["metadata"]["annotations"] = json!({"linger": "yes"});
    house.create::<Pod>(lingering).await;
    house
        .wait_all::<EndpointSlice>("a third", |slices| endpoints(slices, "web").len() == 3)
        .await;
    let pods: Api<Pod> = house.api();
    pods.delete("lingering", &DeleteParams::default().grace_period(30))
        .await
        .expect("is deleted");
    house
        .wait_all::<EndpointSlice>("it says that it goes", |slices| {
            endpoints(slices, "web").contains(&"lingering 011".to_owned())
        })
        .await;
    house
        .patch::<Pod>("good", json!({"metadata": {"labels": {"app": "other"}}}))
        .await;
    house
        .wait_all::<EndpointSlice>("it is out", |slices| {
            endpoints(slices, "web") == ["bad 000", "lingering 011"]
        })
        .await;

    let services: Api<Service> = house.api();
    services
        .delete("web", &DeleteParams::default())
        .await
        .expect("is deleted");
    house.wait_gone::<Endpoints>("web").await;
    house
        .wait_all::<EndpointSlice>("the slices are gone", |slices| {
            endpoints(slices, "web").is_empty()
                && !slices
                    .iter()
                    .any(|slice| slice.metadata.generate_name.as_deref() == Some("web-"))
        })
        .await;
}

#[tokio::test]
async fn a_headless_service_may_announce_before_ready() {
    let house = House::new().await;
    house
        .create::<Service>(service(
            "head",
            json!({"clusterIP": "None", "publishNotReadyAddresses": true, "ports": null}),
        ))
        .await;
    house
        .create::<Pod>(pod("bad", json!({"app": "web", "stuck": "yes"})))
        .await;
    let slices = house
        .wait_all::<EndpointSlice>("is announced", |slices| {
            endpoints(slices, "head") == ["bad 100"]
        })
        .await;
    let slice = slices
        .iter()
        .find(|slice| slice.metadata.generate_name.as_deref() == Some("head-"))
        .expect("is there");
    assert_eq!(slice.ports, None);
    assert_eq!(
        slice
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get("service.kubernetes.io/headless"))
            .map(String::as_str),
        Some("")
    );
    house
        .wait::<Endpoints>("head", "has the address", |endpoints| {
            endpoints
                .subsets
                .iter()
                .flatten()
                .any(|subset| subset.addresses.is_some() && subset.ports.is_none())
        })
        .await;
}

#[tokio::test]
async fn endpoints_that_people_write_are_mirrored() {
    let house = House::new().await;
    let service = json!({"metadata": {"name": "db"}, "spec": {"ports": [{"port": 80}]}});
    house.create::<Service>(service).await;
    let subsets = |address: &str| json!([{"addresses": [{"ip": address}], "ports": [{"name": "sql", "port": 5432}]}]);
    house
        .create::<Endpoints>(json!({"metadata": {"name": "db"}, "subsets": subsets("10.9.0.1")}))
        .await;
    let has = |address: Option<&'static str>| {
        move |slices: &[Arc<EndpointSlice>]| {
            let mine = slices
                .iter()
                .filter(|slice| slice.metadata.generate_name.as_deref() == Some("db-"));
            let addresses = mine.flat_map(|slice| slice.endpoints.iter().flatten());
            let addresses: Vec<_> = addresses.flat_map(|one| &one.addresses).collect();
            addresses == address.into_iter().collect::<Vec<_>>()
        }
    };
    house
        .wait_all::<EndpointSlice>("is mirrored", has(Some("10.9.0.1")))
        .await;
    house
        .patch::<Endpoints>("db", json!({"subsets": subsets("10.9.0.2")}))
        .await;
    house
        .wait_all::<EndpointSlice>("the change is mirrored", has(Some("10.9.0.2")))
        .await;
    let skipped = |value: Value| json!({"metadata": {"labels": {"endpointslice.kubernetes.io/skip-mirror": value}}});
    house.patch::<Endpoints>("db", skipped(json!("true"))).await;
    house
        .wait_all::<EndpointSlice>("is skipped", has(None))
        .await;
    house.patch::<Endpoints>("db", skipped(json!(null))).await;
    house
        .wait_all::<EndpointSlice>("is mirrored again", has(Some("10.9.0.2")))
        .await;
    let endpoints: Api<Endpoints> = house.api();
    endpoints
        .delete("db", &DeleteParams::default())
        .await
        .expect("is deleted");
    house
        .wait_all::<EndpointSlice>("goes with them", has(None))
        .await;
}

#[tokio::test]
async fn endpoints_go_with_their_service_whoever_wrote_them() {
    let house = House::new().await;
    let subsets = json!([{"addresses": [{"ip": "10.9.0.1"}], "ports": [{"port": 5432}]}]);
    for name in ["db", "lone"] {
        let endpoints = json!({"metadata": {"name": name}, "subsets": subsets});
        house.create::<Endpoints>(endpoints).await;
    }
    let service = json!({"metadata": {"name": "db"}, "spec": {"ports": [{"port": 5432}]}});
    house.create::<Service>(service).await;
    let services: Api<Service> = house.api();
    services
        .delete("db", &DeleteParams::default())
        .await
        .expect("is deleted");
    house.wait_gone::<Endpoints>("db").await;
    let endpoints: Api<Endpoints> = house.api();
    let lone = endpoints.get_opt("lone").await.expect("is asked");
    assert!(lone.is_some(), "it never had a Service");
}

/// What Go's clients write where no time is set.
#[tokio::test]
async fn a_service_with_a_time_that_is_null_holds_nobody_up() {
    let house = House::new().await;
    house.create::<Service>(service("odd", json!({}))).await;
    let services: Api<Service> = house.api();
    let condition = json!({"type": "Odd", "status": "True", "reason": "Test", "message": "", "lastTransitionTime": null});
    let status = json!({"status": {"conditions": [condition]}});
    let params = kube::api::PatchParams::default();
    // The answer itself cannot be read by this client.
    let _ = services
        .patch_status("odd", &params, &kube::api::Patch::Merge(&status))
        .await;
    house.create::<Service>(service("web", json!({}))).await;
    house
        .wait_all::<EndpointSlice>("the next one is served", |slices| {
            slices
                .iter()
                .any(|slice| slice.metadata.generate_name.as_deref() == Some("web-"))
        })
        .await;
}
