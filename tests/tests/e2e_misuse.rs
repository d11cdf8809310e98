//! Bad input and trouble: one clear error that says what to do, exit code 1, nothing changed and nothing left behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use lb_common::abi::map;
use lb_tests::testbed::scene::{NO_PROBE, SEED, Scene, tcp_service};
use lb_tests::testbed::{DEADLINE, INTERFACE, StatusExt, Testbed, XdpLb, remains};
use lb_userspace::api::Status;
use lb_userspace::dataplane::{Access, Maps};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

fn testbed(label: &str) -> Testbed {
    Testbed::builder()
        .clients(1, 5)
        .backends(2)
        .label(label)
        .build()
        .unwrap()
}

/// A configuration whose backends are up without a server on them.
fn config(testbed: &Testbed, node: &str) -> String {
    [
        testbed.node_config_with(&format!("{SEED}{node}")),
        tcp_service(testbed, "web", 80, "client", NO_PROBE),
        testbed.backend_config(),
    ]
    .concat()
}

/// Asserts that `xdp-lb run` ends with exit code 1 and one error that has all these parts; gives what it said.
#[track_caller]
fn refused(daemon: &XdpLb, wrapper: &[&str], parts: &[&str]) -> String {
    let (code, said) = daemon.run_to_end(wrapper, &[]).unwrap();
    assert_eq!(code, Some(1), "{said}");
    assert_says(&said, parts);
    let errors = said
        .lines()
        .filter(|line| line.starts_with("error") && !line.starts_with("error: 1 error in "))
        .count();
    assert_eq!(errors, 1, "one error:\n{said}");
    said
}

#[track_caller]
fn assert_says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "`{part}` is missing in:\n{said}");
    }
    for noise in ["panicked", "RUST_BACKTRACE", "error: error"] {
        assert!(!said.contains(noise), "`{noise}` in:\n{said}");
    }
}

#[track_caller]
fn assert_nothing_left(testbed: &Testbed) {
    assert_eq!(remains(testbed).unwrap(), Vec::<String>::new());
}

/// Runs a command of the command line that must fail with exit code 1, and checks what it says.
#[track_caller]
fn refused_command(daemon: &XdpLb, arguments: &[&str], parts: &[&str]) {
    let output = daemon.cli(arguments).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_says(&said, parts);
}

#[test]
fn a_configuration_that_cannot_be_used_starts_nothing() {
    let testbed = testbed("config");
    let good = config(&testbed, "");
    let daemon = XdpLb::prepare(&testbed, &good).unwrap();
    let cases: [(&str, String, &[&str]); 6] = [
        (
            "no such interface",
            good.replace("[\"eth0\"]", "[\"eht0\"]"),
            &[
                "no such interface",
                "\"eht0\"",
                "did you mean \"eth0\"?",
                "config.toml:",
            ],
        ),
        (
            "a backend outside every subnet",
            good.replace("10.77.1.11", "192.0.2.11"),
            &[
                "\"b1\" is in no subnet",
                "192.0.2.11",
                "10.77.0.0/16",
                "config.toml:",
            ],
        ),
        (
            "a half-written file",
            good[..good.len() - 12].to_owned(),
            &["config.toml:"],
        ),
        ("an empty file", String::new(), &["config.toml", "[node]"]),
        (
            "a misspelt key",
            good.replace("affinity =", "afinity ="),
            &[
                "unknown key `afinity`",
                "did you mean `affinity`?",
                "config.toml:",
            ],
        ),
        (
            "the director's own address as a VIP",
            good.replace(
                &format!("vip = \"{}\"", testbed.vip()),
                &format!("vip = \"{}\"", testbed.director().address()),
            ),
            &["10.77.0.2", "eth0"],
        ),
    ];
    for (what, text, parts) in cases {
        assert_ne!(text, good, "{what}: the case is not what it says");
        daemon.write_config(&text).unwrap();
        refused(&daemon, &[], parts);
        assert_nothing_left(&testbed);
    }

    // No file, and something that is no file.
    fs::remove_file(daemon.config()).unwrap();
    refused(&daemon, &[], &["config.toml"]);
    fs::create_dir(daemon.config()).unwrap();
    refused(&daemon, &[], &["config.toml"]);
    fs::remove_dir(daemon.config()).unwrap();
    assert_nothing_left(&testbed);

    // The file of decisions is damaged: it is not taken for an empty one, and it stays as it is.
    daemon.write_config(&good).unwrap();
    let state = testbed.director().directory().join("state.json");
    let damaged = "{\"version\":1,\"decis";
    fs::write(&state, damaged).unwrap();
    refused(&daemon, &[], &["state.json", "move it away"]);
    assert_eq!(fs::read_to_string(&state).unwrap(), damaged);
    assert_nothing_left(&testbed);
    fs::remove_file(&state).unwrap();

    // Decisions cannot be kept, which shows only when the data path is there: it goes again.
    let nowhere = good
        .replace(SEED, "")
        .replace(&state.display().to_string(), "/proc/xdp-lb/state.json");
    daemon.write_config(&nowhere).unwrap();
    refused(&daemon, &[], &["/proc/xdp-lb/state.json"]);
    assert_nothing_left(&testbed);
}

#[test]
fn without_root_it_says_so() {
    let testbed = testbed("nobody");
    let daemon = XdpLb::prepare(&testbed, &config(&testbed, "")).unwrap();
    // A copy where everybody may come to: the sources may lie in somebody's closed home.
    let open = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir()
        .unwrap();
    let copy = open.path().join("xdp-lb");
    fs::copy(daemon.binary(), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let config = open.path().join("config.toml");
    fs::copy(daemon.config(), &config).unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o644)).unwrap();
    let as_nobody = |arguments: &[&str]| {
        let output = testbed
            .director()
            .command("setpriv")
            .unwrap()
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&copy)
            .args(arguments)
            .arg("--config")
            .arg(&config)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    let (code, said) = as_nobody(&["run"]);
    assert_eq!(code, Some(1), "{said}");
    assert_says(&said, &["needs root", "CAP_BPF", "sudo"]);
    assert_nothing_left(&testbed);

    // A daemon that runs is not touched, and is asked by root alone.
    let mut daemon = daemon;
    daemon.restart().unwrap();
    let (code, said) = as_nobody(&["status"]);
    assert_eq!(code, Some(1), "{said}");
    assert_says(&said, &["root"]);
    let (code, said) = as_nobody(&["bench"]);
    assert_eq!(code, Some(1), "{said}");
    assert_says(&said, &["needs root"]);
    let (code, said) = as_nobody(&["run"]);
    assert_eq!(code, Some(1), "{said}");
    assert_says(&said, &["needs root"]);
    assert!(daemon.status().unwrap().all_up());
}

#[test]
fn an_interface_without_native_xdp_is_refused_or_falls_back_and_says_so() {
    let testbed = testbed("generic");
    let director = testbed.director();
    // A bridge's driver has no XDP of its own.
    director
        .run("ip", &["link", "add", "slow0", "type", "bridge"])
        .unwrap();
    director
        .run("ip", &["address", "add", "10.99.0.1/24", "dev", "slow0"])
        .unwrap();
    director.run("ip", &["link", "set", "slow0", "up"]).unwrap();
    let config = |mode: &str| {
        config(&testbed, &format!("xdp_mode = \"{mode}\"\n"))
            .replace("[\"eth0\"]", "[\"slow0\"]")
            .replace("10.77.1.", "10.99.0.")
    };
    let mut daemon = XdpLb::prepare(&testbed, &config("native")).unwrap();
    refused(
        &daemon,
        &[],
        &["slow0", "no native XDP", "xdp_mode = \"auto\"", "generic"],
    );
    assert_nothing_left(&testbed);

    daemon.write_config(&config("auto")).unwrap();
    daemon.spawn(&["--detach-on-exit"]).unwrap();
    let status = daemon.wait_for("an answer", |_| true).unwrap();
    assert_eq!(status.node.interfaces[0].name, "slow0");
    assert_eq!(status.node.interfaces[0].mode, "generic");
    let log = fs::read_to_string(daemon.log_path()).unwrap();
    let warning = log
        .lines()
        .find(|line| line.contains("WARN") && line.contains("generic XDP"))
        .unwrap_or_else(|| panic!("no warning in:\n{log}"));
    assert_says(warning, &["slow0", "several times the time of native XDP"]);
    daemon.terminate().unwrap();
    assert_nothing_left(&testbed);
}

#[test]
fn another_xdp_program_is_named_and_left_alone() {
    let testbed = testbed("occupied");
    let foreign = testbed.occupy_director("firewall").unwrap();
    let link = || {
        let shown = testbed
            .director()
            .run("ip", &["-oneline", "-details", "link", "show", "eth0"])
            .unwrap();
        String::from_utf8(shown.stdout).unwrap()
    };
    let shown = link();
    let id = shown
        .split_once("prog/xdp id ")
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .unwrap_or_else(|| panic!("no program in {shown}"))
        .to_owned();
    let mut daemon = XdpLb::prepare(&testbed, &config(&testbed, "")).unwrap();
    refused(
        &daemon,
        &[],
        &[
            "eth0",
            "already has an XDP program",
            "firewall",
            &format!("(id {id})"),
            "xdp off",
        ],
    );
    assert_eq!(link(), shown, "the other program is still there");
    let left = remains(&testbed).unwrap();
    assert!(left.iter().all(|one| one.starts_with("XDP")), "{left:?}");
    // Without it all is well.
    drop(foreign);
    daemon.restart().unwrap();
}

#[test]
fn a_missing_bpf_file_system_is_mounted_or_asked_for() {
    let testbed = testbed("bpffs");
    let good = config(&testbed, "");
    let pins = testbed.pin_path();
    let elsewhere = testbed.director().directory().join("pins");
    let daemon = XdpLb::prepare(
        &testbed,
        &good.replace(
            &pins.display().to_string(),
            &elsewhere.display().to_string(),
        ),
    )
    .unwrap();
    refused(
        &daemon,
        &[],
        &[
            "pins is not on a BPF file system",
            "mount -t bpf bpf",
            "/sys/fs/bpf",
        ],
    );
    assert!(!elsewhere.exists());
    assert_nothing_left(&testbed);

    // In mounts of its own, without the BPF file system in its usual place.
    daemon.write_config(&good).unwrap();
    let script = "while umount /sys/fs/bpf 2>/dev/null; do :; done; exec \"$@\"";
    let log = testbed.director().directory().join("private.log");
    let file = fs::File::create(&log).unwrap();
    let mut private = testbed
        .director()
        .command("unshare")
        .unwrap()
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            script,
            "sh",
        ])
        .arg(daemon.binary())
        .args(["run", "--detach-on-exit", "--config"])
        .arg(daemon.config())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .spawn()
        .unwrap();
    let mut daemon = daemon;
    let status = daemon.wait_for("that all backends are up", StatusExt::all_up);
    let said = fs::read_to_string(&log).unwrap();
    let mounts =
        fs::read_to_string(format!("/proc/{}/mountinfo", private.id())).unwrap_or_default();
    let ended = nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(private.id().cast_signed()),
        nix::sys::signal::Signal::SIGTERM,
    );
    let code = private.wait().unwrap();
    ended.unwrap();
    status.unwrap_or_else(|error| panic!("{error}\n{said}"));
    assert_eq!(code.code(), Some(0), "{said}");
    assert!(
        said.contains("mounted the BPF file system") && said.contains("/sys/fs/bpf"),
        "{said}"
    );
    let mounted = mounts
        .lines()
        .filter(|line| line.contains(" /sys/fs/bpf "))
        .count();
    assert_eq!(mounted, 1, "{mounts}");
    assert_nothing_left(&testbed);
}

/// A second configuration beside the first, with other names for what `differs`.
fn beside(first: &XdpLb, text: &str, name: &str, changes: &[(&str, String)]) -> std::path::PathBuf {
    let mut text = text.to_owned();
    for (from, to) in changes {
        assert!(text.contains(from), "{from} is not in the file");
        text = text.replace(from, to);
    }
    let path = first.config().with_file_name(name);
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_second_daemon_touches_nothing_of_the_first() {
    let testbed = testbed("second");
    let text = config(&testbed, "");
    let mut first = XdpLb::start(&testbed, &text).unwrap();
    let pid = first.pid().unwrap().to_string();
    let before = first
        .wait_for("that all slots settle", |status| {
            status.services[0].slots_in_transition == 0
        })
        .unwrap();
    let all = remains(&testbed).unwrap();
    let run = |config: &Path| {
        let output = testbed
            .director()
            .command(first.binary())
            .unwrap()
            .args(["run", "--config"])
            .arg(config)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };

    // The same file: the same socket.
    let (code, said) = run(first.config());
    assert_eq!(code, Some(1), "{said}");
    assert_says(
        &said,
        &["already running", &format!("pid {pid}"), "control.sock"],
    );

    // Another socket, the same pins.
    let files = testbed.director().directory();
    let other = beside(
        &first,
        &text,
        "same-pins.toml",
        &[
            ("control.sock", "other.sock".into()),
            ("state.json", "other.json".into()),
        ],
    );
    let (code, said) = run(&other);
    assert_eq!(code, Some(1), "{said}");
    assert_says(&said, &["another xdp-lb", "xdp-lb-second", "pin_path"]);
    assert!(!files.join("other.sock").exists() && !files.join("other.json").exists());

    // Another socket and other pins, the same interface: the program there is not its own.
    let pins = format!("{}-other", testbed.pin_path().display());
    let other = beside(
        &first,
        &text,
        "same-interface.toml",
        &[
            ("control.sock", "other.sock".into()),
            ("state.json", "other.json".into()),
            (&testbed.pin_path().display().to_string(), pins.clone()),
        ],
    );
    let (code, said) = run(&other);
    assert_eq!(code, Some(1), "{said}");
    assert_says(&said, &["eth0", "already has an XDP program", "xdp_lb"]);
    assert!(!Path::new(&pins).exists() && !files.join("other.sock").exists());

    let after = first.status().unwrap();
    assert_eq!(after.node, before.node);
    assert_eq!(after.services, before.services);
    assert_eq!(remains(&testbed).unwrap(), all);
    first.terminate().unwrap();
}

#[test]
fn pins_that_are_not_ours_are_left_alone() {
    let mut scene = Scene::of_one_service(testbed("pins")).unwrap();
    let sources = scene.testbed.host("c1").sources().to_vec();
    let homes = scene.homes(&sources).unwrap();
    scene.daemon.terminate().unwrap();
    let all = remains(&scene.testbed).unwrap();
    let pins = scene.testbed.pin_path();

    // Of another version, as an older or newer xdp-lb would have left them.
    let maps = Maps::open_pinned(&pins, Access::Write).unwrap();
    let version = maps.control().abi.get();
    maps.control().abi.set(version + 41);
    let pinned = pins.display().to_string();
    let found = format!("version {}", version + 41);
    refused(&scene.daemon, &[], &[&pinned, &found, "rm -r"]);
    assert_eq!(remains(&scene.testbed).unwrap(), all);
    assert_eq!(maps.control().abi.get(), version + 41, "not written to");
    assert_eq!(scene.homes(&sources).unwrap(), homes, "it forwards on");
    maps.control().abi.set(version);
    drop(maps);

    // Another map in the place of one of ours: the wrong layout, and no map of that name at all.
    let directory = lb_userspace::dataplane::layout::maps_dir(&pins);
    let (control, aside) = (directory.join(map::CONTROL), directory.join("aside"));
    fs::rename(&control, &aside).unwrap();
    fs::rename(directory.join(map::VERDICTS), &control).unwrap();
    refused(&scene.daemon, &[], &[map::CONTROL, "pinned", "remove it"]);
    assert_eq!(remains(&scene.testbed).unwrap(), all);
    assert_eq!(scene.homes(&sources).unwrap(), homes, "it forwards on");
    fs::rename(&control, directory.join(map::VERDICTS)).unwrap();
    fs::rename(&aside, &control).unwrap();

    // Put right again, it is taken over.
    scene.daemon.restart().unwrap();
    assert_eq!(scene.homes(&sources).unwrap(), homes);
}

#[test]
fn without_a_daemon_every_question_says_how_to_start_it() {
    let testbed = testbed("down");
    let mut daemon = XdpLb::prepare(&testbed, &config(&testbed, "")).unwrap();
    let pinned: [&[&str]; 3] = [
        &["maps"],
        &["flows"],
        &["where", "10.78.0.1", "10.77.0.100:80"],
    ];
    for question in pinned {
        refused_command(
            &daemon,
            question,
            &["no maps are pinned", "xdp-lb-down", "xdp-lb run"],
        );
    }
    let orders: [&[&str]; 6] = [
        &["status"],
        &["status", "--json"],
        &["drain", "b1"],
        &["resume", "b1"],
        &["fail", "b1"],
        &["reload"],
    ];
    for order in orders {
        refused_command(
            &daemon,
            order,
            &["not running", "control.sock", "xdp-lb run"],
        );
    }
    // A socket that a killed daemon left is no daemon either, and does not keep the next one from starting.
    daemon.restart().unwrap();
    daemon.kill9().unwrap();
    for order in orders {
        refused_command(
            &daemon,
            order,
            &["not running", "control.sock", "xdp-lb run"],
        );
    }
    daemon.restart().unwrap();
    refused_command(
        &daemon,
        &["drain", "bb1"],
        &["`bb1`", "did you mean", "`b1`"],
    );
    refused_command(&daemon, &["drain", "mail7"], &["`mail7`", "`b1`", "`b2`"]);
    assert!(daemon.status().unwrap().all_up());

    // Wrong usage is something else.
    let wrong = daemon.cli(&["drian", "b1"]).unwrap();
    assert_eq!(wrong.status.code(), Some(2));
}

/// The director's MAC address changes while the daemon can open no file. It tries again until it can, and the VIP is then at the
/// new address.
#[test]
fn a_change_of_the_network_that_cannot_be_read_is_followed_when_it_can() {
    const NEW: &str = "02:00:00:00:77:01";
    let mut scene = Scene::of_one_service(testbed("fewfiles")).unwrap();
    let pid = scene
        .daemon
        .pid()
        .and_then(|pid| Pid::from_raw(pid.cast_signed()));
    let limit = |files| {
        let wanted = Rlimit {
            current: files,
            // Of this process as well, whose child it is.
            maximum: getrlimit(Resource::Nofile).maximum,
        };
        prlimit(pid, Resource::Nofile, wanted).unwrap().current
    };
    let before = limit(Some(3));
    scene
        .testbed
        .director()
        .run("ip", &["link", "set", INTERFACE, "address", NEW])
        .unwrap();
    let wait_until_it_says = |scene: &mut Scene, said: &str| {
        let deadline = Instant::now() + DEADLINE;
        while !fs::read_to_string(scene.daemon.log_path())
            .unwrap()
            .contains(said)
        {
            scene.daemon.check_running().unwrap();
            assert!(Instant::now() < deadline, "`{said}` is missing");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    wait_until_it_says(&mut scene, "it is tried again");
    limit(before);
    wait_until_it_says(&mut scene, "was followed at last");
    scene
        .daemon
        .wait_for("that all backends are up", Status::all_up)
        .unwrap();
    let client = scene.testbed.host("c1");
    let vip = scene.testbed.vip().to_string();
    client.run("ip", &["neighbour", "flush", &vip]).unwrap();
    scene.who(client.sources()[0], 80).unwrap();
    let learned = client.run("ip", &["neighbour", "show", &vip]).unwrap();
    let learned = String::from_utf8(learned.stdout).unwrap();
    assert!(learned.contains(NEW), "{learned}");
}
