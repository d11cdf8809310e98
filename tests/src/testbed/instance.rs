//! Which testbeds exist on this machine, and how one is removed without a trace, whoever made it.
//!
//! Every instance has a directory `/run/xdp-lb-testbed/TAG` with its files and a lock that its process holds while it
//! lives. What is left of a process that died (SIGKILL, a crash) is therefore found and removed by the next one, and
//! never that of a living one. The directory is made first and deleted last, so nothing exists without one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::error::{Error, IoContext, Result};
use super::namespace::Namespace;

/// Where the instances' directories are.
const ROOT: &str = "/run/xdp-lb-testbed";
/// Where the BPF file system is mounted on every Linux distribution.
const BPFFS: &str = "/sys/fs/bpf";
/// The file that marks an instance which shall outlive its process.
const KEPT: &str = "kept";
/// How long a process inside a testbed has to end by itself before it is killed.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often it is looked at meanwhile.
const POLL: Duration = Duration::from_millis(20);

/// The tags this process has made and not yet removed; for the panic hook, which can reach no `Drop`.
static LIVE: Mutex<Vec<String>> = Mutex::new(Vec::new());
static NEXT: AtomicU32 = AtomicU32::new(0);

/// The claim on one instance's name and directory. Dropping it removes the instance.
#[derive(Debug)]
pub(super) struct Instance {
    tag: String,
    kept: bool,
    _lock: Flock<File>,
}

impl Instance {
    /// Claims a new tag, `LABEL-PID-NUMBER` or `PID-NUMBER`, after removing what dead instances left.
    pub(super) fn claim(label: Option<&str>) -> Result<Self> {
        fs::create_dir_all(ROOT).to_do(|| format!("create {ROOT}"))?;
        // One process at a time makes or judges instances: a directory whose lock is not taken yet looks dead.
        let _registry = lock(&Path::new(ROOT).join(".lock"), FlockArg::LockExclusive)?;
        for tag in tags()? {
            if is_dead(&tag) {
                remove(&tag);
            }
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let label = label.map(|label| format!("{label}-")).unwrap_or_default();
        let tag = format!("{label}{}-{number}", std::process::id());
        let directory = directory(&tag);
        fs::create_dir(&directory).to_do(|| format!("create {}", directory.display()))?;
        let lock = lock(&directory.join("lock"), FlockArg::LockExclusiveNonblock)?;
        live().push(tag.clone());
        Ok(Self {
            tag,
            kept: false,
            _lock: lock,
        })
    }

    pub(super) fn tag(&self) -> &str {
        &self.tag
    }

    /// The directory for the instance's files.
    pub(super) fn directory(&self) -> PathBuf {
        directory(&self.tag)
    }

    /// The pin path for the instance's director.
    pub(super) fn pin_path(&self) -> PathBuf {
        pin_path(&self.tag)
    }

    /// Makes the directory for the pins of what belongs to the switch.
    pub(super) fn create_switch_pins(&self) -> Result<PathBuf> {
        let path = switch_pins(&self.tag);
        fs::create_dir(&path).to_do(|| format!("create {}", path.display()))?;
        Ok(path)
    }

    /// Lets the instance outlive this process, until [`remove_kept`] is called.
    pub(super) fn keep(&mut self) -> Result<()> {
        let marker = self.directory().join(KEPT);
        fs::write(&marker, "").to_do(|| format!("write {}", marker.display()))?;
        self.kept = true;
        live().retain(|tag| *tag != self.tag);
        Ok(())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if !self.kept {
            remove(&self.tag);
            live().retain(|tag| *tag != self.tag);
        }
    }
}

/// Removes every instance that this process has made. For a panic hook and a last way out: it needs no value.
pub fn remove_all_of_this_process() {
    // A panic may have happened while the list was held; what it says still holds.
    let tags = std::mem::take(&mut *live());
    for tag in tags {
        remove(&tag);
    }
}

/// Removes every instance that was kept with `--keep` and whose process has ended; gives their tags.
///
/// # Errors
/// When the instances cannot be listed.
pub fn remove_kept() -> Result<Vec<String>> {
    if !Path::new(ROOT).exists() {
        return Ok(Vec::new());
    }
    let _registry = lock(&Path::new(ROOT).join(".lock"), FlockArg::LockExclusive)?;
    let mut removed = Vec::new();
    for tag in tags()? {
        if lock(
            &directory(&tag).join("lock"),
            FlockArg::LockExclusiveNonblock,
        )
        .is_ok()
        {
            remove(&tag);
            removed.push(tag);
        }
    }
    Ok(removed)
}

fn live() -> std::sync::MutexGuard<'static, Vec<String>> {
    LIVE.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn directory(tag: &str) -> PathBuf {
    Path::new(ROOT).join(tag)
}

fn pin_path(tag: &str) -> PathBuf {
    Path::new(BPFFS).join(format!("xdp-lb-{tag}"))
}

fn switch_pins(tag: &str) -> PathBuf {
    Path::new(BPFFS).join(format!("xdp-lb-{tag}-switch"))
}

/// The prefix of the names of an instance's namespaces.
pub(super) fn namespace_prefix(tag: &str) -> String {
    format!("xlb-{tag}-")
}

fn lock(path: &Path, how: FlockArg) -> Result<Flock<File>> {
    let file = File::options()
        .create(true)
        .append(true)
        .open(path)
        .to_do(|| format!("open {}", path.display()))?;
    Flock::lock(file, how).map_err(|(_, errno)| Error::Io {
        what: format!("lock {}", path.display()),
        source: errno.into(),
    })
}

fn tags() -> Result<Vec<String>> {
    let entries = fs::read_dir(ROOT).to_do(|| format!("list {ROOT}"))?;
    Ok(entries
        .filter_map(std::result::Result::ok)
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect())
}

fn is_dead(tag: &str) -> bool {
    let directory = directory(tag);
    !directory.join(KEPT).exists()
        && lock(&directory.join("lock"), FlockArg::LockExclusiveNonblock).is_ok()
}

/// Ends the instance's processes, then deletes its namespaces, its pins and its files. Goes on after an error: what can
/// be removed is removed, and the rest is said.
fn remove(tag: &str) {
    let namespaces = Namespace::all_with_prefix(&namespace_prefix(tag));
    end_processes(&namespaces);
    for namespace in &namespaces {
        if let Err(error) = namespace.delete() {
            eprintln!("testbed {tag}: {error}");
        }
    }
    for path in [pin_path(tag), switch_pins(tag), directory(tag)] {
        if path.exists()
            && let Err(error) = fs::remove_dir_all(&path)
        {
            eprintln!("testbed {tag}: cannot remove {}: {error}", path.display());
        }
    }
}

/// Ends every process whose network is one of `namespaces`, which are this testbed's alone.
fn end_processes(namespaces: &[Namespace]) {
    let inside = || {
        namespaces
            .iter()
            .flat_map(Namespace::processes)
            .collect::<Vec<Pid>>()
    };
    let all = inside();
    for pid in &all {
        // It may have ended since it was listed.
        let _ = kill(*pid, Signal::SIGTERM);
    }
    let deadline = Instant::now() + PATIENCE;
    while !inside().is_empty() {
        if Instant::now() > deadline {
            for pid in inside() {
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
        std::thread::sleep(POLL);
    }
    // Those of a process that is gone are buried by init, which may take a moment: whoever looks at the process
    // list next shall not see them. Our own children are their owners' to bury.
    let deadline = Instant::now() + PATIENCE;
    while all.iter().any(|pid| is_unburied_orphan(*pid)) && Instant::now() < deadline {
        std::thread::sleep(POLL);
    }
}

/// Whether the process, which has left its network, is still listed, and its parent is not us (proc_pid_stat(5)).
fn is_unburied_orphan(pid: Pid) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // After the name in parentheses, which may contain anything: the state and the parent.
    let parent = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
    parent != Some(std::process::id())
}

/// Mounts the BPF file system where it is missing, as systemd does at boot.
pub(super) fn mount_bpffs() -> Result<()> {
    let statfs = nix::sys::statfs::statfs(BPFFS).to_do(|| format!("look at {BPFFS}"))?;
    if statfs.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC {
        return Ok(());
    }
    nix::mount::mount(
        Some("bpf"),
        BPFFS,
        Some("bpf"),
        nix::mount::MsFlags::empty(),
        None::<&str>,
    )
    .to_do(|| format!("mount the BPF file system at {BPFFS}"))
}
