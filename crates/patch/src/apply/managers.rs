//! Who owns what: `metadata.managedFields`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::fields::FieldSet;

/// Entries of operation `Update` that an object may have; the oldest are merged when there are
/// more.
const UPDATERS: usize = 10;
/// The manager that gets what the merged entries owned.
const ANCIENT: &str = "ancient-changes";

/// How a manager came to its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        }
    }
}

/// What makes an entry the same entry at the next write.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ManagerKey {
    pub(crate) manager: String,
    pub(crate) operation: Operation,
    pub(crate) subresource: String,
    /// Empty for [`Operation::Apply`]: an applier stays the same when it moves to another version.
    pub(crate) api_version: String,
}

impl ManagerKey {
    pub(crate) fn new(
        manager: &str,
        operation: Operation,
        subresource: &str,
        api_version: &str,
    ) -> Self {
        ManagerKey {
            manager: manager.to_owned(),
            operation,
            subresource: subresource.to_owned(),
            api_version: match operation {
                Operation::Apply => String::new(),
                Operation::Update => api_version.to_owned(),
            },
        }
    }

    /// As the genuine server names it in a conflict.
    pub(crate) fn describe(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text += &format!(" with subresource {:?}", self.subresource);
        }
        if self.operation == Operation::Update {
            text += &format!(" using {}", self.api_version);
        }
        text
    }
}

/// What is known of a manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manager {
    pub(crate) set: FieldSet,
    pub(crate) api_version: String,
    /// RFC 3339, whole seconds.
    pub(crate) time: Option<String>,
}

/// All managers of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Managers(pub(crate) BTreeMap<ManagerKey, Manager>);

impl Managers {
    /// Reads `managedFields`; `None` if an entry is malformed.
    pub(crate) fn decode(entries: &Value) -> Option<Self> {
        let mut managers = Managers::default();
        for entry in entries.as_array()? {
            let text = |name: &str| entry.get(name).and_then(Value::as_str);
            let operation = match text("operation")? {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return None,
            };
            if text("fieldsType")? != "FieldsV1" {
                return None;
            }
            let api_version = text("apiVersion")?;
            let subresource = text("subresource").unwrap_or_default();
            let manager = text("manager").unwrap_or_default();
            let set = match entry.get("fieldsV1") {
                None | Some(Value::Null) => FieldSet::new(),
                Some(fields) => FieldSet::decode(fields).ok()?,
            };
            let known = Manager {
                set,
                api_version: api_version.to_owned(),
                time: text("time").map(str::to_owned),
            };
            let key = ManagerKey::new(manager, operation, subresource, api_version);
            managers.0.insert(key, known);
        }
        Some(managers)
    }

    /// Writes `managedFields`: appliers first, then by time, then by name.
    pub(crate) fn encode(&self) -> Value {
        let mut entries: Vec<(&ManagerKey, &Manager)> = self.0.iter().collect();
        entries.sort_by(|(left, one), (right, other)| {
            let rank = |key: &ManagerKey| key.operation;
            rank(left)
                .cmp(&rank(right))
                .then_with(|| one.time.cmp(&other.time))
                .then_with(|| left.manager.cmp(&right.manager))
                .then_with(|| one.api_version.cmp(&other.api_version))
                .then_with(|| left.subresource.cmp(&right.subresource))
        });
        Value::Array(entries.into_iter().map(encode_entry).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Everything that anybody owns.
    pub(crate) fn all_fields(&self) -> FieldSet {
        self.0.values().fold(FieldSet::new(), |all, manager| {
            all.union(manager.set.clone())
        })
    }

    /// Takes fields from all managers but `except`, and forgets who has none left.
    pub(crate) fn take_from_others(&mut self, fields: &FieldSet, except: Option<&ManagerKey>) {
        for (key, manager) in &mut self.0 {
            if Some(key) != except && manager.set.intersects(fields) {
                manager.set = std::mem::take(&mut manager.set).difference(fields);
            }
        }
        self.0.retain(|_, manager| !manager.set.is_empty());
    }

    /// Merges the oldest updaters of each version until there are no more than allowed.
    pub(crate) fn cap(&mut self) {
        let updaters = self
            .0
            .iter()
            .filter(|(key, _)| key.operation == Operation::Update);
        let mut updaters: Vec<(Option<String>, ManagerKey)> = updaters
            .map(|(key, manager)| (manager.time.clone(), key.clone()))
            .collect();
        let mut count = updaters.len();
        updaters.sort();
        let mut first_of_version: BTreeMap<String, ManagerKey> = BTreeMap::new();
        for (time, key) in updaters {
            if count <= UPDATERS {
                return;
            }
            let version = key.api_version.clone();
            let Some(first) = first_of_version.get(&version) else {
                first_of_version.insert(version, key);
                continue;
            };
            let bucket = ManagerKey::new(ANCIENT, Operation::Update, "", &version);
            if !self.0.contains_key(&bucket)
                && let Some(first) = self.0.remove(first)
            {
                self.0.insert(bucket.clone(), first);
            }
            if let Some(merged) = self.0.remove(&key)
                && let Some(manager) = self.0.get_mut(&bucket)
            {
                manager.set = std::mem::take(&mut manager.set).union(merged.set);
                // The later of the two.
                manager.time = time;
                count -= 1;
            }
        }
    }
}

fn encode_entry((key, manager): (&ManagerKey, &Manager)) -> Value {
    let mut entry = Map::new();
    let mut put = |name: &str, value: Value| entry.insert(name.to_owned(), value);
    if !key.manager.is_empty() {
        put("manager", json!(key.manager));
    }
    put("operation", json!(key.operation.name()));
    put("apiVersion", json!(manager.api_version));
    if let Some(time) = &manager.time {
        put("time", json!(time));
    }
    put("fieldsType", json!("FieldsV1"));
    put("fieldsV1", manager.set.encode());
    if !key.subresource.is_empty() {
        put("subresource", json!(key.subresource));
    }
    Value::Object(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_malformed_is_none() {
        let entry = |change: &str, value: Value| {
            let mut entry = json!({"manager": "m", "operation": "Apply", "apiVersion": "v1",
                "fieldsType": "FieldsV1", "fieldsV1": {"f:a": {}}});
            entry[change] = value;
            Managers::decode(&json!([entry])).is_some()
        };
        assert!(entry("manager", json!("other")));
        assert!(!entry("operation", json!("Zap")));
        assert!(!entry("fieldsType", json!("FieldsV2")));
        assert!(!entry("fieldsV1", json!({"x": {}})));
        assert!(Managers::decode(&json!({})).is_none());
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let entries = json!([
            {"manager": "b", "operation": "Apply", "apiVersion": "v1", "time": "2026-01-01T00:00:02Z",
             "fieldsType": "FieldsV1", "fieldsV1": {"f:a": {}}, "subresource": "status"},
            {"manager": "a", "operation": "Update", "apiVersion": "v1",
             "fieldsType": "FieldsV1", "fieldsV1": {"f:a": {}}},
            {"manager": "a", "operation": "Update", "apiVersion": "v2", "time": "2026-01-01T00:00:01Z",
             "fieldsType": "FieldsV1", "fieldsV1": {"f:a": {".": {}, "f:b": {}}}},
        ]);
        let managers = Managers::decode(&entries).expect("is well formed");
        assert_eq!(managers.encode(), entries);
    }
}
