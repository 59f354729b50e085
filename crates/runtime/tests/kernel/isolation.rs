//! What containers can see, use and do.

use std::fs;
use std::os::fd::AsRawFd;
use std::time::Duration;

use runtime::cgroup::Cgroups;
use runtime::{KeeperError, Mount, Propagation, Resources, Seccomp, User};

use crate::house::{House, code, exec, read_all, read_until};

pub(crate) async fn what_a_plain_container_sees() {
    let house = House::new();
    let mut sandbox = house.sandbox("a").await;
    let script = "echo $$; hostname; id -u; ls /dev | tr '\\n' ' '; echo; \
        grep -E ' (/|/dev|/dev/shm|/sys|/proc) ' /proc/mounts | cut -d' ' -f2-4; \
        ls /proc/self/fd | tr '\\n' ' '; echo; \
        cat /proc/sys/net/ipv4/ip_unprivileged_port_start; \
        touch /proc/sys/kernel/hostname 2>&1; cat /proc/1/oom_score_adj; \
        grep -E 'SigIgn|SigBlk|CapEff|NoNewPrivs|Seccomp:' /proc/self/status | tr -s '\\t' ' '; \
        yes | head -1; cat /proc/keys | wc -c";
    let mut spec = house.shell(&sandbox, "c", script);
    spec.oom_score_adj = Some(321);
    assert_eq!(code(&sandbox.run(spec).await), 0, "{}", sandbox.log("c"));
    let out = sandbox.stdout("c");
    let own = own_capabilities() & 0xa804_25fb;
    let mut lines = out.lines();
    let mut next = |expected: &str| {
        let line = lines.next().unwrap_or_default();
        assert!(
            line.starts_with(expected),
            "{expected:?} in {line:?} of\n{out}"
        );
    };
    next("1");
    next("host-a");
    next("0");
    next("fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero");
    next("/ overlay rw");
    next("/proc proc rw,nosuid,nodev,noexec,relatime");
    next("/dev tmpfs rw,nosuid,size=65536k,mode=755");
    next("/sys sysfs ro,nosuid,nodev,noexec,relatime");
    next("/dev/shm tmpfs rw,nosuid,nodev,noexec,relatime,size=65536k");
    next("0 1 2 3");
    next("0");
    next("touch: /proc/sys/kernel/hostname: Read-only file system");
    next("321");
    next("SigBlk: 0000000000000000");
    next("SigIgn: 0000000000000000");
    next(&format!("CapEff: {own:016x}"));
    next("NoNewPrivs: 0");
    next("Seccomp: 0");
    next("y");
    next("0");
    sandbox.end().await;
    house.left_empty();
}

fn own_capabilities() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("readable");
    let bits = status
        .lines()
        .find_map(|line| line.strip_prefix("CapPrm:"))
        .expect("there");
    u64::from_str_radix(bits.trim(), 16).expect("hexadecimal")
}

pub(crate) async fn users_capabilities_and_filters() {
    let house = House::new();
    let mut sandbox = house.sandbox("a").await;
    let script = "id -u; id -G; grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status | \
                  tr -s '\\t' ' '; unshare -m true 2>&1 | tail -1; sleep 600";
    let mut spec = house.shell(&sandbox, "c", script);
    spec.user = User {
        uid: 1000,
        gid: 1001,
        groups: vec![2000, 3000],
    };
    spec.security.no_new_privileges = true;
    spec.security.capabilities_drop = vec!["ALL".to_owned()];
    spec.security.seccomp = Seccomp::Default;
    let filtered = "1000\n1001 2000 3000\nCapEff: 0000000000000000\nCapBnd: 0000000000000000\n\
                    NoNewPrivs: 1\nSeccomp: 2\nunshare: unshare(0x20000): Operation not permitted\n";
    sandbox.start(spec).await;
    // The same for what is executed in it.
    let short = script.trim_end_matches("; sleep 600");
    let run = sandbox
        .keeper
        .exec("c", exec(&["sh", "-c", short]))
        .await
        .expect("executed");
    let seen = read_all(run.streams.stdout).await;
    sandbox
        .wait_for("c", "unshare: unshare(0x20000): Operation not permitted")
        .await;
    assert_eq!(sandbox.stdout("c").replace(" \n", "\n"), filtered);
    assert_eq!(seen.replace(" \n", "\n"), filtered);

    // Root with the default filter and without no_new_privs: the filter is there nevertheless.
    let mut spec = house.shell(
        &sandbox,
        "d",
        "grep Seccomp: /proc/self/status; unshare -m true; echo $?",
    );
    spec.security.seccomp = Seccomp::Default;
    sandbox.run(spec).await;
    assert_eq!(sandbox.stdout("d"), "Seccomp:\t2\n1\n");

    // Privileged: all that this machine has to give.
    let mut spec = house.shell(
        &sandbox,
        "e",
        "grep CapEff /proc/self/status | cut -f2; unshare -m true; echo $?; ls /dev | grep -c kmsg",
    );
    spec.security.privileged = true;
    spec.security.seccomp = Seccomp::Default;
    sandbox.run(spec).await;
    let kmsg = usize::from(std::path::Path::new("/dev/kmsg").exists());
    let expected = format!("{:016x}\n0\n{kmsg}\n", own_capabilities());
    assert_eq!(sandbox.stdout("e"), expected, "{}", sandbox.log("e"));

    // Another user for one command.
    let mut spec = exec(&["sh", "-c", "id -u; id -G"]);
    spec.user = Some(User {
        uid: 5,
        gid: 6,
        groups: vec![],
    });
    let run = sandbox.keeper.exec("c", spec).await.expect("executed");
    assert_eq!(read_all(run.streams.stdout).await, "5\n6\n");
    sandbox.end().await;
    house.left_empty();
}

pub(crate) async fn mounts_and_roots() {
    let house = House::new();
    let mut sandbox = house.sandbox("a").await;
    let source = house.directory.path().join("volume");
    std::fs::create_dir_all(&source).expect("made");
    std::fs::write(source.join("file"), "content\n").expect("written");
    let mount = |target: &str, read_only| Mount {
        source: source.clone(),
        target: target.into(),
        read_only,
        propagation: Propagation::Private,
    };
    let script = "pwd; cat /deep/in/file; touch /deep/in/x 2>&1; touch /rw/made; touch /here 2>&1; \
                  cat /etc/one";
    let mut spec = house.shell(&sandbox, "c", script);
    // The inner one first: it must not disappear under the outer one.
    spec.mounts = vec![
        mount("/deep/in", true),
        mount("/deep", false),
        mount("/rw", false),
        Mount {
            source: source.join("file"),
            ..mount("/etc/one", true)
        },
    ];
    spec.working_dir = "/rw/not/there".to_owned();
    spec.security.read_only_root = true;
    sandbox.run(spec).await;
    assert_eq!(
        sandbox.stdout("c"),
        "/rw/not/there\ncontent\ntouch: /deep/in/x: Read-only file system\n\
         touch: /here: Read-only file system\ncontent\n",
        "{}",
        sandbox.log("c")
    );
    assert!(source.join("made").exists() && source.join("not/there").is_dir());

    // Shared memory is the sandbox's.
    let spec = house.shell(&sandbox, "m", "echo shared > /dev/shm/x; sleep 600");
    sandbox.start(spec).await;
    let script =
        "until test -s /dev/shm/x; do :; done; cat /dev/shm/x; grep -c /dev/shm /proc/mounts";
    let spec = house.shell(&sandbox, "n", script);
    sandbox.run(spec).await;
    assert_eq!(sandbox.stdout("n"), "shared\n1\n");

    // Writes go to the container's own layer.
    let spec = house.shell(
        &sandbox,
        "d",
        "echo new > /data/plain; rm /data/junk; cat /data/plain",
    );
    sandbox.run(spec).await;
    assert_eq!(sandbox.stdout("d"), "new\n");
    let base = house.directory.path().join("base/data");
    assert_eq!(
        std::fs::read_to_string(base.join("plain")).expect("there"),
        "hello\n"
    );
    assert!(base.join("junk").exists());

    let mut spec = house.shell(&sandbox, "e", "true");
    spec.mounts = vec![Mount {
        source: "/no/such/place".into(),
        ..mount("/x", true)
    }];
    sandbox.keeper.create(spec).await.expect("created");
    match sandbox.keeper.start_container("e").await {
        Err(KeeperError::Refused(refusal)) => {
            assert_eq!(
                refusal.message,
                "find mount source \"/no/such/place\": no such file or directory"
            );
        }
        other => panic!("{other:?}"),
    }
    sandbox.end().await;
    house.left_empty();
}

pub(crate) async fn networks_and_dialing() {
    let house = House::new();
    let sandbox = house.sandbox("a").await;
    let script = "ip -o link | cut -d: -f2 | tr -d ' '; httpd -f -p 8080 -h /data";
    sandbox.start(house.shell(&sandbox, "c", script)).await;
    sandbox.wait_for("c", "lo").await;
    let answer = loop {
        match sandbox.keeper.dial(8080).await {
            Ok(stream) => break stream,
            // It may not listen yet.
            Err(KeeperError::Refused(refusal)) => assert_eq!(refusal.message, "connection refused"),
            Err(error) => panic!("{error}"),
        }
    };
    let mut stream = tokio::net::TcpStream::from_std(answer).expect("non-blocking");
    let mut text = String::new();
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"GET /plain HTTP/1.0\r\n\r\n")
        .await
        .expect("written");
    tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut text)
        .await
        .expect("readable");
    assert!(text.ends_with("\r\n\r\nhello\n"), "{text}");
    match sandbox.keeper.dial(8081).await {
        Err(KeeperError::Refused(refusal)) => assert_eq!(refusal.message, "connection refused"),
        other => panic!("{other:?}"),
    }
    sandbox.end().await;

    let mut spec = house.spec("host");
    (spec.own_network, spec.own_ipc, spec.hostname) = (false, false, None);
    let mut sandbox = house.sandbox_with(spec).await;
    let spec = house.shell(
        &sandbox,
        "c",
        "readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; readlink /proc/self/ns/uts",
    );
    sandbox.run(spec).await;
    let own: String = ["net", "ipc", "uts"]
        .iter()
        .map(|name| std::fs::read_link(format!("/proc/self/ns/{name}")).expect("readable"))
        .map(|link| format!("{}\n", link.display()))
        .collect();
    assert_eq!(sandbox.stdout("c"), own);
    sandbox.end().await;
    house.left_empty();
}

pub(crate) async fn shared_process_namespaces() {
    let house = House::new();
    let mut spec = house.spec("shared");
    spec.share_processes = true;
    let mut sandbox = house.sandbox_with(spec).await;
    sandbox
        .start(house.container(&sandbox, "x", &["sleep", "4242"]))
        .await;
    let spec = house.shell(
        &sandbox,
        "y",
        "ps | grep -c 'sleep 424[2]'; (sleep 5151 &); exit 5",
    );
    assert_eq!(code(&sandbox.run(spec).await), 5);
    assert_eq!(sandbox.stdout("y"), "1\n");
    // What the container left behind is gone, and nothing else.
    let run = sandbox
        .keeper
        .exec("x", exec(&["ps", "-o", "args"]))
        .await
        .expect("executed");
    let seen = read_all(run.streams.stdout).await;
    assert!(
        seen.contains("sleep 4242") && !seen.contains("sleep 5151"),
        "{seen}"
    );
    sandbox.end().await;

    let mut spec = house.spec("machine");
    spec.host_processes = true;
    let mut sandbox = house.sandbox_with(spec).await;
    let spec = house.shell(&sandbox, "c", "(sleep 6161 &); readlink /proc/self/ns/pid");
    sandbox.run(spec).await;
    let own = std::fs::read_link("/proc/self/ns/pid").expect("readable");
    assert_eq!(sandbox.stdout("c"), format!("{}\n", own.display()));
    sandbox.end().await;
    house.left_empty();
}

/// A limit that could be lifted by whom it is to hold would be none.
pub(crate) async fn cgroups_cannot_be_changed_from_inside() {
    let house = House::new();
    let mut sandbox = house.sandbox("a").await;
    let script = "cd /sys/fs/cgroup; ls | tr '\\n' ' '; echo; \
        for d in $(find . -type d); do mkdir $d/x || true; done 2>&1 | grep -v 'Read-only file system'; \
        for f in $(find . -type f -name 'cgroup.procs' -o -name 'memory.*limit_in_bytes' -o \
            -name 'cpu.cfs_quota_us' -o -name freezer.state -o -name 'devices.allow' -o -name '*.max'); do \
            (echo 1 >$f); done 2>&1 | sed 's/.*: //' | sort -u";
    let mut spec = house.shell(&sandbox, "c", script);
    spec.resources.memory_limit = Some(64 << 20);
    sandbox.run(spec).await;
    let seen = sandbox.stdout("c");
    let mut lines = seen.lines();
    let listed = lines.next().unwrap_or_default();
    if Cgroups::detect().expect("there are cgroups").is_version_2() {
        assert!(listed.contains("memory.max"), "{listed}");
    } else {
        assert!(listed.contains("memory"), "{listed}");
        assert!(!listed.contains("systemd"), "{listed}");
    }
    let rest: Vec<_> = lines.collect();
    assert_eq!(rest, ["Read-only file system"], "{}", sandbox.log("c"));

    // And who may do everything may do this.
    let mut spec = house.shell(
        &sandbox,
        "d",
        "cd /sys/fs/cgroup; mkdir x memory/x; echo $?",
    );
    spec.security.privileged = true;
    spec.resources.memory_limit = Some(64 << 20);
    sandbox.run(spec).await;
    assert_eq!(sandbox.stdout("d"), "0\n", "{}", sandbox.log("d"));
    sandbox.end().await;
    house.left_empty();
}

/// Whom the kernel kills first for want of memory is the same for all of a container's commands.
pub(crate) async fn executed_commands_are_scored_as_their_container() {
    let house = House::new();
    let sandbox = house.sandbox("a").await;
    let mut spec = house.shell(&sandbox, "c", "sleep 600");
    spec.oom_score_adj = Some(777);
    sandbox.start(spec).await;
    let run = sandbox
        .keeper
        .exec("c", exec(&["cat", "/proc/self/oom_score_adj"]))
        .await
        .expect("executed");
    assert_eq!(read_all(run.streams.stdout).await, "777\n");
    sandbox.end().await;
    house.left_empty();
}

/// Who may look into processes finds nothing in the first one of the sandbox: no file, no power.
pub(crate) async fn the_first_shared_process_gives_nothing_away() {
    let house = House::new();
    let mut spec = house.spec("shared");
    spec.share_processes = true;
    let mut sandbox = house.sandbox_with(spec).await;
    let script = "ls -a /proc/1/root/ | tr '\\n' ' '; wc -l </proc/1/mountinfo; \
        (: > /proc/1/root/x) 2>&1 | grep -o 'Read-only.*'; tr '\\0' ' ' </proc/1/cmdline | wc -w; \
        ls /proc/1/fd | tr '\\n' ' '; cat /proc/1/comm; \
        sed -nE '/^(Uid|Gid|Groups|Cap|NoNew|Seccomp:)/p' /proc/1/status | tr -s '\\t ' ' '";
    let mut spec = house.shell(&sandbox, "c", script);
    spec.security.capabilities_add = vec!["SYS_PTRACE".to_owned()];
    assert_eq!(code(&sandbox.run(spec).await), 0);
    let nothing = "0000000000000000";
    let expected = format!(
        ". .. 1\nRead-only file system\n0\n0 processes\n\
         Uid: 65535 65535 65535 65535\nGid: 65535 65535 65535 65535\nGroups: \n\
         CapInh: {nothing}\nCapPrm: {nothing}\nCapEff: {nothing}\nCapBnd: {nothing}\nCapAmb: {nothing}\n\
         NoNewPrivs: 1\nSeccomp: 2\n"
    );
    assert_eq!(sandbox.stdout("c"), expected, "{}", sandbox.log("c"));
    let cgroups = Cgroups::detect().expect("there are cgroups");
    let own = cgroups.processes(&format!("{}/processes", sandbox.cgroup));
    assert_eq!(own.len(), 1, "what it uses is charged to the sandbox");
    sandbox.end().await;
    house.left_empty();
}

pub(crate) async fn cgroups_hold_and_count() {
    let house = House::new();
    let mut spec = house.spec("a");
    spec.resources.memory_limit = Some(256 << 20);
    let mut sandbox = house.sandbox_with(spec).await;
    let mut spec = house.shell(
        &sandbox,
        "c",
        "head -c 20000000 /dev/zero > /dev/shm/x; sleep 600 & echo ready; wait",
    );
    spec.resources = Resources {
        cpu_shares: Some(512),
        cpu_quota: Some(50_000),
        cpu_period: None,
        memory_limit: Some(64 << 20),
        pids_limit: Some(10),
    };
    let cgroup = spec.cgroup.clone();
    sandbox.start(spec).await;
    sandbox.wait_for("c", "ready").await;
    let cgroups = Cgroups::detect().expect("there are cgroups");
    let usage = cgroups.usage(&cgroup).expect("readable");
    assert!(
        usage.memory >= 20_000_000 && usage.memory < 64 << 20,
        "{usage:?}"
    );
    assert!(usage.memory_working_set >= 20_000_000, "{usage:?}");
    assert!(usage.cpu > Duration::ZERO && usage.pids == 2, "{usage:?}");
    let whole = cgroups.usage(&sandbox.cgroup).expect("readable");
    assert!(whole.memory >= usage.memory);
    assert!(cgroups.processes(&sandbox.cgroup).len() == 2);

    // No more processes than allowed.
    let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 600 & done; wait";
    let run = sandbox
        .keeper
        .exec("c", exec(&["sh", "-c", script]))
        .await
        .expect("executed");
    let error = read_until(run.streams.stderr.expect("no terminal"), "can't fork").await;
    assert!(error.contains("can't fork"), "{error}");
    sandbox.keeper.signal("c", 9).await.expect("sent");
    sandbox.exit("c").await;
    sandbox.keeper.remove("c").await.expect("removed");
    assert!(cgroups.usage(&cgroup).is_err());
    assert!(!sandbox.directory.join("containers/c.json").exists());
    sandbox.end().await;
    house.left_empty();
}

/// A descriptor of it, as a container can get one, must be harmless also when the keeper has ended.
pub(crate) async fn what_a_keeper_executes_is_never_written_to() {
    let house = House::new();
    let program = house.directory.path().join("program");
    // By another process: a descriptor of ours for writing could be in a child of another test.
    let copied = std::process::Command::new("/bin/busybox")
        .arg("cp")
        .args([&std::env::current_exe().expect("known"), &program])
        .status();
    assert!(copied.expect("busybox runs").success());
    let before = fs::metadata(&program).expect("there").len();
    let spec = house.spec("p");
    let directory = house.directory.path().join("run/p");
    let (keeper, _events) = runtime::Keeper::start(&program, &directory, spec)
        .await
        .expect("a keeper starts");
    let executed = fs::File::open(format!("/proc/{}/exe", keeper.pid())).expect("opened");
    assert_eq!(executed.metadata().expect("there").len(), before);
    let write = || {
        let name = format!("/proc/self/fd/{}", executed.as_raw_fd());
        fs::OpenOptions::new().append(true).open(name)
    };
    write().expect_err("it is executed");
    keeper.end().await.expect("ended");
    house.end_of_keepers();
    let refused = write().expect_err("nobody may ever");
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS), "{refused}");
    house.left_empty();
}
