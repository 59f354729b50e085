//! Manifests, as people write them.

use serde_json::Value;

/// The objects of a manifest of one or more documents. YAML 1.1 as Kubernetes reads it.
///
/// # Panics
/// When the text is no YAML: it is part of a test.
pub(crate) fn objects(manifest: &str) -> Vec<Value> {
    let documents = manifest
        .split("\n---\n")
        .map(|text| text.trim_start_matches("---\n"));
    documents
        .filter(|text| !text.trim().is_empty())
        .map(|text| {
            let options = serde_saphyr::options! {
                legacy_octal_numbers: true,
                strict_booleans: false,
            };
            serde_saphyr::from_str_with_options(text, options)
                .unwrap_or_else(|error| panic!("{error} in\n{text}"))
        })
        .collect()
}

/// Where an object of the API is reached, and the path without its name.
///
/// # Panics
/// When there is no such kind.
pub(crate) fn path(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let api_version = text(&object["apiVersion"]);
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let name = text(&object["kind"]);
    let kind = kinds::builtin()
        .by_kind(group, version, &name)
        .unwrap_or_else(|| panic!("there is no kind {name} in {api_version}"));
    let root = match group.is_empty() {
        true => format!("/api/{version}"),
        false => format!("/apis/{group}/{version}"),
    };
    let namespace = match kind.namespaced() {
        true => {
            let namespace = object["metadata"]["namespace"]
                .as_str()
                .unwrap_or("default");
            format!("/namespaces/{namespace}")
        }
        false => String::new(),
    };
    let plural = kind.plural();
    let object_name = text(&object["metadata"]["name"]);
    format!("{root}{namespace}/{plural}/{object_name}")
}
