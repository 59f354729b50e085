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

impl Column {
    /// A string column that is always shown.
    pub const fn text(name: &'static str, description: &'static str) -> Column {
        Column::of(name, "string", "", description, 0)
    }

    /// A string column that is shown with `-o wide`.
    pub const fn wide(name: &'static str, description: &'static str) -> Column {
        Column::of(name, "string", "", description, 1)
    }

    /// A column of whole numbers that is always shown.
    pub const fn number(name: &'static str, description: &'static str) -> Column {
        Column::of(name, "integer", "", description, 0)
    }

    /// The column that names the object.
    pub const fn name(description: &'static str) -> Column {
        Column::of("Name", "string", "name", description, 0)
    }

    /// A column with all of its words.
    pub const fn of(
        name: &'static str,
        kind: &'static str,
        format: &'static str,
        description: &'static str,
        priority: i32,
    ) -> Column {
        Column {
            name: Cow::Borrowed(name),
            kind: Cow::Borrowed(kind),
            format: Cow::Borrowed(format),
            description: Cow::Borrowed(description),
            priority,
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
    match time.as_str().and_then(|text| text.parse::<Timestamp>().ok()) {
        Some(then) => human_duration(now.duration_since(then).as_secs()),
        None => "<unknown>".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_get_coarser_as_they_get_longer() {
        let check = |seconds: i64, expected: &str| assert_eq!(human_duration(seconds), expected, "{seconds}");
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
