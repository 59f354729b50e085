//! Starting, ending, and being found again.

use std::fs;
use std::time::{Duration, Instant};

use runtime::{
    ContainerState, Event, Keeper, KeeperError, Mount, Propagation, RefusalKind, Resources,
    SandboxSpec,
};

use crate::house::{House, code, exec, until};

pub(crate) async fn exit_codes_and_signals() {
    let house = House::new();
    let mut sandbox = house.sandbox("a").await;
    for (id, script, expected, signal) in [
        ("zero", "true", 0, None),
        ("seven", "exit 7", 7, None),
        ("killed", "kill -9 $$; sleep 9", 137, Some(9)),
        ("term", "kill -15 $$; sleep 9", 143, Some(15)),
    ] {
        // As the second process, as the first of a namespace is immune to its own signals.
        let script = format!("sh -c '{script}'");
        let mut spec = house.shell(&sandbox, id, &script);
        if signal.is_some() {
            spec.argv = vec!["sleep".into(), "600".into()];
        }
        sandbox.start(spec).await;
        if let Some(signal) = signal {
            sandbox.keeper.signal(id, signal).await.expect("sent");
            // SIGTERM does nothing to a first process without a handler.
            sandbox.keeper.signal(id, 9).await.ok();
        }
        let state = sandbox.exit(id).await;
        let ContainerState::Exited {
            code,
            signal: killed_by,
            oom_killed,
            started_at,
            message,
            ..
        } = state
        else {
            panic!("{state:?}")
        };
        let expected = if signal.is_some() { 137 } else { expected };
        assert_eq!(code, expected, "{id}");
        assert_eq!(killed_by, signal.map(|_| 9));
        assert!(!oom_killed && started_at.is_some() && message.is_none());
    }
    sandbox.end().await;
    house.left_empty();
}

/// As when the machine goes down. The second signal stands for the end of the containers' grace.
pub(crate) async fn a_keeper_that_is_told_to_end_lets_its_containers_end_first() {
    let house = House::new();
    let mut sandbox = house.sandbox("a").await;
    let polite = "trap 'echo asked; exit 3' TERM; echo ready; while true; do sleep 0.05; done";
    sandbox.start(house.shell(&sandbox, "polite", polite)).await;
    sandbox
        .start(house.shell(&sandbox, "stubborn", "sleep 600"))
        .await;
    sandbox.wait_for("polite", "ready").await;
    let keeper = rustix::process::Pid::from_raw(sandbox.keeper.pid()).expect("a process");
    let tell = || rustix::process::kill_process(keeper, rustix::process::Signal::TERM);
    tell().expect("told");
    assert_eq!(code(&sandbox.exit("polite").await), 3);
    assert!(sandbox.log("polite").contains("asked"));
    let late = sandbox.keeper.create(house.shell(&sandbox, "late", "true"));
    assert!(late.await.is_err(), "nothing new begins");
    tell().expect("told");
    assert_eq!(code(&sandbox.exit("stubborn").await), 137);
    while sandbox.events.recv().await.is_some() {}
    house.left_empty();
}

pub(crate) async fn commands_that_cannot_be_executed() {
    let house = House::new();
    let mut sandbox = house.sandbox("a").await;
    for (id, argv, expected) in [
        (
            "a",
            "foo",
            "exec: \"foo\": executable file not found in $PATH",
        ),
        (
            "b",
            "/no/such",
            "exec: \"/no/such\": stat /no/such: no such file or directory",
        ),
        (
            "c",
            "/data/plain",
            "exec: \"/data/plain\": permission denied",
        ),
        ("d", "/data", "exec: \"/data\": permission denied"),
    ] {
        let spec = house.container(&sandbox, id, &[argv]);
        sandbox.keeper.create(spec).await.expect("created");
        match sandbox.keeper.start_container(id).await {
            Err(KeeperError::Refused(refusal)) => {
                assert_eq!(refusal.kind, RefusalKind::Command);
                assert_eq!(refusal.message, expected);
            }
            other => panic!("{id}: {other:?}"),
        }
        let state = sandbox.exit(id).await;
        assert!(
            matches!(&state, ContainerState::Exited { code: 128, started_at: None, message: Some(message), .. }
                if message == expected),
            "{state:?}"
        );
        sandbox.keeper.remove(id).await.expect("removed");
    }
    sandbox.end().await;
    house.left_empty();
}

pub(crate) async fn a_file_that_is_no_program() {
    let house = House::new();
    let mut sandbox = house.sandbox("a").await;
    let spec = house.container(&sandbox, "c", &["/data/junk"]);
    assert_eq!(code(&sandbox.run(spec).await), 1);
    assert_eq!(
        sandbox.log("c"),
        "stderr F exec /data/junk: exec format error\n"
    );
    sandbox.end().await;
    house.left_empty();
}

pub(crate) async fn memory_limit_kills_and_says_so() {
    let house = House::new();
    let mut sandbox = house.sandbox("a").await;
    // tail keeps the whole of a line that never ends.
    let mut spec = house.container(&sandbox, "c", &["tail", "/dev/zero"]);
    spec.resources.memory_limit = Some(32 << 20);
    let state = sandbox.run(spec).await;
    assert!(
        matches!(
            state,
            ContainerState::Exited {
                code: 137,
                oom_killed: true,
                ..
            }
        ),
        "{state:?}"
    );
    sandbox.end().await;
    house.left_empty();
}

pub(crate) async fn daemon_goes_away_and_comes_back() {
    let house = House::new();
    let sandbox = house.sandbox("a").await;
    let script =
        "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; echo done; cat /gates/fifo";
    let directory = sandbox.directory.clone();
    for id in ["lasts", "ends"] {
        let gate = directory.join("gates").join(id);
        std::fs::create_dir_all(&gate).expect("made");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            gate.join("fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from(0o600),
            0,
        )
        .expect("a fifo can be made");
        let mut spec = house.shell(&sandbox, id, script);
        spec.mounts.push(Mount {
            source: gate,
            target: "/gates".into(),
            read_only: true,
            propagation: Propagation::Private,
        });
        sandbox.start(spec).await;
    }
    let cgroup = sandbox.cgroup.clone();
    // As after a kill: every descriptor of the daemon is gone.
    drop(sandbox);

    let (keeper, record, containers, events) = Keeper::connect(&directory).await.expect("alive");
    assert_eq!(record.spec.id, "a");
    assert_eq!(containers.len(), 2);
    assert!(containers.iter().all(|one| one.state.pid().is_some()));
    let sandbox = crate::house::Sandbox {
        keeper,
        events,
        directory: directory.clone(),
        cgroup,
    };
    sandbox.wait_for("ends", "done").await;
    sandbox.wait_for("lasts", "done").await;
    drop(sandbox);
    // One ends while nobody looks.
    let gate = directory.join("gates/ends/fifo");
    tokio::task::spawn_blocking(move || std::fs::write(gate, "open\n").expect("written"))
        .await
        .expect("no panic");

    let (keeper, _, containers, mut events) = Keeper::connect(&directory).await.expect("alive");
    let ended = |state: &ContainerState| matches!(state, ContainerState::Exited { code: 0, .. });
    let one = containers
        .iter()
        .find(|one| one.spec.id == "ends")
        .expect("known");
    if !ended(&one.state) {
        loop {
            match events.recv().await.expect("alive") {
                Event::Container { container, state } if container == "ends" => {
                    assert!(ended(&state), "{state:?}");
                    break;
                }
                _ => {}
            }
        }
    }
    let log = std::fs::read_to_string(directory.join("log/ends.log")).expect("readable");
    assert_eq!(log.lines().count(), 2002, "no line is lost");
    let (_, containers) = keeper.list().await.expect("listed");
    let lasts = containers
        .iter()
        .find(|one| one.spec.id == "lasts")
        .expect("known");
    assert!(lasts.state.pid().is_some());

    keeper.end().await.expect("ended");
    // A dead keeper's records tell the same.
    let dead = Keeper::read_dead(&directory)
        .expect("readable")
        .expect("there");
    assert_eq!(dead.containers.len(), 2);
    assert!(dead.containers.iter().all(|one| one.state.is_exited()));
    assert!(matches!(
        Keeper::connect(&directory).await,
        Err(KeeperError::Connect { .. })
    ));
    house.left_empty();
}

pub(crate) async fn thirty_sandboxes_at_once() {
    let house = House::new();
    let begun = Instant::now();
    let names: Vec<String> = (0..30).map(|number| format!("s{number}")).collect();
    let sandboxes = futures::future::join_all(names.iter().map(|name| async {
        let sandbox = house.sandbox(name).await;
        let spec = house.shell(&sandbox, "c", "echo $HOSTNAME; hostname; sleep 600");
        let state = sandbox.start(spec).await;
        assert!(state.pid().is_some());
        sandbox
    }))
    .await;
    println!(
        "  30 sandboxes with a container each: {:?}",
        begun.elapsed()
    );
    for (sandbox, name) in sandboxes.iter().zip(&names) {
        sandbox.wait_for("c", &format!("host-{name}")).await;
    }
    let begun = Instant::now();
    futures::future::join_all(sandboxes.into_iter().map(|sandbox| sandbox.end())).await;
    println!("  all ended: {:?}", begun.elapsed());
    house.left_empty();
}

pub(crate) async fn a_sandbox_ends_with_everything_in_it() {
    let house = House::new();
    let sandbox = house.sandbox("a").await;
    let background = "sleep 600 & sleep 600 & trap '' TERM; wait";
    for id in ["x", "y"] {
        sandbox.start(house.shell(&sandbox, id, background)).await;
    }
    let other = sandbox.keeper.clone();
    let waiting = tokio::spawn(async move { other.end().await });
    let directory = sandbox.directory.clone();
    sandbox.end().await;
    waiting
        .await
        .expect("no panic")
        .expect("asking twice is fine");
    let dead = Keeper::read_dead(&directory)
        .expect("readable")
        .expect("there");
    for one in dead.containers {
        assert_eq!(code(&one.state), 137);
    }
    assert!(!directory.join("keeper.sock").exists());
    // Also with what is being started, at whatever moment of that.
    for millis in 0..20 {
        let sandbox = house.sandbox(&format!("early-{millis}")).await;
        let spec = house.shell(&sandbox, "c", "sleep 600");
        sandbox.keeper.create(spec).await.expect("created");
        let keeper = sandbox.keeper.clone();
        let starting = tokio::spawn(async move { keeper.start_container("c").await });
        tokio::time::sleep(Duration::from_millis(millis)).await;
        let ended = tokio::time::timeout(Duration::from_secs(30), sandbox.end());
        ended
            .await
            .expect("nobody waits for a launcher that was killed");
        // It was started and killed, or it was not started: both are fine.
        let _ = starting.await.expect("no panic");
    }
    house.left_empty();
}

pub(crate) async fn a_keeper_ends_when_its_directory_is_gone() {
    let house = House::new();
    let mut sandbox = house.sandbox("a").await;
    let spec = house.shell(&sandbox, "c", "sleep 0.2");
    sandbox.start(spec).await;
    // The container's own root lies elsewhere, but its working files go, too.
    std::fs::remove_dir_all(sandbox.directory.join("containers")).expect("removed");
    std::fs::remove_dir_all(&sandbox.directory).expect("removed");
    while sandbox.events.recv().await.is_some() {}
    drop(sandbox);
    house.left_empty();
}

/// A lock or a pipe of whoever started the daemon would be held for as long as a container runs.
pub(crate) async fn a_keeper_holds_nothing_of_its_starter_s_open() {
    let house = House::new();
    // Without close-on-exec, as shells leave them.
    let (end, held) = rustix::pipe::pipe().expect("a pipe");
    let sandbox = house.sandbox("a").await;
    drop(held);
    rustix::io::ioctl_fionbio(&end, true).expect("changed");
    assert_eq!(rustix::io::read(&end, &mut [0]), Ok(0), "somebody holds it");
    sandbox.end().await;
    house.left_empty();
}

/// On version 1 nobody who is frozen dies, not even of SIGKILL.
/// Nobody waits for it for ever, and it can be spoken with again when it goes on.
pub(crate) async fn a_keeper_that_does_not_answer_is_given_up() {
    use rustix::process::{Pid, Signal, kill_process};

    let house = House::new();
    let sandbox = house.sandbox("a").await;
    sandbox.start(house.shell(&sandbox, "c", "sleep 600")).await;
    let process = Pid::from_raw(sandbox.keeper.pid()).expect("a number");
    kill_process(process, Signal::STOP).expect("stopped");
    let (signalled, executed) = futures::join!(
        sandbox.keeper.signal("c", libc::SIGTERM),
        sandbox.keeper.exec("c", exec(&["true"]))
    );
    let later = sandbox.keeper.list().await;
    let hurried = Keeper::connect(&sandbox.directory).await;
    let patient = Keeper::connect_patiently(&sandbox.directory);
    let (patient, ()) = futures::join!(patient, async {
        kill_process(process, Signal::CONT).expect("continued");
    });
    let says = |error: KeeperError| matches!(error, KeeperError::Silent { .. });
    assert!(signalled.is_err_and(says));
    // What others wait for will not come through this connection either.
    assert!(executed.is_err_and(says));
    assert!(later.is_err_and(says));
    assert!(hurried.is_err_and(|error| !error.means_dead()));
    let (keeper, ..) = patient.expect("it goes on");
    keeper.signal("c", libc::SIGKILL).await.expect("it answers");
    keeper.end().await.expect("ended");
    house.left_empty();
}

pub(crate) async fn who_is_frozen_can_be_killed() {
    let house = House::new();
    let mut sandbox = house.sandbox("a").await;
    let script = "cd /sys/fs/cgroup; echo FROZEN >freezer/freezer.state || echo 1 >cgroup.freeze";
    for id in ["killed", "ended"] {
        let mut spec = house.shell(&sandbox, id, script);
        // Others cannot write there.
        spec.security.privileged = true;
        let below = spec.cgroup.trim_start_matches('/').to_owned();
        sandbox.start(spec).await;
        let is_frozen = || {
            let read = |path: &str| {
                std::fs::read_to_string(format!("/sys/fs/cgroup/{path}")).unwrap_or_default()
            };
            read(&format!("freezer/{below}/freezer.state")) == "FROZEN\n"
                || read(&format!("{below}/cgroup.events")).contains("frozen 1")
        };
        while !is_frozen() {
            tokio::task::yield_now().await;
        }
    }
    sandbox.keeper.signal("killed", 9).await.expect("sent");
    assert_eq!(code(&sandbox.exit("killed").await), 137);
    sandbox.keeper.end().await.expect("ended");
    assert_eq!(code(&sandbox.exit("ended").await), 137);
    house.left_empty();
}

/// Something holds a container's cgroup: the keeper goes on, and removes it when it can.
pub(crate) async fn a_cgroup_that_is_held_is_removed_later() {
    let house = House::new();
    let mut sandbox = house.sandbox("a").await;
    let spec = house.container(&sandbox, "c", &["sleep", "1000"]);
    let cgroup = spec.cgroup.trim_start_matches('/').to_owned();
    sandbox.start(spec).await;
    let hierarchies = fs::read_dir("/sys/fs/cgroup").expect("cgroups are mounted");
    let places = hierarchies.map(|entry| entry.expect("listed").path());
    let place = places
        .chain(["/sys/fs/cgroup".into()])
        .map(|hierarchy| hierarchy.join(&cgroup))
        .find(|place| place.is_dir())
        .expect("the container has a cgroup");
    // What is mounted on cannot be removed, with the error that one with processes in it gives.
    rustix::mount::mount_bind(&place, &place).expect("mounted");
    sandbox
        .keeper
        .signal("c", libc::SIGKILL)
        .await
        .expect("killed");
    sandbox.exit("c").await;
    // It answers when it has done all that it does at the end of a container.
    sandbox.keeper.list().await.expect("listed");
    let flags = rustix::mount::UnmountFlags::DETACH;
    rustix::mount::unmount(&place, flags).expect("unmounted");
    until("the cgroup is removed", || !place.exists()).await;
    sandbox.end().await;
    house.left_empty();
}

/// A keeper that cannot accept a connection must not ask for it again and again.
pub(crate) async fn a_keeper_without_descriptors_rests_and_comes_back() {
    let house = House::new();
    let sandbox = house.sandbox("a").await;
    let pid = sandbox.keeper.pid();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("listed");
    let limit = |current: u64| {
        let process = rustix::process::Pid::from_raw(pid);
        let wanted = rustix::process::Rlimit {
            current: Some(current),
            ..rustix::process::getrlimit(rustix::process::Resource::Nofile)
        };
        rustix::process::prlimit(process, rustix::process::Resource::Nofile, wanted)
            .expect("limited");
    };
    let highest = open.map(|entry| {
        let name = entry.expect("listed").file_name();
        name.to_str().and_then(|name| name.parse::<u64>().ok())
    });
    limit(highest.max().flatten().expect("some") + 1);
    let socket = sandbox.directory.join("keeper.sock");
    let waiting = std::os::unix::net::UnixStream::connect(&socket).expect("it listens");
    let log = sandbox.directory.join("keeper.log");
    until("it says so", || {
        let said = fs::read_to_string(&log).unwrap_or_default();
        said.contains("accept a connection: ")
    })
    .await;
    let asleep = || {
        let status = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
        status.contains(") S ")
    };
    let mut times = 0;
    until("it sleeps", || {
        times = if asleep() { times + 1 } else { 0 };
        times == 20
    })
    .await;
    limit(1024);
    drop(waiting);
    let (keeper, _, _, _events) = Keeper::connect(&sandbox.directory)
        .await
        .expect("connected");
    keeper.list().await.expect("it answers");
    sandbox.end().await;
    house.left_empty();
}

pub(crate) async fn what_is_refused() {
    let house = House::new();
    let sandbox = house.sandbox("a").await;
    let refused = |result: Result<(), KeeperError>| match result {
        Err(KeeperError::Refused(refusal)) => (refusal.kind, refusal.message),
        other => panic!("{other:?}"),
    };
    let plain = || house.shell(&sandbox, "c", "sleep 600");
    let create = async |change: &dyn Fn(&mut runtime::ContainerSpec)| {
        let mut spec = plain();
        change(&mut spec);
        sandbox.keeper.create(spec).await
    };
    for (change, message) in [
        (
            &(|spec: &mut runtime::ContainerSpec| spec.argv.clear()) as &dyn Fn(&mut _),
            "no command specified",
        ),
        (
            &|spec: &mut runtime::ContainerSpec| spec.id = "../x".into(),
            "\"../x\" is not fit for a container's name",
        ),
        (
            &|spec: &mut runtime::ContainerSpec| spec.working_dir = "here".into(),
            "working directory \"here\" is not an absolute path",
        ),
        (
            &|spec: &mut runtime::ContainerSpec| {
                spec.security.capabilities_add = vec!["FLY".into()]
            },
            "unknown capability \"CAP_FLY\"",
        ),
        (
            &|spec: &mut runtime::ContainerSpec| spec.argv.push("a\0b".into()),
            "\"a\\0b\" contains a zero byte",
        ),
        (
            &|spec: &mut runtime::ContainerSpec| spec.security.unmasked_proc = true,
            "an unmasked /proc needs a user namespace of its own, which containers here do not have yet",
        ),
    ] {
        assert_eq!(
            refused(create(change).await),
            (RefusalKind::Invalid, message.to_owned())
        );
    }
    create(&|_: &mut runtime::ContainerSpec| {})
        .await
        .expect("created");
    assert_eq!(
        refused(create(&|_: &mut runtime::ContainerSpec| {}).await).0,
        RefusalKind::Exists
    );
    assert_eq!(
        refused(sandbox.keeper.signal("c", 9).await).0,
        RefusalKind::WrongState
    );
    assert_eq!(
        refused(sandbox.keeper.signal("d", 9).await).0,
        RefusalKind::NotFound
    );
    sandbox.keeper.start_container("c").await.expect("started");
    assert_eq!(
        refused(sandbox.keeper.remove("c").await).0,
        RefusalKind::WrongState
    );
    assert_eq!(
        refused(sandbox.keeper.start_container("c").await.map(drop)).0,
        RefusalKind::WrongState
    );
    let (directory, program) = (
        sandbox.directory.clone(),
        std::env::current_exe().expect("known"),
    );
    let again = Keeper::start(&program, &directory, SandboxSpec::default()).await;
    assert!(matches!(again, Err(KeeperError::Exists(_))));
    sandbox.end().await;

    let mut spec = house.spec("b");
    spec.sysctls.insert("vm.swappiness".into(), "1".into());
    let directory = house.directory.path().join("run/b");
    match Keeper::start(&program, &directory, spec).await {
        Err(KeeperError::Start { message, .. }) => {
            assert!(
                message.contains("\"vm.swappiness\" is not namespaced"),
                "{message}"
            );
        }
        other => panic!("{other:?}"),
    }
    house.left_empty();
}

pub(crate) async fn starting_is_quick_and_a_keeper_small() {
    let house = House::new();
    let begun = Instant::now();
    let sandbox = house.sandbox("a").await;
    let keeper = begun.elapsed();
    let mut times = Vec::new();
    for number in 0..10 {
        let mut spec = house.container(&sandbox, &format!("c{number}"), &["sleep", "600"]);
        spec.resources = Resources {
            cpu_shares: Some(100),
            memory_limit: Some(64 << 20),
            ..Resources::default()
        };
        let begun = Instant::now();
        sandbox.start(spec).await;
        times.push(begun.elapsed());
    }
    times.sort();
    let smaps = format!("/proc/{}/smaps_rollup", sandbox.keeper.pid());
    let smaps = std::fs::read_to_string(smaps).expect("readable");
    let field = |name: &str| {
        let line = smaps
            .lines()
            .find(|line| line.starts_with(name))
            .expect("there");
        line[name.len()..]
            .trim()
            .trim_end_matches(" kB")
            .parse::<u64>()
            .expect("a number")
    };
    let private = field("Private_Dirty:") + field("Private_Clean:");
    println!(
        "  keeper {keeper:?}; container p50 {:?}, max {:?}; a keeper's private memory {private} kB (dirty {} kB)",
        times[5],
        times[9],
        field("Private_Dirty:")
    );
    sandbox.end().await;
    house.left_empty();
}
