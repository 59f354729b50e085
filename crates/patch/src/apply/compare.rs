//! What differs between two states of an object.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::element::PathElement;
use super::fields::FieldSet;
use super::typed::{View, element_of, view};
use crate::Shape;

type Object = Map<String, Value>;

/// The fields that differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Comparison {
    pub(crate) removed: FieldSet,
    pub(crate) modified: FieldSet,
    pub(crate) added: FieldSet,
}

impl Comparison {
    pub(crate) fn without(self, ignored: &FieldSet) -> Comparison {
        if ignored.is_empty() {
            return self;
        }
        Comparison {
            removed: self.removed.difference_recursive(ignored),
            modified: self.modified.difference_recursive(ignored),
            added: self.added.difference_recursive(ignored),
        }
    }

    /// What differs between two states of a value, below the value itself.
    fn differ<S: Shape>(&mut self, old: &Value, new: &Value, shape: Option<&S>) -> Differ {
        if old == new {
            return Differ::Below;
        }
        match (view(old, shape), view(new, shape)) {
            (View::Map(old), View::Map(new)) => self.maps(old, new, shape),
            (View::List(old), View::List(new)) => self.lists(old, new, shape),
            // A null is an empty map or list where the other side has a filled one.
            (View::Map(_) | View::List(_), View::Leaf) if new.is_null() => {
                self.removed = everything(old, shape);
            }
            (View::Leaf, View::Map(_) | View::List(_)) if old.is_null() => {
                self.added = everything(new, shape);
            }
            _ => {
                self.removed = everything(old, shape);
                self.added = everything(new, shape);
                return Differ::Itself;
            }
        }
        Differ::Below
    }

    fn maps<S: Shape>(&mut self, old: &Object, new: &Object, shape: Option<&S>) {
        for (name, old) in old {
            let child = shape.and_then(|shape| shape.child(name));
            let element = || PathElement::field(name);
            self.place(element, Some(old), new.get(name), child.as_ref());
        }
        for (name, new) in new.iter().filter(|(name, _)| !old.contains_key(*name)) {
            let child = shape.and_then(|shape| shape.child(name));
            self.place(|| PathElement::field(name), None, Some(new), child.as_ref());
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
            // Items that cannot be told apart count as one value.
            if old.len().max(new.len()) > 1 && !old.is_empty() && !new.is_empty() {
                if old != new {
                    self.modified.put_member(element);
                }
                continue;
            }
            let (old, new) = (old.first().copied(), new.first().copied());
            self.place(|| element.clone(), old, new, child.as_ref());
        }
    }

    /// Compares what is at one element, and puts the differences below it.
    fn place<S: Shape>(
        &mut self,
        element: impl Fn() -> PathElement,
        old: Option<&Value>,
        new: Option<&Value>,
        shape: Option<&S>,
    ) {
        match (old, new) {
            (Some(old), Some(new)) => {
                let mut below = Comparison::default();
                if below.differ(old, new, shape) == Differ::Itself {
                    self.modified.put_member(element());
                }
                for (set, below) in [
                    (&mut self.removed, below.removed),
                    (&mut self.modified, below.modified),
                    (&mut self.added, below.added),
                ] {
                    if !below.is_empty() {
                        set.put_child(element(), below);
                    }
                }
            }
            (Some(old), None) => {
                self.removed.put_all(element(), everything(old, shape));
            }
            (None, Some(new)) => {
                self.added.put_all(element(), everything(new, shape));
            }
            (None, None) => {}
        }
    }
}

/// Where two values differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Differ {
    /// They are different values.
    Itself,
    /// At most in what is below them.
    Below,
}

/// Compares two states of an object of type `shape`.
pub(crate) fn compare<S: Shape>(old: &Value, new: &Value, shape: Option<&S>) -> Comparison {
    let mut comparison = Comparison::default();
    // The object itself is no field.
    comparison.differ(old, new, shape);
    comparison
}

/// All fields below a value.
fn everything<S: Shape>(value: &Value, shape: Option<&S>) -> FieldSet {
    let mut all = FieldSet::new();
    match view(value, shape) {
        View::Leaf => {}
        View::Map(map) => {
            for (name, value) in map {
                let child = shape.and_then(|shape| shape.child(name));
                all.put_all(PathElement::field(name), everything(value, child.as_ref()));
            }
        }
        View::List(items) => {
            let child = shape.and_then(Shape::element);
            for item in items {
                if let Some(element) = shape.and_then(|shape| element_of(item, shape)) {
                    all.put_all(element, everything(item, child.as_ref()));
                }
            }
        }
    }
    all
}
