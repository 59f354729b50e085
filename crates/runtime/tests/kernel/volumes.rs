//! Where volumes come from and go to.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use runtime::{Mount, Propagation};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::house::{House, code};

const NONE: Option<&str> = None;

fn volume(source: impl Into<PathBuf>, target: &str) -> Mount {
    Mount {
        source: source.into(),
        target: target.into(),
        read_only: false,
        propagation: Propagation::Private,
    }
}

/// What is read in `/proc` is the kernel's, whatever links an image or another volume has.
pub(crate) async fn nothing_is_mounted_into_proc() {
    let house = House::new();
    let sandbox = house.sandbox("a").await;
    let (outer, inner) = (
        house.directory.path().join("o"),
        house.directory.path().join("i"),
    );
    for directory in [&outer, &inner] {
        fs::create_dir_all(directory).expect("made");
    }
    symlink("/proc/sys/kernel", outer.join("k")).expect("made");
    let image = house.directory.path().join("base");
    symlink("/proc/sys/kernel", image.join("klink")).expect("made");
    for (number, target) in ["/proc/sys", "/klink", "/v/k"].into_iter().enumerate() {
        let id = format!("c{number}");
        let mut spec = house.shell(&sandbox, &id, "sleep 600");
        spec.mounts = vec![volume(&outer, "/v"), volume(&inner, target)];
        sandbox.keeper.create(spec).await.expect("created");
        let refused = sandbox.keeper.start_container(&id).await;
        assert_eq!(
            refused.expect_err(target).to_string(),
            format!("\"{target}\" cannot be mounted because it is inside /proc")
        );
    }
    sandbox.end().await;
    house.left_empty();
}

/// Another container of the pod may do so at any moment.
pub(crate) async fn who_changes_a_volume_meanwhile_leads_nothing_into_proc() {
    let house = House::new();
    let mut sandbox = house.sandbox("a").await;
    let (outer, inner) = (
        house.directory.path().join("o"),
        house.directory.path().join("i"),
    );
    for directory in [&outer.join("k"), &inner] {
        fs::create_dir_all(directory).expect("made");
    }
    symlink("/proc/sys/kernel", outer.join("link")).expect("made");
    let is_over = Arc::new(AtomicBool::new(false));
    let other = {
        let (is_over, outer) = (Arc::clone(&is_over), outer.clone());
        std::thread::spawn(move || {
            let (one, two) = (outer.join("k"), outer.join("link"));
            while !is_over.load(Ordering::Relaxed) {
                renameat_with(CWD, &one, CWD, &two, RenameFlags::EXCHANGE).expect("exchanged");
            }
        })
    };
    let mut outcomes = Vec::new();
    for number in 0..40 {
        let id = format!("c{number}");
        let script = "! grep ' /proc/sys/kernel ' /proc/self/mountinfo";
        let mut spec = house.shell(&sandbox, &id, script);
        spec.mounts = vec![volume(&outer, "/v"), volume(&inner, "/v/k")];
        sandbox.keeper.create(spec).await.expect("created");
        if sandbox.keeper.start_container(&id).await.is_ok() {
            outcomes.push(code(&sandbox.exit(&id).await));
        }
    }
    is_over.store(true, Ordering::Relaxed);
    other.join().expect("exchanged to its end");
    assert!(outcomes.iter().all(|&code| code == 0), "{outcomes:?}");
    sandbox.end().await;
    house.left_empty();
}

/// Also one that leads nowhere yet, as `/etc/resolv.conf` where systemd-resolved is to run.
pub(crate) async fn links_on_the_way_to_a_mount_are_followed_inside() {
    let house = House::new();
    let mut sandbox = house.sandbox("a").await;
    let image = house.directory.path().join("base");
    let stub = "../run/systemd/resolve/stub-resolv.conf";
    symlink(stub, image.join("etc/resolv.conf")).expect("made");
    let (outer, inner) = (
        house.directory.path().join("o"),
        house.directory.path().join("i"),
    );
    for directory in [&outer, &inner] {
        fs::create_dir_all(directory).expect("made");
    }
    symlink("/far/away", outer.join("link")).expect("made");
    fs::write(inner.join("file"), "content\n").expect("written");
    let script = "cat /etc/resolv.conf /run/systemd/resolve/stub-resolv.conf /far/away/file; pwd";
    let mut spec = house.shell(&sandbox, "c", script);
    spec.mounts = vec![
        volume(inner.join("file"), "/etc/resolv.conf"),
        volume(&inner, "/v/link"),
        volume(&outer, "/v"),
    ];
    spec.working_dir = "/v/link/not/there".to_owned();
    sandbox.run(spec).await;
    assert_eq!(
        sandbox.stdout("c"),
        "content\ncontent\ncontent\n/far/away/not/there\n",
        "{}",
        sandbox.log("c")
    );
    assert!(inner.join("not/there").is_dir());
    sandbox.end().await;
    house.left_empty();
}

/// A directory that shares its mounts, as everything does on a machine with systemd.
struct Shared(PathBuf);

impl Shared {
    fn new(path: &Path) -> Shared {
        mount(Some(path), path, NONE, MsFlags::MS_BIND, NONE).expect("bound");
        mount(NONE, path, NONE, MsFlags::MS_SHARED, NONE).expect("changed");
        Shared(path.to_owned())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // With what is mounted in it.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn mount_memory(target: &Path) {
    mount(Some("tmpfs"), target, Some("tmpfs"), MsFlags::empty(), NONE).expect("mounted");
}

/// Volumes lie on the same mount as the sandboxes' directory, and each has its own way.
pub(crate) async fn mounts_are_told_to_whom_they_concern() {
    let house = House::new();
    let shared = Shared::new(house.directory.path());
    let mut sandbox = house.sandbox("a").await;
    let place = |name: &str| {
        let path = house.directory.path().join(name);
        fs::create_dir_all(path.join("sub")).expect("made");
        path
    };
    let (alone, down, both) = (place("alone"), place("down"), place("both"));
    let script = "for volume in alone down both; do mkdir /$volume/own; \
                  mount -t tmpfs none /$volume/own; done; echo ready; \
                  until test -e /both/sub/file; do sleep 0.01; done; \
                  ls /alone/sub /down/sub; sleep 600";
    let mut spec = house.shell(&sandbox, "c", script);
    spec.security.privileged = true;
    let heard = |source: &Path, target, propagation| Mount {
        propagation,
        ..volume(source, target)
    };
    spec.mounts = vec![
        heard(&alone, "/alone", Propagation::Private),
        heard(&down, "/down", Propagation::HostToContainer),
        heard(&both, "/both", Propagation::Bidirectional),
    ];
    sandbox.start(spec).await;
    crate::house::until("its mounts", || sandbox.log("c").contains("ready")).await;
    let list = fs::read_to_string("/proc/self/mountinfo").expect("readable");
    let shows = |path: &Path| list.contains(&format!(" {} ", path.join("own").display()));
    let shown = [&alone, &down, &both].map(|path| shows(path));
    for path in [&alone, &down, &both] {
        mount_memory(&path.join("sub"));
        fs::write(path.join("sub/file"), "").expect("written");
    }
    crate::house::until("the machine's mounts", || {
        sandbox.log("c").contains("/down/sub:")
    })
    .await;
    let _ = sandbox.keeper.signal("c", libc::SIGKILL).await;
    sandbox.exit("c").await;
    assert_eq!(
        (shown, sandbox.stdout("c").as_str()),
        (
            [false, false, true],
            "ready\n/alone/sub:\n\n/down/sub:\nfile\n"
        )
    );
    sandbox.end().await;
    drop(shared);
    house.left_empty();
}
