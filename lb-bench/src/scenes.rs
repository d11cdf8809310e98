//! The configurations that are measured, and the packets for them.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::Result;
use lb_common::verdict::Action;
use lb_userspace::{
    bench::{
        frame::{Destination, Flows, Kind, recipe},
        measure::{Contender, Row},
    },
    dataplane::rig::{Rig, Stand},
};

use crate::stage::{DIRECTOR_MAC, INTERFACE, Stage};

/// The VIP of the scenes with one service.
const VIP4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
/// Nobody's VIP.
const OTHER4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 77);
const PORT: u16 = 443;

/// A configuration's head: with room for a million flows.
fn node() -> String {
    format!(
        "[node]\nname = \"bench\"\ninterfaces = [\"{INTERFACE}\"]\n[limits]\nflows = 1048576\nflows6 = 1048576\n"
    )
}

/// A service with so many backends, which are not probed; those of IPv4 are 10.0.0.0/8's from 10.`block`.0.1 on.
fn service(text: &mut String, name: &str, vip: IpAddr, port: u16, backends: u32, block: u8, more: &str) {
    let _ = write!(
        text,
        "[[service]]\nname = \"{name}\"\nvip = \"{vip}\"\nprotocol = \"tcp+udp\"\nports = [{port}]\n{more}\n\
         [service.probe]\ntype = \"none\"\n"
    );
    for number in 1..=backends {
        let address: IpAddr = if vip.is_ipv4() {
            Ipv4Addr::from_bits(u32::from_be_bytes([10, block, 0, 0]) + number).into()
        } else {
            Ipv6Addr::from_bits(0x2001_0db8_0000_0000_0000_0000_0001_0000 + u128::from(number)).into()
        };
        let _ = write!(
            text,
            "[[service.backend]]\nname = \"b{number}\"\naddress = \"{address}\"\n"
        );
    }
}

/// One service with ten backends.
fn one(vip: IpAddr, more: &str) -> String {
    let mut text = node();
    service(&mut text, "web", vip, PORT, 10, 0, more);
    text
}

fn row(
    name: &str,
    stage: &Stage,
    kind: Kind,
    flows: Flows,
    destination: &Destination,
    action: Action,
) -> Result<Row> {
    Ok(Row {
        name: name.into(),
        rig: Rig::load(&recipe(kind, flows, destination))?,
        contender: Contender::Program(stage.target.try_clone()?),
        action,
        warm_up: 0,
    })
}

/// The rows of the hot path, and the stages they run on.
pub(crate) fn rows() -> Result<(Vec<Row>, Vec<Stage>)> {
    let four = Destination::one(DIRECTOR_MAC, VIP4.into(), PORT);
    let other = Destination::one(DIRECTOR_MAC, OTHER4.into(), PORT);
    let one4 = Stage::new(&one(VIP4.into(), ""))?;
    let floor = |name: &str, flows, stand| -> Result<Row> {
        Ok(Row {
            name: name.into(),
            rig: Rig::load(&recipe(Kind::Tcp, flows, &four))?,
            contender: Contender::Stand(stand),
            action: Action::Transmit,
            warm_up: 0,
        })
    };
    let tx = Action::Transmit;
    let rows = vec![
        floor("floor_swap", Flows::One, Stand::Swap)?,
        floor("floor", Flows::One, Stand::Floor)?,
        floor("floor_1m", Flows::MILLION, Stand::Floor)?,
        row("tcp4_one_flow", &one4, Kind::Tcp, Flows::One, &four, tx)?,
        row("tcp4_1m_flows", &one4, Kind::Tcp, Flows::MILLION, &four, tx)?,
        row("not_ours", &one4, Kind::Tcp, Flows::One, &other, Action::Pass)?,
    ];
    let _ = VIP6;
    Ok((rows, vec![one4]))
}
