//! What is allowed in a pod but seldom meant.

use serde_json::Value;

use crate::read::{entries, list, text};
use crate::{Quantity, names, quote};

/// Warnings about a pod.
pub(super) fn pod(pod: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    hostname(pod, "this is used in the Pod's hostname", &mut warnings);
    spec(&pod["metadata"], &pod["spec"], "", &mut warnings);
    warnings
}

/// Warnings about a workload and the template of its pods.
pub(crate) fn workload(workload: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    hostname(
        workload,
        "this is used in Pod names and hostnames",
        &mut warnings,
    );
    let template = &workload["spec"]["template"];
    spec(
        &template["metadata"],
        &template["spec"],
        "spec.template.",
        &mut warnings,
    );
    warnings
}

fn hostname(object: &Value, words: &str, warnings: &mut Vec<String>) {
    let name = text(&object["metadata"], "name");
    let mut problems = names::dns1123_label(name);
    if name.contains('.') {
        problems = vec!["must not contain dots".to_owned()];
    }
    if !name.is_empty() && !problems.is_empty() {
        let problems = problems.join(" ");
        let advice = "which can result in surprising behavior; a DNS label is recommended";
        warnings.push(format!("metadata.name: {words}, {advice}: [{problems}]"));
    }
}

/// Labels of nodes that have newer names.
const LABELS: [(&str, &str, &str); 5] = [
    ("beta.kubernetes.io/arch", "kubernetes.io/arch", "v1.14"),
    ("beta.kubernetes.io/os", "kubernetes.io/os", "v1.14"),
    (
        "failure-domain.beta.kubernetes.io/region",
        "topology.kubernetes.io/region",
        "v1.17",
    ),
    (
        "failure-domain.beta.kubernetes.io/zone",
        "topology.kubernetes.io/zone",
        "v1.17",
    ),
    (
        "beta.kubernetes.io/instance-type",
        "node.kubernetes.io/instance-type",
        "v1.17",
    ),
];

/// Kinds of volumes that are going or gone.
const VOLUMES: [(&str, &str, &str); 6] = [
    (
        "gitRepo",
        "gitRepo",
        "deprecated in v1.11, and disabled by default in v1.33+",
    ),
    (
        "glusterfs",
        "glusterfs",
        "deprecated in v1.25, non-functional in v1.26+",
    ),
    (
        "storageos",
        "storageOS",
        "deprecated in v1.22, non-functional in v1.25+",
    ),
    (
        "cephfs",
        "cephfs",
        "deprecated in v1.28, non-functional in v1.31+",
    ),
    (
        "rbd",
        "rbd",
        "deprecated in v1.28, non-functional in v1.31+",
    ),
    (
        "photonPersistentDisk",
        "photonPersistentDisk",
        "deprecated in v1.11, non-functional in v1.16+",
    ),
];

/// `at` is what stands before `spec` and `metadata` in paths.
fn spec(metadata: &Value, spec: &Value, at: &str, warnings: &mut Vec<String>) {
    for (label, newer, since) in LABELS {
        if !spec["nodeSelector"][label].is_null() {
            warnings.push(format!(
                "{at}spec.nodeSelector[{label}]: deprecated since {since}; use {} instead",
                quote(newer)
            ));
        }
    }
    for (index, constraint) in list(spec, "topologySpreadConstraints").iter().enumerate() {
        if constraint["labelSelector"].is_null() {
            warnings.push(format!(
                "{at}spec.topologySpreadConstraints[{index}].labelSelector: {NULL_SELECTOR}"
            ));
        }
    }
    repeated(
        list(spec, "hostAliases"),
        "ip",
        &format!("{at}spec.hostAliases"),
        warnings,
    );
    repeated(
        list(spec, "imagePullSecrets"),
        "name",
        &format!("{at}spec.imagePullSecrets"),
        warnings,
    );
    for (index, secret) in list(spec, "imagePullSecrets").iter().enumerate() {
        if text(secret, "name").is_empty() {
            warnings.push(format!(
                "{at}spec.imagePullSecrets[{index}].name: invalid empty name \"\""
            ));
        }
    }
    for (index, volume) in list(spec, "volumes").iter().enumerate() {
        for (_, told, words) in VOLUMES
            .iter()
            .filter(|(field, ..)| !volume[*field].is_null())
        {
            warnings.push(format!("{at}spec.volumes[{index}].{told}: {words}"));
        }
    }
    for (key, _) in entries(&metadata["annotations"]) {
        if key.starts_with("container.apparmor.security.beta.kubernetes.io/") {
            let words = "deprecated since v1.30; use the \"appArmorProfile\" field instead";
            warnings.push(format!("{at}metadata.annotations[{key}]: {words}"));
        }
    }
    for kind in ["initContainers", "containers"] {
        for (index, container) in list(spec, kind).iter().enumerate() {
            self::container(container, &format!("{at}spec.{kind}[{index}]"), warnings);
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        affinity(
            &spec["affinity"][kind],
            &format!("{at}spec.affinity.{kind}"),
            warnings,
        );
    }
}

const NULL_SELECTOR: &str = "a null labelSelector results in matching no pod";

/// The second and later of items that have the same non-empty word.
fn repeated(items: &[Value], field: &str, path: &str, warnings: &mut Vec<String>) {
    for (index, item) in items.iter().enumerate() {
        let word = text(item, field);
        if !word.is_empty()
            && items[..index]
                .iter()
                .any(|earlier| text(earlier, field) == word)
        {
            warnings.push(format!(
                "{path}[{index}].{field}: duplicate {field} {}",
                quote(word)
            ));
        }
    }
}

fn container(container: &Value, path: &str, warnings: &mut Vec<String>) {
    for kind in ["limits", "requests"] {
        for name in ["memory", "ephemeral-storage"] {
            let Some(amount) = container["resources"][kind][name].as_str() else {
                continue;
            };
            let fraction = amount
                .parse::<Quantity>()
                .is_ok_and(|amount| amount.milli_value() % 1000 != 0);
            if fraction {
                let amount = quote(amount);
                let words =
                    format!("fractional byte value {amount} is invalid, must be an integer");
                warnings.push(format!("{path}.resources.{kind}[{name}]: {words}"));
            }
        }
    }
    let variables = list(container, "env");
    for (index, variable) in variables.iter().enumerate() {
        let name = text(variable, "name");
        let hides = variables[..index]
            .iter()
            .any(|earlier| text(earlier, "name") == name);
        // A value that builds on the one before is meant so.
        let builds = text(variable, "value").contains(&format!("$({name})"));
        if hides && !builds {
            let words = "which may be dropped when using apply";
            warnings.push(format!(
                "{path}.env[{index}]: hides previous definition of {}, {words}",
                quote(name)
            ));
        }
    }
    ports(list(container, "ports"), path, warnings);
}

fn ports(ports: &[Value], path: &str, warnings: &mut Vec<String>) {
    for (index, port) in ports.iter().enumerate() {
        let same = |earlier: &&Value| {
            ["containerPort", "protocol", "hostPort", "hostIP"]
                .iter()
                .all(|field| earlier[*field] == port[*field])
        };
        if let Some(first) = ports[..index].iter().position(|earlier| same(&earlier)) {
            warnings.push(format!(
                "{path}.ports[{index}]: duplicate port definition with {path}.ports[{first}]"
            ));
        }
    }
}

fn affinity(affinity: &Value, path: &str, warnings: &mut Vec<String>) {
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    for (index, term) in list(affinity, required).iter().enumerate() {
        if term["labelSelector"].is_null() {
            warnings.push(format!(
                "{path}.{required}[{index}].labelSelector: {NULL_SELECTOR}"
            ));
        }
    }
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    for (index, term) in list(affinity, preferred).iter().enumerate() {
        if term["podAffinityTerm"]["labelSelector"].is_null() {
            warnings.push(format!(
                "{path}.{preferred}[{index}].podAffinityTerm.labelSelector: {NULL_SELECTOR}"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_seldom_meant_is_told() {
        let check = |spec: Value, expected: &[&str]| {
            let pod_object = json!({"metadata": {"name": "p"}, "spec": spec});
            assert_eq!(
                pod(&pod_object),
                expected,
                "{spec}",
                spec = pod_object["spec"]
            );
        };
        let one = |container: Value| json!({"containers": [container]});
        check(one(json!({"env": [{"name": "A"}, {"name": "B"}]})), &[]);
        let hidden = r#"spec.containers[0].env[1]: hides previous definition of "A", which may be dropped when using apply"#;
        check(
            one(json!({"env": [{"name": "A"}, {"name": "A"}]})),
            &[hidden],
        );
        check(
            one(json!({"env": [{"name": "A"}, {"name": "A", "value": "$(A):x"}]})),
            &[],
        );
        let twice = "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]";
        check(
            one(json!({"ports": [{"containerPort": 80}, {"containerPort": 80, "name": "x"}]})),
            &[twice],
        );
        let fraction = r#"spec.containers[0].resources.limits[memory]: fractional byte value "500m" is invalid, must be an integer"#;
        check(
            one(json!({"resources": {"limits": {"memory": "500m"}}})),
            &[fraction],
        );
        let label = r#"spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use "kubernetes.io/os" instead"#;
        check(
            json!({"nodeSelector": {"beta.kubernetes.io/os": "linux"}}),
            &[label],
        );
        let alias = r#"spec.hostAliases[1].ip: duplicate ip "1.2.3.4""#;
        check(
            json!({"hostAliases": [{"ip": "1.2.3.4"}, {"ip": "1.2.3.4"}]}),
            &[alias],
        );
    }

    #[test]
    fn a_name_with_dots_is_a_poor_host_name() {
        let words = "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: [must not contain dots]";
        assert_eq!(workload(&json!({"metadata": {"name": "a.b"}})), [words]);
    }
}
