//! The machine's disk: Debian's packages, the program, and what is to be tried.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::shell::{Run, command, root};

/// What is in the machine. Not configured, only unpacked: that is enough to start.
const INSIDE: &str = "systemd-sysv,kmod,busybox-static,bash,coreutils,grep,findutils,libc-bin,mount,\
                      util-linux,nftables,sqlite3,linux-image-amd64";

/// Of the kernel's modules: those for links, rules and file systems, and for the machine's disk.
const MODULES: [&str; 10] = [
    "net",
    "lib",
    "crypto",
    "arch",
    "fs",
    "drivers/net/veth.ko",
    "drivers/net/virtio_net.ko",
    "drivers/net/net_failover.ko",
    "drivers/virtio",
    "drivers/block",
];

/// What the kernel needs to reach its disk.
const BOOT_MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"];

/// Units that a machine without people can do without.
const UNITS_OFF: &str = "systemd-journald.service systemd-journald.socket \
    systemd-journald-dev-log.socket systemd-journald-audit.socket systemd-journal-flush.service \
    systemd-update-utmp.service systemd-random-seed.service systemd-sysusers.service \
    systemd-tmpfiles-setup.service systemd-tmpfiles-setup-dev.service systemd-tmpfiles-clean.timer \
    systemd-ask-password-wall.path systemd-ask-password-console.path systemd-initctl.socket \
    systemd-udevd.service systemd-udev-trigger.service systemd-udevd-kernel.socket \
    systemd-udevd-control.socket dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount \
    sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount \
    modprobe@.service proc-sys-fs-binfmt_misc.automount getty.target systemd-logind.service \
    systemd-user-sessions.service remote-fs.target fstrim.timer dpkg-db-backup.timer \
    e2scrub_all.timer e2scrub_reap.service";

/// What is to be tried.
const FILES: [&str; 9] = [
    "scenario.sh",
    "checks.sh",
    "node.sh",
    "pods.yaml",
    "cluster.sh",
    "cluster.yaml",
    "rebooted.sh",
    "writes.sh",
    "power_cut.sh",
];

/// What the machine starts from.
pub(super) struct Disk {
    pub(super) kernel: PathBuf,
    /// The first file system.
    pub(super) start: PathBuf,
    pub(super) disk: PathBuf,
}

/// Makes it anew, in `place`, of a suite of Debian's; its packages are unpacked once.
pub(super) fn make(place: &Path, suite: &str, wharf: &Path, images: &Path) -> anyhow::Result<Disk> {
    fs::create_dir_all(place).with_context(|| format!("make {}", place.display()))?;
    let debian = debian(place, suite)?;
    let tree = place.join("root");
    eprintln!("putting the machine together");
    remove(&tree)?;
    command("cp").arg("-a").arg(&debian).arg(&tree).run()?;
    let kernel = kernel(&tree)?;
    configure(&tree)?;
    furnish(&tree, wharf, images)?;
    Ok(Disk {
        start: boot_files(place, &tree, &kernel)?,
        disk: disk(place, &tree)?,
        kernel: tree.join("boot").join(format!("vmlinuz-{kernel}")),
    })
}

/// The system, unpacked from Debian's packages; kept for as long as it is the same that is wanted.
fn debian(place: &Path, suite: &str) -> anyhow::Result<PathBuf> {
    let debian = place.join("debian");
    let (wanted, what_is_there) = (format!("{INSIDE} {MODULES:?}"), place.join("debian.txt"));
    if fs::read_to_string(&what_is_there).is_ok_and(|found| found == wanted) {
        return Ok(debian);
    }
    remove_file(&what_is_there)?;
    remove(&debian)?;
    eprintln!("unpacking Debian's packages");
    let kept = MODULES.map(|path| format!("--dpkgopt=path-include=/lib/modules/*/kernel/{path}*"));
    command("mmdebstrap")
        .env("PATH", path_with_sbin())
        .args(["--quiet", "--mode=root", "--variant=extract"])
        .arg("--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr")
        .arg(format!("--include={INSIDE}"))
        .args(
            ["doc", "man", "locale"]
                .map(|part| format!("--dpkgopt=path-exclude=/usr/share/{part}/*")),
        )
        .arg("--dpkgopt=path-exclude=/lib/modules/*/kernel/*")
        .args(kept)
        .arg(suite)
        .arg(&debian)
        .run()
        .context("unpack Debian's packages")?;
    fs::write(&what_is_there, wanted).context("note what was unpacked")?;
    Ok(debian)
}

/// The version of the kernel whose modules are there; they are indexed.
fn kernel(tree: &Path) -> anyhow::Result<String> {
    let modules = tree.join("usr/lib/modules");
    let version = fs::read_dir(&modules)
        .with_context(|| format!("read {}", modules.display()))?
        .find_map(|entry| entry.ok()?.file_name().into_string().ok())
        .context("no kernel was unpacked")?;
    // Compressed since Debian 13; the first shell's modprobe takes them as they were before.
    command("find")
        .arg(&modules)
        .args(["-name", "*.ko.xz", "-exec", "xz", "-d", "{}", "+"])
        .run()?;
    command("chroot")
        .env("PATH", path_with_sbin())
        .arg(tree)
        .args(["/sbin/depmod", &version])
        .run()?;
    Ok(version)
}

/// What the packages' own scripts would have done, as far as it matters here.
fn configure(tree: &Path) -> anyhow::Result<()> {
    command("ldconfig")
        .env("PATH", path_with_sbin())
        .arg("-r")
        .arg(tree)
        .run()?;
    for (path, content) in [
        (
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n",
        ),
        ("etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
        ("etc/hostname", "machine\n"),
        ("etc/hosts", "127.0.0.1 localhost machine\n"),
        ("etc/resolv.conf", "nameserver 192.0.2.53\n"),
        ("etc/machine-id", ""),
    ] {
        let path = tree.join(path);
        // Some are links to what is not there.
        let _ = fs::remove_file(&path);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
    }
    link("bash", &tree.join("usr/bin/sh"))?;
    for applet in command("/bin/busybox").arg("--list").read()?.lines() {
        let is_there =
            |directory: &str| tree.join(directory).join(applet).symlink_metadata().is_ok();
        if !is_there("usr/bin") && !is_there("usr/sbin") {
            link("busybox", &tree.join("usr/bin").join(applet))?;
        }
    }
    let units = tree.join("etc/systemd/system");
    for unit in UNITS_OFF.split_whitespace() {
        link("/dev/null", &units.join(unit))?;
    }
    link(
        "/lib/systemd/system/multi-user.target",
        &units.join("default.target"),
    )
}

/// The program with its unit, the client, images, and what is to be tried.
fn furnish(tree: &Path, wharf: &Path, images: &Path) -> anyhow::Result<()> {
    let kubectl = command("sh").args(["-c", "command -v kubectl"]).read()?;
    let machine = root().join("xtask/machine");
    let units = tree.join("etc/systemd/system");
    let wanted = units.join("multi-user.target.wants");
    let output = units.join("wharf.service.d");
    for directory in [&wanted, &output] {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    }
    copy(wharf, &tree.join("usr/local/bin/wharf"), 0o755)?;
    copy(
        Path::new(kubectl.trim()),
        &tree.join("usr/local/bin/kubectl"),
        0o755,
    )?;
    copy(
        &root().join("packaging/wharf.service"),
        &units.join("wharf.service"),
        0o644,
    )?;
    // There is no journal.
    fs::write(
        output.join("output.conf"),
        "[Service]\nStandardError=append:/var/log/wharf.log\n",
    )?;
    for unit in ["scenario.service", "network.service"] {
        copy(&machine.join(unit), &units.join(unit), 0o644)?;
        link(&format!("../{unit}"), &wanted.join(unit))?;
    }
    for file in FILES {
        copy(&machine.join(file), &tree.join("machine").join(file), 0o644)?;
    }
    for image in ["busybox.tar", "hellok8s-v1.tar"] {
        copy(
            &images.join(image),
            &tree.join("machine/images").join(image),
            0o644,
        )?;
    }
    Ok(())
}

/// The first file system: a shell, and the modules that reach the disk.
fn boot_files(place: &Path, tree: &Path, kernel: &str) -> anyhow::Result<PathBuf> {
    let start = place.join("start");
    remove(&start)?;
    for directory in ["bin", "proc", "sys", "dev", "new"] {
        fs::create_dir_all(start.join(directory))?;
    }
    fs::copy("/bin/busybox", start.join("bin/busybox"))?;
    let init = start.join("init");
    fs::copy(root().join("xtask/machine/boot.sh"), &init)?;
    fs::set_permissions(&init, Permissions::from_mode(0o755))?;
    let from = tree.join("usr/lib/modules").join(kernel);
    let to = start.join("lib/modules").join(kernel);
    let index = fs::read_to_string(from.join("modules.dep")).context("read modules.dep")?;
    for module in needed_modules(&index) {
        let copy = to.join(&module);
        if let Some(directory) = copy.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::copy(from.join(&module), copy).with_context(|| format!("copy {module}"))?;
    }
    fs::write(to.join("modules.dep"), index)?;
    let archive = place.join("start.cpio");
    command("sh")
        .current_dir(&start)
        .args(["-c", "find . | /bin/busybox cpio -o -H newc 2>/dev/null"])
        .stdout(File::create(&archive)?)
        .run()?;
    Ok(archive)
}

/// The files of [`BOOT_MODULES`] with those that they need; lines are `module: needed needed…`.
fn needed_modules(index: &str) -> BTreeSet<String> {
    index
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(module, _)| {
            BOOT_MODULES
                .iter()
                .any(|name| module.ends_with(&format!("/{name}.ko")))
        })
        .flat_map(|(module, needed)| std::iter::once(module).chain(needed.split_whitespace()))
        .map(str::to_owned)
        .collect()
}

fn disk(place: &Path, tree: &Path) -> anyhow::Result<PathBuf> {
    let disk = place.join("disk.img");
    remove_file(&disk)?;
    File::create(&disk)?.set_len(2 << 30)?;
    command("mkfs.ext4")
        .env("PATH", path_with_sbin())
        .args(["-q", "-E", "lazy_itable_init=1,lazy_journal_init=1", "-d"])
        .arg(tree)
        .arg(&disk)
        .run()?;
    Ok(disk)
}

fn copy(from: &Path, to: &Path, mode: u32) -> anyhow::Result<()> {
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    }
    fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    fs::set_permissions(to, Permissions::from_mode(mode))
        .with_context(|| format!("set the mode of {}", to.display()))
}

fn link(target: &str, path: &Path) -> anyhow::Result<()> {
    remove_file(path)?;
    symlink(target, path).with_context(|| format!("make the link {}", path.display()))
}

fn remove(directory: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            bail!("remove {}: {error}", directory.display())
        }
        _ => Ok(()),
    }
}

fn remove_file(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            bail!("remove {}: {error}", path.display())
        }
        _ => Ok(()),
    }
}

/// Where Debian has the programs for administrators; not every user's path leads there.
fn path_with_sbin() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/sbin:/sbin")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_with_what_they_need() {
        let index = "kernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko kernel/fs/jbd2/jbd2.ko\n\
                     kernel/lib/crc16.ko:\n\
                     kernel/fs/ext4/notext4.ko:\n";
        let found: Vec<_> = needed_modules(index).into_iter().collect();
        assert_eq!(
            found,
            [
                "kernel/fs/ext4/ext4.ko",
                "kernel/fs/jbd2/jbd2.ko",
                "kernel/lib/crc16.ko"
            ]
        );
    }
}
