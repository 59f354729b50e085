//! Bad input is normal input: a message that names the thing, and nothing that was stored is hurt.

use anyhow::ensure;
use conformance::{Kubectl, eventually, run};

use super::{Case, deployment};

pub const CASES: &[Case] = &[
    ("mistake_no_yaml", no_yaml),
    ("mistake_wrong_kind_and_fields", wrong_kind_and_fields),
    ("mistake_invalid_values", invalid_values),
    ("mistake_too_large", too_large),
    ("mistake_immutable_fields", immutable_fields),
    ("mistake_strangers_are_refused", strangers_are_refused),
    ("mistake_malformed_requests", malformed_requests),
];

fn create(kubectl: &Kubectl, manifest: &str) -> anyhow::Result<conformance::Said> {
    kubectl.run_with(&["create", "-f", "-"], manifest)
}

fn no_yaml(kubectl: &Kubectl) -> anyhow::Result<()> {
    create(kubectl, "a: [b\n")?.refused()?.says("error")?;
    create(kubectl, "just words\n")?.refused()?;
    Ok(())
}

fn wrong_kind_and_fields(kubectl: &Kubectl) -> anyhow::Result<()> {
    create(kubectl, "apiVersion: v1\nkind: Pood\nmetadata: {name: x}\n")?
        .refused()?
        .says("no matches for kind \"Pood\" in version \"v1\"")?;
    create(
        kubectl,
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndatum: {}\n",
    )?
    .refused()?
    .says("unknown field \"datum\"")?;
    create(
        kubectl,
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata: [1]\n",
    )?
    .refused()?
    .says("json: cannot unmarshal")?;
    kubectl
        .run(&["get", "unicorns"])?
        .refused()?
        .says("the server doesn't have a resource type \"unicorns\"")?;
    Ok(())
}

fn invalid_values(kubectl: &Kubectl) -> anyhow::Result<()> {
    create(
        kubectl,
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: Big_Name}\n",
    )?
    .refused()?
    .says("a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters")?;
    create(
        kubectl,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: []}\n",
    )?
    .refused()?
    .says("spec.containers: Required value")?;
    create(
        kubectl,
        &deployment("v1", 1, ", ports: [{containerPort: 70000}]"),
    )?
    .refused()?
    .says("must be between 1 and 65535, inclusive")?;
    create(kubectl, "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {type: NodePort, ports: [{port: 80, nodePort: 80}]}\n")?
        .refused()?
        .says("provided port is not in the valid range")?;
    Ok(())
}

fn too_large(kubectl: &Kubectl) -> anyhow::Result<()> {
    let manifest = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: big}}\ndata: {{a: '{}'}}\n",
        "x".repeat(3 << 20)
    );
    create(kubectl, &manifest)?
        .refused()?
        .says("equest entity too large")?;
    let manifest = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: big}}\ndata: {{a: '{}'}}\n",
        "x".repeat(2 << 20)
    );
    create(kubectl, &manifest)?.refused()?.says("Too long")?;
    kubectl.run(&["get", "configmap", "big"])?.refused()?;
    Ok(())
}

fn immutable_fields(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(&deployment("v1", 0, ""))?;
    kubectl
        .run(&[
            "patch",
            "deployment",
            "hello",
            "-p",
            "{\"spec\":{\"selector\":{\"matchLabels\":{\"app\":\"x\"}}}}",
        ])?
        .refused()?
        .says("field is immutable")?;
    ensure!(kubectl.path("deployment/hello", "{.spec.selector.matchLabels.app}")? == "hello");
    Ok(())
}

/// The server's URL and a file with its certificate authority.
fn server(kubectl: &Kubectl) -> anyhow::Result<String> {
    let view = kubectl
        .run(&[
            "config",
            "view",
            "--raw",
            "-o",
            "jsonpath={.clusters[0].cluster.server}",
        ])?
        .ok()?;
    Ok(view.stdout)
}

fn curl(words: &[&str]) -> anyhow::Result<String> {
    let said = run(
        std::process::Command::new("curl")
            .args([
                "-sk",
                "--noproxy",
                "*",
                "--max-time",
                "10",
                "-w",
                "\n%{http_code}",
            ])
            .args(words),
        "",
    )?;
    Ok(said.stdout)
}

fn strangers_are_refused(kubectl: &Kubectl) -> anyhow::Result<()> {
    let server = server(kubectl)?;
    let anonymous = curl(&[&format!("{server}/api/v1/secrets")])?;
    ensure!(
        anonymous.ends_with("403") && anonymous.contains("system:anonymous"),
        "{anonymous}"
    );
    let forged = curl(&[
        "-H",
        "Authorization: Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJzeXN0ZW06bWFzdGVycyJ9.",
        &format!("{server}/api"),
    ])?;
    ensure!(forged.ends_with("401"), "{forged}");
    for (header, code) in [
        ("Impersonate-User: kubernetes-admin", "403"),
        // A group without a user is refused before anybody is asked.
        ("Impersonate-Group: system:masters", "400"),
        ("X-Remote-User: admin", "403"),
    ] {
        let answer = curl(&["-H", header, &format!("{server}/api/v1/secrets")])?;
        ensure!(answer.ends_with(code), "{header}: {answer}");
    }
    ensure!(curl(&[&format!("{server}/healthz")])?.starts_with("ok"));
    paths_are_not_walked(kubectl, &server)
}

/// `..` in a path is a name like any other. Not through kubectl: newer ones clean paths themselves.
fn paths_are_not_walked(kubectl: &Kubectl, server: &str) -> anyhow::Result<()> {
    let namespace = kubectl.namespace();
    kubectl
        .run(&[
            "create",
            "rolebinding",
            "all-here",
            "--clusterrole=admin",
            &format!("--serviceaccount={namespace}:default"),
        ])?
        .ok()?;
    let token = kubectl.run(&["create", "token", "default"])?.ok()?.stdout;
    let bearer = format!("Authorization: Bearer {}", token.trim());
    let ask = |path: &str| {
        let url = format!("{server}/api/v1/namespaces/{namespace}/{path}");
        curl(&["--path-as-is", "-H", &bearer, &url])
    };
    eventually("the binding holds", || {
        let answer = ask("secrets")?;
        ensure!(answer.ends_with("200"), "{answer}");
        Ok(())
    })?;
    for path in [
        "pods/../secrets",
        "pods/%2e%2e/secrets",
        "pods/%2e%2e%2fsecrets",
    ] {
        let answer = ask(path)?;
        ensure!(
            answer.ends_with("404") || answer.ends_with("403"),
            "{path}: {answer}"
        );
    }
    Ok(())
}

fn malformed_requests(kubectl: &Kubectl) -> anyhow::Result<()> {
    let raw = |path: &str| kubectl.run(&["get", "--raw", path]);
    raw("/api/v1/pods?limit=minus")?.refused()?;
    raw("/api/v1/pods?labelSelector=a%20b%20c")?.refused()?;
    raw("/api/v1/pods?fieldSelector=spec.unknown%3Dx")?
        .refused()?
        .says("field label not supported")?;
    raw("/api/v1/pods?continue=nonsense")?.refused()?;
    raw("/apis/nothing/v1/things")?
        .refused()?
        .says("could not find the requested resource")?;
    let deep = format!("{}1{}", "[".repeat(5000), "]".repeat(5000));
    kubectl.run_with(&["create", "--validate=false", "-f", "-"], &format!("{{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{{\"name\":\"deep\"}},\"data\":{deep}}}"))?.refused()?;
    raw("/healthz")?.ok()?.says("ok")?;
    Ok(())
}
