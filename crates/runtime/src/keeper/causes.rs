//! Why libcontainer failed.
//!
//! Its errors lose their sources on the way between its processes; what is left says "failed to
//! prepare rootfs". The cause it only logs. So the launcher listens to its log: whichever of its
//! processes logs an error, the first one is passed on to the keeper as the cause.

use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::process::{Report, Reporter};

/// A subscriber for a launcher and its children.
pub(super) struct Causes {
    reporter: Reporter,
    told: AtomicBool,
}

/// Begins to listen, in this process and its children.
pub(super) fn listen(reporter: Reporter) {
    let causes = Causes {
        reporter,
        told: AtomicBool::new(false),
    };
    // There is none before it: a launcher listens once.
    let _ = tracing::subscriber::set_global_default(causes);
}

impl Subscriber for Causes {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() == Level::ERROR
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(tracing::level_filters::LevelFilter::ERROR)
    }

    fn event(&self, event: &Event<'_>) {
        if self.told.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut text = Text::default();
        event.record(&mut text);
        self.reporter.tell(Report::Cause(text.whole()), &[]);
    }

    // Spans are never enabled.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// `message: name=value name=value`
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn whole(self) -> String {
        match (self.message.is_empty(), self.fields.is_empty()) {
            (false, false) => format!("{}:{}", self.message, self.fields),
            (false, true) => self.message,
            (true, _) => self.fields.trim_start().to_owned(),
        }
    }
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to strings cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}
