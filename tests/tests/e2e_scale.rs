//! Many services and backends: a sixteenth of the most there can be (4,096 services, 65,535 backends), which a build without
//! optimisation starts in seconds. `docs/decisions/scale.md` has the figures of the whole.

use std::collections::BTreeMap;

use lb_common::abi::AREA;
use lb_tests::testbed::scene::{HTTP_PROBE, NO_PROBE, SEED, Scene};
use lb_tests::testbed::{StatusExt, Testbed, XdpLb};
use lb_userspace::api::{ApplyKind, Status};
use lb_userspace::dataplane::{Access, Maps};
use serde_json::Value;

/// Services without probes, of sixteen backends each.
const SERVICES: usize = 255;
const BACKENDS: usize = 16;
/// With those of one service that is probed.
const ALL_BACKENDS: usize = SERVICES * BACKENDS + 2;

/// Every service on every backend host, and one that is probed on two; `more` goes to the end.
fn config(testbed: &Testbed, limits: &str, more: &str) -> String {
    let mut text = [testbed.node_config_with(SEED), limits.to_owned()].concat();
    let backends = testbed.backend_config();
    for number in 1..=SERVICES {
        text += &format!(
            "\n[[service]]\nname = \"s{number}\"\nvip = \"10.79.0.{number}\"\nprotocol = \"tcp\"\nports = [80]\n\
             flow_idle = \"6s\"\n{NO_PROBE}{backends}"
        );
    }
    text += &format!(
        "\n[[service]]\nname = \"web\"\nvip = \"{}\"\nprotocol = \"tcp\"\nports = [80]\nflow_idle = \"6s\"\n{HTTP_PROBE}",
        testbed.vip()
    );
    text += &testbed.one_backend_config("b1", "");
    text += &testbed.one_backend_config("b2", "");
    text + more
}

/// What each map takes, by name, and the sum.
fn memory(maps: &Value) -> (BTreeMap<String, u64>, u64) {
    let each = maps["maps"].as_array().expect("a list of maps");
    let each = each.iter().map(|map| {
        let name = map["name"].as_str().expect("a name").to_owned();
        (name, map["memory"].as_u64().expect("bytes"))
    });
    (each.collect(), maps["memory"].as_u64().expect("bytes"))
}

#[test]
fn thousands_of_backends_are_served_stated_and_limited() {
    let testbed = Testbed::builder()
        .clients(1, 5)
        .backends(BACKENDS)
        .label("scale")
        .build()
        .unwrap();
    let limits = format!("\n[limits]\nbackends = {ALL_BACKENDS}\n");
    let text = config(&testbed, &limits, "");

    // Before there are maps, `check` says what they will take.
    let before: Value = XdpLb::prepare(&testbed, &text)
        .unwrap()
        .json(&["check"])
        .unwrap();
    assert_eq!(before["memory"]["pinned"], false);
    let planned = memory(&before["memory"]);
    assert_eq!(planned.0.values().sum::<u64>(), planned.1);

    let servers_of = ["b1", "b2"]
        .map(|name| lb_tests::testbed::Nginx::start_on(testbed.host(name), &[80]).unwrap());
    let daemon = XdpLb::start(&testbed, &text).unwrap();
    let mut scene = Scene {
        daemon,
        servers: servers_of.into(),
        testbed,
    };
    let status = scene.daemon.status().unwrap();
    assert_eq!(status.services.len(), SERVICES + 1);
    assert_eq!(status.backends().count(), ALL_BACKENDS);
    for service in &status.services {
        let slots: u64 = service.backends.iter().map(|backend| backend.slots).sum();
        assert_eq!(slots, service.slots, "{}", service.name);
    }
    // The limit that is not stated follows from the content: twice what 256 tables of 2,048 slots take.
    let maps = Maps::open_pinned(&scene.testbed.pin_path(), Access::Read).unwrap();
    assert_eq!(maps.slot_capacity(), 2 * 256 * 2048);
    assert_eq!(maps.backend_capacity() as usize, ALL_BACKENDS + 1);

    // What they take is what was said.
    let maps_said: Value = scene.daemon.json(&["maps"]).unwrap();
    assert_eq!(memory(&maps_said), planned);
    let after: Value = scene.daemon.json(&["check"]).unwrap();
    assert_eq!(after["memory"]["pinned"], true);
    assert_eq!(memory(&after["memory"]), planned);

    counters_are_the_same_at_once_and_one_by_one(&scene, &maps);
    a_failure_is_applied_by_its_own_slots(&mut scene);
    what_does_not_fit_is_refused(&scene, &text);
}

#[track_caller]
fn counters_are_the_same_at_once_and_one_by_one(scene: &Scene, maps: &Maps) {
    for source in scene.testbed.host("c1").sources() {
        scene.get(*source, 80).unwrap();
    }
    let capacity = u16::try_from(maps.backend_capacity()).unwrap();
    let mut packets = 0;
    // Between two looks a probe may pass, but nothing is ever taken back.
    let before = maps.counters(0, capacity).unwrap();
    assert_eq!(before.len(), usize::from(capacity));
    for (number, before) in (0..capacity).zip(before) {
        let one = maps.counter(number).unwrap();
        let after = maps.counters(number, 1).unwrap();
        assert!(
            before.packets <= one.packets && one.packets <= after[0].packets,
            "{number}: {before:?}, {one:?}, {after:?}"
        );
        assert!(before.bytes <= one.bytes && one.bytes <= after[0].bytes);
        packets += before.packets;
    }
    assert!(packets > 0, "the requests are counted");
    // Behind the end there is nothing.
    assert_eq!(maps.counters(capacity - 1, 10).unwrap().len(), 1);
    assert!(maps.counters(capacity, 10).unwrap().is_empty());
}

fn a_failure_is_applied_by_its_own_slots(scene: &mut Scene) {
    let slots_of = |status: &Status, backend: &str| {
        let web = status.services.iter().find(|s| s.name == "web").unwrap();
        let found = web.backends.iter().find(|b| b.name == backend);
        found.map(|b| (b.state.clone(), b.slots)).unwrap()
    };
    let before = scene.daemon.status().unwrap();
    let (_, own) = slots_of(&before, "b1");
    scene.server("b1").stop().unwrap();
    let after = scene
        .daemon
        .wait_for("that b1 of web is down", |status| {
            slots_of(status, "b1").0 == "down"
        })
        .unwrap();
    let apply = after.node.last_apply.as_ref().expect("there was a change");
    assert_eq!(
        (apply.kind, apply.cause.as_str()),
        (ApplyKind::Failure, "probe of web/b1")
    );
    // Two backends: every slot of b1 goes to b2, and nothing else moves.
    assert_eq!(apply.slots, own);
    let areas = own / u64::from(AREA);
    assert_eq!(apply.operations, own + areas + 1, "and its areas and entry");
    scene.server("b1").resume().unwrap();
    scene
        .daemon
        .wait_for("that all backends are up", Status::all_up)
        .unwrap();
}

fn what_does_not_fit_is_refused(scene: &Scene, text: &str) {
    let daemon = &scene.daemon;
    let refused = |text: &str, parts: &[&str]| {
        daemon.write_config(text).unwrap();
        let output = daemon.cli(&["reload"]).unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr);
        for part in parts {
            assert!(said.contains(part), "`{part}` is missing in:\n{said}");
        }
    };
    let one_more = [text, &scene.testbed.one_backend_config("b3", "")].concat();
    let (found, at_most) = (ALL_BACKENDS + 1, ALL_BACKENDS);
    refused(
        &one_more,
        &[
            &format!("found {found}"),
            &format!("at most {at_most}"),
            &format!("raise `backends` in [limits] to at least {found}"),
        ],
    );
    // With the limit raised, the maps are in the way; and without one that is stated as well.
    let limit = format!("backends = {ALL_BACKENDS}\n");
    refused(
        &one_more.replace(&limit, "backends = 5000\n"),
        &[
            "`backends` in [limits] is 5000",
            &format!("the maps were made with {at_most}"),
            "rm -r",
        ],
    );
    refused(
        &one_more.replace(&limit, ""),
        &[
            &format!("{found} backends are too many"),
            &format!("room for {at_most}"),
            &format!("to at least {found}"),
        ],
    );
    // `check` says the same, and nothing was changed.
    let output = daemon.cli(&["check"]).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains(&format!("{found} backends are too many")),
        "{said}"
    );
    daemon.write_config(text).unwrap();
    daemon.cli_ok(&["reload"]).unwrap();
    assert_eq!(daemon.status().unwrap().backends().count(), ALL_BACKENDS);
}
