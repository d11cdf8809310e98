//! What the kernel tells of a loaded program and of its maps (`BPF_OBJ_GET_INFO_BY_FD`).

use std::{
    collections::BTreeMap,
    fs, io, mem,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, bail, ensure};
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_insn, bpf_map_info, bpf_map_type, bpf_prog_info};

/// One instruction (RFC 9669 section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// The operation.
    pub code: u8,
    /// The register it writes.
    pub dst: u8,
    /// The register it reads, or what kind of constant [`Self::imm`] is.
    pub src: u8,
    /// An offset in bytes, or in instructions.
    pub off: i16,
    /// A constant.
    pub imm: i32,
}

/// A map that the program names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// The kernel's id of it.
    pub id: u32,
    /// Its name; the kernel keeps 15 characters.
    pub name: String,
    /// Its type.
    pub kind: bpf_map_type,
    /// Bytes of a value.
    pub value_size: u32,
    /// How many values there are.
    pub max_entries: u32,
}

impl Map {
    /// Bytes from one value to the next (`array->elem_size` in `kernel/bpf/arraymap.c`).
    #[must_use]
    pub fn stride(&self) -> u64 {
        u64::from(self.value_size).next_multiple_of(8)
    }

    /// Whether each processor has values of its own.
    #[must_use]
    pub fn is_per_cpu(&self) -> bool {
        self.kind == bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY
    }

    /// Bytes that the values take; of one processor where each has its own.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.stride() * u64::from(self.max_entries)
    }
}

/// A loaded program.
#[derive(Clone, Debug)]
pub struct Translated {
    /// What the kernel runs, before it is turned into the processor's own instructions.
    pub instructions: Vec<Instruction>,
    /// The maps that it was loaded with, by id.
    pub maps: BTreeMap<u32, Map>,
    /// Bytes of the processor's own instructions; 0 where the kernel interprets.
    pub jited: u32,
    /// How many instructions the verifier walked.
    pub verified: u32,
    /// Names of the kernel's functions that the program calls, by what the call names them.
    pub functions: BTreeMap<i32, String>,
}

/// `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
/// `BPF_LD | BPF_IMM | BPF_DW`, the one instruction of 16 bytes.
pub(super) const LOAD_CONSTANT: u8 = 0x18;
/// `BPF_PSEUDO_CALL`: the function is the program's own.
const OWN_FUNCTION: u8 = 1;

impl Instruction {
    fn read(raw: &bpf_insn) -> Self {
        Self {
            code: raw.code,
            dst: raw.dst_reg(),
            src: raw.src_reg(),
            off: raw.off,
            imm: raw.imm,
        }
    }

    /// Whether it calls a function of the kernel.
    #[must_use]
    pub fn calls_kernel(&self) -> bool {
        self.code == CALL && self.src != OWN_FUNCTION
    }

    /// Whether it calls a function of the program.
    #[must_use]
    pub fn calls_own(&self) -> bool {
        self.code == CALL && self.src == OWN_FUNCTION
    }

    /// The id of the map whose address, or the address in whose values, it loads.
    #[must_use]
    pub fn map(&self) -> Option<u32> {
        // BPF_PSEUDO_MAP_FD and BPF_PSEUDO_MAP_VALUE; the kernel writes the id where the file descriptor was
        // (`bpf_insn_prepare_dump` in `kernel/bpf/syscall.c`).
        (self.code == LOAD_CONSTANT && matches!(self.src, 1 | 2))
            .then_some(self.imm.cast_unsigned())
    }
}

impl Translated {
    /// Reads all of it.
    ///
    /// # Errors
    /// What the kernel says; and that it hides what it translated: from those who are not root, and where
    /// `kernel.kptr_restrict` is 2, from everybody.
    pub fn read(program: BorrowedFd<'_>) -> anyhow::Result<Self> {
        let mut info: bpf_prog_info = program_info(program)?;
        let count = info.xlated_prog_len as usize / size_of::<bpf_insn>();
        let (jited, verified) = (info.jited_prog_len, info.verified_insns);
        // SAFETY: all zeros is a value of this plain structure.
        let zero: bpf_insn = unsafe { mem::zeroed() };
        let mut raw = vec![zero; count];
        let mut ids = vec![0u32; info.nr_map_ids as usize];
        // SAFETY: as above.
        let mut asked: bpf_prog_info = unsafe { mem::zeroed() };
        asked.xlated_prog_len = info.xlated_prog_len;
        asked.xlated_prog_insns = raw.as_mut_ptr() as u64;
        asked.nr_map_ids = info.nr_map_ids;
        asked.map_ids = ids.as_mut_ptr() as u64;
        info = asked;
        info_of(program, &mut info).context("reading the translated program")?;
        ensure!(
            count != 0 && info.xlated_prog_insns != 0,
            "the kernel does not show the translated program: it wants root, and kernel.kptr_restrict below 2"
        );
        let instructions: Vec<_> = raw.iter().map(Instruction::read).collect();
        let maps = ids
            .into_iter()
            .map(|id| Ok((id, map(id)?.1)))
            .collect::<anyhow::Result<_>>()?;
        let functions = functions(&instructions)?;
        Ok(Self {
            instructions,
            maps,
            jited,
            verified,
            functions,
        })
    }

    /// The maps that the translated program still names: those of features that are not in it are gone.
    #[must_use]
    pub fn named_maps(&self) -> Vec<&Map> {
        let mut ids: Vec<_> = self
            .instructions
            .iter()
            .filter_map(Instruction::map)
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids.iter().filter_map(|id| self.maps.get(id)).collect()
    }
}

fn program_info(program: BorrowedFd<'_>) -> anyhow::Result<bpf_prog_info> {
    // SAFETY: all zeros is a value of this plain structure.
    let mut info: bpf_prog_info = unsafe { mem::zeroed() };
    info_of(program, &mut info).context("reading what the kernel knows of the program")?;
    Ok(info)
}

fn map(id: u32) -> anyhow::Result<(OwnedFd, Map)> {
    // SAFETY: all zeros is a value of this union of plain structures.
    let mut attributes: bpf_attr = unsafe { mem::zeroed() };
    attributes.__bindgen_anon_6.__bindgen_anon_1.map_id = id;
    let opened = bpf(bpf_cmd::BPF_MAP_GET_FD_BY_ID, &mut attributes)
        .with_context(|| format!("opening map {id}"))?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    let opened = unsafe { OwnedFd::from_raw_fd(i32::try_from(opened)?) };
    // SAFETY: all zeros is a value of this plain structure.
    let mut info: bpf_map_info = unsafe { mem::zeroed() };
    info_of(as_borrowed(&opened), &mut info).with_context(|| format!("reading about map {id}"))?;
    let name: Vec<u8> = info
        .name
        .iter()
        .map(|letter| letter.cast_unsigned())
        .take_while(|letter| *letter != 0)
        .collect();
    // Only what has values that are looked at here is told apart.
    let kind = [
        bpf_map_type::BPF_MAP_TYPE_ARRAY,
        bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY,
        bpf_map_type::BPF_MAP_TYPE_DEVMAP,
    ]
    .into_iter()
    .find(|kind| *kind as u32 == info.type_)
    .with_context(|| {
        format!(
            "map {id} is of type {}, which the data path has none of",
            info.type_
        )
    })?;
    let facts = Map {
        id,
        name: String::from_utf8(name).context("a map's name")?,
        kind,
        value_size: info.value_size,
        max_entries: info.max_entries,
    };
    Ok((opened, facts))
}

fn as_borrowed(descriptor: &OwnedFd) -> BorrowedFd<'_> {
    std::os::fd::AsFd::as_fd(descriptor)
}

/// All values of an array, one after the other; of a per-CPU array the sum of the processors' 64-bit words.
///
/// # Errors
/// What the kernel says.
pub fn values(id: u32, processors: usize) -> anyhow::Result<Vec<u8>> {
    let (opened, facts) = map(id)?;
    let stride = usize::try_from(facts.stride())?;
    let mut all = Vec::with_capacity(stride * facts.max_entries as usize);
    let copies = if facts.is_per_cpu() { processors } else { 1 };
    let mut value = vec![0u8; stride * copies];
    for index in 0..facts.max_entries {
        // SAFETY: all zeros is a value of this union of plain structures.
        let mut attributes: bpf_attr = unsafe { mem::zeroed() };
        attributes.__bindgen_anon_2.map_fd = u32::try_from(opened.as_raw_fd())?;
        attributes.__bindgen_anon_2.key = (&raw const index) as u64;
        attributes.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
        bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attributes)
            .with_context(|| format!("reading {}[{index}]", facts.name))?;
        if facts.is_per_cpu() {
            for at in (0..stride).step_by(8) {
                let sum = (0..copies).fold(0u64, |sum, copy| {
                    let at = copy * stride + at;
                    let word = value[at..at + 8].try_into().expect("eight bytes");
                    sum.wrapping_add(u64::from_le_bytes(word))
                });
                all.extend_from_slice(&sum.to_le_bytes());
            }
        } else {
            all.extend_from_slice(&value[..stride]);
        }
    }
    Ok(all)
}

/// The names of the kernel's functions that are called: a call holds how far the function is from `__bpf_call_base`.
fn functions(instructions: &[Instruction]) -> anyhow::Result<BTreeMap<i32, String>> {
    let mut called: BTreeMap<i32, String> = instructions
        .iter()
        .filter(|instruction| instruction.calls_kernel())
        .map(|call| (call.imm, String::new()))
        .collect();
    if called.is_empty() {
        return Ok(called);
    }
    let symbols = fs::read_to_string("/proc/kallsyms").context("reading /proc/kallsyms")?;
    let symbols = || {
        symbols.lines().filter_map(|line| {
            let mut words = line.split(' ');
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            words.nth(1).map(|name| (address, name))
        })
    };
    let base = symbols()
        .find(|(_, name)| *name == "__bpf_call_base")
        .map_or(0, |(address, _)| address);
    if base == 0 {
        bail!(
            "the kernel does not show its functions' addresses: kernel.kptr_restrict is above 1, or this is not root"
        );
    }
    let wanted: BTreeMap<u64, i32> = called
        .keys()
        .map(|imm| (base.wrapping_add_signed(i64::from(*imm)), *imm))
        .collect();
    for (address, name) in symbols() {
        if let Some(found) = wanted.get(&address).and_then(|imm| called.get_mut(imm)) {
            name.clone_into(found);
        }
    }
    Ok(called)
}

fn info_of<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    // SAFETY: all zeros is a value of this union of plain structures.
    let mut attributes: bpf_attr = unsafe { mem::zeroed() };
    attributes.info.bpf_fd = object.as_raw_fd().cast_unsigned();
    attributes.info.info_len = size_of::<T>() as u32;
    attributes.info.info = (&raw mut *info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes).map(drop)
}

fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<libc::c_long> {
    // SAFETY: the attributes are those of the command, and what they point to outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as u32,
            &raw mut *attributes,
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
