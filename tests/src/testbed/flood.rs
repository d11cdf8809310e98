//! A SYN flood: connection requests from addresses that do not exist, which nobody ever goes on with.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Testbed;
use super::error::Result;
use super::http::thread_lost;
use super::inject::Injector;

/// The addresses it comes from: the network for benchmarks (RFC 2544), 198.18.0.0/15.
const NETWORK: u32 = 0xc612_0000;
const NETWORK_BITS: u32 = 17;
/// How many frames are made beforehand; the flood sends them again and again.
const FRAMES: u32 = 8192;
/// How many are sent between two pauses.
const BURST: usize = 24;

/// A running flood. Dropping it ends it.
#[derive(Debug)]
pub struct SynFlood {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl SynFlood {
    /// Starts to send from that client to `port` of the VIP, some thousand frames a second: as many as a small machine
    /// has time for beside all the others.
    ///
    /// # Errors
    /// When the client's raw socket cannot be opened.
    pub fn start(testbed: &Testbed, client: &str, port: u16) -> Result<Self> {
        let mut wire = Injector::on(testbed.host(client))?;
        let (to, vip) = (testbed.director().mac(), testbed.vip());
        // An odd multiplier goes through all addresses before one comes again.
        let scattered = |number: u32| number.wrapping_mul(0x9e37_79b1);
        let frames: Vec<Vec<u8>> = (0..FRAMES)
            .map(|number| {
                let mix = scattered(number);
                let address = Ipv4Addr::from_bits(NETWORK | mix >> (32 - NETWORK_BITS));
                let source_port = (mix as u16) | 1024;
                wire.syn(to, (address, source_port), (vip, port))
            })
            .collect();
        let (sent, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (counted, stopped) = (Arc::clone(&sent), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            for burst in frames.chunks(BURST).cycle() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                for frame in burst {
                    wire.send(frame)?;
                }
                counted.fetch_add(burst.len() as u64, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        });
        Ok(Self {
            sent,
            stop,
            thread: Some(thread),
        })
    }

    /// Ends it, and gives how many frames were sent.
    ///
    /// # Errors
    /// When one could not be sent.
    pub fn stop(mut self) -> Result<u64> {
        self.end()?;
        Ok(self.sent.load(Ordering::Relaxed))
    }

    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take() {
            Some(thread) => thread.join().map_err(|_| thread_lost("a flood"))?,
            None => Ok(()),
        }
    }
}

impl Drop for SynFlood {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{error}");
        }
    }
}
