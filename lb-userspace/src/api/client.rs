//! The command line's side of the control socket: one connection for each request, blocking, with a time limit.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;

use super::{Request, Response};

/// How long the daemon may take to answer: a reload of the largest configuration takes well under a second.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// Longest answer in bytes: what the largest configuration's status takes, many times over.
const ANSWER_MAX: u64 = 256 << 20;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "the daemon is not running (no answer on {}): start it with `systemctl start xdp-lb` or `xdp-lb run`",
        .0.display()
    )]
    NotRunning(PathBuf),
    /// The socket is there, but not for this user.
    #[error("no permission to talk to the daemon on {}: run as root", .0.display())]
    NoPermission(PathBuf),
    /// It listens, but does not answer in time.
    #[error(
        "the daemon did not answer within {} s on {}: look into its log with `journalctl -u xdp-lb`",
        after.as_secs(), socket.display()
    )]
    Silent {
        /// The time limit.
        after: Duration,
        /// The socket.
        socket: PathBuf,
    },
    /// It hung up in the middle of the answer.
    #[error(
        "the daemon ended before it had answered on {}: look into its log with `journalctl -u xdp-lb`",
        .0.display()
    )]
    HungUp(PathBuf),
    /// The answer is nothing this version knows.
    #[error(
        "{} gave an answer that this version of xdp-lb ({}) does not know: {reason}; restart the daemon after an upgrade",
        socket.display(), env!("CARGO_PKG_VERSION")
    )]
    Foreign {
        /// The socket.
        socket: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The system refused.
    #[error("cannot talk to the daemon on {}: {source}", socket.display())]
    Io {
        /// The socket.
        socket: PathBuf,
        /// What came of it.
        source: io::Error,
    },
}

/// Asks the daemon that listens on `socket`, and waits at most `patience` for each step of the way.
///
/// # Errors
/// Each says what to do; see [`ClientError`].
pub fn ask(socket: &Path, request: &Request, patience: Duration) -> Result<Response, ClientError> {
    let explain = |error: io::Error| explain(error, socket, patience);
    let stream = connect(socket, patience).map_err(explain)?;
    let mut line = serde_json::to_vec(request).map_err(|error| foreign(socket, &error))?;
    line.push(b'\n');
    (&stream).write_all(&line).map_err(explain)?;

    let mut answer = Vec::new();
    BufReader::new(&stream)
        .take(ANSWER_MAX)
        .read_until(b'\n', &mut answer)
        .map_err(explain)?;
    if answer.last() != Some(&b'\n') {
        return Err(ClientError::HungUp(socket.to_owned()));
    }
    serde_json::from_slice(&answer).map_err(|error| foreign(socket, &error))
}

fn connect(socket: &Path, patience: Duration) -> io::Result<UnixStream> {
    let connection = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    connection.set_read_timeout(Some(patience))?;
    // On a Unix socket this bounds the wait for a place in the backlog as well.
    connection.set_write_timeout(Some(patience))?;
    connection.connect(&SockAddr::unix(socket)?)?;
    Ok(connection.into())
}

fn explain(error: io::Error, socket: &Path, after: Duration) -> ClientError {
    let path = socket.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning(path),
        io::ErrorKind::PermissionDenied => ClientError::NoPermission(path),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Silent {
            after,
            socket: path,
        },
        io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::UnexpectedEof => ClientError::HungUp(path),
        _ => ClientError::Io {
            socket: path,
            source: error,
        },
    }
}

fn foreign(socket: &Path, error: &serde_json::Error) -> ClientError {
    ClientError::Foreign {
        socket: socket.to_owned(),
        reason: error.to_string(),
    }
}
