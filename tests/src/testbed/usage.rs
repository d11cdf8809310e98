//! What a process takes: memory and processor time, as the kernel counts them.

use std::fs;
use std::time::Duration;

use super::error::{Error, IoContext as _, Result};

/// Memory of a process, in bytes (`proc_pid_status(5)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resident {
    /// Its own: heap and stacks.
    pub anonymous: u64,
    /// Of files: the program itself, and the BPF maps that are mapped.
    pub file: u64,
    /// Of shared memory.
    pub shared: u64,
    /// The most that all of them together ever were.
    pub peak: u64,
}

impl Resident {
    /// All that is resident now: `VmRSS`.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.anonymous + self.file + self.shared
    }

    /// Of a running process.
    ///
    /// # Errors
    /// When it has ended.
    pub fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/status");
        let text = fs::read_to_string(&path).to_do(|| format!("read {path}"))?;
        let bytes = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
                .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
                .map(|kib| kib * 1024)
                .ok_or_else(|| Error::Request(format!("{path} has no {key}")))
        };
        Ok(Self {
            anonymous: bytes("RssAnon")?,
            file: bytes("RssFile")?,
            shared: bytes("RssShmem")?,
            peak: bytes("VmHWM")?,
        })
    }
}

/// The processor time that all threads of a process have taken so far, in user mode and in the kernel
/// (`proc_pid_stat(5)`, fields 14 and 15).
///
/// # Errors
/// When it has ended.
pub fn processor_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).to_do(|| format!("read {path}"))?;
    // After the name in parentheses, which may contain anything, comes field 3.
    let ticks = text.rsplit(") ").next().and_then(|rest| {
        let mut fields = rest.split(' ').skip(11);
        let mut next = || fields.next()?.parse::<u64>().ok();
        Some(next()? + next()?)
    });
    let ticks = ticks.ok_or_else(|| Error::Request(format!("{path} has no times: {text}")))?;
    // SAFETY: the call takes a number and touches no memory.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    let per_second = u64::try_from(per_second)
        .ok()
        .filter(|ticks| *ticks > 0)
        .unwrap_or(100);
    Ok(Duration::from_nanos(ticks * 1_000_000_000 / per_second))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_time_of_this_process_grow_with_what_it_does() {
        let pid = std::process::id();
        let before = Resident::of(pid).unwrap();
        assert!(before.total() > 0 && before.peak > 0);
        let page = vec![1_u8; 64 << 20];
        let after = Resident::of(pid).unwrap();
        assert!(
            after.anonymous >= before.anonymous + (60 << 20),
            "{before:?} {after:?}"
        );
        assert!(after.peak >= after.anonymous);
        let begun = processor_time(pid).unwrap();
        let mut sum = 0_u64;
        while processor_time(pid).unwrap() < begun + Duration::from_millis(50) {
            sum = page.iter().fold(sum, |sum, byte| sum + u64::from(*byte));
        }
        assert!(sum > 0);
    }

    #[test]
    fn a_process_that_is_not_there_has_no_figures() {
        assert!(Resident::of(u32::MAX).is_err() && processor_time(u32::MAX).is_err());
    }
}
