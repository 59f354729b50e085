//! `wharf up`: starts the server in the background, and returns when the cluster is ready.
//!
//! The server tells its progress on its standard output, which is a pipe to this command, so nothing
//! is polled; the end of the pipe without the word "ready" means that the server died, and then the
//! end of its log says why.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, IsTerminal, Read, Seek, SeekFrom};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use http::Method;
use indicatif::{ProgressBar, ProgressStyle};

use super::down::wait_for_exit;
use super::{block_on, require_root};
use crate::control::{Progress, State, Status};
use crate::output::{complain, say};
use crate::presence::{Presence, ask_or_lock};
use crate::{Config, kubeconfig};

/// How much of the log is shown when the server died.
const LOG_TAIL_BYTES: u64 = 2000;

pub(super) fn run(config: &Config) -> anyhow::Result<()> {
    require_root("start a cluster")?;
    config.refuse_changes()?;
    kubeconfig::check(&config.kubeconfig)?;
    config.instance.make_data_dir()?;
    let started = Instant::now();
    if let Some(status) = running(config)? {
        return print_running(config, &status);
    }
    // The lock is free again at once, for the server to take.
    let mut server = spawn(config)?;
    if let Err(error) = follow(config, &mut server) {
        // Another `wharf up` may have come at the same moment, and its server was first.
        return match running(config) {
            Ok(Some(status)) => print_running(config, &status),
            _ => Err(error),
        };
    }
    merge(config)?;
    say!(
        "The cluster is ready after {:.1} s: {}",
        started.elapsed().as_secs_f64(),
        config.server_url()
    );
    print_next(config);
    Ok(())
}

/// The state of the server that has the instance, once its start is complete; nothing if nobody has
/// it. A server that was told to end is waited out.
fn running(config: &Config) -> anyhow::Result<Option<Status>> {
    loop {
        let found = block_on(ask_or_lock::<Status>(
            &config.instance,
            Method::GET,
            "/ready",
        ))?;
        match found {
            Presence::Answered(Status {
                state: State::Stopping,
                pid: Some(pid),
                ..
            }) => {
                complain!("Waiting for the server that is stopping");
                wait_for_exit(pid)?;
            }
            Presence::Answered(status) => return Ok(Some(status)),
            Presence::Nobody(_) => return Ok(None),
        }
    }
}

fn print_running(config: &Config, status: &Status) -> anyhow::Result<()> {
    merge(config)?;
    let pid = status.pid.unwrap_or_default();
    if !status.ready {
        let reasons: Vec<_> = status
            .not_ready
            .iter()
            .map(|missing| format!("{}: {}", missing.name, missing.reason))
            .collect();
        bail!(
            "wharf is already running (pid {pid}) and is not ready ({}); {} may say more",
            reasons.join("; "),
            config.instance.log_file().display()
        );
    }
    say!("wharf is already running (pid {pid}).");
    let api = status.addresses.as_ref().map(|addresses| &addresses.api);
    if let Some(api) = api.filter(|api| **api != config.server_url()) {
        say!(
            "Its API stays at {api}; to move it to {}, stop it first: wharf down",
            config.server_url()
        );
    }
    print_next(config);
    Ok(())
}

fn merge(config: &Config) -> anyhow::Result<()> {
    kubeconfig::merge(
        &config.instance.admin_kubeconfig(),
        &config.kubeconfig,
        config.context(),
    )
    .context(
        "the cluster runs, but kubectl cannot be told of it; choose another file with --kubeconfig",
    )
}

fn spawn(config: &Config) -> anyhow::Result<Child> {
    let path = config.instance.log_file();
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    keep_to_ourselves().context("see to what the server inherits")?;
    Command::new("/proc/self/exe")
        .arg("server")
        .args(&config.flags)
        .arg("--progress")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .current_dir("/")
        .spawn()
        .context("start the server")
}

/// Locks and pipes of whoever typed the command would be held for as long as the cluster runs.
fn keep_to_ourselves() -> std::io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name().into_string().unwrap_or_default();
        let Some(number @ 3..) = number.parse::<i32>().ok() else {
            continue;
        };
        #[expect(
            unsafe_code,
            reason = "a descriptor of unknown origin has no owner here"
        )]
        // SAFETY: it is borrowed for one call, which changes nothing but what a child inherits, and
        // says so itself if there is no such descriptor.
        let inherited = unsafe { BorrowedFd::borrow_raw(number) };
        match rustix::io::fcntl_setfd(inherited, rustix::io::FdFlags::CLOEXEC) {
            // The one by which this list was read, on some systems.
            Ok(()) | Err(rustix::io::Errno::BADF) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Shows what the server does, until it is ready.
fn follow(config: &Config, server: &mut Child) -> anyhow::Result<()> {
    let log_start =
        std::fs::metadata(config.instance.log_file()).map_or(0, |metadata| metadata.len());
    let output = server.stdout.take().context("the server has no output")?;
    let spinner = std::io::stderr().is_terminal().then(|| {
        let spinner = ProgressBar::new_spinner();
        spinner.set_style(
            ProgressStyle::with_template("{spinner} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        spinner.enable_steady_tick(Duration::from_millis(80));
        spinner
    });
    for line in BufReader::new(output).lines() {
        let line = line.context("read the server's progress")?;
        match serde_json::from_str(&line) {
            Ok(Progress::Step { message }) => match &spinner {
                Some(spinner) => spinner.set_message(message),
                None => complain!("{message}"),
            },
            Ok(Progress::Ready) => {
                if let Some(spinner) = spinner {
                    spinner.finish_and_clear();
                }
                return Ok(());
            }
            Ok(Progress::Failed { message }) => bail!("{message}"),
            Err(_) => complain!("{line}"),
        }
    }
    let status = server.wait().context("wait for the server")?;
    bail!(
        "the server ended before it was ready ({status}); the end of {}:\n{}",
        config.instance.log_file().display(),
        log_tail(config, log_start)
    );
}

fn log_tail(config: &Config, start: u64) -> String {
    let mut text = Vec::new();
    if let Ok(mut file) = std::fs::File::open(config.instance.log_file()) {
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        // A server puts a long log aside and begins a new one.
        let start = if start <= length { start } else { 0 };
        let from = start.max(length.saturating_sub(LOG_TAIL_BYTES));
        // What cannot be read is not shown; the path stands in the message.
        let _ = file
            .seek(SeekFrom::Start(from))
            .and_then(|_| file.read_to_end(&mut text));
    }
    String::from_utf8_lossy(&text).trim_end().to_string()
}

fn print_next(config: &Config) {
    say!(
        "Context \"{}\" is current in {}.",
        config.context(),
        config.kubeconfig.display()
    );
    // Who types sudo is somebody else in the next line, and may not read root's file.
    let sudo = match std::env::var_os("SUDO_UID") {
        Some(user) if user != "0" => "sudo ",
        _ => "",
    };
    if config.kubeconfig_is_where_kubectl_looks() {
        say!("Next: {sudo}kubectl get nodes");
    } else {
        say!(
            "Next: {sudo}kubectl --kubeconfig {} get nodes",
            config.kubeconfig.display()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_shell_s_is_passed_on() {
        // Without close-on-exec, as `exec 9>lock` makes it.
        let (lock, _other) = rustix::pipe::pipe().expect("a pipe");
        keep_to_ourselves().expect("descriptors can be listed");
        let flags = rustix::io::fcntl_getfd(&lock).expect("open");
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }
}
