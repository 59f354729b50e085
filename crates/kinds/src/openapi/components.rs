//! The schemas of a document.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{DELETE_OPTIONS, PATCH, RESOURCE_LIST, STATUS, reference};
use crate::schema::{Form, ListType, MapType, SchemaRef, Type};
use crate::{Kind, Registry, definition, descriptions};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// All schemas that the paths and kinds of a group and version need.
pub(super) fn of(
    registry: &Registry,
    group: &str,
    version: &str,
    kinds: &[&Kind],
) -> Map<String, Value> {
    let mut schemas = Schemas { done: Map::new() };
    for kind in kinds {
        let own = json!([{"group": group, "version": version, "kind": kind.kind()}]);
        schemas.add(&kind.schema());
        if let Some(schema) = schemas.done.get_mut(kind.definition()) {
            schema["x-kubernetes-group-version-kind"] = own;
        }
        if kind.verbs().iter().any(|verb| verb == "list") {
            schemas.add_list(kind);
        }
        for part in kind.subresources() {
            let group = part.group.as_deref().unwrap_or(kind.group());
            let version = part.version.as_deref().unwrap_or(kind.version());
            if let Some(body) = registry.by_kind(group, version, &part.kind) {
                schemas.add(&body.schema());
                if let Some(schema) = schemas.done.get_mut(body.definition()) {
                    schema["x-kubernetes-group-version-kind"] =
                        json!([{"group": group, "version": version, "kind": part.kind}]);
                }
            }
        }
    }
    for (name, kind) in [
        (STATUS, "Status"),
        (DELETE_OPTIONS, "DeleteOptions"),
        (RESOURCE_LIST, "APIResourceList"),
    ] {
        if let Some(found) = definition(name) {
            schemas.add(&found);
        }
        let mut versions = vec![json!({"group": "", "version": "v1", "kind": kind})];
        if kind == "DeleteOptions" && !group.is_empty() {
            versions.push(json!({"group": group, "version": version, "kind": kind}));
        }
        if let Some(schema) = schemas.done.get_mut(name) {
            schema["x-kubernetes-group-version-kind"] = versions.into();
        }
    }
    schemas.done.insert(PATCH.to_owned(), json!({
        "description": "Patch is provided to give a concrete name and type to the Kubernetes PATCH request body.",
        "type": "object",
    }));
    schemas.done
}

struct Schemas {
    done: Map<String, Value>,
}

impl Schemas {
    /// Adds the definition of an object and all that it refers to.
    fn add(&mut self, schema: &SchemaRef) {
        let Some(name) = schema.definition().map(str::to_owned) else {
            return;
        };
        if self.done.contains_key(&name) {
            return;
        }
        self.done.insert(name.clone(), Value::Null);
        let mut words = descriptions::of(&name);
        let mut properties = Map::new();
        let mut required = Vec::new();
        for (field, field_schema) in schema.fields() {
            if field_schema.required() {
                required.push(field.to_owned());
            }
            properties.insert(
                field.to_owned(),
                self.field(&field_schema, words.remove(field)),
            );
        }
        let mut out = json!({"description": words.get(""), "type": "object"});
        if !required.is_empty() {
            out["required"] = json!(required);
        }
        out["properties"] = Value::Object(properties);
        if schema.map_type() == MapType::Atomic {
            out["x-kubernetes-map-type"] = "atomic".into();
        }
        self.done.insert(name, out);
    }

    fn add_list(&mut self, kind: &Kind) {
        let words = descriptions::of(STATUS);
        let word = |field: &str| {
            words
                .get(field)
                .map(Cow::as_ref)
                .unwrap_or_default()
                .to_owned()
        };
        let name = format!("{META}.ListMeta");
        if let Some(metadata) = definition(&name) {
            self.add(&metadata);
        }
        let list = json!({
            "description": format!("{} is a list of {}", kind.list_kind(), kind.kind()),
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": {"description": word("apiVersion"), "type": "string"},
                "kind": {"description": word("kind"), "type": "string"},
                "metadata": {"description": word("metadata"), "default": {}, "allOf": [reference(&name)]},
                "items": {
                    "description": format!("The objects of kind {}.", kind.kind()),
                    "type": "array",
                    "items": {"default": {}, "allOf": [reference(kind.definition())]},
                },
            },
            "x-kubernetes-group-version-kind": [
                {"group": kind.group(), "version": kind.version(), "kind": kind.list_kind()},
            ],
        });
        self.done.insert(format!("{}List", kind.definition()), list);
    }

    fn field(&mut self, schema: &SchemaRef, description: Option<Cow<'static, str>>) -> Value {
        let mut out = self.value(schema, schema.form());
        if let Some(description) = description {
            out.insert("description".to_owned(), description.into());
        }
        if let Some(default) = schema.default_value() {
            out.insert("default".to_owned(), default.clone());
        }
        match (schema.kind_of_value(), schema.list_type()) {
            (Type::List, ListType::Atomic) => {
                drop(out.insert("x-kubernetes-list-type".to_owned(), "atomic".into()))
            }
            (Type::List, ListType::Set) => {
                drop(out.insert("x-kubernetes-list-type".to_owned(), "set".into()))
            }
            (Type::List, ListType::Map(keys)) => {
                out.insert("x-kubernetes-list-type".to_owned(), "map".into());
                out.insert("x-kubernetes-list-map-keys".to_owned(), json!(keys));
            }
            (Type::Map, _) if schema.map_type() == MapType::Atomic => {
                out.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
            }
            _ => {}
        }
        let strategy: Vec<&str> = schema.patch_strategy().collect();
        if !strategy.is_empty() {
            out.insert(
                "x-kubernetes-patch-strategy".to_owned(),
                strategy.join(",").into(),
            );
        }
        if let Some(key) = schema.patch_merge_key() {
            out.insert("x-kubernetes-patch-merge-key".to_owned(), key.into());
        }
        Value::Object(out)
    }

    /// The type of a value. What is always printed has a default.
    fn value(&mut self, schema: &SchemaRef, form: Form) -> Map<String, Value> {
        let printed = matches!(form, Form::Always | Form::Value);
        let mut out = match schema.kind_of_value() {
            Type::Object => {
                self.add(schema);
                let target = reference(schema.definition().unwrap_or_default());
                match form {
                    Form::Value => json!({"default": {}, "allOf": [target]}),
                    _ => json!({"allOf": [target]}),
                }
            }
            Type::List => {
                let items = schema
                    .items()
                    .map(|items| self.element(&items, schema.words()));
                json!({"type": "array", "items": items})
            }
            Type::Map => {
                let values = schema.additional().map(|values| self.element(&values, &[]));
                json!({"type": "object", "additionalProperties": values})
            }
            Type::String if printed => json!({"type": "string", "default": ""}),
            Type::String => json!({"type": "string"}),
            Type::Bytes => json!({"type": "string", "format": "byte"}),
            Type::Boolean if printed => json!({"type": "boolean", "default": false}),
            Type::Boolean => json!({"type": "boolean"}),
            Type::Int32 if printed => json!({"type": "integer", "format": "int32", "default": 0}),
            Type::Int32 => json!({"type": "integer", "format": "int32"}),
            Type::Int64 if printed => json!({"type": "integer", "format": "int64", "default": 0}),
            Type::Int64 => json!({"type": "integer", "format": "int64"}),
            Type::Number => json!({"type": "number", "format": "double"}),
            Type::IntOrString => self.special(
                "io.k8s.apimachinery.pkg.util.intstr.IntOrString",
                json!({
                    "oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string",
                }),
            ),
            Type::Quantity => self.special(
                "io.k8s.apimachinery.pkg.api.resource.Quantity",
                json!({
                    "oneOf": [{"type": "string"}, {"type": "number"}],
                }),
            ),
            Type::Time => self.special(
                &format!("{META}.Time"),
                json!({"type": "string", "format": "date-time"}),
            ),
            Type::MicroTime => self.special(
                &format!("{META}.MicroTime"),
                json!({"type": "string", "format": "date-time"}),
            ),
            Type::Any => json!({"type": "object"}),
        };
        if !schema.words().is_empty() && schema.kind_of_value() == Type::String {
            out["enum"] = json!(schema.words());
        }
        match out {
            Value::Object(fields) => fields,
            _ => Map::new(),
        }
    }

    fn element(&mut self, schema: &SchemaRef, words: &[Cow<'static, str>]) -> Value {
        let mut out = self.value(schema, Form::Value);
        if let (Some(Value::Array(targets)), Type::Quantity | Type::Time | Type::MicroTime) =
            (out.get("allOf"), schema.kind_of_value())
        {
            return targets.first().cloned().unwrap_or_default();
        }
        if !words.is_empty() {
            out.insert("enum".to_owned(), json!(words));
        }
        Value::Object(out)
    }

    /// A type that parses itself and has a definition of its own.
    fn special(&mut self, name: &str, mut schema: Value) -> Value {
        if !self.done.contains_key(name) {
            let mut words: BTreeMap<_, _> = descriptions::of(name);
            if let Some(description) = words.remove("") {
                schema["description"] = description.into();
            }
            self.done.insert(name.to_owned(), schema);
        }
        json!({"allOf": [reference(name)]})
    }
}
