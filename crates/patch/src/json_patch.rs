//! JSON patch (RFC 6902), as the genuine server applies it.
//!
//! It departs from the RFC where the library under it does: indices may be negative and count from
//! the end, and may have leading zeros or a plus; `replace` sets a missing member; `copy` of a
//! missing member copies null; `test` against null holds for a missing member; a missing `value` is
//! null.

use serde_json::Value;

use crate::go;

/// Operations that one patch may have, as upstream.
const OPERATIONS: usize = 10_000;
/// How deep a patched document may nest: what serde_json would read again.
const DEPTH: usize = 127;
/// Bytes of JSON that all `copy` operations of a patch may add, as upstream. Copies of copies grow
/// exponentially.
const COPIED: usize = 3 << 20;

/// Values that all operations of a patch may move, compare or look through. Each is a step, and
/// ten thousand operations on a long list would be billions.
const STEPS: usize = 20_000_000;

/// Why a JSON patch is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonPatchError {
    /// It is no list of operations. The genuine server answers 400 with this text.
    #[error("error decoding patch: json: cannot unmarshal {found} into Go {wanted}")]
    Decode {
        /// What stands there.
        found: &'static str,
        /// What should stand there, in the genuine server's words.
        wanted: String,
    },
    /// It is too long. The genuine server answers 413, "Request entity too large: " and this text.
    #[error("The allowed maximum operations in a JSON patch is {OPERATIONS}, got {count}")]
    TooMany {
        /// How many operations it has.
        count: usize,
    },
    /// It would take too long. There is no such limit in the genuine server.
    #[error("operation {index} of the JSON patch would move more values than one patch may")]
    TooMuchWork {
        /// Which operation, from 0.
        index: usize,
    },
    /// An operation does not apply. The genuine server answers 422 without details: "the server
    /// rejected our request due to an error in our request".
    #[error("operation {index} ({operation} {path:?}) of the JSON patch does not apply: {problem}")]
    Apply {
        /// Which operation, from 0.
        index: usize,
        /// Its name.
        operation: String,
        /// Its path.
        path: String,
        /// What is wrong.
        problem: Problem,
    },
}

/// What is wrong with an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It is none of add, remove, replace, move, copy and test.
    #[error("unknown operation")]
    Unknown,
    /// `path` or `from` leads nowhere.
    #[error("missing path")]
    MissingPath,
    /// The index is none, or out of the list's bounds.
    #[error("invalid index")]
    Index,
    /// The tested value is another one.
    #[error("test failed")]
    Test,
    /// The document would nest deeper than can be read again.
    #[error("the result nests too deeply")]
    Depth,
    /// The copies are too large.
    #[error("the copies are too large")]
    Copied,
    /// All operations together move too many values.
    #[error("too many values are moved")]
    Work,
}

/// What the operations of one patch may still do.
struct Budget {
    /// Bytes that copies may add.
    copies: usize,
    /// Values that may be touched.
    steps: usize,
}

impl Budget {
    fn spend(&mut self, steps: usize) -> Result<(), Problem> {
        self.steps = self.steps.checked_sub(steps).ok_or(Problem::Work)?;
        Ok(())
    }

    /// Spends the steps that looking through `value` takes, and returns how deep it nests. It is
    /// given up as soon as there are none left.
    fn look_through(&mut self, value: &Value) -> Result<usize, Problem> {
        self.spend(1)?;
        let mut deepest = 0;
        match value {
            Value::Array(items) => {
                for item in items {
                    deepest = deepest.max(1 + self.look_through(item)?);
                }
                Ok(deepest.max(1))
            }
            Value::Object(members) => {
                for member in members.values() {
                    deepest = deepest.max(1 + self.look_through(member)?);
                }
                Ok(deepest.max(1))
            }
            _ => Ok(0),
        }
    }
}

struct Operation<'a> {
    name: &'a str,
    path: &'a str,
    from: &'a str,
    value: &'a Value,
}

/// Applies the operations `ops` to `doc` in order, all or none.
///
/// # Errors
/// When `ops` is no JSON patch, or an operation does not apply. `doc` is as it was then.
pub fn json_patch(doc: &mut Value, ops: &Value) -> Result<(), JsonPatchError> {
    let operations = match ops {
        Value::Null => return Ok(()),
        Value::Array(operations) => operations,
        other => return Err(decode(other, "value of type []handlers.jsonPatchOp")),
    };
    if operations.len() > OPERATIONS {
        let count = operations.len();
        return Err(JsonPatchError::TooMany { count });
    }
    let operations = operations.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let mut patched = doc.clone();
    let mut budget = Budget {
        copies: COPIED,
        steps: STEPS,
    };
    for (index, operation) in operations.iter().enumerate() {
        perform(&mut patched, operation, &mut budget).map_err(|problem| match problem {
            Problem::Work => JsonPatchError::TooMuchWork { index },
            problem => JsonPatchError::Apply {
                index,
                operation: operation.name.to_owned(),
                path: operation.path.to_owned(),
                problem,
            },
        })?;
    }
    *doc = patched;
    Ok(())
}

fn decode(found: &Value, wanted: &str) -> JsonPatchError {
    JsonPatchError::Decode {
        found: go::json_kind(found),
        wanted: wanted.to_owned(),
    }
}

fn read(operation: &Value) -> Result<Operation<'_>, JsonPatchError> {
    let text = |name: &str| match operation.get(name) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(other) => {
            let wanted = format!("struct field jsonPatchOp.{name} of type string");
            Err(decode(other, &wanted))
        }
    };
    if !operation.is_object() && !operation.is_null() {
        return Err(decode(operation, "value of type handlers.jsonPatchOp"));
    }
    Ok(Operation {
        name: text("op")?,
        path: text("path")?,
        from: text("from")?,
        value: operation.get("value").unwrap_or(&Value::Null),
    })
}

fn perform(doc: &mut Value, operation: &Operation<'_>, budget: &mut Budget) -> Result<(), Problem> {
    let path = operation.path;
    match operation.name {
        "add" => add(doc, path, operation.value.clone(), budget),
        "remove" => remove(doc, path, budget).map(drop),
        "replace" => replace(doc, path, operation.value, budget),
        "move" => {
            let value = remove(doc, operation.from, budget)?;
            add(doc, path, value, budget)
        }
        "copy" => {
            let value = get(doc, operation.from)?.unwrap_or(&Value::Null);
            budget.look_through(value)?;
            let value = value.clone();
            let left = budget.copies.checked_sub(value.to_string().len());
            budget.copies = left.ok_or(Problem::Copied)?;
            add(doc, path, value, budget)
        }
        "test" => match get(doc, path)? {
            Some(found) if found == operation.value => Ok(()),
            None if operation.value.is_null() => Ok(()),
            _ => Err(Problem::Test),
        },
        _ => Err(Problem::Unknown),
    }
}

/// The parts of a JSON pointer (RFC 6901), unescaped.
fn parts(path: &str) -> Result<Vec<String>, Problem> {
    let Some(path) = path.strip_prefix('/') else {
        return Err(Problem::MissingPath);
    };
    let unescape = |part: &str| part.replace("~1", "/").replace("~0", "~");
    Ok(path.split('/').map(unescape).collect())
}

/// The container that the last part of `path` is in, and that part.
fn parent<'a>(doc: &'a mut Value, path: &str) -> Result<(&'a mut Value, String), Problem> {
    let mut parts = parts(path)?;
    let last = parts.pop().ok_or(Problem::MissingPath)?;
    let mut container = doc;
    for part in parts {
        container = match container {
            Value::Object(members) => members.get_mut(&part).ok_or(Problem::MissingPath)?,
            Value::Array(items) => {
                let index = existing(&part, items.len())?;
                items.get_mut(index).ok_or(Problem::Index)?
            }
            _ => return Err(Problem::MissingPath),
        };
    }
    Ok((container, last))
}

/// An index as Go's Atoi reads it; negative ones count back from `end`.
fn index(part: &str, end: usize) -> Result<usize, Problem> {
    let index: i64 = part.parse().map_err(|_| Problem::Index)?;
    let absolute = if index < 0 {
        index.saturating_add_unsigned(end as u64)
    } else {
        index
    };
    usize::try_from(absolute).map_err(|_| Problem::Index)
}

/// The index of an item that is there.
fn existing(part: &str, length: usize) -> Result<usize, Problem> {
    let index = index(part, length)?;
    if index < length {
        Ok(index)
    } else {
        Err(Problem::Index)
    }
}

/// What is at `path`; `None` if only its last member is missing.
fn get<'a>(doc: &'a mut Value, path: &str) -> Result<Option<&'a Value>, Problem> {
    if path.is_empty() {
        return Ok(Some(doc));
    }
    let (container, last) = parent(doc, path)?;
    match container {
        Value::Object(members) => Ok(members.get(&last)),
        Value::Array(items) => Ok(items.get(existing(&last, items.len())?)),
        _ => Err(Problem::MissingPath),
    }
}

/// Refuses a value that would nest too deep at `path`.
fn check_depth(path: &str, value: &Value, budget: &mut Budget) -> Result<(), Problem> {
    let levels = path.bytes().filter(|byte| *byte == b'/').count();
    if levels + budget.look_through(value)? > DEPTH {
        return Err(Problem::Depth);
    }
    Ok(())
}

fn add(doc: &mut Value, path: &str, value: Value, budget: &mut Budget) -> Result<(), Problem> {
    check_depth(path, &value, budget)?;
    if path.is_empty() {
        *doc = value;
        return Ok(());
    }
    let (container, last) = parent(doc, path)?;
    match container {
        Value::Object(members) => {
            members.insert(last, value);
            Ok(())
        }
        Value::Array(items) if last == "-" => {
            items.push(value);
            Ok(())
        }
        Value::Array(items) => {
            // Counting back starts behind the last item: -1 appends.
            let index = index(&last, items.len() + 1)?;
            if index > items.len() {
                return Err(Problem::Index);
            }
            budget.spend(items.len() - index)?;
            items.insert(index, value);
            Ok(())
        }
        _ => Err(Problem::MissingPath),
    }
}

fn remove(doc: &mut Value, path: &str, budget: &mut Budget) -> Result<Value, Problem> {
    let (container, last) = parent(doc, path)?;
    match container {
        Value::Object(members) => members.remove(&last).ok_or(Problem::MissingPath),
        Value::Array(items) => {
            let index = existing(&last, items.len())?;
            budget.spend(items.len() - index)?;
            Ok(items.remove(index))
        }
        _ => Err(Problem::MissingPath),
    }
}

fn replace(doc: &mut Value, path: &str, value: &Value, budget: &mut Budget) -> Result<(), Problem> {
    if let Ok((Value::Array(items), last)) = parent(doc, path) {
        let index = existing(&last, items.len())?;
        check_depth(path, value, budget)?;
        items[index] = value.clone();
        return Ok(());
    }
    add(doc, path, value.clone(), budget)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn doc() -> Value {
        json!({"l": [1, 2, 3], "o": {"x": 1}, "s": "str", "n": 1, "a/b": 1, "c~d": 2, "nul": null})
    }

    /// Applies one operation and compares the member that it is about.
    fn check(operation: Value, member: &str, expected: Value) {
        let mut doc = doc();
        json_patch(&mut doc, &json!([operation])).expect("applies");
        assert_eq!(doc.get(member), Some(&expected), "{operation}");
    }

    fn refused(operation: Value, expected: Problem) {
        let mut patched = doc();
        match json_patch(&mut patched, &json!([operation])) {
            Err(JsonPatchError::Apply { problem, .. }) => assert_eq!(problem, expected),
            other => panic!("{operation}: {other:?}"),
        }
        assert_eq!(patched, doc());
    }

    #[test]
    fn lists() {
        check(
            json!({"op": "replace", "path": "/l/-1", "value": 9}),
            "l",
            json!([1, 2, 9]),
        );
        check(
            json!({"op": "replace", "path": "/l/-3", "value": 9}),
            "l",
            json!([9, 2, 3]),
        );
        refused(
            json!({"op": "replace", "path": "/l/-4", "value": 9}),
            Problem::Index,
        );
        refused(
            json!({"op": "replace", "path": "/l/-", "value": 9}),
            Problem::Index,
        );
        check(
            json!({"op": "add", "path": "/l/-", "value": 9}),
            "l",
            json!([1, 2, 3, 9]),
        );
        check(
            json!({"op": "add", "path": "/l/-1", "value": 9}),
            "l",
            json!([1, 2, 3, 9]),
        );
        check(
            json!({"op": "add", "path": "/l/-3", "value": 9}),
            "l",
            json!([1, 9, 2, 3]),
        );
        check(
            json!({"op": "add", "path": "/l/-4", "value": 9}),
            "l",
            json!([9, 1, 2, 3]),
        );
        refused(
            json!({"op": "add", "path": "/l/-5", "value": 9}),
            Problem::Index,
        );
        check(
            json!({"op": "add", "path": "/l/3", "value": 9}),
            "l",
            json!([1, 2, 3, 9]),
        );
        refused(
            json!({"op": "add", "path": "/l/4", "value": 9}),
            Problem::Index,
        );
        check(
            json!({"op": "add", "path": "/l/01", "value": 9}),
            "l",
            json!([1, 9, 2, 3]),
        );
        check(
            json!({"op": "add", "path": "/l/+1", "value": 9}),
            "l",
            json!([1, 9, 2, 3]),
        );
        refused(
            json!({"op": "add", "path": "/l/x", "value": 9}),
            Problem::Index,
        );
        refused(json!({"op": "remove", "path": "/l/-"}), Problem::Index);
        check(json!({"op": "remove", "path": "/l/-3"}), "l", json!([2, 3]));
        refused(json!({"op": "remove", "path": "/l/-4"}), Problem::Index);
        refused(json!({"op": "remove", "path": "/l/3"}), Problem::Index);
        check(
            json!({"op": "move", "from": "/l/0", "path": "/l/2"}),
            "l",
            json!([2, 3, 1]),
        );
        check(
            json!({"op": "copy", "from": "/o", "path": "/l/1"}),
            "l",
            json!([1, {"x": 1}, 2, 3]),
        );
        check(
            json!({"op": "copy", "from": "/l/-1", "path": "/o/y"}),
            "o",
            json!({"x": 1, "y": 3}),
        );
        refused(
            json!({"op": "copy", "from": "/l/7", "path": "/o/y"}),
            Problem::Index,
        );
    }

    #[test]
    fn members() {
        check(
            json!({"op": "replace", "path": "/o/new", "value": 1}),
            "o",
            json!({"x": 1, "new": 1}),
        );
        check(json!({"op": "add", "path": "/o"}), "o", Value::Null);
        check(
            json!({"op": "add", "path": "/o/", "value": 5}),
            "o",
            json!({"x": 1, "": 5}),
        );
        check(
            json!({"op": "add", "path": "/o/x~2", "value": 5}),
            "o",
            json!({"x": 1, "x~2": 5}),
        );
        check(
            json!({"op": "replace", "path": "/a~1b", "value": 5}),
            "a/b",
            json!(5),
        );
        check(
            json!({"op": "replace", "path": "/c~0d", "value": 5}),
            "c~d",
            json!(5),
        );
        check(
            json!({"op": "copy", "from": "/none", "path": "/o"}),
            "o",
            Value::Null,
        );
        check(
            json!({"op": "move", "from": "/o", "path": "/o"}),
            "o",
            json!({"x": 1}),
        );
        refused(
            json!({"op": "move", "from": "/o", "path": "/o/x"}),
            Problem::MissingPath,
        );
        refused(
            json!({"op": "move", "from": "/none", "path": "/o"}),
            Problem::MissingPath,
        );
        refused(json!({"op": "move", "path": "/o"}), Problem::MissingPath);
        refused(
            json!({"op": "remove", "path": "/none"}),
            Problem::MissingPath,
        );
        refused(json!({"op": "remove", "path": ""}), Problem::MissingPath);
        refused(
            json!({"op": "add", "path": "o", "value": 1}),
            Problem::MissingPath,
        );
        refused(
            json!({"op": "add", "path": "/none/x", "value": 1}),
            Problem::MissingPath,
        );
        refused(
            json!({"op": "add", "path": "/nul/x", "value": 1}),
            Problem::MissingPath,
        );
        refused(
            json!({"op": "add", "path": "/s/x", "value": 1}),
            Problem::MissingPath,
        );
        refused(
            json!({"op": "copy", "from": "/none/x", "path": "/o"}),
            Problem::MissingPath,
        );
        refused(
            json!({"op": "Add", "path": "/o/x", "value": 1}),
            Problem::Unknown,
        );
        refused(json!({"path": "/o"}), Problem::Unknown);
        refused(Value::Null, Problem::Unknown);
    }

    #[test]
    fn tests() {
        let holds = |path: &str, value: Value| {
            let test = json!({"op": "test", "path": path, "value": value});
            check(test, "n", json!(1));
        };
        let fails = |path: &str, value: Value, problem: Problem| {
            refused(json!({"op": "test", "path": path, "value": value}), problem);
        };
        holds("/l/-1", json!(3));
        holds("/o", json!({"x": 1}));
        holds("/none", Value::Null);
        check(json!({"op": "test", "path": "/none"}), "n", json!(1));
        fails("/none", json!(7), Problem::Test);
        fails("/n", json!(1.0), Problem::Test);
        fails("/o", json!({"x": 1, "y": null}), Problem::Test);
        fails("/o", Value::Null, Problem::Test);
        fails("/l/5", Value::Null, Problem::Index);
        fails("/none/deep", json!(7), Problem::MissingPath);
    }

    #[test]
    fn an_empty_path_is_the_document() {
        let mut patched = doc();
        json_patch(
            &mut patched,
            &json!([{"op": "replace", "path": "", "value": {}}]),
        )
        .expect("applies");
        assert_eq!(patched, json!({}));
    }

    #[test]
    fn what_is_no_patch_is_refused_as_upstream_does() {
        let check = |patch: Value, expected: &str| {
            let refused = json_patch(&mut doc(), &patch).expect_err("is no patch");
            assert_eq!(refused.to_string(), expected);
        };
        check(
            json!({"op": "x"}),
            "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp",
        );
        check(
            json!([1]),
            "error decoding patch: json: cannot unmarshal number into Go value of type handlers.jsonPatchOp",
        );
        check(
            json!([{"op": 1}]),
            "error decoding patch: json: cannot unmarshal number into Go struct field jsonPatchOp.op of type string",
        );
        check(
            Value::Array(vec![
                json!({"op": "test", "path": "/n", "value": 1});
                10_001
            ]),
            "The allowed maximum operations in a JSON patch is 10000, got 10001",
        );
        assert_eq!(json_patch(&mut doc(), &Value::Null), Ok(()));
    }

    #[test]
    fn a_document_grows_neither_deep_nor_large() {
        let mut deeper = Vec::new();
        for _ in 0..200 {
            deeper.push(json!({"op": "add", "path": "/t", "value": {}}));
            deeper.push(json!({"op": "move", "from": "/o", "path": "/t/o"}));
            deeper.push(json!({"op": "move", "from": "/t", "path": "/o"}));
        }
        let refused = json_patch(&mut doc(), &Value::Array(deeper));
        assert!(matches!(
            refused,
            Err(JsonPatchError::Apply {
                problem: Problem::Depth,
                ..
            })
        ));
        let double = json!({"op": "copy", "from": "/l", "path": "/l/0"});
        let refused = json_patch(&mut doc(), &Value::Array(vec![double; 100]));
        assert!(matches!(
            refused,
            Err(JsonPatchError::Apply {
                problem: Problem::Copied,
                ..
            })
        ));
    }

    #[test]
    fn the_work_of_a_patch_is_bounded() {
        let long = json!({"l": vec![""; 100_000], "o": {"a": {"b": vec![""; 100_000]}}});
        let check = |operation: Value, count: usize, expected: Option<JsonPatchError>| {
            let mut doc = long.clone();
            let patch = Value::Array(vec![operation; count]);
            assert_eq!(json_patch(&mut doc, &patch).err(), expected);
        };
        let refused = |index: usize| Some(JsonPatchError::TooMuchWork { index });
        let first = json!({"op": "add", "path": "/l/0", "value": ""});
        check(first.clone(), 100, None);
        check(first, 1000, refused(199));
        check(
            json!({"op": "add", "path": "/l/-", "value": ""}),
            10_000,
            None,
        );
        check(json!({"op": "remove", "path": "/l/0"}), 1000, refused(200));
        let replaced = json!({"op": "replace", "path": "/l/0", "value": ""});
        check(replaced, 10_000, None);
        // What is moved is looked through, so that it does not nest too deep.
        check(
            json!({"op": "move", "from": "/o/a", "path": "/o/a"}),
            1000,
            refused(199),
        );
    }
}
