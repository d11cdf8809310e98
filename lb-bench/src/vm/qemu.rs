//! The emulator: one processor, without the host's clock.

use std::{
    ffi::OsString,
    fs,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::{
    prctl::set_pdeathsig,
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};

use super::{guest, initramfs, output};

const PROGRAM: &str = "qemu-system-x86_64";
/// Everything that can be emulated, but for fast string instructions: here each byte of theirs would count as an instruction,
/// and the kernel copies by eight bytes without them.
const CPU: &str = "max,-erms,-fsrm";
/// An instruction is 2 to this power nanoseconds of the machine's clock.
pub(super) const SHIFT: u8 = 0;
/// What would count against the network stack only. Nobody is to be kept from anybody here. And the generator's memory does
/// not come back to it from there, as it does from the driver: a page that is cleared for each frame is no part of a peer.
const IN_FAVOUR: &str = "mitigations=off init_on_alloc=0";
/// MiB: the kernel, the file system, and a few hundred thousand connections.
const MEMORY: u32 = 2048;
/// It takes one to three minutes on two processors that are busy otherwise.
const PATIENCE: Duration = Duration::from_secs(20 * 60);
/// How often it is looked at.
const INTERVAL: Duration = Duration::from_millis(200);

/// A machine that is to run once.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    /// The kernel's image.
    pub(super) kernel: &'a Path,
    /// The first file system.
    pub(super) initrd: &'a Path,
    /// The file for what the machine says.
    pub(super) console: &'a Path,
    /// The file for its results.
    pub(super) results: &'a Path,
    /// What the first process is told besides.
    pub(super) arguments: &'a [String],
}

impl Machine<'_> {
    /// Runs it to its end; `step` hears of each row.
    pub(super) fn run(&self, signals: &Signals, step: impl Fn(&str)) -> Result<()> {
        let mut command = Command::new(PROGRAM);
        command.args(self.arguments()?);
        self.watch(command, signals, PATIENCE, step)
    }

    fn arguments(&self) -> Result<Vec<OsString>> {
        let file = |path: &Path| -> Result<OsString> {
            let path = path.to_str().context("a path that is no text")?;
            // A comma would begin an option.
            ensure!(!path.contains(','), "a comma in the path {path}");
            Ok(format!("file:{path}").into())
        };
        let mut arguments: Vec<OsString> = [
            "-no-user-config",
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
            "-machine",
            "pc",
            "-accel",
            "tcg,thread=single",
            "-cpu",
            CPU,
            "-smp",
            "1",
        ]
        .map(OsString::from)
        .into();
        arguments.extend(["-icount".into(), format!("shift={SHIFT},sleep=off").into()]);
        arguments.extend(["-m".into(), MEMORY.to_string().into()]);
        arguments.extend(["-kernel".into(), self.kernel.into()]);
        arguments.extend(["-initrd".into(), self.initrd.into()]);
        arguments.extend(["-serial".into(), file(self.console)?]);
        arguments.extend(["-serial".into(), file(self.results)?]);
        arguments.extend(["-append".into(), self.command_line()?.into()]);
        Ok(arguments)
    }

    /// What the kernel is told (bootparam(7)): what it does not know is in the environment of the first process, and what comes
    /// after `--` are that one's arguments.
    fn command_line(&self) -> Result<String> {
        let mut line = format!(
            "console=ttyS0 panic=-1 {IN_FAVOUR} PATH=/bin LD_LIBRARY_PATH=/{} -- --guest",
            initramfs::LIBRARIES
        );
        for argument in self.arguments {
            ensure!(
                argument
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || c == '_'),
                "`{argument}` is no part of a row's name"
            );
            line.push(' ');
            line.push_str(argument);
        }
        Ok(line)
    }

    /// Waits for `command`, and ends it when a signal comes or the time is up.
    fn watch(
        &self,
        mut command: Command,
        signals: &Signals,
        patience: Duration,
        step: impl Fn(&str),
    ) -> Result<()> {
        // SAFETY: a system call between fork and exec, which takes no lock and no memory.
        unsafe {
            // Whatever ends this program, the machine does not stay behind.
            command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?));
        }
        let child = command
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().display()))?;
        let mut child = Running(child);
        let began = Instant::now();
        loop {
            if let Some(status) = child.0.try_wait().context("waiting for QEMU")? {
                return ended(status);
            }
            signals.check()?;
            ensure!(
                began.elapsed() < patience,
                "it did not come to an end within {} s",
                patience.as_secs()
            );
            let console = fs::read(self.console).unwrap_or_default();
            if let Some(row) = row(&String::from_utf8_lossy(&console)) {
                step(row);
            }
            thread::sleep(INTERVAL);
        }
    }
}

/// The row that is measured, by what the console says.
fn row(console: &str) -> Option<&str> {
    let mut lines = console.lines().rev();
    lines
        .find_map(|line| line.strip_prefix(guest::MARK))
        .map(str::trim_end)
}

fn ended(status: ExitStatus) -> Result<()> {
    ensure!(status.success(), "QEMU ended with {status}");
    Ok(())
}

/// The emulator's version, as it says itself.
pub(super) fn version() -> Result<String> {
    let text = output(Command::new(PROGRAM).arg("--version"))?;
    Ok(number(&text).to_owned())
}

/// The version's number in what `--version` prints: `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)`.
fn number(text: &str) -> &str {
    let first = text.lines().next().unwrap_or_default();
    let version = first
        .strip_prefix("QEMU emulator version ")
        .unwrap_or(first);
    version.split(" (").next().unwrap_or(version)
}

/// A process that is ended when nobody waits for it any more.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// SIGINT, SIGTERM and SIGHUP, held back so that what was made can be removed.
pub(super) struct Signals {
    before: SigSet,
    descriptor: SignalFd,
}

impl Signals {
    /// From now on they end this thread's work only where it asks. Processes that it starts are ended by them as ever.
    pub(super) fn hold() -> Result<Self> {
        let mut held = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            held.add(signal);
        }
        let before = SigSet::thread_get_mask()?;
        held.thread_block()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self {
            before,
            descriptor: SignalFd::with_flags(&held, flags)?,
        })
    }

    /// An error if one has come.
    pub(super) fn check(&self) -> Result<()> {
        let Some(signal) = self.descriptor.read_signal()? else {
            return Ok(());
        };
        let signal = Signal::try_from(i32::try_from(signal.ssi_signo)?)?;
        bail!("ended by {signal}")
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        let _ = self.before.thread_set_mask();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        path::PathBuf,
    };

    use nix::{sys::signal::kill, unistd::Pid};

    use super::*;

    /// The paths of a machine, in a directory.
    fn paths(directory: &Path) -> [PathBuf; 4] {
        ["vmlinuz", "initrd", "console", "results"].map(|name| directory.join(name))
    }

    fn machine<'a>(paths: &'a [PathBuf; 4], arguments: &'a [String]) -> Machine<'a> {
        let [kernel, initrd, console, results] = paths;
        Machine {
            kernel,
            initrd,
            console,
            results,
            arguments,
        }
    }

    #[test]
    fn the_emulators_command_line() {
        let paths = paths(Path::new("/scratch"));
        let rows = ["vm_ipvs".to_owned(), "bridge".to_owned()];
        let arguments = machine(&paths, &rows).arguments().expect("arguments");
        let line = arguments.join(" ".as_ref()).into_string().expect("text");
        for part in [
            "-accel tcg,thread=single",
            "-icount shift=0,sleep=off",
            "-smp 1",
            "-kernel /scratch/vmlinuz -initrd /scratch/initrd",
            "-serial file:/scratch/console -serial file:/scratch/results",
            "LD_LIBRARY_PATH=/lib -- --guest vm_ipvs bridge",
        ] {
            assert!(line.contains(part), "no `{part}` in {line}");
        }
        for wrong in ["a b", "init=/x", "-x"] {
            let rows = [wrong.to_owned()];
            assert!(machine(&paths, &rows).arguments().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_emulator_says_its_version() {
        let debian =
            "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright (c) 2003\n";
        assert_eq!(number(debian), "7.2.22");
        assert_eq!(number("QEMU emulator version 10.0.0\n"), "10.0.0");
        assert_eq!(number("another one 1.0\n"), "another one 1.0");
    }

    #[test]
    fn the_console_names_the_row() {
        let console = "[1.0] booting\r\nxdp-lb bench: vm_floor\r\nxdp-lb bench: vm_bridge\r\n[2.0] device left\r\n";
        assert_eq!(row(console), Some("vm_bridge"));
        assert_eq!(row("[1.0] booting\r\n"), None);
    }

    /// A shell script in the emulator's place, in a directory.
    fn watched(
        directory: &Path,
        script: &str,
        patience: Duration,
        step: impl Fn(&str),
    ) -> Result<()> {
        let paths = paths(directory);
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("echo $$ > pid; {script}")])
            .current_dir(directory);
        let signals = Signals::hold().expect("held");
        machine(&paths, &[]).watch(command, &signals, patience, step)
    }

    fn scratch() -> tempfile::TempDir {
        tempfile::tempdir().expect("a directory")
    }

    fn is_there(directory: &Path) -> bool {
        let pid = fs::read_to_string(directory.join("pid")).expect("its number");
        kill(Pid::from_raw(pid.trim().parse().expect("a number")), None).is_ok()
    }

    const LONG: Duration = Duration::from_secs(60);
    /// Names a row on the console.
    const ROW: &str = "echo 'xdp-lb bench: vm_floor' > console";

    #[test]
    fn its_end_and_its_rows_are_seen() {
        let directory = scratch();
        let script = format!("{ROW}; until [ -e seen ]; do sleep 0.05; done");
        let rows = RefCell::new(Vec::new());
        watched(directory.path(), &script, LONG, |row| {
            rows.borrow_mut().push(row.to_owned());
            fs::write(directory.path().join("seen"), "").expect("written");
        })
        .expect("it ends well");
        assert_eq!(rows.borrow()[0], "vm_floor");
        let failed = watched(directory.path(), "exit 7", LONG, |_| {});
        let error = failed.expect_err("it fails").to_string();
        assert!(error.contains("exit status: 7"), "{error}");
    }

    #[test]
    fn the_time_is_up() {
        let directory = scratch();
        let script = format!("{ROW}; exec sleep 600");
        let patience = Duration::from_secs(3);
        let error = watched(directory.path(), &script, patience, |_| {})
            .expect_err("it never ends")
            .to_string();
        assert!(error.contains("did not come to an end"), "{error}");
        assert!(!is_there(directory.path()), "it still runs");
    }

    #[test]
    fn a_signal_ends_it() {
        let directory = scratch();
        let script = format!("{ROW}; exec sleep 600");
        let told = Cell::new(false);
        let error = watched(directory.path(), &script, LONG, |_| {
            if !told.replace(true) {
                // To this thread alone, which holds it back: the whole process would end with the other tests.
                // SAFETY: the calling thread exists.
                let sent = unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGINT) };
                assert_eq!(sent, 0);
            }
        })
        .expect_err("it was asked to end")
        .to_string();
        assert!(error.contains("SIGINT"), "{error}");
        assert!(!is_there(directory.path()), "it still runs");
    }
}
