//! A place to run containers in, that looks after itself: whatever a test leaves behind fails it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use runtime::cgroup::Cgroups;
use runtime::{
    ContainerSpec, ContainerState, Event, ExecSpec, Keeper, Resources, Root, SandboxSpec, Seccomp,
    Security, User,
};
use tokio::sync::mpsc;

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// One test's sandboxes, with a busybox root.
pub(crate) struct House {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) cgroup: String,
}

pub(crate) struct Sandbox {
    pub(crate) keeper: Keeper,
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) directory: PathBuf,
    pub(crate) cgroup: String,
}

impl House {
    pub(crate) fn new() -> House {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let base = directory.path().join("base");
        for part in ["bin", "etc", "tmp", "proc", "dev", "sys", "data", "root"] {
            fs::create_dir_all(base.join(part)).expect("made");
        }
        fs::copy("/bin/busybox", base.join("bin/busybox")).expect("busybox-static is installed");
        let list = std::process::Command::new("/bin/busybox")
            .arg("--list")
            .output()
            .expect("busybox runs");
        for applet in String::from_utf8_lossy(&list.stdout).lines() {
            if applet != "busybox" {
                symlink("busybox", base.join("bin").join(applet)).expect("made");
            }
        }
        fs::write(base.join("data/plain"), "hello\n").expect("written");
        fs::write(base.join("data/junk"), b"\x00\x01junk").expect("written");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(base.join("data/junk"), mode).expect("changed");
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        House {
            directory,
            cgroup: format!("/wharf-test-{}-{number}", std::process::id()),
        }
    }

    pub(crate) fn spec(&self, id: &str) -> SandboxSpec {
        SandboxSpec {
            id: id.to_owned(),
            hostname: Some(format!("host-{id}")),
            own_network: true,
            own_ipc: true,
            shm_size: 64 << 20,
            cgroup: format!("{}/pods/{id}", self.cgroup),
            keeper_cgroup: format!("{}/keepers", self.cgroup),
            ..SandboxSpec::default()
        }
    }

    pub(crate) async fn sandbox(&self, id: &str) -> Sandbox {
        self.sandbox_with(self.spec(id)).await
    }

    pub(crate) async fn sandbox_with(&self, spec: SandboxSpec) -> Sandbox {
        let directory = self.directory.path().join("run").join(&spec.id);
        let program = std::env::current_exe().expect("this program is known");
        let cgroup = spec.cgroup.clone();
        let (keeper, events) = Keeper::start(&program, &directory, spec)
            .await
            .expect("a keeper starts");
        Sandbox {
            keeper,
            events,
            directory,
            cgroup,
        }
    }

    /// A container that runs a shell script.
    pub(crate) fn shell(&self, sandbox: &Sandbox, id: &str, script: &str) -> ContainerSpec {
        self.container(sandbox, id, &["sh", "-c", script])
    }

    pub(crate) fn container(&self, sandbox: &Sandbox, id: &str, argv: &[&str]) -> ContainerSpec {
        let writable = sandbox.directory.join("roots").join(id);
        let (upper, work) = (writable.join("upper"), writable.join("work"));
        fs::create_dir_all(&upper).expect("made");
        fs::create_dir_all(&work).expect("made");
        ContainerSpec {
            id: id.to_owned(),
            root: Root::Overlay {
                lower: vec![self.directory.path().join("base")],
                upper,
                work,
            },
            argv: argv.iter().map(|&part| part.to_owned()).collect(),
            env: vec![
                "PATH=/usr/local/bin:/bin".to_owned(),
                "HOME=/root".to_owned(),
            ],
            working_dir: "/".to_owned(),
            user: User::default(),
            mounts: Vec::new(),
            cgroup: format!("{}/{id}", sandbox.cgroup),
            resources: Resources::default(),
            security: Security {
                seccomp: Seccomp::Unconfined,
                ..Security::default()
            },
            tty: false,
            stdin: false,
            stdin_once: false,
            log_path: Some(sandbox.directory.join("log").join(format!("{id}.log"))),
            oom_score_adj: None,
            note: serde_json::Value::Null,
        }
    }

    /// Waits until nothing runs that was started here.
    pub(crate) fn end_of_keepers(&self) {
        let cgroups = Cgroups::detect().expect("there are cgroups");
        // A keeper's last act is to end; nobody is told when it has.
        let begun = std::time::Instant::now();
        while !cgroups.processes(&self.cgroup).is_empty() {
            assert!(begun.elapsed().as_secs() < 10, "keepers are left");
            std::thread::yield_now();
        }
    }

    /// Everything must be gone: processes, cgroups, mounts.
    pub(crate) fn left_empty(self) {
        let cgroups = Cgroups::detect().expect("there are cgroups");
        let left = cgroups.children(&format!("{}/pods", self.cgroup));
        assert!(left.is_empty(), "cgroups left: {left:?}");
        self.end_of_keepers();
        cgroups.remove(&self.cgroup).expect("nothing is in there");
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("readable");
        let own = self.directory.path().display().to_string();
        assert!(!mounts.contains(&own), "mounts left in {own}");
    }
}

impl Drop for House {
    /// After a failed test.
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Ok(cgroups) = Cgroups::detect()
        {
            cgroups.kill(&self.cgroup);
            let _ = cgroups.remove(&self.cgroup);
        }
    }
}

impl Sandbox {
    /// Creates, starts, and waits for the exit.
    pub(crate) async fn run(&mut self, spec: ContainerSpec) -> ContainerState {
        let id = spec.id.clone();
        self.keeper.create(spec).await.expect("created");
        self.keeper.start_container(&id).await.expect("started");
        self.exit(&id).await
    }

    pub(crate) async fn start(&self, spec: ContainerSpec) -> ContainerState {
        let id = spec.id.clone();
        self.keeper.create(spec).await.expect("created");
        self.keeper.start_container(&id).await.expect("started")
    }

    pub(crate) async fn exit(&mut self, id: &str) -> ContainerState {
        loop {
            match self.events.recv().await.expect("the keeper lives") {
                Event::Container { container, state } if container == id && state.is_exited() => {
                    return state;
                }
                _ => {}
            }
        }
    }

    /// The text of a log, without times: `stdout F line`.
    pub(crate) fn log(&self, id: &str) -> String {
        let path = self.directory.join("log").join(format!("{id}.log"));
        let text = fs::read_to_string(&path).unwrap_or_default();
        text.lines()
            .map(|line| {
                let (time, rest) = line.split_once(' ').expect("a time");
                assert_eq!(time.len(), "2026-01-01T00:00:00.123456789Z".len(), "{line}");
                format!("{rest}\n")
            })
            .collect()
    }

    /// What a container wrote to standard output, whole.
    pub(crate) fn stdout(&self, id: &str) -> String {
        self.log(id)
            .lines()
            .filter_map(|line| line.strip_prefix("stdout F "))
            .map(|line| format!("{line}\n"))
            .collect()
    }

    /// Waits for a line on standard output.
    pub(crate) async fn wait_for(&self, id: &str, line: &str) {
        let wanted = format!("{line}\n");
        while !self.stdout(id).contains(&wanted) {
            // Nothing tells of a file's growth that would be simpler than looking again.
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }

    pub(crate) async fn end(self) {
        self.keeper.end().await.expect("ended");
    }
}

/// Waits for what nothing tells of.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !is_so() {
        assert!(begun.elapsed().as_secs() < 10, "{what}: waited for in vain");
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

pub(crate) fn code(state: &ContainerState) -> i32 {
    match state {
        ContainerState::Exited { code, .. } => *code,
        other => panic!("not exited: {other:?}"),
    }
}

pub(crate) fn exec(argv: &[&str]) -> ExecSpec {
    ExecSpec {
        argv: argv.iter().map(|&part| part.to_owned()).collect(),
        ..ExecSpec::default()
    }
}

/// Reads a stream to its end.
/// Reads until a text has come, or to the end; the end may be held open by others.
pub(crate) async fn read_until(end: std::os::fd::OwnedFd, wanted: &'static str) -> String {
    tokio::task::spawn_blocking(move || {
        let (mut text, mut buffer) = (String::new(), [0; 256]);
        let mut file = fs::File::from(end);
        while !text.contains(wanted) {
            match std::io::Read::read(&mut file, &mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(length) => text.push_str(&String::from_utf8_lossy(&buffer[..length])),
            }
        }
        text
    })
    .await
    .expect("reading does not panic")
}

pub(crate) async fn read_all(end: std::os::fd::OwnedFd) -> String {
    tokio::task::spawn_blocking(move || {
        let mut text = Vec::new();
        let mut file = fs::File::from(end);
        // A terminal ends with EIO.
        let _ = std::io::Read::read_to_end(&mut file, &mut text);
        String::from_utf8_lossy(&text).into_owned()
    })
    .await
    .expect("reading does not panic")
}
