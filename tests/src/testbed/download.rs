//! A long download: one connection that lives through whatever happens to the backends meanwhile.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use http_body_util::BodyExt;

use super::error::Result;
use super::host::Host;
use super::http::{Connection, Failure, backend_of, runtime, thread_lost};
use super::nginx::{LARGE_BYTES, large_byte};

/// A download on which nothing arrives for so long has broken. nginx sends at least once a second,
/// but a busy machine may take its time.
const STALL: Duration = Duration::from_secs(15);

/// How far a download is.
#[derive(Clone, Debug, Default)]
pub struct DownloadReport {
    /// The backend that sends it; `None` before the answer has begun.
    pub backend: Option<String>,
    /// The bytes received.
    pub bytes: usize,
    /// Why it broke; `None` while it runs and when it ended whole.
    pub error: Option<Failure>,
    /// Whether every byte has arrived and was right.
    pub whole: bool,
}

/// A running download of `/large`.
#[derive(Debug)]
pub struct Download {
    report: Arc<Mutex<DownloadReport>>,
    thread: JoinHandle<Result<()>>,
}

impl Download {
    /// Starts a download from `source` of `host` at `rate` bytes per second.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(host: &Host, source: IpAddr, target: SocketAddr, rate: usize) -> Result<Self> {
        let report = Arc::new(Mutex::new(DownloadReport::default()));
        let shared = Arc::clone(&report);
        let thread = host.namespace().spawn_in("download", move || {
            let outcome = runtime()
                .map_err(|error| error.to_string())
                .and_then(|runtime| runtime.block_on(download(source, target, rate, &shared)));
            let mut report = lock(&shared);
            report.whole = outcome.is_ok();
            report.error = outcome.err();
            Ok(())
        })?;
        Ok(Self { report, thread })
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> DownloadReport {
        lock(&self.report).clone()
    }

    /// Whether it has ended, whole or not.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When the namespace could not be entered.
    pub fn finish(self) -> Result<DownloadReport> {
        self.thread
            .join()
            .map_err(|_| thread_lost("a download"))??;
        Ok(lock(&self.report).clone())
    }
}

async fn download(
    source: IpAddr,
    target: SocketAddr,
    rate: usize,
    report: &Mutex<DownloadReport>,
) -> std::result::Result<(), Failure> {
    let stalled = |_| format!("nothing arrived for {STALL:?}");
    let path = format!("/large?rate={rate}");
    let mut connection = tokio::time::timeout(STALL, Connection::open(source, target))
        .await
        .map_err(stalled)??;
    let response = tokio::time::timeout(STALL, connection.request(target, &path, false))
        .await
        .map_err(stalled)??;
    lock(report).backend = backend_of(&response);
    let mut body = response.into_body();
    let mut position = 0;
    while let Some(frame) = tokio::time::timeout(STALL, body.frame())
        .await
        .map_err(stalled)?
    {
        let frame = frame.map_err(|error| format!("body: {error}"))?;
        let Some(data) = frame.data_ref() else {
            continue;
        };
        if let Some(wrong) = data
            .iter()
            .zip(position..)
            .find(|(byte, position)| **byte != large_byte(*position))
        {
            return Err(format!("byte {} is wrong", wrong.1));
        }
        position += data.len();
        lock(report).bytes = position;
    }
    if position == LARGE_BYTES {
        Ok(())
    } else {
        Err(format!("{position} of {LARGE_BYTES} bytes arrived"))
    }
}

fn lock(report: &Mutex<DownloadReport>) -> std::sync::MutexGuard<'_, DownloadReport> {
    // Only whole assignments happen under the lock; a panic elsewhere leaves it valid.
    report
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
