//! `xdp-lb bench` of a running daemon: it gives a table, and leaves nothing behind but counts.

use lb_tests::testbed::scene::{HTTP_PROBE, NO_PROBE, SEED, Scene, service, tcp_service};
use lb_tests::testbed::{Testbed, XdpLb};
use serde_json::Value;

fn names(report: &Value) -> Vec<&str> {
    let rows = report["results"].as_array().unwrap();
    rows.iter()
        .map(|row| row["name"].as_str().unwrap())
        .collect()
}

#[test]
fn a_running_data_path_is_measured_and_left_as_it_was() {
    let testbed = Testbed::builder()
        .clients(1, 1)
        .backends(2)
        .label("bench")
        .build()
        .unwrap();
    let backends = testbed.backend_config();
    let services = [
        tcp_service(&testbed, "web", 80, "none", HTTP_PROBE) + &backends,
        service(&testbed, "dns", "udp", 53, "client", NO_PROBE) + &backends,
        service(
            &testbed,
            "sip",
            "udp",
            5060,
            "none",
            &format!("track = \"always\"\n{NO_PROBE}"),
        ) + &backends,
    ]
    .concat();
    let config = testbed.node_config_with(SEED) + &services;
    let early = XdpLb::prepare(&testbed, &config).unwrap();
    let refused = early.cli(&["bench"]).unwrap();
    let errors = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(errors.contains("no maps are pinned"), "{errors}");
    drop(early);

    let mut scene = Scene::start(testbed, &[80], &config).unwrap();
    let settled = |status: &lb_userspace::api::Status| {
        status
            .services
            .iter()
            .all(|service| service.slots_in_transition == 0)
    };
    scene
        .daemon
        .wait_for("that all slots settle", settled)
        .unwrap();
    let packets = |scene: &Scene, service: &str| -> u64 {
        let status = scene.daemon.status().unwrap();
        let found = status.services.iter().find(|s| s.name == service).unwrap();
        found.backends.iter().map(|backend| backend.packets).sum()
    };
    let counted = packets(&scene, "dns");

    let output = scene.daemon.cli(&["bench", "--bursts", "2"]).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{text}\n{errors}");
    for row in [
        "the floor",
        "web one flow",
        "web a million flows",
        "dns one flow",
        "not ours",
    ] {
        assert!(text.contains(row), "no {row} in\n{text}");
    }
    assert!(errors.contains("sip is left out"), "{errors}");
    assert!(errors.contains("track = \"always\""), "{errors}");
    assert!(text.contains("Nothing was sent"), "{text}");

    let flows: Value = scene.daemon.json(&["flows"]).unwrap();
    assert_eq!(flows["flows"].as_array().map(Vec::len), Some(0), "{flows}");
    assert!(packets(&scene, "dns") > counted, "it says that it counts");

    let report: Value = scene
        .daemon
        .json(&["bench", "dns", "--bursts", "1"])
        .unwrap();
    let expected = [
        "the floor",
        "dns one flow",
        "dns a million flows",
        "not ours",
    ];
    assert_eq!(names(&report), expected);
    for row in report["results"].as_array().unwrap() {
        for key in ["min_ns", "median_ns"] {
            assert!(row[key].is_f64(), "{key} of {row}");
        }
    }
    assert!(report["machine"]["kernel"].is_string());

    let wrong = scene.daemon.cli(&["bench", "dnss"]).unwrap();
    let errors = String::from_utf8(wrong.stderr).unwrap();
    assert_eq!(wrong.status.code(), Some(1));
    assert!(
        errors.contains("no service is named \"dnss\"; did you mean dns"),
        "{errors}"
    );

    // While a backend drains, its flows are recorded: no packet of the benchmark may meet such a slot.
    scene
        .daemon
        .cli_ok(&["drain", "b1", "--service", "web"])
        .unwrap();
    scene
        .daemon
        .wait_for("that slots are in transition", |status| {
            status
                .services
                .iter()
                .any(|service| service.slots_in_transition > 0)
        })
        .unwrap();
    let refused = scene
        .daemon
        .cli(&["bench", "web", "--bursts", "1"])
        .unwrap();
    let errors = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains("web is left out") && errors.contains("in transition"),
        "{errors}"
    );
}
