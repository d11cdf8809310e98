//! How the cost grows: with services, backends, flows, and the share of slots in transition.

use anyhow::Result;
use lb_userspace::bench::frame::{Destination, Flows, Kind};

use crate::{
    rows::{MANY, ROOM, Rows, Traffic, WARM_UP, one4},
    scenes::{FIRST_VIP, PORT, Scene, VIP4},
    stage::{DIRECTOR_MAC, Stage},
};

/// What the names begin with.
pub(crate) const PREFIX: &str = "growth_";

/// Adds the rows.
pub(crate) fn add(rows: &mut Rows, wanted: impl Fn(&str) -> bool) -> Result<()> {
    services(rows, &wanted)?;
    backends(rows, &wanted)?;
    flows(rows, &wanted)?;
    recorded(rows, &wanted)?;
    transition(rows, &wanted)
}

/// Services of four ports on each VIP, random over all.
fn services(rows: &mut Rows, wanted: &impl Fn(&str) -> bool) -> Result<()> {
    let port_bits = 2;
    for (vip_bits, backends) in [(2, 4), (4, 4), (6, 4), (8, 4), (10, 10)] {
        let mut name = format!("{PREFIX}services_{}", 1 << (vip_bits + port_bits));
        if backends != 4 {
            name += &format!("_backends_{backends}");
        }
        if !wanted(&name) {
            continue;
        }
        let scene = Scene {
            vip: FIRST_VIP.into(),
            backends,
            vip_bits,
            port_bits,
            ..Scene::one(VIP4.into())
        };
        let stage = Stage::new(&scene.text())?;
        let to = Destination {
            vip_bits,
            port_bits,
            ..Destination::one(DIRECTOR_MAC, FIRST_VIP.into(), PORT)
        };
        rows.add(&name, &stage, &million(to))?;
        rows.keep(stage);
    }
    Ok(())
}

fn backends(rows: &mut Rows, wanted: &impl Fn(&str) -> bool) -> Result<()> {
    for backends in [2, 10, 100, 1000] {
        let name = format!("{PREFIX}backends_{backends}");
        if wanted(&name) {
            let scene = Scene {
                backends,
                ..Scene::one(VIP4.into())
            };
            let stage = Stage::new(&scene.text())?;
            rows.add(&name, &stage, &million(one4()))?;
            rows.keep(stage);
        }
    }
    Ok(())
}

fn flows(rows: &mut Rows, wanted: &impl Fn(&str) -> bool) -> Result<()> {
    let all = [0, 10, 16, 20, 24].map(|bits| (bits, format!("{PREFIX}flows_{}", 1_u32 << bits)));
    if !all.iter().any(|(_, name)| wanted(name)) {
        return Ok(());
    }
    let stage = Stage::new(&Scene::one(VIP4.into()).text())?;
    for (bits, name) in all {
        if wanted(&name) {
            let traffic = Traffic::forwarded(Kind::Tcp, Flows::Bits(bits), one4());
            rows.add(&name, &stage, &traffic)?;
        }
    }
    rows.keep(stage);
    Ok(())
}

/// Flows of a service with `track = "always"`; there is room for a million.
fn recorded(rows: &mut Rows, wanted: &impl Fn(&str) -> bool) -> Result<()> {
    for bits in [10, 14, 16, 18] {
        let name = format!("{PREFIX}track_always_{}", 1_u32 << bits);
        if wanted(&name) {
            let scene = Scene {
                flows: Some(ROOM),
                keys: "track = \"always\"",
                ..Scene::one(VIP4.into())
            };
            let stage = Stage::new(&scene.text())?;
            let traffic = Traffic {
                warm_up: WARM_UP,
                ..Traffic::forwarded(Kind::Tcp, Flows::Bits(bits), one4())
            };
            rows.add(&name, &stage, &traffic)?;
            rows.keep(stage);
        }
    }
    Ok(())
}

/// With a hundred backends, of which some drain.
fn transition(rows: &mut Rows, wanted: &impl Fn(&str) -> bool) -> Result<()> {
    for percent in [0, 1, 10, 50] {
        let name = format!("{PREFIX}transition_{percent}pct");
        if wanted(&name) {
            let scene = Scene {
                backends: MANY,
                flows: Some(1 << 20),
                ..Scene::one(VIP4.into())
            };
            let mut stage = Stage::new(&scene.text())?;
            stage.drain(percent)?;
            let traffic = Traffic {
                warm_up: if percent > 0 { WARM_UP } else { 0 },
                ..million(one4())
            };
            rows.add(&name, &stage, &traffic)?;
            rows.keep(stage);
        }
    }
    Ok(())
}

const fn million(destination: Destination) -> Traffic {
    Traffic::forwarded(Kind::Tcp, Flows::MILLION, destination)
}
