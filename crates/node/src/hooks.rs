//! `postStart` and `preStop` handlers.

use std::time::Duration;

use engine::{ContainerId, Engine, ExecSpec};
use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use crate::handler::{self, ExecFailure, HandlerError};

/// Why a handler failed. Not shown in events, as it may hold secrets of the container; logged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HookError {
    #[error("the handler names nothing to do")]
    Empty,
    #[error(transparent)]
    Exec(#[from] ExecFailure),
    #[error("command exited with {0}")]
    ExitCode(i32),
    #[error(transparent)]
    Handler(#[from] HandlerError),
}

/// Runs a handler to its end. The caller limits how long.
pub(crate) async fn run(
    engine: &dyn Engine,
    id: &ContainerId,
    container: &Container,
    pod_address: &str,
    hook: &LifecycleHandler,
) -> Result<(), HookError> {
    if let Some(exec) = &hook.exec {
        let spec = ExecSpec {
            argv: exec.command.clone().unwrap_or_default(),
            ..ExecSpec::default()
        };
        // As long as the caller lets it.
        let (code, _) = handler::exec(engine, id, spec, Duration::MAX).await?;
        return match code {
            0 => Ok(()),
            code => Err(HookError::ExitCode(code)),
        };
    }
    if let Some(get) = &hook.http_get {
        let request = handler::HttpGet::new(get, container, pod_address, "kube-lifecycle")?;
        request.send().await?;
        return Ok(());
    }
    if let Some(tcp) = &hook.tcp_socket {
        let port = handler::port(&tcp.port, container)?;
        let host = tcp.host.as_deref().filter(|host| !host.is_empty());
        handler::connect(host.unwrap_or(pod_address), port).await?;
        return Ok(());
    }
    if let Some(sleep) = &hook.sleep {
        let seconds = u64::try_from(sleep.seconds).unwrap_or(0);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        return Ok(());
    }
    Err(HookError::Empty)
}
