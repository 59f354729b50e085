//! Walking a value together with its type.

use serde_json::Value;

use super::element::PathElement;
use super::fields::FieldSet;
use crate::shape::{Wanted, wanted};
use crate::{ListKind, Scalar, Shape, go};

/// What ownership sees in a value.
pub(crate) enum View<'a> {
    /// One value: a scalar, null, or an atomic list or map.
    Leaf,
    /// Fields with owners of their own.
    Map(&'a serde_json::Map<String, Value>),
    /// Items with owners of their own.
    List(&'a [Value]),
}

/// How a value of this type is seen.
pub(crate) fn view<'a, S: Shape>(value: &'a Value, shape: Option<&S>) -> View<'a> {
    match value {
        Value::Object(map) if !shape.is_some_and(Shape::is_atomic_map) => View::Map(map),
        Value::Array(items) => match shape.map(Shape::list) {
            Some(ListKind::Set | ListKind::Map(_)) => View::List(items),
            _ => View::Leaf,
        },
        _ => View::Leaf,
    }
}

/// The path element of an item of a list that is a set or a map; `None` if it has no key.
pub(crate) fn element_of<S: Shape>(item: &Value, list: &S) -> Option<PathElement> {
    let ListKind::Map(keys) = list.list() else {
        return Some(PathElement::Value(item.clone()));
    };
    let map = item.as_object()?;
    let element = list.element();
    let mut key: Vec<(String, Value)> = keys
        .into_iter()
        .filter_map(|name| {
            let given = map.get(&name).cloned();
            let default = || element.as_ref()?.default_for_key(&name);
            let value = given.or_else(default)?;
            Some((name, value))
        })
        .collect();
    key.sort_by(|(left, _), (right, _)| left.cmp(right));
    (!key.is_empty()).then_some(PathElement::Key(key))
}

/// The fields that an applied configuration owns.
pub(crate) fn owned<S: Shape>(value: &Value, shape: Option<&S>) -> FieldSet {
    owned_below(value, shape).unwrap_or_default()
}

/// `None` for a leaf: then the field itself is owned.
fn owned_below<S: Shape>(value: &Value, shape: Option<&S>) -> Option<FieldSet> {
    let mut set = FieldSet::new();
    match view(value, shape) {
        View::Leaf => return None,
        View::Map(map) if map.is_empty() => return None,
        View::Map(map) => {
            for (name, value) in map {
                let declared = shape.and_then(|shape| shape.field(name));
                let is_declared = declared.is_some();
                let child = declared.or_else(|| shape?.value());
                let below = owned_below(value, child.as_ref());
                let element = PathElement::field(name);
                if below.is_none() || !is_declared {
                    set.put_member(element.clone());
                }
                set.put_child(element, below.unwrap_or_default());
            }
        }
        View::List(items) => {
            let element_shape = shape.and_then(Shape::element);
            for item in items {
                let Some(element) = shape.and_then(|shape| element_of(item, shape)) else {
                    continue;
                };
                set.put_member(element.clone());
                let below = owned_below(item, element_shape.as_ref()).unwrap_or_default();
                set.put_child(element, below);
            }
        }
    }
    Some(set)
}

/// Adds every declared field that has owned fields below it.
pub(crate) fn with_named_fields<S: Shape>(set: &FieldSet, shape: Option<&S>) -> FieldSet {
    let mut named = set.without_children();
    for (element, child) in set.children() {
        let (below, is_declared) = match element {
            PathElement::Field(name) => {
                let declared = shape.and_then(|shape| shape.field(name));
                let is_declared = declared.is_some();
                (declared.or_else(|| shape?.value()), is_declared)
            }
            _ => (shape.and_then(Shape::element), false),
        };
        if is_declared {
            named.put_member(element.clone());
        }
        named.put_child(element.clone(), with_named_fields(child, below.as_ref()));
    }
    named
}

/// Everything in a configuration that its type does not allow, as the genuine server tells it.
pub(crate) fn faults<S: Shape>(value: &Value, shape: &S) -> Vec<String> {
    let mut faults = Vec::new();
    check(value, Some(shape), &mut String::new(), &mut faults);
    faults
}

fn check<S: Shape>(value: &Value, shape: Option<&S>, path: &mut String, faults: &mut Vec<String>) {
    let mut fault = |text: String| faults.push(format!("{path}: {text}"));
    match (wanted(shape), value) {
        (_, Value::Null) => {}
        (Wanted::Scalar(Scalar::String), other) if !other.is_string() => {
            let found = go::syntax(other);
            fault(format!(
                "expected string, got &value.valueUnstructured{{Value:{found}}}"
            ));
        }
        (Wanted::Scalar(Scalar::Numeric), other) if !other.is_number() => {
            let found = go::type_of(other);
            fault(format!("expected numeric (int or float), got {found}"));
        }
        (Wanted::Scalar(Scalar::Boolean), other) if !other.is_boolean() => {
            fault(format!("expected boolean, got &{{{}}}", go::print(other)));
        }
        (Wanted::List, other) if !other.is_array() => {
            fault(format!("expected list, got &{{{}}}", go::print(other)));
        }
        (Wanted::Map, other) if !other.is_object() => {
            fault(format!("expected map, got &{{{}}}", go::print(other)));
        }
        (_, Value::Object(map)) => {
            for (name, value) in map {
                let child = shape.and_then(|shape| shape.child(name));
                let length = path.len();
                path.push('.');
                path.push_str(name);
                if child.is_none() && shape.is_some_and(|shape| !shape.is_open()) {
                    faults.push(format!("{path}: field not declared in schema"));
                } else {
                    check(value, child.as_ref(), path, faults);
                }
                path.truncate(length);
            }
        }
        (_, Value::Array(items)) => check_items(items, shape, path, faults),
        _ => {}
    }
}

fn check_items<S: Shape>(
    items: &[Value],
    shape: Option<&S>,
    path: &mut String,
    faults: &mut Vec<String>,
) {
    let Some(shape) = shape else { return };
    let kind = shape.list();
    let below = shape.element();
    let mut seen = std::collections::BTreeSet::new();
    for (index, item) in items.iter().enumerate() {
        let element = match kind {
            ListKind::Atomic => PathElement::Index(index as i64),
            _ => match problem(item, &kind) {
                Some(problem) => {
                    faults.push(format!("{path}: element {index}: {problem}"));
                    continue;
                }
                None => match element_of(item, shape) {
                    Some(element) => element,
                    None => {
                        let problem = no_key(&kind);
                        faults.push(format!("{path}: element {index}: {problem}"));
                        continue;
                    }
                },
            },
        };
        if !seen.insert(element.clone()) {
            faults.push(format!("{path}: duplicate entries for key {element}"));
            continue;
        }
        let length = path.len();
        path.push_str(&element.to_string());
        check(item, below.as_ref(), path, faults);
        path.truncate(length);
    }
}

/// Why an item cannot be in a list of this kind.
fn problem(item: &Value, kind: &ListKind) -> Option<&'static str> {
    match (kind, item) {
        (ListKind::Map(_), Value::Null) => {
            Some("associative list with keys may not have a null element")
        }
        (ListKind::Map(_), item) if !item.is_object() => {
            Some("associative list with keys may not have non-map elements")
        }
        (ListKind::Set, Value::Null) => {
            Some("associative list without keys has an element that's an explicit null")
        }
        (ListKind::Set, Value::Array(_)) => {
            Some("not supported: associative list with lists as elements")
        }
        (ListKind::Set, Value::Object(_)) => {
            Some("associative list without keys has an element that's a map type")
        }
        _ => None,
    }
}

fn no_key(kind: &ListKind) -> String {
    let keys = match kind {
        ListKind::Map(keys) => keys.as_slice(),
        _ => &[],
    };
    let keys: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
    format!(
        "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
        keys.join(" ")
    )
}
