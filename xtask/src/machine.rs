//! `cargo xtask machine [SUITE]`: a machine of another make, in an emulator: Debian's kernel, systemd,
//! and cgroup version 2 alone, as most machines have it and the one that builds may not.
//!
//! ```text
//! Debian's packages ─mmdebstrap─► target/machine/SUITE/debian   (once)
//!   + this program, kubectl, images, xtask/machine/* ───► disk.img ─qemu─► scenarios on its console
//! ```
//!
//! The same disk is started several times: what one start leaves is what the next one finds, be it
//! after a shutdown or after the power was cut. The processor is emulated, so that it needs nothing of
//! the machine below, and is ten to twenty times slower: nothing is measured in there. It takes
//! minutes and is no part of `cargo xtask test`.

mod disk;
mod emulator;

use std::fs;

use anyhow::{Context, bail, ensure};

use self::disk::Disk;
use self::emulator::Power;
use crate::shell::root;
use crate::{build, images, packages};

const PACKAGES: &[(&str, &str)] = &[
    ("qemu-system-x86", "/usr/bin/qemu-system-x86_64"),
    ("mmdebstrap", "/usr/bin/mmdebstrap"),
    ("e2fsprogs", "/usr/sbin/mkfs.ext4"),
    ("xz-utils", "/usr/bin/xz"),
    ("busybox-static", "/bin/busybox"),
];

/// Acknowledged writes after which the power is cut.
const WRITES: u32 = 60;

pub(crate) fn run(suite: Option<&str>) -> anyhow::Result<()> {
    ensure!(
        std::env::consts::ARCH == "x86_64",
        "the machine has an x86_64 processor, and this one has not"
    );
    let suite = match suite {
        Some(suite) => suite.to_owned(),
        None => own_suite()?,
    };
    packages::install(PACKAGES)?;
    packages::install_kubectl()?;
    let wharf = build::release(&["wharf"])?.join("wharf");
    let images = images::make()?;
    let place = root().join("target/machine").join(&suite);
    let disk = disk::make(&place, &suite, &wharf, &images)?;
    let mut failed = Vec::new();
    for scenario in ["node", "cluster", "rebooted"] {
        failed.extend(try_scenario(&disk, scenario, "").err());
    }
    match write_until_power_is_cut(&disk) {
        Ok(written) => {
            failed.extend(try_scenario(&disk, "power_cut", &format!("written={written}")).err());
        }
        Err(error) => failed.push(error),
    }
    match &failed[..] {
        [] => Ok(()),
        failed => bail!(
            "{}",
            failed
                .iter()
                .map(|error| format!("{error:#}"))
                .collect::<Vec<_>>()
                .join("; ")
        ),
    }
}

/// The release of Debian that this machine has.
fn own_suite() -> anyhow::Result<String> {
    fs::read_to_string("/etc/os-release")
        .context("read /etc/os-release")?
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(str::to_owned)
        .context("/etc/os-release names no release of Debian: name one, cargo xtask machine SUITE")
}

/// A start of the machine with a scenario that comes to its end.
fn try_scenario(disk: &Disk, scenario: &str, words: &str) -> anyhow::Result<()> {
    let mut summary = String::new();
    emulator::start(disk, &format!("scenario={scenario} {words}"), |line| {
        if line.starts_with("passed ") {
            summary = line.to_owned();
        }
        Power::Stays
    })?;
    judge(scenario, &summary)
}

/// A start in the midst of whose writes the power is cut; how many of them were acknowledged.
fn write_until_power_is_cut(disk: &Disk) -> anyhow::Result<u32> {
    let (mut written, mut failed) = (0, String::new());
    emulator::start(disk, "scenario=writes", |line| {
        written = acknowledged(line).unwrap_or(written);
        if line.starts_with("FAILED ") {
            failed = line.to_owned();
        }
        match written {
            WRITES => Power::Cut,
            _ => Power::Stays,
        }
    })?;
    ensure!(
        written == WRITES,
        "writes: the machine acknowledged {written} of {WRITES}"
    );
    ensure!(failed.is_empty(), "writes: {failed}");
    Ok(written)
}

/// The number of the object that kubectl tells of.
fn acknowledged(line: &str) -> Option<u32> {
    line.strip_prefix("configmap/written-")?
        .strip_suffix(" created")?
        .parse()
        .ok()
}

/// `passed N failed 0`, or it has not gone well.
fn judge(scenario: &str, summary: &str) -> anyhow::Result<()> {
    match summary.split_whitespace().collect::<Vec<_>>()[..] {
        ["passed", passed, "failed", "0"] if passed != "0" => Ok(()),
        [] => bail!("{scenario}: the machine did not come to its end"),
        _ => bail!("{scenario}: {summary}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_scenario_without_failures_is_good() {
        let check = |summary: &str, expected: bool| {
            assert_eq!(judge("node", summary).is_ok(), expected, "{summary:?}");
        };
        check("passed 30 failed 0", true);
        check("passed 29 failed 1", false);
        check("passed 0 failed 0", false);
        check("", false);
    }

    #[test]
    fn only_what_was_written_is_acknowledged() {
        let check = |line: &str, expected: Option<u32>| {
            assert_eq!(acknowledged(line), expected, "{line:?}");
        };
        check("configmap/written-12 created", Some(12));
        check("configmap/written-12 crea", None);
        check("configmap/other-12 created", None);
        check("ok a change (12 s)", None);
    }
}
