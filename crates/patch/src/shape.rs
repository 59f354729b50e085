//! What a patch must know about a type.

use serde_json::{Map, Value};

/// How the items of a list are told apart (`x-kubernetes-list-type`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind {
    /// They are not: the list is one value.
    Atomic,
    /// By their value.
    Set,
    /// By the values of these fields (`x-kubernetes-list-map-keys`).
    Map(Vec<String>),
}

/// How a strategic merge patch combines a field (`x-kubernetes-patch-strategy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strategy {
    /// Lists are merged instead of replaced.
    pub merge: bool,
    /// Maps are replaced instead of merged.
    pub replace: bool,
    /// Clients send `$retainKeys` for it. The server obeys the directive wherever it stands.
    pub retain_keys: bool,
}

/// What a leaf may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// Text.
    String,
    /// A number, whole or not.
    Numeric,
    /// True or false.
    Boolean,
}

/// What kind of value a type wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Scalar(Scalar),
    List,
    Map,
    Anything,
}

/// A type, as patches see it: a place in a schema that can be walked.
///
/// Where a walk answers `None` the type is unknown; then maps are granular and lists are atomic.
pub trait Shape: Clone {
    /// The type of the declared field `name`.
    fn field(&self, name: &str) -> Option<Self>;

    /// The type of the items of a list.
    fn element(&self) -> Option<Self>;

    /// The type of the values of a map whose keys are not declared.
    fn value(&self) -> Option<Self>;

    /// How the items of this list are told apart.
    fn list(&self) -> ListKind;

    /// Whether this map is one value (`x-kubernetes-map-type: atomic`).
    fn is_atomic_map(&self) -> bool;

    /// How a strategic merge patch combines values of this type at this place.
    fn patch_strategy(&self) -> Strategy;

    /// The field by which a strategic merge patch tells the items of this list apart.
    fn patch_merge_key(&self) -> Option<String>;

    /// The default of the field `key`. Asked of the items of a list, for items that leave out a
    /// part of their key.
    fn default_for_key(&self, key: &str) -> Option<Value>;

    /// What a leaf of this type may be; `None` if it is no leaf or may be anything.
    fn scalar(&self) -> Option<Scalar> {
        None
    }

    /// Whether this is declared to be a list.
    fn is_list(&self) -> bool {
        false
    }

    /// Whether this is declared to be a map.
    fn is_map(&self) -> bool {
        false
    }

    /// Whether a map of this type may have fields that it does not declare.
    fn is_open(&self) -> bool {
        true
    }

    /// An object of this type with nothing set, as the server writes it: with the fields that are
    /// always there. Creating an object does not take ownership of those.
    fn zero(&self) -> Value {
        Value::Object(Map::new())
    }

    /// The type of the value of `name`, declared or not.
    fn child(&self, name: &str) -> Option<Self> {
        self.field(name).or_else(|| self.value())
    }
}

pub(crate) fn wanted<S: Shape>(shape: Option<&S>) -> Wanted {
    let Some(shape) = shape else {
        return Wanted::Anything;
    };
    if let Some(scalar) = shape.scalar() {
        Wanted::Scalar(scalar)
    } else if shape.is_list() {
        Wanted::List
    } else if shape.is_map() {
        Wanted::Map
    } else {
        Wanted::Anything
    }
}
