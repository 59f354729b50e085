//! ConfigMap.

use serde_json::Value;

use crate::fault::{Fault, Path};
use crate::metadata::{self, IMMUTABLE};
use crate::names;
use crate::read::entries;
use crate::rules::Rules;
use crate::table::{Heading, age_cell};

/// All values together.
pub(super) const SIZE_LIMIT: usize = 1024 * 1024;

pub(crate) const RULES: Rules = Rules {
    validate,
    validate_update: |new, old, _, faults| {
        immutable(new, old, &["data", "binaryData"], faults);
        validate(new, faults);
    },
    columns: &[
        Heading::NAME,
        Heading::of("Data", "io.k8s.api.core.v1.ConfigMap", "data"),
        Heading::AGE,
    ],
    cells: |map, now| {
        let count = entries(&map["data"]).count() + entries(&map["binaryData"]).count();
        vec![metadata::name(map).into(), count.into(), age_cell(map, now)]
    },
    ..Rules::PLAIN
};

fn validate(map: &Value, faults: &mut Vec<Fault>) {
    const DATA: Path<'static> = Path::new("data");
    const BINARY: Path<'static> = Path::new("binaryData");
    let mut size = 0;
    for (key, value) in entries(&map["data"]) {
        faults.extend(
            names::config_key(key)
                .into_iter()
                .map(|problem| Fault::invalid(DATA.key(key), key.as_str(), problem)),
        );
        if !map["binaryData"][key].is_null() {
            faults.push(Fault::invalid(
                DATA.key(key),
                key.as_str(),
                "duplicate of key present in binaryData",
            ));
        }
        size += value.as_str().map_or(0, str::len);
    }
    for (key, value) in entries(&map["binaryData"]) {
        faults.extend(
            names::config_key(key)
                .into_iter()
                .map(|problem| Fault::invalid(BINARY.key(key), key.as_str(), problem)),
        );
        size += value.as_str().map_or(0, |text| text.len() / 4 * 3);
    }
    if size > SIZE_LIMIT {
        // Upstream prints the path of the whole object so.
        faults.push(Fault::too_long(Path::new("[]"), SIZE_LIMIT));
    }
}

/// An object that was declared unchangeable stays so, and keeps these fields.
pub(super) fn immutable(
    new: &Value,
    old: &Value,
    fields: &[&'static str],
    faults: &mut Vec<Fault>,
) {
    if old["immutable"] != true {
        return;
    }
    let text = format!("{IMMUTABLE} when `immutable` is set");
    if new["immutable"] != true {
        faults.push(Fault::forbidden(Path::new("immutable"), text.as_str()));
    }
    for field in fields.iter().filter(|field| new[**field] != old[**field]) {
        faults.push(Fault::forbidden(Path::new(field), text.as_str()));
    }
}
