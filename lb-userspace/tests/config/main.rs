//! The configuration file: golden messages for everything that can be wrong with it, and properties.

mod golden;
mod host;
mod properties;
mod valid;

/// A small valid file: what each golden case changes one thing of.
const BASE: &str = r#"[node]
name = "lb1"
interfaces = ["eth0"]

[[service]]
name = "web"
vip = "192.0.2.10"
protocol = "tcp"
ports = [80, 443]

[service.probe]
type = "http"
interval = "1s"

[[service.backend]]
name = "web1"
address = "192.0.2.21"
weight = 50

[[service.backend]]
name = "web2"
address = "192.0.2.22"
"#;

/// [`BASE`] with `old`, which must be in it, replaced once by `new`.
fn changed(old: &str, new: &str) -> String {
    assert!(BASE.contains(old), "the base file has no {old:?}");
    BASE.replacen(old, new, 1)
}
