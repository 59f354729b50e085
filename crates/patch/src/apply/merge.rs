//! Laying a configuration over an object, and taking fields out of one.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::element::PathElement;
use super::fields::FieldSet;
use super::typed::{View, element_of, view};
use crate::Shape;

/// `config` over `live`: what the configuration has wins, what only the object has stays.
pub(crate) fn merge<S: Shape>(live: &Value, config: &Value, shape: Option<&S>) -> Value {
    match (view(live, shape), view(config, shape)) {
        (View::Map(live), View::Map(config)) => {
            let mut merged = live.clone();
            for (name, value) in config {
                let child = shape.and_then(|shape| shape.child(name));
                let value = match live.get(name) {
                    Some(live) => merge(live, value, child.as_ref()),
                    None => value.clone(),
                };
                merged.insert(name.clone(), value);
            }
            Value::Object(merged)
        }
        (View::List(live), View::List(config)) => {
            let Some(shape) = shape else {
                return Value::from(config);
            };
            Value::Array(merge_items(live, config, shape))
        }
        // A null says nothing about the fields of a map and the items of a list.
        (View::Map(map), View::Leaf) if config.is_null() && !map.is_empty() => live.clone(),
        (View::List(items), View::Leaf) if config.is_null() && !items.is_empty() => live.clone(),
        _ => config.clone(),
    }
}

/// The items of both lists. Those of the configuration keep its order; those that only the object
/// has stand before what they stood before.
fn merge_items<S: Shape>(live: &[Value], config: &[Value], shape: &S) -> Vec<Value> {
    let below = shape.element();
    let key_of = |item| element_of(item, shape);
    let live_keys: Vec<Option<PathElement>> = live.iter().map(key_of).collect();
    let config_keys: Vec<Option<PathElement>> = config.iter().map(key_of).collect();
    let in_config: BTreeSet<&PathElement> = config_keys.iter().flatten().collect();
    let mut in_live: BTreeMap<&PathElement, &Value> = BTreeMap::new();
    for (key, item) in live_keys.iter().zip(live) {
        if let Some(key) = key {
            in_live.entry(key).or_insert(item);
        }
    }
    let shared = config_keys.iter().flatten();
    let mut shared = shared.filter(|key| in_live.contains_key(key)).peekable();
    let mut live_items = live_keys.iter().map(Option::as_ref).zip(live).peekable();
    let mut merged = Vec::with_capacity(live.len() + config.len());
    for (key, item) in config_keys.iter().map(Option::as_ref).zip(config) {
        let next_shared = shared.peek().copied();
        while let Some((other, live)) =
            live_items.next_if(|(other, _)| other.is_none() || *other != next_shared)
        {
            // The shared ones have or get the place that the configuration gives them.
            if other.is_none_or(|other| !in_config.contains(other)) {
                merged.push(live.clone());
            }
        }
        match key.and_then(|key| in_live.get(key)) {
            Some(live) => {
                shared.next();
                live_items.next_if(|(other, _)| *other == key);
                merged.push(merge(live, item, below.as_ref()));
            }
            None => merged.push(item.clone()),
        }
    }
    for (other, live) in live_items {
        if other.is_none_or(|other| !in_config.contains(other)) {
            merged.push(live.clone());
        }
    }
    merged
}

/// The value without the fields of `set`; `None` if nothing is left of it. The parent then drops it:
/// the genuine server leaves a null there, which its typed objects drop, too.
pub(crate) fn remove<S: Shape>(value: &Value, set: &FieldSet, shape: Option<&S>) -> Option<Value> {
    match view(value, shape) {
        View::Leaf => Some(value.clone()),
        View::Map(map) => {
            let mut rest = Map::new();
            for (name, value) in map {
                let element = PathElement::field(name);
                if set.has(&element) {
                    continue;
                }
                let child = shape.and_then(|shape| shape.child(name));
                let value = match set.child(&element) {
                    Some(set) => remove(value, set, child.as_ref()),
                    None => Some(value.clone()),
                };
                rest.extend(value.map(|value| (name.clone(), value)));
            }
            (!rest.is_empty() || map.is_empty()).then_some(Value::Object(rest))
        }
        View::List(items) => {
            let below = shape.and_then(Shape::element);
            let rest: Vec<Value> = items
                .iter()
                .filter_map(|item| {
                    let element = shape.and_then(|shape| element_of(item, shape));
                    let Some(element) = element else {
                        return Some(item.clone());
                    };
                    if set.has(&element) {
                        return None;
                    }
                    match set.child(&element) {
                        Some(set) => remove(item, set, below.as_ref()),
                        None => Some(item.clone()),
                    }
                })
                .collect();
            (!rest.is_empty() || items.is_empty()).then_some(Value::Array(rest))
        }
    }
}
