//! What becomes of pods.

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::{House, condition, container};

#[tokio::test(flavor = "multi_thread")]
async fn the_node_is_ready_when_the_agent_has_started() {
    let house = House::new().await;
    let node = house.node().await;
    let conditions = node["status"]["conditions"].as_array().expect("conditions");
    let ready = conditions.iter().find(|known| known["type"] == "Ready");
    assert_eq!(ready.expect("Ready")["reason"], "KubeletReady");
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "n1");
    assert_eq!(node["status"]["nodeInfo"]["operatingSystem"], "linux");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_from_its_creation_to_its_end() {
    let house = House::new().await;
    let spec = json!({"containers": [{"name": "c", "image": "app:1", "resources": {"requests": {"cpu": "10m"}}}]});
    house.run("web", spec).await;
    let pod = house.until_ready("web").await;
    let status = &pod["status"];
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["podIP"], "10.244.0.2");
    assert_eq!(status["podIPs"], json!([{"ip": "10.244.0.2"}]));
    assert_eq!(status["hostIP"], "192.0.2.1");
    assert_eq!(status["qosClass"], "Burstable");
    let conditions = status["conditions"].as_array().expect("conditions");
    let order: Vec<_> = conditions
        .iter()
        .map(|known| known["type"].as_str().expect("a type"))
        .collect();
    assert_eq!(
        order,
        [
            "PodReadyToStartContainers",
            "Initialized",
            "Ready",
            "ContainersReady",
            "PodScheduled"
        ]
    );
    let state = container(&pod, "c");
    assert_eq!(state["allocatedResources"], json!({"cpu": "10m"}));
    assert!(state["state"]["running"]["startedAt"].is_string());
    assert!(
        state["containerID"]
            .as_str()
            .expect("an id")
            .starts_with("wharf://")
    );
    for (reason, message) in [
        (
            "Pulled",
            "Container image \"app:1\" already present on machine and can be accessed by the pod",
        ),
        ("Created", "Container created"),
        ("Started", "Container started"),
    ] {
        house.until_said("web", reason, message).await;
    }
    let uid = pod["metadata"]["uid"].as_str().expect("a uid");
    let own = house.directory.path().join("pods").join(uid);
    assert!(own.is_dir());
    let token = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";
    assert_eq!(house.engine.read("c", token).as_deref(), Some("default"));
    house.delete("web").await;
    house.until_gone("web").await;
    house
        .until_said("web", "Killing", "Stopping container c")
        .await;
    assert_eq!(house.engine.sandbox_count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_deleted_pod_is_left_on_the_disk() {
    let house = House::new().await;
    house
        .run("web", json!({"containers": [{"name": "c", "image": "app:1"}], "volumes": [{"name": "v", "emptyDir": {}}]}))
        .await;
    house.until_ready("web").await;
    house.delete("web").await;
    house.until_gone("web").await;
    let is_empty = |directory: &str| {
        let entries = std::fs::read_dir(house.directory.path().join(directory));
        entries.expect("is there").next().is_none()
    };
    // The object goes first, its directories right after.
    let waiting = async {
        while !is_empty("pods") || !is_empty("log/pods") {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(crate::PATIENCE, waiting)
        .await
        .expect("the directories go");
}

#[tokio::test(flavor = "multi_thread")]
async fn init_containers_then_a_sidecar_beside_a_job() {
    let house = House::new().await;
    house
        .run(
            "job",
            json!({
                "restartPolicy": "Never",
                "initContainers": [
                    {"name": "i", "image": "app:1", "command": ["exit", "0"]},
                    {"name": "s", "image": "app:1", "restartPolicy": "Always"},
                ],
                "containers": [{"name": "c", "image": "app:1"}],
            }),
        )
        .await;
    let pod = house.until_ready("job").await;
    assert_eq!(
        container(&pod, "i")["state"]["terminated"]["reason"],
        "Completed"
    );
    assert_eq!(container(&pod, "s")["started"], true);
    house.engine.write("c", "/dev/termination-log", "bye\n");
    house.engine.exit("c", 0);
    let pod = house.until_phase("job", "Succeeded").await;
    let ended = &container(&pod, "c")["state"]["terminated"];
    assert_eq!(
        (&ended["reason"], &ended["message"]),
        (&json!("Completed"), &json!("bye\n"))
    );
    assert!(container(&pod, "s")["state"]["terminated"].is_object());
    assert_eq!(condition(&pod, "Ready")["reason"], "PodCompleted");
    assert_eq!(condition(&pod, "Initialized")["reason"], "PodCompleted");
    house.delete("job").await;
    house.until_gone("job").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_init_container_that_fails_for_good() {
    let house = House::new().await;
    house
        .run(
            "job",
            json!({
                "restartPolicy": "Never",
                "initContainers": [{"name": "i", "image": "app:1", "command": ["exit", "4"]}],
                "containers": [{"name": "c", "image": "app:1"}],
            }),
        )
        .await;
    let pod = house.until_phase("job", "Failed").await;
    assert_eq!(container(&pod, "i")["state"]["terminated"]["exitCode"], 4);
    assert_eq!(
        container(&pod, "c")["state"]["waiting"]["reason"],
        "PodInitializing"
    );
    let message = &condition(&pod, "Initialized")["message"];
    assert_eq!(message, "containers with incomplete status: [i]");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_crashes_waits_longer_each_time() {
    let house = House::new().await;
    let spec = json!({"containers": [{"name": "c", "image": "app:1", "command": ["exit", "3"]}]});
    house.run("web", spec).await;
    let pod = house
        .until("web", "a crash loop", |pod| {
            container(pod, "c")["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        })
        .await;
    let state = container(&pod, "c");
    assert_eq!(state["restartCount"], 1);
    assert_eq!(state["lastState"]["terminated"]["exitCode"], 3);
    let uid = pod["metadata"]["uid"].as_str().expect("a uid");
    assert_eq!(
        state["state"]["waiting"]["message"],
        format!("back-off 10s restarting failed container=c pod=web_default({uid})")
    );
    assert_eq!(pod["status"]["phase"], "Running");
    let message = format!("Back-off restarting failed container c in pod web_default({uid})");
    house.until_said("web", "BackOff", &message).await;
    house.delete("web").await;
    house.until_gone("web").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_does_not_exist() {
    let house = House::new().await;
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "app:1", "command": ["missing"]}]});
    house.run("web", spec).await;
    let pod = house.until_phase("web", "Failed").await;
    let ended = &container(&pod, "c")["state"]["terminated"];
    assert_eq!(ended["reason"], "StartError");
    assert_eq!(ended["exitCode"], 128);
    assert_eq!(ended["startedAt"], "1970-01-01T00:00:00Z");
    let message = "OCI runtime create failed: unable to start container process: exec: \"missing\": executable file not found in $PATH";
    assert_eq!(ended["message"], message);
    // Said although the pod ends at once.
    house
        .until_said("web", "Failed", &format!("Error: {message}"))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_may_come_later() {
    let house = House::new().await;
    house
        .run(
            "web",
            json!({
                "containers": [{
                    "name": "c", "image": "app:1",
                    "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "env", "key": "a"}}}],
                    "volumeMounts": [{"name": "v", "mountPath": "/v"}],
                }],
                "volumes": [{"name": "v", "configMap": {"name": "files"}}],
            }),
        )
        .await;
    let failed = "MountVolume.SetUp failed for volume \"v\" : configmap \"files\" not found";
    house.until_said("web", "FailedMount", failed).await;
    let pod = house
        .until("web", "a container that is being created", |pod| {
            container(pod, "c")["state"]["waiting"]["reason"] == "ContainerCreating"
        })
        .await;
    assert_eq!(
        condition(&pod, "PodReadyToStartContainers")["status"],
        "False"
    );
    house
        .create::<ConfigMap>(json!({"metadata": {"name": "files"}, "data": {"f": "one"}}))
        .await;
    let pod = house
        .until("web", "a config error", |pod| {
            container(pod, "c")["state"]["waiting"]["reason"] == "CreateContainerConfigError"
        })
        .await;
    assert_eq!(
        container(&pod, "c")["state"]["waiting"]["message"],
        "configmap \"env\" not found"
    );
    house
        .create::<ConfigMap>(json!({"metadata": {"name": "env"}, "data": {"b": "x"}}))
        .await;
    house
        .until("web", "a missing key", |pod| {
            container(pod, "c")["state"]["waiting"]["message"]
                == "couldn't find key a in ConfigMap default/env"
        })
        .await;
    let maps: Api<ConfigMap> = house.api();
    let patch = |data: serde_json::Value| Patch::Merge(json!({ "data": data }));
    let params = PatchParams::default();
    maps.patch("env", &params, &patch(json!({"a": "1"})))
        .await
        .expect("patched");
    house.until_ready("web").await;
    let (_, spec) = house.engine.containers("c").pop().expect("it runs");
    assert!(spec.env.contains(&("A".to_owned(), "1".to_owned())));
    assert_eq!(house.engine.read("c", "/v/f").as_deref(), Some("one"));
    maps.patch("files", &params, &patch(json!({"f": "two"})))
        .await
        .expect("patched");
    let waiting = async {
        while house.engine.read("c", "/v/f").as_deref() != Some("two") {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let updated = tokio::time::timeout(crate::PATIENCE, waiting).await;
    updated.expect("the file follows the object");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_loaded_later() {
    let house = House::new().await;
    let spec = json!({"containers": [{"name": "c", "image": "late:1"}]});
    house.run("web", spec).await;
    let pod = house
        .until("web", "back-off", |pod| {
            container(pod, "c")["state"]["waiting"]["reason"] == "ImagePullBackOff"
        })
        .await;
    let message = container(&pod, "c")["state"]["waiting"]["message"].as_str();
    assert!(message.expect("a message").contains("wharf image load"));
    house
        .until_said("web", "Failed", "Error: ErrImagePull")
        .await;
    house.engine.load("late:1");
    house.agent.images_changed();
    house.until_ready("web").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_must_not_be_pulled_or_have_no_name() {
    let house = House::new().await;
    for (name, image, reason) in [
        ("never", "late:1", "ErrImageNeverPull"),
        ("odd", "not an image", "InvalidImageName"),
    ] {
        let spec =
            json!({"containers": [{"name": "c", "image": image, "imagePullPolicy": "Never"}]});
        house.run(name, spec).await;
        house
            .until(name, reason, |pod| {
                container(pod, "c")["state"]["waiting"]["reason"] == reason
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_gate_traffic_and_restart() {
    let house = House::new().await;
    let probe = |command: serde_json::Value| json!({"exec": {"command": command}, "periodSeconds": 1, "failureThreshold": 1});
    house
        .run(
            "web",
            json!({"containers": [
                {"name": "c", "image": "app:1", "readinessProbe": probe(json!(["flag"]))},
                {"name": "d", "image": "app:1", "livenessProbe": probe(json!(["exit", "1"]))},
            ]}),
        )
        .await;
    house
        .until_said(
            "web",
            "Killing",
            "Container d failed liveness probe, will be restarted",
        )
        .await;
    house
        .until("web", "a restart", |pod| {
            container(pod, "d")["restartCount"] == 1
        })
        .await;
    let pod = house.pod("web").await.expect("is there");
    assert_eq!(container(&pod, "c")["ready"], false);
    assert!(container(&pod, "c")["state"]["running"].is_object());
    house.engine.set_flag(true);
    house
        .until("web", "readiness", |pod| {
            container(pod, "c")["ready"] == true
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_startup_probe_comes_before_the_others() {
    let house = House::new().await;
    let startup =
        json!({"exec": {"command": ["flag"]}, "periodSeconds": 1, "failureThreshold": 30});
    let spec = json!({"containers": [{"name": "c", "image": "app:1", "startupProbe": startup}]});
    house.run("web", spec).await;
    let running = |pod: &serde_json::Value| container(pod, "c")["state"]["running"].is_object();
    let pod = house.until("web", "a start", running).await;
    assert_eq!(container(&pod, "c")["started"], false);
    house.engine.set_flag(true);
    house.until_ready("web").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_image_replaces_the_container() {
    let house = House::new().await;
    let spec = json!({"containers": [{"name": "c", "image": "app:1"}]});
    house.run("web", spec).await;
    house.until_ready("web").await;
    let pods: kube::Api<Pod> = house.api();
    let before = pods.get("web").await.expect("is read");
    let version = before.metadata.resource_version.unwrap_or_default();
    let seen = pods.watch(&Default::default(), &version).await;
    let mut seen = std::pin::pin!(seen.expect("a watch"));
    let image = json!({"spec": {"containers": [{"name": "c", "image": "app:2"}]}});
    house.patch("web", image).await;
    let pod = house
        .until("web", "the new image", |pod| {
            let state = container(pod, "c");
            state["restartCount"] == 1 && state["state"]["running"].is_object()
        })
        .await;
    // It was back at once: nobody has seen it away.
    loop {
        let event = seen.next().await.expect("an event").expect("an event");
        let kube::core::WatchEvent::Modified(then) = event else {
            panic!("{event:?}");
        };
        let then = json!(then);
        assert_eq!(condition(&then, "Ready")["status"], "True", "{then:#}");
        if then["metadata"]["resourceVersion"] == pod["metadata"]["resourceVersion"] {
            break;
        }
    }
    assert_eq!(container(&pod, "c")["image"], "docker.io/library/app:2");
    house
        .until_said(
            "web",
            "Killing",
            "Container c definition changed, will be restarted",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_a_pod() {
    let house = House::new().await;
    let spec = json!({"activeDeadlineSeconds": 1, "containers": [{"name": "c", "image": "app:1"}]});
    house.run("web", spec).await;
    let pod = house.until_phase("web", "Failed").await;
    assert_eq!(pod["status"]["reason"], "DeadlineExceeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_does_not_fit_fails() {
    let house = House::new().await;
    let spec = json!({"containers": [{"name": "c", "image": "app:1", "resources": {"requests": {"cpu": "1000"}}}]});
    house.run("web", spec).await;
    let pod = house.until_phase("web", "Failed").await;
    assert_eq!(pod["status"]["reason"], "OutOfcpu");
    let message = pod["status"]["message"].as_str().expect("a message");
    assert!(message.starts_with(
        "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000000, "
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_in_files_and_variables() {
    let house = House::new().await;
    house
        .create::<k8s_openapi::api::core::v1::Secret>(
            json!({"metadata": {"name": "s"}, "stringData": {
                "user": "me", "word": "open", "data-1": "one", "data.2": "two",
            }}),
        )
        .await;
    house
        .run(
            "web",
            json!({
                "containers": [{
                    "name": "c", "image": "app:1",
                    "envFrom": [
                        {"prefix": "S_", "secretRef": {"name": "s"}},
                        {"prefix": "p-", "secretRef": {"name": "s"}},
                    ],
                    "env": [
                        {"name": "GREETING", "value": "$(S_user)@$(HOST)"},
                        {"name": "of any: kind", "value": "$(p-data-1)"},
                    ],
                    "volumeMounts": [
                        {"name": "v", "mountPath": "/v"},
                        {"name": "e", "mountPath": "/e", "subPath": "a/b"},
                    ],
                }],
                "volumes": [
                    {"name": "v", "secret": {"secretName": "s", "items": [{"key": "word", "path": "deep/word"}]}},
                    {"name": "e", "emptyDir": {"medium": "Memory"}},
                ],
            }),
        )
        .await;
    house.until_ready("web").await;
    assert_eq!(
        house.engine.read("c", "/v/deep/word").as_deref(),
        Some("open")
    );
    let (_, spec) = house.engine.containers("c").pop().expect("it runs");
    let variable = |name: &str| {
        let mut found = spec.env.iter().filter(|(known, _)| known == name);
        found.next().map(|(_, value)| value.as_str())
    };
    assert_eq!(variable("S_word"), Some("open"));
    assert_eq!(variable("GREETING"), Some("me@$(HOST)"));
    // Names need not be such as a shell could use.
    assert_eq!(variable("S_data.2"), Some("two"));
    assert_eq!(variable("p-data-1"), Some("one"));
    assert_eq!(variable("of any: kind"), Some("one"));
    house.delete("web").await;
    house.until_gone("web").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_daemon_takes_up_what_runs() {
    let mut house = House::new().await;
    for name in ["stays", "ends", "goes"] {
        let spec =
            json!({"restartPolicy": "Never", "containers": [{"name": name, "image": "app:1"}]});
        house.run(name, spec).await;
        house.until_ready(name).await;
    }
    let before = house.engine.containers("stays");
    house
        .restart(async |house: &House| {
            house.engine.exit("ends", 7);
            let pods: Api<k8s_openapi::api::core::v1::Pod> = house.api();
            let now = kube::api::DeleteParams::default().grace_period(0);
            pods.delete("goes", &now).await.expect("is deleted");
        })
        .await;
    let pod = house.until_phase("ends", "Failed").await;
    assert_eq!(
        container(&pod, "ends")["state"]["terminated"]["exitCode"],
        7
    );
    let pod = house.until_ready("stays").await;
    assert_eq!(container(&pod, "stays")["restartCount"], 0);
    let id = |containers: &[(engine::ContainerId, engine::ContainerSpec)]| containers[0].0.clone();
    assert_eq!(id(&house.engine.containers("stays")), id(&before));
    let waiting = async {
        while !house.engine.containers("goes").is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let ended = tokio::time::timeout(crate::PATIENCE, waiting).await;
    ended.expect("a sandbox without a pod is removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pods_at_once() {
    let house = House::new().await;
    for number in 0..30 {
        let spec = json!({"containers": [{"name": "c", "image": "app:1"}]});
        house.run(&format!("web-{number}"), spec).await;
    }
    for number in 0..30 {
        house.until_ready(&format!("web-{number}")).await;
    }
}
