//! What can go wrong while a testbed is built, and what to do about it.

use std::path::PathBuf;
use std::time::Duration;

/// An error of the testbed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller has not the privileges that namespaces and XDP need.
    #[error(
        "a network of namespaces needs root, but this runs as user {uid}: run it again with sudo"
    )]
    NotRoot {
        /// The effective user id found.
        uid: u32,
    },
    /// A program that the testbed calls could not be started.
    #[error(
        "cannot run `{program}`: {source}; install it with `apt-get install {package}` (or `cargo xtask setup`)"
    )]
    MissingTool {
        /// The program's name.
        program: String,
        /// The Debian package that has it.
        package: &'static str,
        /// Why it could not be started.
        source: std::io::Error,
    },
    /// A program that the testbed calls has failed.
    #[error("`{command}` failed with {status}: {stderr}")]
    Command {
        /// The command line, and its input where it was fed one.
        command: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// What it wrote to the standard error.
        stderr: String,
    },
    /// A file, socket or process operation failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was being done, as an infinitive with its object.
        what: String,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The daemon's binary is not there.
    #[error("no xdp-lb binary at {}: run `cargo xtask build`, or name one in XDP_LB_BINARY", path.display())]
    NoBinary {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A server inside the testbed has ended although it should run.
    #[error("{what} ended with {status}; it said:\n{log}")]
    Ended {
        /// Which server.
        what: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// Something expected did not happen before the deadline.
    #[error("{what} did not happen within {waited:?}; last seen: {last}\n{log}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
        /// The last state seen.
        last: String,
        /// The end of the server's log, where there is one.
        log: String,
    },
    /// An `xdp-lb` command did not do what it was asked to.
    #[error("`xdp-lb {arguments}` failed with {status}: {stderr}")]
    Cli {
        /// The command's arguments.
        arguments: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// What it wrote to the standard error.
        stderr: String,
    },
    /// `xdp-lb status --json` printed something that is not the documented JSON.
    #[error("`xdp-lb {arguments}` printed no JSON ({source}): {output}")]
    NotJson {
        /// The command's arguments.
        arguments: String,
        /// Where the parser stopped.
        source: serde_json::Error,
        /// What was printed.
        output: String,
    },
    /// The request for a testbed makes no sense.
    #[error("{0}")]
    Request(String),
}

/// The result of a testbed's function.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Adds what was being done to an operating system error.
pub(super) trait IoContext<T> {
    /// Wraps the error with `what`, an infinitive with its object ("open the control socket").
    fn to_do(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> IoContext<T> for std::result::Result<T, E> {
    fn to_do(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io {
            what: what(),
            source: source.into(),
        })
    }
}
