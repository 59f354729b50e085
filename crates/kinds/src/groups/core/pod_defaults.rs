//! What a pod gets for what it leaves out; the templates of workloads share most of it.

use serde_json::{Value, json};

use crate::Quantity;
use crate::read::{entries, fill, flag, list, remove, text};

/// Defaults of a pod.
pub(crate) fn pod(pod: &mut Value) {
    let spec = &mut pod["spec"];
    if spec["enableServiceLinks"].is_null() {
        spec["enableServiceLinks"] = true.into();
    }
    pod_spec(spec);
    let host_network = flag(spec, "hostNetwork");
    each_container(spec, |container| {
        requests_from_limits(&mut container["resources"]);
        if host_network {
            for port in items(container, "ports") {
                if port["hostPort"].is_null() {
                    port["hostPort"] = port["containerPort"].clone();
                }
            }
        }
    });
    pod_requests(spec);
}

/// Defaults that a pod and a template of pods have in common.
pub(crate) fn pod_spec(spec: &mut Value) {
    fill(spec, "dnsPolicy", "ClusterFirst");
    fill(spec, "restartPolicy", "Always");
    fill(spec, "schedulerName", "default-scheduler");
    fill(spec, "terminationGracePeriodSeconds", 30);
    fill(spec, "securityContext", json!({}));
    // Two names of one field: what is set goes into both.
    let account = match text(spec, "serviceAccountName") {
        "" => text(spec, "serviceAccount").to_owned(),
        name => name.to_owned(),
    };
    if !account.is_empty() {
        spec["serviceAccountName"] = account.as_str().into();
        spec["serviceAccount"] = account.into();
    }
    for volume in items(spec, "volumes") {
        self::volume(volume);
    }
    each_container(spec, container);
    for path in ["/resources/limits", "/resources/requests", "/overhead"] {
        if let Some(amounts) = spec.pointer_mut(path) {
            round_up(amounts);
        }
    }
}

/// The items of a list, to be changed.
fn items<'a>(object: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    object
        .get_mut(field)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
}

fn each_container(spec: &mut Value, mut change: impl FnMut(&mut Value)) {
    for field in ["initContainers", "containers", "ephemeralContainers"] {
        items(spec, field).for_each(&mut change);
    }
}

fn container(container: &mut Value) {
    fill(container, "terminationMessagePath", "/dev/termination-log");
    fill(container, "terminationMessagePolicy", "File");
    let policy = pull_policy(text(container, "image"));
    fill(container, "imagePullPolicy", policy);
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(name).filter(|probe| probe.is_object()) {
            self::probe(probe);
        }
    }
    for name in ["postStart", "preStop"] {
        if let Some(handler) = container.pointer_mut(&format!("/lifecycle/{name}")) {
            http_get(handler);
        }
    }
    for variable in items(container, "env") {
        if let Some(field) = variable.pointer_mut("/valueFrom/fieldRef") {
            fill(field, "apiVersion", "v1");
        }
    }
    for kind in ["limits", "requests"] {
        if let Some(amounts) = container.pointer_mut(&format!("/resources/{kind}")) {
            round_up(amounts);
        }
    }
}

fn probe(probe: &mut Value) {
    for (field, value) in [
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ] {
        fill(probe, field, value);
    }
    http_get(probe);
    if let Some(grpc) = probe.get_mut("grpc").filter(|grpc| grpc.is_object()) {
        fill(grpc, "service", "");
    }
}

fn http_get(handler: &mut Value) {
    if let Some(get) = handler.get_mut("httpGet").filter(|get| get.is_object()) {
        fill(get, "path", "/");
        fill(get, "scheme", "HTTP");
    }
}

/// Finer than a thousandth is no resource.
fn round_up(amounts: &mut Value) {
    for amount in amounts
        .as_object_mut()
        .into_iter()
        .flat_map(|amounts| amounts.values_mut())
    {
        if let Some(quantity) = amount
            .as_str()
            .and_then(|text| text.parse::<Quantity>().ok())
            && quantity.nanos() % 1_000_000 != 0
        {
            *amount = Quantity::milli(quantity.milli_value()).to_string().into();
        }
    }
}

fn requests_from_limits(resources: &mut Value) {
    let limits: Vec<(String, Value)> = entries(&resources["limits"])
        .map(|(name, amount)| (name.clone(), amount.clone()))
        .collect();
    for (name, amount) in limits {
        if resources["requests"][&name].is_null() {
            resources["requests"][&name] = amount;
        }
    }
    if resources["requests"].is_null() {
        remove(resources, "requests");
    }
}

/// A pod's own requests: the sum over its containers where they ask for something, else the pod's limit.
fn pod_requests(spec: &mut Value) {
    let Some(limits) = spec
        .pointer("/resources/limits")
        .and_then(Value::as_object)
        .cloned()
    else {
        return;
    };
    for (name, limit) in limits {
        let of_pods = ["cpu", "memory"].contains(&name.as_str()) || name.starts_with("hugepages-");
        if !of_pods || !spec["resources"]["requests"][&name].is_null() {
            continue;
        }
        let asked = |container: &Value| {
            container["resources"]["requests"][&name]
                .as_str()?
                .parse::<Quantity>()
                .ok()
        };
        let sum = list(spec, "containers")
            .iter()
            .filter_map(asked)
            .reduce(|left, right| left + right);
        spec["resources"]["requests"][&name] = sum.map_or(limit, |sum| sum.to_string().into());
    }
}

fn volume(volume: &mut Value) {
    let Value::Object(sources) = volume else {
        return;
    };
    if !sources.keys().any(|field| field != "name") {
        sources.insert("emptyDir".to_owned(), json!({}));
    }
    const MODE: i64 = 0o644;
    for (name, source) in sources.iter_mut() {
        match name.as_str() {
            "secret" | "configMap" => fill(source, "defaultMode", MODE),
            "downwardAPI" => {
                fill(source, "defaultMode", MODE);
                downward_items(source);
            }
            "projected" => {
                fill(source, "defaultMode", MODE);
                items(source, "sources").for_each(projection);
            }
            "hostPath" if source["type"].is_null() => source["type"] = "".into(),
            "ephemeral" => {
                if let Some(claim) = source.pointer_mut("/volumeClaimTemplate/spec") {
                    fill(claim, "volumeMode", "Filesystem");
                }
            }
            "image" => {
                let policy = pull_policy(text(source, "reference"));
                fill(source, "pullPolicy", policy);
            }
            _ => {}
        }
    }
}

fn downward_items(source: &mut Value) {
    for item in items(source, "items") {
        if let Some(field) = item.get_mut("fieldRef").filter(|field| field.is_object()) {
            fill(field, "apiVersion", "v1");
        }
    }
}

fn projection(source: &mut Value) {
    if let Some(token) = source
        .get_mut("serviceAccountToken")
        .filter(|token| token.is_object())
    {
        fill(token, "expirationSeconds", 3600);
    }
    if let Some(downward) = source.get_mut("downwardAPI") {
        downward_items(downward);
    }
}

/// `Always` for images that are called latest, in words or by leaving the tag out.
fn pull_policy(image: &str) -> &'static str {
    match tag(image) {
        Some("latest") => "Always",
        _ => "IfNotPresent",
    }
}

/// The tag of an image reference, `latest` if it has neither tag nor digest; `None` if the text is no reference.
fn tag(image: &str) -> Option<&str> {
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    let path_start = name.rfind('/').map_or(0, |slash| slash + 1);
    let (repository, tag) = match name[path_start..].find(':') {
        Some(colon) => (
            &name[..path_start + colon],
            Some(&name[path_start + colon + 1..]),
        ),
        None => (name, None),
    };
    let (domain, path) = match repository.split_once('/') {
        Some((domain, path))
            if domain.contains(['.', ':'])
                || domain == "localhost"
                || domain.chars().any(char::is_uppercase) =>
        {
            (domain, path)
        }
        _ => ("", repository),
    };
    let domain_symbol = |symbol: char| symbol.is_ascii_alphanumeric() || ".:-[]".contains(symbol);
    let tag_symbol = |symbol: char| symbol.is_ascii_alphanumeric() || "_.-".contains(symbol);
    let good_tag = |tag: &str| {
        !tag.is_empty()
            && tag.len() <= 128
            && tag.chars().all(tag_symbol)
            && !tag.starts_with(['.', '-'])
    };
    let good_digest = |digest: &str| {
        digest
            .split_once(':')
            .is_some_and(|(_, hex)| hex.len() >= 32)
    };
    let valid = path.split('/').all(is_path_part)
        && repository.len() <= 255
        && domain.chars().all(domain_symbol)
        && tag.is_none_or(good_tag)
        && digest.is_none_or(good_digest);
    match (valid, tag, digest) {
        (false, ..) => None,
        (true, Some(tag), _) => Some(tag),
        (true, None, Some(_)) => Some(""),
        (true, None, None) => Some("latest"),
    }
}

/// Lower-case letters and digits, joined by one dot, one or two underscores, or dashes.
fn is_path_part(part: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let edges = part.bytes().next().is_some_and(plain) && part.bytes().last().is_some_and(plain);
    let joined = part
        .bytes()
        .all(|byte| plain(byte) || b"._-".contains(&byte));
    edges
        && joined
        && !["..", "___", "._", "_.", ".-", "-.", "_-", "-_"]
            .iter()
            .any(|pair| part.contains(pair))
}

#[cfg(test)]
mod tests {
    use super::pull_policy;

    #[test]
    fn images_without_a_fixed_tag_are_always_pulled() {
        let check =
            |image: &str, expected: &str| assert_eq!(pull_policy(image), expected, "{image}");
        check("nginx", "Always");
        check("nginx:latest", "Always");
        check("nginx:1.25", "IfNotPresent");
        check("registry:5000/team/app", "Always");
        check("registry:5000/team/app:v1", "IfNotPresent");
        check(
            "nginx@sha256:1111111111111111111111111111111111111111111111111111111111111111",
            "IfNotPresent",
        );
        check("", "IfNotPresent");
        check("UPPER", "IfNotPresent");
    }
}
