//! What a strict reading of a JSON text complains of: fields that the type lacks, and fields that stand twice in
//! one object, which a parsed value no longer shows. Told in the order of the text, as Go's strict decoder does.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// `duplicate field "spec.replicas"` for each field that stands again in its object, each told once; none if `raw` is no JSON.
pub fn duplicate_fields(raw: &[u8]) -> Vec<String> {
    faults(raw, &[])
}

/// The same with `unknown field "spec.foo"` for each of the `unknown` paths; nothing below those is looked at.
pub(crate) fn faults(raw: &[u8], unknown: &[String]) -> Vec<String> {
    let mut found = Found {
        path: String::new(),
        unknown: unknown.iter().map(String::as_str).collect(),
        told: HashSet::new(),
        texts: Vec::new(),
    };
    let mut reader = serde_json::Deserializer::from_slice(raw);
    match (Scan { found: &mut found }).deserialize(&mut reader) {
        Ok(()) => found.texts,
        Err(_) => Vec::new(),
    }
}

struct Found<'a> {
    /// Where the walk is: `spec.containers[0].name`.
    path: String,
    unknown: HashSet<&'a str>,
    /// Paths in `texts`.
    told: HashSet<String>,
    texts: Vec<String>,
}

impl Found<'_> {
    fn tell(&mut self, what: &str) {
        if self.told.insert(self.path.clone()) {
            self.texts.push(format!("{what} field \"{}\"", self.path));
        }
    }
}

struct Scan<'a, 'b> {
    found: &'a mut Found<'b>,
}

impl<'de> DeserializeSeed<'de> for Scan<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Scan<'_, '_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("any JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let length = self.found.path.len();
        for index in 0.. {
            self.found.path.push_str(&format!("[{index}]"));
            let item = items.next_element_seed(Scan { found: self.found })?;
            self.found.path.truncate(length);
            if item.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let length = self.found.path.len();
        let mut seen: HashSet<String> = HashSet::new();
        while let Some(key) = entries.next_key::<String>()? {
            if length > 0 {
                self.found.path.push('.');
            }
            self.found.path.push_str(&key);
            if self.found.unknown.contains(self.found.path.as_str()) {
                self.found.tell("unknown");
                entries.next_value::<IgnoredAny>()?;
            } else {
                if !seen.insert(key) {
                    self.found.tell("duplicate");
                }
                entries.next_value_seed(Scan { found: self.found })?;
            }
            self.found.path.truncate(length);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_stand_twice_are_named_once_with_their_path() {
        let check = |raw: &str, expected: &[&str]| {
            assert_eq!(duplicate_fields(raw.as_bytes()), expected, "{raw}")
        };
        check(r#"{"a":1,"b":{"a":2}}"#, &[]);
        check(r#"{"a":1,"a":2,"a":3}"#, &[r#"duplicate field "a""#]);
        check(
            r#"{"spec":{"list":[{"x":1},{"x":1,"x":null}]}}"#,
            &[r#"duplicate field "spec.list[1].x""#],
        );
        check("{", &[]);
    }

    #[test]
    fn faults_stand_as_in_the_text_and_nothing_below_an_unknown_field_counts() {
        let raw = br#"{"spec":{"zzz":{"a":1,"a":2},"replicas":1,"list":[{"a":1,"a":2,"b":null}],"replicas":2},"b":1,"b":2}"#;
        let unknown = ["b", "spec.list[0].b", "spec.zzz"].map(str::to_owned);
        assert_eq!(
            faults(raw, &unknown),
            [
                "unknown field \"spec.zzz\"",
                "duplicate field \"spec.list[0].a\"",
                "unknown field \"spec.list[0].b\"",
                "duplicate field \"spec.replicas\"",
                "unknown field \"b\"",
            ]
        );
    }
}
