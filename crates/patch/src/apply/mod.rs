//! Server-side apply: who owns which field, and what happens when two want the same one.
//!
//! [`apply`] lays a configuration over an object: the applier then owns exactly what its
//! configuration says, fields that it no longer mentions and nobody else owns go, and changing what
//! another owns is a conflict unless forced. [`update`] accounts for every other write: who changes
//! a field owns it from then on.
//!
//! An object's managers are kept in its `metadata.managedFields`; times are whole seconds. A write
//! that changes nothing changes no managers, so that it needs no new resource version.
//! (Kubernetes, docs/reference/using-api/server-side-apply.)

mod compare;
mod element;
mod fields;
mod last_applied;
mod managers;
mod merge;
mod typed;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use compare::compare;
pub use element::{ElementError, PathElement};
pub use fields::{FieldSet, FieldsError};
use managers::{Manager, ManagerKey, Managers, Operation};

use crate::Shape;

/// Who owned everything before the first apply to an object that nobody kept accounts of.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// Fields that nobody owns: they say which object it is, or belong to the server.
static UNOWNED: LazyLock<FieldSet> = LazyLock::new(|| {
    FieldSet::of_fields([
        "apiVersion",
        "kind",
        "metadata",
        "metadata.name",
        "metadata.namespace",
        "metadata.creationTimestamp",
        "metadata.selfLink",
        "metadata.uid",
        "metadata.clusterName",
        "metadata.generation",
        "metadata.managedFields",
        "metadata.resourceVersion",
    ])
});

/// Who writes, and how.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The name of the field manager.
    pub manager: &'a str,
    /// The version that the object is written in, such as `apps/v1`.
    pub api_version: &'a str,
    /// The subresource that is written through, or nothing.
    pub subresource: &'a str,
    /// The time, in RFC 3339 with whole seconds.
    pub now: &'a str,
    /// Fields that this way of writing does not reach: `status` for the object itself of a kind
    /// with a status subresource, `spec` and most of `metadata` for that subresource.
    pub ignored: &'a FieldSet,
    /// Whether an apply takes fields from other managers.
    pub force: bool,
}

impl Request<'_> {
    fn key(&self, operation: Operation) -> ManagerKey {
        ManagerKey::new(self.manager, operation, self.subresource, self.api_version)
    }
}

/// A field that an apply wants to change and another manager owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The other manager, as in the message: `"name" with subresource "status" using apps/v1`.
    pub manager: String,
    /// The field: `.spec.containers[name="a"].image`.
    pub path: String,
}

impl Conflict {
    /// The text of the cause in the `Status`, of reason `FieldManagerConflict`.
    pub fn message(&self) -> String {
        format!("conflict with {}", self.manager)
    }
}

/// Why an apply is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The configuration says who manages what. The genuine server answers 400.
    #[error("metadata.managedFields must be nil")]
    ManagedFields,
    /// The configuration does not fit its type. The genuine server answers 500.
    #[error("failed to create typed patch object ({object}): {}", faults_text(.faults))]
    Typed {
        /// `namespace/name; group/version, Kind=kind`.
        object: String,
        /// All that does not fit, as `path: text`.
        faults: Vec<String>,
    },
    /// Others own what the configuration changes. The genuine server answers 409 with a cause per
    /// conflict.
    #[error("{}", conflicts_text(.0))]
    Conflicts(Vec<Conflict>),
}

fn faults_text(faults: &[String]) -> String {
    match faults {
        [fault] => fault.clone(),
        faults => format!("errors:\n  {}", faults.join("\n  ")),
    }
}

fn conflicts_text(conflicts: &[Conflict]) -> String {
    if let [conflict] = conflicts {
        return format!(
            "Apply failed with 1 conflict: {}: {}",
            conflict.message(),
            conflict.path
        );
    }
    let mut by_manager: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for conflict in conflicts {
        let paths = by_manager.entry(&conflict.manager).or_default();
        paths.push(&conflict.path);
    }
    let texts: Vec<String> = by_manager
        .into_iter()
        .map(|(manager, paths)| format!("conflicts with {manager}:\n- {}", paths.join("\n- ")))
        .collect();
    let count = conflicts.len();
    format!("Apply failed with {count} conflicts: {}", texts.join("\n"))
}

/// Applies `config` to `live`, or makes a new object of it. The result holds `managedFields`.
///
/// Fields of `config` that the request ignores are left out.
///
/// # Errors
/// When the configuration does not fit its type, or others own what it changes.
pub fn apply<S: Shape>(
    live: Option<&Value>,
    config: &Value,
    request: &Request<'_>,
    shape: &S,
) -> Result<Value, ApplyError> {
    if has_managed_fields(config) {
        return Err(ApplyError::ManagedFields);
    }
    let faults = typed::faults(config, shape);
    if !faults.is_empty() {
        let object = name_of(config);
        return Err(ApplyError::Typed { object, faults });
    }
    let config = merge::remove(config, request.ignored, Some(shape)).unwrap_or_else(empty);
    let mut managers = managers_of(live);
    let nothing = empty();
    let before = live.unwrap_or(&nothing);
    if live.is_some() && managers.is_empty() {
        let request = Request {
            manager: BEFORE_FIRST_APPLY,
            subresource: "",
            ..*request
        };
        account(&mut managers, &shape.zero(), before, &request, shape);
    }

    let key = request.key(Operation::Apply);
    let former = managers.0.get(&key).cloned();
    let set = typed::owned(&config, Some(shape)).difference(&UNOWNED);
    managers.0.insert(
        key.clone(),
        Manager {
            set,
            api_version: request.api_version.to_owned(),
            time: Some(request.now.to_owned()),
        },
    );
    let merged = merge::merge(before, &config, Some(shape));
    let last_set = former.as_ref().map(|former| &former.set);
    let mut merged = match last_set.filter(|set| !set.is_empty()) {
        Some(last_set) => prune(&merged, last_set, &managers, shape),
        None => merged,
    };

    let changed = compare(before, &merged, Some(shape)).without(request.ignored);
    let wanted = changed.modified.union(changed.added);
    let conflicts = conflicts(&managers, &key, &wanted);
    if !conflicts.is_empty()
        && !request.force
        && !last_applied::allows(request.manager, before, &conflicts, shape)
    {
        let named = conflicts.iter().map(|(manager, path)| Conflict {
            manager: manager.describe(),
            path: path.iter().map(PathElement::to_string).collect(),
        });
        let mut named: Vec<Conflict> = named.collect();
        // Stable: the fields of a manager keep their order.
        named.sort_by(|one, other| one.manager.cmp(&other.manager));
        return Err(ApplyError::Conflicts(named));
    }
    managers.take_from_others(&wanted.union(changed.removed), Some(&key));
    keep_time(&mut managers, &key, former, *before == merged);
    last_applied::refresh(request.manager, &mut merged, &config);
    put_managed_fields(&mut merged, &managers);
    Ok(merged)
}

/// Accounts for a write other than apply: rewrites the `managedFields` of `new`, the object as it
/// is to be stored; `old` is the stored one, or nothing for a new object.
///
/// A request on the object itself may carry `managedFields`: they are taken over, and `[{}]` ends
/// the accounting until the next apply. An existing object without managers stays so.
pub fn update<S: Shape>(old: Option<&Value>, new: &mut Value, request: &Request<'_>, shape: &S) {
    let given = new.pointer("/metadata/managedFields").cloned();
    let given = given.filter(|_| request.subresource.is_empty());
    let mut managers = match given {
        Some(Value::Array(entries)) if is_reset(&entries) => Managers::default(),
        Some(entries) => Managers::decode(&entries)
            .filter(|managers| !managers.is_empty())
            .unwrap_or_else(|| managers_of(old)),
        None => managers_of(old),
    };
    if old.is_none() || !managers.is_empty() {
        let zero = old.is_none().then(|| shape.zero());
        let before = old.or(zero.as_ref()).unwrap_or(&Value::Null);
        account(&mut managers, before, new, request, shape);
        managers.cap();
    }
    put_managed_fields(new, &managers);
}

fn is_reset(entries: &[Value]) -> bool {
    matches!(entries, [Value::Object(entry)] if entry.is_empty())
}

/// Gives the fields in which `after` differs from `before` to the updating manager.
fn account<S: Shape>(
    managers: &mut Managers,
    before: &Value,
    after: &Value,
    request: &Request<'_>,
    shape: &S,
) {
    let changed = compare(before, after, Some(shape)).without(request.ignored);
    let key = request.key(Operation::Update);
    let set = changed.modified.union(changed.added);
    if !managers.is_empty() {
        managers.take_from_others(&set.clone().union(changed.removed), None);
    }
    let set = set.difference(&UNOWNED);
    if set.is_empty() {
        return;
    }
    let manager = managers.0.entry(key).or_insert_with(|| Manager {
        set: FieldSet::new(),
        api_version: request.api_version.to_owned(),
        time: None,
    });
    manager.set = std::mem::take(&mut manager.set).union(set);
    manager.time = Some(request.now.to_owned());
}

/// The merged object without what the applier owned before, no longer mentions, and nobody owns.
fn prune<S: Shape>(merged: &Value, last_set: &FieldSet, managers: &Managers, shape: &S) -> Value {
    let shape = Some(shape);
    let without = |set: &FieldSet| merge::remove(merged, set, shape).unwrap_or_else(empty);
    let named = |set: &FieldSet| typed::with_named_fields(set, shape);
    let all = named(&typed::owned(merged, shape));
    let last = named(last_set);
    // What others own, below what goes, stays, and so does all that leads there.
    let pruned = without(&last);
    let kept = named(&typed::owned(&pruned, shape)).union(named(&managers.all_fields()));
    let pruned = without(&all.clone().difference(&kept));
    // What nobody ever owned stays, too.
    let kept = named(&typed::owned(&pruned, shape));
    without(&all.difference(&kept).intersection(&last))
}

type Wanted<'a> = Vec<(&'a ManagerKey, Vec<PathElement>)>;

/// Who else owns what is wanted.
fn conflicts<'a>(managers: &'a Managers, key: &ManagerKey, wanted: &FieldSet) -> Wanted<'a> {
    managers
        .0
        .iter()
        .filter(|(other, _)| *other != key)
        .flat_map(|(other, manager)| {
            let paths = manager.set.intersection(wanted).paths();
            paths.into_iter().map(move |path| (other, path))
        })
        .collect()
}

/// An apply that changes neither the object nor what its manager owns is as old as the one before.
fn keep_time(
    managers: &mut Managers,
    key: &ManagerKey,
    former: Option<Manager>,
    is_unchanged: bool,
) {
    if let Some(manager) = managers.0.get_mut(key)
        && let Some(former) = former
        && is_unchanged
        && former.set == manager.set
    {
        manager.time = former.time;
    }
}

fn empty() -> Value {
    Value::Object(Map::new())
}

fn has_managed_fields(config: &Value) -> bool {
    match config.pointer("/metadata/managedFields") {
        None | Some(Value::Null) => false,
        Some(Value::Array(entries)) => !entries.is_empty(),
        Some(_) => true,
    }
}

/// `namespace/name; group/version, Kind=kind`, as the genuine server names an object.
fn name_of(object: &Value) -> String {
    let text = |pointer: &str| {
        object
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or("")
    };
    let api_version = text("/apiVersion");
    // The core group has no name, but keeps its slash.
    let slash = if api_version.contains('/') { "" } else { "/" };
    format!(
        "{}/{}; {slash}{api_version}, Kind={}",
        text("/metadata/namespace"),
        text("/metadata/name"),
        text("/kind")
    )
}

/// What cannot be read counts as nothing, as upstream.
fn managers_of(object: Option<&Value>) -> Managers {
    object
        .and_then(|object| object.pointer("/metadata/managedFields"))
        .and_then(Managers::decode)
        .unwrap_or_default()
}

fn put_managed_fields(object: &mut Value, managers: &Managers) {
    let Value::Object(members) = object else {
        return;
    };
    let metadata = members.entry("metadata").or_insert_with(empty);
    if let Value::Object(metadata) = metadata {
        if managers.is_empty() {
            metadata.remove("managedFields");
        } else {
            metadata.insert("managedFields".to_owned(), managers.encode());
        }
    }
}
