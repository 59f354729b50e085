//! Sets of fields.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::element::{ElementError, PathElement};

/// A set of paths into an object: which fields somebody owns.
///
/// A path may be in the set without what is below it (then only its existence is owned), and what
/// is below it may be in the set without the path itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    members: BTreeSet<PathElement>,
    /// Never empty sets.
    children: BTreeMap<PathElement, FieldSet>,
}

/// Why `fieldsV1` cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldsError {
    /// A path element is malformed.
    #[error(transparent)]
    Element(#[from] ElementError),
    /// A value is no object.
    #[error("fields below {0:?} are no object")]
    NotAnObject(String),
}

impl FieldSet {
    /// The empty set.
    pub fn new() -> Self {
        FieldSet::default()
    }

    /// A set of paths whose steps are fields, written `.spec.replicas` or `spec.replicas`.
    pub fn of_fields<'a>(paths: impl IntoIterator<Item = &'a str>) -> Self {
        let mut set = FieldSet::new();
        for path in paths {
            let steps = path.split('.').filter(|step| !step.is_empty());
            let steps: Vec<_> = steps.map(PathElement::field).collect();
            set.insert(&steps);
        }
        set
    }

    /// Whether no path is in it.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.is_empty()
    }

    /// Adds a path. The empty path is in no set.
    pub fn insert(&mut self, path: &[PathElement]) {
        match path {
            [] => {}
            [last] => {
                self.members.insert(last.clone());
            }
            [first, rest @ ..] => self.children.entry(first.clone()).or_default().insert(rest),
        }
    }

    /// Whether a path is in it.
    pub fn contains(&self, path: &[PathElement]) -> bool {
        match path {
            [] => false,
            [last] => self.members.contains(last),
            [first, rest @ ..] => self
                .children
                .get(first)
                .is_some_and(|child| child.contains(rest)),
        }
    }

    /// All paths, in the order in which the genuine server tells them: those that end here, then
    /// those below.
    pub fn paths(&self) -> Vec<Vec<PathElement>> {
        let mut paths = Vec::new();
        self.collect(&mut Vec::new(), &mut paths);
        paths
    }

    fn collect(&self, prefix: &mut Vec<PathElement>, paths: &mut Vec<Vec<PathElement>>) {
        for member in &self.members {
            prefix.push(member.clone());
            paths.push(prefix.clone());
            prefix.pop();
        }
        for (element, child) in &self.children {
            prefix.push(element.clone());
            child.collect(prefix, paths);
            prefix.pop();
        }
    }

    /// The paths that are in either.
    #[must_use]
    pub fn union(mut self, other: FieldSet) -> FieldSet {
        if self.is_empty() {
            return other;
        }
        self.members.extend(other.members);
        for (element, child) in other.children {
            let mine = self.children.entry(element).or_default();
            *mine = std::mem::take(mine).union(child);
        }
        self
    }

    /// The paths that are in both.
    #[must_use]
    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        let mut both = FieldSet {
            members: self.members.intersection(&other.members).cloned().collect(),
            children: BTreeMap::new(),
        };
        for (element, child) in &self.children {
            if let Some(others) = other.children.get(element) {
                both.put_child(element.clone(), child.intersection(others));
            }
        }
        both
    }

    /// Whether any path is in both.
    pub fn intersects(&self, other: &FieldSet) -> bool {
        let shares = |member| other.members.contains(member);
        self.members.iter().any(shares)
            || self.children.iter().any(|(element, child)| {
                let others = other.children.get(element);
                others.is_some_and(|others| child.intersects(others))
            })
    }

    /// The paths that are in this set and not in the other.
    #[must_use]
    pub fn difference(mut self, other: &FieldSet) -> FieldSet {
        for member in &other.members {
            self.members.remove(member);
        }
        for (element, others) in &other.children {
            if let Some(child) = self.children.remove(element) {
                self.put_child(element.clone(), child.difference(others));
            }
        }
        self
    }

    /// The paths that are in this set, and are neither in the other nor below a path that is.
    #[must_use]
    pub fn difference_recursive(mut self, other: &FieldSet) -> FieldSet {
        for member in &other.members {
            self.members.remove(member);
            self.children.remove(member);
        }
        for (element, others) in &other.children {
            if let Some(child) = self.children.remove(element) {
                self.put_child(element.clone(), child.difference_recursive(others));
            }
        }
        self
    }

    /// Reads `fieldsV1`.
    ///
    /// # Errors
    /// When a path element is malformed.
    pub fn decode(fields: &Value) -> Result<Self, FieldsError> {
        let no_object = || FieldsError::NotAnObject(String::new());
        let fields = fields.as_object().ok_or_else(no_object)?;
        Ok(FieldSet::decode_below(fields)?.0)
    }

    /// The set, and whether it holds the place that it describes itself.
    fn decode_below(fields: &Map<String, Value>) -> Result<(Self, bool), FieldsError> {
        let mut set = FieldSet::new();
        let mut holds_itself = false;
        for (text, below) in fields {
            let no_object = || FieldsError::NotAnObject(text.clone());
            let below = below.as_object().ok_or_else(no_object)?;
            if text == "." {
                holds_itself = true;
                continue;
            }
            let element = PathElement::parse(text)?;
            let (child, holds_child) = FieldSet::decode_below(below)?;
            if holds_child || child.is_empty() {
                set.members.insert(element.clone());
            }
            set.put_child(element, child);
        }
        Ok((set, holds_itself))
    }

    /// Writes `fieldsV1`.
    pub fn encode(&self) -> Value {
        Value::Object(self.encode_below())
    }

    fn encode_below(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        for member in &self.members {
            fields.insert(member.encode(), Value::Object(Map::new()));
        }
        for (element, child) in &self.children {
            let mut below = child.encode_below();
            if self.members.contains(element) {
                below.insert(".".to_owned(), Value::Object(Map::new()));
            }
            fields.insert(element.encode(), Value::Object(below));
        }
        fields
    }

    pub(crate) fn has(&self, element: &PathElement) -> bool {
        self.members.contains(element)
    }

    pub(crate) fn child(&self, element: &PathElement) -> Option<&FieldSet> {
        self.children.get(element)
    }

    pub(crate) fn children(&self) -> impl Iterator<Item = (&PathElement, &FieldSet)> {
        self.children.iter()
    }

    pub(crate) fn put_member(&mut self, element: PathElement) {
        self.members.insert(element);
    }

    /// Sets what is below `element`, which was not in the set yet.
    pub(crate) fn put_child(&mut self, element: PathElement, child: FieldSet) {
        if !child.is_empty() {
            self.children.insert(element, child);
        }
    }

    /// Adds `element`, which was not in the set yet, and what is below it.
    pub(crate) fn put_all(&mut self, element: PathElement, child: FieldSet) {
        if !child.is_empty() {
            self.children.insert(element.clone(), child);
        }
        self.members.insert(element);
    }

    pub(crate) fn without_children(&self) -> FieldSet {
        FieldSet {
            members: self.members.clone(),
            children: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn element() -> impl Strategy<Value = PathElement> {
        prop_oneof![
            "[a-c./:\"]{0,2}".prop_map(PathElement::Field),
            prop::collection::btree_map("[a-b]", scalar(), 1..3)
                .prop_map(|key| PathElement::Key(key.into_iter().collect())),
            scalar().prop_map(PathElement::Value),
            (-1_i64..3).prop_map(PathElement::Index),
        ]
    }

    fn scalar() -> impl Strategy<Value = Value> {
        prop_oneof![
            (-2_i64..3).prop_map(Value::from),
            "[a-b\"\\\\]{0,2}".prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            Just(json!(1.0)),
        ]
    }

    fn paths() -> impl Strategy<Value = Vec<Vec<PathElement>>> {
        prop::collection::vec(prop::collection::vec(element(), 1..4), 0..12)
    }

    fn set(paths: &[Vec<PathElement>]) -> FieldSet {
        let mut set = FieldSet::new();
        for path in paths {
            set.insert(path);
        }
        set
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(paths in paths()) {
            let set = set(&paths);
            prop_assert_eq!(FieldSet::decode(&set.encode()), Ok(set));
        }

        #[test]
        fn the_algebra_is_that_of_sets(left in paths(), right in paths()) {
            let (one, other) = (set(&left), set(&right));
            let union = one.clone().union(other.clone());
            let both = one.intersection(&other);
            let rest = one.clone().difference(&other);
            for path in left.iter().chain(&right) {
                let (in_one, in_other) = (one.contains(path), other.contains(path));
                prop_assert!(in_one || in_other);
                prop_assert!(union.contains(path));
                prop_assert_eq!(both.contains(path), in_one && in_other);
                prop_assert_eq!(rest.contains(path), in_one && !in_other);
            }
            prop_assert_eq!(one.intersects(&other), !both.is_empty());
            prop_assert_eq!(rest.union(both), one.clone());
            prop_assert!(one.clone().difference(&one).is_empty());
            prop_assert_eq!(union.paths().len(), set(&union.paths()).paths().len());
        }
    }

    #[test]
    fn the_form_is_upstreams() {
        let fields = json!({
            "f:spec": {
                "f:containers": {
                    "k:{\"name\":\"nginx\"}": {".": {}, "f:image": {}},
                },
                "f:finalizers": {"v:\"a/b\"": {}},
                "f:replicas": {},
            },
        });
        let set = FieldSet::decode(&fields).expect("is well formed");
        assert_eq!(set.encode(), fields);
        let texts: Vec<String> = set
            .paths()
            .iter()
            .map(|path| path.iter().map(PathElement::to_string).collect())
            .collect();
        assert_eq!(
            texts,
            [
                ".spec.replicas",
                ".spec.containers[name=\"nginx\"]",
                ".spec.containers[name=\"nginx\"].image",
                ".spec.finalizers[=\"a/b\"]",
            ]
        );
    }

    #[test]
    fn what_is_malformed_is_named() {
        let check = |fields: Value, expected: &str| {
            let refused = FieldSet::decode(&fields).expect_err("is malformed");
            assert_eq!(refused.to_string(), expected);
        };
        check(json!({"x:a": {}}), "unknown path element \"x:a\"");
        check(json!({"k:{": {}}), "path element \"k:{\" cannot be read");
        check(json!({"f:a": 1}), "fields below \"f:a\" are no object");
        check(json!([]), "fields below \"\" are no object");
    }
}
