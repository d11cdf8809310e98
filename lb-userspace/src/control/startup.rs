//! From nothing, or from what is pinned, to a running data path; and back to nothing where that fails.

use std::{
    collections::BTreeSet,
    fs::File,
    io::ErrorKind,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use lb_common::{
    abi::{ABI_VERSION, MAGIC, MAX_PORTS, Port},
    features::Features,
};
use tracing::{info, warn};

use super::{
    actual::{Actual, Millis},
    adopt::adopt,
    decisions::Decisions,
    execute::Executor,
    features,
    fixed::{Held, other_limits, refuse_too_large, sizes},
    ports::PortState,
};
use crate::{
    config::{self, Config, Unserved, XdpMode},
    dataplane::{
        Access, DataplaneError, Instance, Maps,
        attach::{self, Mode, ProbeEgress, Wanted},
        bpffs,
        layout::maps_dir,
        load, memory,
    },
    neighbour::{AttachMode, HostFacts},
};

/// An interface with the program on it.
#[derive(Debug)]
pub struct Attachment {
    /// The interface.
    pub port: PortState,
    /// How the program runs there.
    pub mode: Mode,
    /// The kernel's id of the program.
    pub program_id: u32,
    /// The probes' egress program; ends with the daemon.
    _probe: ProbeEgress,
}

/// A running data path.
#[derive(Debug)]
pub struct Running {
    /// The maps and the picture of them.
    pub executor: Executor,
    /// The interfaces.
    pub attachments: Vec<Attachment>,
    /// Whether the maps were there already.
    pub adopted: bool,
    /// Keeps a second controller away from the same pins.
    _lock: File,
}

/// Removes what this start pinned, unless it was successful.
struct Undo<'a> {
    pin_path: &'a Path,
    made_maps: bool,
    attached: Vec<String>,
    armed: bool,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        for interface in &self.attached {
            let _ = attach::detach(self.pin_path, interface);
        }
        if self.made_maps {
            let _ = attach::remove_pins(self.pin_path);
        }
    }
}

/// Loads and attaches, or takes over what is pinned.
///
/// # Errors
/// The first trouble, with what to do about it; everything this start made is gone again then.
pub fn start(
    config: &Config,
    decisions: &mut Decisions,
    facts: &HostFacts,
    now: Millis,
) -> Result<Running> {
    let pin_path = &config.node.pin_path;
    if let Some(place) = bpffs::ensure(pin_path)? {
        info!(path = %place.display(), "mounted the BPF file system, which was missing");
    }
    let lock = lock(pin_path)?;
    let mut undo = Undo {
        pin_path,
        made_maps: false,
        attached: Vec::new(),
        armed: true,
    };

    // An interface that was taken out of the configuration is given back.
    for interface in attach::pinned_interfaces(pin_path)? {
        if !config.node.interfaces.contains(&interface) {
            attach::detach(pin_path, &interface)?;
            info!(interface, "detached: it is not in `interfaces` any more");
        }
    }

    let (maps, adopted) = match Maps::open_pinned(pin_path, Access::Write) {
        Ok(maps) => (maps, true),
        Err(DataplaneError::NotPinned { .. } | DataplaneError::HalfMade { .. }) => {
            undo.made_maps = true;
            clear_half_made(pin_path)?;
            (make_maps(config)?, false)
        }
        Err(error) => return Err(error.into()),
    };
    settle_seed(config, decisions, &maps, adopted)?;
    if !adopted {
        mark(&maps);
    }
    let actual = if adopted {
        adopt(&maps, now)?
    } else {
        let bits = (maps.service_buckets().len() / 2).max(2).ilog2() as u8;
        Actual::empty(
            maps.slot_capacity(),
            maps.service_capacity(),
            maps.backend_capacity(),
            bits,
        )
    };
    if adopted {
        refuse_too_large(&config.needs(), &Held::of(&maps))?;
        for difference in other_limits(config, &Held::of(&maps)) {
            warn!("{difference}: what is pinned keeps its size until the maps are made anew");
        }
        info!(
            pin_path = %pin_path.display(),
            services = actual.services().len(),
            backends = actual.backends().len(),
            "took over the pinned maps"
        );
    }
    let mut executor = Executor::new(maps, actual);
    // What the last controller's maps use as well, until this one's do not any more.
    let wanted = features::features(config, facts);
    let before = if adopted {
        executor.maps.features()
    } else {
        Features::NONE
    };
    executor.maps.set_features(before.with(wanted));
    let ports = number_ports(config, facts, &mut executor.maps)?;
    let attachments = attach_all(config, facts, &ports, &executor.maps, &mut undo)?;
    let_go(config)?;
    Ok(Running {
        attachments,
        executor,
        adopted,
        _lock: {
            undo.armed = false;
            lock
        },
    })
}

fn lock(pin_path: &Path) -> Result<File> {
    let directory =
        File::open(pin_path).with_context(|| format!("opening {}", pin_path.display()))?;
    if rustix::fs::flock(
        &directory,
        rustix::fs::FlockOperation::NonBlockingLockExclusive,
    )
    .is_err()
    {
        bail!(
            "another xdp-lb works on the maps under {}: stop it first, or give this instance another `pin_path`",
            pin_path.display()
        );
    }
    Ok(directory)
}

/// Makes and pins empty maps.
fn make_maps(config: &Config) -> Result<Maps> {
    let sizes = sizes(config);
    let planned = memory::room_for(&sizes)?;
    info!(
        bytes = planned.iter().map(|facts| facts.memory).sum::<u64>(),
        flows = sizes.flow_buckets,
        slots = sizes.slots,
        backends = sizes.backends - 1,
        "making the maps"
    );
    let instance = Instance {
        mac: [0; 6],
        port: 0,
        unserved_pass: false,
        flow_buckets: sizes.flow_buckets,
        flow6_buckets: sizes.flow6_buckets,
        fragment_buckets: sizes.fragment_buckets,
        features: Features::NONE,
        cluster_mac: [0; 6],
    };
    let dir = maps_dir(&config.node.pin_path);
    std::fs::create_dir_all(&dir)
        .with_context(|| format!("making the directory {}", dir.display()))?;
    // The object is loaded for its maps only: the programs are loaded for each interface.
    drop(load::load(Some(&config.node.pin_path), &sizes, &instance)?);
    Ok(Maps::open_unmarked(&config.node.pin_path)?)
}

/// Removes the maps of a start that was interrupted. No packet has met them: a program is attached when they are whole.
fn clear_half_made(pin_path: &Path) -> Result<()> {
    let dir = maps_dir(pin_path);
    if !attach::pinned_interfaces(pin_path)?.is_empty() {
        return Ok(());
    }
    match std::fs::remove_dir_all(&dir) {
        Ok(()) => {
            info!(path = %dir.display(), "removed the maps of a start that was interrupted");
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("removing {}", dir.display())),
    }
}

/// Says in the maps that they are whole and of which version. The last step of making them.
fn mark(maps: &Maps) {
    let control = maps.control();
    control.created.set(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs()),
    );
    control.abi.set(ABI_VERSION);
    control.magic.set(MAGIC);
}

/// Takes the program off interfaces that an earlier configuration named and this one does not.
fn let_go(config: &Config) -> Result<()> {
    let pin_path = &config.node.pin_path;
    for interface in attach::pinned_interfaces(pin_path)? {
        if !config.node.interfaces.contains(&interface) {
            attach::detach(pin_path, &interface)?;
            info!(
                interface,
                "detached: it is not in `interfaces` of [node] any more"
            );
        }
    }
    Ok(())
}

/// The hash seed: the configuration's, the pinned one, the kept one, or a new one; never a change of the one in use.
fn settle_seed(
    config: &Config,
    decisions: &mut Decisions,
    maps: &Maps,
    adopted: bool,
) -> Result<()> {
    let control = maps.control();
    if adopted {
        let pinned = [control.seed0.get(), control.seed1.get()];
        if config.node.seed.is_some_and(|wanted| wanted != pinned) {
            bail!(
                "`seed` in [node] is another than the one in use: with a new seed every client goes to another backend, \
                 which breaks all connections. To accept that, stop forwarding with `rm -r {}` and start again; else \
                 put the old seed back",
                config.node.pin_path.display()
            );
        }
        decisions.seed = config.node.seed.is_none().then_some(pinned);
        return Ok(());
    }
    let seed = match config.node.seed.or(decisions.seed) {
        Some(seed) => seed,
        None => {
            let mut bytes = [0; 16];
            getrandom::fill(&mut bytes)
                .map_err(|error| anyhow::anyhow!("asking the kernel for a random seed: {error}"))?;
            let (first, second) = bytes.split_at(8);
            [
                u64::from_ne_bytes(first.try_into().unwrap_or_default()),
                u64::from_ne_bytes(second.try_into().unwrap_or_default()),
            ]
        }
    };
    decisions.seed = config.node.seed.is_none().then_some(seed);
    control.seed0.set(seed[0]);
    control.seed1.set(seed[1]);
    Ok(())
}

/// Gives each interface a port number: the one it had, or a free one.
fn number_ports(config: &Config, facts: &HostFacts, maps: &mut Maps) -> Result<Vec<PortState>> {
    let existing = maps.ports()?;
    let mut taken = BTreeSet::new();
    let mut ports = Vec::new();
    let kept: BTreeSet<u32> = config
        .node
        .interfaces
        .iter()
        .filter_map(|name| {
            facts
                .interface(name)
                .map(|interface| interface.link.ifindex)
        })
        .collect();
    for (number, port) in (0..).zip(&existing) {
        if port.ifindex != 0 && !kept.contains(&port.ifindex) {
            maps.set_port(number, Port::default())?;
        }
    }
    let existing = maps.ports()?;
    for name in &config.node.interfaces {
        let interface = facts
            .interface(name)
            .with_context(|| format!("there is no interface {name}"))?;
        let mac = interface.link.mac.with_context(|| {
            format!("{name} has no MAC address: xdp-lb works on Ethernet interfaces")
        })?;
        let ifindex = interface.link.ifindex;
        let number = (0..MAX_PORTS as u16)
            .find(|n| {
                let port = existing[usize::from(*n)];
                port.ifindex == ifindex && port.vlan == 0
            })
            .or_else(|| {
                (0..MAX_PORTS as u16)
                    .find(|n| existing[usize::from(*n)].ifindex == 0 && !taken.contains(n))
            })
            .or_else(|| (0..MAX_PORTS as u16).find(|n| !taken.contains(n)))
            .with_context(|| format!("more than {MAX_PORTS} interfaces"))?;
        taken.insert(number);
        let port = PortState {
            number,
            name: name.clone(),
            ifindex,
            mac,
            vlan: None,
        };
        maps.set_port(number, port.entry())?;
        ports.push(port);
    }
    Ok(ports)
}

fn attach_all(
    config: &Config,
    facts: &HostFacts,
    ports: &[PortState],
    maps: &Maps,
    undo: &mut Undo<'_>,
) -> Result<Vec<Attachment>> {
    let mut attachments = Vec::new();
    for port in ports {
        let attachment = attach_one(config, facts, port, maps, undo)?;
        attachments.push(attachment);
    }
    Ok(attachments)
}

/// What is fixed in the program of one interface.
fn instance(config: &Config, port: &PortState, maps: &Maps, features: Features) -> Instance {
    Instance {
        mac: port.mac,
        port: port.number,
        unserved_pass: config.node.unserved == Unserved::Pass,
        flow_buckets: 1 << maps.flow_bits(),
        flow6_buckets: 1 << maps.flow6_bits(),
        fragment_buckets: 1 << maps.fragment_bits(),
        features,
        cluster_mac: config.cluster_mac().unwrap_or_default(),
    }
}

/// Whether native XDP on this interface would keep a cluster's frames from the host.
///
/// A veth has taken the frame for another host's before its native XDP sees it, and does not look again at the address
/// that the program writes (drivers/net/veth.c: `veth_forward_skb`, `veth_xdp_rcv_skb`); generic XDP does
/// (net/core/dev.c: `bpf_prog_run_generic_xdp`).
fn is_native_too_late(config: &Config, facts: &HostFacts, interface: &str) -> bool {
    config.node.mode == config::Mode::Pick
        && facts
            .interface(interface)
            .is_some_and(|interface| interface.driver.as_deref() == Some("veth"))
}

fn wanted(config: &Config) -> Wanted {
    match config.node.xdp_mode {
        XdpMode::Auto => Wanted::Auto,
        XdpMode::Native => Wanted::Native,
        XdpMode::Generic => Wanted::Generic,
    }
}

fn attach_one(
    config: &Config,
    facts: &HostFacts,
    port: &PortState,
    maps: &Maps,
    undo: &mut Undo<'_>,
) -> Result<Attachment> {
    let pin_path = &config.node.pin_path;
    let instance = instance(config, port, maps, maps.features());
    let mut object = load::load(Some(pin_path), &sizes(config), &instance)?;
    let not_native = is_native_too_late(config, facts, &port.name);
    let wanted = match wanted(config) {
        Wanted::Auto if not_native => Wanted::Generic,
        wanted => wanted,
    };
    let occupant = facts.interface(&port.name).and_then(|i| i.link.xdp);
    let attached = attach::attach(
        &mut object,
        pin_path,
        &port.name,
        port.ifindex,
        wanted,
        occupant.map(|xdp| xdp.program),
    )?;
    if !attached.adopted {
        undo.attached.push(port.name.clone());
    }
    let mode = attached.mode.unwrap_or(match occupant.map(|xdp| xdp.mode) {
        Some(AttachMode::Generic) => Mode::Generic,
        _ => Mode::Native,
    });
    let other_mode = matches!(
        (config.node.xdp_mode, mode),
        (XdpMode::Native, Mode::Generic) | (XdpMode::Generic, Mode::Native)
    );
    if other_mode {
        warn!(
            interface = port.name,
            mode = mode.name(),
            "the program that was taken over runs in another mode than `xdp_mode` says, and a change takes a moment \
             without any: to make it, end xdp-lb after a start with --detach-on-exit, and start it again"
        );
    }
    if mode == Mode::Generic {
        let why = match &attached.fallback {
            Some(error) => error.to_string(),
            None if not_native => {
                "on a veth pair, native XDP can't hand a cluster's frames to the host".to_owned()
            }
            None => "as configured".to_owned(),
        };
        warn!(
            interface = port.name,
            why,
            "generic XDP: every packet costs an sk_buff first, several times the time of native XDP; see the driver's \
             documentation for native support"
        );
    }
    info!(
        interface = port.name,
        mode = mode.name(),
        program = attached.program_id,
        adopted = attached.adopted,
        "attached"
    );
    let probe = attach::attach_probe(&mut object, &port.name)?;
    Ok(Attachment {
        port: port.clone(),
        mode,
        program_id: attached.program_id,
        _probe: probe,
    })
}

/// Puts programs with other features in place of those that run, behind the same links. The probes' egress programs stay: they
/// know no features.
///
/// # Errors
/// [`DataplaneError`]. Some interfaces may have their new program then; [`Maps::features`] still names the old features.
pub fn load_features(config: &Config, features: Features, running: &mut Running) -> Result<()> {
    let maps = &running.executor.maps;
    if maps.features() == features {
        return Ok(());
    }
    for attachment in &mut running.attachments {
        let instance = instance(config, &attachment.port, maps, features);
        let mut object = load::load(Some(&config.node.pin_path), &sizes(config), &instance)?;
        let attached = attach::attach(
            &mut object,
            &config.node.pin_path,
            &attachment.port.name,
            attachment.port.ifindex,
            wanted(config),
            Some(attachment.program_id),
        )?;
        attachment.program_id = attached.program_id;
    }
    maps.set_features(features);
    info!(
        features = features::names(features).join(" "),
        "the program knows other features now"
    );
    Ok(())
}

/// Loads the program of one interface anew, with its present MAC address, and puts it in place of the old one.
///
/// # Errors
/// [`DataplaneError`]; the old program then stays in place.
pub fn reload_program(
    config: &Config,
    facts: &HostFacts,
    port: &PortState,
    running: &mut Running,
) -> Result<()> {
    let maps = &mut running.executor.maps;
    maps.set_port(port.number, port.entry())?;
    let mut undo = Undo {
        pin_path: &config.node.pin_path,
        made_maps: false,
        attached: Vec::new(),
        armed: false,
    };
    // The old egress program goes first, so that two never aim the same probe.
    running
        .attachments
        .retain(|attachment| attachment.port.number != port.number);
    running.attachments.push(attach_one(
        config,
        facts,
        port,
        &running.executor.maps,
        &mut undo,
    )?);
    running
        .attachments
        .sort_by_key(|attachment| attachment.port.number);
    Ok(())
}
