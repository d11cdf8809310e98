//! The rows of the data path: a stage, and packets for it.

use anyhow::Result;
use lb_common::verdict::Action;
use lb_userspace::{
    bench::{
        frame::{Destination, Flows, Kind, recipe},
        measure::{Contender, Row},
    },
    dataplane::rig::{Memory, Pages, Rig, Stand, Target},
};

use crate::{
    scenes::{FIRST_VIP, OTHER4, PORT, Scene, VIP4, VIP6},
    stage::{DIRECTOR_MAC, Stage},
};

/// The row of the floor program, which all ratios are to.
pub(crate) const FLOOR: &str = "floor";
/// Laps until nearly each of a million flows has been seen: eight times as many packets as flows leave one in three thousand.
pub(crate) const WARM_UP: u32 = 4096;
/// `flows` in `[limits]` for the flows of one change that meets a tenth of a million, as `docs/configuration.md` has it sized.
const IN_TRANSITION: u32 = 1 << 17;
/// Backends of a service, so many that any share of the slots can be put in transition.
pub(crate) const MANY: u32 = 100;
/// Flows that the stages which record them have room for.
pub(crate) const ROOM: u32 = 1 << 20;

/// The floor with memory: what any program pays that has a table of this size. In cache lines of 64 bytes, 2 to this power.
const MEMORY: [(&str, Memory, u8); 10] = [
    ("floor_read_2m", Memory::Read(Pages::Small), 15),
    ("floor_read_8m", Memory::Read(Pages::Small), 17),
    ("floor_read_32m", Memory::Read(Pages::Small), 19),
    ("floor_read_32m_large_pages", Memory::Read(Pages::Large), 19),
    ("floor_read_64m", Memory::Read(Pages::Small), 20),
    ("floor_read_64m_large_pages", Memory::Read(Pages::Large), 20),
    ("floor_two_reads_64m", Memory::TwoReads, 20),
    ("floor_write_16m", Memory::Write(Pages::Small), 18),
    ("floor_write_64m", Memory::Write(Pages::Small), 20),
    (
        "floor_write_64m_large_pages",
        Memory::Write(Pages::Large),
        20,
    ),
];

/// Rows, and the stages whose maps they use.
#[derive(Default)]
pub(crate) struct Rows {
    /// What is measured.
    pub(crate) rows: Vec<Row>,
    stages: Vec<Stage>,
}

/// What a row is but for its stage.
#[derive(Clone, Copy)]
pub(crate) struct Traffic {
    pub(crate) kind: Kind,
    pub(crate) flows: Flows,
    pub(crate) destination: Destination,
    pub(crate) action: Action,
    pub(crate) warm_up: u32,
}

impl Traffic {
    /// Packets that are forwarded.
    pub(crate) const fn forwarded(kind: Kind, flows: Flows, destination: Destination) -> Self {
        Self {
            kind,
            flows,
            destination,
            action: Action::Transmit,
            warm_up: 0,
        }
    }
}

impl Rows {
    /// One more.
    pub(crate) fn add(&mut self, name: &str, stage: &Stage, traffic: &Traffic) -> Result<()> {
        let Traffic {
            kind,
            flows,
            destination,
            action,
            warm_up,
        } = *traffic;
        self.rows.push(Row {
            name: name.into(),
            rig: Rig::load(&recipe(kind, flows, &destination))?,
            contender: Contender::Program(stage.target.try_clone()?),
            action: Some(action),
            warm_up,
        });
        Ok(())
    }

    /// One of the benchmark's own programs, given the packets of one TCP flow.
    pub(crate) fn add_stand(&mut self, name: &str, stand: Stand) -> Result<()> {
        self.rows.push(Row {
            name: name.into(),
            rig: Rig::load(&recipe(Kind::Tcp, Flows::One, &one4()))?,
            contender: Contender::Stand(stand),
            action: Some(Action::Transmit),
            warm_up: 0,
        });
        Ok(())
    }

    /// The floor with so much memory, given the packets of a million TCP flows.
    pub(crate) fn add_memory(&mut self, name: &str, what: Memory, line_bits: u8) -> Result<()> {
        self.rows.push(Row {
            name: name.into(),
            rig: Rig::load(&recipe(Kind::Tcp, Flows::MILLION, &one4()))?,
            contender: Contender::Program(Target::memory(what, line_bits)?),
            action: Some(Action::Transmit),
            warm_up: 0,
        });
        Ok(())
    }

    /// Keeps a stage as long as its rows.
    pub(crate) fn keep(&mut self, stage: Stage) {
        self.stages.push(stage);
    }
}

/// The one service of IPv4.
pub(crate) fn one4() -> Destination {
    Destination::one(DIRECTOR_MAC, VIP4.into(), PORT)
}

/// The rows of the data path whose name is wanted, and the floor.
pub(crate) fn rows(wanted: impl Fn(&str) -> bool) -> Result<Rows> {
    let mut rows = Rows::default();
    rows.add_stand("floor_swap", Stand::Swap)?;
    // All ratios are to it: it is measured three times as often as the others, at several points of the round.
    rows.add_stand(FLOOR, Stand::Floor)?;
    for (name, what, line_bits) in MEMORY {
        if wanted(name) {
            rows.add_memory(name, what, line_bits)?;
        }
    }
    settled(&mut rows, &wanted)?;
    rows.add_stand(FLOOR, Stand::Floor)?;
    others(&mut rows, &wanted)?;
    rows.add_stand(FLOOR, Stand::Floor)?;
    Ok(rows)
}

/// One service of IPv4, as a configuration without further keys makes it.
fn settled(rows: &mut Rows, wanted: &impl Fn(&str) -> bool) -> Result<()> {
    let to = one4();
    let other = Traffic {
        action: Action::Pass,
        ..Traffic::forwarded(
            Kind::Tcp,
            Flows::One,
            Destination::one(DIRECTOR_MAC, OTHER4.into(), PORT),
        )
    };
    let all = [
        (
            "tcp4_one_flow",
            Traffic::forwarded(Kind::Tcp, Flows::One, to),
        ),
        (
            "udp4_one_flow",
            Traffic::forwarded(Kind::Udp, Flows::One, to),
        ),
        (
            "tcp4_1m_flows",
            Traffic::forwarded(Kind::Tcp, Flows::MILLION, to),
        ),
        (
            "udp4_1m_flows",
            Traffic::forwarded(Kind::Udp, Flows::MILLION, to),
        ),
        (
            "syn4_flood",
            Traffic::forwarded(Kind::Syn, Flows::ENDLESS, to),
        ),
        ("not_ours", other),
    ];
    if !all.iter().any(|(name, _)| wanted(name)) {
        return Ok(());
    }
    let stage = Stage::new(&Scene::one(VIP4.into()).text())?;
    for (name, traffic) in all {
        if wanted(name) {
            rows.add(name, &stage, &traffic)?;
        }
    }
    rows.keep(stage);
    Ok(())
}

/// The rows that have a stage of their own.
fn others(rows: &mut Rows, wanted: &impl Fn(&str) -> bool) -> Result<()> {
    let million = |destination| Traffic::forwarded(Kind::Tcp, Flows::MILLION, destination);
    let one = Scene::one(VIP4.into());
    if wanted("tcp6_1m_flows") {
        let stage = Stage::new(&Scene::one(VIP6.into()).text())?;
        let to = Destination::one(DIRECTOR_MAC, VIP6.into(), PORT);
        rows.add("tcp6_1m_flows", &stage, &million(to))?;
        rows.keep(stage);
    }
    if wanted("transition_10pct") {
        let mut stage = Stage::new(
            &Scene {
                backends: MANY,
                flows: Some(IN_TRANSITION),
                ..one
            }
            .text(),
        )?;
        stage.drain(10)?;
        let traffic = Traffic {
            warm_up: WARM_UP,
            ..million(one4())
        };
        rows.add("transition_10pct", &stage, &traffic)?;
        rows.keep(stage);
    }
    if wanted("services_4096") {
        let (vip_bits, port_bits) = (10, 2);
        let scene = Scene {
            vip: FIRST_VIP.into(),
            backends: 4,
            vip_bits,
            port_bits,
            ..one
        };
        let stage = Stage::new(&scene.text())?;
        let to = Destination {
            vip_bits,
            port_bits,
            ..Destination::one(DIRECTOR_MAC, FIRST_VIP.into(), PORT)
        };
        rows.add("services_4096", &stage, &million(to))?;
        rows.keep(stage);
    }
    if wanted("track_always_1m") {
        let scene = Scene {
            flows: Some(ROOM),
            keys: "track = \"always\"",
            ..one
        };
        let stage = Stage::new(&scene.text())?;
        let traffic = Traffic {
            warm_up: WARM_UP,
            ..million(one4())
        };
        rows.add("track_always_1m", &stage, &traffic)?;
        rows.keep(stage);
    }
    Ok(())
}
