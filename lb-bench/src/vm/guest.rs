//! The inside of the virtual machine: this program is its first process, and all there is.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_userspace::bench::{
    figures::Series,
    frame::{Flows, Kind, recipe},
};
use nix::{
    mount::{MsFlags, mount},
    sys::reboot::{RebootMode, reboot},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use super::FLOOR;
use crate::{
    alone,
    live::{Way, Wire, apart, command},
    peers::Peer,
    rows::{ROOM, one4},
    scenes::{Scene, VIP4},
};

/// Where the modules are, in the order in which they are to be loaded.
pub(super) const MODULES: &str = "modules";
/// Directories that must be there.
pub(super) const MOUNT_POINTS: [&str; 3] = ["dev", "proc", "sys"];
/// Lines of the console that name a row begin so.
pub(super) const MARK: &str = "xdp-lb bench: ";
/// The second serial port: nothing but the results.
const RESULTS: &str = "/dev/ttyS1";

/// The module of IPVS, and the size of its table: a million entries, as many as it can have in every version, so that no chain
/// is long. Its default is 4,096.
const IPVS: (&str, &str) = ("-ip_vs.ko", "conn_tab_bits=20");

/// What is written before anything is measured: programs are compiled, as they are on any distribution.
const SETTINGS: [(&str, &str); 1] = [("/proc/sys/net/core/bpf_jit_enable", "1")];

/// What works frames off when there were too many for the moment. Until Linux 6.5 nobody else does while it waits (`ksoftirqd_running`,
/// kernel/softirq.c), so that frames are lost when it has to wait for the one who sends them.
const REST: &str = "ksoftirqd/0";

/// Known flows, 2 to this power: a run is seven times as many frames, and each of them is one instruction after another,
/// so that a million would take an hour and cost the same.
const FLOWS: Flows = Flows::Bits(14);

/// What one row is of.
#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    way: Way,
    kind: Kind,
    flows: Flows,
    /// Runs before the one that counts: in the first one connections are made and recorded.
    warm_ups: u32,
    scene: Scene,
}

impl Case {
    /// Packets in the middle of their connections, all of which are known where anybody keeps a record.
    const fn known(name: &'static str, way: Way) -> Self {
        Self {
            name,
            way,
            kind: Kind::Tcp,
            flows: FLOWS,
            warm_ups: 1,
            scene: Scene::one(std::net::IpAddr::V4(VIP4)),
        }
    }

    fn is_wanted(&self, wanted: &[String]) -> bool {
        wanted.is_empty() || wanted.iter().any(|part| self.name.contains(part.as_str()))
    }

    /// First packets, each of another connection.
    const fn syn(name: &'static str, way: Way) -> Self {
        Self {
            kind: Kind::Syn,
            flows: Flows::ENDLESS,
            // Every run has the same flows: in a second one all would be known.
            warm_ups: 0,
            ..Self::known(name, way)
        }
    }
}

/// All rows, the floor first.
const CASES: [Case; 9] = [
    Case::known(FLOOR, Way::Floor),
    Case::known("vm_xdp_lb", Way::DataPath),
    Case::syn("vm_xdp_lb_syn", Way::DataPath),
    Case {
        scene: Scene {
            flows: Some(ROOM),
            keys: "track = \"always\"",
            ..Scene::one(std::net::IpAddr::V4(VIP4))
        },
        ..Case::known("vm_xdp_lb_track_always", Way::DataPath)
    },
    Case::known("vm_ipvs_dr", Way::Peer(Peer::Ipvs)),
    Case {
        flows: Flows::One,
        ..Case::known("vm_ipvs_dr_one_flow", Way::Peer(Peer::Ipvs))
    },
    Case::syn("vm_ipvs_dr_syn", Way::Peer(Peer::Ipvs)),
    Case::known("vm_nftables_fwd_jhash", Way::Peer(Peer::Nftables)),
    Case::known("vm_bridge", Way::Peer(Peer::Bridge)),
];

/// What the guest tells the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Told {
    /// The kernel's release.
    pub(super) kernel: String,
    /// The rows.
    pub(super) rows: Vec<Figures>,
}

/// One row: instructions of one frame, on average over a lap.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Figures {
    /// Its name.
    pub(super) name: String,
    /// The fewest.
    pub(super) min: f64,
    /// The median.
    pub(super) median: f64,
}

/// Whether the name of any row contains one of `wanted`, or that is empty.
pub(super) fn is_wanted(wanted: &[String]) -> bool {
    CASES.iter().any(|case| case.is_wanted(wanted))
}

/// The rows that are wanted, and always the floor.
fn cases(wanted: &[String]) -> impl Iterator<Item = &'static Case> {
    CASES
        .iter()
        .filter(|case| case.name == FLOOR || case.is_wanted(wanted))
}

/// Measures the rows, tells them, and ends the machine.
pub(crate) fn first_process(wanted: &[String]) -> Result<()> {
    ensure!(
        process::id() == 1,
        "--guest is for the first process of the benchmark's own virtual machine, which `--vm` starts"
    );
    let told = everything(wanted).map_err(|error| format!("{error:#}"));
    if let Err(error) = tell(&told) {
        // The console is all that is left to tell it.
        eprintln!("{error:#}: {told:?}");
    }
    // QEMU is told to end where another machine would start again.
    reboot(RebootMode::RB_AUTOBOOT).context("ending the machine")?;
    Ok(())
}

fn everything(wanted: &[String]) -> Result<Told> {
    for (kind, place) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        mount(
            Some(kind),
            place,
            Some(kind),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("mounting {place}"))?;
    }
    for (setting, value) in SETTINGS {
        fs::write(setting, value).with_context(|| format!("writing {setting}"))?;
    }
    let rest = thread(Path::new("/proc"), REST)?;
    ensure!(alone::put_before(rest), "{REST} stays behind this program");
    for module in modules(&Path::new("/").join(MODULES))? {
        load(&module)?;
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's name")?;
    let rows = cases(wanted).map(|case| {
        // Before a line of the kernel's that has no end yet.
        eprintln!("\n{MARK}{}", case.name);
        figures(case).with_context(|| case.name)
    });
    Ok(Told {
        kernel: release.trim().into(),
        rows: rows.collect::<Result<_>>()?,
    })
}

/// The number of the first thread of this name.
fn thread(proc: &Path, name: &str) -> Result<Pid> {
    let entries = fs::read_dir(proc).with_context(|| format!("reading {}", proc.display()))?;
    for path in entries {
        let path = path?.path();
        if fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name)
            && let Some(number) = path.file_name().and_then(|name| name.to_str())
        {
            return Ok(Pid::from_raw(number.parse()?));
        }
    }
    bail!("there is no {name}")
}

/// The modules, in their order.
fn modules(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut all = fs::read_dir(directory)
        .and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.path()))
                .collect::<std::io::Result<Vec<_>>>()
        })
        .with_context(|| format!("reading {}", directory.display()))?;
    all.sort();
    Ok(all)
}

/// Loads one, by the distribution's own program, which knows how the distribution compresses them.
fn load(module: &Path) -> Result<()> {
    let path = module.to_string_lossy();
    let (ipvs, size) = IPVS;
    let size = path.contains(ipvs).then_some(size);
    command("insmod", std::iter::once(path.as_ref()).chain(size))
}

fn figures(case: &Case) -> Result<Figures> {
    let laps: Series = apart(|| {
        let recipe = recipe(case.kind, case.flows, &one4());
        let mut wire = Wire::new(&recipe, &case.scene)?;
        Ok(wire.way(case.way, case.warm_ups)?.into_iter().collect())
    })?;
    Ok(Figures {
        name: case.name.into(),
        min: laps.min().context("no lap was measured")?,
        median: laps.median().context("no lap was measured")?,
    })
}

fn tell(told: &Result<Told, String>) -> Result<()> {
    let mut line = serde_json::to_string(told)?;
    line.push('\n');
    let mut port = File::options()
        .write(true)
        .open(RESULTS)
        .with_context(|| format!("opening {RESULTS}"))?;
    // Closing it waits until all is sent.
    port.write_all(line.as_bytes())
        .with_context(|| format!("writing to {RESULTS}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn names(wanted: &[String]) -> Vec<&'static str> {
        cases(wanted).map(|case| case.name).collect()
    }

    #[test]
    fn every_row_says_where_it_is_of_and_the_floor_is_always_there() {
        let all = names(&[]);
        assert_eq!(all.first(), Some(&FLOOR));
        assert!(all.iter().all(|name| name.starts_with("vm_")), "{all:?}");
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), CASES.len());
        assert_eq!(
            names(&["ipvs_dr_s".into(), "bridge".into()]),
            [FLOOR, "vm_ipvs_dr_syn", "vm_bridge"]
        );
    }

    #[test]
    fn the_machine_is_only_started_for_a_row_of_it() {
        assert!(is_wanted(&[]) && is_wanted(&["floor".into()]));
        assert!(!is_wanted(&["tcp4".into(), "cores_2".into()]));
    }

    #[test]
    fn a_thread_is_found_by_its_name() {
        let proc = tempfile::tempdir().expect("a directory");
        for (number, name) in [("2", "kthreadd\n"), ("13", "ksoftirqd/0\n")] {
            fs::create_dir(proc.path().join(number)).expect("a directory");
            fs::write(proc.path().join(number).join("comm"), name).expect("a file");
        }
        assert_eq!(thread(proc.path(), REST).expect("found"), Pid::from_raw(13));
        let error = thread(proc.path(), "ksoftirqd/1").expect_err("there is one processor");
        assert!(error.to_string().contains("ksoftirqd/1"), "{error}");
    }

    #[test]
    fn modules_are_loaded_in_their_order() {
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["010-c.ko", "002-b.ko.xz", "001-a.ko"] {
            fs::write(directory.path().join(name), "").expect("a file");
        }
        let all = modules(directory.path()).expect("read");
        let names: Vec<_> = all.iter().filter_map(|path| path.file_name()).collect();
        assert_eq!(names, ["001-a.ko", "002-b.ko.xz", "010-c.ko"]);
        assert!(modules(&directory.path().join("nowhere")).is_err());
    }

    #[test]
    fn it_is_no_first_process_here() {
        let error = first_process(&[]).expect_err("it would end this machine");
        assert!(error.to_string().contains("--vm"), "{error}");
    }
}
