//! The table of fields: which number of which message is which field of which type.

use std::collections::HashMap;
use std::sync::OnceLock;

const TABLE: &str = include_str!("../data/fields.tsv");

/// How often a field occurs, and where it goes in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Label {
    /// At most once.
    One,
    /// A list.
    Many,
    /// From strings to values.
    Map,
    /// Its fields stand among those of the message around it.
    Embedded,
}

/// One field of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    /// Its name in JSON.
    pub(crate) name: &'static str,
    pub(crate) label: Label,
    /// A scalar, or the name of a message.
    pub(crate) kind: &'static str,
}

/// The fields of one message by number.
pub(crate) type Message = HashMap<u32, Field>;

/// The message of that name.
pub(crate) fn message(name: &str) -> Option<&'static Message> {
    static MESSAGES: OnceLock<HashMap<&'static str, Message>> = OnceLock::new();
    MESSAGES.get_or_init(read).get(name)
}

fn read() -> HashMap<&'static str, Message> {
    let mut messages: HashMap<&'static str, Message> = HashMap::new();
    for line in TABLE.lines() {
        let columns: Vec<&'static str> = line.split('\t').collect();
        let [message, number, name, label, kind] = columns[..] else {
            continue;
        };
        let fields = messages.entry(message).or_default();
        let label = match label {
            "many" => Label::Many,
            "map" => Label::Map,
            "embedded" => Label::Embedded,
            _ => Label::One,
        };
        // A message without fields has a row with number 0, which no field has.
        if let (Ok(number @ 1..), false) = (number.parse(), name.is_empty()) {
            fields.insert(number, Field { name, label, kind });
        }
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_a_scalar_or_in_the_table() {
        let scalars = [
            "string", "bytes", "bool", "int32", "int64", "uint32", "uint64", "double",
        ];
        for line in TABLE.lines() {
            let columns: Vec<&str> = line.split('\t').collect();
            assert_eq!(columns.len(), 5, "{line}");
            let kind = columns[4];
            assert!(
                kind.is_empty() || scalars.contains(&kind) || message(kind).is_some(),
                "{line}"
            );
        }
    }
}
