//! Sandboxes and containers from beginning to end, and over the end of a daemon.

use std::time::{Duration, Instant};

use engine::{ContainerSpec, ContainerState, Engine, Error, Event, NetworkMode, SandboxSpec};

use crate::house::{House, code, exit, id, pod};

pub(crate) async fn a_sandbox_from_beginning_to_end() {
    let house = House::new().await;
    let engine = house.engine().await;
    let mut events = engine.events();
    let made = engine
        .run_sandbox(&id("a"), pod("web"))
        .await
        .expect("made");
    let address = made.address.expect("a network of its own");
    assert!(made.alive && made.labels["pod"] == "web");
    let script = "hostname; cat /etc/hosts /etc/resolv.conf /etc/hostname; \
                  ip -o addr show eth0 | tr -s ' ' | cut -d' ' -f4; ip route | head -1; env | sort";
    let spec = ContainerSpec {
        env: vec![("OWN".to_owned(), "1".to_owned())],
        user: Some("0".to_owned()),
        ..house.shell("one", script)
    };
    let container = engine.create_container(&id("a"), spec).await.expect("made");
    assert_eq!(container.0.len(), 64);
    let status = engine.container(&container).await.expect("known");
    assert_eq!(status.state, ContainerState::Created);
    engine.start_container(&container).await.expect("started");
    assert_eq!(code(&exit(&engine, &container).await), 0);
    let out = house.stdout("one");
    assert!(
        out.starts_with("web\n# Kubernetes-managed hosts file.\n"),
        "{out}"
    );
    for line in [
        format!("{address}\tweb\nnameserver 10.96.0.10\nweb\n{address}"),
        "default via 169.254.1.1".to_owned(),
        "FROM=image\nHOME=/root\nHOSTNAME=web\nOWN=1\nPATH=/bin\nPWD=/data\n".to_owned(),
    ] {
        assert!(out.contains(&line), "{line:?} in {out}");
    }
    let mut seen = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let Event::Container {
            container: one,
            state,
            ..
        } = event
        {
            assert_eq!(one, container);
            seen.push(state);
        }
    }
    assert!(
        matches!(seen.last(), Some(ContainerState::Exited { code: 0, .. })),
        "{seen:?}"
    );

    engine.stop_sandbox(&id("a")).await.expect("stopped");
    engine.stop_sandbox(&id("a")).await.expect("again");
    let status = engine.sandbox(&id("a")).await.expect("known");
    assert!(!status.alive && status.containers.len() == 1);
    assert!(house.config.network.attachments().is_empty());
    engine
        .remove_container(&container)
        .await
        .expect("removed without a keeper");
    engine.remove_sandbox(&id("a")).await.expect("removed");
    engine.remove_sandbox(&id("a")).await.expect("again");
    assert!(house.log("one").exists(), "logs are the caller's");
    house.left_empty(engine).await;
}

pub(crate) async fn images_and_specs_are_one() {
    let house = House::new().await;
    let engine = house.engine().await;
    engine.run_sandbox(&id("a"), pod("a")).await.expect("made");
    let plain = ContainerSpec {
        name: "plain".to_owned(),
        image: "docker.io/library/busybox:latest".to_owned(),
        log_path: house.log("plain"),
        ..ContainerSpec::default()
    };
    let groups = ContainerSpec {
        groups: vec![7, 2000],
        working_dir: Some("/made/here".to_owned()),
        ..house.shell(
            "groups",
            "id -u; id -G; grep -cw 1001 /proc/self/status; pwd; echo $HOME",
        )
    };
    for (spec, expected) in [
        (plain, "default\n1000\n/data\n"),
        (groups, "1000\n1001 7 2000\n2\n/made/here\n/home/bob\n"),
    ] {
        let name = spec.name.clone();
        let container = engine.create_container(&id("a"), spec).await.expect("made");
        engine.start_container(&container).await.expect("started");
        exit(&engine, &container).await;
        assert_eq!(house.stdout(&name), expected);
        engine.remove_container(&container).await.expect("removed");
        engine.remove_container(&container).await.expect("again");
    }
    let info = engine.image("busybox").await.expect("known");
    assert!(info.has_command && info.user == "bob");
    assert_eq!(
        engine.image(&info.id).await.map(|one| one.id),
        Some(info.id)
    );
    engine.remove_sandbox(&id("a")).await.expect("removed");

    let host = SandboxSpec {
        network: NetworkMode::Host,
        ..pod("host")
    };
    let made = engine.run_sandbox(&id("b"), host).await.expect("made");
    assert!(made.address.is_none());
    engine.remove_sandbox(&id("b")).await.expect("removed");
    house.left_empty(engine).await;
}

pub(crate) async fn what_cannot_be_made() {
    let house = House::new().await;
    let engine = house.engine().await;
    engine.run_sandbox(&id("a"), pod("a")).await.expect("made");
    let again = engine.run_sandbox(&id("a"), pod("a")).await;
    assert!(matches!(again, Err(Error::Exists(_))));
    let bad = engine.run_sandbox(&id("A/.."), pod("a")).await;
    assert!(matches!(bad, Err(Error::Invalid(_))));
    let mut sysctl = pod("b");
    sysctl
        .sysctls
        .insert("kernel.core_pattern".into(), "x".into());
    let error = engine
        .run_sandbox(&id("b"), sysctl)
        .await
        .expect_err("refused");
    assert!(
        error
            .to_string()
            .contains("\"kernel.core_pattern\" is not namespaced"),
        "{error}"
    );

    let create = |change: &dyn Fn(&mut ContainerSpec)| {
        let mut spec = house.shell("c", "true");
        change(&mut spec);
        let engine = engine.clone();
        async move { engine.create_container(&id("a"), spec).await }
    };
    let error = create(&|spec| spec.image = "nginx".into())
        .await
        .expect_err("refused");
    assert_eq!(error.to_string(), "image nginx is not on this machine");
    let error = create(&|spec| spec.user = Some("eve".into()))
        .await
        .expect_err("refused");
    assert_eq!(
        error.to_string(),
        "unable to find user eve: no matching entries in passwd file"
    );
    let error = create(&|spec| spec.stop_signal = Some("NOPE".into()))
        .await
        .expect_err("refused");
    assert_eq!(error.to_string(), "invalid signal: NOPE");
    let error = create(&|spec| spec.security.capabilities_add = vec!["FLY".into()])
        .await
        .expect_err("refused");
    assert_eq!(error.to_string(), "unknown capability \"CAP_FLY\"");
    let nowhere = engine
        .create_container(&id("z"), house.shell("c", "true"))
        .await;
    assert!(matches!(nowhere, Err(Error::SandboxNotFound(_))));
    assert!(
        house.config.images.roots().is_empty(),
        "what fails leaves nothing"
    );

    let container = create(&|spec| spec.command = Some(vec!["foo".into()]))
        .await
        .expect("made");
    let error = engine
        .start_container(&container)
        .await
        .expect_err("refused");
    assert!(matches!(error, Error::Command(_)));
    assert_eq!(
        error.to_string(),
        "exec: \"foo\": executable file not found in $PATH"
    );
    let state = engine.container(&container).await.expect("known").state;
    assert!(
        matches!(&state, ContainerState::Exited { code: 128, message: Some(message), .. }
            if *message == error.to_string()),
        "{state:?}"
    );
    let again = engine.start_container(&container).await;
    assert!(matches!(again, Err(Error::NotRunning(_))), "{again:?}");
    engine.remove_sandbox(&id("a")).await.expect("removed");
    house.left_empty(engine).await;
}

pub(crate) async fn stopping_asks_first() {
    let house = House::new().await;
    let engine = house.engine().await;
    engine.run_sandbox(&id("a"), pod("a")).await.expect("made");
    for (script, grace, expected) in [
        // The image's stop signal.
        (
            "trap 'exit 3' USR1; echo ready; while :; do sleep 0.01; done",
            30,
            3,
        ),
        (
            "trap '' USR1; echo ready; while :; do sleep 0.01; done",
            0,
            137,
        ),
    ] {
        let spec = house.shell("c", script);
        let container = engine.create_container(&id("a"), spec).await.expect("made");
        engine
            .stop_container(&container, Duration::ZERO)
            .await
            .expect("never started");
        engine.start_container(&container).await.expect("started");
        house.wait_for("c", "ready").await;
        let refused = engine.remove_container(&container).await;
        assert!(matches!(refused, Err(Error::Invalid(_))));
        engine
            .stop_container(&container, Duration::from_secs(grace))
            .await
            .expect("stopped");
        let state = engine.container(&container).await.expect("known").state;
        assert_eq!(code(&state), expected);
        engine
            .stop_container(&container, Duration::ZERO)
            .await
            .expect("again");
        engine.remove_container(&container).await.expect("removed");
        std::fs::remove_file(house.log("c")).expect("there");
    }
    engine.remove_sandbox(&id("a")).await.expect("removed");
    house.left_empty(engine).await;
}

pub(crate) async fn a_new_daemon_finds_everything() {
    let house = House::new().await;
    let engine = house.engine().await;
    let made = engine.run_sandbox(&id("a"), pod("a")).await.expect("made");
    engine
        .run_sandbox(&id("stopped"), pod("s"))
        .await
        .expect("made");
    engine.stop_sandbox(&id("stopped")).await.expect("stopped");
    let runs = house.shell("runs", "echo ready; while :; do sleep 600; done");
    let runs = engine.create_container(&id("a"), runs).await.expect("made");
    let created = engine
        .create_container(&id("a"), house.shell("created", "exit 6"))
        .await
        .expect("made");
    engine.start_container(&runs).await.expect("started");
    house.wait_for("runs", "ready").await;
    let before = engine.container(&runs).await.expect("known");
    drop(engine);

    let engine = house.engine().await;
    let sandboxes = engine.sandboxes().await;
    assert_eq!(sandboxes.len(), 2);
    let found = engine.sandbox(&id("a")).await.expect("known");
    assert!(found.alive && found.address == made.address && found.labels == made.labels);
    assert!(!engine.sandbox(&id("stopped")).await.expect("known").alive);
    let after = engine.container(&runs).await.expect("known");
    assert_eq!(after.state, before.state);
    assert_eq!(
        (after.image_id, after.log_path),
        (before.image_id, before.log_path)
    );
    engine
        .start_container(&created)
        .await
        .expect("started by another daemon");
    assert_eq!(code(&exit(&engine, &created).await), 6);
    engine.signal_container(&runs, 9).await.expect("sent");
    assert_eq!(code(&exit(&engine, &runs).await), 137);
    for name in ["a", "stopped"] {
        engine.remove_sandbox(&id(name)).await.expect("removed");
    }
    house.left_empty(engine).await;
}

/// A keeper that cannot be spoken with is asked again, and its containers run on: one that is stopped,
/// and one that has more callers than it takes.
pub(crate) async fn a_silent_keeper_is_not_a_dead_one() {
    use rustix::process::{Pid, Signal, kill_process};

    let house = House::new().await;
    let engine = house.engine().await;
    let directory = |name: &str| house.directory.path().join("run/sandboxes").join(name);
    let (mut containers, mut keepers) = (Vec::new(), Vec::new());
    for name in ["stopped", "crowded", "hopeless"] {
        let made = engine.run_sandbox(&id(name), pod(name)).await;
        made.expect("made");
        let spec = house.shell(name, "echo ready; sleep 600");
        let container = engine.create_container(&id(name), spec).await;
        let container = container.expect("made");
        engine.start_container(&container).await.expect("started");
        house.wait_for(name, "ready").await;
        containers.push(engine.container(&container).await.expect("known"));
        let found = runtime::Keeper::connect(&directory(name)).await;
        keepers.push(Pid::from_raw(found.expect("alive").0.pid()).expect("a number"));
    }
    drop(engine);
    kill_process(keepers[0], Signal::STOP).expect("stopped");
    kill_process(keepers[2], Signal::STOP).expect("stopped");
    let crowd: Vec<_> = (0..16)
        .map(|_| {
            std::os::unix::net::UnixStream::connect(directory("crowded").join("keeper.sock"))
                .expect("somebody listens")
        })
        .collect();

    let engine = house.engine().await;
    for before in &containers {
        assert!(engine.sandbox(&before.sandbox).await.expect("known").alive);
        let after = engine.container(&before.id).await.expect("known");
        assert_eq!(after.state, before.state);
    }
    for before in [&containers[0], &containers[2]] {
        // Nothing is claimed to be done that is not.
        for refused in [
            engine.signal_container(&before.id, 9).await,
            engine.remove_container(&before.id).await,
        ] {
            assert!(refused.is_err(), "{refused:?} of {}", before.name);
        }
    }

    kill_process(keepers[0], Signal::CONT).expect("continued");
    drop(crowd);
    for before in &containers[..2] {
        // It is asked again by and by; nothing tells of its answer but that it works.
        while engine.signal_container(&before.id, 9).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(code(&exit(&engine, &before.id).await), 137);
    }
    // Also what is silent for ever can be removed.
    for before in &containers {
        let removed = engine.remove_sandbox(&before.sandbox).await;
        removed.expect("removed");
    }
    house.left_empty(engine).await;
}

/// Whether it hangs while it is spoken with, or hung already when this daemon began.
pub(crate) async fn what_a_silent_keeper_holds_is_stopped_by_force() {
    use rustix::process::{Pid, Signal, kill_process};

    let house = House::new().await;
    let mut engine = house.engine().await;
    let mut made = Vec::new();
    for name in ["connected", "found", "removed"] {
        let run = engine.run_sandbox(&id(name), pod(name)).await;
        run.expect("made");
        let spec = house.shell(name, "echo ready; sleep 600");
        let container = engine.create_container(&id(name), spec).await;
        let container = container.expect("made");
        engine.start_container(&container).await.expect("started");
        house.wait_for(name, "ready").await;
        let directory = house.directory.path().join("run/sandboxes").join(name);
        let found = runtime::Keeper::connect(&directory).await.expect("alive");
        let keeper = Pid::from_raw(found.0.pid()).expect("a number");
        made.push((id(name), container, keeper));
    }
    kill_process(made[1].2, Signal::STOP).expect("stopped");
    drop(engine);
    engine = house.engine().await;
    kill_process(made[0].2, Signal::STOP).expect("stopped");
    kill_process(made[2].2, Signal::STOP).expect("stopped");
    let grace = Duration::from_millis(10);
    let (connected, found, removed) = futures::join!(
        engine.stop_container(&made[0].1, grace),
        engine.stop_container(&made[1].1, grace),
        // Whoever removes it waits for half a minute.
        tokio::time::timeout(Duration::from_secs(25), engine.remove_sandbox(&made[2].0)),
    );
    connected.expect("stopped");
    found.expect("stopped");
    removed.expect("in time").expect("removed");
    for (sandbox, container, _) in &made[..2] {
        assert_eq!(code(&exit(&engine, container).await), 255);
        assert!(!engine.sandbox(sandbox).await.expect("known").alive);
        engine.remove_container(container).await.expect("removed");
        engine.remove_sandbox(sandbox).await.expect("removed");
    }
    house.left_empty(engine).await;
}

/// What a newer program made is neither guessed at nor killed.
pub(crate) async fn what_is_not_understood_is_left_alone() {
    use rustix::process::{Pid, Signal, kill_process};

    let house = House::new().await;
    let engine = house.engine().await;
    engine.run_sandbox(&id("a"), pod("a")).await.expect("made");
    let spec = house.shell("c", "echo ready; sleep 600");
    let container = engine.create_container(&id("a"), spec).await.expect("made");
    engine.start_container(&container).await.expect("started");
    house.wait_for("c", "ready").await;
    drop(engine);
    let directory = house.directory.path().join("run/sandboxes/a");
    let found = runtime::Keeper::connect(&directory).await.expect("alive");
    let keeper = Pid::from_raw(found.0.pid()).expect("a number");
    // The keeper gives no answer that could be read, and neither does its record.
    kill_process(keeper, Signal::STOP).expect("stopped");
    let record = directory.join("sandbox.json");
    let text = std::fs::read_to_string(&record).expect("readable");
    let newer = text.replacen("\"version\":1,", "\"version\":2,", 1);
    assert_ne!(text, newer);
    // In place: a keeper ends when its record is gone.
    std::fs::write(&record, newer).expect("written");

    let engine = house.engine().await;
    assert!(engine.sandboxes().await.is_empty());
    drop(engine);
    std::fs::write(&record, text).expect("written");
    kill_process(keeper, Signal::CONT).expect("continued");
    let engine = house.engine().await;
    let found = engine.container(&container).await.expect("known");
    assert!(matches!(found.state, ContainerState::Running { .. }));
    engine.remove_sandbox(&id("a")).await.expect("removed");
    house.left_empty(engine).await;
}

pub(crate) async fn a_killed_keeper_is_noticed() {
    let house = House::new().await;
    let engine = house.engine().await;
    let mut containers = Vec::new();
    for name in ["now", "later"] {
        engine
            .run_sandbox(&id(name), pod(name))
            .await
            .expect("made");
        let spec = house.shell(name, "echo ready; sleep 600");
        let container = engine
            .create_container(&id(name), spec)
            .await
            .expect("made");
        engine.start_container(&container).await.expect("started");
        house.wait_for(name, "ready").await;
        containers.push(container);
    }
    let keeper = |name: &str| {
        let socket = house.directory.path().join("run/sandboxes").join(name);
        async move {
            let found = runtime::Keeper::connect(&socket).await.expect("alive");
            found.0.pid()
        }
    };
    let kill = |pid: i32| {
        let pid = rustix::process::Pid::from_raw(pid).expect("a number");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    };
    let mut events = engine.events();
    kill(keeper("now").await);
    loop {
        if let Event::SandboxGone(gone) = events.recv().await.expect("open") {
            assert_eq!(gone, id("now"));
            break;
        }
    }
    let status = engine.sandbox(&id("now")).await.expect("known");
    assert!(!status.alive);
    assert_eq!(code(&status.containers[0].state), 255);
    let refused = engine
        .exec(&containers[0], engine::ExecSpec::default())
        .await;
    assert!(matches!(refused, Err(Error::NotRunning(_))));

    let pid = keeper("later").await;
    drop(engine);
    kill(pid);
    // Who followed it still does in this process, and must not be in the way of who comes next.
    while let Some(event) = events.recv().await {
        if matches!(event, Event::SandboxGone(gone) if gone == id("later")) {
            break;
        }
    }
    let engine = house.engine().await;
    for name in ["now", "later"] {
        let status = engine.sandbox(&id(name)).await.expect("known");
        assert!(!status.alive, "{name}");
        assert_eq!(code(&status.containers[0].state), 255, "{name}");
        engine.remove_sandbox(&id(name)).await.expect("removed");
    }
    house.left_empty(engine).await;
}

pub(crate) async fn keepers_that_do_not_answer_are_noticed() {
    use rustix::process::{Pid, Signal, kill_process};

    let house = House::new().await;
    let engine = house.engine().await;
    engine.health().await.expect("there is nobody to be asked");
    let mut keepers = Vec::new();
    for name in ["one", "two"] {
        engine
            .run_sandbox(&id(name), pod(name))
            .await
            .expect("made");
        let directory = house.directory.path().join("run/sandboxes").join(name);
        let found = runtime::Keeper::connect(&directory).await.expect("alive");
        keepers.push(Pid::from_raw(found.0.pid()).expect("a number"));
    }
    let all = |signal| {
        for keeper in &keepers {
            kill_process(*keeper, signal).expect("signalled");
        }
    };
    engine.health().await.expect("both answer");
    all(Signal::STOP);
    let unwell = engine.health().await;
    kill_process(keepers[0], Signal::CONT).expect("signalled");
    let better = engine.health().await;
    all(Signal::CONT);
    let unwell = unwell.expect_err("nobody answers").to_string();
    assert!(unwell.starts_with("ask the keeper of "), "{unwell}");
    better.expect("one answers");
    for name in ["one", "two"] {
        engine.remove_sandbox(&id(name)).await.expect("removed");
    }
    house.left_empty(engine).await;
}

/// It may be that one's own trouble, and pods are not to be driven away for it.
pub(crate) async fn one_silent_keeper_says_nothing_of_the_others() {
    use rustix::process::{Pid, Signal, kill_process};

    let house = House::new().await;
    let engine = house.engine().await;
    let made = engine.run_sandbox(&id("one"), pod("one")).await;
    made.expect("made");
    let directory = house.directory.path().join("run/sandboxes/one");
    let found = runtime::Keeper::connect(&directory).await.expect("alive");
    let keeper = Pid::from_raw(found.0.pid()).expect("a number");
    kill_process(keeper, Signal::STOP).expect("stopped");
    let while_connected = engine.health().await;
    drop(engine);
    let engine = house.engine().await;
    let when_found = engine.health().await;
    kill_process(keeper, Signal::CONT).expect("continued");
    while_connected.expect("well");
    when_found.expect("well");
    engine.remove_sandbox(&id("one")).await.expect("removed");
    house.left_empty(engine).await;
}

pub(crate) async fn what_is_half_made_goes_away() {
    let house = House::new().await;
    let engine = house.engine().await;
    engine
        .run_sandbox(&id("half"), pod("half"))
        .await
        .expect("made");
    engine
        .run_sandbox(&id("whole"), pod("whole"))
        .await
        .expect("made");
    let spec = house.shell("c", "sleep 600");
    let container = engine
        .create_container(&id("half"), spec)
        .await
        .expect("made");
    engine.start_container(&container).await.expect("started");
    drop(engine);
    let sandboxes = house.directory.path().join("run/sandboxes");
    std::fs::remove_file(sandboxes.join("half/engine.json")).expect("there");
    std::fs::create_dir(sandboxes.join("empty")).expect("made");

    let engine = house.engine().await;
    let found: Vec<_> = engine
        .sandboxes()
        .await
        .into_iter()
        .map(|one| one.id)
        .collect();
    assert_eq!(found, [id("whole")]);
    assert!(!sandboxes.join("half").exists() && !sandboxes.join("empty").exists());
    assert_eq!(house.config.network.attachments().len(), 1);
    engine.remove_sandbox(&id("whole")).await.expect("removed");
    house.left_empty(engine).await;
}

pub(crate) async fn thirty_pods_at_once() {
    let house = House::new().await;
    let engine = house.engine().await;
    let begun = Instant::now();
    let names: Vec<String> = (0..30).map(|number| format!("p{number}")).collect();
    futures::future::join_all(names.iter().map(|name| async {
        engine
            .run_sandbox(&id(name), pod(name))
            .await
            .expect("made");
        let spec = house.shell(name, "echo ready; sleep 600");
        let container = engine
            .create_container(&id(name), spec)
            .await
            .expect("made");
        engine.start_container(&container).await.expect("started");
    }))
    .await;
    println!("  30 pods at once: {:?}", begun.elapsed());
    let mut addresses: Vec<_> = engine
        .sandboxes()
        .await
        .iter()
        .map(|one| one.address)
        .collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 30);
    let begun = Instant::now();
    futures::future::join_all(names.iter().map(|name| async {
        engine.remove_sandbox(&id(name)).await.expect("removed");
    }))
    .await;
    println!("  removed: {:?}", begun.elapsed());
    let mut times = Vec::new();
    for name in names.iter().take(8) {
        let begun = Instant::now();
        engine
            .run_sandbox(&id(name), pod(name))
            .await
            .expect("made");
        let sandbox = begun.elapsed();
        let spec = house.shell("single", "sleep 600");
        let container = engine
            .create_container(&id(name), spec)
            .await
            .expect("made");
        let created = begun.elapsed() - sandbox;
        engine.start_container(&container).await.expect("started");
        times.push((begun.elapsed(), sandbox, created));
        engine.remove_sandbox(&id(name)).await.expect("removed");
    }
    times.sort();
    println!(
        "  one pod (whole, sandbox, create): {:?}",
        times[times.len() / 2]
    );
    house.left_empty(engine).await;
}
