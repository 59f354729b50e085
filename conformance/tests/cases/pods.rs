//! A pod's life: run, look, log, restart, end.

use anyhow::ensure;
use conformance::{Kubectl, eventually};

use super::{Case, HELLO, sleeper};

pub const CASES: &[Case] = &[
    ("pod_runs_and_logs", runs_and_logs),
    ("pod_restarts_by_policy", restarts_by_policy),
    ("pod_init_containers_come_first", init_containers_come_first),
    ("pod_liveness_restarts", liveness_restarts),
    ("pod_ends_in_its_grace_period", ends_in_its_grace_period),
    (
        "pod_without_image_says_what_to_do",
        without_image_says_what_to_do,
    ),
    (
        "pod_with_unknown_command_says_so",
        with_unknown_command_says_so,
    ),
    ("pod_memory_limit_kills", memory_limit_kills),
    ("pod_hooks_run", hooks_run),
];

fn runs_and_logs(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl
        .apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: hellok8s-pod}}\nspec:\n  containers:\n  - {{name: hellok8s-container, image: '{HELLO}:v1'}}\n"
        ))?
        .says("pod/hellok8s-pod created")?;
    kubectl
        .run(&[
            "wait",
            "pod/hellok8s-pod",
            "--for=condition=Ready",
            "--timeout=60s",
        ])?
        .ok()?
        .says("condition met")?;
    let wide = kubectl.run(&["get", "pods", "-o", "wide"])?.ok()?;
    let row: Vec<&str> = wide
        .stdout
        .lines()
        .nth(1)
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    ensure!(
        row[..4] == ["hellok8s-pod", "1/1", "Running", "0"],
        "{}",
        wide.stdout
    );
    ensure!(row[5].starts_with("10."), "no address: {}", wide.stdout);
    kubectl
        .run(&["describe", "pod", "hellok8s-pod"])?
        .ok()?
        .says("Successfully assigned")?
        .says("Container started")?;
    kubectl
        .run(&["delete", "pod", "hellok8s-pod"])?
        .ok()?
        .says("deleted")?;
    kubectl
        .run(&["get", "pod", "hellok8s-pod"])?
        .refused()?
        .says("NotFound")?;
    kubectl.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: lines}\nspec:\n  restartPolicy: Never\n  containers:\n  - {name: a, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, 'for i in 1 2 3; do echo out $i; done; echo err >&2']}\n",
    )?;
    kubectl.until("pod/lines", "{.status.phase}", "Succeeded")?;
    let log = kubectl.run(&["logs", "lines"])?.ok()?.stdout;
    // The order within a stream is kept, between two streams there is none.
    let out: Vec<&str> = log.lines().filter(|line| line.starts_with("out")).collect();
    ensure!(
        out == ["out 1", "out 2", "out 3"] && log.contains("err\n"),
        "{log}"
    );
    ensure!(
        kubectl
            .run(&["logs", "lines", "--tail=1"])?
            .ok()?
            .stdout
            .lines()
            .count()
            == 1
    );
    let stamped = kubectl
        .run(&["logs", "lines", "--timestamps"])?
        .ok()?
        .stdout;
    ensure!(
        stamped.contains("Z out 1") && stamped.starts_with("20"),
        "{stamped}"
    );
    Ok(())
}

fn restarts_by_policy(kubectl: &Kubectl) -> anyhow::Result<()> {
    for (name, policy, code) in [
        ("never", "Never", 3),
        ("on-failure", "OnFailure", 0),
        ("always", "Always", 1),
    ] {
        kubectl.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: {policy}\n  containers:\n  - {{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, 'echo once; exit {code}']}}\n"
        ))?;
    }
    kubectl.until(
        "pod/never",
        "{.status.phase} {.status.containerStatuses[0].state.terminated.exitCode}",
        "Failed 3",
    )?;
    kubectl.until(
        "pod/on-failure",
        "{.status.phase} {.status.containerStatuses[0].state.terminated.reason}",
        "Succeeded Completed",
    )?;
    eventually("a restart and its back-off", || {
        let seen = kubectl.path("pod/always", "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].state.waiting.reason}")?;
        ensure!(
            !seen.starts_with('0') && seen.ends_with("CrashLoopBackOff"),
            "{seen}"
        );
        Ok(())
    })?;
    kubectl
        .run(&["logs", "always", "--previous"])?
        .ok()?
        .says("once")?;
    kubectl
        .run(&["get", "pod", "always"])?
        .ok()?
        .says("CrashLoopBackOff")?;
    Ok(())
}

fn init_containers_come_first(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(&sleeper(
        "later",
        ", volumeMounts: [{name: shared, mountPath: /shared}]",
        "  volumes: [{name: shared, emptyDir: {}}]\n  initContainers:\n  - {name: first, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, 'echo one > /shared/order'], volumeMounts: [{name: shared, mountPath: /shared}]}\n  - {name: second, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, 'echo two >> /shared/order'], volumeMounts: [{name: shared, mountPath: /shared}]}\n",
    ))?;
    kubectl
        .run(&[
            "wait",
            "pod/later",
            "--for=condition=Ready",
            "--timeout=60s",
        ])?
        .ok()?;
    let order = kubectl
        .run(&["exec", "later", "--", "cat", "/shared/order"])?
        .ok()?
        .stdout;
    ensure!(order == "one\ntwo\n", "{order}");
    Ok(())
}

fn liveness_restarts(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(&super::deployment(
        "liveness",
        1,
        ", livenessProbe: {httpGet: {path: /healthz, port: 3000}, initialDelaySeconds: 3, periodSeconds: 3}",
    ))?;
    eventually("a restart by the liveness probe", || {
        let restarts = kubectl.path(
            "pods",
            "{.items[0].status.containerStatuses[0].restartCount}",
        )?;
        ensure!(
            restarts != "0" && !restarts.is_empty(),
            "{restarts} restarts"
        );
        Ok(())
    })?;
    kubectl
        .run(&["get", "events"])?
        .ok()?
        .says("Liveness probe failed")?
        .says("Killing")?;
    Ok(())
}

fn ends_in_its_grace_period(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: polite}\nspec:\n  terminationGracePeriodSeconds: 30\n  containers:\n  - {name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, 'trap \"echo bye; exit 0\" TERM; echo up; while true; do sleep 0.1; done']}\n",
    )?;
    eventually("its first line", || {
        kubectl.run(&["logs", "polite"])?.ok()?.says("up")
    })?;
    let mut follow = kubectl.start(&["logs", "-f", "polite"])?;
    let lines = follow.lines()?;
    kubectl
        .run(&["delete", "pod", "polite", "--timeout=20s"])?
        .ok()?;
    let last = lines.map_while(Result::ok).last();
    ensure!(last.as_deref() == Some("bye"), "the last line is {last:?}");
    Ok(())
}

fn without_image_says_what_to_do(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl
        .run(&["run", "lost", "--image=nowhere.example/none:1"])?
        .ok()?;
    eventually("the reason", || {
        let reason = kubectl.path(
            "pod/lost",
            "{.status.containerStatuses[0].state.waiting.reason}",
        )?;
        ensure!(
            ["ErrImagePull", "ImagePullBackOff"].contains(&reason.as_str()),
            "{reason}"
        );
        Ok(())
    })?;
    kubectl
        .run(&["describe", "pod", "lost"])?
        .ok()?
        .says("nowhere.example/none:1")?;
    Ok(())
}

fn with_unknown_command_says_so(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: typo}\nspec:\n  restartPolicy: Never\n  containers:\n  - {name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [no-such-program]}\n",
    )?;
    eventually("the message", || {
        kubectl
            .run(&["get", "pod", "typo", "-o", "yaml"])?
            .ok()?
            .says("no-such-program")?
            .says("executable file not found in $PATH")
    })?;
    Ok(())
}

fn memory_limit_kills(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: greedy}\nspec:\n  restartPolicy: Never\n  containers:\n  - {name: c, image: busybox, imagePullPolicy: IfNotPresent, resources: {limits: {memory: 16Mi}}, command: [sh, -c, 'tail /dev/zero']}\n",
    )?;
    kubectl.until(
        "pod/greedy",
        "{.status.containerStatuses[0].state.terminated.reason} {.status.containerStatuses[0].state.terminated.exitCode}",
        "OOMKilled 137",
    )
}

fn hooks_run(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(&sleeper(
        "hooked",
        ", lifecycle: {postStart: {exec: {command: [sh, -c, 'echo started > /tmp/hook']}}}",
        "",
    ))?;
    kubectl
        .run(&[
            "wait",
            "pod/hooked",
            "--for=condition=Ready",
            "--timeout=60s",
        ])?
        .ok()?;
    kubectl
        .run(&["exec", "hooked", "--", "cat", "/tmp/hook"])?
        .ok()?
        .says("started")?;
    Ok(())
}
