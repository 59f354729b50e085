//! A stand-in for the kinds: a shape that is read from a small JSON schema.

use std::sync::Arc;

use patch::{ListKind, Scalar, Shape, Strategy};
use serde_json::Value;

/// A node of a schema. Beside the words of OpenAPI: `list`: "atomic", "set" or the list of keys;
/// `atomic`: true; `merge`: the merge key, or "" for scalars; `open`: unknown fields are kept;
/// `zero`: the object with nothing set.
#[derive(Clone, Debug)]
pub(crate) struct Schema(Arc<Value>);

impl Schema {
    pub(crate) fn new(schema: Value) -> Self {
        Schema(Arc::new(schema))
    }

    fn at(&self, pointer: &str) -> Option<Self> {
        self.0.pointer(pointer).cloned().map(Schema::new)
    }

    fn is_type(&self, name: &str) -> bool {
        self.0["type"] == name
    }
}

impl Shape for Schema {
    fn field(&self, name: &str) -> Option<Self> {
        self.0["properties"].get(name).cloned().map(Schema::new)
    }

    fn element(&self) -> Option<Self> {
        self.at("/items")
    }

    fn value(&self) -> Option<Self> {
        self.at("/additionalProperties")
    }

    fn list(&self) -> ListKind {
        match &self.0["list"] {
            Value::String(kind) if kind == "set" => ListKind::Set,
            Value::Array(keys) => {
                let keys = keys.iter().filter_map(Value::as_str);
                ListKind::Map(keys.map(str::to_owned).collect())
            }
            _ => ListKind::Atomic,
        }
    }

    fn is_atomic_map(&self) -> bool {
        self.0["atomic"] == true
    }

    fn patch_strategy(&self) -> Strategy {
        Strategy {
            merge: self.0.get("merge").is_some(),
            ..Strategy::default()
        }
    }

    fn patch_merge_key(&self) -> Option<String> {
        let key = self.0["merge"].as_str()?;
        (!key.is_empty()).then(|| key.to_owned())
    }

    fn default_for_key(&self, key: &str) -> Option<Value> {
        self.0["properties"][key].get("default").cloned()
    }

    fn scalar(&self) -> Option<Scalar> {
        match self.0["type"].as_str()? {
            "string" => Some(Scalar::String),
            "integer" | "number" => Some(Scalar::Numeric),
            "boolean" => Some(Scalar::Boolean),
            _ => None,
        }
    }

    fn is_list(&self) -> bool {
        self.is_type("array")
    }

    fn is_map(&self) -> bool {
        self.is_type("object")
    }

    fn is_open(&self) -> bool {
        self.0["open"] == true
    }

    fn zero(&self) -> Value {
        let empty = || Value::Object(serde_json::Map::new());
        self.0.get("zero").cloned().unwrap_or_else(empty)
    }
}
