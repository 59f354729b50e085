//! A container's spec as the `config.json` of the OCI runtime specification, with the defaults that
//! Docker and containerd give.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use serde_json::{Value, json};

use crate::cgroup::{DEFAULT_DEVICES, DeviceRule};
use crate::protocol::{Refusal, RefusalKind};
use crate::seccomp;
use crate::spec::{ContainerSpec, Mount, Propagation, Seccomp};

/// In the order of their numbers (linux/capability.h).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has unless asked otherwise.
const CAPABILITIES_DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

pub(super) const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// What the bundle depends on beside the container's spec.
pub(super) struct Surroundings<'a> {
    /// Where the root file system is mounted.
    pub(super) root: &'a Path,
    /// The container's own mounts: each with its propagation, its target without links.
    pub(super) mounts: &'a [Mount],
    /// The sandbox's process namespace, if its containers share one; `None` for one of its own.
    pub(super) process_namespace: Option<&'a str>,
    /// The machine's process namespace.
    pub(super) host_processes: bool,
    /// What is `/dev/shm`: the sandbox's, where it is mounted, or the machine's.
    pub(super) memory: &'a Path,
    /// Where its cgroups of version 1 are mounted; `None` for version 2, with a cgroup namespace of
    /// its own.
    pub(super) hierarchies: Option<&'a Path>,
}

/// The whole `config.json`.
pub(super) fn bundle(spec: &ContainerSpec, around: &Surroundings<'_>) -> Result<Value, Refusal> {
    let mut namespaces = vec![json!({"type": "mount"})];
    match around.process_namespace {
        Some(path) => namespaces.push(json!({"type": "pid", "path": path})),
        None if around.host_processes => {}
        None => namespaces.push(json!({"type": "pid"})),
    }
    if around.hierarchies.is_none() {
        namespaces.push(json!({"type": "cgroup"}));
    }
    let security = &spec.security;
    let mut linux = json!({
        "namespaces": namespaces,
        "cgroupsPath": spec.cgroup,
        // Limits are written beside libcontainer, not by it.
        "resources": {"devices": device_rules(security.privileged)},
        "rootfsPropagation": propagation(spec),
    });
    // Whatever else is asked for: what is behind these paths is the machine's.
    if !security.privileged {
        linux["maskedPaths"] = json!(MASKED);
        linux["readonlyPaths"] = json!(READ_ONLY);
    }
    if security.privileged {
        linux["devices"] = json!(machine_devices(Path::new("/dev")));
    }
    if let Some(profile) = filter(spec)? {
        linux["seccomp"] = profile;
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": process(spec)?,
        "root": {"path": around.root, "readonly": security.read_only_root},
        "mounts": mounts(spec, around),
        "linux": linux,
    }))
}

fn process(spec: &ContainerSpec) -> Result<Value, Refusal> {
    let mut process = json!({
        "terminal": spec.tty,
        "user": {
            "uid": spec.user.uid,
            "gid": spec.user.gid,
            "additionalGids": spec.user.groups,
        },
        "args": spec.argv,
        "env": spec.env,
        "cwd": spec.working_dir,
        "capabilities": capabilities(spec)?,
    });
    // libcontainer loads the filter early, while it may, if this is absent, and late if it is there.
    if spec.security.no_new_privileges {
        process["noNewPrivileges"] = json!(true);
    }
    Ok(process)
}

/// The system call filter of a container, for its first process and for everything executed in it.
pub(super) fn filter(spec: &ContainerSpec) -> Result<Option<Value>, Refusal> {
    if spec.security.privileged {
        return Ok(None);
    }
    match &spec.security.seccomp {
        Seccomp::Unconfined => Ok(None),
        Seccomp::Default => Ok(Some(seccomp::default_profile(&capability_names(spec)?))),
        Seccomp::Profile(path) => seccomp::read_profile(path, &capability_names(spec)?)
            .map(Some)
            .map_err(|error| Refusal::new(RefusalKind::Invalid, error.to_string())),
    }
}

/// The capability sets, as the specification's object. Nothing is inheritable or ambient.
pub(super) fn capabilities(spec: &ContainerSpec) -> Result<Value, Refusal> {
    let names: Vec<String> = capability_names(spec)?
        .iter()
        .map(|name| format!("CAP_{name}"))
        .collect();
    Ok(json!({
        "bounding": names,
        "effective": names,
        "permitted": names,
        "inheritable": [],
        "ambient": [],
    }))
}

/// Which capabilities a container has; those that the keeper itself has not cannot be given.
fn capability_names(spec: &ContainerSpec) -> Result<BTreeSet<String>, Refusal> {
    let own = own_capabilities();
    let mut names = choose_capabilities(spec)?;
    names.retain(|name| {
        CAPABILITIES
            .iter()
            .position(|known| known == name)
            .is_some_and(|number| own & (1 << number) != 0)
    });
    Ok(names)
}

fn choose_capabilities(spec: &ContainerSpec) -> Result<BTreeSet<String>, Refusal> {
    let security = &spec.security;
    let all = || CAPABILITIES.iter().map(|&name| name.to_owned());
    if security.privileged {
        return Ok(all().collect());
    }
    let plain = |name: &String| {
        let upper = name.to_ascii_uppercase();
        upper
            .strip_prefix("CAP_")
            .map(str::to_owned)
            .unwrap_or(upper)
    };
    let (add, drop): (Vec<String>, Vec<String>) = (
        security.capabilities_add.iter().map(plain).collect(),
        security.capabilities_drop.iter().map(plain).collect(),
    );
    let is_all = |name: &String| name == "ALL";
    if let Some(name) = add
        .iter()
        .chain(&drop)
        .find(|name| !is_all(name) && !CAPABILITIES.contains(&name.as_str()))
    {
        let message = format!("unknown capability \"CAP_{name}\"");
        return Err(Refusal::new(RefusalKind::Invalid, message));
    }
    let mut names: BTreeSet<String> = if add.iter().any(is_all) {
        all().collect()
    } else if drop.iter().any(is_all) {
        BTreeSet::new()
    } else {
        CAPABILITIES_DEFAULT
            .iter()
            .map(|&name| name.to_owned())
            .collect()
    };
    names.extend(add.into_iter().filter(|name| !is_all(name)));
    for name in &drop {
        names.remove(name);
    }
    Ok(names)
}

/// The keeper's permitted set, as bits by capability number.
fn own_capabilities() -> u64 {
    fs::read_to_string("/proc/self/status")
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("CapPrm:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or_default()
}

fn device_rules(privileged: bool) -> Vec<Value> {
    if privileged {
        return vec![json!({"allow": true, "access": "rwm"})];
    }
    let allow = |rule: &DeviceRule| {
        let mut value = json!({"allow": true, "access": rule.access});
        if let Some(kind) = rule.kind {
            value["type"] = json!(kind);
        }
        if let Some(major) = rule.major {
            value["major"] = json!(major);
        }
        if let Some(minor) = rule.minor {
            value["minor"] = json!(minor);
        }
        value
    };
    std::iter::once(json!({"allow": false, "access": "rwm"}))
        .chain(DEFAULT_DEVICES.iter().map(allow))
        .collect()
}

/// What the whole of the container lets through; each volume lets through what it may itself.
fn propagation(spec: &ContainerSpec) -> &'static str {
    let any = |kind| spec.mounts.iter().any(|mount| mount.propagation == kind);
    if any(Propagation::Bidirectional) {
        "shared"
    } else if any(Propagation::HostToContainer) {
        "slave"
    } else {
        "private"
    }
}

fn mounts(spec: &ContainerSpec, around: &Surroundings<'_>) -> Vec<Value> {
    let mount = |target: &str, kind: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": kind, "options": options});
    let write = if spec.security.privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", write]),
    ];
    mounts.push(match around.hierarchies {
        None => mount(
            "/sys/fs/cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", write],
        ),
        // Each of them is a mount of its own, so all of this is said of all that is below, too.
        Some(place) => json!({
            "destination": "/sys/fs/cgroup", "type": "bind", "source": place,
            "options": ["rbind", "rprivate", "rnosuid", "rnoexec", "rnodev", format!("r{write}")],
        }),
    });
    mounts.push(json!({
        "destination": "/dev/shm", "type": "bind", "source": around.memory,
        "options": ["rbind", "nosuid", "noexec", "nodev", "rprivate"],
    }));
    for extra in around.mounts {
        let write = if extra.read_only { "ro" } else { "rw" };
        // A mount over one of the standard ones replaces it.
        let target = extra.target.display().to_string();
        mounts.retain(|standard| standard["destination"] != target);
        mounts.push(json!({
            "destination": target, "type": "bind", "source": extra.source,
            "options": ["rbind", write],
        }));
    }
    // As containerd does: what lies above is mounted first, in whatever order it was asked for.
    mounts.sort_by_key(|mount| {
        let target = mount["destination"].as_str().unwrap_or_default();
        Path::new(target).components().count()
    });
    mounts
}

/// Every device node of the machine, for privileged containers.
fn machine_devices(directory: &Path) -> Vec<Value> {
    const SKIPPED: [&str; 6] = ["pts", "shm", "fd", "mqueue", "console", ".udev"];
    let mut devices = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if SKIPPED.iter().any(|skipped| name == *skipped) {
            continue;
        }
        let (path, Ok(found)) = (entry.path(), fs::symlink_metadata(entry.path())) else {
            continue;
        };
        let kind = found.file_type();
        if kind.is_dir() {
            devices.extend(machine_devices(&path));
        } else if kind.is_char_device() || kind.is_block_device() {
            devices.push(json!({
                "path": path,
                "type": if kind.is_char_device() { "c" } else { "b" },
                "major": rustix::fs::major(found.rdev()),
                "minor": rustix::fs::minor(found.rdev()),
                "fileMode": found.mode() & 0o7777,
                "uid": found.uid(),
                "gid": found.gid(),
            }));
        }
    }
    devices
}

#[cfg(test)]
mod tests {
    use libcontainer::oci_spec::runtime::Spec;

    use super::*;
    use crate::spec::{Resources, Root, Security, User};

    fn container(security: Security) -> ContainerSpec {
        ContainerSpec {
            id: "c".to_owned(),
            root: Root::Directory("/".into()),
            argv: vec!["sh".to_owned()],
            env: vec!["PATH=/bin".to_owned()],
            working_dir: "/".to_owned(),
            user: User::default(),
            mounts: Vec::new(),
            cgroup: "/wharf-test/c".to_owned(),
            resources: Resources::default(),
            security,
            tty: false,
            stdin: false,
            stdin_once: false,
            log_path: None,
            oom_score_adj: None,
            note: Value::Null,
        }
    }

    #[test]
    fn capabilities_follow_add_and_drop() {
        let check = |add: &[&str], drop: &[&str], expected: Result<usize, &str>| {
            let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
            let spec = container(Security {
                capabilities_add: owned(add),
                capabilities_drop: owned(drop),
                ..Security::default()
            });
            let found = choose_capabilities(&spec);
            assert_eq!(
                found
                    .map(|names| names.len())
                    .map_err(|refusal| refusal.message),
                expected.map_err(str::to_owned)
            );
        };
        check(&[], &[], Ok(14));
        check(&["NET_ADMIN"], &["CAP_KILL", "mknod"], Ok(13));
        check(&[], &["ALL"], Ok(0));
        check(&["NET_BIND_SERVICE"], &["ALL"], Ok(1));
        check(&["ALL"], &["SYS_ADMIN"], Ok(40));
        check(&["FLY"], &[], Err("unknown capability \"CAP_FLY\""));
    }

    #[test]
    fn the_bundle_is_one_that_libcontainer_reads() {
        let mut spec = container(Security {
            unmasked_proc: true,
            ..Security::default()
        });
        spec.mounts.push(Mount {
            source: "/tmp".into(),
            target: "/dev/shm".into(),
            read_only: true,
            propagation: Propagation::HostToContainer,
        });
        let around = Surroundings {
            root: Path::new("/root"),
            mounts: &spec.mounts,
            process_namespace: Some("/proc/7/ns/pid"),
            host_processes: false,
            memory: Path::new("/shm"),
            hierarchies: None,
        };
        let value = bundle(&spec, &around).expect("a plain spec has a bundle");
        let shm: Vec<_> = value["mounts"]
            .as_array()
            .expect("a list")
            .iter()
            .filter(|mount| mount["destination"] == "/dev/shm")
            .map(|mount| mount["type"].clone())
            .collect();
        assert_eq!(shm, ["bind"]);
        let depths: Vec<_> = value["mounts"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|mount| Some(mount["destination"].as_str()?.matches('/').count()))
            .collect();
        assert!(depths.is_sorted(), "{depths:?}");
        assert_eq!(value["linux"]["maskedPaths"], json!(MASKED));
        assert_eq!(value["linux"]["rootfsPropagation"], "slave");
        let read: Spec = serde_json::from_value(value).expect("the form is the specification's");
        assert!(
            read.linux()
                .as_ref()
                .is_some_and(|linux| linux.seccomp().is_some())
        );
        assert_eq!(
            read.process()
                .as_ref()
                .and_then(|process| process.no_new_privileges()),
            None
        );
    }
}
