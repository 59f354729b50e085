//! `wharf down`: ends the server, every container, link, rule and cgroup. What is stored stays.

use std::time::Duration;

use anyhow::{Context, bail};
use http::Method;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{block_on, require_root};
use crate::control::{Control, Status};
use crate::{Config, Locked, Program};

/// Containers get their own grace periods before this is over.
const TIMEOUT_EXIT: Duration = Duration::from_secs(60);

pub(super) fn run(program: &dyn Program, config: &Config) -> anyhow::Result<()> {
    require_root("stop the cluster")?;
    if stop(program, config)? {
        println!(
            "Stopped. What is stored stays in {}; `wharf up` goes on with it.",
            config.instance.data_dir.display()
        );
    } else {
        println!("Nothing was running.");
    }
    Ok(())
}

/// Stops everything; whether there was anything to stop.
pub(super) fn stop(program: &dyn Program, config: &Config) -> anyhow::Result<bool> {
    if !config.instance.data_dir.exists() {
        return Ok(false);
    }
    if let Some(pid) = ask_to_end(config)? {
        wait_for_exit(pid)?;
        return Ok(true);
    }
    match config.instance.lock()? {
        Locked::Ours(lock) => {
            // No server: it was killed, perhaps, and its containers went on.
            program.tear_down(config, &lock)?;
            Ok(true)
        }
        Locked::Taken => bail!(
            "another wharf is using {} and does not answer; it may be starting or stopping: try again, or end it by its process id",
            config.instance.data_dir.display()
        ),
    }
}

fn ask_to_end(config: &Config) -> anyhow::Result<Option<u32>> {
    block_on(async {
        let Some(mut control) = Control::connect(&config.instance.control_socket()).await? else {
            return Ok(None);
        };
        let status: Status = control.ask(Method::POST, "/down").await?;
        Ok(status.pid)
    })
}

fn wait_for_exit(pid: u32) -> anyhow::Result<()> {
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
