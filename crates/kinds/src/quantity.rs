//! Amounts with a unit: `500m`, `1Gi`, `1e3`; exact, and printed as Go prints them.

use std::fmt;
use std::str::FromStr;

/// The family of suffixes that an amount was written with, and is printed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `n u m k M G T P E`
    Decimal,
    /// `Ki Mi Gi Ti Pi Ei`
    Binary,
    /// `e3`, `E-6`
    Exponent,
}

const NANO: i128 = 1_000_000_000;

/// An exact amount. Finer than a billionth is rounded up, larger than 2⁶³−1 is cut to that, as upstream does.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// The text is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// There is no number, or something else than a number and a suffix.
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Format,
    /// The number has more than one dot.
    #[error("unable to parse numeric part of quantity")]
    Number,
    /// The suffix is not a known one.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    /// A whole amount.
    pub fn whole(value: i64) -> Quantity {
        Quantity {
            nanos: i128::from(value) * NANO,
            format: Format::Decimal,
        }
    }

    /// A number of thousandths.
    pub fn milli(value: i64) -> Quantity {
        Quantity {
            nanos: i128::from(value) * (NANO / 1000),
            format: Format::Decimal,
        }
    }

    /// The amount in billionths.
    pub fn nanos(&self) -> i128 {
        self.nanos
    }

    /// The amount, rounded up to a whole number.
    pub fn value(&self) -> i64 {
        i64::try_from(ceiling(self.nanos, NANO)).unwrap_or(i64::MAX)
    }

    /// The amount in thousandths, rounded up.
    pub fn milli_value(&self) -> i64 {
        i64::try_from(ceiling(self.nanos, NANO / 1000)).unwrap_or(i64::MAX)
    }

    /// The suffixes that it was written with.
    pub fn format(&self) -> Format {
        self.format
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Quantity) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Quantity) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Quantity) -> std::cmp::Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl std::ops::Add for Quantity {
    type Output = Quantity;

    /// The sum, printed in the format of the left side unless that is zero.
    fn add(self, other: Quantity) -> Quantity {
        let format = if self.nanos == 0 {
            other.format
        } else {
            self.format
        };
        Quantity {
            nanos: self.nanos.saturating_add(other.nanos),
            format,
        }
    }
}

impl std::ops::Sub for Quantity {
    type Output = Quantity;

    /// The difference, printed in the format of the left side unless that is zero.
    fn sub(self, other: Quantity) -> Quantity {
        let format = if self.nanos == 0 {
            other.format
        } else {
            self.format
        };
        Quantity {
            nanos: self.nanos.saturating_sub(other.nanos),
            format,
        }
    }
}

/// Division that rounds away from zero.
fn ceiling(value: i128, unit: i128) -> i128 {
    let rest = value % unit;
    value / unit + if rest == 0 { 0 } else { value.signum() }
}

/// `base^power × 10^9`, and the format, of a suffix.
fn unit(suffix: &str) -> Result<(u32, i32, Format), QuantityError> {
    const DECIMAL: [(&str, i32); 10] = [
        ("n", -9),
        ("u", -6),
        ("m", -3),
        ("", 0),
        ("k", 3),
        ("M", 6),
        ("G", 9),
        ("T", 12),
        ("P", 15),
        ("E", 18),
    ];
    const BINARY: [(&str, i32); 6] = [
        ("Ki", 10),
        ("Mi", 20),
        ("Gi", 30),
        ("Ti", 40),
        ("Pi", 50),
        ("Ei", 60),
    ];
    if let Some((_, power)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Ok((10, *power, Format::Decimal));
    }
    if let Some((_, power)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Ok((2, *power, Format::Binary));
    }
    match suffix.strip_prefix(['e', 'E']).map(str::parse::<i32>) {
        Some(Ok(power)) => Ok((10, power, Format::Exponent)),
        _ => Err(QuantityError::Suffix),
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Quantity, QuantityError> {
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let number_end = unsigned
            .find(|symbol: char| !symbol.is_ascii_digit() && symbol != '.')
            .unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(number_end);
        let letters_end = suffix
            .find(|symbol| !"eEinumkKMGTP".contains(symbol))
            .unwrap_or(suffix.len());
        let exponent = &suffix[letters_end..];
        let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        if number.is_empty() || !exponent.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(QuantityError::Format);
        }
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || whole.is_empty() && fraction.is_empty() {
            return Err(QuantityError::Format);
        }
        let (base, power, format) = unit(suffix)?;
        let (mantissa, exact) = scaled(whole, fraction.trim_end_matches('0'), base, power);
        let magnitude = if exact {
            mantissa
        } else {
            mantissa.saturating_add(1)
        };
        let magnitude = magnitude.min(i128::from(i64::MAX) * NANO);
        // A binary suffix cannot print what is finer than one.
        let format = if format == Format::Binary && magnitude < 1024 * NANO && magnitude % NANO != 0
        {
            Format::Decimal
        } else {
            format
        };
        Ok(Quantity {
            nanos: if text.starts_with('-') {
                -magnitude
            } else {
                magnitude
            },
            format,
        })
    }
}

/// `whole.fraction × base^power` in billionths, rounded down, and whether nothing was lost.
/// Saturates far above everything that a quantity can hold.
fn scaled(whole: &str, fraction: &str, base: u32, power: i32) -> (i128, bool) {
    const LIMIT: i128 = 1 << 110;
    let mut value: i128 = 0;
    // Digits beyond what i128 holds only matter for rounding.
    let mut dropped = 0_i32;
    let mut exact = true;
    for digit in whole
        .bytes()
        .chain(fraction.bytes())
        .map(|byte| i128::from(byte - b'0'))
    {
        match value < LIMIT / 16 {
            true => value = value * 10 + digit,
            false => {
                dropped += 1;
                exact &= digit == 0;
            }
        }
    }
    let mut tens = 9 + dropped - fraction.len() as i32;
    if base == 2 {
        for _ in 0..power {
            if value < LIMIT {
                value *= 2;
            } else if tens < 0 {
                exact &= value % 10 == 0;
                value /= 5;
                tens += 1;
            }
        }
    } else {
        tens = tens.saturating_add(power);
    }
    while tens > 0 && value != 0 && value < LIMIT {
        value *= 10;
        tens -= 1;
    }
    while tens < 0 && value != 0 {
        exact &= value % 10 == 0;
        value /= 10;
        tens += 1;
    }
    (value, exact)
}

impl fmt::Display for Quantity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return out.write_str("0");
        }
        let binary = self.format == Format::Binary
            && self.nanos.abs() >= 1024 * NANO
            && self.nanos % NANO == 0;
        if binary {
            return self.print_binary(out);
        }
        // The largest power of a thousand that leaves a whole number.
        let (mut number, mut power) = (self.nanos, -9);
        while number % 1000 == 0 {
            number /= 1000;
            power += 3;
        }
        // Beyond the largest suffix there is nothing to shorten.
        while power > 18 {
            number *= 1000;
            power -= 3;
        }
        if self.format == Format::Exponent {
            return match power {
                0 => write!(out, "{number}"),
                _ => write!(out, "{number}e{power}"),
            };
        }
        let suffix = match power {
            -9 => "n",
            -6 => "u",
            -3 => "m",
            0 => "",
            3 => "k",
            6 => "M",
            9 => "G",
            12 => "T",
            15 => "P",
            _ => "E",
        };
        write!(out, "{number}{suffix}")
    }
}

impl Quantity {
    fn print_binary(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut number, mut step) = (self.nanos / NANO, 0);
        while number % 1024 == 0 && step < 6 {
            number /= 1024;
            step += 1;
        }
        write!(
            out,
            "{number}{}",
            ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][step]
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_printed_in_their_shortest_form() {
        let check = |text: &str, expected: &str| {
            let printed = text
                .parse::<Quantity>()
                .map_or_else(|error| error.to_string(), |quantity| quantity.to_string());
            assert_eq!(printed, expected, "{text}");
        };
        check("0", "0");
        check("0Gi", "0");
        check("1", "1");
        check("1000m", "1");
        check("0.5", "500m");
        check("1500m", "1500m");
        check("100000", "100k");
        check("1024Ki", "1Mi");
        check("1024Gi", "1Ti");
        check("1536Mi", "1536Mi");
        check("1.5Gi", "1536Mi");
        check("0.5Mi", "512Ki");
        check("0.5Ki", "512");
        check("128974848", "128974848");
        check("129e6", "129e6");
        check("1e3", "1e3");
        check("1000e0", "1e3");
        check("1E", "1E");
        check("-1500m", "-1500m");
        check("+2", "2");
        check(".5", "500m");
        check("1.", "1");
        check("1n", "1n");
        check("0.1n", "1n");
        check("99999999999", "99999999999");
        check("10000000000000000000", "9223372036854775807");
        let format = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
        check("", format);
        check("x", format);
        check("1x", format);
        check("10Gx", format);
        check("1..2", format);
        check("1mm", "unable to parse quantity's suffix");
    }

    proptest::proptest! {
        #[test]
        fn printing_and_reading_gives_the_same_amount(number in -1_000_000_000_i64..1_000_000_000, suffix in "(n|u|m|k|M|G|Ki|Mi|Gi|e3|E2)?") {
            let quantity: Quantity = format!("{number}{suffix}").parse().expect("a well-formed quantity");
            let again: Quantity = quantity.to_string().parse().expect("what is printed can be read");
            proptest::prop_assert_eq!(quantity, again);
            proptest::prop_assert_eq!(quantity.to_string(), again.to_string());
        }

        #[test]
        fn no_text_makes_it_panic(text in "[-+]?[0-9.]{0,60}[eEinumkKMGTP]{0,3}[-+]?[0-9]{0,12}") {
            let _ = text.parse::<Quantity>().map(|quantity| quantity.to_string());
        }
    }
}
