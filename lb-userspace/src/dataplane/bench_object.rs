//! The benchmark's own object (`lb-bench-ebpf`): its names, what its programs are told, and how they are reached.

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{ArrayOfMaps, MapData},
    programs::{ProgramError, Xdp},
};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY;
use lb_common::wire::mac_word;

use super::{BENCH_OBJECT, DataplaneError, direct};

/// Names in the object.
pub(super) mod name {
    pub(in crate::dataplane) const TARGET: &str = "TARGET";
    pub(in crate::dataplane) const STATE: &str = "STATE";
    pub(in crate::dataplane) const TIMES: &str = "TIMES";
    pub(in crate::dataplane) const FLOOR: &str = "FLOOR";
    pub(in crate::dataplane) const FRAME: &str = "FRAME";
    pub(in crate::dataplane) const FLOW_MASK: &str = "FLOW_MASK";
    pub(in crate::dataplane) const VIP_MASK: &str = "VIP_MASK";
    pub(in crate::dataplane) const PORT_MASK: &str = "PORT_MASK";
    pub(in crate::dataplane) const FLOOR_MAC: &str = "FLOOR_MAC";
    pub(in crate::dataplane) const MEMORY: &str = "MEMORY";
    pub(in crate::dataplane) const MEMORY_SECTION: &str = ".bss.MEMORY";
    pub(in crate::dataplane) const MEMORY_MASK: &str = "MEMORY_MASK";
    pub(in crate::dataplane) const PIECES: &str = "PIECES";
    pub(in crate::dataplane) const PREPARE4: &str = "prepare4";
    pub(in crate::dataplane) const PREPARE6: &str = "prepare6";
}

/// 64-bit words of the longest frame that is prepared.
pub const FRAME_WORDS: usize = 10;

/// The source address of what the floor program sends.
pub(super) const FLOOR_SOURCE: u64 = mac_word([0x02, 0, 0, 0, 0, 0xfe]);

/// What a preparing program writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// The frame, in the order of memory; a shorter one ends in zeros.
    pub frame: [u64; FRAME_WORDS],
    /// Whether it is the 80 bytes of IPv6 or the 64 of IPv4.
    pub ipv6: bool,
    /// Which of 31 random bits make the flow: 0 for one flow, 2^20 - 1 for about a million.
    pub flow_mask: u64,
    /// Which of 16 random bits are added to the (IPv4) destination.
    pub vip_mask: u64,
    /// Which of 4 random bits are added to the destination port.
    pub port_mask: u64,
}

/// Bytes of a cache line.
const LINE: u32 = 64;
/// Bytes of a piece of memory in large pages, as `lb-bench-ebpf/src/floor.rs` has it.
const PIECE: u32 = 504 * LINE;
/// log2 of how many lines such a piece counts as.
const PIECE_BITS: u8 = 9;

/// Packets of a lap.
pub const LAP: u32 = 1 << 11;
/// Most laps of a burst, plus one.
pub(super) const LAPS: u32 = 256;
/// Most laps of a burst.
pub const MOST_LAPS: u32 = LAPS - 1;

/// Where a burst has come to, on one processor: as `lb-bench-ebpf/src/prepare.rs` has it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct State {
    pub(super) random: u64,
    pub(super) left: u64,
}

// SAFETY: repr(C), two words.
unsafe impl Pod for State {}

/// Makes the maps, with the programs told what to write. No program is loaded yet.
pub(super) fn open(recipe: &Recipe) -> Result<Ebpf, DataplaneError> {
    open_with_memory(recipe, 0, Pages::Small)
}

/// How memory is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// In pages of 4 KiB, as the data path's maps are.
    Small,
    /// In the kernel's largest pages, in pieces of less than 32 KiB; a sixtieth of it is not used.
    Large,
}

/// The same with 2 to this power cache lines of memory for the programs that read it, which are in nobody's way otherwise.
pub(super) fn open_with_memory(
    recipe: &Recipe,
    line_bits: u8,
    pages: Pages,
) -> Result<Ebpf, DataplaneError> {
    let lines = 1_u32.checked_shl(line_bits.into()).unwrap_or(0);
    let bytes = lines
        .checked_mul(LINE)
        .ok_or_else(|| DataplaneError::Foreign {
            path: name::MEMORY.into(),
            what: format!("2^{line_bits} lines are more than a map can have"),
        })?;
    let (bytes, pieces) = match pages {
        Pages::Small => (bytes, 1),
        Pages::Large => (LINE, (lines >> PIECE_BITS).max(1)),
    };
    let memory = direct::make_of(name::MEMORY, bytes)?;
    let mask = lines.wrapping_sub(1);
    let mut loader = EbpfLoader::new();
    loader
        .override_global(name::FRAME, &recipe.frame, true)
        .override_global(name::FLOW_MASK, &recipe.flow_mask, true)
        .override_global(name::VIP_MASK, &recipe.vip_mask, true)
        .override_global(name::PORT_MASK, &recipe.port_mask, true)
        .override_global(name::FLOOR_MAC, &FLOOR_SOURCE, true)
        .override_global(name::MEMORY_MASK, &mask, true)
        .map_max_entries(name::PIECES, pieces);
    let mut object = loader.load(BENCH_OBJECT).map_err(|error| {
        if nix::unistd::geteuid().is_root() {
            DataplaneError::Load(Box::new(error))
        } else {
            DataplaneError::Privileges {
                what: "loading a BPF program".into(),
            }
        }
    })?;
    fill_floor(&mut object)?;
    direct::put(&object, name::MEMORY_SECTION, &memory)?;
    fill_pieces(&mut object)?;
    Ok(object)
}

/// Makes the pieces of memory in large pages.
fn fill_pieces(object: &mut Ebpf) -> Result<(), DataplaneError> {
    let map = object
        .map_mut(name::PIECES)
        .ok_or_else(|| foreign(name::PIECES))?;
    let mut pieces = ArrayOfMaps::<_, MapData>::try_from(map)
        .map_err(|e| DataplaneError::map(name::PIECES, e))?;
    for index in 0..pieces.len() {
        let kind = BPF_MAP_TYPE_ARRAY as u32;
        let definition = aya_obj::Map::new_from_params(kind, 4, PIECE, 1, 0);
        MapData::create(definition, name::PIECES, None)
            .and_then(|piece| pieces.set(index, &piece, 0))
            .map_err(|e| DataplaneError::map(name::PIECES, e))?;
    }
    Ok(())
}

/// The first frame.
pub(super) fn bytes_of(recipe: &Recipe) -> Vec<u8> {
    let words = if recipe.ipv6 { 10 } else { 8 };
    let words = recipe.frame[..words].iter();
    words.flat_map(|word| word.to_ne_bytes()).collect()
}

/// Gives every entry of the floor's array an address, so that none is a page of zeros.
fn fill_floor(object: &mut Ebpf) -> Result<(), DataplaneError> {
    let map = object
        .map_mut(name::FLOOR)
        .ok_or_else(|| foreign(name::FLOOR))?;
    let mut floor = aya::maps::Array::<_, u64>::try_from(map)
        .map_err(|e| DataplaneError::map(name::FLOOR, e))?;
    for index in 0..floor.len() {
        let [_, _, high, low] = index.to_be_bytes();
        let mac = mac_word([0x02, 0, 0, 1, high, low]);
        floor
            .set(index, mac, 0)
            .map_err(|e| DataplaneError::map(name::FLOOR, e))?;
    }
    Ok(())
}

pub(super) fn load<'a>(
    object: &'a mut Ebpf,
    program: &'static str,
) -> Result<&'a mut Xdp, DataplaneError> {
    let xdp = xdp(object, program)?;
    xdp.load()
        .map_err(|e| failed(&format!("loading the program {program}"), e))?;
    Ok(xdp)
}

pub(super) fn xdp<'a>(
    object: &'a mut Ebpf,
    program: &'static str,
) -> Result<&'a mut Xdp, DataplaneError> {
    object
        .program_mut(program)
        .ok_or_else(|| foreign(program))?
        .try_into()
        .map_err(|e| failed(program, e))
}

pub(super) fn failed(what: &str, source: ProgramError) -> DataplaneError {
    DataplaneError::Program {
        what: what.into(),
        source: Box::new(source),
    }
}

pub(super) fn foreign(name: &'static str) -> DataplaneError {
    DataplaneError::Foreign {
        path: name.into(),
        what: "the benchmark's object does not have it".into(),
    }
}
