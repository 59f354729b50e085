//! Figures, and the table that they make.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

/// One measured thing.
pub(crate) struct Figure {
    name: String,
    shown: String,
    value: f64,
    more_is_better: bool,
}

impl Figure {
    pub(crate) fn duration(name: impl Into<String>, duration: Duration) -> Figure {
        let milliseconds = duration.as_secs_f64() * 1000.0;
        let shown = if milliseconds >= 1000.0 {
            format!("{:.2} s", milliseconds / 1000.0)
        } else {
            format!("{milliseconds:.1} ms")
        };
        Figure {
            name: name.into(),
            shown,
            value: milliseconds,
            more_is_better: false,
        }
    }

    pub(crate) fn bytes(name: impl Into<String>, bytes: u64) -> Figure {
        let shown = format!("{:.1} MB", bytes as f64 / 1e6);
        Figure {
            name: name.into(),
            shown,
            value: bytes as f64,
            more_is_better: false,
        }
    }

    pub(crate) fn percent(name: impl Into<String>, percent: f64) -> Figure {
        Figure {
            name: name.into(),
            shown: format!("{percent:.2} %"),
            value: percent,
            more_is_better: false,
        }
    }

    pub(crate) fn rate(name: impl Into<String>, per_second: f64) -> Figure {
        Figure {
            name: name.into(),
            shown: format!("{per_second:.0} /s"),
            value: per_second,
            more_is_better: true,
        }
    }
}

/// All figures of a run, in the order in which they came.
#[derive(Default)]
pub(crate) struct Report {
    names: Vec<String>,
    figures: BTreeMap<(String, &'static str), Figure>,
}

impl Report {
    pub(crate) fn add(&mut self, subject: &'static str, figure: Figure) {
        eprintln!("{subject}: {}: {}", figure.name, figure.shown);
        if !self.names.contains(&figure.name) {
            self.names.push(figure.name.clone());
        }
        self.figures.insert((figure.name.clone(), subject), figure);
    }

    fn text(&self) -> String {
        let mut text =
            String::from("| what | wharf | peer | times better |\n| --- | --- | --- | --- |\n");
        for name in &self.names {
            let of = |subject| self.figures.get(&(name.clone(), subject));
            let shown = |figure: Option<&Figure>| {
                figure.map_or("–".to_string(), |figure| figure.shown.clone())
            };
            let ratio = match (of("wharf"), of("peer")) {
                (Some(ours), Some(theirs)) if ours.value > 0.0 && theirs.value > 0.0 => {
                    let ratio = if ours.more_is_better {
                        ours.value / theirs.value
                    } else {
                        theirs.value / ours.value
                    };
                    format!("{ratio:.1}")
                }
                _ => "–".to_string(),
            };
            // Writing into a string cannot fail.
            let _ = writeln!(
                text,
                "| {name} | {} | {} | {ratio} |",
                shown(of("wharf")),
                shown(of("peer"))
            );
        }
        text
    }

    pub(crate) fn print(&self) {
        println!("\n{}", self.text());
    }

    pub(crate) fn write(&self) -> anyhow::Result<PathBuf> {
        let directory = PathBuf::from("bench/results");
        let path = directory.join(format!(
            "{}.md",
            jiff::Timestamp::now().strftime("%Y-%m-%dT%H%M%SZ")
        ));
        std::fs::create_dir_all(&directory)
            .and_then(|()| std::fs::write(&path, self.text()))
            .with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

/// The middle one; of an even number the lower.
pub(crate) fn median(mut durations: Vec<Duration>) -> Duration {
    durations.sort();
    durations
        .get(durations.len().saturating_sub(1) / 2)
        .copied()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_say_how_many_times_better_wharf_is() {
        let mut report = Report::default();
        report.add(
            "wharf",
            Figure::duration("start", Duration::from_millis(500)),
        );
        report.add("peer", Figure::duration("start", Duration::from_secs(10)));
        report.add("wharf", Figure::rate("creates", 9000.0));
        report.add("peer", Figure::rate("creates", 1500.0));
        let text = report.text();
        assert!(
            text.contains("| start | 500.0 ms | 10.00 s | 20.0 |"),
            "{text}"
        );
        assert!(
            text.contains("| creates | 9000 /s | 1500 /s | 6.0 |"),
            "{text}"
        );
    }
}
