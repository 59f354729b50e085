//! What comes from Debian's packages, installed by name when it is missing.

use std::path::Path;

use anyhow::Context;

use crate::shell::{Run, command};

/// To build: libseccomp is linked statically, SQLite, zstd and aws-lc are C.
pub(crate) const BUILD: &[(&str, &str)] = &[
    ("libseccomp-dev", "/usr/include/seccomp.h"),
    ("pkg-config", "/usr/bin/pkg-config"),
    ("gcc", "/usr/bin/gcc"),
    ("libc6-dev", "/usr/include/stdlib.h"),
];

/// To make the test images.
pub(crate) const IMAGES: &[(&str, &str)] = &[("busybox-static", "/bin/busybox")];

/// To test: the client, and what looks at the kernel's state from outside.
pub(crate) const TEST: &[(&str, &str)] = &[
    ("nftables", "/usr/sbin/nft"),
    ("iptables", "/usr/sbin/iptables-nft"),
    ("iproute2", "/usr/sbin/ip"),
    ("curl", "/usr/bin/curl"),
];

/// Installs the packages whose file is not there.
pub(crate) fn install(packages: &[(&str, &str)]) -> anyhow::Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .filter(|(_, file)| !exists(file))
        .map(|(package, _)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("installing {}", missing.join(", "));
    let apt = |arguments: &[&str]| {
        command("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdout(std::io::stderr())
            .args(arguments)
            .run()
    };
    apt(&["-qq", "update"])?;
    apt(&[
        &["-qq", "-y", "--no-install-recommends", "install"],
        missing.as_slice(),
    ]
    .concat())
    .with_context(|| format!("install {} by hand, then run this again", missing.join(" ")))
}

/// `kubectl`, from the path, or from Debian's package.
pub(crate) fn install_kubectl() -> anyhow::Result<()> {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory| directory.join("kubectl").exists())
    });
    if found {
        return Ok(());
    }
    install(&[("kubernetes-client", "/usr/bin/kubectl")])
}

/// Whether a file is there, below `/usr` or, on a machine that is not merged, below `/`.
fn exists(file: &str) -> bool {
    Path::new(file).exists()
        || file
            .strip_prefix("/usr")
            .is_some_and(|file| Path::new(file).exists())
}
