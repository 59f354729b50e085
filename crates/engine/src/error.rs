//! Errors of the crates below in the words of [`Error`].

use runtime::{KeeperError, RefusalKind};

use crate::api::{ContainerId, Error};

/// A step on this machine that failed.
pub(crate) fn machine(
    step: &'static str,
    subject: impl Into<String>,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Error {
    Error::Machine {
        step,
        subject: subject.into(),
        source: source.into(),
    }
}

/// What a keeper's answer about a container means.
pub(crate) fn of_keeper(step: &'static str, id: &ContainerId, error: KeeperError) -> Error {
    match error {
        KeeperError::Refused(refusal) => match refusal.kind {
            RefusalKind::NotFound => Error::ContainerNotFound(id.clone()),
            RefusalKind::WrongState => Error::NotRunning(id.clone()),
            RefusalKind::Command => Error::Command(refusal.message),
            RefusalKind::Invalid => Error::Invalid(refusal.message),
            RefusalKind::Exists => Error::Exists(refusal.message),
            RefusalKind::Machine => machine(step, &id.0, refusal),
        },
        error => machine(step, &id.0, error),
    }
}
