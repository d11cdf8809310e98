//! Words that userspace changes while packets flow: read and written whole, never torn.

use core::cell::UnsafeCell;

/// Declares a cell holding one aligned word that several processors (and the kernel and userspace) share.
macro_rules! shared_word {
    ($name:ident, $int:ty, $bytes:literal) => {
        #[doc = concat!("An aligned ", $bytes, "-byte word shared by the data path and the controller.")]
        ///
        /// Loads and stores are single and never torn, and imply no order between different words: what must change
        /// together is packed into one word (design.md section 4).
        #[derive(Debug, Default)]
        #[repr(transparent)]
        pub struct $name(UnsafeCell<$int>);

        // SAFETY: the content is only reached through `get` and `set`, which make one aligned volatile access each; on
        // every target of this project an aligned access of this size is a single instruction.
        unsafe impl Sync for $name {}

        impl $name {
            /// A word holding `value`.
            #[must_use]
            pub const fn new(value: $int) -> Self {
                Self(UnsafeCell::new(value))
            }

            /// Reads the whole word.
            #[inline(always)]
            #[must_use]
            pub fn get(&self) -> $int {
                // SAFETY: the pointer comes from a live reference and is aligned for its type.
                unsafe { self.0.get().read_volatile() }
            }

            /// Writes the whole word.
            #[inline(always)]
            pub fn set(&self, value: $int) {
                // SAFETY: the pointer comes from a live reference and is aligned for its type; `UnsafeCell` permits the
                // write behind a shared reference.
                unsafe { self.0.get().write_volatile(value) }
            }
        }

        impl Clone for $name {
            fn clone(&self) -> Self {
                Self::new(self.get())
            }
        }
    };
}

#[cfg(not(target_arch = "bpf"))]
impl Word64 {
    /// Writes `new` only where the word still holds `old`; says whether it did.
    ///
    /// For the controller, which clears a flow record that the data path may be renewing at the same moment.
    pub fn replace_if(&self, old: u64, new: u64) -> bool {
        use core::sync::atomic::{AtomicU64, Ordering};
        // SAFETY: the pointer is valid and aligned for as long as `self` lives; every other access to the word is one
        // aligned instruction as well.
        let word = unsafe { AtomicU64::from_ptr(self.0.get()) };
        word.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }
}

shared_word!(Word16, u16, "2");
shared_word!(Word32, u32, "4");
shared_word!(Word64, u64, "8");
