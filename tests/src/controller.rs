//! What the controller takes: the time of a start and of a failure, memory, and the processor time of an idle one. Measured
//! from outside, on the binary as it is run, in a network of namespaces.
//!
//! `cargo run -p lb-tests --bin controller`; times mean something for an optimised binary (`XDP_LB_BINARY`) on a machine
//! that does nothing else.

use std::thread::sleep;
use std::time::{Duration, Instant};

use lb_userspace::api::{ApplyKind, LastApply, Status};
use lb_userspace::dataplane::{Access, Maps};

use crate::testbed::scene::NO_PROBE;
use crate::testbed::{
    DEADLINE, Error, Farm, Resident, Result, StatusExt as _, XdpLb, processor_time,
};

/// A `[service.probe]` of a handshake each second, by the clients' way.
pub const TCP_PROBE: &str = "[service.probe]\ntype = \"tcp\"\nport = 80\ninterval = \"1s\"\ntimeout = \"500ms\"\nrise = 2\nfall = 3\n";
/// The same to the backend's own address, which can be silenced for each of a [`Farm`]'s backends alone; `fall` that fail in a
/// row make it `down`.
fn own_probe(fall: u32) -> String {
    let (interval, timeout) = (INTERVAL.as_millis(), TIMEOUT.as_millis());
    format!(
        "[service.probe]\ntype = \"tcp\"\nport = 80\nvia = \"address\"\ninterval = \"{interval}ms\"\n\
         timeout = \"{timeout}ms\"\nrise = 1\nfall = {fall}\n"
    )
}
/// From one probe of [`own_probe`] to the next.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long such a probe waits for an answer.
const TIMEOUT: Duration = Duration::from_millis(500);
/// Longer than it takes to apply a failure.
const SETTLED: Duration = Duration::from_millis(500);
/// How often it is looked whether the tables are in the maps.
const LOOK: Duration = Duration::from_millis(2);
/// After everybody is up, until a daemon counts as idle.
const CALM: Duration = Duration::from_secs(3);

/// A start, from nothing or with what an earlier daemon left.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// From the command to the last table in the maps, with a backend for every slot.
    pub took: Duration,
    /// Processor time of it.
    pub processor: Duration,
    /// Memory afterwards.
    pub resident: Resident,
}

/// A daemon with nothing to do but to probe.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// Memory.
    pub resident: Resident,
    /// Share of one processor: 1.0 for all of it.
    pub processor: f64,
}

/// Starts a daemon of so many services with so many backends each, none of them probed, on sixteen addresses; then again with
/// what the first one left pinned.
///
/// # Errors
/// When the network can't be made, or the tables are not there in time.
pub fn load(services: usize, backends: usize) -> Result<[Load; 2]> {
    let farm = Farm::build("load", 16)?;
    let text = farm.config(services, backends, NO_PROBE);
    let mut daemon = XdpLb::prepare(farm.testbed(), &text)?;
    let fresh = load_once(&farm, &mut daemon, services)?;
    daemon.kill9()?;
    let again = load_once(&farm, &mut daemon, services)?;
    Ok([fresh, again])
}

fn load_once(farm: &Farm, daemon: &mut XdpLb, services: usize) -> Result<Load> {
    let times = daemon.times_running();
    let begun = Instant::now();
    daemon.spawn(&[])?;
    let pid = running(daemon)?;
    let mut last = "no maps".to_owned();
    while begun.elapsed() < DEADLINE {
        daemon.check_running()?;
        // It says so when everything that was pinned before has been reconciled.
        if daemon.times_running() > times
            && let Ok(maps) = Maps::open_pinned(&farm.testbed().pin_path(), Access::Read)
        {
            let loaded = tables(&maps);
            if loaded == services {
                return Ok(Load {
                    took: begun.elapsed(),
                    processor: processor_time(pid)?,
                    resident: Resident::of(pid)?,
                });
            }
            last = format!("{loaded} tables");
        }
        sleep(LOOK);
    }
    Err(Error::Timeout {
        what: format!("{services} tables in the maps"),
        waited: begun.elapsed(),
        last,
        log: daemon.log_tail(),
    })
}

/// How many services have a table whose last slot names a backend.
fn tables(maps: &Maps) -> usize {
    (0..maps.service_capacity())
        .filter_map(|id| maps.service_info(u16::try_from(id).ok()?).ok()?)
        .filter(|info| {
            let value = lb_common::service::ServiceValue(info.value);
            let last = value.offset() + (1 << value.bits()) - 1;
            maps.slot(last).is_some_and(|slot| slot.current() != 0)
        })
        .count()
}

/// A daemon of one service with so many backends, each probed once a second by the clients' way: what it takes within `time`
/// when all are up.
///
/// # Errors
/// When the network can't be made, or a backend is not up in time.
pub fn idle(backends: usize, time: Duration) -> Result<Idle> {
    let farm = Farm::build("idle", backends)?;
    let daemon = XdpLb::start(farm.testbed(), &farm.config(1, backends, TCP_PROBE))?;
    let pid = running(&daemon)?;
    sleep(CALM);
    let (begun, before) = (Instant::now(), processor_time(pid)?);
    sleep(time);
    let spent = processor_time(pid)?.saturating_sub(before);
    let processor = spent.as_secs_f64() / begun.elapsed().as_secs_f64();
    let status = daemon.status()?;
    if !status.all_up() {
        return Err(Error::Request(format!("not idle: {}", status.summary())));
    }
    Ok(Idle {
        resident: Resident::of(pid)?,
        processor,
    })
}

/// Failures of single backends, one after the other, as the daemon tells of them: one service has `probed` backends, probed at
/// their own addresses, and so many `others` have sixteen that are not probed. `fall` probes that fail make a backend `down`.
///
/// # Errors
/// When the network can't be made, or a failure is not seen in time.
pub fn failures(probed: usize, others: usize, times: usize, fall: u32) -> Result<Vec<LastApply>> {
    let farm = Farm::build("fail", probed.max(16))?;
    let mut text = farm.config(1, probed, &own_probe(fall));
    if others > 0 {
        let more = farm.config(others + 1, 16, NO_PROBE);
        let first = "\n[[service]]\nname = \"s1\"";
        text += more.find(first).map_or("", |start| &more[start..]);
    }
    let mut daemon = XdpLb::start(farm.testbed(), &text)?;
    let mut applied = Vec::new();
    for number in 0..times {
        let number = number * 7 % probed;
        let (name, address) = (format!("b{number}"), farm.addresses()[number]);
        let in_state = |status: &Status, state: &str| {
            let service = status.services.iter().find(|service| service.name == "s0");
            service.is_some_and(|service| {
                service
                    .backends
                    .iter()
                    .any(|backend| backend.name == name && backend.state == state)
            })
        };
        farm.silence(address)?;
        // Nobody asks before it has happened: the status of ten thousands of backends, told, read and polled for, keeps a small
        // machine's processors from the daemon.
        sleep((INTERVAL + TIMEOUT) * fall + SETTLED);
        let status = daemon.wait_for("a failure", |status| in_state(status, "down"))?;
        let apply = status
            .node
            .last_apply
            .filter(|apply| apply.kind == ApplyKind::Failure);
        applied.extend(apply);
        farm.wake(address)?;
        daemon.wait_for("a recovery", |status| in_state(status, "up"))?;
    }
    Ok(applied)
}

fn running(daemon: &XdpLb) -> Result<u32> {
    daemon
        .pid()
        .ok_or_else(|| Error::Request("the daemon does not run".into()))
}
