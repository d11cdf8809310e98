//! Load: real HTTP requests from a client's many addresses, each with a record of what became of it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::director::DEADLINE;
use super::error::{Error, IoContext, Result};
use super::host::Host;
use super::http::{Connection, Failure, runtime, thread_lost};

/// The finest pace of the timer; faster rates send several requests per tick.
const TICK: Duration = Duration::from_millis(1);
/// How often it is looked whether all have been answered.
const LOOK: Duration = Duration::from_millis(20);

/// What to send.
#[derive(Clone, Debug)]
pub struct LoadSpec {
    /// The VIP and port.
    pub target: SocketAddr,
    /// The addresses to send from, in turn; the client's own when empty.
    pub sources: Vec<IpAddr>,
    /// Requests per second, at most: a machine that cannot keep up sends fewer.
    pub rate: u32,
    /// After how long a request counts as failed.
    pub timeout: Duration,
    /// One connection per source address for all of its requests, instead of one per request.
    pub keep_alive: bool,
}

impl LoadSpec {
    /// Requests to `target` from all of the client's addresses, one connection each, 100 a second.
    #[must_use]
    pub fn new(target: SocketAddr) -> Self {
        Self {
            target,
            sources: Vec::new(),
            rate: 100,
            timeout: Duration::from_secs(1),
            keep_alive: false,
        }
    }
}

/// What became of one request.
#[derive(Clone, Debug)]
pub struct Record {
    /// When it was begun.
    pub start: Instant,
    /// When it had its whole answer, or failed.
    pub end: Instant,
    /// The address it came from.
    pub source: IpAddr,
    /// Who answered; `None` when nobody did.
    pub backend: Option<String>,
    /// Why it failed; `None` when it did not.
    pub error: Option<Failure>,
}

impl Record {
    /// How long it took.
    #[must_use]
    pub fn latency(&self) -> Duration {
        self.end - self.start
    }
}

/// A running load. Dropping it ends it.
#[derive(Debug)]
pub struct LoadGenerator {
    stop: Arc<AtomicBool>,
    records: Arc<Mutex<Vec<Record>>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl LoadGenerator {
    /// Starts to send from `host`.
    ///
    /// # Errors
    /// When there is no address to send from, or the thread cannot be started.
    pub fn start(host: &Host, spec: LoadSpec) -> Result<Self> {
        let mut spec = spec;
        if spec.sources.is_empty() {
            spec.sources = host.sources().to_vec();
        }
        if spec.sources.is_empty() || spec.rate == 0 {
            return Err(Error::Request(format!(
                "{} has no address to send from, or no rate to send at",
                host.name()
            )));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let records = Arc::new(Mutex::new(Vec::new()));
        let run = Run {
            spec: Arc::new(spec),
            stop: Arc::clone(&stop),
            records: Arc::clone(&records),
        };
        let name = host.name().to_owned();
        let thread = host
            .namespace()
            .spawn_in(&format!("load-{name}"), move || {
                runtime()
                    .to_do(|| format!("start a runtime for the load of {name}"))?
                    .block_on(run.all());
                Ok(())
            })?;
        Ok(Self {
            stop,
            records,
            thread: Some(thread),
        })
    }

    /// The records of the requests that have ended since the last call.
    #[must_use]
    pub fn take(&self) -> Vec<Record> {
        std::mem::take(&mut *lock(&self.records))
    }

    /// Waits until there has been an answer for each of `sources`, to a request begun after now; gives all records meanwhile.
    ///
    /// # Errors
    /// When one of them has had none within [`DEADLINE`].
    pub fn wait_for_answers(&self, sources: &[IpAddr]) -> Result<Vec<Record>> {
        let begin = Instant::now();
        let mut records = Vec::new();
        loop {
            records.extend(self.take());
            let answered: BTreeSet<IpAddr> = records
                .iter()
                .filter(|record: &&Record| record.start > begin && record.error.is_none())
                .map(|record| record.source)
                .collect();
            let left: Vec<&IpAddr> = sources
                .iter()
                .filter(|source| !answered.contains(source))
                .collect();
            if left.is_empty() {
                return Ok(records);
            }
            if begin.elapsed() > DEADLINE {
                return Err(Error::Timeout {
                    what: format!("an answer for each of {} addresses", sources.len()),
                    waited: DEADLINE,
                    last: format!("none for {left:?}"),
                    log: String::new(),
                });
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Ends the load after the requests in flight and gives the records not taken yet.
    ///
    /// # Errors
    /// When the load could not be sent at all.
    pub fn stop(mut self) -> Result<Vec<Record>> {
        self.end()?;
        Ok(self.take())
    }

    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take() {
            Some(thread) => thread.join().map_err(|_| thread_lost("a load"))?,
            None => Ok(()),
        }
    }
}

impl Drop for LoadGenerator {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{error}");
        }
    }
}

#[derive(Clone)]
struct Run {
    spec: Arc<LoadSpec>,
    stop: Arc<AtomicBool>,
    records: Arc<Mutex<Vec<Record>>>,
}

impl Run {
    async fn all(self) {
        let mut tasks = JoinSet::new();
        if self.spec.keep_alive {
            for index in 0..self.spec.sources.len() {
                tasks.spawn(self.clone().one_source(index));
            }
        } else {
            self.paced(&mut tasks).await;
        }
        while tasks.join_next().await.is_some() {}
    }

    /// Starts requests at the pace, whether or not earlier ones have been answered: what hangs delays no other.
    async fn paced(&self, tasks: &mut JoinSet<()>) {
        let period = Duration::from_secs(1) / self.spec.rate;
        let (period, batch) = if period >= TICK {
            (period, 1)
        } else {
            (TICK, self.spec.rate.div_ceil(1000))
        };
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sources = self.spec.sources.clone().into_iter().cycle();
        while !self.stop.load(Ordering::Relaxed) {
            ticks.tick().await;
            for source in sources.by_ref().take(batch as usize) {
                let run = self.clone();
                tasks.spawn(async move {
                    run.request(source, &mut None).await;
                });
            }
            while tasks.try_join_next().is_some() {}
        }
    }

    /// Sends one source's share of the requests over one connection, and over a new one when that breaks.
    async fn one_source(self, index: usize) {
        let sources = u32::try_from(self.spec.sources.len()).expect("a client has few addresses");
        let period = Duration::from_secs(1) * sources / self.spec.rate;
        // Spread over the period, so that the sources do not send in step.
        let first = period * u32::try_from(index).expect("a client has few addresses") / sources;
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + first, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut connection = None;
        while !self.stop.load(Ordering::Relaxed) {
            // The period may be long: look at the end mark in between.
            tokio::select! {
                _ = ticks.tick() => self.request(self.spec.sources[index], &mut connection).await,
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            }
        }
    }

    async fn request(&self, source: IpAddr, kept: &mut Option<Connection>) {
        let spec = &self.spec;
        let start = Instant::now();
        let exchange = async {
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => Connection::open(source, spec.target).await?,
            };
            let backend = connection
                .small_request(spec.target, "/", spec.keep_alive)
                .await?;
            if spec.keep_alive {
                *kept = Some(connection);
            }
            Ok(backend)
        };
        let outcome = tokio::time::timeout(spec.timeout, exchange)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {:?}", spec.timeout)));
        let (backend, error) = match outcome {
            Ok(Some(backend)) => (Some(backend), None),
            Ok(None) => (
                None,
                Some("answer: it does not say which backend it is from".to_owned()),
            ),
            Err(error) => (None, Some(error)),
        };
        lock(&self.records).push(Record {
            start,
            end: Instant::now(),
            source,
            backend,
            error,
        });
    }
}

fn lock(records: &Mutex<Vec<Record>>) -> std::sync::MutexGuard<'_, Vec<Record>> {
    // Nothing but a push happens under the lock; a panic elsewhere leaves the list whole.
    records
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
