//! Decoding, from words as the controller writes them. Whole maps are read in `tests/pinned.rs`, with the kernel.

use lb_common::{
    abi::{BackendInfo, ServiceInfo, text_field},
    pick::Affinity,
    wire::{PROTO_TCP, PROTO_UDP},
};

use super::*;
use crate::cli::{rows::table, screen::Look};

fn names() -> Names {
    let mut names = Names::default();
    let service = |name: &str| ServiceInfo {
        name: text_field(name),
        ..ServiceInfo::default()
    };
    names
        .services
        .extend([(1, service("web")), (2, service("dns"))]);
    let backend = |name: &str, state: BackendState| BackendInfo {
        name: text_field(name),
        service: 1,
        state: state as u8,
        since_ms: 1_795_291_200_000,
        reason: text_field("because"),
        weight: 50,
        priority: 1,
        address: Ipv4Addr::new(192, 0, 2, 21).to_ipv6_mapped().octets(),
        ..BackendInfo::default()
    };
    names.backends.extend([
        (1, backend("b1", BackendState::Up)),
        (2, backend("b2", BackendState::Draining)),
    ]);
    names
}

fn shown(rows: &[Row]) -> String {
    table(
        rows,
        Look {
            colour: false,
            width: None,
        },
    )
}

#[test]
fn slots_that_follow_each_other_are_one_line() {
    let table = [
        Slot::settled(1),
        Slot::settled(1),
        Slot::new(1, 2),
        Slot::settled(2),
        Slot::settled(0),
        Slot::settled(9),
        Slot::settled(1),
        Slot::settled(1),
    ];
    insta::assert_snapshot!(shown(&slots(&names(), 1, table.into_iter()).collect::<Vec<_>>()), @r"
    SERVICE  SLOTS  CURRENT   PREVIOUS
    web      0-1    b1        -
    web      2      b1        b2
    web      3      b2        -
    web      4      none      -
    web      5      number 9  -
    web      6-7    b1        -
    ");
}

#[test]
fn areas_of_one_backend_and_no_others() {
    let table = [1, 1, 0, 2];
    insta::assert_snapshot!(shown(&areas(&names(), 1, table.into_iter()).collect::<Vec<_>>()), @r"
    SERVICE  AREAS  BACKEND
    web      0-1    b1
    web      3      b2
    ");
}

#[test]
fn services_with_their_ports() {
    let bucket = Bucket::default();
    let put = |way: usize, key: ServiceKey, value: ServiceValue| {
        bucket.ways[way].key.set(key.0);
        bucket.ways[way].value.set(value.0);
    };
    let vip = 0xc000_020a;
    put(
        0,
        ServiceKey::ipv4(vip, PROTO_TCP, 8080),
        ServiceValue::new(1, 256, 8, Affinity::CLIENT_IPV4),
    );
    put(
        2,
        ServiceKey::ipv4_any_port(vip, PROTO_UDP),
        ServiceValue::new(2, 512, 7, Affinity::NONE_IPV4),
    );
    put(3, ServiceKey::ipv4_vip(vip), ServiceValue::vip(true));
    insta::assert_snapshot!(shown(&services(&[Bucket::default(), bucket], &names())), @r"
    VIP         PROTOCOL  PORT  SERVICE                          AFFINITY  SLOTS  FIRST SLOT
    192.0.2.10  -         -     VIP, has a service for any port  -         -      -
    192.0.2.10  tcp       8080  web                              client      256         256
    192.0.2.10  udp       any   dns                              none        128         512
    ");
}

#[test]
fn backends_as_people_know_them() {
    insta::assert_snapshot!(shown(&backend_info(&names())), @r"
    NUMBER  NAME  SERVICE  ADDRESS     STATE     HEALTHY  WEIGHT  PRIORITY  SINCE                 REASON
         1  b1    web      192.0.2.21  up        no           50         1  2026-11-21T20:00:00Z  because
         2  b2    web      192.0.2.21  draining  no           50         1  2026-11-21T20:00:00Z  because
    ");
}
