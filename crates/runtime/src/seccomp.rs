//! System call filters: the built-in default profile, and profiles from files.
//!
//! The default is the allow-list that Docker and containerd document: what ordinary programs call
//! is allowed, everything else answers EPERM, and some calls only with the capability that they
//! need anyway. `clone3` answers ENOSYS, because its flags stand in memory where a filter cannot
//! look; the C libraries then fall back to `clone`, whose namespace flags are refused.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

/// Allowed for everyone.
const ALLOWED: &str = "accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir \
chmod chown chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime \
clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range \
creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 \
epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 \
fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 \
fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat \
fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 \
futex_wait futex_waitv futex_wake futimesat getcpu getcwd getdents getdents64 getegid getegid32 \
geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp \
getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit \
get_robust_list getrusage getsid getsockname getsockopt get_thread_area gettid gettimeofday getuid \
getuid32 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch \
io_cancel ioctl io_destroy io_getevents io_pgetevents io_pgetevents_time64 ioprio_get ioprio_set \
io_setup io_submit ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self \
lchown lchown32 lgetxattr link linkat listen listmount listxattr listxattrat llistxattr _llseek \
lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier memfd_create \
memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect \
mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall \
munmap name_to_handle_at nanosleep newfstatat _newselect open openat openat2 pause pidfd_open \
pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl \
pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64 pwritev \
pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg \
remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall rmdir \
rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend \
rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity sched_getattr \
sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler \
sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam \
sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 \
send sendfile sendfile64 sendmmsg sendmsg sendto setfsgid setfsgid32 setfsuid setfsuid32 setgid \
setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid \
setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit set_robust_list setsid setsockopt \
set_thread_area set_tid_address setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget \
shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn socketcall socketpair splice stat \
stat64 statfs statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee \
tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime \
timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime \
timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat \
uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev \
process_vm_readv process_vm_writev ptrace arch_prctl modify_ldt";

/// Allowed with a capability.
const ALLOWED_WITH: &[(&str, &str)] = &[
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr \
         lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl \
         quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("SYS_BOOT", "reboot"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_MODULE", "delete_module finit_module init_module"),
    ("SYS_PACCT", "acct"),
    ("SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("SYS_RAWIO", "iopl ioperm"),
    (
        "SYS_TIME",
        "settimeofday stime clock_settime clock_settime64",
    ),
    ("SYS_TTY_CONFIG", "vhangup"),
    (
        "SYS_NICE",
        "get_mempolicy mbind move_pages set_mempolicy set_mempolicy_home_node",
    ),
    ("SYSLOG", "syslog"),
    ("BPF", "bpf"),
    ("PERFMON", "perf_event_open"),
];

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProfileError {
    /// Reading the file.
    #[error("seccomp profile {path}: {source}")]
    Read {
        path: String,
        source: std::io::Error,
    },
    /// Its content.
    #[error("seccomp profile {path}: {source}")]
    Parse {
        path: String,
        source: serde_json::Error,
    },
}

/// The default profile for a process with these capabilities (names without `CAP_`), as the
/// `linux.seccomp` object of the OCI runtime specification.
pub(crate) fn default_profile(capabilities: &BTreeSet<String>) -> Value {
    let allow = |names: Vec<&str>| json!({"names": names, "action": "SCMP_ACT_ALLOW"});
    let mut rules = vec![allow(ALLOWED.split_whitespace().collect())];
    for (capability, names) in ALLOWED_WITH {
        if capabilities.contains(*capability) {
            rules.push(allow(names.split_whitespace().collect()));
        }
    }
    // personality(2): Linux, 32 bit, without address randomisation, and asking which it is.
    for value in [0u64, 0x0008, 0x20000, 0x20008, 0xffff_ffff] {
        rules.push(json!({
            "names": ["personality"], "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}],
        }));
    }
    // socket(2): any family but AF_VSOCK, which leads out of the network namespace.
    rules.push(json!({
        "names": ["socket"], "action": "SCMP_ACT_ALLOW",
        "args": [{"index": 0, "value": libc::AF_VSOCK, "op": "SCMP_CMP_NE"}],
    }));
    if !capabilities.contains("SYS_ADMIN") {
        // clone(2) without any of the flags that make a namespace.
        let namespaces = libc::CLONE_NEWNS
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUSER
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWCGROUP;
        rules.push(json!({
            "names": ["clone"], "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": namespaces, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
        }));
        rules.push(json!({
            "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS,
        }));
    }
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::EPERM,
        "architectures": architectures(),
        "syscalls": rules,
    })
}

/// Reads a profile in the OCI form, or in Docker's, which adds conditions on capabilities and
/// architectures to rules and maps architectures to their sub-architectures.
pub(crate) fn read_profile(
    path: &Path,
    capabilities: &BTreeSet<String>,
) -> Result<Value, ProfileError> {
    let shown = path.display().to_string();
    let text = fs::read(path).map_err(|source| ProfileError::Read {
        path: shown.clone(),
        source,
    })?;
    let profile = serde_json::from_slice(&text).map_err(|source| ProfileError::Parse {
        path: shown,
        source,
    })?;
    Ok(resolve(profile, capabilities))
}

fn resolve(mut profile: Value, capabilities: &BTreeSet<String>) -> Value {
    let Some(object) = profile.as_object_mut() else {
        return profile;
    };
    if object.remove("archMap").is_some() || !object.contains_key("architectures") {
        object.insert("architectures".to_owned(), architectures());
    }
    if let Some(Value::Array(rules)) = object.get_mut("syscalls") {
        rules.retain(|rule| rule_applies(rule, capabilities));
        for rule in rules {
            let Some(rule) = rule.as_object_mut() else {
                continue;
            };
            for name in ["includes", "excludes", "comment"] {
                rule.remove(name);
            }
            if let Some(name) = rule.remove("name") {
                rule.insert("names".to_owned(), json!([name]));
            }
            if rule.get("args").is_some_and(Value::is_null) {
                rule.remove("args");
            }
        }
    }
    profile
}

fn rule_applies(rule: &Value, capabilities: &BTreeSet<String>) -> bool {
    let strings = |pointer: &str| -> Vec<&str> {
        rule.pointer(pointer)
            .and_then(Value::as_array)
            .map(|list| list.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default()
    };
    let has = |name: &&str| capabilities.contains(name.trim_start_matches("CAP_"));
    let here = |name: &&str| *name == std::env::consts::ARCH || *name == docker_architecture();
    let arches = strings("/includes/arches");
    strings("/includes/caps").iter().all(has)
        && (arches.is_empty() || arches.iter().any(here))
        && !strings("/excludes/caps").iter().any(has)
        && !strings("/excludes/arches").iter().any(here)
}

fn docker_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn architectures() -> Value {
    match std::env::consts::ARCH {
        "x86_64" => json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
        "aarch64" => json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]),
        _ => json!([]),
    }
}

#[cfg(test)]
mod tests {
    use libcontainer::oci_spec::runtime::LinuxSeccomp;

    use super::*;

    #[test]
    fn the_default_profile_is_one_that_the_runtime_reads() {
        for capabilities in [BTreeSet::new(), BTreeSet::from(["SYS_ADMIN".to_owned()])] {
            let profile: LinuxSeccomp = serde_json::from_value(default_profile(&capabilities))
                .expect("the profile is in the OCI form");
            let clone3 = profile
                .syscalls()
                .iter()
                .flatten()
                .find(|rule| rule.names().iter().any(|name| name == "clone3"));
            let allowed = clone3.is_some_and(|rule| rule.errno_ret().is_none());
            assert_eq!(allowed, capabilities.contains("SYS_ADMIN"));
        }
    }

    #[test]
    fn docker_s_conditions_are_resolved() {
        let profile = resolve(
            json!({
                "defaultAction": "SCMP_ACT_ERRNO",
                "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": null}],
                "syscalls": [
                    {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": ""},
                    {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                    {"name": "bpf", "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
                    {"names": ["riscv_only"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["riscv64"]}},
                ],
            }),
            &BTreeSet::new(),
        );
        assert_eq!(
            profile["syscalls"],
            json!([
                {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["bpf"], "action": "SCMP_ACT_ERRNO"},
            ])
        );
        assert!(serde_json::from_value::<LinuxSeccomp>(profile).is_ok());
    }
}
