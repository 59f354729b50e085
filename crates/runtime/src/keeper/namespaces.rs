//! The namespaces that a keeper holds for its containers.

use std::fs;
use std::io;

use nix::sched::{CloneFlags, unshare};

use crate::spec::SandboxSpec;

/// Why a sandbox cannot be held.
#[derive(Debug, thiserror::Error)]
pub(super) enum NamespaceError {
    #[error("make the namespaces of sandbox {id}: {source}")]
    Unshare { id: String, source: io::Error },
    #[error("set hostname {name:?}: {source}")]
    Hostname { name: String, source: io::Error },
    #[error("set sysctl {name}={value}: {source}")]
    Sysctl {
        name: String,
        value: String,
        source: io::Error,
    },
    #[error(
        "sysctl {0:?} is not namespaced, or the sandbox does not have that namespace of its own"
    )]
    SysctlNotNamespaced(String),
    #[error("bring loopback up: {0}")]
    Loopback(io::Error),
}

/// Makes the sandbox's namespaces the calling process's own, and sets them up.
pub(super) fn make(spec: &SandboxSpec) -> Result<(), NamespaceError> {
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWNET, spec.own_network);
    flags.set(CloneFlags::CLONE_NEWIPC, spec.own_ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, spec.hostname.is_some());
    unshare(flags).map_err(|error| NamespaceError::Unshare {
        id: spec.id.clone(),
        source: error.into(),
    })?;
    if let Some(name) = &spec.hostname {
        rustix::system::sethostname(name.as_bytes()).map_err(|error| NamespaceError::Hostname {
            name: name.clone(),
            source: error.into(),
        })?;
    }
    if spec.own_network {
        loopback_up().map_err(NamespaceError::Loopback)?;
        // As containerd and Docker do: in a namespace of its own, a port below 1024 is no
        // privilege, nor is an echo request.
        for (name, value) in [
            ("net.ipv4.ip_unprivileged_port_start", "0"),
            ("net.ipv4.ping_group_range", "0 2147483647"),
        ] {
            if !spec.sysctls.contains_key(name) {
                write_sysctl(name, value)?;
            }
        }
    }
    for (name, value) in &spec.sysctls {
        if !is_namespaced(name, spec) {
            return Err(NamespaceError::SysctlNotNamespaced(name.clone()));
        }
        write_sysctl(name, value)?;
    }
    Ok(())
}

fn is_namespaced(name: &str, spec: &SandboxSpec) -> bool {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let name = name.replace('/', ".");
    if name.split('.').any(str::is_empty) {
        return false;
    }
    if name.starts_with("net.") {
        spec.own_network
    } else {
        spec.own_ipc && (IPC.contains(&name.as_str()) || name.starts_with("fs.mqueue."))
    }
}

fn write_sysctl(name: &str, value: &str) -> Result<(), NamespaceError> {
    // Interface names may contain dots; upstream then separates by slashes.
    let path = if name.contains('/') {
        name.to_owned()
    } else {
        name.replace('.', "/")
    };
    fs::write(format!("/proc/sys/{path}"), value).map_err(|source| NamespaceError::Sysctl {
        name: name.to_owned(),
        value: value.to_owned(),
        source,
    })
}

/// netdevice(7): SIOCSIFFLAGS on `lo`.
fn loopback_up() -> io::Result<()> {
    use std::os::fd::AsRawFd;

    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    #[expect(unsafe_code, reason = "the ioctl of network interfaces has no wrapper")]
    // SAFETY: an all-zero ifreq is valid; the name fits with its terminating zero; the kernel reads
    // the name and the flags of the structure that lives until after the call.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_namespaced_sysctls_are_taken() {
        let own = SandboxSpec {
            own_network: true,
            own_ipc: true,
            ..SandboxSpec::default()
        };
        let check = |name: &str, spec: &SandboxSpec, expected: bool| {
            assert_eq!(is_namespaced(name, spec), expected, "{name}");
        };
        check("net.core.somaxconn", &own, true);
        check("net/ipv4/conf/eth0.1/forwarding", &own, true);
        check("net.core.somaxconn", &SandboxSpec::default(), false);
        check("kernel.shmmax", &own, true);
        check("kernel.shmmax", &SandboxSpec::default(), false);
        check("fs.mqueue.msg_max", &own, true);
        check("kernel.core_pattern", &own, false);
        check("net...kernel.core_pattern", &own, false);
        check("vm.swappiness", &own, false);
    }
}
