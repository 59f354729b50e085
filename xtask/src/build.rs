//! `cargo xtask build`: one static file.
//!
//! Static, so that it runs on any Linux. Not position-independent, because each keeper is this same
//! file executed again: a static-pie of this size writes over a megabyte of relocations into private
//! memory at every exec, before it has done anything.

use std::path::PathBuf;

use anyhow::Context;

use crate::packages;
use crate::shell::{Run, cargo, command, root};

const FLAGS: &str = "-C target-feature=+crt-static -C relocation-model=static";
/// Functions whose code is the same are one: a megabyte less. Only the linker that Rust brings along for
/// this target knows it.
const FOLDING: (&str, &str) = ("x86_64-unknown-linux-gnu", " -C link-arg=-Wl,--icf=all");

/// Builds these packages for release; the directory with the programs.
pub(crate) fn release(names: &[&str]) -> anyhow::Result<PathBuf> {
    packages::install(packages::BUILD)?;
    let host = host()?;
    let mut flags = FLAGS.to_string();
    if host == FOLDING.0 {
        flags.push_str(FOLDING.1);
    }
    let mut build = cargo();
    build
        .args(["build", "--locked", "--release", "--target", &host])
        .env("RUSTFLAGS", flags)
        // A flag in the environment would win over the one above.
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    for name in names {
        build.args(["--package", name]);
    }
    build.stdout(std::io::stderr()).run()?;
    Ok(root().join("target").join(host).join("release"))
}

/// The target triple of this machine.
pub(crate) fn host() -> anyhow::Result<String> {
    let version = command("rustc").arg("-vV").read()?;
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("rustc -vV names no host")?;
    Ok(host.to_string())
}
