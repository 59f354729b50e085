//! `wharf doctor`: what this machine lacks, and what to do about it.

use std::net::TcpListener;
use std::path::Path;

use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::mount::{FsOpenFlags, fsopen};
use serde::Serialize;

use crate::args::Format;
use crate::output::say;
use crate::{Config, Locked, Refused};

const DISK_BYTES_MIN: u64 = 1 << 30;
const OPEN_FILES_MIN: u64 = 4096;
/// libcontainer mounts with `mount_setattr`; before, no container starts.
const KERNEL_MIN: (u32, u32) = (5, 12);

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Failed,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    name: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

pub(super) fn run(config: &Config, format: Format) -> anyhow::Result<()> {
    let findings = [
        root(),
        kernel(),
        namespaces(),
        overlay(),
        cgroups(),
        nftables(config),
        seccomp(),
        open_files(),
        api_port(config),
        disk(config),
    ];
    match format {
        Format::Json => say!("{}", serde_json::to_string_pretty(&findings)?),
        Format::Text => {
            for finding in &findings {
                let mark = match finding.verdict {
                    Verdict::Ok => "ok     ",
                    Verdict::Warning => "warning",
                    Verdict::Failed => "FAILED ",
                };
                say!("{mark} {}: {}", finding.name, finding.found);
                if let Some(advice) = &finding.advice {
                    say!("        {advice}");
                }
            }
        }
    }
    if findings
        .iter()
        .any(|finding| finding.verdict == Verdict::Failed)
    {
        return Err(Refused.into());
    }
    Ok(())
}

fn ok(name: &'static str, found: impl Into<String>) -> Finding {
    Finding {
        name,
        verdict: Verdict::Ok,
        found: found.into(),
        advice: None,
    }
}

fn bad(
    name: &'static str,
    verdict: Verdict,
    found: impl Into<String>,
    advice: impl Into<String>,
) -> Finding {
    Finding {
        name,
        verdict,
        found: found.into(),
        advice: Some(advice.into()),
    }
}

fn root() -> Finding {
    if rustix::process::geteuid().is_root() {
        ok("root", "yes")
    } else {
        bad(
            "root",
            Verdict::Failed,
            "no",
            "only root can make containers; run wharf with sudo",
        )
    }
}

fn kernel() -> Finding {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    match release_numbers(&release) {
        Some(numbers) if numbers < KERNEL_MIN => bad(
            "kernel",
            Verdict::Failed,
            release,
            format!(
                "Linux {}.{} or newer is needed; update the kernel",
                KERNEL_MIN.0, KERNEL_MIN.1
            ),
        ),
        _ => ok("kernel", release),
    }
}

fn release_numbers(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn namespaces() -> Finding {
    let missing: Vec<&str> = ["net", "pid", "mnt", "ipc", "uts"]
        .into_iter()
        .filter(|name| !Path::new("/proc/self/ns").join(name).exists())
        .collect();
    if missing.is_empty() {
        ok("namespaces", "net, pid, mnt, ipc, uts")
    } else {
        bad(
            "namespaces",
            Verdict::Failed,
            format!("missing: {}", missing.join(", ")),
            "boot a kernel that is configured with them (CONFIG_NAMESPACES and its parts)",
        )
    }
}

fn overlay() -> Finding {
    // Asking for it loads the module, as mounting would; only root may ask.
    let there = match fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(_) => true,
        Err(_) => std::fs::read_to_string("/proc/filesystems")
            .unwrap_or_default()
            .lines()
            .any(|line| line.ends_with("\toverlay")),
    };
    if there {
        return ok("overlayfs", "yes");
    }
    bad(
        "overlayfs",
        Verdict::Failed,
        "the kernel does not have it",
        "load it: modprobe overlay (and name it in /etc/modules-load.d/wharf.conf)",
    )
}

fn cgroups() -> Finding {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        let controllers =
            std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
        let missing: Vec<&str> = ["cpu", "memory", "pids"]
            .into_iter()
            .filter(|wanted| !controllers.split_whitespace().any(|has| has == *wanted))
            .collect();
        return if missing.is_empty() {
            ok("cgroups", "v2")
        } else {
            bad(
                "cgroups",
                Verdict::Failed,
                format!("v2 without {}", missing.join(", ")),
                "enable them on the kernel's command line (cgroup_enable=memory, for example) or delegate them to this machine's root cgroup",
            )
        };
    }
    let missing: Vec<&str> = ["cpu", "memory", "pids", "devices", "freezer"]
        .into_iter()
        .filter(|name| !Path::new("/sys/fs/cgroup").join(name).is_dir())
        .collect();
    if missing.is_empty() {
        ok("cgroups", "v1")
    } else {
        bad(
            "cgroups",
            Verdict::Failed,
            format!("v1 without {}", missing.join(", ")),
            "mount the cgroup hierarchies below /sys/fs/cgroup, or boot with cgroup v2",
        )
    }
}

/// Whether rules can be made, and whether those of others let pods reach each other.
fn nftables(config: &Config) -> Finding {
    match network::forward_drops() {
        Ok(chains) if chains.is_empty() => ok("nftables", "yes"),
        Ok(chains) => {
            let pods = config.pod_cidr;
            let (mut names, mut remedies) = (Vec::new(), Vec::new());
            for (table, chain) in chains {
                for side in ["saddr", "daddr"] {
                    remedies.push(format!(
                        "nft insert rule {table} {chain} ip {side} {pods} accept"
                    ));
                }
                names.push(format!("{chain} of table {table}"));
            }
            bad(
                "nftables",
                Verdict::Warning,
                format!("forwarded packets are dropped by {}", names.join(", ")),
                format!(
                    "let those of pods through, in the firewall's settings or by: {}",
                    remedies.join("; ")
                ),
            )
        }
        Err(_) if !rustix::process::geteuid().is_root() => bad(
            "nftables",
            Verdict::Warning,
            "only root can look",
            "run wharf doctor with sudo",
        ),
        Err(error) => bad(
            "nftables",
            Verdict::Failed,
            error.to_string(),
            "load it: modprobe nf_tables nf_nat (and name them in /etc/modules-load.d/wharf.conf)",
        ),
    }
}

fn seccomp() -> Finding {
    if Path::new("/proc/sys/kernel/seccomp/actions_avail").exists() {
        ok("seccomp", "yes")
    } else {
        bad(
            "seccomp",
            Verdict::Failed,
            "no",
            "boot a kernel that is configured with CONFIG_SECCOMP_FILTER",
        )
    }
}

fn open_files() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    match limit.maximum {
        Some(maximum) if maximum < OPEN_FILES_MIN => bad(
            "open files",
            Verdict::Warning,
            format!("at most {maximum}"),
            format!(
                "raise the hard limit to {OPEN_FILES_MIN} or more (LimitNOFILE= in the unit, or limits.conf)"
            ),
        ),
        Some(maximum) => ok("open files", format!("at most {maximum}")),
        None => ok("open files", "unlimited"),
    }
}

fn api_port(config: &Config) -> Finding {
    let address = config.api_listen;
    if config.instance.data_dir.exists() && matches!(config.instance.lock(), Ok(Locked::Taken)) {
        return ok("port", format!("{address} (wharf runs)"));
    }
    if address.port() < 1024 && !rustix::process::geteuid().is_root() {
        return bad(
            "port",
            Verdict::Warning,
            format!("{address}: only root can look"),
            "run wharf doctor with sudo",
        );
    }
    match TcpListener::bind(address) {
        Ok(_) => ok("port", format!("{address} is free")),
        Err(error) => bad(
            "port",
            Verdict::Failed,
            format!("{address}: {error}"),
            "end what listens there (`ss -ltnp` names it), or choose another with --api-listen",
        ),
    }
}

fn disk(config: &Config) -> Finding {
    let directory = config
        .instance
        .data_dir
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    let shown = directory.display();
    match statvfs(directory) {
        Ok(found) if found.f_flag.contains(StatVfsMountFlags::RDONLY) => bad(
            "disk",
            Verdict::Failed,
            format!("{shown} is read-only"),
            "mount it writable, or choose another place with --data-dir",
        ),
        Ok(found) => {
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            let text = format!("{} free at {shown}", crate::table::bytes(free));
            if free < DISK_BYTES_MIN {
                bad(
                    "disk",
                    Verdict::Warning,
                    text,
                    "make room, or put the data elsewhere with --data-dir",
                )
            } else {
                ok("disk", text)
            }
        }
        Err(error) => bad(
            "disk",
            Verdict::Failed,
            format!("{shown}: {error}"),
            "choose another place with --data-dir",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_compared_by_number() {
        assert_eq!(release_numbers("6.18.44-fc-v595"), Some((6, 18)));
        assert!(release_numbers("5.14.0-503.el9.x86_64") > Some(KERNEL_MIN));
        assert!(release_numbers("5.10.0-35-amd64") < Some(KERNEL_MIN));
        assert_eq!(release_numbers("unknown"), None);
    }
}
