//! The process namespace that the containers of a sandbox share, and its first process.
//!
//! Whoever may look into processes (CAP_SYS_PTRACE, as people give it to debuggers) may do so with the
//! first one, too. So it must be poorer than any container: a fork of the keeper that has given up
//! its root directory, its user, every capability and nearly every system call before the first
//! container can see it. It reaps what is left to it, and ends with the keeper.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use libcontainer::capabilities::{drop_privileges, reset_effective};
use libcontainer::oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp};
use libcontainer::seccomp::initialize_seccomp;
use libcontainer::syscall::syscall::create_syscall;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::mount as kernel;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Gid, Uid};
use serde_json::json;

use super::process::{
    Heard, Report, Reporter, Reports, Side, fork, leave, report_channel, reset_signals,
};
use crate::cgroup::Cgroups;
use crate::protocol::{Refusal, RefusalKind};

/// As whom it runs: nobody else does.
const NOBODY: u32 = 65_535;

/// Why there is no such namespace.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProcessesError {
    #[error("make the shared process namespace: {0}")]
    Start(io::Error),
    #[error("confine the first process of the shared process namespace: {0}")]
    Confine(String),
}

/// The first process of a process namespace that containers share. It ends, and all others of the
/// namespace with it, when the keeper drops this or dies.
#[derive(Debug)]
pub(super) struct Processes {
    /// Its id on the machine.
    pub(super) pid: i32,
    _alive: OwnedFd,
}

/// Starts that process, in a cgroup of its own below the sandbox's, and returns when it is confined.
/// If it fails nothing is left in that cgroup.
pub(super) fn hold(cgroups: &Cgroups, sandbox: &str) -> Result<Processes, ProcessesError> {
    let result = start(cgroups, &format!("{sandbox}/processes"));
    if result.is_err() {
        cgroups.kill(sandbox);
        let _ = cgroups.remove(sandbox);
    }
    result
}

fn start(cgroups: &Cgroups, cgroup: &str) -> Result<Processes, ProcessesError> {
    let failed = ProcessesError::Start;
    let (reports, reporter) = report_channel().map_err(failed)?;
    let (end, alive) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
    // In a child, as the namespace would be that of all later children otherwise.
    match fork().map_err(failed)? {
        Side::Child => {
            drop((reports, alive));
            reset_signals();
            if unshare(CloneFlags::CLONE_NEWPID).is_err() {
                leave(1);
            }
            match fork() {
                Ok(Side::Child) => be_first(cgroups, cgroup, end, reporter),
                Ok(Side::Parent(pid)) => {
                    reporter.tell(Report::Process { pid }, &[]);
                    leave(0);
                }
                Err(_) => leave(1),
            }
        }
        Side::Parent(child) => {
            drop((reporter, end));
            let child = nix::unistd::Pid::from_raw(child);
            nix::sys::wait::waitpid(child, None).map_err(|error| failed(error.into()))?;
            let pid = wait_until_confined(&reports)?;
            Ok(Processes { pid, _alive: alive })
        }
    }
}

/// The channel ends when the process has given up everything, the channel with it.
fn wait_until_confined(reports: &Reports) -> Result<i32, ProcessesError> {
    let mut process = None;
    loop {
        match reports.hear() {
            Heard::Nothing => {
                let mut asked = [PollFd::new(&reports.0, PollFlags::IN)];
                match poll(&mut asked, None) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(ProcessesError::Start(error.into())),
                }
            }
            Heard::Report(Report::Process { pid }, _) => process = Some(pid),
            Heard::Report(Report::Failed(refusal), _) => {
                return Err(ProcessesError::Confine(refusal.message));
            }
            Heard::Report(..) => {}
            Heard::End => {
                return process.ok_or_else(|| {
                    ProcessesError::Start(io::Error::other("its first process did not start"))
                });
            }
        }
    }
}

fn be_first(cgroups: &Cgroups, cgroup: &str, end: OwnedFd, reporter: Reporter) -> ! {
    if let Err(message) = confine(cgroups, cgroup, &end, &reporter) {
        let refusal = Refusal::new(RefusalKind::Machine, message);
        reporter.tell(Report::Failed(refusal), &[]);
        leave(1);
    }
    // This is how the keeper knows that the first container may come.
    drop(reporter);
    let mut nothing = [0; 16];
    while !matches!(
        rustix::io::read(rustix::stdio::stdin(), &mut nothing),
        Ok(0) | Err(rustix::io::Errno::BADF)
    ) {}
    leave(0)
}

/// Gives up everything: that `end`, now standard input, has come is all that can be heard, and the
/// machine can be neither seen nor changed.
fn confine(
    cgroups: &Cgroups,
    cgroup: &str,
    end: &OwnedFd,
    reporter: &Reporter,
) -> Result<(), String> {
    fn failed<E: std::fmt::Display>(step: &'static str) -> impl Fn(E) -> String {
        move |error| format!("{step}: {error}")
    }
    // Not to be mistaken for the keeper.
    let _ = rustix::thread::set_name(c"processes");
    // With SIGCHLD ignored the kernel reaps.
    #[expect(unsafe_code, reason = "signal set-up has no safe wrapper")]
    // SAFETY: SIG_IGN is a valid disposition.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
    }
    cgroups.join(cgroup).map_err(|error| error.to_string())?;
    forget_arguments().map_err(failed("forget the arguments"))?;
    enter_nothing().map_err(failed("leave the machine's files"))?;
    become_nobody()?;
    rustix::thread::set_no_new_privs(true).map_err(failed("set no_new_privs"))?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(failed("hide"))?;
    rustix::stdio::dup2_stdin(end).map_err(failed("listen to the keeper"))?;
    reporter.close_all_but_standard_input();
    let filter: LinuxSeccomp = serde_json::from_value(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{
            "names": ["read", "close", "exit", "exit_group", "rt_sigreturn", "restart_syscall"],
            "action": "SCMP_ACT_ALLOW",
        }],
    }))
    .map_err(failed("filter system calls"))?;
    initialize_seccomp(&filter)
        .map(drop)
        .map_err(failed("filter system calls"))
}

/// The root directory becomes an empty file system in a mount namespace of its own, where nothing
/// else is mounted.
fn enter_nothing() -> io::Result<()> {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(NONE, "/", NONE, MsFlags::MS_PRIVATE | MsFlags::MS_REC, NONE)?;
    let context = kernel::fsopen("tmpfs", kernel::FsOpenFlags::FSOPEN_CLOEXEC)?;
    kernel::fsconfig_set_string(context.as_fd(), "source", "nothing")?;
    kernel::fsconfig_set_string(context.as_fd(), "mode", "0555")?;
    kernel::fsconfig_create(context.as_fd())?;
    let nothing = kernel::fsmount(
        context.as_fd(),
        kernel::FsMountFlags::FSMOUNT_CLOEXEC,
        kernel::MountAttrFlags::MOUNT_ATTR_RDONLY
            | kernel::MountAttrFlags::MOUNT_ATTR_NOSUID
            | kernel::MountAttrFlags::MOUNT_ATTR_NODEV
            | kernel::MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )?;
    // On the working directory, for want of a place that is there on every machine.
    kernel::move_mount(
        nothing.as_fd(),
        "",
        rustix::fs::CWD,
        ".",
        kernel::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    rustix::process::fchdir(&nothing)?;
    // pivot_root(2), "pivot_root(".", ".")": the old root lies on the new one until it is taken off.
    rustix::process::pivot_root(".", ".")?;
    kernel::unmount(".", kernel::UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

fn become_nobody() -> Result<(), String> {
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    // Capabilities stay for a moment, as the bounding set cannot be emptied without.
    rustix::thread::set_thread_groups(&[])
        .and_then(|()| rustix::thread::set_keep_capabilities(true))
        .and_then(|()| rustix::thread::set_thread_res_gid(group, group, group))
        .and_then(|()| rustix::thread::set_thread_res_uid(user, user, user))
        .and_then(|()| rustix::thread::set_keep_capabilities(false))
        .map_err(|error| format!("become nobody: {error}"))?;
    let none: LinuxCapabilities = serde_json::from_value(json!({
        "bounding": [], "effective": [], "permitted": [], "inheritable": [], "ambient": [],
    }))
    .map_err(|error| format!("drop capabilities: {error}"))?;
    let syscall = create_syscall();
    reset_effective(syscall.as_ref())
        .and_then(|()| drop_privileges(&none, syscall.as_ref()))
        .map_err(|error| format!("drop capabilities: {error}"))
}

/// The sandbox's directory is no business of its containers, but every `ps` of theirs shows it.
fn forget_arguments() -> io::Result<()> {
    // proc_pid_stat(5): arg_start and arg_end are the fields 48 and 49, the third is the first after
    // the name, which ends with the last bracket.
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_ascii_whitespace().collect())
        .unwrap_or_default();
    let field = |number: usize| {
        fields
            .get(number - 3)
            .and_then(|text| text.parse::<usize>().ok())
            .filter(|&address| address != 0)
            .ok_or(io::ErrorKind::InvalidData)
    };
    let (start, end) = (field(48)?, field(49)?);
    #[expect(unsafe_code, reason = "the arguments lie where the kernel put them")]
    // SAFETY: the kernel says that this is where the arguments of this process are; they are
    // writable, nobody else has this copy of them, and nothing looks at them from here on.
    unsafe {
        std::ptr::write_bytes(start as *mut u8, 0, end.saturating_sub(start));
    }
    Ok(())
}
