//! A UDP server that answers each datagram with its host's name and what it got.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::error::{Error, IoContext as _, Result};
use super::host::Host;

/// How often a server looks whether it shall end.
const LOOK: Duration = Duration::from_millis(100);
/// The largest UDP datagram over IPv4: 65,535 bytes less 20 of IP and 8 of UDP.
const LARGEST: usize = 65_507;

/// The server; dropping it ends it.
#[derive(Debug)]
pub struct UdpEcho {
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl UdpEcho {
    /// Serves these ports of the VIP on a backend.
    ///
    /// # Errors
    /// When a socket cannot be opened.
    pub fn start_on(host: &Host, ports: &[u16]) -> Result<Self> {
        let end = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for port in ports {
            let address = SocketAddr::new(host.vip(), *port);
            let name = host.name().to_owned();
            let socket = host
                .run_in(|| UdpSocket::bind(address))?
                .to_do(|| format!("serve {address} on {name}"))?;
            let end = end.clone();
            threads.push(
                std::thread::Builder::new()
                    .name(format!("{name}:{port}"))
                    .spawn(move || serve(&socket, &name, &end))
                    .to_do(|| "start a thread".into())?,
            );
        }
        Ok(Self { end, threads })
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if let Ok(Err(error)) = thread.join() {
                eprintln!("{error}");
            }
        }
    }
}

fn serve(socket: &UdpSocket, name: &str, end: &AtomicBool) -> Result<()> {
    socket
        .set_read_timeout(Some(LOOK))
        .to_do(|| "set a timeout".into())?;
    let mut memory = vec![0; LARGEST];
    while !end.load(Ordering::Relaxed) {
        match socket.recv_from(&mut memory) {
            Ok((length, client)) => {
                let answer = format!("{name} {}", digest(&memory[..length]));
                // A client that has gone is no server's trouble.
                let _ = socket.send_to(answer.as_bytes(), client);
            }
            Err(error) if is_timeout(&error) => {}
            // A port unreachable that came back for an earlier answer.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error).to_do(|| format!("receive on {name}")),
        }
    }
    Ok(())
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

/// Length and FNV-1a hash (draft-eastlake-fnv) of what was sent: whoever answers it has got it whole.
fn digest(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{} {hash:016x}", bytes.len())
}

/// A client's UDP socket, connected to a port of the VIP.
#[derive(Debug)]
pub struct UdpClient {
    socket: UdpSocket,
}

impl UdpClient {
    /// A socket on that client, from that address and port (0 for any).
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn on(host: &Host, source: IpAddr, source_port: u16, port: u16) -> Result<Self> {
        let target = SocketAddr::new(host.vip(), port);
        let socket = host
            .run_in(|| {
                let socket = UdpSocket::bind((source, source_port))?;
                socket.connect(target)?;
                Ok::<_, io::Error>(socket)
            })?
            .to_do(|| format!("open a socket from {source} to {target}"))?;
        Ok(Self { socket })
    }

    /// The port it sends from.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn port(&self) -> Result<u16> {
        let address = self.socket.local_addr();
        Ok(address.to_do(|| "ask for a socket's port".into())?.port())
    }

    /// Sends `payload` once; who answered that it got just this.
    ///
    /// # Errors
    /// When no such answer comes within `patience`.
    pub fn ask(&self, payload: &[u8], patience: Duration) -> Result<String> {
        self.socket
            .send(payload)
            .to_do(|| "send a datagram".into())?;
        self.answer(payload, patience)
    }

    /// Waits for the answer to `payload`, which has been sent some other way.
    ///
    /// # Errors
    /// When none comes within `patience`, or another.
    pub fn answer(&self, payload: &[u8], patience: Duration) -> Result<String> {
        self.socket
            .set_read_timeout(Some(patience))
            .to_do(|| "set a timeout".into())?;
        let mut memory = [0; 100];
        let length = self
            .socket
            .recv(&mut memory)
            .to_do(|| format!("wait for the answer to {} bytes", payload.len()))?;
        let answer = String::from_utf8_lossy(&memory[..length]).into_owned();
        match answer.split_once(' ') {
            Some((name, got)) if got == digest(payload) => Ok(name.to_owned()),
            _ => Err(Error::Request(format!(
                "{answer:?} is no answer to {}",
                digest(payload)
            ))),
        }
    }
}
