//! As much of a processor for oneself as can be had.

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// On one processor, before everybody else; the rest of the process is as it was when this is dropped.
#[derive(Debug)]
pub(crate) struct Alone {
    before: Option<CpuSet>,
    scheduled: bool,
}

/// Above every ordinary process, below the kernel's own threads of that kind.
const PRIORITY: i32 = 10;

impl Alone {
    /// Takes the last processor there is. What can't be had is done without.
    pub(crate) fn new() -> Self {
        let me = Pid::from_raw(0);
        let before = sched_getaffinity(me).ok();
        if let Some(before) = &before {
            let last = (0..CpuSet::count())
                .rev()
                .find(|cpu| before.is_set(*cpu).unwrap_or(false));
            let mut one = CpuSet::new();
            if let Some(cpu) = last
                && one.set(cpu).is_ok()
            {
                let _ = sched_setaffinity(me, &one);
            }
        }
        Self {
            before,
            scheduled: schedule(me, libc::SCHED_FIFO, PRIORITY),
        }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        if self.scheduled {
            schedule(Pid::from_raw(0), libc::SCHED_OTHER, 0);
        }
        if let Some(before) = &self.before {
            let _ = sched_setaffinity(Pid::from_raw(0), before);
        }
    }
}

/// Lets a thread go before whoever is [`Alone`]; whether that could be done.
pub(crate) fn put_before(thread: Pid) -> bool {
    schedule(thread, libc::SCHED_FIFO, PRIORITY + 1)
}

/// 0 is the calling thread.
fn schedule(thread: Pid, policy: libc::c_int, priority: libc::c_int) -> bool {
    let parameters = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: the parameters live until the call returns.
    unsafe { libc::sched_setscheduler(thread.as_raw(), policy, &raw const parameters) == 0 }
}
