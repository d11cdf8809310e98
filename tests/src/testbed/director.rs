//! xdp-lb on the director: the daemon, and its command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use lb_userspace::api::Status;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Testbed;
use super::error::{Error, IoContext, Result};
use super::host::Host;
use super::status::StatusExt as _;

/// How long anything the daemon does may take. Far longer than on the slowest machine; a test does not measure time.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// How often the daemon is asked while something is waited for.
const POLL: Duration = Duration::from_millis(50);
/// How many lines of the daemon's log an error shows.
const LOG_LINES: usize = 40;

/// A running (or stopped) xdp-lb, mostly of a testbed's director. Dropping it ends the daemon.
#[derive(Debug)]
pub struct XdpLb {
    host: Host,
    binary: PathBuf,
    config: PathBuf,
    child: Option<Child>,
}

impl XdpLb {
    /// Runs xdp-lb with this configuration file's text and waits until all its backends are up.
    ///
    /// # Errors
    /// When there is no binary, or the daemon ends, or a backend is not up in time; its log is in the error.
    pub fn start(testbed: &Testbed, config: &str) -> Result<Self> {
        let mut daemon = Self::prepare(testbed, config)?;
        daemon.restart()?;
        Ok(daemon)
    }

    /// Writes the configuration file, but does not run the daemon.
    ///
    /// # Errors
    /// When there is no binary or the file cannot be written.
    pub fn prepare(testbed: &Testbed, config: &str) -> Result<Self> {
        Self::prepare_on(testbed.director(), config)
    }

    /// The same on any host: a node of a cluster.
    ///
    /// # Errors
    /// As [`XdpLb::prepare`].
    pub fn prepare_on(host: &Host, config: &str) -> Result<Self> {
        let host = host.clone();
        let daemon = Self {
            binary: binary()?,
            config: host.directory().join("config.toml"),
            child: None,
            host,
        };
        daemon.write_config(config)?;
        Ok(daemon)
    }

    /// The configuration file.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The binary that runs.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// How often a daemon has said that it runs, on this testbed.
    #[must_use]
    pub fn times_running(&self) -> usize {
        let log = fs::read_to_string(self.log_path()).unwrap_or_default();
        log.matches("INFO running version=").count()
    }

    /// The file with all the daemon has logged.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.host.directory().join("xdp-lb.log")
    }

    /// The daemon's process, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Overwrites the configuration file; `reload` is left to the caller.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_config(&self, config: &str) -> Result<()> {
        fs::write(&self.config, config).to_do(|| format!("write {}", self.config.display()))
    }

    /// Starts the daemon without waiting for anything, with more arguments for `run`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&mut self, arguments: &[&str]) -> Result<()> {
        let path = self.log_path();
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(&path)
            .to_do(|| format!("open {}", path.display()))?;
        let child = self
            .host
            .command(&self.binary)?
            .arg("run")
            .args(arguments)
            .arg("--config")
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().to_do(|| "share the daemon's log".into())?)
            .stderr(log)
            .spawn()
            .to_do(|| format!("run {}", self.binary.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// The same, and holds the daemon up for that long before it runs: as on a machine that takes long to load the program.
    ///
    /// # Errors
    /// When it cannot be started, ends, does not get to its maps within [`DEADLINE`], or could not be held up in time.
    pub fn spawn_slowly(&mut self, held_up: Duration) -> Result<()> {
        let times_begun = |log: &Path| {
            let log = fs::read_to_string(log).unwrap_or_default();
            log.matches("INFO making the maps").count()
        };
        let log = self.log_path();
        let (begun, ran) = (times_begun(&log), self.times_running());
        self.spawn(&[])?;
        let deadline = Instant::now() + DEADLINE;
        while times_begun(&log) == begun && Instant::now() < deadline {
            self.check_running()?;
            std::thread::sleep(Duration::from_millis(1));
        }
        self.signal(Signal::SIGSTOP)?;
        std::thread::sleep(held_up);
        let in_time = times_begun(&log) > begun && self.times_running() == ran;
        self.signal(Signal::SIGCONT)?;
        if in_time {
            return Ok(());
        }
        Err(Error::Timeout {
            what: "that the daemon is held up between its maps and its running".into(),
            waited: DEADLINE,
            last: "it had not begun, or ran already".into(),
            log: self.log_tail(),
        })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let Some(child) = &self.child else {
            return Ok(());
        };
        kill(Pid::from_raw(child.id().cast_signed()), signal)
            .map_err(std::io::Error::from)
            .to_do(|| format!("send {signal} to the daemon"))
    }

    /// Runs the daemon, which is expected to end by itself: gives its exit status and what it said.
    ///
    /// `wrapper` is the command that runs the daemon, such as `setpriv` with its arguments; mostly empty.
    ///
    /// # Errors
    /// When it cannot be started, or still runs after [`DEADLINE`]; it is ended then.
    pub fn run_to_end(
        &self,
        wrapper: &[&str],
        arguments: &[&str],
    ) -> Result<(Option<i32>, String)> {
        let config = self.config.display().to_string();
        let binary = self.binary.display().to_string();
        let line = [
            wrapper,
            &[&binary, "run"],
            arguments,
            &["--config", &config],
        ]
        .concat();
        let said = self.host.directory().join("refusal.log");
        let log = fs::File::create(&said).to_do(|| format!("create {}", said.display()))?;
        let mut child = self
            .host
            .command(line[0])?
            .args(&line[1..])
            .stdin(Stdio::null())
            .stdout(log.try_clone().to_do(|| "share the daemon's log".into())?)
            .stderr(log)
            .spawn()
            .to_do(|| format!("run {}", line.join(" ")))?;
        let deadline = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = child.try_wait().to_do(|| "wait for xdp-lb".into())? {
                break status;
            }
            if Instant::now() > deadline {
                let pid = Pid::from_raw(child.id().cast_signed());
                // It may be ending just now.
                let _ = kill(pid, Signal::SIGTERM);
                child.wait().to_do(|| "wait for xdp-lb".into())?;
                return Err(Error::Timeout {
                    what: format!("that `{}` ends by itself", line.join(" ")),
                    waited: DEADLINE,
                    last: "running".into(),
                    log: fs::read_to_string(&said).unwrap_or_default(),
                });
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let said = fs::read_to_string(&said).to_do(|| format!("read {}", said.display()))?;
        Ok((status.code(), said))
    }

    /// Starts the daemon again after [`XdpLb::kill9`] or [`XdpLb::terminate`] and waits until all backends are up.
    ///
    /// # Errors
    /// As [`XdpLb::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.spawn(&[])?;
        self.wait_for("that all backends are up", Status::all_up)
            .map(drop)
    }

    /// Waits until the status is as wanted, and gives it.
    ///
    /// # Errors
    /// When it is not so within [`DEADLINE`], or the daemon ends meanwhile.
    pub fn wait_for(&mut self, what: &str, wanted: impl Fn(&Status) -> bool) -> Result<Status> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let last = match self.status() {
                Ok(status) if wanted(&status) => return Ok(status),
                Ok(status) => status.summary(),
                Err(error) => error.to_string(),
            };
            self.check_running()?;
            if Instant::now() > deadline {
                return Err(Error::Timeout {
                    what: what.to_owned(),
                    waited: DEADLINE,
                    last,
                    log: self.log_tail(),
                });
            }
            std::thread::sleep(POLL);
        }
    }

    /// Makes sure that a daemon that was started has not ended by itself.
    ///
    /// # Errors
    /// When it has; the end of its log is in the error.
    pub fn check_running(&mut self) -> Result<()> {
        if let Some(child) = &mut self.child
            && let Some(status) = child.try_wait().to_do(|| "look after xdp-lb".into())?
        {
            self.child = None;
            return Err(Error::Ended {
                what: "xdp-lb run".into(),
                status,
                log: self.log_tail(),
            });
        }
        Ok(())
    }

    /// Waits until a backend is in that state, and gives the status.
    ///
    /// # Errors
    /// As [`XdpLb::wait_for`].
    pub fn wait_state(&mut self, backend: &str, state: &str) -> Result<Status> {
        self.wait_for(&format!("that {backend} is {state}"), |status| {
            status
                .backend(backend)
                .is_some_and(|backend| backend.state == state)
        })
    }

    /// Runs a command of the command line, whatever it ends with: `cli(&["drain", "b1"])`. `--config` is added.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn cli(&self, arguments: &[&str]) -> Result<Output> {
        self.host
            .command(&self.binary)?
            .args(arguments)
            .arg("--config")
            .arg(&self.config)
            .stdin(Stdio::null())
            .output()
            .to_do(|| format!("run {}", self.binary.display()))
    }

    /// Runs a command that must succeed, and gives what it printed.
    ///
    /// # Errors
    /// When its exit code is not 0.
    pub fn cli_ok(&self, arguments: &[&str]) -> Result<String> {
        let output = self.cli(arguments)?;
        if !output.status.success() {
            return Err(Error::Cli {
                arguments: arguments.join(" "),
                status: output.status,
                stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a reading command with `--json` and gives what it says.
    ///
    /// # Errors
    /// When it fails or prints something else.
    pub fn json<T: serde::de::DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        let arguments = [arguments, &["--json"]].concat();
        let output = self.cli_ok(&arguments)?;
        serde_json::from_str(&output).map_err(|source| Error::NotJson {
            arguments: arguments.join(" "),
            source,
            output,
        })
    }

    /// `status --json`, as the types of the crate read it.
    ///
    /// # Errors
    /// As [`XdpLb::json`].
    pub fn status(&self) -> Result<Status> {
        self.json(&["status"])
    }

    /// `status --json`, as it was printed.
    ///
    /// # Errors
    /// As [`XdpLb::json`].
    pub fn status_json(&self) -> Result<serde_json::Value> {
        self.json(&["status"])
    }

    /// Kills the daemon as the kernel's out-of-memory killer would: it can do nothing about it.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill9(&mut self) -> Result<()> {
        self.end(Signal::SIGKILL).map(drop)
    }

    /// Ends the daemon as systemd would, and gives its exit status.
    ///
    /// # Errors
    /// When it does not end within [`DEADLINE`] (it is killed then).
    pub fn terminate(&mut self) -> Result<Option<std::process::ExitStatus>> {
        self.end(Signal::SIGTERM)
    }

    fn end(&mut self, signal: Signal) -> Result<Option<std::process::ExitStatus>> {
        let Some(mut child) = self.child.take() else {
            return Ok(None);
        };
        // It may have ended by itself; `try_wait` then says so.
        let _ = kill(Pid::from_raw(child.id().cast_signed()), signal);
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = child.try_wait().to_do(|| "wait for xdp-lb".into())? {
                return Ok(Some(status));
            }
            if Instant::now() > deadline {
                child
                    .kill()
                    .and_then(|()| child.wait())
                    .to_do(|| "kill xdp-lb".into())?;
                return Err(Error::Timeout {
                    what: format!("that xdp-lb ends after {signal}"),
                    waited: DEADLINE,
                    last: "still running; killed".into(),
                    log: self.log_tail(),
                });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Leaves the daemon running when this value goes: for a testbed that is kept.
    pub fn leave(mut self) {
        self.child = None;
    }

    /// The end of the daemon's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

impl Drop for XdpLb {
    fn drop(&mut self) {
        if let Err(error) = self.terminate() {
            eprintln!("{error}");
        }
    }
}

/// The binary under test: `XDP_LB_BINARY`, or what `cargo xtask build` leaves.
fn binary() -> Result<PathBuf> {
    let path = std::env::var_os("XDP_LB_BINARY").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/xdp-lb"),
        PathBuf::from,
    );
    path.canonicalize().map_err(|_| Error::NoBinary { path })
}
