//! The commands against a running daemon, and without one: a director and a host with two backends' addresses, joined
//! by a veth pair. Needs root, and fails without.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use aya::programs::{TestRun as _, TestRunOptions};
use lb_common::{
    features::Features,
    wire::{ETH_LEN, IPV4_LEN, TCP_FLAGS},
};
use lb_userspace::dataplane::{
    Access, Instance, Maps, Sizes, attach,
    explain::{Arrival, Kind, Question, explain, frame},
    load,
};
use serde_json::Value;

/// Nothing here takes long; this only ends a test whose event never comes.
const NEVER: Duration = Duration::from_secs(60);
const VIP: &str = "10.9.0.100";
/// A client of `slow`, an address of the backends' host.
const KNOCKER: &str = "10.9.0.77";
const DIRECTOR_MAC: [u8; 6] = [0x02, 0, 0, 0, 0x09, 0x02];

/// Two services on the same backends: one whose flows are given up after a second, one whose flows are kept.
const CONFIG: &str = r#"
[node]
name = "test"
interfaces = ["eth0"]
pin_path = "PINS"
[control]
socket = "DIR/control.sock"
http = "off"
state = "DIR/state.json"

[[service]]
name = "quick"
vip = "10.9.0.100"
protocol = "tcp"
ports = [80]
flow_idle = "1s"
probe = { type = "none" }
backend = [{ name = "b1", address = "10.9.0.11" }, { name = "b2", address = "10.9.0.12" }]

[[service]]
name = "slow"
vip = "10.9.0.100"
protocol = "tcp"
ports = [81, "8000-8010"]
affinity = "client"
flow_idle = "15m"
probe = { type = "none" }
backend = [{ name = "b1", address = "10.9.0.11" }, { name = "b3", address = "10.9.0.12" }]
"#;

fn sh(command: &str) {
    let output = Command::new("sh")
        .args(["-ec", command])
        .output()
        .expect("a shell");
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Two hosts, a directory, pins, and perhaps a daemon. Dropped, all of it vanishes.
struct Site {
    director: String,
    backends: String,
    pins: PathBuf,
    dir: tempfile::TempDir,
    daemon: Option<Child>,
}

impl Site {
    fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test makes network namespaces and loads BPF programs, which needs root: run it with sudo"
        );
        let id = std::process::id();
        let site = Self {
            director: format!("cl-d-{id}"),
            backends: format!("cl-b-{id}"),
            pins: PathBuf::from(format!("/sys/fs/bpf/cl-{id}")),
            dir: tempfile::TempDir::new().expect("a directory"),
            daemon: None,
        };
        let (d, b) = (&site.director, &site.backends);
        sh(&format!(
            "ip netns add {d}; ip netns add {b}
             ip -n {d} link add eth0 address 02:00:00:00:09:02 type veth peer name eth0 netns {b}
             ip -n {b} link set eth0 address 02:00:00:00:09:11
             ip -n {d} address add 10.9.0.2/24 dev eth0
             ip -n {b} address add 10.9.0.11/24 dev eth0; ip -n {b} address add 10.9.0.12/24 dev eth0
             ip -n {b} address add 10.9.0.77/24 dev eth0
             for h in {d} {b}; do ip -n $h link set lo up; ip -n $h link set eth0 up; done"
        ));
        let text = CONFIG
            .replace("PINS", &site.pins.display().to_string())
            .replace("DIR", &site.dir.path().display().to_string());
        std::fs::write(site.config(), text).expect("written");
        site
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("config.toml")
    }

    fn on(&self, host: &str, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        // Not `ip netns exec`, whose own /sys would hide the pins.
        command.arg(format!("--net=/run/netns/{host}")).arg(program);
        command
    }

    fn xdp_lb(&self, line: &str) -> Command {
        let mut command = self.on(&self.director, env!("CARGO_BIN_EXE_xdp-lb"));
        command
            .arg("--config")
            .arg(self.config())
            .args(line.split_whitespace());
        command
    }

    fn run(&self, line: &str) -> (i32, String, String) {
        let Output {
            status,
            stdout,
            stderr,
        } = self.xdp_lb(line).output().expect("it runs");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (
            status.code().expect("an exit code"),
            text(stdout),
            text(stderr),
        )
    }

    fn done(&self, line: &str) -> String {
        let (code, stdout, stderr) = self.run(line);
        assert_eq!(code, 0, "{line}: {stdout}{stderr}");
        stdout
    }

    fn failed(&self, line: &str) -> String {
        let (code, stdout, stderr) = self.run(line);
        assert_eq!(code, 1, "{line}: {stdout}{stderr}");
        assert!(stderr.starts_with("error: "), "{line}: {stderr}");
        stderr
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.done(&format!("{line} --json"))).expect("JSON")
    }

    fn start(&mut self) {
        let log = std::fs::File::create(self.dir.path().join("log")).expect("a log");
        let mut command = self.xdp_lb("run");
        let daemon = command
            .stderr(log)
            .stdout(Stdio::null())
            .spawn()
            .expect("it starts");
        let pid = daemon.id();
        self.daemon = Some(daemon);
        self.wait_for("both backends of both services up", |site| {
            let log = || std::fs::read_to_string(site.dir.path().join("log")).unwrap_or_default();
            let daemon = PathBuf::from("/proc").join(pid.to_string()).join("exe");
            assert!(
                daemon.read_link().is_ok(),
                "the daemon has ended:\n{}",
                log()
            );
            let (code, stdout, _) = site.run("status --json");
            code == 0 && stdout.matches(r#""state": "up""#).count() == 4
        });
    }

    fn wait_for(&self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            let log = || std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(start.elapsed() < NEVER, "never: {what}\n{}", log());
            sleep(Duration::from_millis(50));
        }
    }

    fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // nsenter becomes the program, so this is the daemon itself.
            daemon.kill().expect("killed");
            daemon.wait().expect("ended");
        }
    }

    /// Opens a connection that nobody answers: the veth's other end has no XDP program that would take the packets
    /// back. The director has seen its SYN by then.
    fn knock(&self, port: u16) {
        let script = format!("timeout 0.3 bash -c '</dev/tcp/{VIP}/{port}' || true");
        let status = self
            .on(&self.backends, "bash")
            .args(["-c", &script])
            .stderr(Stdio::null())
            .status();
        assert!(status.expect("it runs").success());
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.kill();
        // One that was never made can't be removed; the test has failed then already.
        let _ = attach::remove_pins(&self.pins);
        for host in [&self.director, &self.backends] {
            let _ = Command::new("ip").args(["netns", "del", host]).output();
        }
    }
}

/// The backends that clients go to, by `where`.
fn picks(site: &Site, service: &str, clients: &[&str]) -> BTreeMap<String, Value> {
    clients
        .iter()
        .map(|client| {
            (
                (*client).to_owned(),
                site.json(&format!("where {client} {service}")),
            )
        })
        .collect()
}

const CLIENTS: [&str; 12] = [
    "10.1.0.1:1000",
    "10.1.0.2:1000",
    "10.1.0.3:1000",
    "10.1.0.4:1000",
    "10.1.0.5:1000",
    "10.1.0.6:1000",
    "10.2.0.1:2000",
    "10.2.0.2:2000",
    "10.2.0.3:2000",
    "10.2.0.4:2000",
    "10.2.0.5:2000",
    "10.2.0.6:2000",
];

#[test]
fn commands_with_and_without_the_daemon() {
    let mut site = Site::new();

    // Nothing there yet.
    assert!(site.failed("status").contains("the daemon is not running"));
    assert!(site.failed("maps").contains("no maps are pinned"));
    let (code, stdout, _) = site.run("check --json");
    let report: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((code, &report["ok"]), (0, &Value::Bool(true)), "{stdout}");

    site.start();
    status(&site);
    refusals(&site);
    // The one that came up second was added to the one that came up first.
    site.wait_for("the slots of quick settled", |site| {
        site.json("status quick")["services"][0]["slots_in_transition"] == 0
    });
    let before = picks(&site, "10.9.0.100:80", &CLIENTS);
    settled(&site, &before);
    same_as_the_kernel(&site);
    drain(&site, &before);

    // What was drained and what was recorded outlives the daemon.
    site.kill();
    assert!(site.failed("status").contains("the daemon is not running"));
    assert!(site.failed("drain b1").contains("systemctl start xdp-lb"));
    without_daemon(&site);
}

fn status(site: &Site) {
    let status = site.json("status");
    assert_eq!(status["node"]["name"], "test");
    assert_eq!(
        status["services"][1]["ports"],
        serde_json::json!(["81", "8000-8010"])
    );
    let table = site.done("status quick");
    assert!(
        table.contains("quick") && table.contains("b2") && !table.contains("slow"),
        "{table}"
    );
    assert!(
        !table.contains('\x1b'),
        "no colours where there is no terminal"
    );

    // Half a table is read, then the pipe is closed: no panic, and no error either.
    let mut head = site
        .xdp_lb("status --watch=0.1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    drop(head.stdout.take());
    assert!(head.wait().expect("it ends").success());
}

fn refusals(site: &Site) {
    let error = site.failed("status quik");
    assert!(error.contains("did you mean quick?"), "{error}");
    let error = site.failed("drain b11");
    assert!(error.contains("did you mean `b1`"), "{error}");
    let error = site.failed("flows --backend b11");
    assert!(error.contains("did you mean b1"), "{error}");
    let error = site.failed("maps slotz");
    assert!(error.contains("did you mean SLOTS"), "{error}");
    let error = site.failed("run");
    assert!(error.contains("is already running (pid "), "{error}");
    let error = site.failed(&format!("where 10.1.0.1 {VIP}:80"));
    assert!(
        error.contains("the client's port takes part in the pick"),
        "{error}"
    );
    site.done(&format!("where 10.1.0.1 {VIP}:81"));
    assert_eq!(site.run("where 10.1.0.1").0, 2);

    // A file that is being edited is no reason not to drain; a reload of it is refused.
    let good = std::fs::read_to_string(site.config()).expect("there");
    std::fs::write(
        site.config(),
        format!("{good}\n[[service]]\nnam = \"half\nthing"),
    )
    .expect("written");
    let (code, _, stderr) = site.run("status");
    assert!(code == 0 && stderr.contains("warning: "), "{stderr}");
    let error = site.failed_with_place("reload");
    assert!(error.contains("nothing was changed"), "{error}");
    std::fs::write(site.config(), good).expect("written");
    assert!(site.done("reload").contains("nothing changed"));
}

impl Site {
    /// Fails with rendered configuration errors, which begin with "error" as well, but name the line.
    fn failed_with_place(&self, line: &str) -> String {
        let (code, stdout, stderr) = self.run(line);
        assert_eq!(code, 1, "{line}: {stdout}{stderr}");
        assert!(
            stderr.starts_with("error") && stderr.contains("config.toml:"),
            "{stderr}"
        );
        stderr
    }
}

fn settled(site: &Site, before: &BTreeMap<String, Value>) {
    let backends: BTreeSet<&str> = before
        .values()
        .filter_map(|answer| answer["backend"].as_str())
        .collect();
    assert_eq!(
        backends,
        BTreeSet::from(["b1", "b2"]),
        "twelve clients reach both"
    );
    for answer in before.values() {
        assert_eq!(answer["verdict"], "forwarded");
        assert_eq!(answer["service"], "quick");
        assert_eq!(answer["mac"], "02:00:00:00:09:11");
        assert_eq!(answer["interface"], "eth0");
        assert!(
            answer["slot"].is_u64() && answer.get("established").is_none(),
            "{answer}"
        );
        let steps: Vec<&str> = answer["steps"]
            .as_array()
            .expect("steps")
            .iter()
            .filter_map(|step| step["step"].as_str())
            .collect();
        assert_eq!(
            steps,
            [
                "service", "affinity", "hash", "slot", "backend", "rewrite", "way", "verdict"
            ]
        );
    }
    let other = site.json(&format!("where 10.1.0.1:1 {VIP}:82"));
    assert_eq!(other["verdict"], "unserved");
    let other = site.json("where 10.1.0.1:1 10.9.0.1:80");
    assert_eq!(other["verdict"], "not_ours");
    // The same client on any of a service's ports, and from any port: affinity `client`.
    let answers = [("1", "81"), ("2", "8000"), ("3", "8010")].map(|(from, to)| {
        site.json(&format!("where 10.3.0.1:{from} {VIP}:{to}"))["backend"].clone()
    });
    assert!(
        answers.iter().all(|answer| *answer == answers[0]),
        "{answers:?}"
    );
}

/// `where` says what the kernel does: the program itself, over the same maps and the same packets.
fn same_as_the_kernel(site: &Site) {
    let maps = Maps::open_pinned(&site.pins, Access::Read).expect("pinned");
    let instance = Instance {
        mac: DIRECTOR_MAC,
        port: 0,
        unserved_pass: false,
        flow_buckets: 1 << maps.flow_bits(),
        flow6_buckets: 1 << maps.flow6_bits(),
        fragment_buckets: 1 << maps.fragment_bits(),
        features: Features::ALL_FORWARDING,
        cluster_mac: [0; 6],
    };
    let mut object = load::load(Some(&site.pins), &Sizes::default(), &instance).expect("loaded");
    let xdp = attach::xdp_program(&mut object).expect("the program");
    xdp.load().expect("verified");
    let mut reached = BTreeSet::new();
    for client in 0_u32..500 {
        let port = [80, 81, 82, 8005][client as usize % 4];
        let question = Question {
            client: SocketAddr::new(
                Ipv4Addr::from_bits(0x0a01_0000 + client * 7).into(),
                1024 + client as u16,
            ),
            service: SocketAddr::new(VIP.parse().expect("an address"), port),
            kind: if client % 2 == 0 {
                Kind::TcpOpens
            } else {
                Kind::TcpContinues
            },
            unserved_pass: false,
            arrival: Arrival::default(),
        };
        let told = explain(&maps, &question).expect("told");
        let packet = frame(&question, DIRECTOR_MAC);
        let mut out = vec![0; packet.len()];
        let options = TestRunOptions {
            data_in: Some(&packet),
            data_out: Some(&mut out),
            repeat: 1,
            ..TestRunOptions::default()
        };
        let result = xdp.test_run(options).expect("run");
        let tx = aya_tx();
        assert_eq!(
            result.return_value == tx,
            told.verdict.reached_backend(),
            "{question:?}"
        );
        if let Some(destination) = told.destination {
            assert_eq!(out[..6], destination, "{question:?}");
            assert_eq!(
                out[6..12],
                told.source.expect("with its source"),
                "{question:?}"
            );
        }
        assert_eq!(
            out[ETH_LEN + IPV4_LEN + TCP_FLAGS],
            packet[ETH_LEN + IPV4_LEN + TCP_FLAGS]
        );
        reached.insert(told.verdict.name());
    }
    assert_eq!(reached, BTreeSet::from(["forwarded", "unserved"]));
}

/// `XDP_TX` of `linux/bpf.h`.
const fn aya_tx() -> u32 {
    3
}

/// The backend of `slow` that the knocker's slot names, and the other one: with the first drained, that slot is in
/// transition.
fn first_and_second(site: &Site) -> (String, String) {
    let answer = site.json(&format!("where {KNOCKER} {VIP}:81"));
    match answer["backend"].as_str() {
        Some("b1") => ("b1".to_owned(), "b3".to_owned()),
        _ => ("b3".to_owned(), "b1".to_owned()),
    }
}

fn drain(site: &Site, before: &BTreeMap<String, Value>) {
    // The flows of `slow` are kept for a quarter of an hour.
    let (first, second) = first_and_second(site);
    let said = site.done(&format!("drain {first} --service slow --timeout 1h"));
    assert!(said.contains("up -> draining"), "{said}");
    assert!(said.contains("flows that are left at 20"), "{said}");
    let until = |site: &Site| {
        let status = site.json("status slow");
        let backends = status["services"][0]["backends"].as_array().cloned();
        let backends = backends.expect("backends").into_iter();
        let mut found = backends.filter(|backend| backend["name"] == first.as_str());
        found.next().expect("it is listed")["drain_until"].clone()
    };
    assert!(until(site).is_string(), "{}", until(site));
    let said = site.done(&format!("drain {first} --service slow"));
    assert!(said.contains("nothing to do"), "{said}");
    assert!(
        until(site).is_string(),
        "an order without a timeout leaves it"
    );
    let said = site.done(&format!("drain {first} --service slow --timeout none"));
    assert!(said.contains("its flows end by themselves"), "{said}");
    assert!(until(site).is_null(), "{}", until(site));

    // Two packets of one flow in a slot in transition: what opens it is recorded.
    sh(&format!(
        "ip -n {} route add {VIP}/32 via 10.9.0.2 src {KNOCKER}",
        site.backends
    ));
    site.wait_for("a flow in a slot in transition", |site| {
        site.knock(81);
        let flows = site.json("flows --service slow --client 10.9.0.77");
        flows["total"].as_u64() > Some(0)
    });
    let flows = site.json("flows --service slow --client 10.9.0.77");
    let flow = &flows["flows"][0];
    for field in ["client", "vip", "service", "backend", "phase", "silent_s"] {
        assert!(flow.get(field).is_some(), "no {field} in {flow}");
    }
    assert_eq!(
        (&flow["vip"], &flow["backend"]),
        (&"10.9.0.100:81".into(), &second.as_str().into())
    );

    // Where a slot is in transition, the two kinds of packets part.
    let moved = (1..=40).map(|n| site.json(&format!("where 10.4.0.{n}:9 {VIP}:81")));
    let parted: Vec<Value> = moved
        .filter(|answer| answer.get("established").is_some())
        .collect();
    assert!(
        !parted.is_empty(),
        "a drain of one of two puts about half of the slots in transition"
    );
    for answer in &parted {
        assert_eq!(
            (&answer["backend"], &answer["established"]["backend"]),
            (&second.as_str().into(), &first.as_str().into())
        );
    }
    let words = site.done(&format!("where {}", words_of(&parted[0])));
    assert!(
        words.contains("the packet opens a flow") && words.contains("older than the change"),
        "{words}"
    );

    // Those of `quick` are given up after a second, and have no time that is up before.
    let text = site.done("drain b1 --service quick --wait --timeout 50s");
    assert!(text.contains("b1 is drained after"), "{text}");
    assert!(text.contains("no flow is left"), "{text}");
    for (client, answer) in picks(site, "10.9.0.100:80", &CLIENTS) {
        assert_eq!(answer["backend"], "b2", "{client}");
    }
    // The last one is kept, unless it is forced.
    assert!(site.failed("drain b2").contains("--force"));
    site.done("resume b1 --service quick");
    let after = picks(site, "10.9.0.100:80", &CLIENTS);
    for (client, answer) in before {
        assert_eq!(
            after[client]["backend"], answer["backend"],
            "{client} is back where it was"
        );
    }
    // Both backends have one priority: there is nothing to go back to.
    assert!(site.done("failback quick").contains("nothing to do"));
    let object = site.json("failback quick");
    assert_eq!(object["changes"].as_array().map(Vec::len), Some(0));
    assert!(
        site.failed("failback qick")
            .contains("did you mean `quick`?")
    );
    // A drain that is taken back while somebody waits for it.
    let waiting = site
        .xdp_lb(&format!("drain {second} --service slow --force --wait"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    site.wait_for("both draining", |site| {
        site.done("status slow --json").matches("draining").count() >= 2
    });
    // The waiting has to have begun; a poll of it is due every quarter of a second.
    sleep(Duration::from_millis(500));
    site.done(&format!("resume {second} --service slow"));
    let ended = waiting.wait_with_output().expect("it ends");
    let error = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{error}");
    assert!(
        error.contains(&format!("slow/{second} was resumed")),
        "{error}"
    );
    // The flows of `slow` are kept for a quarter of an hour, but not against the operator's word.
    let text = site.done(&format!(
        "drain {first} --service slow --wait --timeout 100ms"
    ));
    assert!(
        text.contains("when its time was up, no flow was left"),
        "{text}"
    );
    let status = site.json("status slow");
    let backends = status["services"][0]["backends"].as_array();
    let mut backends = backends.expect("backends").iter();
    let ended = backends.find(|backend| backend["name"] == first.as_str());
    let ended = ended.expect("it is listed");
    assert_eq!(
        (
            &ended["state"],
            &ended["flows_ended"],
            &ended["drain_until"]
        ),
        (&"drained".into(), &0.into(), &Value::Null),
        "{ended}"
    );
    assert_eq!(
        (&ended["slots"], &ended["previous_slots"]),
        (&0.into(), &0.into())
    );
}

/// The arguments of `where` that gave this answer.
fn words_of(answer: &Value) -> String {
    let affinity = answer["steps"][1]["text"].as_str().expect("a text");
    let client = affinity
        .split(['(', ')'])
        .nth(1)
        .expect("the client's address");
    format!("{client}:9 {VIP}:81")
}

fn without_daemon(site: &Site) {
    let maps = site.json("maps");
    let names: Vec<&str> = maps["maps"]
        .as_array()
        .expect("maps")
        .iter()
        .filter_map(|map| map["name"].as_str())
        .collect();
    assert_eq!(names, lb_common::abi::map::ALL);
    for map in maps["maps"].as_array().expect("maps") {
        let number = |field: &str| {
            map[field]
                .as_u64()
                .unwrap_or_else(|| panic!("{field} of {map}"))
        };
        assert!(number("used") <= number("maximum"), "{map}");
        assert!(number("memory") > 0 && number("max_entries") > 0, "{map}");
    }
    let entries = |name: &str| {
        site.json(&format!("maps {name}"))["entries"]
            .as_array()
            .expect("entries")
            .clone()
    };
    for name in names {
        let text = site.done(&format!("maps {name}"));
        assert!(!text.trim().is_empty(), "{name}");
    }
    assert_eq!(entries("BACKEND_INFO").len(), 4);
    assert_eq!(entries("redirect"), entries("REDIRECT"));
    assert_eq!(entries("REDIRECT")[0]["interface"], "eth0");
    // 80 of one service; 81 and 8000 to 8010 of the other; and the VIP itself.
    assert_eq!(entries("SERVICES").len(), 1 + 12 + 1);
    let slots = entries("SLOTS");
    assert!(
        slots
            .iter()
            .any(|run| run["service"] == "slow" && run["previous"].is_string()),
        "{slots:?}"
    );
    assert!(
        slots
            .iter()
            .all(|run| run["service"] != "quick" || run["current"] != "none")
    );
    assert!(
        !site.done("maps CONTROL --json").contains("seed0"),
        "the seed is a secret"
    );

    assert!(site.json("flows --all")["total"].as_u64() > Some(0));
    assert_eq!(
        site.json(&format!("where 10.1.0.1:1000 {VIP}:80"))["verdict"],
        "forwarded"
    );

    // Pins of another version are named as such, and left alone.
    another_version(&site.pins);
    let error = site.failed("maps");
    assert!(error.contains("layout version 4711"), "{error}");
    assert!(site.pins.join("maps/CONTROL").exists());
    std::io::stdout().flush().expect("flushed");
}

fn another_version(pins: &Path) {
    let maps = Maps::open_pinned(pins, Access::Write).expect("pinned");
    maps.control().abi.set(4711);
}
