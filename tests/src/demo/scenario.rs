//! What happens in the demo, in which order, and what is looked at meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lb_userspace::api::Status;

use super::ledger::Stayed;
use super::stage::Stage;
use crate::testbed::{LARGE_BYTES, StatusExt as _};

/// The backend whose nginx is stopped.
const STOPPED: &str = "b2";
/// The backend that is drained.
const DRAINED: &str = "b3";
/// The backend that loses the VIP.
const WITHOUT_VIP: &str = "b4";
/// What the reason of a backend without the VIP must say.
const VIP_REASON: &str = "VIP not served";
/// How many downloads run through the backend that is drained.
const DOWNLOADS: usize = 3;

/// How long the phases last, as parts of the whole show. A phase takes longer where what it waits for does.
const WARM_UP: f64 = 0.14;
const STOP: f64 = 0.18;
const DRAIN: f64 = 0.30;
const LOSE_VIP: f64 = 0.18;
const RETURN: f64 = 0.20;
/// How long the downloads last, as a part of the whole show: into the drain, but not to the end of its phase.
const DOWNLOAD: f64 = 0.14;

/// What a planted failure led to.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) backend: &'static str,
    /// When it was planted.
    pub(super) planted: Instant,
    /// How long until the status showed it.
    pub(super) seen_after: Duration,
    /// Why the backend is down, as the status says.
    pub(super) reason: String,
    /// The clients of the backends that were up and stayed so.
    pub(super) others: Stayed,
}

/// What the drain led to.
#[derive(Clone, Debug)]
pub(super) struct Drain {
    /// How many downloads ran through the backend.
    pub(super) downloads: usize,
    /// Those that did not end whole: who, and why.
    pub(super) broken: Vec<String>,
    /// Requests begun after the drain that the backend answered.
    pub(super) new_flows: usize,
    /// From the command until the backend was empty.
    pub(super) took: Duration,
    /// The clients of the backend that is neither drained nor down.
    pub(super) others: Stayed,
}

/// All that was seen and is not in the ledger.
#[derive(Clone, Debug)]
pub(super) struct Findings {
    pub(super) stopped: Failure,
    pub(super) drain: Drain,
    pub(super) without_vip: Failure,
    /// Whether the status named the missing VIP.
    pub(super) vip_named: bool,
    /// The clients that are at the end where they were at the beginning.
    pub(super) back_home: Stayed,
}

/// Plays the whole show, in about `seconds`.
pub(super) fn play(stage: &mut Stage<'_>, seconds: u32) -> Result<Findings> {
    let part = |part: f64| Duration::from_secs(u64::from(seconds)).mul_f64(part);

    stage.headline(
        "1. Four backends serve",
        "Each client address hashes to a slot of a table, and the slot names its backend:\n\
         there is no connection table.",
    )?;
    stage.run_until(Instant::now() + part(WARM_UP))?;
    let homes = stage.ledger.homes().clone();
    stage.event(&format!("clients per backend: {}", shares(&homes)))?;

    let stopped = stop_server(stage, Instant::now() + part(STOP))?;
    let drain = drain(stage, Instant::now() + part(DRAIN), part(DOWNLOAD))?;
    let without_vip = lose_vip(stage, Instant::now() + part(LOSE_VIP))?;
    let back_home = all_return(stage, Instant::now() + part(RETURN), &homes)?;
    let vip_named = without_vip.reason.contains(VIP_REASON);
    Ok(Findings {
        stopped,
        drain,
        without_vip,
        vip_named,
        back_home,
    })
}

fn stop_server(stage: &mut Stage<'_>, until: Instant) -> Result<Failure> {
    stage.headline(
        &format!("2. nginx on {STOPPED} is stopped"),
        "A failure: the probes must see it, and its clients move at once. The clients of the\n\
         others must not notice.",
    )?;
    let homes = stage.ledger.homes().clone();
    let planted = Instant::now();
    stage.ledger.planted(planted);
    stage.server(STOPPED)?.stop()?;
    stage.event(&format!("nginx on {STOPPED} is stopped"))?;
    watch_failure(stage, STOPPED, planted, until, &homes, &[STOPPED])
}

fn lose_vip(stage: &mut Stage<'_>, until: Instant) -> Result<Failure> {
    stage.headline(
        &format!("4. {WITHOUT_VIP} loses the VIP from its loopback"),
        "The classic silent black hole of direct server return: the server runs, and answers on\n\
         its own address. Only a probe that goes to the VIP, as clients do, can see it.",
    )?;
    let homes = stage.ledger.homes().clone();
    let planted = Instant::now();
    stage.ledger.planted(planted);
    stage.host(WITHOUT_VIP).remove_vip()?;
    stage.event(&format!(
        "the VIP is taken from {WITHOUT_VIP}; its nginx runs on"
    ))?;
    watch_failure(
        stage,
        WITHOUT_VIP,
        planted,
        until,
        &homes,
        &[WITHOUT_VIP, STOPPED, DRAINED],
    )
}

/// Waits until a planted failure is seen, shows what becomes of its share, and measures.
fn watch_failure(
    stage: &mut Stage<'_>,
    backend: &'static str,
    planted: Instant,
    until: Instant,
    homes: &HashMap<IpAddr, String>,
    not_serving: &[&str],
) -> Result<Failure> {
    let (status, seen) = stage.wait_for(&format!("{backend} is down"), |status| {
        state_is(status, backend, "down")
    })?;
    stage.ledger.detected(seen);
    let seen_after = seen - planted;
    let reason = status
        .backend(backend)
        .map(|backend| backend.reason.clone())
        .unwrap_or_default();
    stage.event(&format!(
        "{backend} is seen down after {} ms: {reason}",
        seen_after.as_millis()
    ))?;
    stage.run_until(until)?;
    let others = stage.ledger.stayed(homes, not_serving, planted);
    stage.event(&format!(
        "its share has moved ({}); {} of {} clients of the others stayed where they were",
        shares(stage.ledger.homes()),
        others.stayed,
        others.of
    ))?;
    Ok(Failure {
        backend,
        planted,
        seen_after,
        reason,
        others,
    })
}

fn drain(stage: &mut Stage<'_>, until: Instant, download: Duration) -> Result<Drain> {
    stage.headline(
        &format!("3. {DRAINED} is drained while long downloads run through it"),
        "Planned maintenance, as before an update: no new flow reaches it, not even of a client\n\
         that was there before, and its existing flows stay until they end.",
    )?;
    let homes = stage.ledger.homes().clone();
    let mut sources: Vec<IpAddr> = homes
        .iter()
        .filter(|home| home.1 == DRAINED)
        .map(|home| *home.0)
        .collect();
    sources.sort();
    sources.truncate(DOWNLOADS);
    stage.start_downloads(&sources, download)?;
    while stage
        .downloads()
        .iter()
        .any(|(_, download)| !download.ended() && download.progress().bytes == 0)
    {
        stage.tick()?;
    }
    let through = |stage: &Stage<'_>| {
        let here =
            |report: crate::testbed::DownloadReport| report.backend.as_deref() == Some(DRAINED);
        stage
            .downloads()
            .iter()
            .filter(|(_, download)| here(download.progress()) && !download.ended())
            .count()
    };
    let downloads = through(stage);
    ensure!(
        downloads > 0,
        "no download runs through {DRAINED}, so its drain would show nothing"
    );
    stage.event(&format!("{downloads} downloads run through {DRAINED}"))?;

    let asked = Instant::now();
    stage.daemon.cli_ok(&["drain", DRAINED])?;
    let drained = Instant::now();
    stage.event(&format!(
        "`xdp-lb drain {DRAINED}` is done: new flows go elsewhere from now on"
    ))?;
    while stage
        .downloads()
        .iter()
        .any(|(_, download)| !download.ended())
    {
        stage.tick()?;
    }
    let mut broken = Vec::new();
    for (source, download) in stage.take_downloads() {
        let report = download.finish()?;
        match report.error {
            None => stage.event(&format!(
                "the download of {source} has ended whole: {} bytes",
                report.bytes
            ))?,
            Some(error) => {
                let text = format!(
                    "the download of {source} broke after {} of {LARGE_BYTES} bytes: {error}",
                    report.bytes
                );
                stage.event(&text)?;
                broken.push(text);
            }
        }
    }
    let (_, empty) = stage.wait_for(&format!("{DRAINED} is drained"), |status| {
        state_is(status, DRAINED, "drained")
    })?;
    let took = empty - asked;
    stage.event(&format!(
        "{DRAINED} is drained after {:.1} s: nothing runs there, it can be switched off",
        took.as_secs_f64()
    ))?;
    stage.run_until(until)?;
    let new_flows = stage.ledger.answered_since(DRAINED, drained);
    let others = stage.ledger.stayed(&homes, &[DRAINED, STOPPED], drained);
    stage.event(&format!(
        "requests that reached {DRAINED} since the drain: {new_flows}"
    ))?;
    Ok(Drain {
        downloads,
        broken,
        new_flows,
        took,
        others,
    })
}

fn all_return(
    stage: &mut Stage<'_>,
    until: Instant,
    homes: &HashMap<IpAddr, String>,
) -> Result<Stayed> {
    stage.headline(
        "5. All return",
        "The same backends make the same table, so every client goes back to where it began.",
    )?;
    stage.server(STOPPED)?.resume()?;
    stage.daemon.cli_ok(&["resume", DRAINED])?;
    stage.host(WITHOUT_VIP).add_vip()?;
    stage.event(&format!(
        "nginx on {STOPPED} runs again, `xdp-lb resume {DRAINED}` is done, {WITHOUT_VIP} has the VIP again"
    ))?;
    let (_, up) = stage.wait_for("every backend is up again", Status::all_up)?;
    stage.event("every backend is up again")?;
    stage.run_until(until)?;
    let back_home = stage.ledger.stayed(homes, &[], up);
    stage.event(&format!(
        "clients per backend: {}; {} of {} are where they began",
        shares(stage.ledger.homes()),
        back_home.stayed,
        back_home.of
    ))?;
    Ok(back_home)
}

fn state_is(status: &Status, backend: &str, state: &str) -> bool {
    status
        .backend(backend)
        .is_some_and(|backend| backend.state == state)
}

/// How many clients each backend has, as text.
fn shares(homes: &HashMap<IpAddr, String>) -> String {
    let mut shares: BTreeMap<&str, usize> = BTreeMap::new();
    for backend in homes.values() {
        *shares.entry(backend).or_default() += 1;
    }
    shares
        .iter()
        .map(|(backend, clients)| format!("{backend} {clients}"))
        .collect::<Vec<_>>()
        .join(", ")
}
