//! Making and starting a container: what a keeper's short-lived child does.
//!
//! ```text
//! keeper ─fork─► launcher: private mounts ► root ► config.json ► libcontainer build ─► init
//!                    │                                                │  (child of the keeper)
//!                    ├─ report: process N ◄───────────────────────────┘
//!                    └─ start ────────────────────────────────────────► init executes the command
//! ```
//!
//! The root file system is mounted in a mount namespace that only launcher and container are in.
//! Nothing of it appears on the machine, and nothing of it can be left behind. What libcontainer wants
//! as files lies in memory there: no secret in an environment comes to the disk by it, and a disk takes
//! longer to make ten files than the kernel to make a container.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::notify_socket::{NOTIFY_FILE, NotifySocket};
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use mounts::{Overlay, Upper, mount_overlay};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::mount::{MoveMountFlags, move_mount};

use super::bundle::{Surroundings, bundle};
use super::memory::SharedMemory;
use super::process::{
    Report, Reporter, become_command, find_program, leave, reason, reset_signals,
};
use super::sources::Sources;
use super::targets::{self, Layout};
use super::{causes, hierarchies};
use crate::cgroup::{Cgroups, DEFAULT_DEVICES, restrict_devices};
use crate::descriptors;
use crate::protocol::{Refusal, RefusalKind};
use crate::spec::{ContainerSpec, Root};

/// The files hold the container's environment and arguments twice, which the kernel limits to 2 MB.
const MEMORY_OPTIONS: &str = "mode=700,size=32m";

/// Everything that the launcher needs.
pub(super) struct Launch<'a> {
    pub(super) spec: &'a ContainerSpec,
    /// The container's working directory, absolute; it exists.
    pub(super) directory: &'a Path,
    pub(super) cgroups: &'a Cgroups,
    pub(super) process_namespace: Option<&'a str>,
    pub(super) host_processes: bool,
    /// The sandbox's shared memory; absent for the machine's.
    pub(super) memory: Option<&'a SharedMemory>,
    /// Standard input, output and error; absent for a terminal.
    pub(super) standard_streams: Option<[OwnedFd; 3]>,
}

/// Runs in the forked child.
pub(super) fn launch(job: Launch<'_>, reporter: Reporter) -> ! {
    reset_signals();
    if let Ok(copy) = reporter.copy() {
        causes::listen(copy);
    }
    let reporter = Rc::new(reporter);
    if let Err(refusal) = run(job, &reporter) {
        reporter.tell(Report::Failed(refusal), &[]);
        leave(1);
    }
    leave(0)
}

fn machine(step: &str, subject: impl std::fmt::Display, error: &io::Error) -> Refusal {
    Refusal::new(
        RefusalKind::Machine,
        format!("{step} {subject}: {}", reason(error)),
    )
}

/// Makes what the container finds: its mounts, its cgroup, and the bundle that says so.
fn lay_out(job: &Launch<'_>) -> Result<Layout, Refusal> {
    let spec = job.spec;
    let memory = job
        .memory
        .map(SharedMemory::copy)
        .transpose()
        .map_err(|error| machine("find the shared memory for", &spec.id, &error))?;
    unshare(CloneFlags::CLONE_NEWNS)
        .map_err(|error| machine("make a mount namespace for", &spec.id, &error.into()))?;
    let sources = Sources::take(&spec.mounts)?;
    lay_memory(job.directory)
        .map_err(|error| machine("lay memory over", job.directory.display(), &error))?;
    let mut mounts = spec.mounts.clone();
    sources
        .place(&job.directory.join("volumes"), &mut mounts)
        .map_err(|error| machine("take the volumes of", &spec.id, &error))?;
    let root = mount_root(spec, job.directory)?;
    let layout = Layout::new(&root, mounts)?;
    // As runc does. Where it cannot be made, entering it fails with the message that says so.
    let _ = layout.make_directory(Path::new(&spec.working_dir));
    adjust_oom_score(spec.oom_score_adj);
    let memory_place = job.directory.join("shm");
    if let Some(memory) = &memory {
        place_memory(memory, &memory_place)
            .map_err(|error| machine("place the shared memory for", &spec.id, &error))?;
    }
    limit(job)?;
    let hierarchies_place = job.directory.join("cgroup");
    if !job.cgroups.is_version_2() {
        hierarchies::place(job.cgroups, &spec.cgroup, &hierarchies_place)
            .map_err(|error| Refusal::new(RefusalKind::Machine, error.to_string()))?;
    }
    let around = Surroundings {
        root: &root,
        mounts: &layout.mounts,
        process_namespace: job.process_namespace,
        host_processes: job.host_processes,
        memory: match memory {
            Some(_) => &memory_place,
            None => Path::new("/dev/shm"),
        },
        hierarchies: match job.cgroups.is_version_2() {
            true => None,
            false => Some(&hierarchies_place),
        },
    };
    let config = bundle(spec, &around)?;
    let config_path = job.directory.join("config.json");
    fs::write(&config_path, config.to_string())
        .map_err(|error| machine("write", config_path.display(), &error))?;
    Ok(layout)
}

fn run(job: Launch<'_>, reporter: &Rc<Reporter>) -> Result<(), Refusal> {
    let layout = lay_out(&job)?;
    let spec = job.spec;
    let state = job.directory.join("state");
    fs::create_dir_all(&state).map_err(|error| machine("make", state.display(), &error))?;

    let failed = |error: libcontainer::error::LibcontainerError| {
        Refusal::new(RefusalKind::Machine, format!("create container: {error}"))
    };
    let mut builder = ContainerBuilder::new(spec.id.clone(), SyscallType::Linux)
        .with_executor(Program {
            reporter: Rc::clone(reporter),
        })
        .with_root_path(&state)
        .map_err(failed)?;
    let console = match job.standard_streams {
        Some([stdin, stdout, stderr]) => {
            builder = builder
                .with_stdin(stdin)
                .with_stdout(stdout)
                .with_stderr(stderr);
            None
        }
        None => {
            let (listener, path) = console_socket(job.directory)?;
            builder = builder.with_console_socket(Some(path));
            Some(listener)
        }
    };
    let container = builder
        .as_init(job.directory)
        .with_systemd(false)
        .as_sibling(true)
        .with_detach(true)
        .build()
        .map_err(failed)?;
    let pid = container
        .pid()
        .ok_or_else(|| Refusal::new(RefusalKind::Machine, "create container: no process"))?;
    let pid = Pid::from_raw(pid.as_raw());
    if let Err(refusal) = targets::look(pid.as_raw(), &layout, !spec.security.privileged) {
        // It has not been told to go on, and may have ended already.
        let _ = kill(pid, Signal::SIGKILL);
        return Err(refusal);
    }
    if let Some(listener) = console {
        let terminal = receive_terminal(&listener)
            .map_err(|error| machine("receive the terminal of", &spec.id, &error))?;
        reporter.tell(Report::Terminal, &[terminal]);
    }
    reporter.tell(Report::Process { pid: pid.as_raw() }, &[]);
    NotifySocket::new(state.join(&spec.id).join(NOTIFY_FILE))
        .notify_container_start()
        .map_err(|error| Refusal::new(RefusalKind::Machine, format!("start container: {error}")))
}

/// Makes the container's cgroup with everything that holds in it, before anybody is in it.
fn limit(job: &Launch<'_>) -> Result<(), Refusal> {
    let spec = job.spec;
    job.cgroups
        .create_container(&spec.cgroup, &spec.resources)
        .map_err(|error| Refusal::new(RefusalKind::Machine, error.to_string()))?;
    if job.cgroups.is_version_2()
        && !spec.security.privileged
        && let Some(cgroup) = job.cgroups.version_2_directory(&spec.cgroup)
    {
        restrict_devices(&cgroup, DEFAULT_DEVICES)
            .map_err(|error| machine("restrict the devices of", cgroup.display(), &error))?;
    }
    Ok(())
}

/// Lays memory over the container's directory, in this mount namespace.
fn lay_memory(directory: &Path) -> io::Result<()> {
    keep_mounts_private(directory);
    let options = Some(MEMORY_OPTIONS);
    Ok(mount(
        Some("tmpfs"),
        directory,
        Some("tmpfs"),
        MsFlags::empty(),
        options,
    )?)
}

/// Puts the root file system in its place in this mount namespace and returns where that is.
fn mount_root(spec: &ContainerSpec, directory: &Path) -> Result<PathBuf, Refusal> {
    let (lower, upper, work) = match &spec.root {
        Root::Directory(path) => return Ok(path.clone()),
        Root::Overlay { lower, upper, work } => (lower, upper, work),
    };
    let target = directory.join("root");
    fs::create_dir_all(&target).map_err(|error| machine("make", target.display(), &error))?;
    keep_mounts_private(&target);
    let lower: Vec<&Path> = lower.iter().map(PathBuf::as_path).collect();
    let overlay = Overlay {
        lower: &lower,
        upper: Some(Upper {
            directory: upper,
            work,
            // A container's root does not outlive a crash of the machine.
            volatile: true,
        }),
    };
    mount_overlay(&overlay, "overlay", &target)
        .map_err(|error| machine("mount the root of", &spec.id, &error))?;
    Ok(target)
}

/// Shows the sandbox's shared memory at `target`, in this mount namespace.
fn place_memory(memory: &OwnedFd, target: &Path) -> io::Result<()> {
    fs::create_dir_all(target)?;
    keep_mounts_private(target);
    Ok(move_mount(
        memory.as_fd(),
        "",
        rustix::fs::CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}

/// Keeps what is mounted at `target` out of other mount namespaces: the mount that it lies on must
/// not be shared. Only a mount point accepts the change, so the first that does is the one.
pub(super) fn keep_mounts_private(target: &Path) {
    const NONE: Option<&str> = None;
    for place in target.ancestors() {
        if mount(NONE, place, NONE, MsFlags::MS_PRIVATE, NONE).is_ok() {
            return;
        }
    }
}

/// Sets the score that the command will inherit, as near to the wanted one as is allowed: without
/// CAP_SYS_RESOURCE a process cannot go below where it was started.
pub(super) fn adjust_oom_score(wanted: Option<i32>) {
    const FILE: &str = "/proc/self/oom_score_adj";
    let Some(wanted) = wanted else { return };
    if fs::write(FILE, wanted.clamp(-1000, 1000).to_string()).is_err() {
        // The keeper asked for a lower score for itself than a container should have.
        let _ = fs::write(FILE, wanted.max(0).to_string());
    }
}

fn console_socket(directory: &Path) -> Result<(UnixListener, PathBuf), Refusal> {
    let path = directory.join("console");
    let _ = fs::remove_file(&path);
    // By a short name: the whole path may be longer than a socket's address.
    let bound = std::env::set_current_dir(directory).and_then(|()| UnixListener::bind("console"));
    match bound {
        Ok(listener) => Ok((listener, path)),
        Err(error) => Err(machine("bind", path.display(), &error)),
    }
}

fn receive_terminal(listener: &UnixListener) -> io::Result<OwnedFd> {
    let (stream, _) = listener.accept()?;
    let mut received = std::collections::VecDeque::new();
    let mut text = [0; 64];
    descriptors::receive(&stream, &mut text, &mut received)?;
    received
        .pop_front()
        .ok_or(io::ErrorKind::UnexpectedEof.into())
}

/// What becomes of the container's first process.
#[derive(Clone)]
struct Program {
    reporter: Rc<Reporter>,
}

impl Program {
    fn parts(spec: &Spec) -> (Vec<String>, Vec<String>) {
        let process = spec.process().as_ref();
        (
            process
                .and_then(|process| process.args().clone())
                .unwrap_or_default(),
            process
                .and_then(|process| process.env().clone())
                .unwrap_or_default(),
        )
    }
}

impl Executor for Program {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let (argv, env) = Program::parts(spec);
        let name = argv.first().map(String::as_str).unwrap_or_default();
        find_program(name, &env).map(drop).map_err(|refusal| {
            let message = refusal.message.clone();
            self.reporter.tell(Report::Failed(refusal), &[]);
            ExecutorValidationError::ArgValidationError(message)
        })
    }

    // The environment goes to execve as it is, in its order.
    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let (argv, env) = Program::parts(spec);
        let name = argv.first().map(String::as_str).unwrap_or_default();
        match find_program(name, &env) {
            Ok(program) => become_command(&program, &argv, &env),
            Err(refusal) => Err(ExecutorError::Other(refusal.message)),
        }
    }
}
