//! Executes a translated program over one packet, on copies of its maps, and says what that took.
//!
//! It is here to count: a test run in the kernel says how long a packet took, on this machine and in this minute; this says
//! which instructions it executed. Crates that run BPF (`rbpf` 0.3, `solana_rbpf`) know neither a map's address nor the
//! kernel's own instructions for per-CPU memory, and do not count.
//!
//! Addresses here are made up: the upper 24 bits name a piece of memory, the lower 40 the byte in it. So whatever goes
//! beyond its piece is found, and who touched what can be told.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail, ensure};
use aya_obj::generated::bpf_map_type;
use lb_common::packet::HEADROOM;

use super::dump::{Instruction, LOAD_CONSTANT, Translated};

/// Bytes behind a frame.
const TAILROOM: usize = 320;
/// Bytes of a function's stack (`MAX_BPF_STACK`).
const STACK: usize = 512;
/// How deep calls go (`MAX_CALL_FRAMES`).
const FRAMES: usize = 8;
/// No packet takes so many; the verifier has excluded endless loops, but not mistakes of this file.
const MOST: usize = 100_000;
/// Bytes of a cache line.
const LINE: u64 = 64;

const PIECE_SHIFT: u32 = 40;
const CONTEXT: u64 = 1;
const PACKET: u64 = 2;
const STACKS: u64 = 3;
/// Map n has 16 + 3n (the map itself), 17 + 3n (its values), 18 + 3n (a per-CPU array's pointers to them).
const MAPS: u64 = 16;

/// Where `struct xdp_buff` holds the frame's beginning, its end and the beginning of its headroom (`include/net/xdp.h`).
const DATA: u64 = 0;
const DATA_END: u64 = 8;
const HARD_START: u64 = 24;
const CONTEXT_LEN: usize = 64;

/// What one packet took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Executed {
    /// The program's answer: an `xdp_action`.
    pub action: u64,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// Instructions executed; the one of 16 bytes counts once.
    pub instructions: usize,
    /// Functions of the kernel that were called, in their order.
    pub kernel_calls: Vec<String>,
    /// How many calls of the program's own functions there were.
    pub own_calls: usize,
    /// Conditional jumps.
    pub branches: usize,
    /// Loads and stores of stack memory.
    pub stack_accesses: usize,
    /// The cache lines of each map's values that were read or written. Of a per-CPU array the pointers to the values are not
    /// among them: the processor's own instructions compute them from one.
    pub lines: BTreeMap<String, usize>,
}

/// A piece of memory.
#[derive(Clone, Debug)]
struct Piece {
    name: String,
    bytes: Vec<u8>,
    /// Cache lines touched.
    lines: BTreeSet<u64>,
    counts: bool,
}

/// A translated program and its memory.
#[derive(Clone, Debug)]
pub struct Machine<'a> {
    program: &'a Translated,
    pieces: BTreeMap<u64, Piece>,
    /// The first piece of each map, by its id.
    first_piece: BTreeMap<u32, u64>,
    /// What the coarse clock says, in nanoseconds.
    now: u64,
}

struct Run {
    registers: [u64; 11],
    at: usize,
    /// Where to go on after a function, with the registers that a function must leave as they are.
    callers: Vec<(usize, [u64; 5])>,
    executed: Executed,
}

impl<'a> Machine<'a> {
    /// A machine whose maps hold `values`, by the map's id: all values of an array, one after the other.
    ///
    /// # Errors
    /// Where a map's content is missing.
    pub fn new(
        program: &'a Translated,
        values: &BTreeMap<u32, Vec<u8>>,
        now: u64,
    ) -> anyhow::Result<Self> {
        let mut pieces = BTreeMap::new();
        let mut first_piece = BTreeMap::new();
        let mut piece = |number, name: String, bytes, counts| {
            pieces.insert(
                number,
                Piece {
                    name,
                    bytes,
                    lines: BTreeSet::new(),
                    counts,
                },
            );
        };
        piece(CONTEXT, "the context".into(), vec![0; CONTEXT_LEN], false);
        piece(STACKS, "the stack".into(), vec![0; STACK * FRAMES], false);
        for (map, first) in program.named_maps().iter().zip((MAPS..).step_by(3)) {
            first_piece.insert(map.id, first);
            if map.kind == bpf_map_type::BPF_MAP_TYPE_DEVMAP {
                continue;
            }
            let bytes = values
                .get(&map.id)
                .with_context(|| format!("what {} holds is not known", map.name))?;
            let base = (first + 1) << PIECE_SHIFT;
            let pointers = (0..u64::from(map.max_entries)).map(|index| base + index * map.stride());
            if map.is_per_cpu() {
                let pointers = pointers.flat_map(u64::to_le_bytes).collect();
                piece(
                    first + 2,
                    format!("pointers of {}", map.name),
                    pointers,
                    false,
                );
            }
            piece(first + 1, map.name.clone(), bytes.clone(), true);
        }
        Ok(Self {
            program,
            pieces,
            first_piece,
            now,
        })
    }

    /// The values of a map as they are now.
    #[must_use]
    pub fn values(&self, map: u32) -> Option<&[u8]> {
        let first = self.first_piece.get(&map)?;
        Some(&self.pieces.get(&(first + 1))?.bytes)
    }

    /// Executes the program over a frame.
    ///
    /// # Errors
    /// An instruction, a function of the kernel or an access that is not known here: this file has to learn it.
    pub fn run(&mut self, frame: &[u8]) -> anyhow::Result<Executed> {
        let mut bytes = vec![0; HEADROOM];
        bytes.extend_from_slice(frame);
        bytes.resize(HEADROOM + frame.len() + TAILROOM, 0);
        let packet = Piece {
            name: "the packet".into(),
            bytes,
            lines: BTreeSet::new(),
            counts: false,
        };
        self.pieces.insert(PACKET, packet);
        for piece in self.pieces.values_mut() {
            piece.lines.clear();
        }
        let start = PACKET << PIECE_SHIFT;
        let context = CONTEXT << PIECE_SHIFT;
        let (begin, end) = (
            start + HEADROOM as u64,
            start + (HEADROOM + frame.len()) as u64,
        );
        self.store(context + DATA, 8, begin)?;
        self.store(context + DATA_END, 8, end)?;
        self.store(context + HARD_START, 8, start)?;

        let mut run = Run {
            registers: [0; 11],
            at: 0,
            callers: Vec::new(),
            executed: Executed::default(),
        };
        run.registers[1] = context;
        run.registers[10] = (STACKS << PIECE_SHIFT) + STACK as u64;
        loop {
            let at = run.at;
            let done = self.step(&mut run).with_context(|| {
                format!("instruction {at}: {:x?}", self.program.instructions.get(at))
            })?;
            ensure!(
                run.executed.instructions < MOST,
                "no end after {MOST} instructions"
            );
            if done {
                break;
            }
        }
        let mut executed = run.executed;
        executed.action = run.registers[0] & 0xffff_ffff;
        let (begin, end) = (
            self.load(context + DATA, 8)?,
            self.load(context + DATA_END, 8)?,
        );
        let packet = &self.pieces[&PACKET].bytes;
        executed.frame = packet[(begin - start) as usize..(end - start) as usize].to_vec();
        executed.lines = self
            .pieces
            .values()
            .filter(|piece| piece.counts && !piece.lines.is_empty())
            .map(|piece| (piece.name.clone(), piece.lines.len()))
            .collect();
        Ok(executed)
    }

    /// Executes one instruction; whether it was the last.
    fn step(&mut self, run: &mut Run) -> anyhow::Result<bool> {
        let instruction = *self
            .program
            .instructions
            .get(run.at)
            .context("the program has no such instruction")?;
        run.executed.instructions += 1;
        run.at += 1;
        let Instruction {
            code,
            dst,
            src,
            off,
            imm,
        } = instruction;
        let (dst, from) = (usize::from(dst), usize::from(src));
        let constant = i64::from(imm).cast_unsigned();
        match code & 7 {
            0 => {
                ensure!(code == LOAD_CONSTANT, "not known here");
                let next = self
                    .program
                    .instructions
                    .get(run.at)
                    .context("its second half")?;
                run.registers[dst] = match src {
                    0 => u64::from(imm.cast_unsigned()) | u64::from(next.imm.cast_unsigned()) << 32,
                    // The map itself, and an address in its values.
                    1 | 2 => {
                        let id = imm.cast_unsigned();
                        let first = self
                            .first_piece
                            .get(&id)
                            .with_context(|| format!("map {id}"))?;
                        let value = u64::from(src == 2);
                        ((first + value) << PIECE_SHIFT)
                            + value * u64::from(next.imm.cast_unsigned())
                    }
                    _ => bail!("a constant of kind {src} is not known here"),
                };
                run.at += 1;
            }
            1 => {
                let address = run.registers[from].wrapping_add_signed(i64::from(off));
                let width = width(code);
                let value = self.load_counted(run, address, width)?;
                run.registers[dst] = match code & 0xe0 {
                    0x60 => value,
                    0x80 => sign_extended(value, 8 * width as u32),
                    _ => bail!("not known here"),
                };
            }
            // BPF_NOSPEC: a barrier, which does nothing to what is computed.
            2 if code & 0xe0 == 0xc0 => {}
            2 | 3 => {
                ensure!(code & 0xe0 == 0x60, "not known here");
                let address = run.registers[dst].wrapping_add_signed(i64::from(off));
                let value = if code & 7 == 2 {
                    constant
                } else {
                    run.registers[from]
                };
                self.touch(run, address);
                self.store(address, width(code), value)?;
            }
            4 | 7 => {
                let operand = if code & 8 == 0 {
                    constant
                } else {
                    run.registers[from]
                };
                let before = run.registers[dst];
                run.registers[dst] = if let Some(values) = self.skipped_header(&instruction, before)
                {
                    values
                } else if code & 0xf0 == 0xd0 {
                    in_byte_order(code, before, imm)?
                } else if code & 7 == 7 {
                    computed64(instruction, before, operand)?
                } else {
                    computed32(instruction, before as u32, operand as u32)?
                };
            }
            _ => return self.jump(run, instruction),
        }
        Ok(false)
    }

    /// An inlined lookup takes the map's address and skips `struct bpf_array` up to the values, or a per-CPU array's pointers
    /// to them (`array_map_gen_lookup` and `percpu_array_map_gen_lookup` in `kernel/bpf/arraymap.c`). How long that
    /// structure is, only this kernel knows; nothing else is added to a map's address.
    fn skipped_header(&self, instruction: &Instruction, address: u64) -> Option<u64> {
        const ADD_CONSTANT: u8 = 0x07;
        let piece = address >> PIECE_SHIFT;
        let is_map = piece >= MAPS
            && (piece - MAPS).is_multiple_of(3)
            && address.trailing_zeros() >= PIECE_SHIFT;
        if instruction.code != ADD_CONSTANT || !is_map {
            return None;
        }
        let pointers = self.pieces.contains_key(&(piece + 2));
        Some((piece + 1 + u64::from(pointers)) << PIECE_SHIFT)
    }

    fn jump(&mut self, run: &mut Run, instruction: Instruction) -> anyhow::Result<bool> {
        let Instruction {
            code,
            dst,
            src,
            off,
            imm,
        } = instruction;
        let wide = code & 7 == 5;
        match code & 0xf0 {
            0x00 => {
                let by = if wide { i32::from(off) } else { imm };
                run.at = run.at.wrapping_add_signed(by as isize);
                return Ok(false);
            }
            0x80 if instruction.calls_own() => {
                ensure!(run.callers.len() + 1 < FRAMES, "calls go too deep");
                run.executed.own_calls += 1;
                let [.., a, b, c, d, stack] = run.registers;
                run.callers.push((run.at, [a, b, c, d, stack]));
                run.registers[10] += STACK as u64;
                // Where the function is, from the next instruction on (`jit_subprogs` in `kernel/bpf/verifier.c`).
                run.at = run.at.wrapping_add_signed(isize::from(off));
                return Ok(false);
            }
            0x80 => {
                let name = self
                    .program
                    .functions
                    .get(&imm)
                    .cloned()
                    .unwrap_or_default();
                run.registers[0] = self.kernel_function(&name, run)?;
                run.executed.kernel_calls.push(name);
                return Ok(false);
            }
            0x90 => {
                let Some((at, kept)) = run.callers.pop() else {
                    return Ok(true);
                };
                run.at = at;
                run.registers[6..].copy_from_slice(&kept);
                return Ok(false);
            }
            _ => {}
        }
        let (left, right) = (
            run.registers[usize::from(dst)],
            if code & 8 == 0 {
                i64::from(imm).cast_unsigned()
            } else {
                run.registers[usize::from(src)]
            },
        );
        // Numbers of 32 bits keep their order when they are extended, with zeros or with their sign.
        let (left, right, left_signed, right_signed) = if wide {
            (left, right, left.cast_signed(), right.cast_signed())
        } else {
            let (left, right) = (left as u32, right as u32);
            let signed = |number: u32| i64::from(number.cast_signed());
            (
                u64::from(left),
                u64::from(right),
                signed(left),
                signed(right),
            )
        };
        let taken = match code & 0xf0 {
            0x10 => left == right,
            0x20 => left > right,
            0x30 => left >= right,
            0x40 => left & right != 0,
            0x50 => left != right,
            0x60 => left_signed > right_signed,
            0x70 => left_signed >= right_signed,
            0xa0 => left < right,
            0xb0 => left <= right,
            0xc0 => left_signed < right_signed,
            0xd0 => left_signed <= right_signed,
            _ => bail!("not known here"),
        };
        run.executed.branches += 1;
        if taken {
            run.at = run.at.wrapping_add_signed(isize::from(off));
        }
        Ok(false)
    }

    /// What the data path asks the kernel for, none of it on the hot path.
    fn kernel_function(&mut self, name: &str, run: &Run) -> anyhow::Result<u64> {
        match name {
            "bpf_ktime_get_coarse_ns" => Ok(self.now),
            // The action it is asked for is that of a map without this port; with it, XDP_REDIRECT.
            "dev_map_redirect" | "bpf_xdp_redirect_map" => Ok(4),
            "bpf_xdp_adjust_head" => {
                let context = run.registers[1];
                let start = self.load(context + DATA, 8)?;
                let by = i64::from((run.registers[2] as u32).cast_signed());
                self.store(context + DATA, 8, start.wrapping_add_signed(by))?;
                Ok(0)
            }
            _ => bail!("the kernel's function {name:?} is not known here"),
        }
    }

    fn piece(&mut self, address: u64) -> anyhow::Result<(&mut Piece, usize)> {
        let offset = (address & ((1 << PIECE_SHIFT) - 1)) as usize;
        let piece = self
            .pieces
            .get_mut(&(address >> PIECE_SHIFT))
            .with_context(|| format!("address {address:#x} is in no memory"))?;
        Ok((piece, offset))
    }

    fn load(&mut self, address: u64, width: usize) -> anyhow::Result<u64> {
        let (piece, offset) = self.piece(address)?;
        let bytes = piece
            .bytes
            .get(offset..offset + width)
            .with_context(|| format!("reads {width} bytes at {offset} of {}", piece.name))?;
        let mut word = [0; 8];
        word[..width].copy_from_slice(bytes);
        Ok(u64::from_le_bytes(word))
    }

    fn load_counted(&mut self, run: &mut Run, address: u64, width: usize) -> anyhow::Result<u64> {
        self.touch(run, address);
        self.load(address, width)
    }

    fn store(&mut self, address: u64, width: usize, value: u64) -> anyhow::Result<()> {
        let (piece, offset) = self.piece(address)?;
        let name = &piece.name;
        let bytes = piece
            .bytes
            .get_mut(offset..offset + width)
            .with_context(|| format!("writes {width} bytes at {offset} of {name}"))?;
        bytes.copy_from_slice(&value.to_le_bytes()[..width]);
        Ok(())
    }

    fn touch(&mut self, run: &mut Run, address: u64) {
        let number = address >> PIECE_SHIFT;
        if number == STACKS {
            run.executed.stack_accesses += 1;
        }
        if let Ok((piece, offset)) = self.piece(address) {
            piece.lines.insert(offset as u64 / LINE);
        }
    }
}

const fn width(code: u8) -> usize {
    match code & 0x18 {
        0x00 => 4,
        0x08 => 2,
        0x10 => 1,
        _ => 8,
    }
}

const fn sign_extended(value: u64, bits: u32) -> u64 {
    let shift = 64 - bits;
    (value << shift)
        .cast_signed()
        .wrapping_shr(shift)
        .cast_unsigned()
}

fn computed64(instruction: Instruction, left: u64, right: u64) -> anyhow::Result<u64> {
    let shift = right as u32 & 63;
    Ok(match instruction.code & 0xf0 {
        0x00 => left.wrapping_add(right),
        0x10 => left.wrapping_sub(right),
        0x20 => left.wrapping_mul(right),
        0x30 if instruction.off == 0 => left.checked_div(right).unwrap_or(0),
        0x40 => left | right,
        0x50 => left & right,
        0x60 => left << shift,
        0x70 => left >> shift,
        0x80 => left.wrapping_neg(),
        0x90 if instruction.off == 0 => left.checked_rem(right).unwrap_or(left),
        0xa0 => left ^ right,
        0xb0 => match instruction.off {
            // -1: from an address in per-CPU memory to that of this processor (`BPF_ADDR_PERCPU`); here they are the same.
            0 | -1 => right,
            8 | 16 | 32 => sign_extended(right, instruction.off.cast_unsigned().into()),
            _ => bail!("not known here"),
        },
        0xc0 => left.cast_signed().wrapping_shr(shift).cast_unsigned(),
        _ => bail!("not known here"),
    })
}

fn computed32(instruction: Instruction, left: u32, right: u32) -> anyhow::Result<u64> {
    let shift = right & 31;
    let result = match instruction.code & 0xf0 {
        0x00 => left.wrapping_add(right),
        0x10 => left.wrapping_sub(right),
        0x20 => left.wrapping_mul(right),
        0x30 if instruction.off == 0 => left.checked_div(right).unwrap_or(0),
        0x40 => left | right,
        0x50 => left & right,
        0x60 => left << shift,
        0x70 => left >> shift,
        0x80 => left.wrapping_neg(),
        0x90 if instruction.off == 0 => left.checked_rem(right).unwrap_or(left),
        0xa0 => left ^ right,
        0xb0 => match instruction.off {
            0 => right,
            8 | 16 => sign_extended(right.into(), instruction.off.cast_unsigned().into()) as u32,
            _ => bail!("not known here"),
        },
        0xc0 => left.cast_signed().wrapping_shr(shift).cast_unsigned(),
        _ => bail!("not known here"),
    };
    Ok(result.into())
}

/// The processor's order, on which everything here relies, is the little-endian one.
fn in_byte_order(code: u8, value: u64, bits: i32) -> anyhow::Result<u64> {
    let to_little_endian = code == 0xd4;
    Ok(match bits {
        16 if to_little_endian => (value as u16).into(),
        32 if to_little_endian => (value as u32).into(),
        64 if to_little_endian => value,
        16 => (value as u16).swap_bytes().into(),
        32 => (value as u32).swap_bytes().into(),
        64 => value.swap_bytes(),
        _ => bail!("a number of {bits} bits is not known here"),
    })
}
