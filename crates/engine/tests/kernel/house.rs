//! An engine with a busybox image that looks after itself: whatever a test leaves behind fails it.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use engine::{
    Config, ContainerId, ContainerSpec, ContainerState, Engine, Event, LocalEngine, SandboxId,
    SandboxSpec, Seccomp,
};
use image::{Images, LoadOptions};
use network::{Network, Subnet};
use runtime::cgroup::Cgroups;
use sha2::{Digest as _, Sha256};

static NUMBER: AtomicU32 = AtomicU32::new(0);

pub(crate) struct House {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) config: Config,
}

impl House {
    pub(crate) async fn new() -> House {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let images = Images::open(directory.path().join("images")).expect("opened");
        let archive = directory.path().join("busybox.tar");
        fs::write(&archive, archive_of_busybox()).expect("written");
        images
            .load(archive.clone(), LoadOptions::default())
            .await
            .expect("loaded");
        fs::remove_file(archive).expect("removed");
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let instance = format!("w{}e{number}", std::process::id());
        let subnet = |text: &str| text.parse::<Subnet>().expect("a subnet");
        let network = Network::open(network::Config {
            instance: instance.clone(),
            state_dir: directory.path().join("run/network"),
            node_address: Ipv4Addr::new(10, 244, 0, 1),
            pod_subnet: subnet("10.244.0.0/24"),
            pod_cidr: subnet("10.244.0.0/16"),
            service_cidr: subnet("10.96.0.0/16"),
        })
        .await
        .expect("a network can be made");
        let config = Config {
            instance,
            data_dir: directory.path().to_owned(),
            program: std::env::current_exe().expect("this program is known"),
            images,
            network,
        };
        House { directory, config }
    }

    pub(crate) async fn engine(&self) -> LocalEngine {
        LocalEngine::open(self.config.clone())
            .await
            .expect("opened")
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.directory
            .path()
            .join("log")
            .join(format!("{name}.log"))
    }

    /// What a container wrote to standard output.
    pub(crate) fn stdout(&self, name: &str) -> String {
        fs::read_to_string(self.log(name))
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.split_once(" stdout F ").map(|(_, text)| text))
            .map(|text| format!("{text}\n"))
            .collect()
    }

    pub(crate) async fn wait_for(&self, name: &str, line: &str) {
        while !self.stdout(name).contains(&format!("{line}\n")) {
            // Nothing tells of a file's growth that would be simpler than looking again.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) fn shell(&self, name: &str, script: &str) -> ContainerSpec {
        ContainerSpec {
            name: name.to_owned(),
            image: "busybox".to_owned(),
            command: Some(vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()]),
            log_path: self.log(name),
            security: engine::Security {
                seccomp: Seccomp::Unconfined,
                ..engine::Security::default()
            },
            ..ContainerSpec::default()
        }
    }

    /// Everything must be gone: cgroups, links, mounts, directories.
    pub(crate) async fn left_empty(self, engine: LocalEngine) {
        assert!(engine.sandboxes().await.is_empty());
        drop(engine);
        assert!(self.config.network.attachments().is_empty());
        assert!(self.config.images.roots().is_empty());
        let sandboxes = self.directory.path().join("run/sandboxes");
        let left: Vec<_> = fs::read_dir(&sandboxes).expect("readable").collect();
        assert!(left.is_empty(), "{left:?}");
        let cgroups = Cgroups::detect().expect("there are cgroups");
        let own = format!("/{}", self.config.instance);
        let names = cgroups.children(&own);
        assert!(names.iter().all(|name| name == "keepers"), "{names:?}");
        let begun = std::time::Instant::now();
        while !cgroups.processes(&own).is_empty() {
            assert!(begun.elapsed().as_secs() < 10, "keepers are left");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        cgroups.remove(&own).expect("nothing is in there");
        self.config.network.close(true).await.expect("closed");
        let links = fs::read_to_string("/proc/self/net/dev").expect("readable");
        assert_eq!(links.lines().count(), 3, "nothing but lo:\n{links}");
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
            let own = format!("/{}", self.config.instance);
            cgroups.kill(&own);
            let _ = cgroups.remove(&own);
            let (runtime, network) = (tokio::runtime::Handle::current(), &self.config.network);
            std::thread::scope(|scope| {
                scope.spawn(|| runtime.block_on(network.close(true)));
            });
        }
    }
}

pub(crate) fn pod(name: &str) -> SandboxSpec {
    SandboxSpec {
        hostname: name.to_owned(),
        own_names: vec![name.to_owned()],
        resolv_conf: Some("nameserver 10.96.0.10\n".to_owned()),
        cgroup: format!("pods/besteffort/pod{name}"),
        labels: [("pod".to_owned(), name.to_owned())].into(),
        ..SandboxSpec::default()
    }
}

pub(crate) fn id(name: &str) -> SandboxId {
    SandboxId(name.to_owned())
}

/// Waits until a container has exited.
pub(crate) async fn exit(engine: &LocalEngine, container: &ContainerId) -> ContainerState {
    let mut events = engine.events();
    loop {
        let state = engine.container(container).await.expect("known").state;
        if matches!(state, ContainerState::Exited { .. }) {
            return state;
        }
        let _: Event = events.recv().await.expect("the engine lives");
    }
}

pub(crate) fn code(state: &ContainerState) -> i32 {
    match state {
        ContainerState::Exited { code, .. } => *code,
        other => panic!("not exited: {other:?}"),
    }
}

/// `docker save` of an image with two layers.
fn archive_of_busybox() -> Vec<u8> {
    let mut programs = tar::Builder::new(Vec::new());
    let busybox = fs::read("/bin/busybox").expect("busybox-static is installed");
    append(&mut programs, "bin/busybox", &busybox, 0o755);
    let list = std::process::Command::new("/bin/busybox")
        .arg("--list")
        .output()
        .expect("busybox runs");
    for applet in String::from_utf8_lossy(&list.stdout).lines() {
        if applet != "busybox" {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            header.set_mode(0o777);
            programs
                .append_link(&mut header, format!("bin/{applet}"), "busybox")
                .expect("appended");
        }
    }
    let mut files = tar::Builder::new(Vec::new());
    append(
        &mut files,
        "etc/passwd",
        b"root:x:0:0::/root:/bin/sh\nbob:x:1000:1001::/home/bob:/bin/sh\n",
        0o644,
    );
    append(
        &mut files,
        "etc/group",
        b"root:x:0:\nbob:x:1001:\nextra:x:2000:bob\n",
        0o644,
    );
    append(&mut files, "data/plain", b"hello\n", 0o644);
    let layers = [programs, files].map(|layer| layer.into_inner().expect("whole"));
    let digest = |bytes: &[u8]| {
        let digest = Sha256::digest(bytes);
        digest
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let config = serde_json::to_vec(&serde_json::json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Env": ["PATH=/bin", "FROM=image"],
            "Cmd": ["sh", "-c", "echo default; id -u; pwd"],
            "User": "bob",
            "WorkingDir": "/data",
            "StopSignal": "SIGUSR1",
        },
        "rootfs": {
            "type": "layers",
            "diff_ids": layers.each_ref().map(|layer| format!("sha256:{}", digest(layer))),
        },
    }))
    .expect("serializable");
    let manifest = serde_json::to_vec(&serde_json::json!([{
        "Config": format!("{}.json", digest(&config)),
        "RepoTags": ["busybox:latest"],
        "Layers": ["0.tar", "1.tar"],
    }]))
    .expect("serializable");
    let mut archive = tar::Builder::new(Vec::new());
    append(
        &mut archive,
        &format!("{}.json", digest(&config)),
        &config,
        0o644,
    );
    for (number, layer) in layers.iter().enumerate() {
        append(&mut archive, &format!("{number}.tar"), layer, 0o644);
    }
    append(&mut archive, "manifest.json", &manifest, 0o644);
    archive.into_inner().expect("whole")
}

fn append(archive: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8], mode: u32) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    archive
        .append_data(&mut header, name, bytes)
        .expect("appended");
}
