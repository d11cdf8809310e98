//! Traffic to the director's own address is its own: nothing of it changes while xdp-lb starts, runs and ends.

use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lb_tests::testbed::scene::{HTTP_PROBE, PATIENCE, SEED, tcp_service};
use lb_tests::testbed::{DEADLINE, Nginx, StatusExt, Testbed, XdpLb, remains};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

const PORT: u16 = 7;

/// Something asked again and again, with the number of answers so far.
struct Talk {
    name: &'static str,
    answers: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<()>>,
}

impl Talk {
    /// Calls `exchange` with a new number each time until it fails or is stopped, in a thread of that host.
    fn start(
        testbed: &Testbed,
        name: &'static str,
        open: impl FnOnce() -> io::Result<Box<dyn FnMut(u64) -> io::Result<()>>> + Send + 'static,
    ) -> Self {
        let (answers, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (counted, stopped) = (Arc::clone(&answers), Arc::clone(&stop));
        let client = testbed.host("c1").namespace().clone();
        let thread = std::thread::spawn(move || {
            client
                .run_in(|| {
                    let mut exchange = open()?;
                    while !stopped.load(Ordering::Relaxed) {
                        exchange(counted.load(Ordering::Relaxed))?;
                        counted.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    Ok(())
                })
                .map_err(io::Error::other)?
        });
        Self {
            name,
            answers,
            stop,
            thread,
        }
    }

    /// Waits for more answers, so that some of them come after now.
    fn let_pass(&self, count: u64) {
        let (begin, deadline) = (
            self.answers.load(Ordering::Relaxed),
            Instant::now() + DEADLINE,
        );
        while self.answers.load(Ordering::Relaxed) < begin + count && !self.thread.is_finished() {
            assert!(Instant::now() < deadline, "{}: no answers", self.name);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let outcome = self.thread.join().unwrap();
        let answers = self.answers.load(Ordering::Relaxed);
        assert!(
            outcome.is_ok(),
            "{} after {answers} answers: {outcome:?}",
            self.name
        );
        assert!(answers > 0, "{}", self.name);
    }
}

/// Answers what comes over TCP and UDP with the same, on the director. Its threads end with the sockets' peers or `stop`.
fn serve_echo(testbed: &Testbed, stop: &Arc<AtomicBool>) -> Vec<JoinHandle<()>> {
    let own = SocketAddr::new(testbed.director().address(), PORT);
    let (listener, datagrams) = testbed
        .director()
        .run_in(|| {
            (
                TcpListener::bind(own).unwrap(),
                UdpSocket::bind(own).unwrap(),
            )
        })
        .unwrap();
    datagrams
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let stopped = Arc::clone(stop);
    vec![
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 64];
            while let Ok(length) = stream.read(&mut buffer) {
                if length == 0 || stream.write_all(&buffer[..length]).is_err() {
                    break;
                }
            }
        }),
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !stopped.load(Ordering::Relaxed) {
                // Nothing within the time: look whether it shall end.
                if let Ok((length, peer)) = datagrams.recv_from(&mut buffer) {
                    datagrams.send_to(&buffer[..length], peer).unwrap();
                }
            }
        }),
    ]
}

fn talk_tcp(testbed: &Testbed, own: SocketAddr) -> Talk {
    Talk::start(testbed, "TCP", move || {
        let mut stream = TcpStream::connect(own)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Box::new(move |number| {
            let mut answer = [0; 8];
            stream.write_all(&number.to_be_bytes())?;
            stream.read_exact(&mut answer)?;
            same(number, u64::from_be_bytes(answer))
        }))
    })
}

/// Nobody sends a datagram again, so each that is lost is seen.
fn talk_udp(testbed: &Testbed, own: SocketAddr) -> Talk {
    Talk::start(testbed, "UDP", move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(own)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Box::new(move |number| {
            let mut answer = [0; 8];
            socket.send(&number.to_be_bytes())?;
            socket.recv(&mut answer)?;
            same(number, u64::from_be_bytes(answer))
        }))
    })
}

fn talk_ping(testbed: &Testbed, own: IpAddr) -> Talk {
    Talk::start(testbed, "ping", move || {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
        socket.connect(&SockAddr::from(SocketAddr::new(own, 0)))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Box::new(move |number| {
            let sequence = (number as u16).to_be_bytes();
            let mut request = Vec::new();
            etherparse::Icmpv4Header::with_checksum(
                etherparse::Icmpv4Type::EchoRequest(etherparse::IcmpEchoHeader {
                    id: 77,
                    seq: u16::from_be_bytes(sequence),
                }),
                &[],
            )
            .write(&mut request)?;
            socket.send(&request)?;
            let mut answer = [MaybeUninit::new(0); 128];
            let length = socket.recv(&mut answer)?;
            // SAFETY: every element was initialised when the array was made.
            let answer = answer[..length]
                .iter()
                .map(|byte| unsafe { byte.assume_init() });
            let answer: Vec<u8> = answer.collect();
            let icmp = answer.get(20..28).unwrap_or_default();
            // Echo reply (RFC 792), the same identifier and sequence number.
            if icmp.first() == Some(&0)
                && icmp.get(4..8) == Some(&[0, 77, sequence[0], sequence[1]])
            {
                Ok(())
            } else {
                Err(io::Error::other(format!("not the answer: {answer:?}")))
            }
        }))
    })
}

fn same(sent: u64, received: u64) -> io::Result<()> {
    if sent == received {
        Ok(())
    } else {
        Err(io::Error::other(format!("{received} answers {sent}")))
    }
}

#[test]
fn the_directors_own_traffic_is_untouched() {
    let testbed = Testbed::builder()
        .clients(1, 1)
        .backends(2)
        .label("own")
        .build()
        .unwrap();
    let _servers: Vec<Nginx> = testbed
        .backends()
        .map(|host| Nginx::start(host).unwrap())
        .collect();
    let own = SocketAddr::new(testbed.director().address(), PORT);
    let stop = Arc::<AtomicBool>::default();
    let echo = serve_echo(&testbed, &stop);
    let talks = [
        talk_tcp(&testbed, own),
        talk_udp(&testbed, own),
        talk_ping(&testbed, own.ip()),
    ];
    let let_pass = || talks.iter().for_each(|talk| talk.let_pass(50));

    let_pass();
    let config = [
        testbed.node_config_with(SEED),
        tcp_service(&testbed, "web", 80, "client", HTTP_PROBE),
        testbed.backend_config(),
    ]
    .concat();
    let mut daemon = XdpLb::start(&testbed, &config).unwrap();
    let_pass();
    let status = daemon.status().unwrap();
    assert!(status.all_up(), "{}", status.summary());
    assert!(
        status.verdicts["not_ours"] >= 100,
        "it crossed the program: {:?}",
        status.verdicts
    );
    daemon.kill9().unwrap();
    let_pass();
    daemon.spawn(&["--detach-on-exit"]).unwrap();
    daemon.wait_for("an answer", |_| true).unwrap();
    let_pass();
    daemon.terminate().unwrap();
    let_pass();
    let left = remains(&testbed).unwrap();
    assert!(left.is_empty(), "{left:?}");

    for talk in talks {
        talk.finish();
    }
    stop.store(true, Ordering::Relaxed);
    for thread in echo {
        thread.join().unwrap();
    }
}
