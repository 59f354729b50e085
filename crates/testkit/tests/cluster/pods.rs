//! Pods on their node: crashes, probes, endings, and who reaches them.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use testkit::{Behaviour, Cluster};

use crate::{cluster, web};

async fn container(cluster: &Cluster, pod: &str) -> ContainerStatus {
    let pod = cluster.get::<Pod>(pod).await.expect("it is there");
    let status = pod.status.clone().unwrap_or_default();
    let mut containers = status.container_statuses.unwrap_or_default();
    containers.pop().expect("it has a container")
}

fn waiting(status: &ContainerStatus) -> Option<String> {
    status.state.as_ref()?.waiting.as_ref()?.reason.clone()
}

async fn phase(cluster: &Cluster, pod: &str) -> String {
    let pod = cluster.get::<Pod>(pod).await.expect("it is there");
    let phase = pod.status.as_ref().and_then(|status| status.phase.clone());
    phase.unwrap_or_default()
}

fn pod(name: &str, image: &str, more: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  {more}
  containers:
  - {{name: c, image: \"{image}\"}}
"
    )
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_backs_off_and_counts() {
    let cluster = cluster().await;
    let crash = Behaviour::exits(Duration::from_secs(1), 3);
    cluster.script().set("crash:1", crash);
    cluster.apply(&pod("p", "crash:1", "")).await;
    cluster.pass(Duration::from_secs(8)).await;
    let status = container(&cluster, "p").await;
    assert_eq!(
        (status.restart_count, waiting(&status).as_deref()),
        (1, Some("CrashLoopBackOff"))
    );
    // 10, 20, 40, 80 s between.
    cluster.pass(Duration::from_secs(172)).await;
    let status = container(&cluster, "p").await;
    assert_eq!(
        (status.restart_count, waiting(&status).as_deref()),
        (5, Some("CrashLoopBackOff"))
    );
    let last = status.last_state.and_then(|state| state.terminated);
    assert_eq!(last.map(|last| last.exit_code), Some(3));
    let events = cluster.events("p").await;
    let back_off = events.iter().filter(|event| event.starts_with("BackOff:"));
    assert!(back_off.count() > 0, "{events:#?}");
}

#[tokio::test(start_paused = true)]
async fn pods_end_by_their_restart_policy() {
    let cluster = cluster().await;
    cluster
        .script()
        .set("done:1", Behaviour::exits(Duration::from_secs(2), 0));
    cluster
        .script()
        .set("fails:1", Behaviour::exits(Duration::from_secs(2), 7));
    cluster
        .apply(&pod("done", "done:1", "restartPolicy: Never"))
        .await;
    cluster
        .apply(&pod("fails", "fails:1", "restartPolicy: Never"))
        .await;
    cluster
        .apply(&pod(
            "done-on-failure",
            "done:1",
            "restartPolicy: OnFailure",
        ))
        .await;
    cluster.pass(Duration::from_secs(5)).await;
    cluster.settle().await;
    assert_eq!(phase(&cluster, "done").await, "Succeeded");
    assert_eq!(phase(&cluster, "fails").await, "Failed");
    assert_eq!(phase(&cluster, "done-on-failure").await, "Succeeded");
    assert_eq!(cluster.counts().starts, 3);
}

#[tokio::test(start_paused = true)]
async fn a_missing_image_waits_and_comes() {
    let cluster = cluster().await;
    cluster.apply(&pod("p", "late:1", "")).await;
    cluster.settle().await;
    let reason = waiting(&container(&cluster, "p").await);
    assert_eq!(reason.as_deref(), Some("ImagePullBackOff"));
    assert_eq!(phase(&cluster, "p").await, "Pending");
    cluster.script().set("late:1", Behaviour::default());
    cluster.images_changed();
    cluster.settle().await;
    assert_eq!(phase(&cluster, "p").await, "Running");
}

#[tokio::test(start_paused = true)]
async fn deletion_waits_for_the_grace_and_no_longer() {
    let cluster = cluster().await;
    let lingering = Behaviour {
        stop_takes: Duration::from_secs(3600),
        ..Behaviour::default()
    };
    cluster.script().set("stays:1", lingering);
    cluster
        .apply(&pod("p", "stays:1", "terminationGracePeriodSeconds: 20"))
        .await;
    cluster.settle().await;
    cluster.delete(("v1", "Pod", "p"), "Background").await;
    cluster.pass(Duration::from_secs(15)).await;
    assert_eq!(phase(&cluster, "p").await, "Running");
    cluster.pass(Duration::from_secs(10)).await;
    assert!(cluster.get::<Pod>("p").await.is_none());
    assert_eq!(cluster.engine("node-1").sandbox_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lost_sandbox_is_made_again() {
    let cluster = cluster().await;
    cluster.apply(&pod("p", "web:1", "")).await;
    cluster.settle().await;
    let before = cluster.get::<Pod>("p").await.expect("it is there");
    let uid = before.metadata.uid.clone().expect("it has a uid");
    cluster
        .engine("node-1")
        .lose_sandbox(&engine::SandboxId(uid));
    cluster.pass(Duration::from_secs(60)).await;
    let status = container(&cluster, "p").await;
    assert_eq!((status.restart_count, status.ready), (1, true));
    assert_eq!(cluster.counts().sandboxes, 2);
}

const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
";

/// Addresses of the Service `web` that are ready, and that are not.
async fn endpoints(cluster: &Cluster) -> (usize, usize) {
    let slices = cluster.list::<EndpointSlice>("default").await;
    let of_web = slices.iter().filter(|slice| {
        let labels = slice.metadata.labels.as_ref();
        labels.is_some_and(|labels| {
            labels.get("kubernetes.io/service-name").map(String::as_str) == Some("web")
        })
    });
    let endpoints: Vec<bool> = of_web
        .flat_map(|slice| slice.endpoints.iter().flatten())
        .map(|endpoint| {
            let conditions = endpoint.conditions.as_ref();
            conditions.and_then(|conditions| conditions.ready) == Some(true)
        })
        .collect();
    let ready = endpoints.iter().filter(|ready| **ready).count();
    (ready, endpoints.len() - ready)
}

#[tokio::test(start_paused = true)]
async fn readiness_decides_who_is_reached() {
    let cluster = cluster().await;
    let probe = web(3, "web:1", "").replace(
        "image: \"web:1\"}",
        "image: \"web:1\", readinessProbe: {exec: {command: [ready]}, periodSeconds: 2, failureThreshold: 2}}",
    );
    cluster.script().change("web:1", |web| web.exec_code = 1);
    cluster.apply(SERVICE).await;
    cluster.apply(&probe).await;
    cluster.pass(Duration::from_secs(10)).await;
    assert_eq!(endpoints(&cluster).await, (0, 3));
    cluster.script().change("web:1", |web| web.exec_code = 0);
    cluster.pass(Duration::from_secs(10)).await;
    assert_eq!(endpoints(&cluster).await, (3, 0));
    cluster.script().change("web:1", |web| web.exec_code = 1);
    cluster.pass(Duration::from_secs(10)).await;
    assert_eq!(endpoints(&cluster).await, (0, 3));
    assert_eq!(cluster.counts().stops, 0, "readiness stops nothing");
}

#[tokio::test(start_paused = true)]
async fn liveness_restarts() {
    let cluster = cluster().await;
    let manifest = pod("p", "web:1", "").replace(
        "image: \"web:1\"}",
        "image: \"web:1\", livenessProbe: {exec: {command: [alive]}, periodSeconds: 5, failureThreshold: 3}}",
    );
    cluster.apply(&manifest).await;
    cluster.pass(Duration::from_secs(60)).await;
    assert_eq!(container(&cluster, "p").await.restart_count, 0);
    cluster.script().change("web:1", |web| web.exec_code = 1);
    cluster.pass(Duration::from_secs(18)).await;
    cluster.script().change("web:1", |web| web.exec_code = 0);
    cluster.pass(Duration::from_secs(60)).await;
    let status = container(&cluster, "p").await;
    assert_eq!((status.restart_count, status.ready), (1, true));
}
