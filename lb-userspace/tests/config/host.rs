//! A configuration on a host it doesn't fit.

use lb_userspace::config::{ConfigFile, ErrorKind, HostFacts, InterfaceFacts, check_host};

use crate::{BASE, changed};

fn interface(name: &str, index: u32, mac: Option<[u8; 6]>, addresses: &[&str]) -> InterfaceFacts {
    InterfaceFacts {
        name: name.into(),
        index,
        mac,
        addresses: addresses
            .iter()
            .map(|net| net.parse().expect("an address with a prefix"))
            .collect(),
        vlan: None,
    }
}

fn host() -> HostFacts {
    HostFacts {
        interfaces: vec![
            interface("lo", 1, None, &["127.0.0.1/8", "::1/128"]),
            interface(
                "eth0",
                2,
                Some([2, 0, 0, 0, 0, 1]),
                &["192.0.2.2/24", "2001:db8::2/64"],
            ),
            interface(
                "eth1",
                3,
                Some([2, 0, 0, 0, 0, 2]),
                &["198.51.100.2/24", "203.0.113.7/32"],
            ),
        ],
    }
}

fn fits(text: &str, facts: &HostFacts) -> Result<(), lb_userspace::config::ConfigErrors> {
    let file = ConfigFile::parse("config.toml", text).unwrap_or_else(|errors| panic!("{errors}"));
    check_host(&file, facts)
}

fn one(name: &str, text: &str, facts: &HostFacts) {
    let errors = fits(text, facts).expect_err("it doesn't fit");
    assert_eq!(errors.errors().len(), 1, "{errors}");
    assert_eq!(errors.errors()[0].kind, ErrorKind::Host);
    insta::assert_snapshot!(name, errors.render(false));
}

#[test]
fn what_fits_is_accepted() {
    fits(BASE, &host()).expect("it fits");
    let both = changed("[\"eth0\"]", "[\"eth0\", \"eth1\"]").replace("192.0.2.22", "198.51.100.9");
    fits(&both, &host()).expect("it fits");
}

fn ipv6() -> String {
    BASE.replace("192.0.2.10", "2001:db8::10")
        .replace("192.0.2.21", "2001:db8::21")
        .replace("192.0.2.22", "2001:db8::22")
}

#[test]
fn ipv6_that_fits_is_accepted() {
    fits(&ipv6(), &host()).expect("it fits");
}

#[test]
fn ipv6_vip_on_this_host() {
    let mut facts = host();
    let vip = "2001:db8::10/128".parse().expect("an address");
    facts.interfaces[0].addresses.push(vip);
    one("ipv6_vip_on_this_host", &ipv6(), &facts);
}

#[test]
fn ipv6_backend_out_of_reach() {
    let far = ipv6().replace("2001:db8::22", "2001:db8:1::22");
    one("ipv6_backend_out_of_reach", &far, &host());
    let mut facts = host();
    facts.interfaces[1].addresses.remove(1);
    let near = far.replace("2001:db8::21", "2001:db8:1::21");
    let errors = fits(&near, &facts).expect_err("no IPv6 here");
    assert!(
        errors
            .render(false)
            .contains("ip address add 2001:db8::2/64"),
        "{errors}"
    );
}

#[test]
fn no_such_interface() {
    one(
        "no_such_interface",
        &changed("\"eth0\"", "\"eht0\""),
        &host(),
    );
}

#[test]
fn no_such_interface_and_none_like_it() {
    one(
        "no_such_interface_and_none_like_it",
        &changed("\"eth0\"", "\"wan\""),
        &HostFacts::default(),
    );
}

#[test]
fn interface_without_ethernet() {
    one(
        "interface_without_ethernet",
        &changed("\"eth0\"", "\"lo\""),
        &host(),
    );
}

#[test]
fn backend_in_no_subnet() {
    one(
        "backend_in_no_subnet",
        &changed("192.0.2.22", "203.0.113.8"),
        &host(),
    );
}

#[test]
fn backend_behind_another_interface() {
    one(
        "backend_behind_another_interface",
        &changed("192.0.2.22", "198.51.100.9"),
        &host(),
    );
}

#[test]
fn interfaces_without_a_subnet() {
    let mut facts = host();
    facts.interfaces[1].addresses.clear();
    let errors = fits(BASE, &facts).expect_err("it doesn't fit");
    assert_eq!(errors.errors().len(), 2, "one for each backend");
    insta::assert_snapshot!(errors.render(false));
}

#[test]
fn backend_is_the_broadcast_address() {
    one(
        "backend_is_the_broadcast_address",
        &changed("192.0.2.22", "192.0.2.255"),
        &host(),
    );
}

/// The director may be a backend, and then it has the VIP like every other one.
#[test]
fn backend_is_this_host() {
    let text = changed("192.0.2.22", "192.0.2.2");
    fits(&text, &host()).expect("it fits, though the VIP is missing");
    let mut facts = host();
    facts.interfaces[0]
        .addresses
        .push("192.0.2.10/32".parse().expect("an address"));
    fits(&text, &facts).expect("it fits");
}

/// Where the probes of the other backends leave through, they would end at this host.
#[test]
fn vip_of_a_local_backend_on_the_wrong_interface() {
    let mut facts = host();
    facts.interfaces[1]
        .addresses
        .push("192.0.2.10/32".parse().expect("an address"));
    one(
        "vip_of_a_local_backend_on_the_wrong_interface",
        &changed("192.0.2.22", "192.0.2.2"),
        &facts,
    );
}

#[test]
fn backend_behind_a_vlan() {
    let text = changed("192.0.2.22", "10.10.0.22");
    let mut facts = host();
    let mut vlan = interface("eth0.10", 4, Some([2, 0, 0, 0, 0, 1]), &["10.10.0.2/24"]);
    vlan.vlan = Some((2, 10));
    facts.interfaces.push(vlan);
    fits(&text, &facts).expect("it fits");
    // The same on an interface that is not configured.
    facts.interfaces[3].vlan = Some((3, 10));
    fits(&text, &facts).expect_err("the program is not there");
}

#[test]
fn vip_is_on_this_host() {
    let mut facts = host();
    facts.interfaces[0]
        .addresses
        .push("192.0.2.10/32".parse().expect("an address"));
    one("vip_is_on_this_host", BASE, &facts);
}

#[test]
fn all_at_once_and_nothing_that_follows_from_another() {
    let mut facts = host();
    facts.interfaces[0]
        .addresses
        .push("192.0.2.10/32".parse().expect("an address"));
    let text = changed("\"eth0\"", "\"eth9\"");
    let errors = fits(&text, &facts).expect_err("it doesn't fit");
    let lines: Vec<_> = errors.errors().iter().map(|error| error.line).collect();
    assert_eq!(lines, [Some(3), Some(7)], "{errors}");
}

/// The base file for a node of a cluster.
fn node(name: &str) -> String {
    changed(
        "name = \"lb1\"",
        &format!("name = \"{name}\"\nmode = \"pick\"\nseed = \"00112233445566778899aabbccddeeff\""),
    )
    .replace("192.0.2.22", "192.0.2.2")
}

/// A host that has the VIP on its loopback.
fn host_with_vip() -> HostFacts {
    let mut facts = host();
    facts.interfaces[0]
        .addresses
        .push("192.0.2.10/32".parse().expect("an address"));
    facts
}

#[test]
fn a_node_has_its_own_address_and_the_vip() {
    fits(&node("web2"), &host_with_vip()).expect("it fits");
}

#[test]
fn a_node_without_the_vip() {
    one("a_node_without_the_vip", &node("web2"), &host());
}

#[test]
fn a_node_with_the_name_of_another() {
    let errors = fits(&node("web1"), &host_with_vip()).expect_err("it doesn't fit");
    let kinds: Vec<_> = errors.errors().iter().map(|error| error.kind).collect();
    assert_eq!(
        kinds,
        [ErrorKind::Host; 2],
        "each of the two addresses is wrong"
    );
    insta::assert_snapshot!(errors.render(false));
}
