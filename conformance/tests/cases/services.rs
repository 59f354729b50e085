//! Services, names and what leads where.

use std::collections::HashSet;

use anyhow::ensure;
use conformance::{Kubectl, eventually, http_get};

use super::{Case, HELLO, deployment, sleeper};

pub const CASES: &[Case] = &[
    ("service_balances", balances),
    ("service_node_port", node_port),
    (
        "service_leaves_out_what_is_not_ready",
        leaves_out_what_is_not_ready,
    ),
    ("service_names_resolve", names_resolve),
    (
        "service_reaches_the_api_from_a_pod",
        reaches_the_api_from_a_pod,
    ),
    ("service_pod_reaches_itself", pod_reaches_itself),
];

fn balances(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(&deployment("v2", 3, ""))?;
    kubectl
        .run(&[
            "expose",
            "deployment",
            "hello",
            "--port=80",
            "--target-port=3000",
        ])?
        .ok()?
        .says("exposed")?;
    kubectl.until("deployment/hello", "{.status.readyReplicas}", "3")?;
    let address = kubectl.path("service/hello", "{.spec.clusterIP}")?;
    eventually("three different answers", || {
        let answers: anyhow::Result<HashSet<String>> = (0..30)
            .map(|_| http_get(&format!("http://{address}/")))
            .collect();
        let count = answers?.len();
        ensure!(count == 3, "{count} different answers");
        Ok(())
    })?;
    kubectl.run(&["get", "endpointslice"])?.ok()?.says("3000")?;
    kubectl
        .run(&["get", "endpoints", "hello"])?
        .ok()?
        .says(":3000")?;
    kubectl
        .run(&["describe", "service", "hello"])?
        .ok()?
        .says("ClusterIP")?;
    kubectl
        .run(&["scale", "deployment/hello", "--replicas=0"])?
        .ok()?;
    eventually("a refusal, not a silence", || {
        ensure!(
            http_get(&format!("http://{address}/")).is_err(),
            "it still answers"
        );
        Ok(())
    })
}

fn node_port(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(&deployment("v2", 1, ""))?;
    kubectl.apply("apiVersion: v1\nkind: Service\nmetadata: {name: outside}\nspec:\n  type: NodePort\n  selector: {app: hello}\n  ports: [{port: 3000, targetPort: 3000, nodePort: 30123}]\n")?;
    let node = kubectl.path(
        "nodes",
        "{.items[0].status.addresses[?(@.type==\"InternalIP\")].address}",
    )?;
    for host in [node.as_str(), "127.0.0.1"] {
        let body = eventually("an answer at the node's port", || {
            http_get(&format!("http://{host}:30123/"))
        })?;
        ensure!(body.contains("[v2]"), "{body}");
    }
    Ok(())
}

fn leaves_out_what_is_not_ready(kubectl: &Kubectl) -> anyhow::Result<()> {
    let unready = ", readinessProbe: {exec: {command: [cat, /tmp/ready]}, periodSeconds: 1}";
    kubectl.apply(&sleeper("shy", unready, ""))?;
    kubectl.run(&["expose", "pod", "shy", "--port=80"])?.ok()?;
    kubectl.until("pod/shy", "{.status.phase}", "Running")?;
    kubectl.until(
        "endpointslices",
        "{.items[0].endpoints[0].conditions.ready}",
        "false",
    )?;
    kubectl
        .run(&["exec", "shy", "--", "touch", "/tmp/ready"])?
        .ok()?;
    kubectl.until(
        "endpointslices",
        "{.items[0].endpoints[0].conditions.ready}",
        "true",
    )?;
    kubectl
        .run(&["exec", "shy", "--", "rm", "/tmp/ready"])?
        .ok()?;
    kubectl.until(
        "endpointslices",
        "{.items[0].endpoints[0].conditions.ready}",
        "false",
    )
}

fn names_resolve(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(&deployment("v1", 1, ""))?;
    kubectl
        .run(&["expose", "deployment", "hello", "--port=3000"])?
        .ok()?;
    kubectl
        .run(&[
            "expose",
            "deployment",
            "hello",
            "--port=3000",
            "--cluster-ip=None",
            "--name=headless",
        ])?
        .ok()?;
    kubectl.apply(&sleeper("client", "", ""))?;
    kubectl
        .run(&[
            "wait",
            "pod/client",
            "--for=condition=Ready",
            "--timeout=60s",
        ])?
        .ok()?;
    kubectl.until("deployment/hello", "{.status.readyReplicas}", "1")?;
    let namespace = kubectl.namespace();
    let address = kubectl.path("service/hello", "{.spec.clusterIP}")?;
    for name in [
        "hello".to_string(),
        format!("hello.{namespace}"),
        format!("hello.{namespace}.svc.cluster.local"),
    ] {
        eventually("an answer by name", || {
            kubectl
                .run(&[
                    "exec",
                    "client",
                    "--",
                    "wget",
                    "-qO-",
                    &format!("http://{name}:3000/"),
                ])?
                .ok()?
                .says("[v1] Hello, Kubernetes!")
        })?;
    }
    kubectl
        .run(&[
            "exec",
            "client",
            "--",
            "nslookup",
            &format!("hello.{namespace}.svc.cluster.local"),
        ])?
        .ok()?
        .says(&address)?;
    let pod = kubectl.path(
        "pods",
        "{.items[?(@.metadata.labels.app==\"hello\")].status.podIP}",
    )?;
    kubectl
        .run(&[
            "exec",
            "client",
            "--",
            "nslookup",
            &format!("headless.{namespace}.svc.cluster.local"),
        ])?
        .ok()?
        .says(&pod)?;
    kubectl
        .run(&[
            "exec",
            "client",
            "--",
            "nslookup",
            "kubernetes.default.svc.cluster.local",
        ])?
        .ok()?;
    kubectl
        .run(&[
            "exec",
            "client",
            "--",
            "nslookup",
            &format!("nothing.{namespace}.svc.cluster.local"),
        ])?
        .refused()?
        .says("NXDOMAIN")?;
    Ok(())
}

fn reaches_the_api_from_a_pod(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(&sleeper("inside", "", ""))?;
    kubectl
        .run(&[
            "wait",
            "pod/inside",
            "--for=condition=Ready",
            "--timeout=60s",
        ])?
        .ok()?;
    let files = kubectl
        .run(&[
            "exec",
            "inside",
            "--",
            "ls",
            "/var/run/secrets/kubernetes.io/serviceaccount",
        ])?
        .ok()?;
    ensure!(
        files.stdout == "ca.crt\nnamespace\ntoken\n",
        "{}",
        files.stdout
    );
    let namespace = kubectl.namespace();
    // From inside: the API's address is there and listens. Who is there is asked with the pod's token from
    // outside, through the same Service, because busybox cannot speak the server's TLS.
    kubectl
        .run(&[
            "exec",
            "inside",
            "--",
            "sh",
            "-c",
            "nc -w 3 $KUBERNETES_SERVICE_HOST 443 </dev/null",
        ])?
        .ok()?;
    let token = kubectl
        .run(&[
            "exec",
            "inside",
            "--",
            "cat",
            "/var/run/secrets/kubernetes.io/serviceaccount/token",
        ])?
        .ok()?
        .stdout;
    let service = [
        "get",
        "service",
        "kubernetes",
        "--namespace=default",
        "-o",
        "jsonpath={.spec.clusterIP}",
    ];
    let address = kubectl.run(&service)?.ok()?.stdout;
    let ask = |namespace: &str| {
        let words = [
            "-sk",
            "--noproxy",
            "*",
            "--max-time",
            "5",
            "-H",
            &format!("Authorization: Bearer {token}"),
            &format!("https://{address}/api/v1/namespaces/{namespace}/pods"),
        ];
        conformance::run(std::process::Command::new("curl").args(words), "")
    };
    // Nobody allowed it to look at pods, and then somebody does.
    ask(namespace)?
        .says("\"code\":403")?
        .says(&format!("system:serviceaccount:{namespace}:default"))?;
    kubectl
        .run(&[
            "create",
            "rolebinding",
            "look",
            "--clusterrole=view",
            &format!("--serviceaccount={namespace}:default"),
        ])?
        .ok()?;
    eventually("permission", || ask(namespace)?.says("\"PodList\""))?;
    ask("kube-system")?.says("\"code\":403")?;
    Ok(())
}

fn pod_reaches_itself(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: both, labels: {{app: both}}}}\nspec:\n  containers:\n  - {{name: server, image: '{HELLO}:v1'}}\n  - {{name: client, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '3600']}}\n"
    ))?;
    kubectl
        .run(&["expose", "pod", "both", "--port=3000"])?
        .ok()?;
    kubectl
        .run(&["wait", "pod/both", "--for=condition=Ready", "--timeout=60s"])?
        .ok()?;
    for url in ["http://localhost:3000/", "http://both:3000/"] {
        eventually("an answer", || {
            kubectl
                .run(&["exec", "both", "-c", "client", "--", "wget", "-qO-", url])?
                .ok()?
                .says("[v1]")
        })?;
    }
    Ok(())
}
