//! The words that the API's documentation has for types and fields.
//!
//! They are many and seldom asked for, so they stay text in the program's read-only pages: a definition is one
//! line of the data file, and only the line that is wanted is parsed.

use std::borrow::Cow;
use std::collections::BTreeMap;

const TEXT: &str = include_str!("../data/descriptions.json");

/// The descriptions of the fields of a definition; that of the definition itself under the empty name.
pub(crate) fn of(definition: &str) -> BTreeMap<Cow<'static, str>, Cow<'static, str>> {
    let start = format!("\"{definition}\":");
    let line = TEXT
        .lines()
        .find_map(|line| line.strip_prefix(start.as_str()));
    let object = line.map(|line| line.trim_end_matches(','));
    object
        .and_then(|object| serde_json::from_str(object).ok())
        .unwrap_or_default()
}

/// The description of one field; empty if there is none.
pub(crate) fn of_field(definition: &str, field: &str) -> Cow<'static, str> {
    of(definition).remove(field).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_definition_with_a_schema_is_described() {
        let pods = super::of("io.k8s.api.core.v1.Pod");
        assert!(pods[""].starts_with("Pod is a collection of containers"));
        assert!(!pods["spec"].is_empty());
        assert_eq!(super::of_field("io.k8s.api.core.v1.Pod", "nothing"), "");
    }
}
