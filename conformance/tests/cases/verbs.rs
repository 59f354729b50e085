//! kubectl's verbs on objects.

use anyhow::{Context, ensure};
use conformance::{Kubectl, eventually};

use super::{Case, HELLO, deployment};

pub const CASES: &[Case] = &[
    ("verb_get_in_all_forms", get_in_all_forms),
    ("verb_get_watch", get_watch),
    ("verb_label_and_annotate", label_and_annotate),
    ("verb_apply_and_diff", apply_and_diff),
    ("verb_apply_server_side", apply_server_side),
    ("verb_edit_patch_replace", edit_patch_replace),
    ("verb_explain_and_discovery", explain_and_discovery),
    ("verb_auth_can_i", auth_can_i),
    ("verb_delete_with_owners", delete_with_owners),
    (
        "verb_namespace_takes_all_with_it",
        namespace_takes_all_with_it,
    ),
    (
        "verb_create_dry_run_changes_nothing",
        create_dry_run_changes_nothing,
    ),
];

fn get_in_all_forms(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(&deployment("v1", 1, ""))?;
    kubectl
        .run(&["rollout", "status", "deployment/hello", "--timeout=60s"])?
        .ok()?;
    let yaml = kubectl
        .run(&["get", "deployment", "hello", "-o", "yaml"])?
        .ok()?;
    yaml.says("kind: Deployment")?
        .says("progressDeadlineSeconds: 600")?
        .says("resourceVersion:")?;
    let json = kubectl
        .run(&["get", "deployment", "hello", "-o", "json"])?
        .ok()?
        .json()?;
    ensure!(json["spec"]["revisionHistoryLimit"] == 10, "{json}");
    let columns = kubectl
        .run(&[
            "get",
            "deployments",
            "-o",
            "custom-columns=N:.metadata.name,R:.spec.replicas",
        ])?
        .ok()?
        .stdout;
    ensure!(columns == "N       R\nhello   1\n", "{columns}");
    ensure!(kubectl.path("deployment/hello", "{.metadata.name}")? == "hello");
    let wide = kubectl
        .run(&["get", "deployments", "-o", "wide"])?
        .ok()?
        .stdout;
    let header: Vec<&str> = wide
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    ensure!(
        header
            == [
                "NAME",
                "READY",
                "UP-TO-DATE",
                "AVAILABLE",
                "AGE",
                "CONTAINERS",
                "IMAGES",
                "SELECTOR"
            ],
        "{wide}"
    );
    kubectl
        .run(&["get", "all"])?
        .ok()?
        .says("deployment.apps/hello")?
        .says("replicaset.apps/hello-")?
        .says("pod/hello-")?;
    kubectl
        .run(&["get", "pods", "-A", "-l", "app=hello"])?
        .ok()?
        .says(kubectl.namespace())?;
    kubectl
        .run(&["get", "pods", "--field-selector=status.phase=Failed"])?
        .ok()?
        .says("No resources found")?;
    kubectl
        .run(&["get", "nodes", "-o", "wide"])?
        .ok()?
        .says("Ready")?
        .says("wharf://")?;
    kubectl
        .run(&["get", "pods", "--sort-by=.metadata.name", "--show-labels"])?
        .ok()?
        .says("app=hello")?;
    // By name: others come and go while the client looks at one after the other.
    kubectl
        .run(&["describe", "namespace", kubectl.namespace()])?
        .ok()?
        .says("Active")?;
    for kind in [
        "node",
        "pod",
        "deployment",
        "replicaset",
        "service",
        "configmap",
        "secret",
        "serviceaccount",
    ] {
        kubectl.run(&["describe", kind])?.ok()?;
    }
    Ok(())
}

fn get_watch(kubectl: &Kubectl) -> anyhow::Result<()> {
    let mut watch = kubectl.start(&["get", "configmaps", "-w", "--no-headers", "-o", "name"])?;
    let mut lines = watch.lines()?;
    kubectl.run(&["create", "configmap", "seen"])?.ok()?;
    let found = lines
        .by_ref()
        .map_while(Result::ok)
        .any(|line| line == "configmap/seen");
    ensure!(found, "the watch ended without the new object");
    Ok(())
}

fn label_and_annotate(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.run(&["create", "configmap", "c"])?.ok()?;
    kubectl
        .run(&["label", "configmap", "c", "a=1", "b=2"])?
        .ok()?
        .says("labeled")?;
    kubectl
        .run(&["label", "configmap", "c", "a=3"])?
        .refused()?
        .says("'a' already has a value (1)")?;
    kubectl
        .run(&["label", "configmap", "c", "a=3", "b-", "--overwrite"])?
        .ok()?;
    ensure!(kubectl.path("configmap/c", "{.metadata.labels}")? == "{\"a\":\"3\"}");
    kubectl
        .run(&["annotate", "configmap", "c", "note=x"])?
        .ok()?
        .says("annotated")?;
    kubectl
        .run(&["label", "configmap", "c", "a=-bad-", "--overwrite"])?
        .refused()?;
    Ok(())
}

fn apply_and_diff(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(&deployment("v1", 1, ", ports: [{containerPort: 3000}]"))?;
    kubectl
        .apply(&deployment("v1", 1, ", ports: [{containerPort: 3000}]"))?
        .says("unchanged")?;
    let changed = deployment("v2", 1, ", env: [{name: A, value: b}]");
    let diff = kubectl.run_with(&["diff", "-f", "-"], &changed)?;
    ensure!(diff.code == 1, "exit code {}: {}", diff.code, diff.stderr);
    diff.says(&format!("+        - image: {HELLO}:v2"))
        .or_else(|_| {
            kubectl
                .run_with(&["diff", "-f", "-"], &changed)?
                .says(&format!("{HELLO}:v2"))
        })?;
    kubectl.apply(&changed)?.says("configured")?;
    let container = kubectl.path("deployment/hello", "{.spec.template.spec.containers[0]}")?;
    ensure!(
        !container.contains("\"ports\"") && container.contains("\"A\""),
        "{container}"
    );
    ensure!(
        kubectl.run_with(&["diff", "-f", "-"], &changed)?.code == 0,
        "still different"
    );
    Ok(())
}

fn apply_server_side(kubectl: &Kubectl) -> anyhow::Result<()> {
    let apply = |manager: &str, text: &str, force: bool| {
        let manager = format!("--field-manager={manager}");
        let mut words = vec!["apply", "--server-side", &manager, "-f", "-"];
        if force {
            words.push("--force-conflicts");
        }
        kubectl.run_with(&words, text)
    };
    let config = |a: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: shared}}\ndata: {{{a}}}\n")
    };
    apply("one", &config("a: '1', b: '1'"), false)?
        .ok()?
        .says("serverside-applied")?;
    apply("two", &config("a: '2'"), false)?
        .refused()?
        .says("conflict with \"one\": .data.a")?;
    apply("two", &config("a: '2'"), true)?.ok()?;
    apply("one", &config("c: '1'"), false)?.ok()?;
    let data = kubectl.path("configmap/shared", "{.data}")?;
    ensure!(data == "{\"a\":\"2\",\"c\":\"1\"}", "{data}");
    let managers = kubectl
        .run(&[
            "get",
            "configmap",
            "shared",
            "-o",
            "json",
            "--show-managed-fields",
        ])?
        .ok()?
        .json()?;
    let names: Vec<&str> = managers["metadata"]["managedFields"]
        .as_array()
        .context("managedFields")?
        .iter()
        .filter_map(|entry| entry["manager"].as_str())
        .collect();
    ensure!(
        names.contains(&"one") && names.contains(&"two"),
        "{names:?}"
    );
    Ok(())
}

fn edit_patch_replace(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl
        .run(&["create", "configmap", "c", "--from-literal=a=old"])?
        .ok()?;
    let mut edit = kubectl.command(&["edit", "configmap", "c"]);
    edit.env("KUBE_EDITOR", "sed -i s/old/new/");
    conformance::run(&mut edit, "")?.ok()?.says("edited")?;
    ensure!(kubectl.path("configmap/c", "{.data.a}")? == "new");
    kubectl
        .run(&[
            "patch",
            "configmap",
            "c",
            "--type=json",
            "-p",
            "[{\"op\":\"replace\",\"path\":\"/data/a\",\"value\":\"x\"}]",
        ])?
        .ok()?
        .says("patched")?;
    kubectl
        .run(&[
            "patch",
            "configmap",
            "c",
            "--type=merge",
            "-p",
            "{\"data\":{\"b\":\"y\"}}",
        ])?
        .ok()?;
    ensure!(kubectl.path("configmap/c", "{.data}")? == "{\"a\":\"x\",\"b\":\"y\"}");
    kubectl
        .run_with(
            &["replace", "-f", "-"],
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {z: '1'}\n",
        )?
        .ok()?
        .says("replaced")?;
    ensure!(kubectl.path("configmap/c", "{.data}")? == "{\"z\":\"1\"}");
    let stale =
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, resourceVersion: '1'}\ndata: {}\n";
    kubectl
        .run_with(&["replace", "-f", "-"], stale)?
        .refused()?
        .says("the object has been modified")?;
    Ok(())
}

fn explain_and_discovery(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl
        .run(&["explain", "pod.spec.containers"])?
        .ok()?
        .says("FIELDS:")?
        .says("livenessProbe")?;
    kubectl
        .run(&["explain", "deployment.spec.strategy.rollingUpdate.maxSurge"])?
        .ok()?
        .says("maxSurge")?;
    kubectl
        .run(&["explain", "pod.spec.nothing"])?
        .refused()?
        .says("does not exist")?;
    let resources = kubectl
        .run(&["api-resources", "--no-headers"])?
        .ok()?
        .stdout;
    for (name, short) in [
        ("pods", "po"),
        ("deployments", "deploy"),
        ("services", "svc"),
        ("configmaps", "cm"),
        ("namespaces", "ns"),
    ] {
        let found = resources
            .lines()
            .any(|line| line.split_whitespace().take(2).eq([name, short]));
        ensure!(found, "{name} {short} is not in\n{resources}");
    }
    kubectl
        .run(&["api-versions"])?
        .ok()?
        .says("apps/v1")?
        .says("rbac.authorization.k8s.io/v1")?;
    kubectl
        .run(&["version"])?
        .ok()?
        .says("Server Version: v1.36")?;
    kubectl
        .run(&["cluster-info"])?
        .ok()?
        .says("is running at")?;
    Ok(())
}

fn auth_can_i(kubectl: &Kubectl) -> anyhow::Result<()> {
    let account = format!("--as=system:serviceaccount:{}:worker", kubectl.namespace());
    kubectl.run(&["create", "serviceaccount", "worker"])?.ok()?;
    kubectl
        .run(&["auth", "can-i", "create", "pods"])?
        .ok()?
        .says("yes")?;
    kubectl
        .run(&["auth", "can-i", "create", "pods", &account])?
        .refused()?
        .says("no")?;
    kubectl
        .run(&[
            "create",
            "role",
            "maker",
            "--verb=create,get",
            "--resource=pods",
        ])?
        .ok()?;
    let subject = format!("--serviceaccount={}:worker", kubectl.namespace());
    kubectl
        .run(&["create", "rolebinding", "maker", "--role=maker", &subject])?
        .ok()?;
    eventually("permission", || {
        kubectl
            .run(&["auth", "can-i", "create", "pods", &account])?
            .ok()?
            .says("yes")
    })?;
    kubectl
        .run(&["auth", "can-i", "delete", "pods", &account])?
        .refused()?
        .says("no")?;
    kubectl
        .run(&["auth", "can-i", "--list", &account])?
        .ok()?
        .says("pods")?;
    kubectl
        .run(&["get", "secrets", &account])?
        .refused()?
        .says("cannot list resource \"secrets\" in API group \"\" in the namespace")?;
    kubectl
        .run(&["auth", "whoami"])?
        .ok()?
        .says("kubernetes-admin")?;
    Ok(())
}

fn delete_with_owners(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(&deployment("v1", 2, ""))?;
    kubectl.until("deployment/hello", "{.status.readyReplicas}", "2")?;
    kubectl
        .run(&["delete", "deployment", "hello", "--cascade=orphan"])?
        .ok()?;
    let sets = kubectl.path("replicasets", "{.items[*].metadata.ownerReferences}")?;
    ensure!(sets.is_empty(), "the ReplicaSet still has an owner: {sets}");
    let set = kubectl.path("replicasets", "{.items[0].metadata.name}")?;
    kubectl
        .run(&["delete", "replicaset", &set, "--cascade=foreground"])?
        .ok()?;
    let pods = kubectl.path("pods", "{.items[*].metadata.name}")?;
    ensure!(pods.is_empty(), "the owner went before {pods}");
    Ok(())
}

fn namespace_takes_all_with_it(kubectl: &Kubectl) -> anyhow::Result<()> {
    let inside = kubectl.in_new_namespace("doomed")?;
    inside.apply(&deployment("v1", 2, ""))?;
    inside.run(&["create", "configmap", "c"])?.ok()?;
    inside.until("deployment/hello", "{.status.readyReplicas}", "2")?;
    kubectl
        .run(&["delete", "namespace", "doomed", "--timeout=80s"])?
        .ok()?;
    kubectl
        .run(&["get", "namespace", "doomed"])?
        .refused()?
        .says("NotFound")?;
    inside
        .run(&["create", "configmap", "c"])?
        .refused()?
        .says("namespaces \"doomed\" not found")?;
    Ok(())
}

fn create_dry_run_changes_nothing(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl
        .run(&[
            "create",
            "deployment",
            "ghost",
            "--image=x",
            "--dry-run=server",
        ])?
        .ok()?
        .says("created (server dry run)")?;
    kubectl
        .run(&["get", "deployment", "ghost"])?
        .refused()?
        .says("NotFound")?;
    kubectl
        .run(&[
            "create",
            "deployment",
            "ghost",
            "--image=x",
            "--dry-run=client",
            "-o",
            "yaml",
        ])?
        .ok()?
        .says("kind: Deployment")?;
    Ok(())
}
