//! Finding keys that stand twice in one JSON object, which a parsed value no longer shows.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// `duplicate field "spec.replicas"` for each key that stands again in its object; empty if `raw` is no JSON.
pub(crate) fn find(raw: &[u8]) -> Vec<String> {
    let mut found = Found {
        path: String::new(),
        texts: Vec::new(),
    };
    let mut reader = serde_json::Deserializer::from_slice(raw);
    match (Scan { found: &mut found }).deserialize(&mut reader) {
        Ok(()) => found.texts,
        Err(_) => Vec::new(),
    }
}

struct Found {
    path: String,
    texts: Vec<String>,
}

struct Scan<'a> {
    found: &'a mut Found,
}

impl<'de> DeserializeSeed<'de> for Scan<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Scan<'_> {
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
            if !seen.insert(key) {
                let text = format!("duplicate field \"{}\"", self.found.path);
                if !self.found.texts.contains(&text) {
                    self.found.texts.push(text);
                }
            }
            entries.next_value_seed(Scan { found: self.found })?;
            self.found.path.truncate(length);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn keys_that_stand_twice_are_named_once_with_their_path() {
        let check = |raw: &str, expected: &[&str]| {
            assert_eq!(super::find(raw.as_bytes()), expected, "{raw}")
        };
        check(r#"{"a":1,"b":{"a":2}}"#, &[]);
        check(r#"{"a":1,"a":2,"a":3}"#, &[r#"duplicate field "a""#]);
        check(
            r#"{"spec":{"list":[{"x":1},{"x":1,"x":null}]}}"#,
            &[r#"duplicate field "spec.list[1].x""#],
        );
        check("{", &[]);
    }
}
