//! Probes against real sockets on the loopback interface, and the prober that repeats them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;

use super::*;

/// Long: tests that expect an answer must not fail on a slow machine.
const PATIENT: Duration = Duration::from_secs(20);
/// Short: tests that expect none wait this long for nothing.
const HASTY: Duration = Duration::from_millis(200);

/// Half of this is the time in which the backend's own address must answer.
const FAIR: Duration = Duration::from_secs(2);

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 100));
const BACKEND: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));

fn tcp(target: SocketAddr, timeout: Duration) -> ProbeSpec {
    ProbeSpec {
        kind: ProbeKind::Tcp,
        via: Via::Vip,
        target,
        address: BACKEND,
        mark: None,
        interface: None,
        interval: Duration::from_secs(1),
        timeout,
    }
}

fn http(target: SocketAddr, timeout: Duration) -> ProbeSpec {
    ProbeSpec {
        kind: ProbeKind::Http {
            path: "/healthz?deep=1".into(),
            host: None,
            status: 200..=299,
        },
        ..tcp(target, timeout)
    }
}

async fn listen(ip: IpAddr, port: u16) -> TcpListener {
    TcpListener::bind((ip, port)).await.unwrap()
}

/// A listener that never answers: its queue is full, so the kernel drops every further SYN.
struct BlackHole {
    address: SocketAddr,
    _keep: (TcpListener, Vec<TcpStream>),
}

impl BlackHole {
    async fn open(ip: IpAddr, port: u16) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind((ip, port).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut streams = Vec::new();
        while let Ok(Ok(stream)) = tokio::time::timeout(HASTY, TcpStream::connect(address)).await {
            streams.push(stream);
        }
        Self {
            address,
            _keep: (listener, streams),
        }
    }
}

/// A server that reads a request's head and answers with these bytes; then it closes, or not. It
/// gives what it read, and whether the probe closed in order.
async fn serve(
    listener: TcpListener,
    answer: Vec<u8>,
    close: bool,
) -> (String, std::io::Result<usize>) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut request).await.unwrap() == 0 {
            break;
        }
    }
    stream.write_all(&answer).await.unwrap();
    if close {
        stream.shutdown().await.unwrap();
    }
    let end = stream.read(&mut [0; 16]).await;
    (String::from_utf8(request).unwrap(), end)
}

#[tokio::test]
async fn tcp_success_ends_with_a_reset() {
    let listener = listen(VIP, 0).await;
    let spec = tcp(listener.local_addr().unwrap(), PATIENT);
    let (result, accepted) = tokio::join!(probe(&spec), listener.accept());
    assert!(result.unwrap() < PATIENT);
    let end = accepted.unwrap().0.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn tcp_refused_is_not_blamed_on_a_missing_vip() {
    let address = listen(BACKEND, 0).await;
    let target = SocketAddr::new(VIP, address.local_addr().unwrap().port());
    assert_eq!(
        probe(&tcp(target, PATIENT)).await,
        Err(ProbeFailure::Refused { target })
    );
}

#[tokio::test]
async fn tcp_without_an_answer_from_either_address() {
    let hole = BlackHole::open(VIP, 0).await;
    let _own = BlackHole::open(BACKEND, hole.address.port()).await;
    for via in [Via::Vip, Via::Address] {
        let spec = ProbeSpec {
            via,
            ..tcp(hole.address, HASTY)
        };
        let expected = ProbeFailure::TimedOut {
            target: hole.address,
            timeout: HASTY,
            alive: None,
        };
        assert_eq!(probe(&spec).await, Err(expected), "{via:?}");
    }
}

#[tokio::test]
async fn vip_not_served_is_found_when_the_backend_answers_on_its_own_address() {
    let hole = BlackHole::open(VIP, 0).await;
    let _own = listen(BACKEND, hole.address.port()).await;
    let expected = ProbeFailure::VipNotServed {
        vip: hole.address,
        address: BACKEND,
    };
    // An HTTP probe that is not even connected says the same.
    for spec in [tcp(hole.address, FAIR), http(hole.address, FAIR)] {
        assert_eq!(probe(&spec).await, Err(expected.clone()), "{:?}", spec.kind);
    }
}

#[tokio::test]
async fn a_probe_by_address_says_nothing_about_the_vip() {
    let hole = BlackHole::open(VIP, 0).await;
    let _own = listen(BACKEND, hole.address.port()).await;
    let spec = ProbeSpec {
        via: Via::Address,
        ..tcp(hole.address, HASTY)
    };
    let expected = ProbeFailure::TimedOut {
        target: hole.address,
        timeout: HASTY,
        alive: None,
    };
    assert_eq!(probe(&spec).await, Err(expected));
}

#[tokio::test]
async fn a_host_that_refuses_on_its_own_address_is_known_to_live() {
    let hole = BlackHole::open(VIP, 0).await;
    let expected = ProbeFailure::TimedOut {
        target: hole.address,
        timeout: FAIR,
        alive: Some(SocketAddr::new(BACKEND, hole.address.port())),
    };
    assert_eq!(probe(&tcp(hole.address, FAIR)).await, Err(expected));
}

#[tokio::test]
async fn http_success_sends_a_proper_request() {
    let listener = listen(VIP, 0).await;
    let target = listener.local_addr().unwrap();
    let answer = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n".to_vec();
    let spec = http(target, PATIENT);
    let (result, (request, _)) = tokio::join!(probe(&spec), serve(listener, answer, true));
    assert!(result.unwrap() < PATIENT);
    let request = request.to_ascii_lowercase();
    assert!(
        request.starts_with("get /healthz?deep=1 http/1.1\r\n"),
        "{request}"
    );
    assert!(
        request.contains(&format!("\r\nhost: {target}\r\n")),
        "{request}"
    );
    assert!(request.contains("\r\nconnection: close\r\n"), "{request}");
    assert!(request.contains("\r\nuser-agent: xdp-lb/"), "{request}");
}

#[tokio::test]
async fn http_sends_the_configured_host() {
    let listener = listen(VIP, 0).await;
    let mut spec = http(listener.local_addr().unwrap(), PATIENT);
    spec.kind = ProbeKind::Http {
        path: "/".into(),
        host: Some("www.example.com".into()),
        status: 200..=200,
    };
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec();
    let (result, (request, _)) = tokio::join!(probe(&spec), serve(listener, answer, false));
    result.unwrap();
    assert!(
        request
            .to_ascii_lowercase()
            .contains("\r\nhost: www.example.com\r\n"),
        "{request}"
    );
}

#[tokio::test]
async fn http_answers() {
    let ok = "HTTP/1.1 200 OK\r\n";
    let cases: Vec<(&str, Vec<u8>, Result<(), &str>)> = vec![
        (
            "with a length",
            format!("{ok}Content-Length: 5\r\n\r\nhello").into(),
            Ok(()),
        ),
        (
            "in chunks",
            format!("{ok}Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n").into(),
            Ok(()),
        ),
        (
            "until the end of the connection",
            format!("{ok}\r\nhello").into(),
            Ok(()),
        ),
        (
            "as HTTP/1.0",
            b"HTTP/1.0 200 OK\r\n\r\nhello".to_vec(),
            Ok(()),
        ),
        (
            "longer than what is read of it",
            [
                format!("{ok}Content-Length: 9999999\r\n\r\n").into_bytes(),
                vec![b'x'; 100_000],
            ]
            .concat(),
            Ok(()),
        ),
        (
            "with a bad status",
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n".to_vec(),
            Err("HTTP status 503 from TARGET/healthz?deep=1, expected 200-299"),
        ),
        (
            "with a redirect",
            b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n".to_vec(),
            Err("HTTP status 302 from TARGET/healthz?deep=1, expected 200-299"),
        ),
        (
            "of another protocol",
            b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n".to_vec(),
            Err("TARGET does not answer in HTTP: invalid HTTP version parsed"),
        ),
        (
            "that ends before it begins",
            Vec::new(),
            Err("TARGET closed the connection before its answer was complete"),
        ),
        (
            "cut short in the body",
            format!("{ok}Content-Length: 50\r\n\r\nhello").into(),
            Err("TARGET closed the connection before its answer was complete"),
        ),
    ];
    for (what, answer, expected) in cases {
        let listener = listen(VIP, 0).await;
        let target = listener.local_addr().unwrap();
        let spec = http(target, PATIENT);
        // The end of the connection may be a reset; it is looked at elsewhere.
        let server = tokio::spawn(serve_and_ignore(listener, answer));
        let result = probe(&spec)
            .await
            .map(drop)
            .map_err(|failure| failure.to_string());
        let expected = expected.map_err(|text| text.replace("TARGET", &target.to_string()));
        assert_eq!(result, expected, "an answer {what}");
        server.await.unwrap();
    }
}

async fn serve_and_ignore(listener: TcpListener, answer: Vec<u8>) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
    }
    // A probe that has seen enough hangs up.
    let _ = stream.write_all(&answer).await;
    let _ = stream.shutdown().await;
    let _ = stream.read(&mut [0; 16]).await;
}

#[tokio::test]
async fn http_server_that_closes_first_sees_an_orderly_end() {
    let listener = listen(VIP, 0).await;
    let spec = http(listener.local_addr().unwrap(), PATIENT);
    let answer = b"HTTP/1.1 200 OK\r\n\r\nread until the end".to_vec();
    let (result, (_, end)) = tokio::join!(probe(&spec), serve(listener, answer, true));
    result.unwrap();
    assert_eq!(end.unwrap(), 0);
}

#[tokio::test]
async fn http_server_that_keeps_the_connection_is_hung_up_on() {
    let listener = listen(VIP, 0).await;
    let spec = http(listener.local_addr().unwrap(), PATIENT);
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec();
    let (result, (_, end)) = tokio::join!(probe(&spec), serve(listener, answer, false));
    result.unwrap();
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn http_too_slow() {
    // Nothing at all, and a body that never ends.
    for answer in ["", "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello"] {
        let listener = listen(VIP, 0).await;
        let target = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, answer.into(), false));
        assert_eq!(
            probe(&http(target, HASTY)).await,
            Err(ProbeFailure::HttpTimedOut {
                target,
                timeout: HASTY
            }),
            "answer {answer:?}"
        );
        server.abort();
    }
}

#[tokio::test]
async fn a_path_that_is_none_is_the_directors_trouble() {
    let mut spec = http(SocketAddr::new(VIP, 1), PATIENT);
    spec.kind = ProbeKind::Http {
        path: "no path".into(),
        host: None,
        status: 200..=299,
    };
    let failure = probe(&spec).await.unwrap_err();
    assert!(failure.is_local(), "{failure}");
}

/// Counts how many probes are connected at once; answers each after a while.
async fn count_overlaps(listener: TcpListener, most: Arc<AtomicUsize>) {
    let now = Arc::new(AtomicUsize::new(0));
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (now, most) = (now.clone(), most.clone());
        tokio::spawn(async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let _ = stream.read(&mut [0; 1024]).await;
            tokio::time::sleep(Duration::from_millis(30)).await;
            // Counted out before the answer, after which the probe may end.
            now.fetch_sub(1, Ordering::SeqCst);
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                .await;
        });
    }
}

#[tokio::test]
async fn probes_of_one_backend_never_overlap() {
    let listener = listen(VIP, 0).await;
    let spec = ProbeSpec {
        interval: Duration::from_millis(5),
        ..http(listener.local_addr().unwrap(), PATIENT)
    };
    let most = Arc::new(AtomicUsize::new(0));
    let server = tokio::spawn(count_overlaps(listener, most.clone()));
    let (sender, mut reports) = mpsc::channel(4);
    let mut prober = Prober::new(sender);
    prober.start(ProbeId(1), spec);
    for _ in 0..5 {
        let report = reports.recv().await.unwrap();
        assert!(
            report.result.is_ok() && prober.is_current(&report),
            "{report:?}"
        );
    }
    assert_eq!(most.load(Ordering::SeqCst), 1);
    server.abort();
}

#[tokio::test]
async fn reconfiguration_leaves_unchanged_probes_alone() {
    let listener = listen(VIP, 0).await;
    let fast = ProbeSpec {
        interval: Duration::from_millis(10),
        ..tcp(listener.local_addr().unwrap(), PATIENT)
    };
    let refused = ProbeSpec {
        // Nothing listens on the discard port here.
        target: SocketAddr::new(VIP, 9),
        ..fast.clone()
    };
    let (sender, mut reports) = mpsc::channel(64);
    let mut prober = Prober::new(sender);
    let ids = [1, 2, 3, 4].map(ProbeId);

    let first: BTreeMap<_, _> = ids[..3].iter().map(|id| (*id, fast.clone())).collect();
    let applied = prober.apply(&first);
    assert_eq!(
        applied,
        Applied {
            started: ids[..3].to_vec(),
            ..Applied::default()
        }
    );
    let before = loop {
        let report = reports.recv().await.unwrap();
        if report.backend == ids[0] {
            break report;
        }
    };

    // 1 stays, 2 changes, 3 goes, 4 comes.
    let second = BTreeMap::from([(ids[0], fast.clone()), (ids[1], refused), (ids[3], fast)]);
    let applied = prober.apply(&second);
    assert_eq!(
        applied,
        Applied {
            started: vec![ids[3]],
            replaced: vec![ids[1]],
            stopped: vec![ids[2]]
        }
    );
    assert_eq!(prober.apply(&second), Applied::default());
    assert!(
        prober.is_current(&before),
        "an unchanged probe is not started anew"
    );
    let mut probed: Vec<_> = prober.probes().map(|(id, _)| id).collect();
    probed.sort_unstable();
    assert_eq!(probed, [ids[0], ids[1], ids[3]]);

    let mut seen = BTreeMap::new();
    while seen.len() < 3 {
        let report = reports.recv().await.unwrap();
        if prober.is_current(&report) {
            seen.insert(report.backend, report.result.is_ok());
        }
    }
    assert_eq!(
        seen,
        BTreeMap::from([(ids[0], true), (ids[1], false), (ids[3], true)])
    );

    drop(prober);
    // Every task is gone when the last sender is.
    while reports.recv().await.is_some() {}
}

/// What became of a probe by these sockets, and which socket it had: its descriptor.
async fn connect_by(
    sockets: &Sockets,
    target: SocketAddr,
    mark: u32,
) -> Result<(i32, sockets::Connection), ProbeFailure> {
    let kind = sockets::Kind::towards(target, true);
    let connecting = sockets.connect(target, kind, mark, HASTY);
    let connection = tokio::time::timeout(FAIR, connecting)
        .await
        .unwrap_or_else(|_| {
            Err(ProbeFailure::TimedOut {
                target,
                timeout: FAIR,
                alive: None,
            })
        })?;
    Ok((connection.descriptor(), connection))
}

#[tokio::test]
async fn a_socket_probes_again_with_another_mark_and_each_connection_is_reset() {
    let listener = listen(VIP, 0).await;
    let target = listener.local_addr().unwrap();
    let sockets = Sockets::new().unwrap();
    let mut had = Vec::new();
    for mark in [7, 7, 8, 0] {
        let (descriptor, connection) = connect_by(&sockets, target, mark)
            .await
            .expect("SO_MARK needs CAP_NET_ADMIN: run the tests as root");
        had.push(descriptor);
        let socket = connection.options().unwrap();
        assert_eq!(socket.mark().unwrap(), mark);
        assert_eq!(socket.ttl_v4().unwrap(), 1);
        assert_eq!(socket.linger().unwrap(), Some(Duration::ZERO));
        let (mut stream, _) = listener.accept().await.unwrap();
        connection.reset();
        let end = stream.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
    }
    had.dedup();
    assert_eq!(had.len(), 1, "one socket, again and again: {had:?}");
}

#[tokio::test]
async fn what_happened_to_a_socket_before_says_nothing_about_its_next_probe() {
    let listener = listen(VIP, 0).await;
    let target = listener.local_addr().unwrap();
    let hole = BlackHole::open(VIP, 0).await;
    let sockets = Sockets::new().unwrap();
    let (_, connection) = connect_by(&sockets, target, 0).await.unwrap();
    connection.reset();
    // The disconnection is an event; nobody has waited for it yet.
    let lost = connect_by(&sockets, hole.address, 0).await.map(drop);
    assert_eq!(
        lost,
        Err(ProbeFailure::TimedOut {
            target: hole.address,
            timeout: FAIR,
            alive: None
        })
    );
    // It was this socket's, and the socket is closed: its number goes to the next one.
    assert_eq!(sockets.counts(), (0, 1));
    let (_, connection) = connect_by(&sockets, target, 0).await.unwrap();
    connection.reset();
    assert_eq!(sockets.counts(), (1, 0));

    let address = SocketAddr::new(BACKEND, target.port());
    let refused = connect_by(&sockets, address, 0).await.map(drop);
    assert_eq!(refused, Err(ProbeFailure::Refused { target: address }));
    let v6 = listen(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST), 0).await;
    for target in [v6.local_addr().unwrap(), target] {
        let (_, connection) = connect_by(&sockets, target, 0).await.unwrap();
        connection.reset();
    }
    assert_eq!(sockets.counts(), (2, 0));
}

#[tokio::test]
async fn many_probes_at_once_have_a_socket_each() {
    let listener = listen(VIP, 0).await;
    let target = listener.local_addr().unwrap();
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let sockets = Arc::new(Sockets::new().unwrap());
    for _ in 0..3 {
        let probes = (0..300).map(|_| {
            let (sockets, spec) = (sockets.clone(), tcp(target, PATIENT));
            tokio::spawn(async move { probe_by(&spec, Some(&sockets)).await })
        });
        for probe in probes.collect::<Vec<_>>() {
            probe.await.unwrap().unwrap();
        }
        let (kept, free) = sockets.counts();
        assert!(kept > 0 && kept <= 128, "{kept}");
        assert!(kept + free <= 300, "no number is lost: {kept}, {free}");
    }
}

#[tokio::test]
async fn by_shared_sockets_a_probe_finds_the_same() {
    let hole = BlackHole::open(VIP, 0).await;
    let own = listen(BACKEND, hole.address.port()).await;
    let sockets = Sockets::new().unwrap();
    assert_eq!(
        probe_by(&tcp(hole.address, FAIR), Some(&sockets)).await,
        Err(ProbeFailure::VipNotServed {
            vip: hole.address,
            address: BACKEND
        })
    );
    drop(own);
    assert_eq!(
        probe_by(&tcp(hole.address, FAIR), Some(&sockets)).await,
        Err(ProbeFailure::TimedOut {
            target: hole.address,
            timeout: FAIR,
            alive: Some(SocketAddr::new(BACKEND, hole.address.port()))
        })
    );
}
