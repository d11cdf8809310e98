//! Several long downloads at once, and the promise they are there to prove: each comes whole, from the backend that it
//! began with.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::director::DEADLINE;
use super::download::{Download, DownloadReport};
use super::error::{Error, Result};
use super::nginx::LARGE_BYTES;
use super::scene::Scene;

/// Running downloads, each with the address it goes to.
#[derive(Debug, Default)]
pub struct Transfers(Vec<(IpAddr, Download)>);

impl Transfers {
    /// Starts a download from each address of the scene's first client, at a rate at which it lasts for `seconds`, and
    /// waits until each has begun.
    ///
    /// # Errors
    /// When one cannot be started, or does not begin within [`DEADLINE`].
    pub fn start(scene: &Scene, sources: &[IpAddr], seconds: usize) -> Result<Self> {
        let client = scene.testbed.host("c1");
        let rate = LARGE_BYTES / seconds;
        let started = sources
            .iter()
            .map(|source| {
                let download = Download::start(client, *source, scene.target(), rate)?;
                Ok((*source, download))
            })
            .collect::<Result<Vec<_>>>()?;
        let started = Self(started);
        let deadline = Instant::now() + DEADLINE;
        while let Some(late) = started.reports().find(|report| report.bytes == 0) {
            if late.error.is_some() || Instant::now() > deadline {
                return Err(Error::Request(format!(
                    "a download has not begun: {late:?}"
                )));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(started)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// How far each is.
    pub fn reports(&self) -> impl Iterator<Item = DownloadReport> {
        self.0.iter().map(|(_, download)| download.progress())
    }

    /// Takes others in.
    pub fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// Makes sure that all still run, so that they can prove something.
    ///
    /// # Errors
    /// When one has ended.
    pub fn check_running(&self) -> Result<()> {
        match self.0.iter().find(|(_, download)| download.ended()) {
            None => Ok(()),
            Some((source, download)) => Err(Error::Request(format!(
                "the download of {source} ended too early to prove anything: {:?}",
                download.progress()
            ))),
        }
    }

    /// Waits until all have ended, and gives what became of each.
    ///
    /// # Errors
    /// When a namespace could not be entered.
    pub fn finish(self) -> Result<Vec<(IpAddr, DownloadReport)>> {
        self.0
            .into_iter()
            .map(|(source, download)| Ok((source, download.finish()?)))
            .collect()
    }

    /// Waits until all have ended whole; gives how many there were.
    ///
    /// # Errors
    /// When one has not, with all that have not.
    pub fn finish_whole(self) -> Result<usize> {
        let reports = self.finish()?;
        let broken: Vec<_> = reports
            .iter()
            .filter(|(_, report)| !report.whole || report.bytes != LARGE_BYTES)
            .collect();
        if broken.is_empty() {
            return Ok(reports.len());
        }
        Err(Error::Request(format!(
            "{} of {} downloads broke: {broken:?}",
            broken.len(),
            reports.len()
        )))
    }
}
