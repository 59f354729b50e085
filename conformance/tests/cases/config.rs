//! ConfigMaps, Secrets, and how they get into containers.

use anyhow::ensure;
use conformance::{Kubectl, eventually};

use super::{Case, HELLO, sleeper};

pub const CASES: &[Case] = &[
    ("config_env", env),
    ("config_volumes_follow_changes", volumes_follow_changes),
    ("config_downward_api", downward_api),
    (
        "config_missing_is_said_and_awaited",
        missing_is_said_and_awaited,
    ),
    ("config_secret_types", secret_types),
    ("config_immutable", immutable),
];

fn env(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(&format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: hellok8s-config}}\ndata: {{URL: 'http://localhost-test:3306'}}\nbinaryData: {{bytes: AAEC}}\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: hellok8s-configmap-pod}}\nspec:\n  containers:\n  - name: hellok8s-container\n    image: {HELLO}:v3\n    env:\n    - {{name: URL, valueFrom: {{configMapKeyRef: {{name: hellok8s-config, key: URL}}}}}}\n"
    ))?;
    kubectl
        .run(&[
            "wait",
            "pod/hellok8s-configmap-pod",
            "--for=condition=Ready",
            "--timeout=60s",
        ])?
        .ok()?;
    let address = kubectl.path("pod/hellok8s-configmap-pod", "{.status.podIP}")?;
    let body = conformance::http_get(&format!("http://{address}:3000/"))?;
    ensure!(body.contains("http://localhost-test:3306"), "{body}");
    kubectl
        .run(&[
            "create",
            "secret",
            "generic",
            "login",
            "--from-literal=USER=jane",
            "--from-literal=PASS=s3cret",
        ])?
        .ok()?;
    kubectl.apply(&sleeper(
        "all",
        ", envFrom: [{secretRef: {name: login}}, {prefix: C_, configMapRef: {name: hellok8s-config}}], env: [{name: BOTH, value: '$(USER):$(PASS)'}]",
        "",
    ))?;
    kubectl
        .run(&["wait", "pod/all", "--for=condition=Ready", "--timeout=60s"])?
        .ok()?;
    let env = kubectl.run(&["exec", "all", "--", "env"])?.ok()?;
    ensure!(!env.stdout.contains("bytes="), "no text: {}", env.stdout);
    env.says("USER=jane")?
        .says("C_URL=http://localhost-test:3306")?;
    Ok(())
}

fn volumes_follow_changes(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl
        .run(&[
            "create",
            "configmap",
            "settings",
            "--from-literal=color=red",
            "--from-literal=size=big",
        ])?
        .ok()?;
    kubectl
        .run(&[
            "create",
            "secret",
            "generic",
            "key",
            "--from-literal=key=abc",
        ])?
        .ok()?;
    kubectl.apply(&sleeper(
        "reader",
        ", volumeMounts: [{name: settings, mountPath: /settings}, {name: key, mountPath: /key, readOnly: true}, {name: one, mountPath: /one/color, subPath: color}]",
        "  volumes:\n  - {name: settings, configMap: {name: settings}}\n  - {name: key, secret: {secretName: key, defaultMode: 0400}}\n  - {name: one, configMap: {name: settings}}\n",
    ))?;
    kubectl
        .run(&[
            "wait",
            "pod/reader",
            "--for=condition=Ready",
            "--timeout=60s",
        ])?
        .ok()?;
    let cat = |path: &str| {
        Ok::<_, anyhow::Error>(
            kubectl
                .run(&["exec", "reader", "--", "cat", path])?
                .ok()?
                .stdout,
        )
    };
    ensure!(
        cat("/settings/color")? == "red"
            && cat("/key/key")? == "abc"
            && cat("/one/color")? == "red"
    );
    let mode = kubectl
        .run(&["exec", "reader", "--", "stat", "-Lc", "%a", "/key/key"])?
        .ok()?
        .stdout;
    ensure!(mode == "400\n", "{mode}");
    kubectl
        .run(&["exec", "reader", "--", "touch", "/key/other"])?
        .refused()?
        .says("Read-only")?;
    kubectl
        .run(&[
            "patch",
            "configmap",
            "settings",
            "-p",
            "{\"data\":{\"color\":\"blue\"}}",
        ])?
        .ok()?;
    eventually("the new value in the volume", || {
        let color = cat("/settings/color")?;
        ensure!(color == "blue", "{color}");
        Ok(())
    })
}

fn downward_api(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(&sleeper(
        "self",
        ", resources: {limits: {memory: 64Mi}}, env: [{name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}, {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}, {name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory}}}], volumeMounts: [{name: about, mountPath: /about}]",
        "  volumes:\n  - name: about\n    downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}\n",
    ))?;
    kubectl
        .run(&["wait", "pod/self", "--for=condition=Ready", "--timeout=60s"])?
        .ok()?;
    let address = kubectl.path("pod/self", "{.status.podIP}")?;
    let env = kubectl.run(&["exec", "self", "--", "env"])?.ok()?;
    env.says("NAME=self")?
        .says(&format!("IP={address}"))?
        .says("LIMIT=67108864")?;
    kubectl
        .run(&["exec", "self", "--", "cat", "/about/labels"])?
        .ok()?
        .says("app=\"self\"")?;
    kubectl.run(&["label", "pod", "self", "color=red"])?.ok()?;
    eventually("the new label", || {
        kubectl
            .run(&["exec", "self", "--", "cat", "/about/labels"])?
            .ok()?
            .says("color=\"red\"")
    })?;
    Ok(())
}

fn missing_is_said_and_awaited(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(&sleeper(
        "waits",
        ", env: [{name: A, valueFrom: {configMapKeyRef: {name: later, key: a}}}]",
        "",
    ))?;
    kubectl.until(
        "pod/waits",
        "{.status.containerStatuses[0].state.waiting.reason}",
        "CreateContainerConfigError",
    )?;
    kubectl
        .run(&["get", "pod", "waits", "-o", "yaml"])?
        .ok()?
        .says("configmap \"later\" not found")?;
    kubectl
        .run(&["create", "configmap", "later", "--from-literal=a=1"])?
        .ok()?;
    kubectl
        .run(&[
            "wait",
            "pod/waits",
            "--for=condition=Ready",
            "--timeout=80s",
        ])?
        .ok()?;
    Ok(())
}

fn secret_types(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl
        .run(&[
            "create",
            "secret",
            "docker-registry",
            "pull",
            "--docker-server=r.example",
            "--docker-username=u",
            "--docker-password=p",
        ])?
        .ok()?;
    kubectl
        .run(&["get", "secret", "pull"])?
        .ok()?
        .says("kubernetes.io/dockerconfigjson")?;
    kubectl
        .run_with(&["apply", "-f", "-"], "apiVersion: v1\nkind: Secret\nmetadata: {name: broken}\ntype: kubernetes.io/tls\ndata: {}\n")?
        .refused()?
        .says("data[tls.crt]: Required value")?;
    kubectl.apply("apiVersion: v1\nkind: Secret\nmetadata: {name: plain}\nstringData: {a: b}\n")?;
    ensure!(kubectl.path("secret/plain", "{.data.a}")? == "Yg==");
    Ok(())
}

fn immutable(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: fixed}\nimmutable: true\ndata: {a: '1'}\n")?;
    kubectl
        .run(&[
            "patch",
            "configmap",
            "fixed",
            "-p",
            "{\"data\":{\"a\":\"2\"}}",
        ])?
        .refused()?
        .says("field is immutable when `immutable` is set")?;
    Ok(())
}
