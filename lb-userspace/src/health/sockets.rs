//! Sockets that probe again and again.
//!
//! A probe that makes its socket, sets its options, has it watched and closes it spends more on that than on the handshake. So
//! a socket whose probe succeeded is disconnected (`connect(2)` to `AF_UNSPEC`), which sends the same reset as closing it with a
//! linger time of zero does, in the kernel by the same function (`tcp_disconnect`). It keeps its options and goes on being
//! watched; the next probe connects it anew, from another port.

use std::future::poll_fn;
use std::io;
use std::mem::{self, MaybeUninit};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;

use super::ProbeFailure;

/// So many sockets of a kind are kept: a step of the probes' clock has so many probes of some thousands of backends.
const KEPT: usize = 128;

/// Events taken at a time.
const EVENTS: usize = 256;

/// What sockets are not changed in once they are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    v6: bool,
    /// No router shall pass its packets on: TTL or hop limit 1.
    on_link: bool,
}

impl Kind {
    /// Of sockets towards `target`.
    pub(super) const fn towards(target: SocketAddr, on_link: bool) -> Self {
        Self {
            v6: target.is_ipv6(),
            on_link,
        }
    }

    /// Its place among the kinds.
    const fn index(self) -> usize {
        2 * self.v6 as usize + self.on_link as usize
    }
}

/// Sockets that are lent to one probe after the other. Dropped, it watches them no longer.
#[derive(Debug)]
pub(super) struct Sockets {
    shared: Arc<Shared>,
    watching: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    /// Watches all of them, and is watched itself by the runtime.
    epoll: AsyncFd<OwnedFd>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What is known of each watched socket, by the number its events carry.
    watched: Vec<Watched>,
    /// Numbers that no socket has.
    free: Vec<usize>,
    /// Sockets that nobody uses, by [`Kind::index`].
    kept: [Vec<Idle>; 4],
}

#[derive(Debug, Default)]
struct Watched {
    /// Something happened to it.
    ready: bool,
    /// Who waits for that.
    waker: Option<Waker>,
}

/// A socket that is not connected.
#[derive(Debug)]
struct Idle {
    socket: Socket,
    number: usize,
    mark: u32,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that holds it leaves it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll_ready(&self, number: usize, context: &Context<'_>) -> Poll<()> {
        let mut state = self.state();
        let Some(watched) = state.watched.get_mut(number) else {
            return Poll::Ready(());
        };
        if mem::take(&mut watched.ready) {
            return Poll::Ready(());
        }
        match &mut watched.waker {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    /// Wakes those to whose sockets something happened.
    fn take_events(&self) -> io::Result<()> {
        let mut room = [const { MaybeUninit::uninit() }; EVENTS];
        loop {
            let now = Timespec::default();
            let (events, rest) = match epoll::wait(&self.epoll, &mut room, Some(&now)) {
                Ok(taken) => taken,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let mut state = self.state();
            for event in events {
                let number = usize::try_from(event.data.u64()).ok();
                if let Some(watched) = number.and_then(|number| state.watched.get_mut(number)) {
                    watched.ready = true;
                    if let Some(waker) = watched.waker.take() {
                        waker.wake();
                    }
                }
            }
            if !rest.is_empty() {
                return Ok(());
            }
        }
    }
}

impl Sockets {
    /// None yet. To be called within a tokio runtime.
    ///
    /// # Errors
    /// When there is no file descriptor left.
    pub(super) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // SAFETY: it owns the descriptor, which nobody else knows: it stays open, and the same, until it is dropped.
        let epoll = unsafe { AsyncFd::register_with_interest(epoll, Interest::READABLE) }?;
        let shared = Arc::new(Shared {
            epoll,
            state: Mutex::default(),
        });
        let watching = tokio::spawn(watch(shared.clone())).abort_handle();
        Ok(Self { shared, watching })
    }

    /// Connects a socket of this kind.
    ///
    /// # Errors
    /// As of `connect(2)`, and what the director itself could not do.
    pub(super) async fn connect(
        &self,
        target: SocketAddr,
        kind: Kind,
        mark: u32,
        timeout: Duration,
    ) -> Result<Connection, ProbeFailure> {
        let kept = self.shared.state().kept[kind.index()].pop();
        let mut connection = Connection {
            kind,
            mark,
            number: kept.as_ref().map(|idle| idle.number),
            shared: self.shared.clone(),
            socket: None,
        };
        let socket = match kept {
            Some(idle) => {
                if idle.mark != mark {
                    set_mark(&idle.socket, mark)?;
                }
                idle.socket
            }
            None => open(kind, mark)?,
        };
        let socket = connection.socket.insert(socket);
        if let Some(number) = connection.number {
            // What happened to it before.
            self.shared.state().forget(number);
        }
        let failed = |error: Errno| ProbeFailure::from_io(&error.into(), target, timeout);
        match rustix::net::connect(&*socket, &target) {
            Ok(()) => {}
            Err(Errno::INPROGRESS) => {
                let number = match connection.number {
                    Some(number) => number,
                    None => {
                        let number = self.shared.state().number();
                        connection.number = Some(number);
                        epoll::add(
                            &self.shared.epoll,
                            &*socket,
                            epoll::EventData::new_u64(number as u64),
                            epoll::EventFlags::OUT | epoll::EventFlags::ET,
                        )
                        .map_err(|error| ProbeFailure::local("epoll", &error))?;
                        number
                    }
                };
                loop {
                    poll_fn(|context| self.shared.poll_ready(number, context)).await;
                    // Asked again, it says what has become of it, at once and for once.
                    match rustix::net::connect(&*socket, &target) {
                        Ok(()) => break,
                        // What happened, happened before it was connected.
                        Err(Errno::ALREADY) => {}
                        Err(error) => return Err(failed(error)),
                    }
                }
            }
            Err(error) => return Err(failed(error)),
        }
        Ok(connection)
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

impl State {
    /// A number that no other socket has.
    fn number(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.watched.push(Watched::default());
            self.watched.len() - 1
        })
    }

    fn forget(&mut self, number: usize) {
        if let Some(watched) = self.watched.get_mut(number) {
            *watched = Watched::default();
        }
    }
}

async fn watch(shared: Arc<Shared>) {
    loop {
        let taken = match shared.epoll.readable().await {
            Ok(mut guard) => {
                let taken = shared.take_events();
                guard.clear_ready();
                taken
            }
            Err(error) => Err(error),
        };
        if let Err(error) = taken {
            // Probes time out then, which is what they are to do on a host that can't tell.
            tracing::error!(%error, "the probes' sockets can't be watched");
            return;
        }
    }
}

/// A new socket; its end is a reset, so that neither side keeps a connection in TIME_WAIT.
fn open(kind: Kind, mark: u32) -> Result<Socket, ProbeFailure> {
    let domain = if kind.v6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))
        .map_err(|error| ProbeFailure::local("socket", &error))?;
    super::connect::set_options(&SockRef::from(&socket), kind.v6, kind.on_link)?;
    if mark != 0 {
        set_mark(&socket, mark)?;
    }
    Ok(socket)
}

fn set_mark(socket: &Socket, mark: u32) -> Result<(), ProbeFailure> {
    super::connect::set_mark(&SockRef::from(socket), mark)
}

/// A socket that connects or is connected. Dropped before it is, it is closed.
#[derive(Debug)]
pub(super) struct Connection {
    kind: Kind,
    mark: u32,
    /// The number of its events, if it is watched.
    number: Option<usize>,
    /// Present until it is given back.
    socket: Option<Socket>,
    shared: Arc<Shared>,
}

impl Connection {
    /// Ends the connection with a reset and leaves the socket to the next probe.
    pub(super) fn reset(mut self) {
        let (Some(socket), Some(number)) = (self.socket.take(), self.number) else {
            return;
        };
        if rustix::net::connect_unspec(&socket).is_ok() {
            let mut state = self.shared.state();
            let kept = &mut state.kept[self.kind.index()];
            if kept.len() < KEPT {
                kept.push(Idle {
                    socket,
                    number,
                    mark: self.mark,
                });
                self.number = None;
                return;
            }
        }
        self.socket = Some(socket);
    }
}

#[cfg(test)]
impl Connection {
    /// The socket's descriptor.
    pub(super) fn descriptor(&self) -> i32 {
        use std::os::fd::AsRawFd as _;
        self.socket.as_ref().map_or(-1, Socket::as_raw_fd)
    }

    /// The socket, for its options.
    pub(super) fn options(&self) -> Option<SockRef<'_>> {
        self.socket.as_ref().map(SockRef::from)
    }
}

#[cfg(test)]
impl Sockets {
    /// How many sockets nobody uses, and how many numbers no socket has.
    pub(super) fn counts(&self) -> (usize, usize) {
        let state = self.shared.state();
        (state.kept.iter().map(Vec::len).sum(), state.free.len())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Closed, it is not watched any more, and its number may go to another one.
        self.socket = None;
        if let Some(number) = self.number {
            let mut state = self.shared.state();
            state.forget(number);
            state.free.push(number);
        }
    }
}
