//! The memory of a BPF array, mapped into the process: the one place where userspace does so.

use std::{
    ffi::c_void,
    io,
    marker::PhantomData,
    os::fd::{AsFd, BorrowedFd},
    ptr::NonNull,
};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Types that may lie in memory which the kernel and other processes change at any time.
///
/// # Safety
/// Every field must be a word of `lb_common::memory` (volatile access behind a shared reference), any bit pattern must
/// be valid, and the size must be a multiple of eight bytes (the kernel's distance between elements).
pub unsafe trait Shared: Sync {}

// SAFETY: only `Word32` and `Word64` fields, 64 bytes.
unsafe impl Shared for lb_common::abi::Control {}
// SAFETY: likewise.
unsafe impl Shared for lb_common::abi::Bucket {}
// SAFETY: likewise.
unsafe impl Shared for lb_common::abi::SlotLine {}
// SAFETY: likewise, of `Word16`.
unsafe impl Shared for lb_common::abi::AreaLine {}
// SAFETY: likewise.
unsafe impl Shared for lb_common::flow::FlowBucket {}
// SAFETY: as above.
unsafe impl Shared for lb_common::flow::FlowBucket6 {}
// SAFETY: as above.
unsafe impl Shared for lb_common::abi::Vip6 {}
// SAFETY: as above.
unsafe impl Shared for lb_common::abi::HotLine {}
// SAFETY: as above.
unsafe impl Shared for lb_common::abi::SampleRing {}
// SAFETY: as above.
unsafe impl Shared for lb_common::abi::Fence {}
// SAFETY: as above.
unsafe impl Shared for lb_common::abi::Presence {}
// SAFETY: eight bytes.
unsafe impl Shared for lb_common::memory::Word64 {}

/// An array map's memory.
#[derive(Debug)]
pub struct Mapped<T: Shared> {
    base: NonNull<T>,
    count: usize,
    writable: bool,
    marker: PhantomData<T>,
}

// SAFETY: the mapping belongs to the process, not to a thread, and `T: Shared` allows access from any of them.
unsafe impl<T: Shared> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for Mapped<T> {}

impl<T: Shared> Mapped<T> {
    /// Maps the `count` elements of the array behind `fd`, which must have been made with `BPF_F_MMAPABLE`.
    ///
    /// # Errors
    /// What `mmap(2)` says: `EPERM` without the flag or the rights, `EINVAL` where the array is smaller.
    pub fn new(fd: BorrowedFd<'_>, count: u32, writable: bool) -> io::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        let count = count as usize;
        let protection = if writable {
            ProtFlags::READ | ProtFlags::WRITE
        } else {
            ProtFlags::READ
        };
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let address = unsafe {
            mmap(
                std::ptr::null_mut(),
                count * size_of::<T>(),
                protection,
                MapFlags::SHARED,
                fd.as_fd(),
                0,
            )?
        };
        let base = NonNull::new(address.cast::<T>()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self {
            base,
            count,
            writable,
            marker: PhantomData,
        })
    }

    /// The elements.
    ///
    /// # Panics
    /// Never; but a store through a mapping opened for reading ends the process (`SIGSEGV`): see [`Self::writable`].
    #[must_use]
    pub fn get(&self) -> &[T] {
        // SAFETY: the mapping holds `count` elements of T for as long as `self` lives, page aligned; T: Shared makes
        // concurrent changes sound.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.count) }
    }

    /// Whether it was mapped for writing.
    #[must_use]
    pub const fn writable(&self) -> bool {
        self.writable
    }
}

impl<T: Shared> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `new`, and nobody has a reference into it any more.
        let _ = unsafe {
            munmap(
                self.base.as_ptr().cast::<c_void>(),
                self.count * size_of::<T>(),
            )
        };
    }
}
