//! The loaded program, run by the kernel over a buffer (`BPF_PROG_TEST_RUN`).

use std::os::fd::AsFd;

use anyhow::{Context, bail};
use aya::{
    Ebpf,
    programs::{TestRun, TestRunOptions},
};
use lb_common::{flow::TICK_SHIFT, verdict::Action};
use lb_userspace::dataplane::{Instance, Maps, Sizes, attach, load};
use rustix::time::{ClockId, clock_gettime};

use super::{
    fixture::{CAPACITY, Setup},
    network::{DIRECTOR_MAC, OWN_PORT},
};
use crate::translated::dump::Translated;

/// The shortest frame that the kernel runs a program over: an Ethernet header (`bpf_prog_test_run_xdp` in
/// `net/bpf/test_run.c`).
pub const SHORTEST: usize = 14;

/// Room behind a frame, so that a program that made it longer would be seen.
pub const ROOM: usize = 64;

/// One loaded program with maps of its own, pinned nowhere and attached to nothing.
pub struct Kernel {
    object: Ebpf,
    /// Its maps.
    pub maps: Maps,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel")
            .field("maps", &self.maps)
            .finish_non_exhaustive()
    }
}

impl Kernel {
    /// Loads the program.
    ///
    /// # Errors
    /// The verifier's words, or that root is needed: a kernel test that can't run has failed.
    pub fn load(setup: &Setup) -> anyhow::Result<Self> {
        let sizes = Sizes {
            service_buckets: CAPACITY.service_buckets,
            services: CAPACITY.services,
            slots: CAPACITY.slots,
            backends: CAPACITY.backends,
            flow_buckets: CAPACITY.flow_buckets,
            flow6_buckets: CAPACITY.flow6_buckets,
            fragment_buckets: CAPACITY.fragment_buckets,
        };
        let instance = Instance {
            mac: DIRECTOR_MAC,
            port: OWN_PORT,
            unserved_pass: setup.unserved_pass,
            flow_buckets: CAPACITY.flow_buckets,
            flow6_buckets: CAPACITY.flow6_buckets,
            fragment_buckets: CAPACITY.fragment_buckets,
            features: setup.features,
            cluster_mac: setup.cluster_mac,
        };
        let mut object =
            load::load(None, &sizes, &instance).context("loading the kernel object")?;
        attach::xdp_program(&mut object)?
            .load()
            .context("loading the XDP program")?;
        let maps = Maps::of_object(&mut object).context("taking the maps of the kernel object")?;
        Ok(Self { object, maps })
    }

    /// Runs the program over a frame: what the kernel would do with it, and its bytes afterwards.
    ///
    /// # Errors
    /// What the kernel says; a frame shorter than [`SHORTEST`] is refused.
    pub fn run(&mut self, frame: &[u8]) -> anyhow::Result<(Action, Vec<u8>)> {
        let mut out = vec![0; frame.len() + ROOM];
        let (action, len) = self.run_into(frame, &mut out)?;
        out.truncate(len);
        Ok((action, out))
    }

    /// The same into a buffer, which must be [`ROOM`] longer than the frame; the length of what is there afterwards.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_into(&mut self, frame: &[u8], out: &mut [u8]) -> anyhow::Result<(Action, usize)> {
        let result = attach::xdp_program(&mut self.object)?
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(out),
                ..TestRunOptions::default()
            })
            .with_context(|| format!("running the XDP program over {} bytes", frame.len()))?;
        // `enum xdp_action` of linux/bpf.h.
        let action = match result.return_value {
            1 => Action::Drop,
            2 => Action::Pass,
            3 => Action::Transmit,
            4 => Action::Redirect,
            other => bail!("the XDP program returned {other}, which is no answer of its own"),
        };
        Ok((action, result.data_size_out as usize))
    }

    /// What the kernel made of the program.
    ///
    /// # Errors
    /// See [`Translated::read`].
    pub fn translated(&mut self) -> anyhow::Result<Translated> {
        let program = attach::xdp_program(&mut self.object)?.fd()?;
        Translated::read(program.as_fd())
    }
}

/// The clock of the data path now, in units of [`lb_common::flow::TICK_NS`].
#[must_use]
pub fn now() -> u16 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    let nanoseconds = now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned();
    (nanoseconds >> TICK_SHIFT) as u16
}
