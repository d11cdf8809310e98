//! The words of a cluster's nodes on the wire: UDP between the nodes' own addresses.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lb_common::hash::Seed;
use tokio::{net::UdpSocket, sync::mpsc, task::AbortHandle};
use tracing::{debug, warn};

use super::{
    peers::PERIOD,
    words::{Word, decode, encode},
};
use crate::config::Config;

/// The longest UDP datagram there can be.
const LONGEST: usize = 65_507;
/// How often the last word is said.
const FAREWELLS: u32 = 3;
/// How often a foreign datagram is worth a line in the log.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// This node's voice and ear. Dropped, it stops.
#[derive(Debug)]
pub struct Voice {
    socket: Arc<UdpSocket>,
    seed: Seed,
    port: u16,
    /// What was said last, but for the time.
    said: Option<Word>,
    said_at: Instant,
    last_ms: u64,
    complained: Option<Instant>,
    ear: AbortHandle,
}

impl Voice {
    /// Speaks from and listens at this node's own address; what comes goes to `heard`. `None` where the configuration has
    /// no cluster.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn start(
        config: &Config,
        seed: Seed,
        heard: mpsc::Sender<(Vec<u8>, SocketAddr)>,
    ) -> Result<Option<Self>> {
        let (Some(address), Some(port)) = (config.own_address(), config.node.peer_port) else {
            return Ok(None);
        };
        let socket = UdpSocket::bind((address, port)).await.with_context(|| {
            format!(
                "listening to the other nodes at UDP {}: free that port, or set another `peer_port` in [node] on every node",
                SocketAddr::new(address, port)
            )
        })?;
        let socket = Arc::new(socket);
        let ear = tokio::spawn(listen(Arc::clone(&socket), heard)).abort_handle();
        Ok(Some(Self {
            socket,
            seed,
            port,
            said: None,
            said_at: Instant::now(),
            last_ms: 0,
            complained: None,
            ear,
        }))
    }

    /// Says it to all peers, if it is something new or time to say it again.
    pub fn speak(&mut self, mut word: Word, peers: &BTreeMap<&str, IpAddr>) {
        let timeless = Word {
            at_ms: 0,
            ..word.clone()
        };
        if self.said.as_ref() == Some(&timeless) && self.said_at.elapsed() < PERIOD {
            return;
        }
        // Two words of one millisecond may overtake each other.
        word.at_ms = word.at_ms.max(self.last_ms + 1);
        self.last_ms = word.at_ms;
        for datagram in encode(&word, self.seed) {
            for address in peers.values() {
                let to = SocketAddr::new(*address, self.port);
                // A word that is lost is said again; nothing waits for a full buffer.
                if let Err(error) = self.socket.try_send_to(&datagram, to)
                    && error.kind() != io::ErrorKind::WouldBlock
                {
                    debug!(%error, %to, "a word could not be sent");
                }
            }
        }
        (self.said, self.said_at) = (Some(timeless), Instant::now());
    }

    /// Says its last word, some times over: nobody says it again.
    pub fn take_leave(&mut self, word: &Word, peers: &BTreeMap<&str, IpAddr>) {
        for _ in 0..FAREWELLS {
            self.said = None;
            self.speak(word.clone(), peers);
        }
    }

    /// The word in a datagram, if a peer of this configuration sent it from its own address.
    pub fn understand(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        peers: &BTreeMap<&str, IpAddr>,
    ) -> Option<Word> {
        let problem = match decode(datagram, self.seed) {
            Ok(word) if peers.get(word.node.as_str()) == Some(&from.ip()) => return Some(word),
            Ok(word) => format!(
                "it says it is node \"{}\", which has another address or is in no service here",
                word.node
            ),
            Err(error) => error.to_string(),
        };
        if self
            .complained
            .is_none_or(|before| before.elapsed() > COMPLAIN_EVERY)
        {
            self.complained = Some(Instant::now());
            warn!(%from, problem, "a datagram at `peer_port` was ignored");
        }
        None
    }
}

impl Drop for Voice {
    fn drop(&mut self) {
        self.ear.abort();
    }
}

async fn listen(socket: Arc<UdpSocket>, heard: mpsc::Sender<(Vec<u8>, SocketAddr)>) {
    let mut buffer = vec![0; LONGEST];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, from)) => {
                if heard.send((buffer[..length].to_vec(), from)).await.is_err() {
                    return;
                }
            }
            // "Connection refused" of a peer whose daemon is not there comes back here; nothing is wrong with the socket.
            Err(error) => {
                debug!(%error, "listening to the other nodes");
                tokio::time::sleep(PERIOD).await;
            }
        }
    }
}
