//! What is wrong with a field: where, why, and the value that was refused.
//!
//! Texts follow upstream's `field.Error`, since people and programs read them.

use std::fmt;

use serde_json::Value;

/// Why a field was refused; upstream's `ErrorType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultReason {
    /// The field must be given.
    Required,
    /// The value is malformed or does not fit its neighbours.
    Invalid,
    /// The value is not one of the known ones.
    NotSupported,
    /// The value may stand only once.
    Duplicate,
    /// The value is longer than allowed.
    TooLong,
    /// The list has more items than allowed.
    TooMany,
    /// The field may not be given here.
    Forbidden,
    /// What the value refers to does not exist.
    NotFound,
    /// The value has the wrong type.
    TypeInvalid,
    /// The check itself could not be made.
    Internal,
}

impl FaultReason {
    /// The machine-readable word in `Status.details.causes[].reason`.
    pub fn word(self) -> &'static str {
        match self {
            FaultReason::Required => "FieldValueRequired",
            FaultReason::Invalid => "FieldValueInvalid",
            FaultReason::NotSupported => "FieldValueNotSupported",
            FaultReason::Duplicate => "FieldValueDuplicate",
            FaultReason::TooLong => "FieldValueTooLong",
            FaultReason::TooMany => "FieldValueTooMany",
            FaultReason::Forbidden => "FieldValueForbidden",
            FaultReason::NotFound => "FieldValueNotFound",
            FaultReason::TypeInvalid => "FieldValueTypeInvalid",
            FaultReason::Internal => "InternalError",
        }
    }

    fn text(self) -> &'static str {
        match self {
            FaultReason::Required => "Required value",
            FaultReason::Invalid => "Invalid value",
            FaultReason::NotSupported => "Unsupported value",
            FaultReason::Duplicate => "Duplicate value",
            FaultReason::TooLong => "Too long",
            FaultReason::TooMany => "Too many",
            FaultReason::Forbidden => "Forbidden",
            FaultReason::NotFound => "Not found",
            FaultReason::TypeInvalid => "Invalid value",
            FaultReason::Internal => "Internal error",
        }
    }
}

/// One fault of one field. `Display` gives upstream's text, path first.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// Where: `spec.containers[0].name`, `metadata.labels`, `data[key]`.
    pub path: String,
    /// Why.
    pub reason: FaultReason,
    /// The value that was refused; null where the reason does not show one.
    pub bad_value: Value,
    /// What would be right.
    pub detail: String,
    /// The value as text where Go prints its fields in another order than `bad_value` has them.
    shown: Option<String>,
}

/// A fault as it stands in `Status.details.causes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The machine-readable reason.
    pub reason: &'static str,
    /// The text without the path.
    pub message: String,
    /// The path.
    pub field: String,
}

impl Fault {
    fn new(
        path: Path<'_>,
        reason: FaultReason,
        bad_value: Value,
        detail: impl Into<String>,
    ) -> Fault {
        Fault {
            path: path.to_string(),
            reason,
            bad_value,
            detail: detail.into(),
            shown: None,
        }
    }

    /// The same fault, showing the value as this text.
    pub(crate) fn showing(mut self, text: String) -> Fault {
        self.shown = Some(text);
        self
    }

    /// The field must be given.
    pub fn required(path: Path<'_>, detail: impl Into<String>) -> Fault {
        Fault::new(path, FaultReason::Required, Value::Null, detail)
    }

    /// The value is malformed.
    pub fn invalid(
        path: Path<'_>,
        bad_value: impl Into<Value>,
        detail: impl Into<String>,
    ) -> Fault {
        Fault::new(path, FaultReason::Invalid, bad_value.into(), detail)
    }

    /// The value is none of `known`, which are shown in the given order.
    pub fn not_supported(path: Path<'_>, bad_value: impl Into<Value>, known: &[&str]) -> Fault {
        let quoted: Vec<String> = known.iter().map(|word| quote(word)).collect();
        let detail = match quoted.is_empty() {
            true => String::new(),
            false => format!("supported values: {}", quoted.join(", ")),
        };
        Fault::new(path, FaultReason::NotSupported, bad_value.into(), detail)
    }

    /// The value stands more than once.
    pub fn duplicate(path: Path<'_>, bad_value: impl Into<Value>) -> Fault {
        Fault::new(path, FaultReason::Duplicate, bad_value.into(), "")
    }

    /// The value is longer than `limit` bytes.
    pub fn too_long(path: Path<'_>, limit: usize) -> Fault {
        let detail = format!("may not be more than {limit} bytes");
        Fault::new(path, FaultReason::TooLong, Value::Null, detail)
    }

    /// The list has `actual` items, more than `limit`.
    pub fn too_many(path: Path<'_>, actual: usize, limit: usize) -> Fault {
        let detail = format!(
            "must have at most {limit} item{}",
            if limit == 1 { "" } else { "s" }
        );
        Fault::new(path, FaultReason::TooMany, Value::from(actual), detail)
    }

    /// The field may not be given here.
    pub fn forbidden(path: Path<'_>, detail: impl Into<String>) -> Fault {
        Fault::new(path, FaultReason::Forbidden, Value::Null, detail)
    }

    /// What the value names does not exist.
    pub fn not_found(path: Path<'_>, bad_value: impl Into<Value>) -> Fault {
        Fault::new(path, FaultReason::NotFound, bad_value.into(), "")
    }

    /// The same fault with these words about what would be right.
    pub(crate) fn saying(mut self, detail: impl Into<String>) -> Fault {
        self.detail = detail.into();
        self
    }

    /// The text without the path.
    pub fn message(&self) -> String {
        let mut text = self.reason.text().to_owned();
        let shown = !matches!(
            self.reason,
            FaultReason::Required
                | FaultReason::Forbidden
                | FaultReason::TooLong
                | FaultReason::Internal
        );
        if shown {
            text.push_str(": ");
            match &self.bad_value {
                _ if self.shown.is_some() => {
                    text.push_str(self.shown.as_deref().unwrap_or_default())
                }
                Value::String(word) => text.push_str(&quote(word)),
                other => text.push_str(&other.to_string()),
            }
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }

    /// The fault as an item of `Status.details.causes`.
    pub fn cause(&self) -> Cause {
        Cause {
            reason: self.reason.word(),
            message: self.message(),
            field: self.path.clone(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.path, self.message())
    }
}

/// A string as Go's `%q` prints it.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for symbol in text.chars() {
        match symbol {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            control if (control as u32) < 0x20 || control as u32 == 0x7f => {
                out.push_str(&format!("\\x{:02x}", control as u32));
            }
            other if other.is_control() => out.push_str(&format!("\\u{:04x}", other as u32)),
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

/// Where a value stands, as a chain that costs nothing until a fault is printed.
#[derive(Clone, Copy, Debug)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    part: Part<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Part<'a> {
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> Path<'a> {
    /// The path of a top-level field.
    pub const fn new(field: &'a str) -> Path<'a> {
        Path {
            parent: None,
            part: Part::Field(field),
        }
    }

    /// A field below this one; `field` may itself hold dots.
    pub const fn child(&'a self, field: &'a str) -> Path<'a> {
        Path {
            parent: Some(self),
            part: Part::Field(field),
        }
    }

    /// An item of this list.
    pub const fn index(&'a self, index: usize) -> Path<'a> {
        Path {
            parent: Some(self),
            part: Part::Index(index),
        }
    }

    /// An entry of this map.
    pub const fn key(&'a self, key: &'a str) -> Path<'a> {
        Path {
            parent: Some(self),
            part: Part::Key(key),
        }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(out)?;
        }
        match self.part {
            Part::Field(field) if self.parent.is_some() && !field.is_empty() => {
                write!(out, ".{field}")
            }
            Part::Field(field) => out.write_str(field),
            Part::Index(index) => write!(out, "[{index}]"),
            Part::Key(key) => write!(out, "[{key}]"),
        }
    }
}
