//! YAML bodies, as Kubernetes users mean them.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_saphyr::{DuplicateKeyPolicy, Options, Spanned};

/// How deep lists and mappings may be in one another. Each level takes much of the stack.
const DEPTH: usize = 64;

/// Reads YAML with the booleans and octal numbers of YAML 1.1; of a key that stands twice the last counts.
pub(crate) fn value(bytes: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    serde_saphyr::from_str_with_options(text, options()).map_err(|error| {
        let text = error.to_string();
        let is_deep = ["budget breached: Depth", "recursion limit"];
        match is_deep.iter().any(|words| text.contains(words)) {
            true => format!("exceeded max depth of {DEPTH}"),
            false => text,
        }
    })
}

fn options() -> Options {
    serde_saphyr::options! {
        legacy_octal_numbers: true,
        strict_booleans: false,
        duplicate_keys: DuplicateKeyPolicy::LastWins,
        budget: serde_saphyr::budget! { max_depth: DEPTH },
    }
}

/// A complaint, as Go's reader has it, of each key that its mapping had before; none if this is no YAML.
pub(super) fn repeated_keys(bytes: &[u8]) -> Vec<String> {
    std::str::from_utf8(bytes)
        .ok()
        .and_then(|text| serde_saphyr::from_str_with_options::<Repeated>(text, options()).ok())
        .map(|repeated| repeated.0)
        .unwrap_or_default()
}

/// The complaints as one, as Go's reader has it.
pub(super) fn in_one(repeated: &[String]) -> String {
    format!("yaml: unmarshal errors:\n  {}", repeated.join("\n  "))
}

/// The complaints of all keys of a document.
struct Repeated(Vec<String>);

impl<'de> Deserialize<'de> for Repeated {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Keys)
    }
}

struct Keys;

impl<'de> Visitor<'de> for Keys {
    type Value = Repeated;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("any YAML")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Repeated, A::Error> {
        let mut texts = Vec::new();
        let mut known = HashSet::new();
        while let Some(key) = entries.next_key::<Spanned<String>>()? {
            let line = key.referenced.line();
            let name = kinds::quote(&key.value);
            if !known.insert(key.value) {
                texts.push(format!("line {line}: key {name} already set in map"));
            }
            texts.extend(entries.next_value::<Repeated>()?.0);
        }
        Ok(Repeated(texts))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Repeated, A::Error> {
        let mut texts = Vec::new();
        while let Some(item) = items.next_element::<Repeated>()? {
            texts.extend(item.0);
        }
        Ok(Repeated(texts))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Repeated, E> {
        Ok(Repeated(Vec::new()))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Repeated, E> {
        Ok(Repeated(Vec::new()))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Repeated, E> {
        Ok(Repeated(Vec::new()))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Repeated, E> {
        Ok(Repeated(Vec::new()))
    }

    fn visit_str<E>(self, _: &str) -> Result<Repeated, E> {
        Ok(Repeated(Vec::new()))
    }

    fn visit_unit<E>(self) -> Result<Repeated, E> {
        Ok(Repeated(Vec::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_is_read_as_users_mean_it() {
        let check = |text: &str, expected: Value| {
            assert_eq!(value(text.as_bytes()), Ok(expected), "{text}");
        };
        check(
            "mode: 0644\nflag: yes\ntext: \"yes\"\n",
            serde_json::json!({"mode": 420, "flag": true, "text": "yes"}),
        );
        check(
            "a: 1\nb:\n  c: 1\n  c: 2\n",
            serde_json::json!({"a": 1, "b": {"c": 2}}),
        );
    }

    #[test]
    fn what_is_too_deep_is_told() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let deepest = nested(DEPTH);
        value(deepest.as_bytes()).expect("not too deep");
        for depth in [DEPTH + 1, 100, 3000] {
            let told = Err("exceeded max depth of 64".to_owned());
            assert_eq!(value(nested(depth).as_bytes()), told, "{depth}");
        }
    }

    #[test]
    fn keys_that_are_there_again_are_told_with_their_lines() {
        let check = |text: &str, expected: &[&str]| {
            assert_eq!(repeated_keys(text.as_bytes()), expected, "{text}");
        };
        check("a: 1\nb: 1\nc: [{a: ~}, {a: 1.5}]\n", &[]);
        check(
            "a: 1\nb:\n- c: yes\n  c: no\na: 3\n",
            &[
                "line 4: key \"c\" already set in map",
                "line 5: key \"a\" already set in map",
            ],
        );
        check("base: &base {a: 1}\nother: {<<: *base, a: 2}\n", &[]);
        check("a: [", &[]);
    }
}
