//! From one template to the next, within the bounds that were asked for, at every step.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use serde_json::json;
use testkit::Behaviour;

use crate::{WEB, check_bounds, cluster, deployment, images, ready_images, replica_sets, web};

/// Rolls ten replicas from one image to the next and checks the bounds at every step.
async fn check(surge: &str, unavailable: &str, at_least: usize, at_most: usize) {
    let cluster = cluster().await;
    let strategy = format!(
        "strategy: {{rollingUpdate: {{maxSurge: {surge}, maxUnavailable: {unavailable}}}}}"
    );
    cluster.apply(&web(10, "web:1", &strategy)).await;
    cluster.settle().await;
    // It takes its time, so that the order of things matters.
    let slow = Behaviour {
        start_takes: Duration::from_secs(2),
        ..Behaviour::default()
    };
    cluster.script().set("web:2", slow);
    cluster.apply(&web(10, "web:2", &strategy)).await;
    cluster.settle().await;
    let (counts, conditions) = deployment(&cluster, "web").await;
    assert_eq!(counts, (10, 10, 10, 10));
    assert_eq!(conditions["Progressing"], "True NewReplicaSetAvailable");
    assert_eq!(ready_images(&cluster).await, images(&[("web:2", 10)]));
    let counts = cluster.counts();
    assert_eq!(
        (counts.starts, counts.stops),
        (20, 10),
        "nothing was made in vain"
    );
    check_bounds(&cluster.history(), at_least, at_most);
}

#[tokio::test(start_paused = true)]
async fn a_rolling_update_keeps_its_bounds() {
    check("25%", "25%", 8, 13).await;
}

#[tokio::test(start_paused = true)]
async fn a_rolling_update_with_surge_only() {
    check("1", "0", 10, 11).await;
}

#[tokio::test(start_paused = true)]
async fn a_rolling_update_without_surge() {
    check("0", "3", 7, 10).await;
}

#[tokio::test(start_paused = true)]
async fn a_rollback_takes_up_the_old_replica_set() {
    let cluster = cluster().await;
    for image in ["web:1", "web:2", "web:1"] {
        cluster.apply(&web(3, image, "")).await;
        cluster.settle().await;
        assert_eq!(ready_images(&cluster).await, images(&[(image, 3)]));
    }
    let sets = replica_sets(&cluster).await;
    assert_eq!(
        sets,
        [("web:1".to_owned(), 3), ("web:2".to_owned(), 0)].into()
    );
    let deployment = cluster.get::<Deployment>("web").await.expect("it is there");
    let annotations = deployment.metadata.annotations.clone().unwrap_or_default();
    assert_eq!(annotations["deployment.kubernetes.io/revision"], "3");
}

#[tokio::test(start_paused = true)]
async fn a_change_of_mind_midway_ends_at_the_last_word() {
    let cluster = cluster().await;
    cluster.apply(&web(6, "web:1", "")).await;
    cluster.settle().await;
    let stuck = Behaviour {
        start_takes: Duration::from_secs(3600),
        ..Behaviour::default()
    };
    cluster.script().set("web:2", stuck);
    cluster.apply(&web(6, "web:2", "")).await;
    cluster.settle().await;
    let (counts, _) = deployment(&cluster, "web").await;
    // 25 % of 6: two more, rounded up; one less, rounded down.
    assert_eq!(counts, (8, 3, 5, 5));
    cluster.apply(&web(6, "web:3", "")).await;
    cluster.settle().await;
    assert_eq!(ready_images(&cluster).await, images(&[("web:3", 6)]));
    check_bounds(&cluster.history(), 5, 8);
}

#[tokio::test(start_paused = true)]
async fn a_paused_deployment_does_not_roll_but_scales() {
    let cluster = cluster().await;
    cluster.apply(&web(2, "web:1", "")).await;
    cluster.settle().await;
    cluster.patch(WEB, json!({"spec": {"paused": true}})).await;
    cluster.apply(&web(4, "web:2", "paused: true")).await;
    cluster.settle().await;
    assert_eq!(ready_images(&cluster).await, images(&[("web:1", 4)]));
    let (_, conditions) = deployment(&cluster, "web").await;
    assert_eq!(conditions["Progressing"], "Unknown DeploymentPaused");
    cluster.apply(&web(4, "web:2", "paused: false")).await;
    cluster.settle().await;
    assert_eq!(ready_images(&cluster).await, images(&[("web:2", 4)]));
}

#[tokio::test(start_paused = true)]
async fn recreate_has_no_pods_of_two_templates_at_once() {
    let cluster = cluster().await;
    let recreate = "strategy: {type: Recreate}";
    let lingering = Behaviour {
        stop_takes: Duration::from_secs(5),
        ..Behaviour::default()
    };
    cluster.script().set("web:1", lingering);
    cluster.apply(&web(3, "web:1", recreate)).await;
    cluster.settle().await;
    cluster.apply(&web(3, "web:2", recreate)).await;
    cluster.settle().await;
    cluster.pass(Duration::from_secs(10)).await;
    cluster.settle().await;
    assert_eq!(ready_images(&cluster).await, images(&[("web:2", 3)]));
    cluster.history().each(|step, moment| {
        let mut images: Vec<_> = moment.pods.values().map(crate::image_of).collect();
        images.dedup();
        assert!(images.len() <= 1, "step {step}: {images:?}");
    });
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_not_there_stops_the_rollout_and_the_deadline_says_so() {
    let cluster = cluster().await;
    cluster
        .apply(&web(3, "web:1", "progressDeadlineSeconds: 120"))
        .await;
    cluster.settle().await;
    cluster
        .apply(&web(3, "absent:1", "progressDeadlineSeconds: 120"))
        .await;
    cluster.pass(Duration::from_secs(60)).await;
    let (counts, conditions) = deployment(&cluster, "web").await;
    assert_eq!(counts, (4, 1, 3, 3));
    assert_eq!(conditions["Progressing"], "True ReplicaSetUpdated");
    cluster.pass(Duration::from_secs(90)).await;
    let (_, conditions) = deployment(&cluster, "web").await;
    assert_eq!(conditions["Progressing"], "False ProgressDeadlineExceeded");
    assert_eq!(conditions["Available"], "True MinimumReplicasAvailable");
    // The image comes: the rollout goes on.
    cluster.script().set("absent:1", Behaviour::default());
    cluster.images_changed();
    cluster.settle().await;
    let (counts, conditions) = deployment(&cluster, "web").await;
    assert_eq!(counts, (3, 3, 3, 3));
    assert_eq!(conditions["Progressing"], "True NewReplicaSetAvailable");
}

#[tokio::test(start_paused = true)]
async fn min_ready_seconds_are_waited_for() {
    let cluster = cluster().await;
    cluster.apply(&web(2, "web:1", "minReadySeconds: 30")).await;
    cluster.pass(Duration::from_secs(20)).await;
    let (counts, _) = deployment(&cluster, "web").await;
    assert_eq!(counts, (2, 2, 2, 0));
    cluster.pass(Duration::from_secs(15)).await;
    let (counts, conditions) = deployment(&cluster, "web").await;
    assert_eq!(counts, (2, 2, 2, 2));
    assert_eq!(conditions["Available"], "True MinimumReplicasAvailable");
}
