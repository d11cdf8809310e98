//! The ways of packets through the program that are counted: what is in the maps, and what comes in.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use anyhow::{Context, ensure};
use lb_common::{
    abi::{AREA, map},
    features::Features,
    flow::{FlowName, Phase, TICK_SHIFT},
    pick::Slot,
    service::{NoVip, Track},
    verdict::Action,
};

use super::{
    dump::{Translated, values},
    machine::{Executed, Machine},
};
use crate::packets::{
    cases::{TAGGED, WEB, town, town6},
    fixture::{CAPACITY, Fixture, Flow, Setup},
    frame::{Frame, syn, tcp, tcp6, udp, udp6, who_has},
    kernel::{Kernel, now},
    network::{CLIENT, CLIENT_PORT, NEIGHBOUR, NO_VIP, NO_VIP6, VIP_ANY, VLAN},
};

/// A way of a packet through the program.
#[derive(Clone, Debug)]
pub struct Path {
    /// Its name in the table.
    pub name: &'static str,
    /// What is in the maps, and which program runs.
    pub given: Fixture,
    /// What comes in.
    pub frame: Frame,
    /// What the kernel does with it.
    pub action: Action,
    /// Whether it is on the hot path: a settled slot, or a packet that is not ours.
    pub hot: bool,
}

/// What a configuration of IPv4 services alone loads.
pub const PLAIN: Features = Features::FRAGMENTS;
/// What a configuration with an IPv6 VIP loads.
pub const DUAL: Features = Features(Features::FRAGMENTS.0 | Features::IPV6.0);
/// What a configuration with backends behind VLANs loads.
const TAGS: Features = Features(Features::FRAGMENTS.0 | Features::VLAN.0);
/// What a configuration with `track = "always"` loads.
const ALWAYS: Features = Features(Features::FRAGMENTS.0 | Features::TRACK_ALWAYS.0);

/// An address that is no VIP, but of the class of one, so that it is looked up.
fn like_a_vip(town: &Fixture) -> Ipv4Addr {
    let vips = town
        .services
        .iter()
        .filter_map(|service| match service.vip {
            IpAddr::V4(vip) => Some(vip.to_bits()),
            IpAddr::V6(_) => None,
        });
    let none = NoVip::but(vips);
    let mut neighbours = (1..).map(|further| NO_VIP.to_bits() + further);
    let found = neighbours.find(|address| !none.has(*address));
    Ipv4Addr::from_bits(found.expect("one in sixty-four is"))
}

/// Every path, in the order of the table.
#[must_use]
pub fn all() -> Vec<Path> {
    let path = |name, given: &Fixture, features, frame, action| Path {
        name,
        given: given.clone().under(features),
        frame,
        action,
        hot: true,
    };
    let slow = |path: Path| Path { hot: false, ..path };
    let transmitted = Action::Transmit;
    let (town, town6) = (town(), town6());
    // Nearly all areas of a real table are one backend's.
    let areas = [1; (CAPACITY.slots / AREA) as usize];
    let (owned, owned6) = (town.clone().areas(&areas), town6.clone().areas(&areas));
    let changing = town.clone().every_slot(Slot::new(2, 1));
    let recorded = |fixture: Fixture| {
        let key = FlowName {
            client: CLIENT.into(),
            ports: u32::from(CLIENT_PORT) << 16 | 80,
            service: WEB,
            udp: false,
        };
        let (backend, phase) = (1, Phase::Open);
        fixture.flow(Flow {
            key,
            backend,
            phase,
        })
    };
    let always = town.clone().track(Track::Always);
    let tagged = town.clone().every_slot(Slot::settled(TAGGED));
    let not_ours = tcp().to(NEIGHBOUR, 80).build();
    let like_ours = tcp().to(like_a_vip(&town), 80).build();
    let not_ours6 = tcp6().to(NO_VIP6, 80).build();
    let any_port = tcp().to(VIP_ANY, 12_345).build();
    let unserved = tcp().to_port(81).build();
    let with_tag = tcp().vlan(VLAN).build();
    let arp = who_has(NO_VIP, NEIGHBOUR).build();
    vec![
        path("tcp4", &owned, PLAIN, tcp().build(), transmitted),
        path("syn4", &owned, PLAIN, syn().build(), transmitted),
        path("udp4", &owned, PLAIN, udp().build(), transmitted),
        path(
            "tcp4, an area of several backends",
            &town,
            PLAIN,
            tcp().build(),
            transmitted,
        ),
        path(
            "tcp4, a service of all ports",
            &owned,
            PLAIN,
            any_port,
            transmitted,
        ),
        path("tcp4, not ours", &town, PLAIN, not_ours, Action::Pass),
        path(
            "tcp4, not ours, looked up",
            &town,
            PLAIN,
            like_ours,
            Action::Pass,
        ),
        path("tcp4 beside IPv6", &owned, DUAL, tcp().build(), transmitted),
        path("tcp6", &owned6, DUAL, tcp6().build(), transmitted),
        path("udp6", &owned6, DUAL, udp6().build(), transmitted),
        path(
            "tcp6, an area of several backends",
            &town6,
            DUAL,
            tcp6().build(),
            transmitted,
        ),
        path("tcp6, not ours", &town6, DUAL, not_ours6, Action::Pass),
        path(
            "tcp4 beside VLANs",
            &owned,
            TAGS,
            tcp().build(),
            transmitted,
        ),
        path(
            "tcp4 beside `track = \"always\"`",
            &owned,
            ALWAYS,
            tcp().build(),
            transmitted,
        ),
        slow(path(
            "tcp4, no service there",
            &town,
            PLAIN,
            unserved,
            Action::Drop,
        )),
        slow(path("arp, not ours", &town, PLAIN, arp, Action::Pass)),
        slow(path(
            "tcp4, tagged on both sides",
            &tagged,
            TAGS,
            with_tag,
            transmitted,
        )),
        slow(path(
            "tcp4 in transition, recorded",
            &recorded(changing.clone()),
            PLAIN,
            tcp().build(),
            transmitted,
        )),
        slow(path(
            "tcp4 in transition, recorded on a backend that drains",
            &recorded(changing.clone()).closed_to_new(1),
            PLAIN,
            tcp().build(),
            transmitted,
        )),
        slow(path(
            "tcp4 in transition, older than the change",
            &changing,
            PLAIN,
            tcp().build(),
            transmitted,
        )),
        slow(path(
            "syn4 in transition",
            &changing,
            PLAIN,
            syn().build(),
            transmitted,
        )),
        slow(path(
            "tcp4, `track = \"always\"`, recorded",
            &recorded(always.clone()),
            ALWAYS,
            tcp().build(),
            transmitted,
        )),
        slow(path(
            "syn4, `track = \"always\"`",
            &always,
            ALWAYS,
            syn().build(),
            transmitted,
        )),
    ]
}

/// The loaded program of each setup, and what the kernel made of it.
#[derive(Debug, Default)]
pub struct Loaded(Vec<(Setup, Kernel, Translated)>);

impl Loaded {
    /// The one for this setup.
    ///
    /// # Errors
    /// See [`Kernel::load`] and [`Translated::read`].
    pub fn of(&mut self, setup: &Setup) -> anyhow::Result<(&mut Kernel, &Translated)> {
        let at = match self.0.iter().position(|(known, ..)| known == setup) {
            Some(at) => at,
            None => {
                let mut kernel = Kernel::load(setup)?;
                let translated = kernel.translated()?;
                self.0.push((*setup, kernel, translated));
                self.0.len() - 1
            }
        };
        let (_, kernel, translated) = &mut self.0[at];
        Ok((kernel, translated))
    }
}

/// Sends the path's packet through the kernel and executes it here. Both must answer the same, leave the same bytes in the
/// frame and the same in every map that the program names.
///
/// # Errors
/// What differs.
pub fn execute(loaded: &mut Loaded, path: &Path) -> anyhow::Result<Executed> {
    let (kernel, translated) = loaded.of(&path.given.setup)?;
    // The coarse clock may tick between the two; then both begin anew.
    loop {
        let ticks = now();
        let executed = execute_once(kernel, translated, path, ticks);
        if now() == ticks {
            return executed.with_context(|| path.name);
        }
    }
}

fn execute_once(
    kernel: &mut Kernel,
    translated: &Translated,
    path: &Path,
    ticks: u16,
) -> anyhow::Result<Executed> {
    path.given
        .install(&mut kernel.maps, ticks)
        .context("writing the maps")?;
    let before = contents(translated)?;
    let mut machine = Machine::new(translated, &before, u64::from(ticks) << TICK_SHIFT)?;
    let executed = machine.run(&path.frame.0)?;
    let (action, frame) = kernel.run(&path.frame.0)?;
    ensure!(
        action == path.action,
        "the kernel says {action:?} instead of {:?}",
        path.action
    );
    let number = match action {
        Action::Drop => 1,
        Action::Pass => 2,
        Action::Transmit => 3,
        Action::Redirect => 4,
    };
    ensure!(
        executed.action == number,
        "the kernel says {action:?}, the machine {}",
        executed.action
    );
    ensure!(
        executed.frame == frame,
        "the kernel's frame is\n{:?}\nthat of the machine\n{:?}",
        Frame(frame),
        Frame(executed.frame)
    );
    for (id, expected) in contents(translated)? {
        let name = &translated.maps[&id].name;
        ensure!(
            machine.values(id) == Some(&expected[..]),
            "kernel and machine do not agree on what {name} holds afterwards"
        );
    }
    Ok(executed)
}

/// What the maps hold that the program names; of the per-CPU ones the sums.
fn contents(translated: &Translated) -> anyhow::Result<BTreeMap<u32, Vec<u8>>> {
    let processors =
        aya::util::nr_cpus().map_err(|(what, error)| anyhow::Error::new(error).context(what))?;
    translated
        .named_maps()
        .into_iter()
        .filter(|found| found.name != map::REDIRECT)
        .map(|found| Ok((found.id, values(found.id, processors)?)))
        .collect()
}
