//! Settings that a reload can't change, and what would.

use crate::config::{Config, Mode};

/// Why a configuration can't be applied to a running daemon, and what would apply it.
#[must_use]
pub fn fixed_while_running(old: &Config, new: &Config) -> Option<String> {
    const RESTART: &str =
        "takes a restart (`systemctl restart xdp-lb`), during which the data path forwards on";
    let (old_node, new_node) = (&old.node, &new.node);
    let pins = old_node.pin_path.display();
    let anew = |why: &str| {
        format!(
            "{why}; to accept that, end xdp-lb, stop forwarding with `rm -r {pins}`, and start it again"
        )
    };
    if old_node.interfaces != new_node.interfaces {
        return Some(format!("a change of `interfaces` in [node] {RESTART}"));
    }
    if old_node.unserved != new_node.unserved {
        return Some(format!("a change of `unserved` in [node] {RESTART}"));
    }
    let cluster = |config: &Config| {
        let node = &config.node;
        (
            node.mode,
            node.cluster_mac,
            config.cluster_ip(),
            node.peer_port,
        )
    };
    if (old_node.mode, new_node.mode) != (Mode::Forward, Mode::Forward) {
        if cluster(old) != cluster(new) {
            return Some(anew(
                "`mode`, `cluster_mac`, `cluster_ip` and `peer_port` in [node] belong to the loaded program",
            ));
        }
        if (&old_node.name, old.own_address()) != (&new_node.name, new.own_address()) {
            return Some(format!(
                "who this node is, by `name` in [node] and the address of that backend, {RESTART}"
            ));
        }
    }
    if old.control != new.control {
        return Some(format!("a change in [control] {RESTART}"));
    }
    if old_node.xdp_mode != new_node.xdp_mode {
        return Some(anew("`xdp_mode` in [node] belongs to the attached program"));
    }
    if old_node.pin_path != new_node.pin_path {
        return Some(anew(
            "`pin_path` in [node] is where the running data path is",
        ));
    }
    if old_node.seed != new_node.seed {
        return Some(anew(
            "with another `seed` in [node] every client goes to another backend, which breaks all connections",
        ));
    }
    if old.limits != new.limits {
        return Some(anew("[limits] are the sizes that the maps were made with"));
    }
    None
}
