//! One network namespace: made, entered and deleted.
//!
//! Only the network is entered. `ip netns exec` and `ip -n` would also mount a fresh /sys, in which no pin outlives the
//! process.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sched::{CloneFlags, setns};
use nix::unistd::Pid;

use super::error::{Error, IoContext, Result};

/// Where iproute2 keeps the names of network namespaces.
const NAMES: &str = "/run/netns";

/// A network namespace with a name.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    pub(super) fn create(name: String) -> Result<Self> {
        let namespace = Self { name };
        run(
            Command::new("ip").args(["netns", "add", &namespace.name]),
            None,
        )?;
        Ok(namespace)
    }

    /// The namespaces whose names begin with `prefix`.
    pub(super) fn all_with_prefix(prefix: &str) -> Vec<Self> {
        // Without the directory there is none.
        let Ok(entries) = fs::read_dir(NAMES) else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with(prefix))
            .map(|name| Self { name })
            .collect()
    }

    pub(super) fn delete(&self) -> Result<()> {
        run(
            Command::new("ip").args(["netns", "delete", &self.name]),
            None,
        )
        .map(drop)
    }

    /// Its name, as `ip netns` lists it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file to enter it by: `nsenter --net=PATH`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(NAMES).join(&self.name)
    }

    /// Runs `work` in a thread of its own inside the namespace: sockets it opens and what it reads under
    /// `/proc/sys/net` belong to the namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered. A panic of `work` goes on in the caller.
    pub fn run_in<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let handle = self.open()?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter(&handle)?;
                Ok(work())
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Like [`Namespace::run_in`] for work that goes on in the background.
    ///
    /// # Errors
    /// When the namespace cannot be opened or the thread cannot be started.
    pub fn spawn_in<T: Send + 'static>(
        &self,
        thread_name: &str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<std::thread::JoinHandle<Result<T>>> {
        let handle = self.open()?;
        let namespace = self.clone();
        std::thread::Builder::new()
            .name(thread_name.to_owned())
            .spawn(move || {
                namespace.enter(&handle)?;
                work()
            })
            .to_do(|| format!("start the thread {thread_name}"))
    }

    /// A command that will run inside the namespace, in a process group of its own: Ctrl-C in a terminal reaches the
    /// program that made the testbed, which then ends the others in order.
    ///
    /// # Errors
    /// When the namespace cannot be opened.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let handle = self.open()?;
        let mut command = Command::new(program);
        command.process_group(0);
        // SAFETY: between fork and exec the closure makes one system call on a descriptor it owns; it allocates
        // nothing and takes no lock.
        unsafe {
            command.pre_exec(move || {
                setns(&handle, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from)
            });
        }
        Ok(command)
    }

    /// Runs `program` inside the namespace and gives what it printed.
    ///
    /// # Errors
    /// When it cannot be started or fails.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        run(self.command(program)?.args(arguments), None)
    }

    /// Feeds lines to `ip -batch -`, one iproute2 command each, inside the namespace.
    pub(super) fn ip_batch(&self, lines: &str) -> Result<()> {
        run(self.command("ip")?.args(["-batch", "-"]), Some(lines)).map(drop)
    }

    /// Writes a network setting, as `sysctl net.KEY=VALUE` would.
    ///
    /// # Errors
    /// When the kernel does not know the key or refuses the value.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run_in(|| {
            for (key, value) in settings {
                let path = Path::new("/proc/sys/net").join(key.replace('.', "/"));
                fs::write(&path, value).to_do(|| format!("write {value} to {}", path.display()))?;
            }
            Ok(())
        })?
    }

    /// The processes whose network this is.
    pub(super) fn processes(&self) -> Vec<Pid> {
        let Ok(own) = fs::metadata(self.path()) else {
            return Vec::new();
        };
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| u32::try_from(*pid).is_ok_and(|pid| pid != std::process::id()))
            .filter(|pid| {
                // A process may end while it is looked at; a dead one has no network.
                fs::metadata(format!("/proc/{pid}/ns/net"))
                    .is_ok_and(|theirs| (theirs.dev(), theirs.ino()) == (own.dev(), own.ino()))
            })
            .map(Pid::from_raw)
            .collect()
    }

    fn open(&self) -> Result<File> {
        File::open(self.path()).to_do(|| format!("open the network namespace {}", self.name))
    }

    fn enter(&self, handle: &File) -> Result<()> {
        setns(handle, CloneFlags::CLONE_NEWNET)
            .to_do(|| format!("enter the network namespace {}", self.name))
    }
}

/// Runs a command to its end, with `input` on its standard input, and fails when it fails.
pub(super) fn run(command: &mut Command, input: Option<&str>) -> Result<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| Error::MissingTool {
            package: package_of(&program),
            program: program.clone(),
            source,
        })?;
    if let (Some(mut pipe), Some(input)) = (child.stdin.take(), input) {
        // A program that ends early closes the pipe; its exit status then tells more than the write's error.
        let _ = std::io::Write::write_all(&mut pipe, input.as_bytes());
    }
    let output = child
        .wait_with_output()
        .to_do(|| format!("wait for `{program}`"))?;
    if output.status.success() {
        return Ok(output);
    }
    let arguments: Vec<_> = command
        .get_args()
        .map(|argument| argument.to_string_lossy())
        .collect();
    let input = input
        .map(|input| format!(" <<< '{input}'"))
        .unwrap_or_default();
    Err(Error::Command {
        command: format!("{program} {}{input}", arguments.join(" ")),
        status: output.status,
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

fn package_of(program: &str) -> &'static str {
    if program.ends_with("nginx") {
        "nginx"
    } else {
        "iproute2"
    }
}
