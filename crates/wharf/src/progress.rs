//! How far the start is: what `wharf up` shows meanwhile, and what a service manager waits for.

use std::io::Write;

use cli::control::Progress;

use crate::service_manager;

/// Tells the starting command, through standard output, if it reads that, and a service manager, if
/// there is one.
#[derive(Debug)]
pub(crate) struct Teller {
    told: bool,
}

impl Teller {
    /// `told`: somebody reads standard output.
    pub(crate) fn new(told: bool) -> Teller {
        Teller { told }
    }

    /// Says what is being done now.
    pub(crate) fn step(&self, message: &str) {
        tracing::info!("{message}");
        service_manager::tell_status(message);
        self.tell(&Progress::Step {
            message: message.into(),
        });
    }

    /// Says that it is ready, and lets go of standard output.
    pub(crate) fn ready(self) {
        service_manager::tell_status("The cluster is ready");
        service_manager::tell(service_manager::READY);
        self.tell(&Progress::Ready);
        self.let_go();
    }

    /// Says why it cannot start, and lets go of standard output.
    pub(crate) fn failed(self, error: &anyhow::Error) {
        service_manager::tell_status(&cli::in_words(error));
        self.tell(&Progress::Failed {
            message: cli::in_words(error),
        });
        self.let_go();
    }

    fn tell(&self, progress: &Progress) {
        if !self.told {
            return;
        }
        if let Ok(line) = serde_json::to_string(progress) {
            // The reader may have been interrupted; the server goes on.
            let mut output = std::io::stdout().lock();
            let _ = writeln!(output, "{line}").and_then(|()| output.flush());
        }
    }

    fn let_go(&self) {
        if !self.told {
            return;
        }
        if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
            let _ = rustix::stdio::dup2_stdout(&null);
        }
    }
}
