//! Roll-outs, as a person with kubectl sees them.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, PropagationPolicy};
use serde_json::{Value, json};

use crate::{House, deployment, image, runs};

fn status(deployment: &Deployment) -> DeploymentStatus {
    deployment.status.clone().unwrap_or_default()
}

fn is_complete(deployment: &Deployment, replicas: i32) -> bool {
    let status = status(deployment);
    status.observed_generation == deployment.metadata.generation
        && status.replicas.unwrap_or_default() == replicas
        && status.updated_replicas.unwrap_or_default() == replicas
        && status.available_replicas.unwrap_or_default() == replicas
        && status.terminating_replicas == Some(0)
}

fn revision<K: kube::Resource>(object: &K) -> &str {
    let annotations = object.meta().annotations.as_ref();
    let revision = annotations.and_then(|all| all.get("deployment.kubernetes.io/revision"));
    revision.map_or("", String::as_str)
}

/// The sizes of the sets by their revision.
fn sizes(sets: &[std::sync::Arc<ReplicaSet>]) -> BTreeMap<String, i32> {
    let size = |set: &ReplicaSet| {
        set.spec
            .as_ref()
            .and_then(|spec| spec.replicas)
            .unwrap_or(-1)
    };
    sets.iter()
        .map(|set| (revision(&**set).to_owned(), size(set)))
        .collect()
}

fn conditions(deployment: &Deployment) -> Vec<String> {
    let all = status(deployment).conditions.unwrap_or_default();
    let text = all.iter().map(|condition| {
        let reason = condition.reason.as_deref().unwrap_or_default();
        let message = condition.message.as_deref().unwrap_or_default();
        format!(
            "{} {} {reason}: {message}",
            condition.type_, condition.status
        )
    });
    text.collect()
}

#[tokio::test]
async fn a_deployment_is_rolled_out_updated_and_rolled_back() {
    let house = House::new().await;
    house
        .create::<Deployment>(deployment("web", 3, Value::Null))
        .await;
    let web = house
        .wait::<Deployment>("web", "is complete", |web| is_complete(web, 3))
        .await;
    assert_eq!(revision(&*web), "1");
    let sets = house
        .wait_all::<ReplicaSet>("one set", |sets| sets.len() == 1)
        .await;
    let first = &sets[0];
    let name = first.metadata.name.clone().unwrap_or_default();
    let hash = name
        .strip_prefix("web-")
        .expect("is named after the deployment");
    assert_eq!(
        json!(first.metadata.annotations),
        json!({"deployment.kubernetes.io/desired-replicas": "3", "deployment.kubernetes.io/max-replicas": "4",
            "deployment.kubernetes.io/revision": "1", "kubernetes.io/change-cause": "first", "note": "hello"})
    );
    assert_eq!(
        json!(first.metadata.labels),
        json!({"app": "web", "pod-template-hash": hash})
    );
    assert_eq!(
        json!(first.spec.as_ref().map(|spec| &spec.selector)),
        json!({"matchLabels": {"app": "web", "pod-template-hash": hash}})
    );
    house.wait::<ReplicaSet>(&name, "counts", |set| {
        json!(set.status) == json!({"availableReplicas": 3, "fullyLabeledReplicas": 3, "observedGeneration": 1,
            "readyReplicas": 3, "replicas": 3, "terminatingReplicas": 0})
    })
    .await;
    assert_eq!(
        conditions(&web),
        [
            "Available True MinimumReplicasAvailable: Deployment has minimum availability."
                .to_owned(),
            format!(
                "Progressing True NewReplicaSetAvailable: ReplicaSet \"{name}\" has successfully progressed."
            ),
        ]
    );
    house
        .wait_events(
            "web",
            &[&format!(
                "ScalingReplicaSet: Scaled up replica set {name} from 0 to 3"
            )],
        )
        .await;

    house.patch::<Deployment>("web", image("web:2")).await;
    let web = house
        .wait::<Deployment>("web", "is updated", |web| {
            revision(web) == "2" && is_complete(web, 3)
        })
        .await;
    assert!(
        conditions(&web)
            .iter()
            .all(|condition| condition.contains(" True ")),
        "{:?}",
        conditions(&web)
    );
    let expected = BTreeMap::from([("1".to_owned(), 0), ("2".to_owned(), 3)]);
    house
        .wait_all::<ReplicaSet>("the old set is empty", |sets| sizes(sets) == expected)
        .await;

    house.patch::<Deployment>("web", image("web:1")).await;
    house
        .wait::<Deployment>("web", "is rolled back", |web| {
            revision(web) == "3" && is_complete(web, 3)
        })
        .await;
    let expected = BTreeMap::from([("2".to_owned(), 0), ("3".to_owned(), 3)]);
    house
        .wait_all::<ReplicaSet>("the first set is used again", |sets| {
            sizes(sets) == expected
        })
        .await;
    let first = house
        .wait::<ReplicaSet>(&name, "is the third revision", |set| revision(set) == "3")
        .await;
    let history = first
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get("deployment.kubernetes.io/revision-history"));
    assert_eq!(history.map(String::as_str), Some("1"));
}

#[tokio::test]
async fn a_roll_out_never_has_too_few_or_too_many() {
    let house = House::new().await;
    let strategy = json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}});
    house
        .create::<Deployment>(deployment("web", 5, strategy))
        .await;
    house
        .wait::<Deployment>("web", "is complete", |web| is_complete(web, 5))
        .await;
    let mut changes = house.informers.of::<Pod>().changes();
    let mut running: BTreeMap<String, bool> = BTreeMap::new();
    house.patch::<Deployment>("web", image("web:2")).await;
    let done = house.wait::<Deployment>("web", "is updated", |web| {
        revision(web) == "2" && is_complete(web, 5)
    });
    let mut done = std::pin::pin!(done);
    let (mut least, mut most) = (5, 5);
    loop {
        let change = tokio::select! {
            biased;
            change = changes.next() => change.expect("does not drain"),
            _ = &mut done => break,
        };
        let pod = change.object();
        let name = pod.metadata.name.clone().unwrap_or_default();
        match &change {
            informer::Change::Deleted(_) => drop(running.remove(&name)),
            informer::Change::Applied { new, .. } if new.metadata.deletion_timestamp.is_some() => {
                running.remove(&name);
            }
            informer::Change::Applied { new, .. } => drop(running.insert(name, runs(new))),
        }
        if running.len() >= 5 || least < 5 {
            least = least.min(running.values().filter(|runs| **runs).count());
        }
        most = most.max(running.len());
    }
    assert!(least >= 4, "only {least} were running");
    assert!(most <= 6, "there were {most}");
}

#[tokio::test]
async fn it_grows_shrinks_and_sleeps() {
    let house = House::new().await;
    house
        .create::<Deployment>(deployment("web", 2, Value::Null))
        .await;
    for replicas in [2, 12, 1, 0, 3] {
        house
            .patch::<Deployment>("web", json!({"spec": {"replicas": replicas}}))
            .await;
        house
            .wait::<Deployment>("web", "has the size", |web| is_complete(web, replicas))
            .await;
        house
            .wait_all::<Pod>("has as many pods", |pods| pods.len() == replicas as usize)
            .await;
    }
    let sets = house
        .wait_all::<ReplicaSet>("one set", |sets| sets.len() == 1)
        .await;
    assert_eq!(revision(&*sets[0]), "1");
}

#[tokio::test]
async fn recreate_ends_the_old_before_the_new_begins() {
    let house = House::new().await;
    house
        .create::<Deployment>(deployment("web", 3, json!({"type": "Recreate"})))
        .await;
    house
        .wait::<Deployment>("web", "is complete", |web| is_complete(web, 3))
        .await;
    let mut changes = house.informers.of::<Pod>().changes();
    house.patch::<Deployment>("web", image("web:2")).await;
    house
        .wait::<Deployment>("web", "is updated", |web| {
            revision(web) == "2" && is_complete(web, 3)
        })
        .await;
    let mut images: BTreeMap<String, String> = BTreeMap::new();
    while let Some(change) = changes.try_next() {
        let pod = change.object();
        let name = pod.metadata.name.clone().unwrap_or_default();
        let image = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.containers[0].image.clone());
        match &change {
            informer::Change::Deleted(_) => drop(images.remove(&name)),
            informer::Change::Applied { .. } => {
                drop(images.insert(name, image.unwrap_or_default()))
            }
        }
    }
    assert_eq!(images.values().collect::<Vec<_>>(), ["web:2"; 3]);
    let expected = BTreeMap::from([("1".to_owned(), 0), ("2".to_owned(), 3)]);
    house
        .wait_all::<ReplicaSet>("the old set is empty", |sets| sizes(sets) == expected)
        .await;
}

#[tokio::test]
async fn a_paused_deployment_is_scaled_but_not_rolled_out() {
    let house = House::new().await;
    house
        .create::<Deployment>(deployment("web", 2, Value::Null))
        .await;
    house
        .wait::<Deployment>("web", "is complete", |web| is_complete(web, 2))
        .await;
    house
        .patch::<Deployment>("web", json!({"spec": {"paused": true}}))
        .await;
    house
        .wait::<Deployment>("web", "says that it is paused", |web| {
            conditions(web)
                .contains(&"Progressing Unknown DeploymentPaused: Deployment is paused".to_owned())
        })
        .await;
    house.patch::<Deployment>("web", image("web:2")).await;
    house
        .patch::<Deployment>("web", json!({"spec": {"replicas": 4}}))
        .await;
    house
        .wait::<Deployment>("web", "has grown", |web| {
            let status = status(web);
            status.replicas == Some(4)
                && status.updated_replicas.is_none()
                && status.observed_generation == web.metadata.generation
        })
        .await;
    house
        .wait_all::<ReplicaSet>("one set", |sets| {
            sizes(sets) == BTreeMap::from([("1".to_owned(), 4)])
        })
        .await;
    house
        .patch::<Deployment>("web", json!({"spec": {"paused": false}}))
        .await;
    house
        .wait::<Deployment>("web", "is updated", |web| {
            revision(web) == "2" && is_complete(web, 4)
        })
        .await;
}

#[tokio::test]
async fn a_roll_out_that_gets_nowhere_says_so_and_harms_nothing() {
    let house = House::new().await;
    house
        .create::<Deployment>(deployment("web", 4, Value::Null))
        .await;
    house
        .wait::<Deployment>("web", "is complete", |web| is_complete(web, 4))
        .await;
    house
        .patch::<Deployment>(
            "web",
            json!({"spec": {"progressDeadlineSeconds": 1, "minReadySeconds": 0,
                "template": {"metadata": {"labels": {"stuck": "yes"}}}}}),
        )
        .await;
    let web = house
        .wait::<Deployment>("web", "has timed out", |web| {
            conditions(web).iter().any(|text| {
                text.starts_with("Progressing False ProgressDeadlineExceeded: ReplicaSet \"web-")
                    && text.ends_with("\" has timed out progressing.")
            })
        })
        .await;
    // A quarter may be missing, a quarter may be too many: 3 old ones stay, 2 new ones hang.
    assert_eq!(status(&web).available_replicas, Some(3));
    assert_eq!(status(&web).updated_replicas, Some(2));
    assert_eq!(status(&web).unavailable_replicas, Some(2));
}

#[tokio::test]
async fn pods_that_may_not_be_made_are_reported_up_to_the_deployment() {
    let house = House::new().await;
    let mut bad = deployment("bad", 2, Value::Null);
    bad["spec"]["template"]["spec"]["serviceAccountName"] = json!("missing");
    house.create::<Deployment>(bad).await;
    let text = "pods \"bad-";
    let bad = house
        .wait::<Deployment>("bad", "says why", |bad| {
            conditions(bad).iter().any(|condition| {
                condition.starts_with(&format!("ReplicaFailure True FailedCreate: {text}"))
            })
        })
        .await;
    assert!(
        conditions(&bad).iter().any(|text| text.contains(
            "error looking up service account default/missing: serviceaccount \"missing\" not found"
        )),
        "{:?}",
        conditions(&bad)
    );
    assert_eq!(status(&bad).unavailable_replicas, Some(2));
}

#[tokio::test]
async fn a_set_adopts_orphans_and_releases_strangers() {
    let house = House::new().await;
    let pod = json!({"metadata": {"name": "stray", "labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "a"}]}});
    house.create::<Pod>(pod).await;
    let set = json!({"metadata": {"name": "web"}, "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "a"}]}}}});
    let set = house.create::<ReplicaSet>(set).await;
    let owned = |pod: &Pod| {
        pod.metadata
            .owner_references
            .as_ref()
            .is_some_and(|all| all[0].uid == *set.metadata.uid.as_ref().expect("has a uid"))
    };
    house.wait::<Pod>("stray", "is adopted", owned).await;
    house
        .wait_all::<Pod>("two in all", |pods| {
            pods.len() == 2 && pods.iter().all(|pod| owned(pod))
        })
        .await;
    house
        .patch::<Pod>("stray", json!({"metadata": {"labels": {"app": "other"}}}))
        .await;
    house
        .wait::<Pod>("stray", "is released", |pod| {
            pod.metadata.owner_references.is_none()
        })
        .await;
    house
        .wait_all::<Pod>("is replaced", |pods| {
            pods.len() == 3 && pods.iter().filter(|pod| owned(pod)).count() == 2
        })
        .await;
}

#[tokio::test]
async fn old_revisions_are_kept_up_to_the_limit() {
    let house = House::new().await;
    let mut web = deployment("web", 1, Value::Null);
    web["spec"]["revisionHistoryLimit"] = json!(2);
    house.create::<Deployment>(web).await;
    for number in 1..=5 {
        house
            .patch::<Deployment>("web", image(&format!("web:{number}")))
            .await;
        let number = number.to_string();
        house
            .wait::<Deployment>("web", "is updated", |web| {
                revision(web) == number && is_complete(web, 1)
            })
            .await;
    }
    let expected = BTreeMap::from([
        ("3".to_owned(), 0),
        ("4".to_owned(), 0),
        ("5".to_owned(), 1),
    ]);
    house
        .wait_all::<ReplicaSet>("two old ones are left", |sets| sizes(sets) == expected)
        .await;
}

#[tokio::test]
async fn a_name_that_is_taken_is_counted_and_passed_over() {
    let house = House::new().await;
    house
        .create::<Deployment>(deployment("web", 1, Value::Null))
        .await;
    let sets = house
        .wait_all::<ReplicaSet>("one set", |sets| sets.len() == 1)
        .await;
    let taken = sets[0].metadata.name.clone().unwrap_or_default();
    let deployments: Api<Deployment> = house.api();
    deployments
        .delete("web", &DeleteParams::default())
        .await
        .expect("is deleted");
    house.wait_gone::<ReplicaSet>(&taken).await;
    let stranger = json!({"metadata": {"name": taken}, "spec": {"replicas": 0,
        "selector": {"matchLabels": {"app": "other"}},
        "template": {"metadata": {"labels": {"app": "other"}},
            "spec": {"containers": [{"name": "c", "image": "web:1"}]}}}});
    house.create::<ReplicaSet>(stranger).await;
    house
        .create::<Deployment>(deployment("web", 1, Value::Null))
        .await;
    let web = house
        .wait::<Deployment>("web", "is complete", |web| is_complete(web, 1))
        .await;
    assert_eq!(status(&web).collision_count, Some(1));
    let sets = house
        .wait_all::<ReplicaSet>("two sets", |sets| sets.len() == 2)
        .await;
    let mine: Vec<_> = sets
        .iter()
        .filter(|set| set.metadata.owner_references.is_some())
        .collect();
    assert_eq!(mine.len(), 1);
    assert_ne!(mine[0].metadata.name.as_ref(), Some(&taken));
}

#[tokio::test]
async fn many_replicas_are_made_exactly_once() {
    let house = House::new().await;
    house
        .create::<Deployment>(deployment("web", 700, Value::Null))
        .await;
    house
        .wait::<Deployment>("web", "is complete", |web| is_complete(web, 700))
        .await;
    assert_eq!(
        house
            .wait_all::<Pod>("all run", |pods| pods.iter().all(|pod| runs(pod)))
            .await
            .len(),
        700
    );
    let deployments: Api<Deployment> = house.api();
    let params = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Foreground),
        ..DeleteParams::default()
    };
    deployments
        .delete("web", &params)
        .await
        .expect("is deleted");
    house.wait_gone::<Deployment>("web").await;
    house
        .wait_all::<Pod>("none is left", |pods| pods.is_empty())
        .await;
}
