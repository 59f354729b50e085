//! Running a command in a running container.
//!
//! libcontainer's own way of doing this forgets the container's system call filter, so it is done
//! here, with libcontainer's pieces:
//!
//! ```text
//! keeper ─fork─► joins cgroups and namespaces ─fork─► session, streams, directory, filter, user,
//!                     │ reports the pid, exits          capabilities ─► executes the command
//!                     └──────────────────────────────── (a subreaper's child from then on)
//! ```

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use libcontainer::capabilities::{drop_privileges, reset_effective};
use libcontainer::oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp};
use libcontainer::seccomp::initialize_seccomp;
use libcontainer::syscall::syscall::create_syscall;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Gid, Pid, PidfdFlags, Uid, pidfd_open};

use super::bundle;
use super::launch::adjust_oom_score;
use super::process::{
    Report, Reporter, Side, become_command, find_program, fork, leave, reason, reset_signals,
};
use crate::cgroup::Cgroups;
use crate::protocol::{Refusal, RefusalKind};
use crate::spec::{ContainerSpec, ExecSpec};

/// Everything that the child needs.
pub(super) struct Execution<'a> {
    pub(super) container: &'a ContainerSpec,
    pub(super) spec: &'a ExecSpec,
    /// The container's first process.
    pub(super) init: i32,
    pub(super) cgroups: &'a Cgroups,
    /// Standard input, output and error; absent for a terminal.
    pub(super) standard_streams: Option<[OwnedFd; 3]>,
}

fn machine(step: &str, error: impl Into<io::Error>) -> Refusal {
    let message = format!("{step}: {}", reason(&error.into()));
    Refusal::new(RefusalKind::Machine, message)
}

/// Runs in the forked child.
pub(super) fn execute(job: Execution<'_>, reporter: Reporter) -> ! {
    reset_signals();
    let result = enter(&job).and_then(|prepared| match fork() {
        Ok(Side::Parent(pid)) => {
            reporter.tell(Report::Process { pid }, &[]);
            Ok(())
        }
        Ok(Side::Child) => {
            let refusal = match become_user(job, &prepared, &reporter) {
                Ok(never) => match never {},
                Err(refusal) => refusal,
            };
            Err(refusal)
        }
        Err(error) => Err(machine("fork", error)),
    });
    if let Err(refusal) = result {
        reporter.tell(Report::Failed(refusal), &[]);
        leave(1);
    }
    leave(0)
}

/// What is worked out before the container's files are all that can be seen.
struct Prepared {
    capabilities: LinuxCapabilities,
    filter: Option<LinuxSeccomp>,
}

fn enter(job: &Execution<'_>) -> Result<Prepared, Refusal> {
    let invalid = |error: serde_json::Error| Refusal::new(RefusalKind::Invalid, error.to_string());
    let prepared = Prepared {
        capabilities: serde_json::from_value(bundle::capabilities(job.container)?)
            .map_err(invalid)?,
        filter: bundle::filter(job.container)?
            .map(serde_json::from_value::<LinuxSeccomp>)
            .transpose()
            .map_err(invalid)?,
    };
    // Nobody in the container may look into this process, whose executable is the machine's.
    prctl_not_dumpable();
    adjust_oom_score(job.container.oom_score_adj);
    job.cgroups
        .join(&job.container.cgroup)
        .map_err(|error| Refusal::new(RefusalKind::Machine, error.to_string()))?;
    let init = Pid::from_raw(job.init)
        .ok_or_else(|| Refusal::new(RefusalKind::WrongState, "the container has no process"))?;
    let init =
        pidfd_open(init, PidfdFlags::empty()).map_err(|error| machine("open process", error))?;
    // Network, IPC and UTS namespaces are the keeper's anyway.
    let mut namespaces = nix::sched::CloneFlags::CLONE_NEWNS | nix::sched::CloneFlags::CLONE_NEWPID;
    if job.cgroups.is_version_2() {
        namespaces |= nix::sched::CloneFlags::CLONE_NEWCGROUP;
    }
    nix::sched::setns(init, namespaces).map_err(|error| machine("enter the container", error))?;
    Ok(prepared)
}

fn become_user(
    job: Execution<'_>,
    prepared: &Prepared,
    reporter: &Reporter,
) -> Result<std::convert::Infallible, Refusal> {
    let (container, spec) = (job.container, job.spec);
    rustix::process::setsid().map_err(|error| machine("make a session", error))?;
    match job.standard_streams {
        Some(streams) => connect(&streams)?,
        None => open_terminal(reporter)?,
    }
    let directory = spec.working_dir.as_ref().unwrap_or(&container.working_dir);
    let entered = rustix::process::chdir(directory.as_str());
    // Without no_new_privs a filter can only be loaded while there are privileges.
    let late = container.security.no_new_privileges;
    let load = |filter: &LinuxSeccomp| {
        initialize_seccomp(filter).map(drop).map_err(|error| {
            Refusal::new(
                RefusalKind::Machine,
                format!("load the system call filter: {error}"),
            )
        })
    };
    if let (false, Some(filter)) = (late, &prepared.filter) {
        load(filter)?;
    }
    change_user(job.container, spec, &prepared.capabilities)?;
    if entered.is_err() {
        // A directory that only the user may enter.
        rustix::process::chdir(directory.as_str()).map_err(|error| {
            let text = reason(&error.into());
            let message = format!("chdir to cwd ({directory:?}) set in config.json failed: {text}");
            Refusal::new(RefusalKind::Command, message)
        })?;
    }
    let env = environment(container, spec);
    let name = spec.argv.first().map(String::as_str).unwrap_or_default();
    let program = find_program(name, &env)?;
    if late {
        rustix::thread::set_no_new_privs(true)
            .map_err(|error| machine("set no_new_privs", error))?;
        if let Some(filter) = &prepared.filter {
            load(filter)?;
        }
    }
    close_on_exec();
    become_command(&program, &spec.argv, &env)
}

fn change_user(
    container: &ContainerSpec,
    spec: &ExecSpec,
    capabilities: &LinuxCapabilities,
) -> Result<(), Refusal> {
    let user = spec.user.as_ref().unwrap_or(&container.user);
    let failed = |error: libcontainer::syscall::SyscallError| {
        Refusal::new(RefusalKind::Machine, format!("change user: {error}"))
    };
    let groups: Vec<_> = user
        .groups
        .iter()
        .map(|&group| Gid::from_raw(group))
        .collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_thread_groups(&groups)
        .and_then(|()| rustix::thread::set_keep_capabilities(true))
        .and_then(|()| rustix::thread::set_thread_res_gid(gid, gid, gid))
        .and_then(|()| rustix::thread::set_thread_res_uid(uid, uid, uid))
        .and_then(|()| rustix::thread::set_keep_capabilities(false))
        .map_err(|error| machine("change user", error))?;
    let syscall = create_syscall();
    reset_effective(syscall.as_ref()).map_err(failed)?;
    drop_privileges(capabilities, syscall.as_ref()).map_err(failed)
}

/// The container's environment with the command's own on top, each name once.
fn environment(container: &ContainerSpec, spec: &ExecSpec) -> Vec<String> {
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    let own: std::collections::BTreeSet<String> = spec.env.iter().map(|one| name(one)).collect();
    container
        .env
        .iter()
        .filter(|variable| !own.contains(&name(variable)))
        .chain(&spec.env)
        .cloned()
        .collect()
}

fn connect(streams: &[OwnedFd; 3]) -> Result<(), Refusal> {
    let failed = |error| machine("connect the standard streams", error);
    rustix::stdio::dup2_stdin(&streams[0]).map_err(failed)?;
    rustix::stdio::dup2_stdout(&streams[1]).map_err(failed)?;
    rustix::stdio::dup2_stderr(&streams[2]).map_err(failed)
}

/// A new terminal of the container's own: its side here becomes the standard streams, the other
/// goes to the keeper.
fn open_terminal(reporter: &Reporter) -> Result<(), Refusal> {
    let failed = |error| machine("open a terminal", error);
    let ours = rustix::fs::open(
        Path::new("/dev/ptmx"),
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(failed)?;
    let theirs = other_side(&ours).map_err(|error| machine("open a terminal", error))?;
    rustix::process::ioctl_tiocsctty(&theirs).map_err(failed)?;
    let copy = || rustix::io::fcntl_dupfd_cloexec(&theirs, 3).map_err(failed);
    connect(&[copy()?, copy()?, copy()?])?;
    reporter.tell(Report::Terminal, &[ours]);
    Ok(())
}

/// Unlocks a terminal and opens its other side by descriptor (ioctl_tty(2)): a name under
/// `/dev/pts` is the container's to bend.
fn other_side(terminal: &OwnedFd) -> io::Result<OwnedFd> {
    let unlocked: libc::c_int = 0;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    #[expect(
        unsafe_code,
        reason = "the ioctls of pseudo terminals have no wrapper here"
    )]
    // SAFETY: the first reads one int from a live local; the second takes flags and makes a new
    // descriptor that nobody else knows.
    unsafe {
        if libc::ioctl(terminal.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) != 0 {
            return Err(io::Error::last_os_error());
        }
        match libc::ioctl(terminal.as_raw_fd(), libc::TIOCGPTPEER, flags) {
            -1 => Err(io::Error::last_os_error()),
            descriptor => Ok(OwnedFd::from_raw_fd(descriptor)),
        }
    }
}

fn prctl_not_dumpable() {
    let behavior = rustix::process::DumpableBehavior::NotDumpable;
    // It can only fail for values that the kernel does not know.
    let _ = rustix::process::set_dumpable_behavior(behavior);
}

/// Nothing of the keeper's reaches the command.
fn close_on_exec() {
    #[expect(unsafe_code, reason = "close_range(2) has no safe wrapper")]
    // SAFETY: marking descriptors as close-on-exec invalidates none of them.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
    }
}
