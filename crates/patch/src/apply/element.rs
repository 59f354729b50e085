//! One step of a path to a field.

use std::cmp::Ordering;
use std::fmt;

use serde_json::{Map, Value};

/// One step of a path: into a map by name, into a list by key, by value or by index.
///
/// In `fieldsV1` it is written `f:name`, `k:{"key":"value"}`, `v:value`, `i:index`.
#[derive(Clone, Debug, PartialEq)]
pub enum PathElement {
    /// A field, or a key of a map.
    Field(String),
    /// The item of a list whose key fields have these values, sorted by name.
    Key(Vec<(String, Value)>),
    /// The item of a set.
    Value(Value),
    /// An item by its place. Not made any more, but read.
    Index(i64),
}

/// Why a path element cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElementError {
    /// It begins with none of the known prefixes.
    #[error("unknown path element {0:?}")]
    Prefix(String),
    /// What follows the prefix is not what should.
    #[error("path element {0:?} cannot be read")]
    Content(String),
}

impl PathElement {
    /// A field, or a key of a map.
    pub fn field(name: impl Into<String>) -> Self {
        PathElement::Field(name.into())
    }

    /// Reads the `fieldsV1` form.
    ///
    /// # Errors
    /// When it has no known prefix, or no fitting content after it.
    pub fn parse(text: &str) -> Result<Self, ElementError> {
        let content = |_| ElementError::Content(text.to_owned());
        match text.split_once(':') {
            Some(("f", name)) => Ok(PathElement::field(name)),
            Some(("k", key)) => {
                let key: Map<String, Value> = serde_json::from_str(key).map_err(content)?;
                Ok(PathElement::Key(key.into_iter().collect()))
            }
            Some(("v", value)) => {
                let value = serde_json::from_str(value).map_err(content)?;
                Ok(PathElement::Value(value))
            }
            Some(("i", index)) => {
                let index = index.parse();
                let index = index.map_err(|_| ElementError::Content(text.to_owned()))?;
                Ok(PathElement::Index(index))
            }
            _ => Err(ElementError::Prefix(text.to_owned())),
        }
    }

    /// Writes the `fieldsV1` form.
    pub fn encode(&self) -> String {
        match self {
            PathElement::Field(name) => format!("f:{name}"),
            PathElement::Key(key) => {
                let key: Map<String, Value> = key.iter().cloned().collect();
                format!("k:{}", Value::Object(key))
            }
            PathElement::Value(value) => format!("v:{value}"),
            PathElement::Index(index) => format!("i:{index}"),
        }
    }

    fn rank(&self) -> u8 {
        match self {
            PathElement::Field(_) => 0,
            PathElement::Key(_) => 1,
            PathElement::Value(_) => 2,
            PathElement::Index(_) => 3,
        }
    }
}

/// As in the genuine server's messages: `.name`, `[key="value",key=2]`, `[="value"]`, `[2]`.
impl fmt::Display for PathElement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathElement::Field(name) => write!(formatter, ".{name}"),
            PathElement::Key(key) => {
                formatter.write_str("[")?;
                for (index, (name, value)) in key.iter().enumerate() {
                    let comma = if index > 0 { "," } else { "" };
                    write!(formatter, "{comma}{name}={value}")?;
                }
                formatter.write_str("]")
            }
            PathElement::Value(value) => write!(formatter, "[={value}]"),
            PathElement::Index(index) => write!(formatter, "[{index}]"),
        }
    }
}

impl Eq for PathElement {}

impl PartialOrd for PathElement {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Fields, then keys, then values, then indices; consistent with equality.
impl Ord for PathElement {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (PathElement::Field(left), PathElement::Field(right)) => left.cmp(right),
            (PathElement::Key(left), PathElement::Key(right)) => {
                let part = |(left, right): (&(String, Value), &(String, Value))| {
                    let names = left.0.cmp(&right.0);
                    names.then_with(|| compare(&left.1, &right.1))
                };
                let parts = left.iter().zip(right).map(part);
                let first = parts.into_iter().find(|order| order.is_ne());
                first.unwrap_or_else(|| left.len().cmp(&right.len()))
            }
            (PathElement::Value(left), PathElement::Value(right)) => compare(left, right),
            (PathElement::Index(left), PathElement::Index(right)) => left.cmp(right),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

/// A total order of values: numbers and strings as such, everything else by its JSON.
fn compare(left: &Value, right: &Value) -> Ordering {
    match (left, right) {
        (Value::String(left), Value::String(right)) => left.cmp(right),
        (Value::Number(one), Value::Number(other)) => {
            let floats = one.as_f64().zip(other.as_f64());
            let order = floats.map(|(one, other)| one.total_cmp(&other));
            // 1 and 1.0 are not equal, and large integers are equal as floats.
            let text = || one.to_string().cmp(&other.to_string());
            order.filter(|order| order.is_ne()).unwrap_or_else(text)
        }
        _ => kind(left)
            .cmp(&kind(right))
            .then_with(|| left.to_string().cmp(&right.to_string())),
    }
}

fn kind(value: &Value) -> u8 {
    match value {
        Value::Null => 0,
        Value::Bool(_) => 1,
        Value::Number(_) => 2,
        Value::String(_) => 3,
        Value::Array(_) => 4,
        Value::Object(_) => 5,
    }
}
