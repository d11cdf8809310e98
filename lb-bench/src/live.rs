//! Live frames: out of one end of a veth pair, through a program or a peer at the other end, and back to where they are counted.

use std::{fs, process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use lb_userspace::{
    bench::{
        figures::Series,
        frame::{Flows, Kind, recipe},
        results::{Outcome, Unit},
    },
    dataplane::{
        live::{Live, Other, Sent},
        rig::Recipe,
    },
};
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, CpuSet, sched_setaffinity, unshare},
    unistd::Pid,
};

use crate::{
    alone::Alone,
    growth, peers,
    progress::Progress,
    rows::one4,
    scenes::{Scene, VIP4},
    stage::{DIRECTOR_MAC, Stage},
    targets::LIVE_RATE,
};

/// The end that frames are sent from and counted at.
const NEAR: &str = "near0";
/// The other end: the director's.
pub(crate) const FAR: &str = "far0";
/// The row that the target is about.
const ROUND_TRIP: &str = "live_round_trip";
const FLOOR: &str = "live_floor";
/// Laps of one run.
const LAPS: u32 = 60;
/// The first of them are those in which the frames' memory is made.
const UNSETTLED: usize = 8;
/// The kernel works off what is queued within this time after the last frame was sent.
const PATIENCE: Duration = Duration::from_secs(2);

/// Nothing but the benchmark's frames is to be on the wire, and a bridge is not to look into IP, whose checksum the generator
/// does not renew.
const SETTINGS: [(&str, &str); 2] = [
    ("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"),
    ("/proc/sys/net/bridge/bridge-nf-call-iptables", "0"),
];

/// What frames may meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The floor program.
    Floor,
    /// xdp-lb.
    DataPath,
    /// What a distribution has besides.
    Peer(peers::Peer),
}

/// The rows of live frames that are wanted.
pub(crate) fn run(wanted: impl Fn(&str) -> bool, bursts: u32) -> Result<Vec<Outcome>> {
    let peers = peers::Peer::HERE
        .into_iter()
        .filter(|peer| wanted(peer.name()));
    let mut ways: Vec<Way> = peers.map(Way::Peer).collect();
    let cores = [1, 2].map(|count| (count, format!("{}cores_{count}", growth::PREFIX)));
    let cores: Vec<(usize, String)> = cores.into_iter().filter(|(_, name)| wanted(name)).collect();
    if wanted(ROUND_TRIP) || !ways.is_empty() {
        ways.splice(0..0, [Way::Floor, Way::DataPath]);
    }
    if ways.is_empty() && cores.is_empty() {
        return Ok(Vec::new());
    }
    apart(|| {
        let recipe = recipe(Kind::Tcp, Flows::MILLION, &one4());
        let mut wire = Wire::new(&recipe, &Scene::one(VIP4.into()))?;
        let mut outcomes = wire.ways(&ways, bursts)?;
        for (count, name) in &cores {
            if let Some(outcome) = wire.cores(*count, name)? {
                outcomes.push(outcome);
            }
        }
        Ok(outcomes)
    })
}

/// Works in a thread of its own: its network namespace goes when it ends, with all that is in it.
pub(crate) fn apart<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// A veth pair in a network namespace of its own, and the data path.
pub(crate) struct Wire {
    live: Live,
    far: u32,
    stage: Stage,
}

impl Wire {
    /// Moves this thread into a new namespace and makes everything there: frames as the recipe says, a configuration as the
    /// scene is.
    pub(crate) fn new(recipe: &Recipe, scene: &Scene) -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
        for (setting, value) in SETTINGS {
            if fs::exists(setting).unwrap_or(false) {
                fs::write(setting, value).with_context(|| format!("writing {setting}"))?;
            }
        }
        let [a, b, c, d, e, f] = DIRECTOR_MAC;
        let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        ip(&format!(
            "link add {NEAR} numrxqueues 2 numtxqueues 2 type veth peer name {FAR} address {mac} numrxqueues 2 numtxqueues 2"
        ))?;
        ip(&format!("link set {NEAR} up"))?;
        ip(&format!("link set {FAR} up"))?;
        let near = if_nametoindex(NEAR)?;
        Ok(Self {
            live: Live::new(recipe, near)?,
            far: if_nametoindex(FAR)?,
            stage: Stage::new(&scene.text())?,
        })
    }

    fn ways(&mut self, ways: &[Way], bursts: u32) -> Result<Vec<Outcome>> {
        let progress = Progress::new("live frames", u64::from(bursts) * ways.len() as u64);
        let mut series: Vec<Series> = ways.iter().map(|_| Series::default()).collect();
        for _ in 0..bursts {
            for (way, series) in ways.iter().zip(&mut series) {
                progress.step(name(*way));
                series.extend(self.way(*way, 0)?);
            }
        }
        let of = |wanted: Way| {
            let place = ways.iter().position(|way| *way == wanted)?;
            Some((series[place].min()?, series[place].median()?))
        };
        let floor = of(Way::Floor);
        let outcomes = ways.iter().filter_map(|way| {
            let (min, median) = of(*way)?;
            let rate = Some(floor?.0 / min);
            Some(Outcome {
                name: name(*way).into(),
                unit: Unit::RateOfFloor,
                value: rate,
                min_ns: Some(min),
                median_ns: Some(median),
                ratio: rate,
                target: (*way == Way::DataPath).then_some(LIVE_RATE),
            })
        });
        Ok(outcomes.collect())
    }

    /// Nanoseconds of a frame, in each lap of one run; `warm_ups` runs come before it.
    pub(crate) fn way(&mut self, way: Way, warm_ups: u32) -> Result<Vec<f64>> {
        let far = self.far;
        let live = &mut self.live;
        let counted = |live: &mut Live| {
            for _ in 0..warm_ups {
                counted(live)?;
            }
            counted(live)
        };
        match way {
            Way::Floor => live.with(Other::Floor, far, counted),
            Way::DataPath => self.stage.attached(far, || counted(live)),
            // The peers are in the network stack; without a program at this end the veth takes no frame.
            Way::Peer(peer) => live.with(Other::Pass, far, |live| {
                peer.set_up()?;
                let result = counted(live);
                peer.take_down()?;
                result
            }),
        }
        .with_context(|| name(way))
    }

    /// Frames in a second from so many processors at once, through the data path.
    fn cores(&mut self, count: usize, name: &str) -> Result<Option<Outcome>> {
        let there = thread::available_parallelism().map_or(1, usize::from);
        if count > there {
            return Ok(None);
        }
        let progress = Progress::new("processors", 5);
        let live = &mut self.live;
        let mut best: f64 = 0.0;
        for _ in 0..5 {
            progress.step(name);
            let rate = self.stage.attached(self.far, || rate(live, count))?;
            best = best.max(rate);
        }
        Ok(Some(Outcome::amount(name, Unit::PerSecond, best, None)))
    }
}

const fn name(way: Way) -> &'static str {
    match way {
        Way::Floor => FLOOR,
        Way::DataPath => ROUND_TRIP,
        Way::Peer(peer) => peer.name(),
    }
}

/// One run on one processor; every frame must come back.
fn counted(live: &mut Live) -> Result<Vec<f64>> {
    let before = live.arrived()?;
    live.ready(LAPS)?;
    let sent = {
        let _alone = Alone::new();
        live.send(LAPS, last_cpu()?)?
    };
    all_back(live, before, sent.frames)?;
    Ok(sent.laps.into_iter().skip(UNSETTLED).collect())
}

/// The sum of the rates of so many processors that send at the same time.
fn rate(live: &mut Live, count: usize) -> Result<f64> {
    let before = live.arrived()?;
    live.ready(LAPS)?;
    let shared: &Live = live;
    let sent: Result<Vec<Sent>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|cpu| {
                scope.spawn(move || {
                    let mut one = CpuSet::new();
                    one.set(cpu)?;
                    sched_setaffinity(Pid::from_raw(0), &one)?;
                    anyhow::Ok(shared.send(LAPS, cpu)?)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    });
    let sent = sent?;
    all_back(live, before, sent.iter().map(|sent| sent.frames).sum())?;
    Ok(sent
        .iter()
        .filter_map(|sent| {
            // The median: of the shortest laps, one processor's may be those in which the other had ended.
            let series: Series = sent.laps.iter().skip(UNSETTLED).copied().collect();
            Some(1e9 / series.median()?)
        })
        .sum())
}

fn all_back(live: &Live, before: u64, frames: u64) -> Result<()> {
    let began = std::time::Instant::now();
    loop {
        let back = live.arrived()? - before;
        if back >= frames {
            return Ok(());
        }
        ensure!(
            began.elapsed() < PATIENCE,
            "of {frames} frames {back} came back: what the lost ones took is not what is measured"
        );
        thread::sleep(Duration::from_millis(5));
    }
}

/// The processor that [`Alone`] takes.
fn last_cpu() -> Result<usize> {
    Ok(nix::sched::sched_getcpu()?)
}

/// `ip` with these arguments, in this thread's namespace.
pub(crate) fn ip(arguments: &str) -> Result<()> {
    command("ip", arguments.split(' '))
}

pub(crate) fn command<'a>(program: &str, arguments: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments);
    let output = command
        .output()
        .with_context(|| format!("starting {program}"))?;
    if !output.status.success() {
        bail!(
            "`{command:?}` ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
