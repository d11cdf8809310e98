//! A data path as the controller makes it, from a configuration, on interfaces that need not be there: attached to nothing,
//! pinned nowhere.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use lb_userspace::{
    config::{Config, Unserved},
    control::{
        actual::{Actual, Millis},
        decisions::{Decision, Decisions},
        execute::Executor,
        features::features,
        fixed::sizes,
        knowledge::{Knowledge, Neighbour},
        ports::PortState,
        reconcile::{Scope, reconcile},
    },
    dataplane::{
        Instance, Maps,
        live::{attach_datapath, detach_datapath},
        load,
        rig::Target,
    },
    neighbour::{HostFacts, Interface, Link},
};

/// The director's MAC address.
pub(crate) const DIRECTOR_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0xfe];
/// The interface that every configuration names.
pub(crate) const INTERFACE: &str = "eth0";
/// Its number here; nothing is sent through it.
const IFINDEX: u32 = 1;
/// The subnets of the director and the backends.
const SUBNETS: [&str; 2] = ["10.255.255.254/8", "2001:db8::ffff/32"];
/// The seed of the hash: always the same, so that every run measures the same picks.
const SEED: [u64; 2] = [0x0123_4567_89ab_cdef, 0x0f1e_2d3c_4b5a_6978];

/// A loaded program with its maps, and the controller's part of them.
pub(crate) struct Stage {
    knowledge: Knowledge,
    executor: Executor,
    object: Ebpf,
    /// The program.
    pub(crate) target: Target,
}

impl Stage {
    /// Loads the program for a configuration, and fills the maps with every backend up.
    pub(crate) fn new(text: &str) -> Result<Self> {
        let config = Config::parse("benchmark", text)
            .map_err(|errors| anyhow::anyhow!("{}", errors.render(false)))?;
        let facts = host()?;
        let sizes = sizes(&config);
        let features = features(&config, &facts);
        let instance = Instance {
            mac: DIRECTOR_MAC,
            port: 0,
            unserved_pass: config.node.unserved == Unserved::Pass,
            flow_buckets: sizes.flow_buckets,
            flow6_buckets: sizes.flow6_buckets,
            fragment_buckets: sizes.fragment_buckets,
            features,
            cluster_mac: [0; 6],
        };
        let mut object = load::load(None, &sizes, &instance).context("loading the data path")?;
        let target = Target::of_object(&mut object)?;
        let mut maps = Maps::of_object(&mut object)?;
        maps.control().seed0.set(SEED[0]);
        maps.control().seed1.set(SEED[1]);
        maps.set_features(features);
        let port = PortState {
            number: 0,
            name: INTERFACE.into(),
            ifindex: IFINDEX,
            mac: DIRECTOR_MAC,
            vlan: None,
        };
        maps.set_port(0, port.entry())?;
        let bits = (maps.service_buckets().len() / 2).max(2).ilog2() as u8;
        let actual = Actual::empty(
            maps.slot_capacity(),
            maps.service_capacity(),
            maps.backend_capacity(),
            bits,
        );
        let mut stage = Self {
            knowledge: Knowledge::new(config, Decisions::default(), vec![port], facts, false),
            executor: Executor::new(maps, actual),
            object,
            target,
        };
        stage.resolve();
        stage.apply()?;
        Ok(stage)
    }

    /// Every backend has answered who it is.
    fn resolve(&mut self) {
        for target in self.knowledge.targets() {
            let mac = match target.address {
                IpAddr::V4(address) => {
                    let [a, b, c, d] = address.octets();
                    [0x02, 0x04, a, b, c, d]
                }
                IpAddr::V6(address) => {
                    let [.., a, b, c, d] = address.octets();
                    [0x02, 0x06, a, b, c, d]
                }
            };
            let neighbour = Neighbour {
                mac: Some(mac),
                reason: String::new(),
            };
            self.knowledge.neighbours.insert(target, neighbour);
        }
    }

    /// Drains backends, the first ones first, until this share of the slots is in transition: that of a drained backend, and
    /// what a Maglev table moves besides.
    pub(crate) fn drain(&mut self, percent: u64) -> Result<()> {
        let decision = Decision {
            drained: true,
            ..Decision::default()
        };
        let services = self.knowledge.config().services.clone();
        let most = services.iter().map(|s| s.backends.len()).max().unwrap_or(0);
        let (mut unsettled, all) = self.in_transition();
        for backend in 0..most {
            if 100 * unsettled >= percent * all {
                break;
            }
            for service in &services {
                if let Some(backend) = service.backends.get(backend) {
                    self.knowledge
                        .decisions
                        .set(&service.name, &backend.name, decision);
                }
            }
            self.apply()?;
            (unsettled, _) = self.in_transition();
        }
        ensure!(
            unsettled.abs_diff(all * percent / 100) <= all / 50,
            "{unsettled} of {all} slots are in transition instead of {percent} %: the row would be of something else"
        );
        Ok(())
    }

    /// Runs `work` while the program is attached to an interface of this thread's namespace.
    pub(crate) fn attached<T>(
        &mut self,
        ifindex: u32,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let id = attach_datapath(&mut self.object, ifindex)?;
        let result = work();
        detach_datapath(&mut self.object, id)?;
        result
    }

    /// How many of all slots are in transition, and how many slots there are.
    fn in_transition(&self) -> (u64, u64) {
        let actual = &self.executor.actual;
        let slots = actual.services().values().map(|s| s.slots.len() as u64);
        let unsettled = actual
            .services()
            .keys()
            .map(|id| u64::from(actual.in_transition(*id)));
        (unsettled.sum(), slots.sum())
    }

    /// Brings the maps to what is known.
    fn apply(&mut self) -> Result<()> {
        let desired = self.knowledge.desired(&self.executor.actual);
        let now: Millis = 0;
        let ops = reconcile(&desired, Scope::All, &self.executor.actual, 0, now)?;
        self.executor.execute(&ops, now, || now)?;
        Ok(())
    }
}

/// The host of the configurations.
fn host() -> Result<HostFacts> {
    let addresses = SUBNETS
        .map(str::parse)
        .into_iter()
        .collect::<Result<_, _>>()?;
    Ok(HostFacts {
        interfaces: vec![Interface {
            link: Link {
                ifindex: IFINDEX,
                name: INTERFACE.into(),
                mac: Some(DIRECTOR_MAC),
                mtu: 1500,
                up: true,
                running: true,
                loopback: false,
                xdp: None,
                vlan: None,
            },
            addresses,
            driver: None,
            takes_own_source: false,
        }],
    })
}
