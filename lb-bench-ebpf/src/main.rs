//! The benchmark's own programs: beside the data path, never in it.
//!
//! [`prepare`] writes a whole packet and calls the program under test; the [`floor`] programs are what that one is compared
//! with. How they are measured is in `lb-userspace/src/bench`.
#![no_std]
#![no_main]

mod floor;
mod live;
mod prepare;

/// The licence under which the kernel loads the programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier accepts no program in which this can be reached.
    loop {}
}
