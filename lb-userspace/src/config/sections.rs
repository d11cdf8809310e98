//! The tables a file may have and the keys of each: the one list that reading, suggestions and help come from.

/// One kind of table.
#[derive(Debug)]
pub(super) struct Section {
    /// The key it stands under.
    pub(super) key: &'static str,
    /// How a message names it.
    pub(super) title: &'static str,
    /// How its header is written.
    pub(super) header: &'static str,
    /// Its keys.
    pub(super) keys: &'static [&'static str],
    /// What to do when it is missing.
    pub(super) advice: &'static str,
}

pub(super) static ROOT: Section = Section {
    key: "",
    title: "the file",
    header: "",
    keys: &["node", "control", "limits", "service"],
    advice: "",
};

pub(super) static NODE: Section = Section {
    key: "node",
    title: "[node]",
    header: "[node]",
    keys: &[
        "name",
        "interfaces",
        "pin_path",
        "xdp_mode",
        "unserved",
        "seed",
        "mode",
        "cluster_mac",
        "cluster_ip",
        "peer_port",
    ],
    advice: "",
};

pub(super) static CONTROL: Section = Section {
    key: "control",
    title: "[control]",
    header: "[control]",
    keys: &["socket", "http", "state"],
    advice: "",
};

pub(super) static LIMITS: Section = Section {
    key: "limits",
    title: "[limits]",
    header: "[limits]",
    keys: &["flows", "flows6", "slots", "backends", "ports", "fragments"],
    advice: "",
};

pub(super) static SERVICE: Section = Section {
    key: "service",
    title: "[[service]]",
    header: "[[service]]",
    keys: &[
        "name",
        "vip",
        "protocol",
        "ports",
        "affinity",
        "network_prefix",
        "spread_hot_sources",
        "rule",
        "flow_idle",
        "track",
        "affinity_timeout",
        "failback",
        "probe",
        "backend",
    ],
    advice: "add a service; if there was one, the file may have been cut short",
};

pub(super) static PROBE: Section = Section {
    key: "probe",
    title: "[service.probe]",
    header: "[service.probe]",
    keys: &[
        "type", "port", "interval", "timeout", "rise", "fall", "via", "path", "host", "status",
    ],
    advice: "",
};

pub(super) static BACKEND: Section = Section {
    key: "backend",
    title: "[[service.backend]]",
    header: "[[service.backend]]",
    keys: &["name", "address", "weight", "priority"],
    advice: "add one with `name` and `address`; a service without a backend would drop all its packets",
};

/// All of them, to find where a misplaced key belongs.
pub(super) static ALL: [&Section; 7] =
    [&ROOT, &NODE, &CONTROL, &LIMITS, &SERVICE, &PROBE, &BACKEND];

#[cfg(test)]
mod tests {
    use super::ALL;

    /// The reference and the example name every table and every key, or they are out of date.
    #[test]
    fn every_key_is_documented() {
        for page in ["docs/configuration.md", "packaging/config.toml"] {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../").to_owned() + page;
            let text = std::fs::read_to_string(&path).expect("the page is there");
            for section in &ALL[1..] {
                let (_, described) = text
                    .split_once(section.title)
                    .unwrap_or_else(|| panic!("{page} lacks {}", section.title));
                for key in section
                    .keys
                    .iter()
                    .filter(|key| !matches!(**key, "probe" | "backend"))
                {
                    let named = described.contains(&format!("`{key}`"))
                        || described.lines().any(|line| {
                            line.trim_start_matches('#')
                                .starts_with(&format!("{key} = "))
                        });
                    assert!(named, "{page} lacks `{key}` of {}", section.title);
                }
            }
        }
    }
}
