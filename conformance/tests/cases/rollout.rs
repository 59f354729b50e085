//! Deployments: rolling updates, history, pause, undo.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, ensure};
use conformance::{Kubectl, eventually, http_get};

use super::{Case, HELLO, deployment};

pub const CASES: &[Case] = &[
    ("rollout_replaces_deleted_pods", replaces_deleted_pods),
    ("rollout_history_and_undo", history_and_undo),
    ("rollout_pause_resume_restart", pause_resume_restart),
    ("rollout_fails_no_request", fails_no_request),
    ("rollout_of_bad_version_stops", of_bad_version_stops),
    ("rollout_scale", scale),
];

const STATUS: &[&str] = &["rollout", "status", "deployment/hello", "--timeout=60s"];

fn replaces_deleted_pods(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(&deployment("v1", 3, ""))?;
    kubectl.run(STATUS)?.ok()?.says("successfully rolled out")?;
    kubectl.run(&["get", "deployments"])?.ok()?.says("3/3")?;
    let name = kubectl.path("pods", "{.items[0].metadata.name}")?;
    kubectl.run(&["delete", "pod", &name])?.ok()?;
    kubectl.until("deployment/hello", "{.status.readyReplicas}", "3")?;
    let names = kubectl.path("pods", "{.items[*].metadata.name}")?;
    ensure!(!names.contains(&name), "{name} is still there");
    kubectl.run(&["delete", "deployment", "hello"])?.ok()?;
    eventually("no pods", || {
        let names = kubectl.path("pods", "{.items[*].metadata.name}")?;
        ensure!(names.is_empty(), "{names}");
        Ok(())
    })
}

fn history_and_undo(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(&deployment("v1", 2, ""))?;
    kubectl.run(STATUS)?.ok()?;
    kubectl
        .run(&[
            "set",
            "image",
            "deployment/hello",
            &format!("hello={HELLO}:v2"),
        ])?
        .ok()?
        .says("image updated")?;
    kubectl.run(STATUS)?.ok()?;
    kubectl
        .run(&[
            "annotate",
            "deployment/hello",
            "kubernetes.io/change-cause=second",
        ])?
        .ok()?;
    eventually("the cause", || {
        kubectl
            .run(&["rollout", "history", "deployment/hello"])?
            .ok()?
            .says("second")
    })?;
    kubectl
        .run(&["rollout", "history", "deployment/hello", "--revision=1"])?
        .ok()?
        .says(&format!("{HELLO}:v1"))?;
    kubectl
        .run(&["rollout", "undo", "deployment/hello"])?
        .ok()?
        .says("rolled back")?;
    kubectl.run(STATUS)?.ok()?;
    kubectl.until(
        "deployment/hello",
        "{.spec.template.spec.containers[0].image}",
        &format!("{HELLO}:v1"),
    )?;
    let history = kubectl
        .run(&["rollout", "history", "deployment/hello"])?
        .ok()?
        .stdout;
    let revisions: Vec<&str> = history
        .lines()
        .skip(2)
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    ensure!(revisions == ["2", "3"], "{history}");
    kubectl
        .run(&["rollout", "undo", "deployment/hello", "--to-revision=2"])?
        .ok()?;
    kubectl.run(STATUS)?.ok()?;
    kubectl.until(
        "deployment/hello",
        "{.spec.template.spec.containers[0].image}",
        &format!("{HELLO}:v2"),
    )?;
    kubectl
        .run(&["rollout", "undo", "deployment/hello", "--to-revision=9"])?
        .refused()?
        .says("unable to find specified revision")?;
    Ok(())
}

fn pause_resume_restart(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(&deployment("v1", 1, ""))?;
    kubectl.run(STATUS)?.ok()?;
    kubectl
        .run(&["rollout", "pause", "deployment/hello"])?
        .ok()?
        .says("paused")?;
    kubectl
        .run(&[
            "set",
            "image",
            "deployment/hello",
            &format!("hello={HELLO}:v2"),
        ])?
        .ok()?;
    kubectl.until("deployment/hello", "{.status.observedGeneration}", "3")?;
    let images = kubectl.path(
        "replicasets",
        "{.items[*].spec.template.spec.containers[0].image}",
    )?;
    ensure!(
        images == format!("{HELLO}:v1"),
        "a paused Deployment rolled: {images}"
    );
    kubectl
        .run(&["rollout", "resume", "deployment/hello"])?
        .ok()?
        .says("resumed")?;
    kubectl.run(STATUS)?.ok()?;
    let before = kubectl.path("pods", "{.items[*].metadata.uid}")?;
    kubectl
        .run(&["rollout", "restart", "deployment/hello"])?
        .ok()?
        .says("restarted")?;
    kubectl.run(STATUS)?.ok()?;
    eventually("other pods", || {
        let after = kubectl.path("pods", "{.items[*].metadata.uid}")?;
        ensure!(!after.contains(&before), "{after}");
        Ok(())
    })
}

fn fails_no_request(kubectl: &Kubectl) -> anyhow::Result<()> {
    let probe = ", readinessProbe: {tcpSocket: {port: 3000}, periodSeconds: 1}";
    kubectl.apply(&deployment("v1", 3, probe))?;
    kubectl.run(STATUS)?.ok()?;
    kubectl
        .run(&["expose", "deployment", "hello", "--port=3000"])?
        .ok()?;
    let address = kubectl.path("service/hello", "{.spec.clusterIP}")?;
    let url = format!("http://{address}:3000/");
    eventually("an answer", || http_get(&url))?;
    let (stop, asked) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let load: Vec<_> = (0..2)
        .map(|_| {
            let (url, stop, asked) = (url.clone(), stop.clone(), asked.clone());
            std::thread::spawn(move || -> anyhow::Result<()> {
                while !stop.load(Ordering::Relaxed) {
                    http_get(&url)?;
                    asked.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        })
        .collect();
    let rolled = kubectl
        .run(&[
            "set",
            "image",
            "deployment/hello",
            &format!("hello={HELLO}:v2"),
        ])
        .and_then(|_| kubectl.run(STATUS)?.ok())
        .and_then(|_| {
            eventually("the old pods' end", || {
                let images = kubectl.path("pods", "{.items[*].spec.containers[0].image}")?;
                ensure!(!images.contains(":v1"), "{images}");
                Ok(())
            })
        });
    stop.store(true, Ordering::Relaxed);
    for thread in load {
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("the load panicked"))?
            .context("a request failed during the update")?;
    }
    rolled?;
    ensure!(asked.load(Ordering::Relaxed) > 50, "hardly any load");
    ensure!(http_get(&url)?.contains("[v2]"));
    Ok(())
}

fn of_bad_version_stops(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(&deployment("v1", 3, ""))?;
    kubectl.run(STATUS)?.ok()?;
    let probe = ", readinessProbe: {httpGet: {path: /healthz, port: 3000}, initialDelaySeconds: 1, successThreshold: 5}";
    kubectl.apply(&deployment("bad", 3, probe))?;
    kubectl
        .run(&["rollout", "status", "deployment/hello", "--timeout=3s"])?
        .refused()?;
    // maxUnavailable 25 % of three is none: the old ones go on serving.
    kubectl.until("deployment/hello", "{.status.availableReplicas}", "3")?;
    kubectl.run(&["get", "pods"])?.ok()?.says("0/1")?;
    eventually("the probe's event", || {
        kubectl
            .run(&["get", "events"])?
            .ok()?
            .says("Readiness probe failed")
    })?;
    Ok(())
}

fn scale(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(&deployment("v1", 1, ""))?;
    kubectl
        .run(&["scale", "deployment/hello", "--replicas=4"])?
        .ok()?
        .says("scaled")?;
    kubectl.until("deployment/hello", "{.status.readyReplicas}", "4")?;
    kubectl
        .run(&[
            "scale",
            "deployment/hello",
            "--current-replicas=9",
            "--replicas=2",
        ])?
        .refused()?
        .says("Expected replicas to be 9, was 4")?;
    // Pods that are deleted while their containers are being started go as soon as others.
    for _ in 0..4 {
        for replicas in ["--replicas=9", "--replicas=2"] {
            kubectl
                .run(&["scale", "deployment/hello", replicas])?
                .ok()?;
        }
    }
    kubectl
        .run(&["scale", "deployment/hello", "--replicas=0"])?
        .ok()?;
    eventually("no pods", || {
        let names = kubectl.path("pods", "{.items[*].metadata.name}")?;
        ensure!(names.is_empty(), "{names}");
        Ok(())
    })
}
