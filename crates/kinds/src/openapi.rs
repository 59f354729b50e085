//! The OpenAPI v3 documents: one for each group and version, with its schemas and paths.
//!
//! Clients read them to explain fields, to see which parameters a path takes, and to merge as the server does.
//! They are made when asked for: the facts they are made of are needed for other things anyway.

mod components;
mod parameters;

use serde_json::{Map, Value, json};

use crate::kind::Subresource;
use crate::{Kind, Registry};

const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const RESOURCE_LIST: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.APIResourceList";
const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";

impl Registry {
    /// The paths below `/openapi/v3/` that have a document: `api/v1`, `apis/apps/v1`.
    pub fn openapi_paths(&self) -> Vec<String> {
        let of_group = |(group, versions): (&str, Vec<&str>)| {
            let base = if group.is_empty() {
                "api".to_owned()
            } else {
                format!("apis/{group}")
            };
            versions
                .into_iter()
                .map(move |version| format!("{base}/{version}"))
                .collect::<Vec<_>>()
        };
        self.group_versions()
            .into_iter()
            .flat_map(of_group)
            .collect()
    }

    /// The document of a path of [`openapi_paths`](Registry::openapi_paths).
    pub fn openapi_v3(&self, path: &str) -> Option<Value> {
        let (group, version) = match path.split('/').collect::<Vec<_>>().as_slice() {
            ["api", version] => ("", *version),
            ["apis", group, version] => (*group, *version),
            _ => return None,
        };
        let kinds: Vec<&Kind> = self
            .all()
            .filter(|kind| kind.group() == group && kind.version() == version)
            .collect();
        let served: Vec<&Kind> = kinds
            .iter()
            .copied()
            .filter(|kind| !kind.plural().is_empty())
            .collect();
        if served.is_empty() {
            return None;
        }
        let mut paths = Map::new();
        let writer = Writer {
            registry: self,
            group,
            version,
            root: format!("/{path}"),
        };
        paths.insert(format!("/{path}/"), writer.resources());
        for kind in served {
            writer.kind(kind, &mut paths);
        }
        let schemas = components::of(self, group, version, &kinds);
        Some(json!({
            "openapi": "3.0.0",
            "info": {"title": "Kubernetes", "version": "1.36"},
            "paths": paths,
            "components": {
                "schemas": schemas,
                "securitySchemes": {"BearerToken": {
                    "type": "apiKey", "description": "Bearer Token authentication", "name": "authorization", "in": "header",
                }},
            },
        }))
    }
}

/// Writes the paths of one group and version.
struct Writer<'a> {
    registry: &'a Registry,
    group: &'a str,
    version: &'a str,
    root: String,
}

/// What an operation speaks of: the kind of its body and how it is told of.
struct Subject<'a> {
    definition: &'a str,
    group: &'a str,
    version: &'a str,
    kind: &'a str,
    /// `NamespacedPod`, `NamespacedPodStatus`: the end of the operation's id.
    id: String,
    words: String,
}

impl Writer<'_> {
    /// `CoreV1`, `RbacAuthorizationV1`: the middle of operation ids.
    fn id(&self) -> String {
        let group = match self.group {
            "" => "core",
            group => group.trim_end_matches(".k8s.io"),
        };
        let words = group.split(['.', '-']).chain([self.version]);
        words.map(capitalized).collect()
    }

    fn tag(&self) -> String {
        let group = match self.group {
            "" => "core",
            group => group.trim_end_matches(".k8s.io"),
        };
        let words: Vec<String> = group
            .split('.')
            .enumerate()
            .map(|(index, word)| {
                if index == 0 {
                    word.to_owned()
                } else {
                    capitalized(word)
                }
            })
            .collect();
        format!("{}_{}", words.concat(), self.version)
    }

    fn resources(&self) -> Value {
        json!({"get": {
            "tags": [self.tag()],
            "description": "get available resources",
            "operationId": format!("get{}APIResources", self.id()),
            "responses": responses(&["200"], reference(RESOURCE_LIST), false),
        }})
    }

    fn operation(&self, verb: &str, action: &str, words: &str, subject: &Subject<'_>) -> Value {
        json!({
            "tags": [self.tag()],
            "description": words,
            "operationId": format!("{verb}{}{}", self.id(), subject.id),
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": {
                "group": subject.group, "version": subject.version, "kind": subject.kind,
            },
        })
    }

    fn kind(&self, kind: &Kind, paths: &mut Map<String, Value>) {
        let scope = if kind.namespaced() { "Namespaced" } else { "" };
        let subject = Subject {
            definition: kind.definition(),
            group: kind.group(),
            version: kind.version(),
            kind: kind.kind(),
            id: format!("{scope}{}", kind.kind()),
            words: kind.kind().to_owned(),
        };
        let has = |verb: &str| kind.verbs().iter().any(|known| known == verb);
        let collection = match kind.namespaced() {
            true => format!("{}/namespaces/{{namespace}}/{}", self.root, kind.plural()),
            false => format!("{}/{}", self.root, kind.plural()),
        };
        let mut entry = Map::new();
        if has("list") {
            entry.insert("get".to_owned(), self.list(kind, &subject.id, true));
        }
        if has("create") {
            entry.insert("post".to_owned(), self.create(&subject));
        }
        if has("deletecollection") {
            entry.insert("delete".to_owned(), self.delete_collection(kind));
        }
        entry.insert(
            "parameters".to_owned(),
            parameters::of_path(kind.namespaced(), None),
        );
        paths.insert(collection.clone(), Value::Object(entry));
        if kind.namespaced() && has("list") {
            let everywhere = format!("{}ForAllNamespaces", kind.kind());
            let mut entry = json!({"get": self.list(kind, &everywhere, false)});
            entry["parameters"] = parameters::of_list(true);
            paths.insert(format!("{}/{}", self.root, kind.plural()), entry);
        }
        if kind.is_virtual() {
            return;
        }
        let one = format!("{collection}/{{name}}");
        let mut entry = self.one(&subject, kind.verbs());
        entry.insert(
            "parameters".to_owned(),
            parameters::of_path(kind.namespaced(), Some(kind.kind())),
        );
        paths.insert(one.clone(), Value::Object(entry));
        for part in kind.subresources() {
            self.part(kind, part, &one, paths);
        }
    }

    fn part(&self, kind: &Kind, part: &Subresource, one: &str, paths: &mut Map<String, Value>) {
        let group = part.group.as_deref().unwrap_or(kind.group());
        let version = part.version.as_deref().unwrap_or(kind.version());
        let body = self.registry.by_kind(group, version, &part.kind);
        let scope = if kind.namespaced() { "Namespaced" } else { "" };
        let subject = Subject {
            definition: body.map(Kind::definition).unwrap_or_default(),
            group,
            version,
            kind: &part.kind,
            id: format!("{scope}{}{}", kind.kind(), capitalized(&part.name)),
            words: format!("{} of the specified {}", part.name, kind.kind()),
        };
        let mut entry = match (part.name.as_str(), body) {
            ("log", _) => self.log(&subject),
            (_, None) => self.connect(&subject, &part.verbs),
            (_, Some(_)) => self.one(&subject, &part.verbs),
        };
        let mut parameters = parameters::of_path(kind.namespaced(), Some(&part.kind));
        if let Value::Array(list) = &mut parameters {
            list.extend(parameters::of_part(&part.name));
        }
        entry.insert("parameters".to_owned(), parameters);
        paths.insert(format!("{one}/{}", part.name), Value::Object(entry));
    }

    /// What can be done with one object, or with a part of one.
    fn one(&self, subject: &Subject<'_>, verbs: &[String]) -> Map<String, Value> {
        let mut entry = Map::new();
        let body = || reference(subject.definition);
        let part = subject.words.contains(" of the ");
        let the = |verb: &str| {
            format!(
                "{verb} {}{}",
                if part { "" } else { "the specified " },
                subject.words
            )
        };
        for verb in verbs {
            let (method, operation) = match verb.as_str() {
                "get" => {
                    let mut operation = self.operation("read", "get", &the("read"), subject);
                    operation["responses"] = responses(&["200"], body(), false);
                    ("get", operation)
                }
                "update" => {
                    let mut operation = self.operation("replace", "put", &the("replace"), subject);
                    operation["parameters"] = parameters::of_write(false);
                    operation["requestBody"] =
                        json!({"content": {"*/*": {"schema": body()}}, "required": true});
                    operation["responses"] = responses(&["200", "201"], body(), false);
                    ("put", operation)
                }
                "patch" => {
                    let mut operation =
                        self.operation("patch", "patch", &the("partially update"), subject);
                    operation["parameters"] = parameters::of_write(true);
                    let forms = [
                        "application/apply-patch+yaml",
                        "application/json-patch+json",
                        "application/merge-patch+json",
                        "application/strategic-merge-patch+json",
                    ];
                    let content: Map<String, Value> = forms
                        .into_iter()
                        .map(|form| (form.to_owned(), json!({"schema": reference(PATCH)})))
                        .collect();
                    operation["requestBody"] = json!({"content": content, "required": true});
                    operation["responses"] = responses(&["200", "201"], body(), false);
                    ("patch", operation)
                }
                "delete" => {
                    let mut operation = self.operation(
                        "delete",
                        "delete",
                        &format!("delete a {}", subject.words),
                        subject,
                    );
                    operation["parameters"] = parameters::of_delete();
                    operation["requestBody"] =
                        json!({"content": {"*/*": {"schema": reference(DELETE_OPTIONS)}}});
                    operation["responses"] = responses(&["200", "202"], reference(STATUS), false);
                    ("delete", operation)
                }
                "create" if part => ("post", self.create(subject)),
                _ => continue,
            };
            entry.insert(method.to_owned(), operation);
        }
        entry
    }

    fn list(&self, kind: &Kind, id: &str, with_parameters: bool) -> Value {
        let subject = Subject {
            definition: "",
            group: kind.group(),
            version: kind.version(),
            kind: kind.kind(),
            id: id.to_owned(),
            words: String::new(),
        };
        let words = format!("list or watch objects of kind {}", kind.kind());
        let mut operation = self.operation("list", "list", &words, &subject);
        if with_parameters {
            operation["parameters"] = parameters::of_list(false);
        }
        operation["responses"] = responses(
            &["200"],
            reference(&format!("{}List", kind.definition())),
            true,
        );
        operation
    }

    fn create(&self, subject: &Subject<'_>) -> Value {
        let article = if subject.kind.starts_with(['A', 'E', 'I', 'O', 'U']) {
            "an"
        } else {
            "a"
        };
        let words = format!("create {article} {}", subject.words);
        let body = || reference(subject.definition);
        let mut operation = self.operation("create", "post", &words, subject);
        operation["parameters"] = parameters::of_create();
        operation["requestBody"] =
            json!({"content": {"*/*": {"schema": body()}}, "required": true});
        operation["responses"] = responses(&["200", "201", "202"], body(), false);
        operation
    }

    fn delete_collection(&self, kind: &Kind) -> Value {
        let scope = if kind.namespaced() { "Namespaced" } else { "" };
        let subject = Subject {
            definition: "",
            group: kind.group(),
            version: kind.version(),
            kind: kind.kind(),
            id: format!("Collection{scope}{}", kind.kind()),
            words: String::new(),
        };
        let words = format!("delete collection of {}", kind.kind());
        let mut operation = self.operation("delete", "deletecollection", &words, &subject);
        operation["parameters"] = parameters::of_delete_collection();
        operation["requestBody"] =
            json!({"content": {"*/*": {"schema": reference(DELETE_OPTIONS)}}});
        operation["responses"] = responses(&["200"], reference(STATUS), false);
        operation
    }

    fn connect(&self, subject: &Subject<'_>, verbs: &[String]) -> Map<String, Value> {
        let mut entry = Map::new();
        for verb in verbs {
            let method = if verb == "create" { "post" } else { "get" };
            let words = format!(
                "connect {} requests to {}",
                method.to_uppercase(),
                subject.words
            );
            let mut operation = self.operation(
                &format!("connect{}", capitalized(method)),
                "connect",
                &words,
                subject,
            );
            operation["responses"] = json!({
                "200": {"description": "OK", "content": {"*/*": {"schema": {"type": "string"}}}},
                "401": {"description": "Unauthorized"},
            });
            entry.insert(method.to_owned(), operation);
        }
        entry
    }

    fn log(&self, subject: &Subject<'_>) -> Map<String, Value> {
        let mut operation =
            self.operation("read", "get", &format!("read {}", subject.words), subject);
        operation["responses"] = json!({
            "200": {"description": "OK", "content": {"text/plain": {"schema": {"type": "string"}}}},
            "401": {"description": "Unauthorized"},
        });
        Map::from_iter([("get".to_owned(), operation)])
    }
}

fn capitalized(word: &str) -> String {
    let mut symbols = word.chars();
    symbols
        .next()
        .map(|first| first.to_uppercase().chain(symbols).collect())
        .unwrap_or_default()
}

/// A reference to a schema of the same document.
fn reference(definition: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{definition}")})
}

fn responses(codes: &[&str], schema: Value, watch: bool) -> Value {
    let mut out = Map::new();
    for code in codes {
        let words = match *code {
            "201" => "Created",
            "202" => "Accepted",
            _ => "OK",
        };
        let mut content = json!({
            "application/json": {"schema": schema},
            "application/yaml": {"schema": schema},
        });
        if watch {
            content["application/json;stream=watch"] = json!({"schema": schema});
        }
        out.insert(
            (*code).to_owned(),
            json!({"description": words, "content": content}),
        );
    }
    out.insert("401".to_owned(), json!({"description": "Unauthorized"}));
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin;

    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match value.as_str() {
                        Some(target) if name == "$ref" => found.push(target.to_owned()),
                        _ => references(value, found),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_document_is_closed() {
        for path in builtin().openapi_paths() {
            let document = builtin()
                .openapi_v3(&path)
                .expect("a listed path has a document");
            let mut found = Vec::new();
            references(&document, &mut found);
            for target in found {
                let pointer = target.trim_start_matches('#');
                assert!(
                    document.pointer(pointer).is_some(),
                    "{path} refers to {target}"
                );
            }
        }
        assert_eq!(builtin().openapi_v3("apis/nothing/v1"), None);
    }

    #[test]
    fn clients_find_the_parameters_of_a_patch_by_the_kind() {
        let document = builtin().openapi_v3("apis/apps/v1").expect("apps");
        let patch =
            &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(
            patch["x-kubernetes-group-version-kind"]["kind"],
            "Deployment"
        );
        let names: Vec<&str> = patch["parameters"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|parameter| parameter["name"].as_str())
            .collect();
        assert_eq!(
            names,
            ["dryRun", "fieldManager", "fieldValidation", "force"]
        );
    }

    #[test]
    fn operations_have_ids_of_their_own() {
        let mut seen = std::collections::BTreeSet::new();
        for path in builtin().openapi_paths() {
            let document = builtin()
                .openapi_v3(&path)
                .expect("a listed path has a document");
            for (at, entry) in document["paths"].as_object().into_iter().flatten() {
                for operation in entry
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(_, operation)| operation)
                {
                    if let Some(id) = operation["operationId"].as_str() {
                        assert!(seen.insert(id.to_owned()), "{id} again at {at}");
                    }
                }
            }
        }
    }
}
