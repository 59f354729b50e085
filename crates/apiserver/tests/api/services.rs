//! Addresses and ports of Services.

use serde_json::{Value, json};

use crate::house::{Answer, House};

const SERVICES: &str = "/api/v1/namespaces/default/services";

async fn make(house: &House, name: &str, spec: Value) -> Answer {
    house
        .post(SERVICES, json!({"metadata": {"name": name}, "spec": spec}))
        .await
}

#[tokio::test]
async fn an_address_belongs_to_one_service_and_comes_back() {
    let house = House::new().await;
    let ports = json!([{"port": 80}]);
    let first = make(
        &house,
        "a",
        json!({"ports": ports, "clusterIP": "10.96.5.5"}),
    )
    .await
    .expect_code(201);
    assert_eq!(first.body["spec"]["clusterIPs"], json!(["10.96.5.5"]));
    let taken = make(
        &house,
        "b",
        json!({"ports": ports, "clusterIP": "10.96.5.5"}),
    )
    .await;
    taken.expect_failure(422, "Invalid", "Service \"b\" is invalid: spec.clusterIPs: Invalid value: [\"10.96.5.5\"]: failed to allocate IP 10.96.5.5: provided IP is already allocated");
    let outside = make(
        &house,
        "b",
        json!({"ports": ports, "clusterIP": "11.96.5.5"}),
    )
    .await;
    outside.expect_failure(422, "Invalid", "Service \"b\" is invalid: spec.clusterIPs: Invalid value: [\"11.96.5.5\"]: failed to allocate IP 11.96.5.5: the provided IP (11.96.5.5) is not in the valid range. The range of valid IPs is 10.96.0.0/16");
    house
        .delete(&format!("{SERVICES}/a"), Value::Null)
        .await
        .expect_code(200);
    make(
        &house,
        "b",
        json!({"ports": ports, "clusterIP": "10.96.5.5"}),
    )
    .await
    .expect_code(201);
}

#[tokio::test]
async fn node_ports_are_allocated_checked_and_given_back() {
    let house = House::new().await;
    let chosen = make(&house, "a", json!({"type": "NodePort", "ports": [{"name": "x", "port": 80}, {"name": "y", "port": 80, "protocol": "UDP"}]})).await.expect_code(201);
    let port = |index: usize| {
        chosen.body["spec"]["ports"][index]["nodePort"]
            .as_u64()
            .expect("a port")
    };
    assert!((30000..=32767).contains(&port(0)));
    assert_eq!(port(0), port(1));
    let asked =
        |number: u64| json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": number}]});
    make(&house, "b", asked(port(0))).await.expect_failure(
        422,
        "Invalid",
        &format!("Service \"b\" is invalid: spec.ports[0].nodePort: Invalid value: {}: provided port is already allocated", port(0)),
    );
    let path = format!("{SERVICES}/a");
    house.merge(&path, json!({"spec": {"type": "ClusterIP", "ports": [{"name": "x", "port": 80, "nodePort": null}]}})).await.expect_code(200);
    make(&house, "b", asked(port(0))).await.expect_code(201);
}

#[tokio::test]
async fn a_small_range_runs_out_without_leaks() {
    let house = House::with(|config| {
        config.service_cidr = "10.0.0.0/29".parse().expect("a range");
    })
    .await;
    for round in 0..3 {
        for index in 0..6 {
            make(
                &house,
                &format!("s{index}"),
                json!({"ports": [{"port": 80}]}),
            )
            .await
            .expect_code(201);
        }
        let full = make(&house, "more", json!({"ports": [{"port": 80}]})).await;
        assert_eq!(full.code, 500, "round {round}: {}", full.text);
        for index in 0..6 {
            house
                .delete(&format!("{SERVICES}/s{index}"), Value::Null)
                .await
                .expect_code(200);
        }
    }
}

#[tokio::test]
async fn the_api_itself_is_a_service() {
    let house = House::new().await;
    let address = "192.168.7.1".parse().expect("an address");
    house
        .server
        .bootstrap_service(&[address], 6443)
        .await
        .expect("written");
    house
        .server
        .bootstrap_service(&[address], 6444)
        .await
        .expect("written again");
    let service = house
        .get(&format!("{SERVICES}/kubernetes"))
        .await
        .expect_code(200);
    assert_eq!(service.body["spec"]["clusterIP"], "10.96.0.1");
    let slice = house
        .get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes")
        .await
        .expect_code(200);
    assert_eq!(slice.body["ports"][0]["port"], 6444);
    assert_eq!(
        slice.body["endpoints"][0]["addresses"],
        json!(["192.168.7.1"])
    );
}
