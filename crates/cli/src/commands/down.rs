//! `wharf down`: ends the server, every container, link, rule and cgroup. What is stored stays.

use std::time::Duration;

use anyhow::{Context, bail};
use http::Method;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{block_on, require_root};
use crate::control::Status;
use crate::output::say;
use crate::presence::{Presence, ask_or_lock};
use crate::{Config, Program};

/// For the server to end when its containers have.
const TIMEOUT_EXIT: Duration = Duration::from_secs(60);

pub(super) fn run(program: &dyn Program, config: &Config, limit: Duration) -> anyhow::Result<()> {
    require_root("stop the cluster")?;
    if stop(program, config, limit)? {
        say!(
            "Stopped. What is stored stays in {}; `wharf up` goes on with it.",
            config.instance.data_dir.display()
        );
    } else {
        say!("Nothing was running.");
    }
    Ok(())
}

/// Stops everything; whether there was anything to stop. Pods end as they asked to, but no later than
/// after `limit`.
pub(super) fn stop(
    program: &dyn Program,
    config: &Config,
    limit: Duration,
) -> anyhow::Result<bool> {
    if !config.instance.data_dir.exists() {
        return Ok(false);
    }
    let running = match block_on(ask_or_lock::<Status>(
        &config.instance,
        Method::POST,
        &format!("/down?grace={}", limit.as_secs()),
    ))? {
        Presence::Answered(status) => match status.pid {
            Some(pid) => {
                wait_for_exit(pid)?;
                true
            }
            None => bail!("the server did not say which process it is"),
        },
        // No server: it was killed, perhaps, and its containers went on.
        Presence::Nobody(lock) => program.tear_down(config, &lock, limit)?,
    };
    Ok(running)
}

/// Waits for a server that is ending.
pub(super) fn wait_for_exit(pid: u32) -> anyhow::Result<()> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        bail!("the server gave {pid} as its process id");
    };
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error).context("watch the server end"),
    };
    let timeout = Timespec::try_from(TIMEOUT_EXIT).context("a timeout")?;
    let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout))
        .context("wait for the server to end")?;
    if ended == 0 {
        bail!(
            "the server (pid {}) was told to end and still runs after {TIMEOUT_EXIT:?}",
            pid.as_raw_nonzero()
        );
    }
    Ok(())
}
