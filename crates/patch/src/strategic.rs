//! Strategic merge patch: a merge patch that knows which lists to merge, and by what key.
//!
//! Directives stand inside the patch:
//!
//! | directive | where | means |
//! |---|---|---|
//! | `$patch: replace` / `delete` | in a map | the rest of the patch instead of the map / nothing |
//! | `$patch: replace` | in an item of a keyed list | the other items of the patch instead of the list |
//! | `$patch: delete` | in an item of a keyed list | the item with this key goes |
//! | `$deleteFromPrimitiveList/f` | beside list `f` | these values go |
//! | `$setElementOrder/f` | beside list `f` | the order of the items named here |
//! | `$retainKeys` | in a map | all other members go |
//!
//! (Kubernetes, contributors/devel/sig-api-machinery/strategic-merge-patch.md.)

use serde_json::{Map, Value};

use crate::{Shape, go};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ELEMENT_ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";

type Object = Map<String, Value>;

/// Why a strategic merge patch is refused. The genuine server answers 400 for
/// [`StrategicError::NotAnObject`] and [`StrategicError::RetainKeys`], else 500, with these texts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StrategicError {
    /// It is no object.
    #[error("json: cannot unmarshal {found} into Go value of type map[string]interface {{}}")]
    NotAnObject {
        /// What it is.
        found: &'static str,
    },
    /// `$retainKeys` is no list, or does not name a member that the patch sets.
    #[error("invalid patch format of retainKeys")]
    RetainKeys,
    /// `$patch` has a value that means nothing there.
    #[error("unknown patch type: {kind} in map: {map}")]
    Directive {
        /// The value.
        kind: String,
        /// The map that it stands in, as Go prints it.
        map: String,
    },
    /// `$patch: merge` in an item of a list.
    #[error("merging lists cannot yet be specified in the patch")]
    MergeList,
    /// An item of a keyed list lacks its key.
    #[error("map: {map} does not contain declared merge key: {key}")]
    MergeKey {
        /// The item, as Go prints it.
        map: String,
        /// The field that is missing.
        key: String,
    },
    /// A list that is merged has maps as items, and its type does not say by which field.
    #[error("cannot merge lists without merge key for list {field}")]
    NoMergeKey {
        /// The list's name.
        field: String,
    },
    /// The items of the two lists are not of one type.
    #[error("list element types are not identical: [{original} {patch}]")]
    Elements {
        /// The list that is there, as Go prints it.
        original: String,
        /// The list of the patch, as Go prints it.
        patch: String,
    },
    /// Items of a list that is merged are lists.
    #[error("lists of lists are not supported")]
    Lists,
    /// A directive has a value of the wrong type.
    #[error("expected a {expected}, but received a {found}")]
    Type {
        /// The Go type that is expected.
        expected: &'static str,
        /// The Go type of what stands there.
        found: &'static str,
    },
    /// The items of the patch stand in another order than `$setElementOrder` says.
    #[error("The order in patch list:\n{patch}\n doesn't match $setElementOrder list:\n{order}\n")]
    Order {
        /// The list of the patch, as Go prints it.
        patch: String,
        /// The order, as Go prints it.
        order: String,
    },
}

/// Merges `patch` into `doc`, an object of type `shape`.
///
/// # Errors
/// When the patch cannot be understood. `doc` is as it was then.
pub fn strategic<S: Shape>(
    doc: &mut Value,
    patch: &Value,
    shape: &S,
) -> Result<(), StrategicError> {
    let patch = match patch {
        Value::Null => return Ok(()),
        Value::Object(patch) => patch,
        other => {
            let found = go::json_kind(other);
            return Err(StrategicError::NotAnObject { found });
        }
    };
    let original = doc.as_object().cloned().unwrap_or_default();
    *doc = Value::Object(merge_map(original, patch, Some(shape))?);
    Ok(())
}

fn is_directive(name: &str) -> bool {
    name == PATCH
        || name == RETAIN_KEYS
        || name.starts_with(ELEMENT_ORDER)
        || name.starts_with(DELETE_PRIMITIVES)
}

fn merge_map<S: Shape>(
    mut original: Object,
    patch: &Object,
    shape: Option<&S>,
) -> Result<Object, StrategicError> {
    if let Some(directive) = patch.get(PATCH) {
        return match directive.as_str() {
            Some("replace") => Ok(without_directives(patch)),
            Some("delete") => Ok(Object::new()),
            _ => Err(unknown_directive(directive, patch)),
        };
    }
    retain_keys(&mut original, patch)?;
    for (name, values) in patch {
        if let Some(field) = name.strip_prefix(DELETE_PRIMITIVES)
            && let (Some(Value::Array(items)), Some(values)) =
                (original.get_mut(field), values.as_array())
        {
            items.retain(|item| !values.contains(item));
        }
    }
    for (name, value) in patch {
        if is_directive(name) {
            continue;
        }
        let child = shape.and_then(|shape| shape.child(name));
        let order = order_of(patch, name)?;
        if order.is_some() && !value.is_array() {
            return Err(type_error("[]interface {}", value));
        }
        if let Some(merged) = merge_member(&original, name, value, order, child.as_ref())? {
            original.insert(name.clone(), merged);
        } else {
            original.remove(name);
        }
    }
    for name in patch.keys() {
        if let Some(field) = name.strip_prefix(ELEMENT_ORDER)
            && !patch.contains_key(field)
            && let Some(order) = order_of(patch, field)?
            && let Some(Value::Array(items)) = original.get(field)
        {
            let key = shape
                .and_then(|shape| shape.child(field))
                .and_then(|child| child.patch_merge_key());
            let ordered = in_order(items.clone(), order, items, key.as_deref());
            original.insert(field.to_owned(), Value::Array(ordered));
        }
    }
    Ok(original)
}

fn unknown_directive(directive: &Value, patch: &Object) -> StrategicError {
    StrategicError::Directive {
        kind: go::as_string(directive),
        map: go::print(&Value::Object(patch.clone())),
    }
}

fn type_error(expected: &'static str, found: &Value) -> StrategicError {
    StrategicError::Type {
        expected,
        found: go::type_of(found),
    }
}

fn retain_keys(original: &mut Object, patch: &Object) -> Result<(), StrategicError> {
    let Some(keys) = patch.get(RETAIN_KEYS) else {
        return Ok(());
    };
    let keys = keys.as_array().ok_or(StrategicError::RetainKeys)?;
    let retained = |name: &String| keys.iter().any(|key| key.as_str() == Some(name));
    let sets_another = patch
        .iter()
        .any(|(name, value)| !is_directive(name) && !value.is_null() && !retained(name));
    if sets_another {
        return Err(StrategicError::RetainKeys);
    }
    original.retain(|name, _| retained(name));
    Ok(())
}

/// The `$setElementOrder` of a list.
fn order_of<'a>(patch: &'a Object, field: &str) -> Result<Option<&'a [Value]>, StrategicError> {
    match patch.get(&format!("{ELEMENT_ORDER}{field}")) {
        None => Ok(None),
        Some(Value::Array(order)) => Ok(Some(order)),
        Some(other) => Err(type_error("[]interface {}", other)),
    }
}

/// The new value of a member; `None` if it goes.
fn merge_member<S: Shape>(
    original: &Object,
    name: &str,
    patch: &Value,
    order: Option<&[Value]>,
    shape: Option<&S>,
) -> Result<Option<Value>, StrategicError> {
    let strategy = shape.map(Shape::patch_strategy).unwrap_or_default();
    Ok(match (original.get(name), patch) {
        (_, Value::Null) => None,
        (Some(Value::Object(map)), Value::Object(patch)) if !strategy.replace => {
            Some(Value::Object(merge_map(map.clone(), patch, shape)?))
        }
        (Some(Value::Array(items)), Value::Array(patch)) if strategy.merge => {
            let merged = merge_list(name, items, patch, order, shape)?;
            Some(Value::Array(merged))
        }
        (_, patch) => without_directives_in(patch),
    })
}

fn merge_list<S: Shape>(
    name: &str,
    original: &[Value],
    patch: &[Value],
    order: Option<&[Value]>,
    shape: Option<&S>,
) -> Result<Vec<Value>, StrategicError> {
    let Some(first) = original.first().or(patch.first()) else {
        return Ok(Vec::new());
    };
    let kind = go::type_of(first);
    if original
        .iter()
        .chain(patch)
        .any(|item| go::type_of(item) != kind)
    {
        return Err(StrategicError::Elements {
            original: go::print(&Value::from(original)),
            patch: go::print(&Value::from(patch)),
        });
    }
    if first.is_array() {
        return Err(StrategicError::Lists);
    }
    if !first.is_object() {
        check_order(patch.iter().collect(), patch, order, None)?;
        let mut merged: Vec<Value> = Vec::new();
        for item in original.iter().chain(patch) {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        return Ok(in_order(merged, order.unwrap_or(patch), original, None));
    }
    let key = shape.and_then(Shape::patch_merge_key);
    let key = key.ok_or_else(|| StrategicError::NoMergeKey {
        field: name.to_owned(),
    })?;
    let kept = patch.iter().filter(|item| item.get(PATCH).is_none());
    check_order(kept.collect(), patch, order, Some(&key))?;
    let element = shape.and_then(Shape::element);
    let merged = merge_items(original, patch, &key, element.as_ref())?;
    Ok(in_order(
        merged,
        order.unwrap_or(patch),
        original,
        Some(&key),
    ))
}

/// Merges the items of a keyed list, new ones at the end.
fn merge_items<S: Shape>(
    original: &[Value],
    patch: &[Value],
    key: &str,
    element: Option<&S>,
) -> Result<Vec<Value>, StrategicError> {
    let key_of = |item: &Object| {
        item.get(key)
            .cloned()
            .ok_or_else(|| StrategicError::MergeKey {
                map: go::print(&Value::Object(item.clone())),
                key: key.to_owned(),
            })
    };
    let mut merged = original.to_vec();
    let objects = || patch.iter().filter_map(Value::as_object);
    for item in objects() {
        let Some(directive) = item.get(PATCH) else {
            continue;
        };
        match directive.as_str() {
            Some("delete") => {
                let wanted = key_of(item)?;
                merged.retain(|item| item.get(key) != Some(&wanted));
            }
            Some("replace") => merged.clear(),
            Some("merge") => return Err(StrategicError::MergeList),
            _ => return Err(unknown_directive(directive, item)),
        }
    }
    for item in objects().filter(|item| !item.contains_key(PATCH)) {
        let wanted = key_of(item)?;
        let found = merged
            .iter_mut()
            .find(|item| item.get(key) == Some(&wanted));
        match found {
            Some(Value::Object(found)) => {
                *found = merge_map(std::mem::take(found), item, element)?;
            }
            _ => merged.push(Value::Object(without_directives(item))),
        }
    }
    Ok(merged)
}

/// What tells an item of a list from the others.
fn identity<'a>(item: &'a Value, key: Option<&str>) -> Option<&'a Value> {
    match key {
        Some(key) => item.get(key),
        None => Some(item),
    }
}

fn position(list: &[Value], item: &Value, key: Option<&str>) -> Option<usize> {
    let wanted = identity(item, key)?;
    list.iter()
        .position(|candidate| identity(candidate, key) == Some(wanted))
}

/// The items of the patch must stand in the order that the patch itself gives.
fn check_order(
    items: Vec<&Value>,
    patch: &[Value],
    order: Option<&[Value]>,
    key: Option<&str>,
) -> Result<(), StrategicError> {
    let Some(order) = order else { return Ok(()) };
    if key.is_some()
        && let Some(other) = order.iter().find(|item| !item.is_object())
    {
        return Err(type_error("map[string]interface {}", other));
    }
    let mut next = 0;
    for item in items {
        match position(order, item, key) {
            Some(at) if at >= next => next = at,
            _ => {
                return Err(StrategicError::Order {
                    patch: go::print(&Value::from(patch)),
                    order: go::print(&Value::from(order)),
                });
            }
        }
    }
    Ok(())
}

/// Brings the items that `order` names into that order, and lets the others keep theirs: one of
/// them stands before a named one if it did so in `original`.
fn in_order(
    merged: Vec<Value>,
    order: &[Value],
    original: &[Value],
    key: Option<&str>,
) -> Vec<Value> {
    let mut named = Vec::new();
    let mut others = Vec::new();
    for item in merged {
        match position(order, &item, key) {
            Some(at) => named.push((at, item)),
            None => others.push(item),
        }
    }
    named.sort_by_key(|(at, _)| *at);
    others.sort_by_key(|item| position(original, item, key));
    let mut ordered = Vec::with_capacity(named.len() + others.len());
    let mut others = others.into_iter().peekable();
    for (_, item) in named {
        let at = position(original, &item, key);
        while let Some(other) =
            others.next_if(|other| at.is_some() && position(original, other, key) < at)
        {
            ordered.push(other);
        }
        ordered.push(item);
    }
    ordered.extend(others);
    ordered
}

/// A value that the patch brings anew: without nulls, and without maps that carry `$patch`, which
/// upstream leaves out as a whole.
fn without_directives_in(value: &Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Object(map) if map.contains_key(PATCH) => None,
        Value::Object(map) => Some(Value::Object(without_directives(map))),
        Value::Array(items) => {
            let items = items.iter().filter_map(|item| match item {
                // A null is a value of a list like others.
                Value::Null => Some(Value::Null),
                item => without_directives_in(item),
            });
            Some(Value::Array(items.collect()))
        }
        other => Some(other.clone()),
    }
}

fn without_directives(map: &Object) -> Object {
    map.iter()
        .filter(|(name, _)| !is_directive(name))
        .filter_map(|(name, value)| Some((name.clone(), without_directives_in(value)?)))
        .collect()
}
