//! The one place where the kernel program touches packet memory.

use aya_ebpf::{
    helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    programs::XdpContext,
};
use lb_common::packet::Packet;

/// No header that the program looks at begins later in a frame. An offset which the compiler knows to be small by what it was
/// computed from may be any number to the verifier of an older kernel, which takes no more than 2^16 - 1 together with what
/// is read (`MAX_PACKET_OFF` in `kernel/bpf/verifier.c`).
const MAX_OFFSET: usize = 0x3fff;

/// The frame of an XDP program's context.
pub(crate) struct Frame<'a>(pub(crate) &'a XdpContext);

impl Frame<'_> {
    /// The address of `len` bytes at `offset`, if the frame has them.
    ///
    /// Both ends are read anew at each call, as the verifier wants it after a helper that moves them.
    #[inline(always)]
    fn address(&self, offset: usize, len: usize) -> Option<usize> {
        let mut offset = offset;
        let constant = is_constant(offset);
        if !constant {
            opaque(&mut offset);
            if offset > MAX_OFFSET {
                return None;
            }
        }
        let mut start = self.0.data() + offset;
        if !constant || offset != 0 {
            opaque(&mut start);
        }
        if start + len > self.0.data_end() {
            None
        } else {
            Some(start)
        }
    }
}

impl Packet for Frame<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.0.data_end() - self.0.data()
    }

    #[inline(always)]
    fn bytes<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        let address = self.address(offset, N)?;
        // SAFETY: the N bytes lie between data and data_end, which the verifier checks once more; an array of bytes
        // needs no alignment; the program alone has the packet while it runs.
        Some(unsafe { &*(address as *const [u8; N]) })
    }

    #[inline(always)]
    fn bytes_mut<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        let address = self.address(offset, N)?;
        // SAFETY: a packet is not at address 0. Told to the compiler, which would test it: a reference is never null.
        unsafe { core::hint::assert_unchecked(address != 0) };
        // SAFETY: as above; `&mut self` keeps every other reference away.
        Some(unsafe { &mut *(address as *mut [u8; N]) })
    }

    #[inline(always)]
    fn move_head(&mut self, by: i32) -> bool {
        // SAFETY: the context is the kernel's own; `&mut self` keeps every reference into the packet away, and all
        // addresses are derived anew from the context afterwards.
        unsafe { bpf_xdp_adjust_head(self.0.ctx, by) == 0 }
    }

    #[inline(always)]
    fn move_tail(&mut self, by: i32) -> bool {
        // SAFETY: as above.
        unsafe { bpf_xdp_adjust_tail(self.0.ctx, by) == 0 }
    }
}

/// Keeps the compiler from computing a number twice, and from knowing anything of it. The verifier proves an offset only for the
/// register that was compared with a limit, or with the frame's end; an equal sum in another register is nothing to it.
#[inline(always)]
fn opaque(number: &mut usize) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the register keeps its value. Not an empty text: its source line would stand at the next instruction's offset
    // as well, and the kernel takes no two lines for one (`check_btf_line` in `kernel/bpf/verifier.c`).
    unsafe {
        core::arch::asm!(
            "{0} = {0}",
            inout(reg) * number,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    #[cfg(not(target_arch = "bpf"))]
    let _ = number;
}

/// Whether the compiler knows the number.
#[inline(always)]
fn is_constant(number: usize) -> bool {
    #[cfg(target_arch = "bpf")]
    return core::intrinsics::is_val_statically_known(number);
    #[cfg(not(target_arch = "bpf"))]
    {
        let _ = number;
        false
    }
}
