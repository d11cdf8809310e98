//! What of xdp-lb is on a director: the proof that nothing is left, or that all of it is.

use std::fs;

use super::Testbed;
use super::error::Result;

/// The number by which a route's maker is known (`/etc/iproute2/rt_protos`): the routes of xdp-lb's probes.
const ROUTE_PROTOCOL: &str = "88";

/// Everything of xdp-lb that is on the director now, each thing as one sentence's subject: pins, attached XDP
/// programs, queueing disciplines for probes, routes, neighbour entries, the control socket, processes.
///
/// # Errors
/// When the director cannot be looked at.
pub fn remains(testbed: &Testbed) -> Result<Vec<String>> {
    let director = testbed.director();
    let mut found = Vec::new();
    let pins = testbed.pin_path();
    if pins.exists() {
        found.push(format!("pins in {}", pins.display()));
    }
    let lines = |arguments: &[&str]| -> Result<Vec<String>> {
        let output = director.run(arguments[0], &arguments[1..])?;
        Ok(String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(str::to_owned)
            .collect())
    };
    for link in lines(&["ip", "-oneline", "link", "show"])? {
        if link.contains("xdp") {
            found.push(format!("XDP on {link}"));
        }
    }
    for discipline in lines(&["tc", "qdisc", "show"])? {
        if discipline.contains("clsact") {
            found.push(discipline);
        }
    }
    let of_ours = [
        "ip",
        "route",
        "show",
        "table",
        "all",
        "proto",
        ROUTE_PROTOCOL,
    ];
    found.extend(lines(&of_ours)?.iter().map(|line| format!("route {line}")));
    let vip = testbed.vip().to_string();
    for entry in lines(&["ip", "neighbour", "show", "nud", "permanent"])? {
        if entry.starts_with(&vip) {
            found.push(format!("neighbour {entry}"));
        }
    }
    let socket = director.directory().join("control.sock");
    if fs::symlink_metadata(&socket).is_ok() {
        found.push(format!("socket {}", socket.display()));
    }
    for pid in director.namespace().processes() {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        found.push(format!("process {pid} ({})", name.trim()));
    }
    Ok(found)
}
