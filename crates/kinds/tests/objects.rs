//! Objects in YAML, and what becomes of them: what is stored, or why it is refused.
//!
//! Each file under `objects` holds documents of the form
//! `{case, in, out | faults | refused, old?, row?}`: `in` is read, defaulted, prepared and checked as a create (as
//! an update of `old` where that is given); `out` must be what comes of it, `faults` the texts of all faults,
//! `refused` what the decoder says, `row` the cells of a table.

use std::fs;
use std::path::Path;

use kinds::{Kind, builtin};
use serde_json::{Value, json};

fn kind_of(object: &Value) -> &'static Kind {
    let version = object["apiVersion"]
        .as_str()
        .expect("a case has an apiVersion");
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let name = object["kind"].as_str().expect("a case has a kind");
    builtin()
        .by_kind(group, version, name)
        .expect("the kind is known")
}

/// The object as it would be stored, or the words with which it is refused.
fn read(object: &mut Value) -> Result<(), Vec<String>> {
    let kind = kind_of(object);
    let decoded = kind.decode(object, None);
    let refused: Vec<String> = decoded.error.into_iter().chain(decoded.faults).collect();
    if !refused.is_empty() {
        return Err(refused);
    }
    kind.default(object);
    Ok(())
}

fn check(place: &str, case: &Value) {
    let mut object = case["in"].clone();
    let kind = kind_of(&object);
    if let Err(refused) = read(&mut object) {
        assert_eq!(json!(refused), case["refused"], "{place}");
        return;
    }
    let faults = if case["old"].is_object() {
        let mut old = case["old"].clone();
        read(&mut old).unwrap_or_else(|refused| panic!("{place}: old is refused: {refused:?}"));
        kind.prepare_create(&mut old);
        kind.prepare_update(&mut object, &old, None);
        object["metadata"]["resourceVersion"] = "1".into();
        let faults = kind.validate_update(&object, &old, None);
        object["metadata"]
            .as_object_mut()
            .map(|metadata| metadata.remove("resourceVersion"));
        faults
    } else {
        kind.prepare_create(&mut object);
        kind.validate_create(&object)
    };
    let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
    let expected: Vec<String> = serde_json::from_value(case["faults"].clone()).unwrap_or_default();
    assert_eq!(texts, expected, "{place}");
    if case["out"].is_object() {
        assert_eq!(object, case["out"], "{place}");
    }
    if case["row"].is_array() {
        let now = "2024-01-01T00:05:00Z".parse().expect("a time");
        assert_eq!(json!(kind.cells(&object, now)), case["row"], "{place}");
    }
}

#[test]
fn objects_become_what_upstream_makes_of_them() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/objects");
    let mut count = 0;
    for entry in fs::read_dir(&directory).expect("the directory of cases") {
        let path = entry.expect("an entry").path();
        let text = fs::read_to_string(&path).expect("a readable case file");
        let cases: Vec<Value> = serde_saphyr::from_multiple(&text)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for case in cases {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            check(&format!("{file}: {}", case["case"]), &case);
            count += 1;
        }
    }
    assert!(count > 20, "only {count} cases were found");
}

/// What was stored once stays as it is when it is read again.
#[test]
fn reading_again_changes_nothing() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/objects");
    for entry in fs::read_dir(&directory).expect("the directory of cases") {
        let text =
            fs::read_to_string(entry.expect("an entry").path()).expect("a readable case file");
        let cases: Vec<Value> = serde_saphyr::from_multiple(&text).expect("cases in YAML");
        for case in cases.iter().filter(|case| case["out"].is_object()) {
            let mut again = case["out"].clone();
            read(&mut again).expect("what came out can be read");
            kind_of(&again).prepare_create(&mut again);
            assert_eq!(again, case["out"], "{}", case["case"]);
        }
    }
}
