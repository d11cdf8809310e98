//! What the daemon asks of the GNU library's allocator. Of another one nothing is asked.

use std::hint::black_box;

use tokio::task::{JoinError, spawn_blocking, yield_now};

/// Has each place that is freed joined with its free neighbours at once, where work that nobody waits for frees it.
///
/// The GNU library leaves freed places of up to 128 bytes as they are, and joins all there are when somebody next asks for more
/// than 1,024 (`M_MXFAST` in mallopt(3)). A status of 64,000 backends, freed when it has been written, leaves up to
/// 92,000; the next failure asked for its table, and took 7 ms and more instead of 0.3.
pub(crate) fn join_at_once() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call sets a number of the allocator's own, and looks at its lists under their locks.
    let set = unsafe { libc::mallopt(libc::M_MXFAST, 0) };
    #[cfg(target_env = "gnu")]
    if set == 0 {
        tracing::warn!(
            "the C library keeps small places of memory apart: a failure right after a large status takes some milliseconds more"
        );
    }
}

/// Does work in a thread of its own that frees what this one has allocated, so many places or fewer, and puts these in order.
///
/// The GNU library keeps what is freed in one list, and sorts up to 10,000 places of it when the thread whose memory they are next asks
/// for more than 1,024 bytes (`_int_malloc`). After a status of 64,000 backends that took 2 ms of a failure.
///
/// # Errors
/// If the work panics.
pub(crate) async fn aside<T: Send + 'static>(
    places: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    /// As many as the library sorts at a time.
    const PIECE: usize = 10_000;
    let done = spawn_blocking(work).await;
    if cfg!(target_env = "gnu") {
        for _ in 0..=places / PIECE {
            // So large that the library has none at hand, so small that it is nothing to give back.
            drop(black_box(Vec::<u8>::with_capacity(4_096)));
            // Whatever has happened comes between two pieces.
            yield_now().await;
        }
    }
    done
}

/// Gives the kernel back what a start needed and freed: the document that the configuration was read from, plans, the kernel
/// object. With 65,535 backends it is two fifths of all memory. The GNU library keeps it otherwise.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call looks at the allocator's own lists, under their locks, and frees no place that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    /// Bytes that were freed and not joined, of all threads.
    fn apart() -> usize {
        // SAFETY: the call reads the allocator's own lists, under their locks.
        unsafe { libc::mallinfo2() }.fsmblks
    }

    #[test]
    fn what_a_large_status_leaves_is_joined_when_it_is_freed() {
        join_at_once();
        let words: Vec<String> = (0..10_000)
            .map(|n| format!("a word of a status {n}"))
            .collect();
        let before = apart();
        drop(words);
        let after = apart();
        // Other tests' threads leave none either, but for a place that is being freed right now; they may have some joined.
        assert!(after < before + 10_000, "{after} bytes, {before} before");
    }
}
