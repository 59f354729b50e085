//! What differs between two states of an object.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::element::PathElement;
use super::fields::FieldSet;
use super::typed::{View, element_of, view};
use crate::Shape;

/// The fields that differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Comparison {
    pub(crate) removed: FieldSet,
    pub(crate) modified: FieldSet,
    pub(crate) added: FieldSet,
}

impl Comparison {
    /// The fields that the new state sets.
    pub(crate) fn set(&self) -> FieldSet {
        self.modified.clone().union(&self.added)
    }

    pub(crate) fn without(&self, ignored: &FieldSet) -> Comparison {
        Comparison {
            removed: self.removed.difference_recursive(ignored),
            modified: self.modified.difference_recursive(ignored),
            added: self.added.difference_recursive(ignored),
        }
    }
}

/// Compares two states of an object of type `shape`.
pub(crate) fn compare<S: Shape>(old: &Value, new: &Value, shape: Option<&S>) -> Comparison {
    let mut comparison = Comparison::default();
    Walk {
        path: Vec::new(),
        comparison: &mut comparison,
    }
    .both(old, new, shape);
    comparison
}

struct Walk<'a> {
    path: Vec<PathElement>,
    comparison: &'a mut Comparison,
}

#[derive(Clone, Copy)]
enum Side {
    Old,
    New,
}

impl Walk<'_> {
    fn both<S: Shape>(&mut self, old: &Value, new: &Value, shape: Option<&S>) {
        match (view(old, shape), view(new, shape)) {
            (View::Map(old), View::Map(new)) => {
                let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
                for name in names {
                    let child = shape.and_then(|shape| shape.child(name));
                    self.path.push(PathElement::field(name));
                    self.either(old.get(name), new.get(name), child.as_ref());
                    self.path.pop();
                }
            }
            (View::List(old_items), View::List(new_items)) => {
                self.lists(old_items, new_items, shape);
            }
            // A null is an empty map or list where the other side has a filled one.
            (View::Map(_) | View::List(_), View::Leaf) if new.is_null() => {
                self.below(old, Side::Old, shape);
            }
            (View::Leaf, View::Map(_) | View::List(_)) if old.is_null() => {
                self.below(new, Side::New, shape);
            }
            _ if old == new => {}
            _ => {
                self.comparison.modified.insert(&self.path);
                self.below(old, Side::Old, shape);
                self.below(new, Side::New, shape);
            }
        }
    }

    fn either<S: Shape>(&mut self, old: Option<&Value>, new: Option<&Value>, shape: Option<&S>) {
        match (old, new) {
            (Some(old), Some(new)) => self.both(old, new, shape),
            (Some(old), None) => {
                self.comparison.removed.insert(&self.path);
                self.below(old, Side::Old, shape);
            }
            (None, Some(new)) => {
                self.comparison.added.insert(&self.path);
                self.below(new, Side::New, shape);
            }
            (None, None) => {}
        }
    }

    /// Everything below the present path is on one side only.
    fn below<S: Shape>(&mut self, value: &Value, side: Side, shape: Option<&S>) {
        let mut step = |element: PathElement, value: &Value, child: Option<&S>| {
            self.path.push(element);
            match side {
                Side::Old => self.either(Some(value), None, child),
                Side::New => self.either(None, Some(value), child),
            }
            self.path.pop();
        };
        match view(value, shape) {
            View::Leaf => {}
            View::Map(map) => {
                for (name, value) in map {
                    let child = shape.and_then(|shape| shape.child(name));
                    step(PathElement::field(name), value, child.as_ref());
                }
            }
            View::List(items) => {
                let child = shape.and_then(Shape::element);
                for item in items {
                    if let Some(element) = shape.and_then(|shape| element_of(item, shape)) {
                        step(element, item, child.as_ref());
                    }
                }
            }
        }
    }

    fn lists<S: Shape>(&mut self, old: &[Value], new: &[Value], shape: Option<&S>) {
        let Some(shape) = shape else { return };
        let child = shape.element();
        let mut by_key: BTreeMap<PathElement, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
        for item in old {
            if let Some(element) = element_of(item, shape) {
                by_key.entry(element).or_default().0.push(item);
            }
        }
        for item in new {
            if let Some(element) = element_of(item, shape) {
                by_key.entry(element).or_default().1.push(item);
            }
        }
        for (element, (old, new)) in by_key {
            self.path.push(element);
            match (old[..].as_ref(), new[..].as_ref()) {
                ([] | [_], [] | [_]) => {
                    let (old, new) = (old.first(), new.first());
                    self.either(old.copied(), new.copied(), child.as_ref());
                }
                // Items that cannot be told apart count as one value.
                (old, []) => self.either(old.first().copied(), None, child.as_ref()),
                ([], new) => self.either(None, new.first().copied(), child.as_ref()),
                (old, new) if old == new => {}
                _ => self.comparison.modified.insert(&self.path),
            }
            self.path.pop();
        }
    }
}
