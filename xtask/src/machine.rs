//! `cargo xtask machine`: a machine of another make, in an emulator: Debian's kernel, systemd, and
//! cgroup version 2 alone, as most machines have it and the one that builds may not.
//!
//! ```text
//! Debian's packages ─mmdebstrap─► target/machine/debian   (once; delete it to have it made anew)
//!   + this program, kubectl, images, xtask/machine/* ───► disk.img ─qemu─► scenario.sh on its console
//! ```
//!
//! The processor is emulated, so that it needs nothing of the machine below, and is ten to twenty
//! times slower: nothing is measured in there. It takes minutes and is no part of `cargo xtask test`.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, bail, ensure};

use crate::shell::{Run, command, root};
use crate::{build, images, packages};

const PACKAGES: &[(&str, &str)] = &[
    ("qemu-system-x86", "/usr/bin/qemu-system-x86_64"),
    ("mmdebstrap", "/usr/bin/mmdebstrap"),
    ("e2fsprogs", "/usr/sbin/mkfs.ext4"),
    ("busybox-static", "/bin/busybox"),
];

/// What is in the machine. Not configured, only unpacked: that is enough to start.
const INSIDE: &str = "usr-is-merged,systemd-sysv,kmod,busybox-static,bash,coreutils,grep,findutils,\
                      libc-bin,mount,util-linux,linux-image-amd64";

/// Of the kernel's modules: those for links, rules and file systems, and for the machine's disk.
const MODULES: [&str; 8] = [
    "net",
    "lib",
    "crypto",
    "arch",
    "fs",
    "drivers/net/veth.ko",
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
    modprobe@.service proc-sys-fs-binfmt_misc.automount";

/// Seconds after which the machine is switched off.
const TIMEOUT: &str = "1200";

pub(crate) fn run() -> anyhow::Result<()> {
    ensure!(
        std::env::consts::ARCH == "x86_64",
        "the machine has an x86_64 processor, and this one has not"
    );
    packages::install(PACKAGES)?;
    packages::install_kubectl()?;
    let wharf = build::release(&["wharf"])?.join("wharf");
    let images = images::make()?;
    let place = root().join("target/machine");
    fs::create_dir_all(&place).with_context(|| format!("make {}", place.display()))?;
    let debian = debian(&place)?;
    let tree = place.join("root");
    eprintln!("putting the machine together");
    remove(&tree)?;
    command("cp").arg("-a").arg(&debian).arg(&tree).run()?;
    let kernel = kernel(&tree)?;
    configure(&tree)?;
    furnish(&tree, &wharf, &images)?;
    let start = boot_files(&place, &tree, &kernel)?;
    let disk = disk(&place, &tree)?;
    judge(&start_machine(&tree, &kernel, &start, &disk)?)
}

/// The system, unpacked from Debian's packages.
fn debian(place: &Path) -> anyhow::Result<PathBuf> {
    let debian = place.join("debian");
    if debian.join("usr/lib/systemd/systemd").exists() {
        return Ok(debian);
    }
    remove(&debian)?;
    let suite = fs::read_to_string("/etc/os-release")
        .context("read /etc/os-release")?
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .context("/etc/os-release names no release of Debian")?
        .to_owned();
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
    Ok(debian)
}

/// The version of the kernel whose modules are there; they are indexed.
fn kernel(tree: &Path) -> anyhow::Result<String> {
    let modules = tree.join("usr/lib/modules");
    let version = fs::read_dir(&modules)
        .with_context(|| format!("read {}", modules.display()))?
        .find_map(|entry| entry.ok()?.file_name().into_string().ok())
        .context("no kernel was unpacked")?;
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
    fs::write(
        units.join("scenario.target"),
        "[Unit]\nDefaultDependencies=no\nRequires=scenario.service\nAfter=scenario.service\nAllowIsolate=yes\n",
    )?;
    link("scenario.target", &units.join("default.target"))
}

/// The program with its unit, the client, images, and what is to be tried.
fn furnish(tree: &Path, wharf: &Path, images: &Path) -> anyhow::Result<()> {
    let kubectl = command("sh").args(["-c", "command -v kubectl"]).read()?;
    let machine = root().join("xtask/machine");
    let units = tree.join("etc/systemd/system");
    for (from, to, mode) in [
        (wharf.to_owned(), tree.join("usr/local/bin/wharf"), 0o755),
        (
            PathBuf::from(kubectl.trim()),
            tree.join("usr/local/bin/kubectl"),
            0o755,
        ),
        (
            root().join("packaging/wharf.service"),
            units.join("wharf.service"),
            0o644,
        ),
        (
            machine.join("scenario.service"),
            units.join("scenario.service"),
            0o644,
        ),
        (
            machine.join("scenario.sh"),
            tree.join("machine/scenario.sh"),
            0o755,
        ),
        (
            machine.join("pods.yaml"),
            tree.join("machine/pods.yaml"),
            0o644,
        ),
        (
            images.join("busybox.tar"),
            tree.join("machine/images/busybox.tar"),
            0o644,
        ),
    ] {
        if let Some(directory) = to.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::copy(&from, &to)
            .with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
        fs::set_permissions(&to, Permissions::from_mode(mode))?;
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

/// Runs the machine to its end and shows its console; the last line that it wrote.
fn start_machine(tree: &Path, kernel: &str, start: &Path, disk: &Path) -> anyhow::Result<String> {
    let mut machine = command("timeout")
        .args([
            TIMEOUT,
            "qemu-system-x86_64",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
        ])
        .args([
            "-smp",
            "2",
            "-m",
            "2048",
            "-no-reboot",
            "-display",
            "none",
            "-net",
            "none",
        ])
        .args(["-monitor", "none", "-serial", "stdio", "-append"])
        .arg(
            "console=ttyS0 quiet panic=-1 systemd.show_status=0 systemd.unified_cgroup_hierarchy=1",
        )
        .arg("-kernel")
        .arg(tree.join("boot").join(format!("vmlinuz-{kernel}")))
        .arg("-initrd")
        .arg(start)
        .arg("-drive")
        .arg(format!(
            "file={},format=raw,if=virtio,cache=unsafe",
            disk.display()
        ))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start qemu-system-x86_64")?;
    let console = machine.stdout.take().context("its console is a pipe")?;
    let mut last = String::new();
    for line in BufReader::new(console).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
        println!("{line}");
        if line.starts_with("passed ") {
            last = line;
        }
    }
    machine.wait()?;
    Ok(last)
}

/// `passed N failed 0`, or it has not gone well.
fn judge(summary: &str) -> anyhow::Result<()> {
    match summary.split_whitespace().collect::<Vec<_>>()[..] {
        ["passed", passed, "failed", "0"] if passed != "0" => Ok(()),
        [] => bail!("the machine did not come to the end of what was to be tried"),
        _ => bail!("{summary}"),
    }
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
    fn only_a_scenario_without_failures_is_good() {
        let check = |summary: &str, expected: bool| {
            assert_eq!(judge(summary).is_ok(), expected, "{summary:?}");
        };
        check("passed 30 failed 0", true);
        check("passed 29 failed 1", false);
        check("passed 0 failed 0", false);
        check("", false);
    }

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
