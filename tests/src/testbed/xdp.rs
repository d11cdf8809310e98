//! XDP programs that are a few instructions long, written here as such: they need no compiler.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::error::{IoContext, Result};
use super::namespace::Namespace;

// include/uapi/linux/bpf.h
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
// include/uapi/linux/if_link.h: in the driver, or not at all.
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// `r0 = 2 (XDP_PASS); exit`, each as a `struct bpf_insn` in a word: code, registers, offset, immediate.
///
/// For the director's port of the switch: a veth drops what its peer sends back with `XDP_TX` unless an XDP program
/// runs on this end too (drivers/net/veth.c: `veth_xdp_xmit` wants a peer that polls).
pub(super) const PASS: &[u64] = &[0xb7 | 2 << 32, 0x95];

/// An attached program; dropping it detaches it.
#[derive(Debug)]
pub struct XdpProgram {
    link: OwnedFd,
}

impl XdpProgram {
    /// Attaches the instructions, natively, to `interface` of `namespace`, as a program of that name.
    pub(super) fn attach(
        namespace: &Namespace,
        interface: &str,
        instructions: &[u64],
        name: &str,
    ) -> Result<Self> {
        let what = || {
            format!(
                "attach an XDP program to {interface} in {}",
                namespace.name()
            )
        };
        namespace
            .run_in(|| {
                let index = nix::net::if_::if_nametoindex(interface)?;
                let program = load(instructions, name)?;
                let link = bpf(
                    BPF_LINK_CREATE,
                    &LinkCreate {
                        program: descriptor(&program),
                        target: index,
                        attach_type: BPF_XDP,
                        flags: XDP_FLAGS_DRV_MODE,
                    },
                )?;
                // SAFETY: the kernel has just given this descriptor to us and nobody else knows it.
                Ok(unsafe { OwnedFd::from_raw_fd(link) })
            })?
            .map(|link| Self { link })
            .map_err(|error: io::Error| error)
            .to_do(what)
    }

    /// Pins the attachment, so that it outlives the process.
    pub(super) fn pin(&self, path: &Path) -> Result<()> {
        let what = || format!("pin the XDP link at {}", path.display());
        let name = CString::new(path.as_os_str().as_bytes()).to_do(what)?;
        bpf(
            BPF_OBJ_PIN,
            &ObjectPin {
                path: name.as_ptr() as u64,
                object: descriptor(&self.link),
                flags: 0,
            },
        )
        .map(drop)
        .to_do(what)
    }
}

fn load(instructions: &[u64], name: &str) -> io::Result<OwnedFd> {
    let mut named = [0; 16];
    // The last byte stays the terminating zero.
    for (to, from) in named[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    let program = bpf(
        BPF_PROG_LOAD,
        &ProgramLoad {
            kind: BPF_PROG_TYPE_XDP,
            instruction_count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
            instructions: instructions.as_ptr() as u64,
            license: c"Dual MIT/GPL".as_ptr() as u64,
            name: named,
            ..ProgramLoad::default()
        },
    )?;
    // SAFETY: the kernel has just given this descriptor to us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(program) })
}

fn descriptor(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// One variant of the kernel's `union bpf_attr`; a shorter structure stands for one whose rest is zero.
trait Attributes {}

/// `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// `BPF_OBJ_PIN`.
#[repr(C)]
struct ObjectPin {
    path: u64,
    object: u32,
    flags: u32,
}

/// `BPF_LINK_CREATE`.
#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

impl Attributes for ProgramLoad {}
impl Attributes for ObjectPin {}
impl Attributes for LinkCreate {}

/// bpf(2).
fn bpf<A: Attributes>(command: libc::c_long, attributes: &A) -> io::Result<i32> {
    // SAFETY: `attributes` is a `repr(C)` structure without padding whose layout is that of the command's part of
    // `union bpf_attr`, it and the buffers it points to live during the call, and its true size is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            std::mem::size_of::<A>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(i32::try_from(result).expect("bpf(2) gives an int"))
}
