//! Values as Go prints them. The genuine server's messages hold such texts.

use std::fmt::Write as _;

use serde_json::Value;

/// The value as Go's `%v` prints it: `map[a:1 b:[x y]]`, `<nil>`.
pub fn print(value: &Value) -> String {
    let mut text = String::new();
    plain(value, &mut text);
    text
}

fn plain(value: &Value, text: &mut String) {
    match value {
        Value::Null => text.push_str("<nil>"),
        Value::String(string) => text.push_str(string),
        Value::Bool(_) | Value::Number(_) => scalar(value, text),
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    text.push(' ');
                }
                plain(item, text);
            }
            text.push(']');
        }
        Value::Object(map) => {
            text.push_str("map[");
            for (index, (key, item)) in map.iter().enumerate() {
                if index > 0 {
                    text.push(' ');
                }
                text.push_str(key);
                text.push(':');
                plain(item, text);
            }
            text.push(']');
        }
    }
}

/// The value as Go's `%#v` prints it: `map[string]interface {}{"a":1}`.
pub(crate) fn syntax(value: &Value) -> String {
    let mut text = String::new();
    quoted(value, &mut text);
    text
}

fn quoted(value: &Value, text: &mut String) {
    match value {
        Value::Null => text.push_str("interface {}(nil)"),
        // Rust and Go quote alike, but for characters that do not print.
        Value::String(string) => write!(text, "{string:?}").expect("a string takes all"),
        Value::Bool(_) | Value::Number(_) => scalar(value, text),
        Value::Array(items) => {
            text.push_str("[]interface {}{");
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    text.push_str(", ");
                }
                quoted(item, text);
            }
            text.push('}');
        }
        Value::Object(map) => {
            text.push_str("map[string]interface {}{");
            for (index, (key, item)) in map.iter().enumerate() {
                if index > 0 {
                    text.push_str(", ");
                }
                write!(text, "{key:?}:").expect("a string takes all");
                quoted(item, text);
            }
            text.push('}');
        }
    }
}

/// Go prints a float's exponent below 1e-4 and from 1e21 on, with a sign and two digits.
fn scalar(value: &Value, text: &mut String) {
    let float = match value {
        Value::Number(number) if number.is_f64() => number.as_f64(),
        _ => None,
    };
    match float {
        Some(float) if float != 0.0 && !(1e-4..1e21).contains(&float.abs()) => {
            let plain = format!("{float:e}");
            let (digits, exponent) = plain.split_once('e').unwrap_or((&plain, "0"));
            let (sign, exponent) = match exponent.strip_prefix('-') {
                Some(exponent) => ('-', exponent),
                None => ('+', exponent),
            };
            write!(text, "{digits}e{sign}{exponent:0>2}").expect("a string takes all");
        }
        Some(float) => write!(text, "{float}").expect("a string takes all"),
        None => write!(text, "{value}").expect("a string takes all"),
    }
}

/// The Go type that JSON of this kind is decoded into.
pub(crate) fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "%!s(<nil>)",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// What Go's JSON decoder calls this kind of value.
pub(crate) fn json_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The value as Go's `%s` prints it.
pub(crate) fn as_string(value: &Value) -> String {
    match value {
        Value::String(string) => string.clone(),
        Value::Null => "%!s(<nil>)".to_owned(),
        Value::Array(_) | Value::Object(_) => print(value),
        scalar => format!("%!s({}={})", type_of(scalar), print(scalar)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_print_as_in_go() {
        let check = |value: Value, expected: &str| assert_eq!(print(&value), expected);
        check(
            json!({"b": [1, "x y", null], "a": {"c": true}}),
            "map[a:map[c:true] b:[1 x y <nil>]]",
        );
        check(json!([]), "[]");
        check(json!(1.5), "1.5");
        check(json!(2.0), "2");
        check(json!(1e21), "1e+21");
        check(json!(1.5e-7), "1.5e-07");
        check(json!(1e20), "100000000000000000000");
        assert_eq!(
            syntax(&json!({"a": [1, "x"], "b": null})),
            r#"map[string]interface {}{"a":[]interface {}{1, "x"}, "b":interface {}(nil)}"#
        );
        assert_eq!(as_string(&json!(1)), "%!s(int64=1)");
    }
}
