//! Probes at an interval: one small task per backend.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::pace::Pace;
use super::sockets::Sockets;
use super::{ProbeId, ProbeResult, ProbeSpec};

/// The result of one probe of a [`Prober`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeReport {
    /// Which backend was probed.
    pub backend: ProbeId,
    /// What the probe found.
    pub result: ProbeResult,
    /// When it was found.
    pub at: SystemTime,
    /// The same moment, for measuring what is done about it.
    pub found: Instant,
    /// Tells the probes of a backend from those it had before its spec was changed.
    generation: u64,
}

/// What [`Prober::apply`] changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Backends that are probed now and were not before.
    pub started: Vec<ProbeId>,
    /// Backends whose probe has changed.
    pub replaced: Vec<ProbeId>,
    /// Backends that are probed no longer.
    pub stopped: Vec<ProbeId>,
}

struct Running {
    spec: ProbeSpec,
    generation: u64,
    task: AbortHandle,
}

/// Probes of an interval of a second or more begin in step with a clock that ticks so often. A thousand backends that are
/// probed each second would wake the process a thousand times a second; so it is twenty-five times, for forty probes each. What
/// a probe needs is found in the caches then, where the one before has left it.
const STEP: Duration = Duration::from_millis(40);

/// As often a shorter interval is divided.
const STEPS: u32 = 25;

/// The first moment of the clock, from `due` on, both since the clock began.
fn in_step(due: Duration, interval: Duration) -> Duration {
    let step = (interval / STEPS).clamp(Duration::from_millis(1), STEP);
    let steps = due.as_nanos().div_ceil(step.as_nanos());
    step.saturating_mul(u32::try_from(steps).unwrap_or(u32::MAX))
}

/// Probes a set of backends, each at its own interval; never twice at once. Dropped, it stops.
pub struct Prober {
    /// When the clock of all probes began.
    clock: Instant,
    reports: mpsc::Sender<ProbeReport>,
    running: HashMap<ProbeId, Running>,
    generation: u64,
    /// From the first probe on, if they could be had.
    sockets: Option<Arc<Sockets>>,
}

impl Prober {
    /// A prober of nobody. Results go to `reports`; a full channel delays the next probes.
    #[must_use]
    pub fn new(reports: mpsc::Sender<ProbeReport>) -> Self {
        Self {
            clock: Instant::now(),
            reports,
            running: HashMap::new(),
            generation: 0,
            sockets: None,
        }
    }

    /// Makes the set of probes what is wanted. Probes whose spec is the same go on undisturbed.
    /// To be called within a tokio runtime.
    pub fn apply(&mut self, wanted: &BTreeMap<ProbeId, ProbeSpec>) -> Applied {
        let mut applied = Applied::default();
        let mut gone: Vec<_> = self
            .running
            .keys()
            .filter(|id| !wanted.contains_key(id))
            .copied()
            .collect();
        gone.sort_unstable();
        for id in gone {
            self.stop(id);
            applied.stopped.push(id);
        }
        for (id, spec) in wanted {
            match self.running.get(id) {
                Some(running) if running.spec == *spec => continue,
                Some(_) => applied.replaced.push(*id),
                None => applied.started.push(*id),
            }
            self.start(*id, spec.clone());
        }
        applied
    }

    /// Makes one backend's probe what is wanted, or none. One whose spec is the same goes on undisturbed. To be called
    /// within a tokio runtime.
    pub fn follow(&mut self, backend: ProbeId, wanted: Option<&ProbeSpec>) {
        match wanted {
            None => {
                self.stop(backend);
            }
            Some(spec) => {
                let same = self
                    .running
                    .get(&backend)
                    .is_some_and(|running| running.spec == *spec);
                if !same {
                    self.start(backend, spec.clone());
                }
            }
        }
    }

    /// Starts probing a backend, or replaces its probe. To be called within a tokio runtime.
    pub fn start(&mut self, backend: ProbeId, spec: ProbeSpec) {
        self.stop(backend);
        self.generation += 1;
        let generation = self.generation;
        if self.sockets.is_none() {
            // Without, each probe has a socket of its own, or says why it can't have one.
            self.sockets = Sockets::new().ok().map(Arc::new);
        }
        let task = tokio::spawn(run(
            backend,
            spec.clone(),
            generation,
            self.clock,
            self.sockets.clone(),
            self.reports.clone(),
        ));
        self.running.insert(
            backend,
            Running {
                spec,
                generation,
                task: task.abort_handle(),
            },
        );
    }

    /// Stops probing a backend; `false` if it was not probed.
    pub fn stop(&mut self, backend: ProbeId) -> bool {
        let running = self.running.remove(&backend);
        if let Some(running) = &running {
            running.task.abort();
        }
        running.is_some()
    }

    /// Whether the report is of a probe that still runs; one that waited in the channel while its
    /// probe was stopped or replaced is not, and must not count.
    #[must_use]
    pub fn is_current(&self, report: &ProbeReport) -> bool {
        self.running
            .get(&report.backend)
            .is_some_and(|running| running.generation == report.generation)
    }

    /// The backends that are probed, and how.
    pub fn probes(&self) -> impl Iterator<Item = (ProbeId, &ProbeSpec)> {
        self.running
            .iter()
            .map(|(id, running)| (*id, &running.spec))
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        for running in self.running.values() {
            running.task.abort();
        }
    }
}

async fn run(
    backend: ProbeId,
    spec: ProbeSpec,
    generation: u64,
    clock: Instant,
    sockets: Option<Arc<Sockets>>,
    reports: mpsc::Sender<ProbeReport>,
) {
    let mut pace = Pace::new(u64::from(backend.0), spec.interval);
    let start = Instant::now();
    let mut due = pace.first();
    loop {
        let begin = clock + in_step(start.saturating_duration_since(clock) + due, spec.interval);
        tokio::time::sleep_until(begin.into()).await;
        let result = super::probe_by(&spec, sockets.as_deref()).await;
        let report = ProbeReport {
            backend,
            result,
            at: SystemTime::now(),
            found: Instant::now(),
            generation,
        };
        if reports.send(report).await.is_err() {
            // Nobody listens any more: the controller is on its way out.
            return;
        }
        due = pace.after(start.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_of_many_backends_begin_at_few_moments() {
        for (interval, moments) in [
            (Duration::from_millis(100), 25),
            (Duration::from_secs(1), 25),
            (Duration::from_secs(30), 25),
        ] {
            let begun: std::collections::BTreeSet<Duration> = (0..10_000)
                .map(|backend| Pace::new(backend, interval).first())
                .map(|due| in_step(due, interval))
                .collect();
            assert!(begun.len() <= moments + 1, "{interval:?}: {}", begun.len());
        }
    }

    #[test]
    fn a_probe_is_never_early_and_late_by_less_than_a_step() {
        for interval in [100, 250, 999, 1000, 60_000].map(Duration::from_millis) {
            for due in (0..5_000_000_000_u64).step_by(7_654_321) {
                let due = Duration::from_nanos(due);
                let late = in_step(due, interval).checked_sub(due);
                let step = (interval / STEPS).min(STEP);
                assert!(
                    late.is_some_and(|late| late < step),
                    "{interval:?}, {due:?}"
                );
            }
        }
    }
}
