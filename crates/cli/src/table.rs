//! Columns for people.

use crate::output;

/// Rows under a header, each column as wide as its widest cell, three blanks between.
pub(crate) fn print(header: &[&str], rows: &[Vec<String>]) {
    output::write(format_args!("{}", render(header, rows)));
}

fn render(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let header: Vec<String> = header.iter().map(|cell| cell.to_string()).collect();
    let mut text = String::new();
    for row in std::iter::once(&header).chain(rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(&format!("{cell:<width$}   "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Bytes in the unit that leaves one to three digits, as `docker image ls` prints them.
pub(crate) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            return if unit == "B" || value >= 99.95 {
                format!("{value:.0}{unit}")
            } else {
                format!("{value:.1}{unit}")
            };
        }
        value /= 1000.0;
    }
    format!("{value:.1}TB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_without_blanks() {
        let rows = vec![
            vec!["nginx".into(), "1".into()],
            vec!["a".into(), "".into()],
        ];
        assert_eq!(render(&["NAME", "N"], &rows), "NAME    N\nnginx   1\na\n");
    }

    #[test]
    fn sizes_have_a_readable_unit() {
        for (count, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.0kB"),
            (1_234_567, "1.2MB"),
            (123_456_789, "123MB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}
