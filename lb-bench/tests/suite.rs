//! The suite in its quick mode: every row that has a target, and every peer.

use std::process::Command;

use serde_json::Value;

#[test]
fn the_suite_has_every_row() {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_lb-bench"))
        .args(["--quick", "--out"])
        .arg(directory.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}\n{errors}");
    let report = std::fs::read_to_string(directory.path().join("bench.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    let rows: Vec<&str> = report["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["name"].as_str().unwrap())
        .collect();
    for row in [
        "floor",
        "floor_read_2m",
        "floor_read_64m",
        "floor_read_64m_large_pages",
        "floor_two_reads_64m",
        "floor_write_64m",
        "floor_write_64m_large_pages",
        "tcp4_one_flow",
        "udp4_one_flow",
        "tcp4_1m_flows",
        "udp4_1m_flows",
        "syn4_flood",
        "tcp6_1m_flows",
        "not_ours",
        "transition_10pct",
        "services_4096",
        "track_always_1m",
        "live_round_trip",
        "maglev_65536x1000",
        "failover_apply",
        "failover_apply_unprepared",
        "load_4096_services",
        "rss_1000_backends",
        "idle_cpu_1000_backends",
        "peer_nftables_fwd_jhash",
        "peer_bridge",
    ] {
        assert!(rows.contains(&row), "no {row} in {rows:?}");
    }
    let chart = std::fs::read_to_string(directory.path().join("bench.svg")).unwrap();
    assert!(chart.contains("tcp4_1m_flows"));
}
