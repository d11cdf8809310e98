//! A program under test, run by the kernel over packets that the benchmark's own programs write.
//!
//! Nothing here is attached to anything, and no packet leaves: `BPF_PROG_TEST_RUN` runs programs over a buffer.

use std::io;

use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray, PerCpuValues, ProgramArray},
    programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp, loaded_programs},
};
use lb_common::verdict::Action;

pub use super::bench_object::{FRAME_WORDS, LAP, MOST_LAPS, Pages, Recipe};
use super::{
    DataplaneError, attach,
    bench_object::{State, bytes_of, failed, foreign, load, name, open, open_with_memory, xdp},
    layout::processors,
};

/// Bytes from one place of a frame to the other in the packet that the preparing programs are given.
const STRIDE: usize = 128;

/// The benchmark's own programs that can stand in for the one under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    /// Answers `XDP_TX`.
    Transmit,
    /// Answers `XDP_PASS`.
    Pass,
    /// Swaps the MAC addresses.
    Swap,
    /// Parses, takes a MAC address from an array, rewrites both.
    Floor,
}

impl Stand {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Transmit, Self::Pass, Self::Swap, Self::Floor];

    const fn program(self) -> &'static str {
        match self {
            Self::Transmit => "answer_tx",
            Self::Pass => "answer_pass",
            Self::Swap => "floor_swap",
            Self::Floor => "floor",
        }
    }
}

/// What a packet does with memory, besides what the floor does: as little as a table of that size can cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Reads a word of a line that its flow's hash names.
    Read(Pages),
    /// Reads two of memory in small pages, the second where the first says.
    TwoReads,
    /// Reads a word of a line and writes one.
    Write(Pages),
}

impl Memory {
    const fn program(self) -> &'static str {
        match self {
            Self::Read(Pages::Small) => "floor_read",
            Self::Read(Pages::Large) => "floor_read_large",
            Self::TwoReads => "floor_two_reads",
            Self::Write(Pages::Small) => "floor_write",
            Self::Write(Pages::Large) => "floor_write_large",
        }
    }

    const fn pages(self) -> Pages {
        match self {
            Self::Read(pages) | Self::Write(pages) => pages,
            Self::TwoReads => Pages::Small,
        }
    }
}

/// A program to be measured.
#[derive(Debug)]
pub struct Target(ProgramFd);

impl Target {
    /// The data path's program of a loaded object; loads it into the kernel if that has not been done.
    ///
    /// # Errors
    /// [`DataplaneError::Program`] with the verifier's words.
    pub fn of_object(object: &mut Ebpf) -> Result<Self, DataplaneError> {
        let xdp = attach::xdp_program(object)?;
        if xdp.fd().is_err() {
            xdp.load()
                .map_err(|e| failed("loading the XDP program", e))?;
        }
        clone_of(xdp)
    }

    /// The floor with 2 to this power cache lines of memory.
    ///
    /// # Errors
    /// [`DataplaneError::Privileges`] without root, [`DataplaneError::Load`] and [`DataplaneError::Program`] with the
    /// kernel's words, [`DataplaneError::Foreign`] where a map can't be so large.
    pub fn memory(what: Memory, line_bits: u8) -> Result<Self, DataplaneError> {
        let nothing = Recipe {
            frame: [0; FRAME_WORDS],
            ipv6: false,
            flow_mask: 0,
            vip_mask: 0,
            port_mask: 0,
        };
        let mut object = open_with_memory(&nothing, line_bits, what.pages())?;
        clone_of(load(&mut object, what.program())?)
    }

    /// The same program once more.
    ///
    /// # Errors
    /// [`DataplaneError::Io`] where there are too many open files.
    pub fn try_clone(&self) -> Result<Self, DataplaneError> {
        self.0
            .try_clone()
            .map(Self)
            .map_err(|e| DataplaneError::io("keeping the loaded program", e))
    }

    /// The program with this id that is loaded already.
    ///
    /// # Errors
    /// [`DataplaneError::Io`] where there is none.
    pub fn of_id(id: u32) -> Result<Self, DataplaneError> {
        let info = loaded_programs()
            .filter_map(Result::ok)
            .find(|info| info.id() == id)
            .ok_or_else(|| {
                DataplaneError::io(
                    format!("looking for the program with the id {id}"),
                    io::ErrorKind::NotFound,
                )
            })?;
        info.fd()
            .map(Self)
            .map_err(|e| failed("opening the attached program", e))
    }
}

/// One preparing program, and the stands.
pub struct Rig {
    object: Ebpf,
    recipe: Recipe,
    target: ProgramArray<MapData>,
    state: PerCpuArray<MapData, State>,
    times: PerCpuArray<MapData, u64>,
    /// What the generator of packets goes on from.
    random: u64,
    preparing: &'static str,
    packet: Vec<u8>,
    stands: Vec<(Stand, Target)>,
}

impl std::fmt::Debug for Rig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rig")
            .field("preparing", &self.preparing)
            .finish_non_exhaustive()
    }
}

/// What one burst took.
#[derive(Clone, Debug, PartialEq)]
pub struct Burst {
    /// Of each lap, nanoseconds from one packet's preparation to the next one's, on average.
    pub laps: Vec<f64>,
    /// What the program said to the last packet.
    pub action: Action,
}

impl Rig {
    /// Loads the programs that prepare `recipe`'s packets.
    ///
    /// # Errors
    /// [`DataplaneError::Privileges`] without root, [`DataplaneError::Load`] and [`DataplaneError::Program`] with the
    /// kernel's words.
    pub fn load(recipe: &Recipe) -> Result<Self, DataplaneError> {
        let mut object = open(recipe)?;
        let preparing = if recipe.ipv6 {
            name::PREPARE6
        } else {
            name::PREPARE4
        };
        load(&mut object, preparing)?;
        let mut stands = Vec::new();
        for stand in Stand::ALL {
            stands.push((stand, clone_of(load(&mut object, stand.program())?)?));
        }
        let target = object
            .take_map(name::TARGET)
            .ok_or_else(|| foreign(name::TARGET))?;
        let target =
            ProgramArray::try_from(target).map_err(|e| DataplaneError::map(name::TARGET, e))?;
        let state = object
            .take_map(name::STATE)
            .ok_or_else(|| foreign(name::STATE))?;
        let state =
            PerCpuArray::try_from(state).map_err(|e| DataplaneError::map(name::STATE, e))?;
        let times = object
            .take_map(name::TIMES)
            .ok_or_else(|| foreign(name::TIMES))?;
        let times =
            PerCpuArray::try_from(times).map_err(|e| DataplaneError::map(name::TIMES, e))?;
        let frame = bytes_of(recipe);
        // The same frame in both places.
        let mut packet = frame.clone();
        packet.resize(STRIDE, 0);
        packet.extend(frame);
        Ok(Self {
            object,
            recipe: *recipe,
            target,
            state,
            times,
            random: 1,
            preparing,
            packet,
            stands,
        })
    }

    /// Which instructions prepare the packets: equal for recipes that differ in the bytes they write alone.
    #[must_use]
    pub fn kind(&self) -> Recipe {
        let random = self.recipe.flow_mask | self.recipe.vip_mask | self.recipe.port_mask != 0;
        Recipe {
            frame: [0; FRAME_WORDS],
            flow_mask: random.into(),
            vip_mask: 0,
            port_mask: 0,
            ..self.recipe
        }
    }

    /// Prepares a packet and runs `target` over it, [`LAP`] times for each of so many `laps`, at most [`MOST_LAPS`].
    ///
    /// # Errors
    /// [`DataplaneError::Map`], [`DataplaneError::Program`] with the kernel's words; [`DataplaneError::Io`] where the program
    /// gave an answer that is none.
    pub fn run(&mut self, target: &Target, laps: u32) -> Result<Burst, DataplaneError> {
        self.target
            .set(0, &target.0, 0)
            .map_err(|e| DataplaneError::map(name::TARGET, e))?;
        self.run_set(laps)
    }

    /// The same over one of the benchmark's own programs.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_stand(&mut self, stand: Stand, laps: u32) -> Result<Burst, DataplaneError> {
        let found = self.stands.iter().find(|(s, _)| *s == stand);
        let (_, target) = found.ok_or_else(|| foreign(stand.program()))?;
        self.target
            .set(0, &target.0, 0)
            .map_err(|e| DataplaneError::map(name::TARGET, e))?;
        self.run_set(laps)
    }

    fn run_set(&mut self, laps: u32) -> Result<Burst, DataplaneError> {
        let laps = laps.min(MOST_LAPS);
        let packets = laps * LAP;
        let state = State {
            random: self.random,
            left: packets.into(),
        };
        let cpus = usize::try_from(processors()?).unwrap_or(usize::MAX);
        let states = PerCpuValues::try_from(vec![state; cpus])
            .map_err(|e| DataplaneError::io("preparing a burst", e))?;
        self.state
            .set(0, states, 0)
            .map_err(|e| DataplaneError::map(name::STATE, e))?;
        let result = xdp(&mut self.object, self.preparing)?
            .test_run(TestRunOptions {
                data_in: Some(&self.packet),
                // The last one ends the last lap, and belongs to none.
                repeat: packets + 1,
                ..TestRunOptions::default()
            })
            .map_err(|e| failed("running the program under test", e))?;
        // `enum xdp_action` of linux/bpf.h.
        let action = match result.return_value {
            1 => Action::Drop,
            2 => Action::Pass,
            3 => Action::Transmit,
            4 => Action::Redirect,
            other => {
                return Err(DataplaneError::io(
                    "running the program under test",
                    io::Error::other(format!(
                        "it returned {other}, which is no answer of its own: it was not called"
                    )),
                ));
            }
        };
        let states = self
            .state
            .get(&0, 0)
            .map_err(|e| DataplaneError::map(name::STATE, e))?;
        // The kernel stays on one processor for the whole burst.
        let cpu = states
            .iter()
            .position(|state| state.left == u64::MAX)
            .ok_or_else(|| {
                DataplaneError::io(
                    "running the program under test",
                    io::Error::other("the burst was cut short, or moved to another processor"),
                )
            })?;
        self.random = states[cpu].random;
        let mut times = Vec::new();
        for lap in 0..=laps {
            let of_all = self.times.get(&lap, 0);
            times.push(of_all.map_err(|e| DataplaneError::map(name::TIMES, e))?[cpu]);
        }
        Ok(Burst {
            laps: times
                .windows(2)
                .map(|pair| pair[0].saturating_sub(pair[1]) as f64 / f64::from(LAP))
                .collect(),
            action,
        })
    }
}

fn clone_of(xdp: &Xdp) -> Result<Target, DataplaneError> {
    let fd = xdp.fd().map_err(|e| failed("the loaded program", e))?;
    fd.try_clone()
        .map(Target)
        .map_err(|e| DataplaneError::io("keeping the loaded program", e))
}
