//! Frames that are really sent (`BPF_F_TEST_XDP_LIVE_FRAMES`, Linux 5.18): out of one end of a veth pair, through whatever is
//! on the other, and back to a program that counts and drops them.
//!
//! Everything here is in the network namespace of the calling thread.

use std::io;

use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray, PerCpuValues},
    programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode, xdp::XdpLinkId},
};

use super::{
    DataplaneError, attach,
    bench_object::{
        LAP, MOST_LAPS, Recipe, State, bytes_of, failed, foreign, load, name, open, xdp,
    },
    layout::processors,
};

/// Frames that are sent at a time, as a driver would handle.
const BATCH: u32 = 64;

/// What frames meet at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// The floor program.
    Floor,
    /// A program that leaves them to the network stack.
    Pass,
}

impl Other {
    const fn program(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Pass => "answer_pass",
        }
    }
}

/// The generating program, the counting one, and those for the other end.
pub struct Live {
    object: Ebpf,
    state: PerCpuArray<MapData, State>,
    times: PerCpuArray<MapData, u64>,
    arrived: PerCpuArray<MapData, u64>,
    frame: Vec<u8>,
    /// The generating end.
    ifindex: u32,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live")
            .field("ifindex", &self.ifindex)
            .finish_non_exhaustive()
    }
}

/// What came of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Sent {
    /// Of each lap, nanoseconds from one frame's generation to the next one's, on average.
    pub laps: Vec<f64>,
    /// Frames sent.
    pub frames: u64,
}

impl Live {
    /// Loads the programs, and attaches the counting one to the generating end.
    ///
    /// # Errors
    /// [`DataplaneError`] with the kernel's words.
    pub fn new(recipe: &Recipe, ifindex: u32) -> Result<Self, DataplaneError> {
        let mut object = open(recipe)?;
        load(&mut object, "generate4")?;
        for other in [Other::Floor, Other::Pass] {
            load(&mut object, other.program())?;
        }
        let sink = load(&mut object, "sink")?;
        attach_to(sink, ifindex)?;
        Ok(Self {
            state: per_cpu(&mut object, name::STATE)?,
            times: per_cpu(&mut object, name::TIMES)?,
            arrived: per_cpu(&mut object, "ARRIVED")?,
            frame: bytes_of(recipe),
            object,
            ifindex,
        })
    }

    /// Attaches one of the programs to the other end, runs `work`, and takes it off again.
    ///
    /// # Errors
    /// [`DataplaneError::Program`], or what `work` says.
    pub fn with<T, E: From<DataplaneError>>(
        &mut self,
        other: Other,
        ifindex: u32,
        work: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        let id = attach_to(xdp(&mut self.object, other.program())?, ifindex)?;
        let result = work(self);
        xdp(&mut self.object, other.program())?
            .detach(id)
            .map_err(|e| failed("detaching a program", e))?;
        result
    }

    /// Frames that have come back since the program was loaded.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn arrived(&self) -> Result<u64, DataplaneError> {
        let all = self.arrived.get(&0, 0);
        let all = all.map_err(|e| DataplaneError::map("ARRIVED", e))?;
        Ok(all.iter().sum())
    }

    /// Makes ready for a run of so many laps on every processor.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn ready(&mut self, laps: u32) -> Result<(), DataplaneError> {
        let cpus = usize::try_from(processors()?).unwrap_or(usize::MAX);
        let packets = u64::from(laps.min(MOST_LAPS) * LAP);
        let states: Vec<State> = (0..cpus)
            .map(|cpu| State {
                random: 1 + cpu as u64,
                left: packets,
            })
            .collect();
        let states = PerCpuValues::try_from(states)
            .map_err(|e| DataplaneError::io("preparing a burst", e))?;
        self.state
            .set(0, states, 0)
            .map_err(|e| DataplaneError::map(name::STATE, e))
    }

    /// Sends the frames of so many laps from the processor `cpu`, to which the calling thread must be bound; [`Self::ready`]
    /// comes before.
    ///
    /// # Errors
    /// [`DataplaneError::Program`] with the kernel's words.
    pub fn send(&self, laps: u32, cpu: usize) -> Result<Sent, DataplaneError> {
        let laps = laps.min(MOST_LAPS);
        let frames = laps * LAP + 1;
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let length = u32::try_from(self.frame.len()).unwrap_or(u32::MAX);
        let context: Vec<u8> = [0, length, 0, self.ifindex, 0, 0]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        let program: &Xdp = self
            .object
            .program("generate4")
            .ok_or_else(|| foreign("generate4"))?
            .try_into()
            .map_err(|e| failed("generate4", e))?;
        program
            .test_run(TestRunOptions {
                data_in: Some(&self.frame),
                ctx_in: Some(&context),
                repeat: frames,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::default()
            })
            .map_err(|e| failed("sending live frames", e))?;
        let mut times = Vec::new();
        for lap in 0..=laps {
            let of_all = self.times.get(&lap, 0);
            let of_all = of_all.map_err(|e| DataplaneError::map(name::TIMES, e))?;
            times.push(of_all.get(cpu).copied().unwrap_or_default());
        }
        Ok(Sent {
            laps: times
                .windows(2)
                .map(|pair| pair[0].saturating_sub(pair[1]) as f64 / f64::from(LAP))
                .collect(),
            frames: frames.into(),
        })
    }
}

/// Attaches the data path's program of a loaded object to an interface of this thread's namespace; dropping the object takes
/// it off.
///
/// # Errors
/// [`DataplaneError::Program`].
pub fn attach_datapath(object: &mut Ebpf, ifindex: u32) -> Result<XdpLinkId, DataplaneError> {
    attach_to(attach::xdp_program(object)?, ifindex)
}

/// Takes it off again.
///
/// # Errors
/// [`DataplaneError::Program`].
pub fn detach_datapath(object: &mut Ebpf, id: XdpLinkId) -> Result<(), DataplaneError> {
    attach::xdp_program(object)?
        .detach(id)
        .map_err(|e| failed("detaching the data path", e))
}

fn attach_to(program: &mut Xdp, ifindex: u32) -> Result<XdpLinkId, DataplaneError> {
    program
        .attach_to_if_index(ifindex, XdpMode::Driver)
        .map_err(|e| failed("attaching a program to a veth", e))
}

fn per_cpu<T: aya::Pod>(
    object: &mut Ebpf,
    map: &'static str,
) -> Result<PerCpuArray<MapData, T>, DataplaneError> {
    let data = object.take_map(map).ok_or_else(|| foreign(map))?;
    PerCpuArray::try_from(data).map_err(|e| DataplaneError::io(map, io::Error::other(e)))
}
