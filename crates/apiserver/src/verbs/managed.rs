//! Who manages which field: the types of [`kinds`] as [`patch`] sees them, and the accounts of
//! writes that are not applies.

use std::sync::{Arc, LazyLock};

use kinds::{ListType, MapType, SchemaRef, Type};
use patch::apply::FieldSet;
use patch::{ListKind, Scalar, Shape, Strategy};
use serde_json::{Map, Value};

use super::change::seconds;
use crate::handle::{Call, Resource};
use crate::options::WriteOptions;

/// A place in the schema of a kind.
#[derive(Clone)]
pub(crate) struct Place {
    schema: SchemaRef,
    /// The empty object of the kind, at its root.
    zero: Option<Arc<Value>>,
}

impl Place {
    /// The root of a kind.
    pub(crate) fn root(resource: &Resource) -> Place {
        Place {
            schema: resource.kind.schema(),
            zero: Some(resource.zero.clone()),
        }
    }

    fn at(schema: SchemaRef) -> Place {
        Place { schema, zero: None }
    }
}

/// The object of a kind with nothing set.
pub(crate) fn zero(kind: &kinds::Kind) -> Value {
    let mut object = Value::Object(Map::new());
    kind.decode(&mut object, None);
    object
}

impl Shape for Place {
    fn field(&self, name: &str) -> Option<Place> {
        self.schema.field(name).map(Place::at)
    }

    fn element(&self) -> Option<Place> {
        self.schema.items().map(Place::at)
    }

    fn value(&self) -> Option<Place> {
        self.schema.additional().map(Place::at)
    }

    fn list(&self) -> ListKind {
        match self.schema.list_type() {
            ListType::Atomic => ListKind::Atomic,
            ListType::Set => ListKind::Set,
            ListType::Map(keys) => ListKind::Map(keys),
        }
    }

    fn is_atomic_map(&self) -> bool {
        self.schema.map_type() == MapType::Atomic
    }

    fn patch_strategy(&self) -> Strategy {
        let mut strategy = Strategy::default();
        for word in self.schema.patch_strategy() {
            match word {
                "merge" => strategy.merge = true,
                "replace" => strategy.replace = true,
                "retainKeys" => strategy.retain_keys = true,
                _ => {}
            }
        }
        strategy
    }

    fn patch_merge_key(&self) -> Option<String> {
        self.schema.patch_merge_key().map(str::to_owned)
    }

    fn default_for_key(&self, key: &str) -> Option<Value> {
        let field = self.schema.field(key)?;
        if let Some(default) = field.default_value() {
            return Some(default.clone());
        }
        // What must be given and is not counts as empty, so that validation can say so.
        field.required().then(|| match field.kind_of_value() {
            Type::Int32 | Type::Int64 | Type::Number => Value::from(0),
            _ => Value::from(""),
        })
    }

    fn scalar(&self) -> Option<Scalar> {
        match self.schema.kind_of_value() {
            Type::String | Type::Bytes => Some(Scalar::String),
            Type::Int32 | Type::Int64 | Type::Number => Some(Scalar::Numeric),
            Type::Boolean => Some(Scalar::Boolean),
            Type::Time
            | Type::MicroTime
            | Type::Object
            | Type::Map
            | Type::List
            | Type::IntOrString
            | Type::Quantity
            | Type::Any => None,
        }
    }

    fn is_list(&self) -> bool {
        self.schema.kind_of_value() == Type::List
    }

    fn is_map(&self) -> bool {
        matches!(self.schema.kind_of_value(), Type::Object | Type::Map)
    }

    fn is_open(&self) -> bool {
        self.schema.kind_of_value() != Type::Object
    }

    fn zero(&self) -> Value {
        self.zero
            .as_deref()
            .cloned()
            .unwrap_or_else(|| Value::Object(Map::new()))
    }
}

/// What a write of the object itself does not reach if the kind has a status subresource.
static STATUS: LazyLock<FieldSet> = LazyLock::new(|| FieldSet::of_fields(["status"]));
/// What a write through `status` does not reach.
static SPEC: LazyLock<FieldSet> = LazyLock::new(|| FieldSet::of_fields(["spec"]));
static NOTHING: LazyLock<FieldSet> = LazyLock::new(FieldSet::new);

/// The fields that a write through this door leaves alone.
pub(crate) fn ignored(resource: &Resource, sub: Option<&str>) -> &'static FieldSet {
    let has_status = resource
        .kind
        .subresources()
        .iter()
        .any(|known| known.name == "status");
    match sub {
        None if has_status => &STATUS,
        Some("status") => &SPEC,
        _ => &NOTHING,
    }
}

/// Notes in the new state which fields the caller has written.
pub(crate) fn track(
    call: &Call,
    old: Option<&Value>,
    new: &mut Value,
    options: &WriteOptions,
    sub: Option<&str>,
) {
    let resource = &call.resource;
    let request = patch::apply::Request {
        manager: &options.manager,
        api_version: &resource.api_version,
        subresource: sub.filter(|sub| *sub != "binding").unwrap_or_default(),
        now: &seconds(call.now),
        ignored: ignored(resource, sub),
        force: false,
    };
    patch::apply::update(old, new, &request, &Place::root(resource));
}
