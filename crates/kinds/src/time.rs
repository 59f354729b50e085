//! Times as Go reads and prints them.

use jiff::Timestamp;
use jiff::fmt::strtime;

const SECONDS: &str = "2006-01-02T15:04:05Z07:00";
const MICROS: &str = "2006-01-02T15:04:05.000000Z07:00";

/// A time in UTC, cut to whole seconds or to microseconds; Go's words when it is none.
pub(crate) fn canonical(text: &str, micros: bool) -> Result<String, String> {
    let layout = if micros { MICROS } else { SECONDS };
    let parsed = Clock {
        text,
        rest: text,
        layout,
    }
    .read(micros)?;
    let pattern = if micros {
        "%Y-%m-%dT%H:%M:%S.%6fZ"
    } else {
        "%Y-%m-%dT%H:%M:%SZ"
    };
    strtime::format(pattern, parsed).map_err(|error| error.to_string())
}

/// Text in quotes as Go's package of times writes it: what is not ASCII byte by byte.
fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => out.extend(['\\', char::from(byte)]),
            0x20..0x80 => out.push(char::from(byte)),
            other => out.push_str(&format!("\\x{other:02x}")),
        }
    }
    out.push('"');
    out
}

/// A reader of one layout, piece by piece, that knows where it stopped.
struct Clock<'a> {
    text: &'a str,
    rest: &'a str,
    layout: &'static str,
}

impl Clock<'_> {
    fn cannot(&self, element: &str) -> String {
        let (text, rest) = (quote(self.text), quote(self.rest));
        format!(
            "parsing time {text} as {}: cannot parse {rest} as {}",
            quote(self.layout),
            quote(element)
        )
    }

    fn out_of_range(&self, what: &str) -> String {
        format!("parsing time {}: {what} out of range", quote(self.text))
    }

    fn digits(&mut self, count: usize, element: &str) -> Result<i64, String> {
        match self.rest.get(..count) {
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                self.rest = &self.rest[count..];
                digits.parse().map_err(|_| self.cannot(element))
            }
            _ => Err(self.cannot(element)),
        }
    }

    fn literal(&mut self, symbol: &str) -> Result<(), String> {
        match self.rest.strip_prefix(symbol) {
            Some(rest) => {
                self.rest = rest;
                Ok(())
            }
            None => Err(self.cannot(symbol)),
        }
    }

    fn ranged(
        &mut self,
        count: usize,
        element: &str,
        what: &str,
        range: std::ops::RangeInclusive<i64>,
    ) -> Result<i64, String> {
        let number = self.digits(count, element)?;
        if range.contains(&number) {
            Ok(number)
        } else {
            Err(self.out_of_range(what))
        }
    }

    fn read(mut self, micros: bool) -> Result<Timestamp, String> {
        let year = self.digits(4, "2006")?;
        self.literal("-")?;
        let month = self.ranged(2, "01", "month", 1..=12)?;
        self.literal("-")?;
        let day = self.digits(2, "02")?;
        self.literal("T")?;
        let hour = self.ranged(2, "15", "hour", 0..=23)?;
        self.literal(":")?;
        let minute = self.ranged(2, "04", "minute", 0..=59)?;
        self.literal(":")?;
        let second = self.ranged(2, "05", "second", 0..=59)?;
        let nanos = self.fraction(micros)?;
        let offset = self.offset()?;
        if !self.rest.is_empty() {
            let text = quote(self.text);
            return Err(format!(
                "parsing time {text}: extra text: {}",
                quote(self.rest)
            ));
        }
        let date = jiff::civil::Date::new(year as i16, month as i8, day as i8)
            .map_err(|_| self.out_of_range("day"))?;
        let at = date.at(hour as i8, minute as i8, second as i8, nanos);
        let offset = jiff::tz::Offset::from_seconds(offset)
            .map_err(|_| self.out_of_range("time zone offset hour"))?;
        offset
            .to_timestamp(at)
            .map_err(|_| self.out_of_range("year"))
    }

    /// The fraction of a second: six digits where the layout has them, any number where it has none.
    fn fraction(&mut self, micros: bool) -> Result<i32, String> {
        let digits: &str = match self.rest.strip_prefix(['.', ',']) {
            Some(rest) => &rest[..rest.bytes().take_while(u8::is_ascii_digit).count()],
            None => "",
        };
        if micros && digits.len() != 6 {
            return Err(self.cannot(".000000"));
        }
        if digits.is_empty() {
            return Ok(0);
        }
        self.rest = &self.rest[1 + digits.len()..];
        let padded = format!("{:0<9}", &digits[..digits.len().min(9)]);
        padded
            .parse()
            .map_err(|_| self.out_of_range("fractional second"))
    }

    fn offset(&mut self) -> Result<i32, String> {
        if let Some(rest) = self.rest.strip_prefix('Z') {
            self.rest = rest;
            return Ok(0);
        }
        let whole = self.cannot("Z07:00");
        let sign = match self.rest.as_bytes().first() {
            Some(b'+') => 1,
            Some(b'-') => -1,
            _ => return Err(whole),
        };
        self.rest = &self.rest[1..];
        let hours = self.digits(2, "Z07:00").map_err(|_| whole.clone())?;
        self.literal(":").map_err(|_| whole.clone())?;
        let minutes = self.digits(2, "Z07:00").map_err(|_| whole)?;
        if hours > 24 {
            return Err(self.out_of_range("time zone offset hour"));
        }
        if minutes > 60 {
            return Err(self.out_of_range("time zone offset minute"));
        }
        Ok(sign * (hours * 3600 + minutes * 60) as i32)
    }
}

#[cfg(test)]
mod tests {
    use super::canonical;

    #[test]
    fn times_come_out_in_utc_or_with_the_words_of_go() {
        let check = |text: &str, micros: bool, expected: &str| {
            assert_eq!(
                canonical(text, micros).unwrap_or_else(|error| error),
                expected
            );
        };
        check("2001-02-03T04:05:06Z", false, "2001-02-03T04:05:06Z");
        check(
            "2001-02-03T04:05:06.999+02:00",
            false,
            "2001-02-03T02:05:06Z",
        );
        check(
            "2001-02-03T04:05:06.120000Z",
            true,
            "2001-02-03T04:05:06.120000Z",
        );
        let micros = r#"parsing time "2001-02-03T04:05:06Z" as "2006-01-02T15:04:05.000000Z07:00": cannot parse "Z" as ".000000""#;
        check("2001-02-03T04:05:06Z", true, micros);
        check(
            "x",
            false,
            r#"parsing time "x" as "2006-01-02T15:04:05Z07:00": cannot parse "x" as "2006""#,
        );
        check(
            "2001-13-03T04:05:06Z",
            false,
            r#"parsing time "2001-13-03T04:05:06Z": month out of range"#,
        );
        check(
            "2001-02-30T04:05:06Z",
            false,
            r#"parsing time "2001-02-30T04:05:06Z": day out of range"#,
        );
    }
}
