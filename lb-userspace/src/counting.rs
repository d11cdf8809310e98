//! What a thread allocates, counted: work that a test can bound without a clock.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

/// What was allocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Allocated {
    /// How often, a larger place for what had one among it.
    pub(crate) times: u64,
    /// How many bytes.
    pub(crate) bytes: u64,
}

thread_local! {
    static ALLOCATED: Cell<Allocated> = const { Cell::new(Allocated { times: 0, bytes: 0 }) };
}

/// Does the work, and tells what this thread allocated for it.
pub(crate) fn allocated<T>(work: impl FnOnce() -> T) -> (T, Allocated) {
    let before = ALLOCATED.get();
    let result = work();
    let after = ALLOCATED.get();
    let allocated = Allocated {
        times: after.times - before.times,
        bytes: after.bytes - before.bytes,
    };
    (result, allocated)
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn note(bytes: usize) {
    // A thread that ends has nowhere to count any more.
    let _ = ALLOCATED.try_with(|allocated| {
        let Allocated {
            times,
            bytes: before,
        } = allocated.get();
        allocated.set(Allocated {
            times: times + 1,
            bytes: before + bytes as u64,
        });
    });
}

// SAFETY: everything is done by the system's allocator; counting allocates nothing, as the counter is a thread's plain value
// without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: as above.
        unsafe { System.realloc(place, layout, size) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }
}

#[test]
fn what_is_allocated_is_counted() {
    let (bytes, counted) = allocated(|| vec![0_u8; 1000]);
    assert_eq!((bytes.len(), counted.times, counted.bytes), (1000, 1, 1000));
    assert_eq!(allocated(|| 1 + 1).1, Allocated::default());
}
