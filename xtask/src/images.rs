//! `cargo xtask images`: the images that the examples and tests run, as archives for
//! `wharf image load`. Nothing is fetched: the hello program is built here, busybox is Debian's.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use image::archive::{ScratchFile, write_directory, write_scratch};
use oci::{ImageConfig, Reference};

use crate::shell::{Run, cargo, command, root};
use crate::{build, packages};

/// The registry that the tutorial's manifests name.
const HELLO: &str = "registry.cn-hangzhou.aliyuncs.com/ceyewan/hellok8s";
const VERSIONS: [&str; 5] = ["v1", "v2", "v3", "liveness", "bad"];
const BUSYBOX: &str = "/bin/busybox";

/// Makes all of them; the directory with the archives.
pub(crate) fn make() -> anyhow::Result<PathBuf> {
    packages::install(packages::BUILD)?;
    packages::install(packages::IMAGES)?;
    let directory = root().join("target/images");
    fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    hello(&directory)?;
    busybox(&directory)?;
    Ok(directory)
}

fn hello(directory: &Path) -> anyhow::Result<()> {
    let target = root().join("target/hellok8s");
    let host = build::host()?;
    cargo()
        .args([
            "build",
            "--locked",
            "--release",
            "--manifest-path",
            "examples/hellok8s/Cargo.toml",
            "--target",
            &host,
            "--target-dir",
        ])
        .arg(&target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .stdout(std::io::stderr())
        .run()?;
    let program = target.join(host).join("release/hellok8s");
    let content = fs::read(&program).with_context(|| format!("read {}", program.display()))?;
    for version in VERSIONS {
        let config = ImageConfig {
            entrypoint: vec!["/main".into(), version.into()],
            working_dir: "/".into(),
            exposed_ports: vec!["3000/tcp".into()],
            ..ImageConfig::default()
        };
        let file = ScratchFile {
            path: "/main",
            mode: 0o755,
            content: &content,
        };
        let archive = directory.join(format!("hellok8s-{version}.tar"));
        write_scratch(
            create(&archive)?,
            &[name(&format!("{HELLO}:{version}"))?],
            &[file],
            config,
            made_at(),
        )?;
    }
    Ok(())
}

/// A shell and the usual tools, with the users and directories that they expect.
fn busybox(directory: &Path) -> anyhow::Result<()> {
    let tree = root().join("target/busybox-root");
    match fs::remove_dir_all(&tree) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            bail!("remove {}: {error}", tree.display())
        }
        _ => {}
    }
    for (path, mode) in [
        ("bin", 0o755),
        ("etc", 0o755),
        ("root", 0o700),
        ("tmp", 0o1777),
        ("var/run", 0o755),
        ("home", 0o755),
    ] {
        fs::create_dir_all(tree.join(path))?;
        fs::set_permissions(tree.join(path), fs::Permissions::from_mode(mode))?;
    }
    fs::copy(BUSYBOX, tree.join("bin/busybox")).with_context(|| format!("copy {BUSYBOX}"))?;
    for applet in command(BUSYBOX)
        .arg("--list")
        .read()?
        .lines()
        .filter(|applet| *applet != "busybox")
    {
        symlink("busybox", tree.join("bin").join(applet))?;
    }
    fs::write(
        tree.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n",
    )?;
    fs::write(tree.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    let config = ImageConfig {
        cmd: vec!["sh".into()],
        ..ImageConfig::default()
    };
    write_directory(
        create(&directory.join("busybox.tar"))?,
        &[name("busybox:latest")?],
        &tree,
        config,
        made_at(),
    )?;
    // The plain root file system, for `wharf image import`.
    command("tar")
        .arg("-C")
        .arg(&tree)
        .arg("-cf")
        .arg(directory.join("busybox-root.tar"))
        .arg(".")
        .run()
}

fn create(path: &Path) -> anyhow::Result<File> {
    File::create(path).with_context(|| format!("make {}", path.display()))
}

fn name(text: &str) -> anyhow::Result<Reference> {
    text.parse().with_context(|| text.to_string())
}

/// The same content gives the same image, whenever it is made.
fn made_at() -> jiff::Timestamp {
    jiff::Timestamp::UNIX_EPOCH
}
