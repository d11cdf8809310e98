//! The daemon's side of the control socket: newline-delimited JSON over a Unix socket.
//!
//! [`bind`] makes the socket, [`serve`] reads requests from it and hands each over a channel to the daemon's loop,
//! together with the place where the answer belongs. Nothing a client does can hold up the loop or another client: a
//! line is bounded, a client that neither sends nor reads is dropped, and only so many are served at once.

use std::{
    fs::{self, File, Permissions},
    io,
    os::{
        fd::AsFd,
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
            net::UnixListener as StdListener,
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, Mode};
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};
use tracing::{debug, warn};

use super::{Request, Response};
use crate::heap::aside;

/// Longest request in bytes, line feed included: the longest real one is a few hundred.
const LINE_MAX: u64 = 64 * 1024;
/// How long a client may take to send a request, and to read its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many clients are served at once; more wait in the socket's backlog.
const CLIENTS: usize = 64;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// How long to wait for another instance that is just binding in the same directory.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// Read and write for root and its group, nothing for others.
const SOCKET_MODE: u32 = 0o660;

/// A request on its way to the daemon's loop, and the way back. A dropped sender tells the client that the daemon is
/// stopping.
pub type Question = (Request, oneshot::Sender<Response>);

/// Why there is no control socket.
#[derive(Debug, Error)]
pub enum BindError {
    /// Another daemon answers on it.
    #[error(
        "xdp-lb is already running ({}) on {}: stop it first or give this instance another [control] socket",
        process(*pid), socket.display()
    )]
    AlreadyRunning {
        /// The process that listens, if the kernel tells.
        pid: Option<i32>,
        /// The socket.
        socket: PathBuf,
    },
    /// A file that is no socket is in the way; it is left as it is.
    #[error(
        "{} exists and is not a socket: remove it or give this instance another [control] socket",
        .0.display()
    )]
    NotASocket(PathBuf),
    /// Another instance holds the directory.
    #[error(
        "another process holds {} locked: is another xdp-lb just starting? try again",
        .0.display()
    )]
    Locked(PathBuf),
    /// The system refused.
    #[error("cannot {doing} {}: {source}{}", path.display(), advice(source))]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// What came of it.
        source: io::Error,
    },
}

fn process(pid: Option<i32>) -> String {
    pid.map_or_else(|| "pid unknown".to_owned(), |pid| format!("pid {pid}"))
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => ": run as root",
        io::ErrorKind::InvalidInput => {
            ": a socket's path has at most 107 bytes; give a shorter [control] socket"
        }
        _ => "",
    }
}

/// A bound control socket; its file is removed when this is dropped, unless another one has taken its place.
#[derive(Debug)]
pub struct ControlSocket {
    listener: StdListener,
    path: PathBuf,
    /// Device and inode of the file.
    identity: (u64, u64),
}

impl ControlSocket {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            warn!(socket = %self.path.display(), %error, "cannot remove the control socket");
        }
    }
}

/// Makes the control socket, with mode 0660, and its directory if there is none. What is left of a daemon that was
/// killed is replaced.
///
/// # Errors
/// [`BindError::AlreadyRunning`] where another daemon answers; the other variants where a file is in the way or the
/// system refuses.
pub fn bind(path: &Path) -> Result<ControlSocket, BindError> {
    let failed = |doing| {
        move |source: io::Error| BindError::Io {
            doing,
            path: path.to_owned(),
            source,
        }
    };
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(directory).map_err(failed("make the directory of"))?;
    // Two daemons that start at once would both find no live socket, and the second would unlink the first's.
    let _lock = lock(directory)?;

    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at")(error)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(BindError::NotASocket(path.to_owned()));
        }
        Ok(_) => {
            if let Some(pid) = listener_of(path).map_err(failed("try"))? {
                return Err(BindError::AlreadyRunning {
                    pid,
                    socket: path.to_owned(),
                });
            }
            fs::remove_file(path).map_err(failed("remove the dead socket"))?;
        }
    }

    let listener = listen(path).map_err(failed("listen on"))?;
    let meta = fs::symlink_metadata(path).map_err(failed("look at"))?;
    Ok(ControlSocket {
        listener,
        path: path.to_owned(),
        identity: (meta.dev(), meta.ino()),
    })
}

fn listen(path: &Path) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Linux gives the file the mode of the unbound socket (net/unix/af_unix.c, unix_bind_bsd), so there is no moment
    // in which others may connect; a strict umask may have taken more away.
    rustix::fs::fchmod(socket.as_fd(), Mode::from_raw_mode(SOCKET_MODE))?;
    socket.bind(&SockAddr::unix(path)?)?;
    fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Whether somebody listens on `path`: outer `None` where nobody does, inner `None` where the kernel does not say who.
fn listener_of(path: &Path) -> io::Result<Option<Option<i32>>> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A daemon that hangs with a full backlog must not hang this one.
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => {
            let pid = rustix::net::sockopt::socket_peercred(&socket)
                .ok()
                .map(|peer| peer.pid.as_raw_nonzero().get());
            Ok(Some(pid))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Some(None)),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(None),
        Err(error) => Err(error),
    }
}

/// Locks the socket's directory until the result is dropped.
fn lock(directory: &Path) -> Result<File, BindError> {
    let failed = |source: io::Error| BindError::Io {
        doing: "lock",
        path: directory.to_owned(),
        source,
    };
    let file = File::open(directory).map_err(failed)?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(20));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(BindError::Locked(directory.to_owned()));
            }
            Err(error) => return Err(failed(error.into())),
        }
    }
}

/// Serves the socket until the returned future is dropped or nobody receives `questions` any more; then the socket's
/// file is gone and the clients that still waited are cut off.
///
/// # Errors
/// The socket can't be watched, or accepting fails for a reason that does not pass.
pub async fn serve(socket: ControlSocket, questions: mpsc::Sender<Question>) -> io::Result<()> {
    let listener = UnixListener::from_std(socket.listener.try_clone()?)?;
    let places = Arc::new(Semaphore::new(CLIENTS));
    // Dropping the set ends its tasks.
    let mut clients = JoinSet::new();
    loop {
        while clients.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return Ok(());
        };
        let stream = tokio::select! {
            () = questions.closed() => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) if passes(&error) => {
                    warn!(%error, "cannot accept a client of the control socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
                Err(error) => return Err(error),
            },
        };
        let questions = questions.clone();
        clients.spawn(async move {
            if let Err(error) = converse(stream, &questions).await {
                debug!(%error, "a client of the control socket was dropped");
            }
            drop(place);
        });
    }
}

/// Whether an error of `accept` is about one client or a shortage, not about the socket.
fn passes(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let passing = [
        Errno::CONNABORTED,
        Errno::INTR,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::NOMEM,
        Errno::PERM,
    ];
    error
        .raw_os_error()
        .is_some_and(|raw| passing.contains(&Errno::from_raw_os_error(raw)))
}

/// One client: a request, its answer, and again until the client hangs up.
async fn converse(stream: UnixStream, questions: &mpsc::Sender<Question>) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut bounded = (&mut reader).take(LINE_MAX);
        patient(timeout(PATIENCE, bounded.read_until(b'\n', &mut line)).await)?;
        if line.is_empty() {
            return Ok(());
        }
        let whole = line.last() == Some(&b'\n');
        let response = if whole {
            respond(&line, questions).await
        } else if line.len() as u64 == LINE_MAX {
            refused(format!("the request is longer than {LINE_MAX} bytes"))
        } else {
            refused("the request has no line feed at its end".to_owned())
        };
        let text = written(response).await?;
        patient(timeout(PATIENCE, writer.write_all(&text)).await)?;
        if !whole {
            return Ok(());
        }
    }
}

/// The answer as a line. The state of 65,535 backends takes a tenth of a second to write, which the daemon's own thread has
/// not.
async fn written(response: Response) -> io::Result<Vec<u8>> {
    let write = |response: &Response| {
        let mut text = serde_json::to_vec(response)?;
        text.push(b'\n');
        Ok(text)
    };
    match response {
        Response::Status(ref status) => aside(status.places(), move || write(&response)).await?,
        short => write(&short),
    }
}

fn patient<T>(result: Result<io::Result<T>, tokio::time::error::Elapsed>) -> io::Result<T> {
    result.unwrap_or_else(|_elapsed| Err(io::Error::from(io::ErrorKind::TimedOut)))
}

async fn respond(line: &[u8], questions: &mpsc::Sender<Question>) -> Response {
    let request = match serde_json::from_slice(line) {
        Ok(request) => request,
        Err(error) => {
            return refused(format!(
                "the daemon (xdp-lb {}) does not understand the request: {error}; is this command line of the same version?",
                env!("CARGO_PKG_VERSION")
            ));
        }
    };
    let stopping = || refused("the daemon is stopping and did nothing".to_owned());
    let (answer, answered) = oneshot::channel();
    if questions.send((request, answer)).await.is_err() {
        return stopping();
    }
    answered.await.unwrap_or_else(|_dropped| stopping())
}

fn refused(message: String) -> Response {
    Response::Refused { message }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
