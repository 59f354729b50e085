//! Columns of `kubectl get`, and the short words in their cells.

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::Value;

/// A column of a `Table` answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// The heading.
    pub name: Cow<'static, str>,
    /// The OpenAPI type of the cells: `string`, `integer`, `boolean`, `number`.
    pub kind: Cow<'static, str>,
    /// The OpenAPI format: `name` for the column that names the object, else mostly empty.
    pub format: Cow<'static, str>,
    /// What the column shows.
    pub description: Cow<'static, str>,
    /// 0 is always shown, 1 with `-o wide`.
    pub priority: i32,
}

/// Where the description of a column stands.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Says {
    /// Here.
    Text(&'static str),
    /// At this field of this definition.
    Field(&'static str, &'static str),
}

/// A column as the file of a kind writes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heading {
    name: &'static str,
    kind: &'static str,
    format: &'static str,
    says: Says,
    priority: i32,
}

const METADATA: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

impl Heading {
    /// The column that names the object.
    pub(crate) const NAME: Heading = Heading {
        format: "name",
        ..Heading::of("Name", METADATA, "name")
    };
    /// The column of the object's age.
    pub(crate) const AGE: Heading = Heading::of("Age", METADATA, "creationTimestamp");
    /// The column of the moment when the object was made, for kinds that have no columns of their own.
    pub(crate) const CREATED_AT: Heading = Heading {
        kind: "date",
        ..Heading::of("Created At", METADATA, "creationTimestamp")
    };

    /// A string column that shows a field of this definition.
    pub(crate) const fn of(
        name: &'static str,
        definition: &'static str,
        field: &'static str,
    ) -> Heading {
        Heading {
            name,
            kind: "string",
            format: "",
            says: Says::Field(definition, field),
            priority: 0,
        }
    }

    /// A string column with a description of its own.
    pub(crate) const fn text(name: &'static str, description: &'static str) -> Heading {
        Heading {
            name,
            kind: "string",
            format: "",
            says: Says::Text(description),
            priority: 0,
        }
    }

    /// The same column, shown with `-o wide` only.
    pub(crate) const fn wide(self) -> Heading {
        Heading {
            priority: 1,
            ..self
        }
    }

    /// The same column, of whole numbers.
    pub(crate) const fn number(self) -> Heading {
        Heading {
            kind: "integer",
            ..self
        }
    }

    /// The same column, of yes and no.
    pub(crate) const fn boolean(self) -> Heading {
        Heading {
            kind: "boolean",
            ..self
        }
    }

    pub(crate) fn column(&self) -> Column {
        let description = match self.says {
            Says::Text(text) => Cow::Borrowed(text),
            Says::Field(definition, field) => crate::descriptions::of_field(definition, field),
        };
        Column {
            name: Cow::Borrowed(self.name),
            kind: Cow::Borrowed(self.kind),
            format: Cow::Borrowed(self.format),
            description,
            priority: self.priority,
        }
    }
}

/// A span of time as `kubectl` shortens it: `5s`, `3m20s`, `47h`, `2d4h`, `3y`.
pub fn human_duration(seconds: i64) -> String {
    let pair = |big: i64, big_unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big}{big_unit}"),
        _ => format!("{big}{big_unit}{small}{small_unit}"),
    };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1 | 0 => "0s".to_owned(),
        1..120 => format!("{seconds}s"),
        120..600 => pair(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(hours / 24, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{}d", hours / 24),
        63_072_000..252_288_000 => pair(hours / 24 / 365, "y", hours / 24 % 365, "d"),
        _ => format!("{}y", hours / 24 / 365),
    }
}

/// How long ago a time of an object was; `<unknown>` when it is absent.
pub fn age(time: &Value, now: Timestamp) -> String {
    match time
        .as_str()
        .and_then(|text| text.parse::<Timestamp>().ok())
    {
        Some(then) => human_duration(now.duration_since(then).as_secs()),
        None => "<unknown>".to_owned(),
    }
}

/// The cell of the object's age.
pub(crate) fn age_cell(object: &Value, now: Timestamp) -> Value {
    age(&object["metadata"]["creationTimestamp"], now).into()
}

/// A text, or what stands for none.
pub(crate) fn or_none(text: &str) -> Value {
    if text.is_empty() {
        "<none>".into()
    } else {
        text.into()
    }
}

/// Labels as `a=b,c=d`, or what stands for none.
pub(crate) fn labels(labels: &Value) -> Value {
    or_none(&crate::Selector::from_labels(labels).to_string())
}

/// A `LabelSelector` object as text, or what stands for none.
pub(crate) fn selector(selector: &Value) -> Value {
    match crate::Selector::from_object(selector) {
        Ok(Some(selector)) => or_none(&selector.to_string()),
        Ok(None) => "<none>".into(),
        Err(_) => "<error>".into(),
    }
}

/// Names and images of the containers of a template, each joined by commas.
pub(crate) fn containers(template: &Value) -> [Value; 2] {
    let joined = |field: &str| {
        let containers = template["spec"]["containers"].as_array();
        let words: Vec<&str> = containers
            .into_iter()
            .flatten()
            .filter_map(|container| container[field].as_str())
            .collect();
        Value::from(words.join(","))
    };
    [joined("name"), joined("image")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_get_coarser_as_they_get_longer() {
        let check = |seconds: i64, expected: &str| {
            assert_eq!(human_duration(seconds), expected, "{seconds}")
        };
        check(-5, "<invalid>");
        check(0, "0s");
        check(119, "119s");
        check(120, "2m");
        check(200, "3m20s");
        check(600, "10m");
        check(3 * 3600 - 1, "179m");
        check(3 * 3600, "3h");
        check(3 * 3600 + 61, "3h1m");
        check(8 * 3600 + 61, "8h");
        check(47 * 3600, "47h");
        check(52 * 3600, "2d4h");
        check(9 * 86_400, "9d");
        check(800 * 86_400, "2y70d");
        check(10 * 365 * 86_400, "10y");
    }
}
