//! Many values of a per-CPU array with one system call (`BPF_MAP_LOOKUP_BATCH`, for per-CPU arrays since Linux 5.13), which
//! aya does not offer.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

/// `BPF_MAP_LOOKUP_BATCH` of `enum bpf_cmd` in `linux/bpf.h`.
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

/// `struct { ... } batch` of `union bpf_attr` in `linux/bpf.h`.
#[derive(Debug, Default)]
#[repr(C)]
struct Attributes {
    /// Address of the position to begin at; 0 for the beginning.
    in_batch: u64,
    /// Address where the kernel leaves the position to go on at.
    out_batch: u64,
    keys: u64,
    values: u64,
    /// In: how many fit; out: how many there were.
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// The values of an array with 4-byte indices, in the order of the indices: from `first` on, as many as fit `values`, each
/// of `words` 64-bit words. Gives how many there were.
///
/// # Errors
/// What `bpf(2)` says: `EINVAL` or 524 (`ENOTSUPP`) where the kernel can't do this for the type of the map.
///
/// # Safety
/// A value of the map must have no more than `words` words: for a per-CPU array those of all processors that there could
/// be, one after the other (`bpf_map_value_size` in `kernel/bpf/syscall.c`).
pub(super) unsafe fn lookup(
    fd: BorrowedFd<'_>,
    first: u32,
    words: usize,
    values: &mut [u64],
) -> io::Result<usize> {
    let count = values.len() / words.max(1);
    let mut keys = vec![0_u32; count];
    // The kernel goes on behind the key that it is given.
    let before = first.wrapping_sub(1);
    let mut next = 0_u32;
    let mut attributes = Attributes {
        in_batch: if first == 0 {
            0
        } else {
            (&raw const before) as u64
        },
        out_batch: (&raw mut next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: u32::try_from(count).unwrap_or(u32::MAX),
        map_fd: fd.as_raw_fd().cast_unsigned(),
        ..Attributes::default()
    };
    // SAFETY: the attributes are those of this command, and what they point to lives until it returns; `keys` has room for
    // `count` keys of four bytes, `values` for as many values, as the caller vouches; `before` and `next` are keys.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_LOOKUP_BATCH,
            &raw mut attributes,
            size_of::<Attributes>(),
        )
    };
    if result != 0 {
        let error = io::Error::last_os_error();
        // The end of the array was reached: what there was is there.
        if error.raw_os_error() != Some(libc::ENOENT) {
            return Err(error);
        }
    }
    Ok(attributes.count as usize)
}
