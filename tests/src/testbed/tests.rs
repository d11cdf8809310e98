//! The testbed itself, without xdp-lb: the hosts reach each other, DSR works by hand, nothing is left behind.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

/// A client that takes `backend` for the owner of the VIP, as xdp-lb would make it believe for one flow.
fn point_vip_at(testbed: &Testbed, backend: &str) {
    for client in testbed.clients() {
        client
            .set_neighbour(testbed.vip(), testbed.host(backend).mac())
            .unwrap();
    }
}

#[test]
fn a_backend_answers_every_source_address_and_sees_it() {
    let testbed = Testbed::builder()
        .clients(2, 300)
        .backends(2)
        .build()
        .unwrap();
    let nginx = Nginx::start(testbed.host("b2")).unwrap();
    let target = SocketAddr::new(nginx.host().address(), 80);
    for client in testbed.clients() {
        for source in [client.sources()[0], client.sources()[299], client.address()] {
            let answer = get(client, source, target, "/", PATIENCE).unwrap();
            assert_eq!(answer.local.ip(), source);
            assert_eq!(answer.headers["x-backend"], "b2");
            assert_eq!(answer.headers["x-client"], source.to_string());
            assert_eq!(answer.headers["x-server"], target.ip().to_string());
            assert_eq!(
                answer.body,
                format!(
                    "I am b2. I see the client {source} asking {}.\n",
                    target.ip()
                )
            );
        }
    }
}

#[test]
fn direct_server_return_works_and_is_seen() {
    let testbed = Testbed::builder()
        .clients(2, 5)
        .backends(2)
        .build()
        .unwrap();
    let _servers: Vec<Nginx> = testbed
        .backends()
        .map(|host| Nginx::start(host).unwrap())
        .collect();
    let client = testbed.host("c1");
    let target = SocketAddr::new(testbed.vip(), 80);

    // Nobody has the VIP on the wire: without a director it is not to be found. (Asked by another
    // client: a packet that waits for the answer to ARP is sent when the neighbour is set below.)
    let other = testbed.host("c2");
    get(
        other,
        other.address(),
        target,
        "/",
        Duration::from_millis(500),
    )
    .unwrap_err();

    let at_client = ReplySniffer::at_client(client).unwrap();
    let at_director = ReplySniffer::at_director(&testbed).unwrap();
    for backend in ["b1", "b2"] {
        point_vip_at(&testbed, backend);
        let answer = get(client, client.sources()[3], target, "/", PATIENCE).unwrap();
        assert_eq!(answer.headers["x-backend"], backend);
        assert_eq!(answer.headers["x-server"], testbed.vip().to_string());
    }
    let replies = at_client.stop().unwrap();
    let senders: BTreeSet<Mac> = replies.keys().map(|reply| reply.sender).collect();
    assert_eq!(senders, testbed.backends().map(Host::mac).collect());
    assert!(
        replies
            .keys()
            .all(|reply| reply.destination == client.sources()[3]),
        "{replies:?}"
    );
    assert_eq!(at_director.count(), 0);

    // A backend that answers by way of the director is seen there.
    testbed
        .host("b2")
        .set_neighbour(client.address(), testbed.director().mac())
        .unwrap();
    get(
        client,
        client.sources()[3],
        target,
        "/",
        Duration::from_millis(500),
    )
    .unwrap_err();
    assert_ne!(at_director.stop().unwrap().values().sum::<u64>(), 0);
}

#[test]
fn a_backend_without_the_vip_is_a_black_hole_until_it_has_it_again() {
    let testbed = Testbed::builder()
        .clients(1, 1)
        .backends(1)
        .build()
        .unwrap();
    let backend = testbed.host("b1");
    let _nginx = Nginx::start(backend).unwrap();
    let client = testbed.host("c1");
    let target = SocketAddr::new(testbed.vip(), 80);
    point_vip_at(&testbed, "b1");

    backend.remove_vip().unwrap();
    get(
        client,
        client.address(),
        target,
        "/",
        Duration::from_millis(500),
    )
    .unwrap_err();
    backend.add_vip().unwrap();
    get(client, client.address(), target, "/", PATIENCE).unwrap();

    backend.link_down().unwrap();
    get(
        client,
        client.address(),
        target,
        "/",
        Duration::from_millis(500),
    )
    .unwrap_err();
    backend.link_up().unwrap();
    get(client, client.address(), target, "/", PATIENCE).unwrap();
}

/// A director for one backend in 17 instructions: gives IPv4 frames for `vip` the MACs `to` and `from` and sends them
/// back with `XDP_TX`; passes the rest. Codes as in Documentation/bpf/standardization/instruction-set.rst of the kernel.
fn smallest_director(vip: std::net::Ipv4Addr, to: Mac, from: Mac) -> Vec<u64> {
    let instruction = |code: u8, to: u8, from: u8, offset: i16, immediate: u32| {
        u64::from(code)
            | u64::from(to | from << 4) << 8
            | u64::from(offset.cast_unsigned()) << 16
            | u64::from(immediate) << 32
    };
    let [a, b, c, d, e, f] = to.0;
    let [g, h, i, j, k, l] = from.0;
    let word = u32::from_le_bytes;
    let half = |low, high| u32::from(u16::from_le_bytes([low, high]));
    vec![
        instruction(0x61, 2, 1, 0, 0),                  // r2 = data
        instruction(0x61, 3, 1, 4, 0),                  // r3 = data_end
        instruction(0xbf, 4, 2, 0, 0),                  // r4 = r2
        instruction(0x07, 4, 0, 0, 34),                 // r4 += the Ethernet and the IPv4 header
        instruction(0x2d, 4, 3, 10, 0),                 // if r4 > r3 goto pass
        instruction(0x69, 5, 2, 12, 0),                 // r5 = EtherType
        instruction(0x55, 5, 0, 8, half(0x08, 0x00)),   // if r5 != IPv4 goto pass
        instruction(0x61, 5, 2, 30, 0),                 // r5 = destination address
        instruction(0x56, 5, 0, 6, word(vip.octets())), // if r5 != vip goto pass
        instruction(0x62, 2, 0, 0, word([a, b, c, d])), // destination MAC
        instruction(0x6a, 2, 0, 4, half(e, f)),
        instruction(0x62, 2, 0, 6, word([g, h, i, j])), // source MAC
        instruction(0x6a, 2, 0, 10, half(k, l)),
        instruction(0xb7, 0, 0, 0, 3), // r0 = XDP_TX
        instruction(0x95, 0, 0, 0, 0), // exit
        instruction(0xb7, 0, 0, 0, 2), // pass: r0 = XDP_PASS
        instruction(0x95, 0, 0, 0, 0), // exit
    ]
}

#[test]
fn what_xdp_sends_back_reaches_the_backend_and_the_reply_the_client() {
    let testbed = Testbed::builder()
        .clients(1, 1)
        .backends(1)
        .build()
        .unwrap();
    let _nginx = Nginx::start(testbed.host("b1")).unwrap();
    let (client, director) = (testbed.host("c1"), testbed.director());
    let IpAddr::V4(vip) = testbed.vip() else {
        panic!("the VIP is IPv4")
    };
    let target = SocketAddr::new(testbed.vip(), 80);
    let program = smallest_director(vip, testbed.host("b1").mac(), director.mac());
    let attached =
        xdp::XdpProgram::attach(director.namespace(), INTERFACE, &program, "by_hand").unwrap();
    client.set_neighbour(testbed.vip(), director.mac()).unwrap();

    let at_director = ReplySniffer::at_director(&testbed).unwrap();
    let answer = get(client, client.sources()[0], target, "/", PATIENCE).unwrap();
    assert_eq!(answer.headers["x-client"], client.sources()[0].to_string());
    let whole = Download::start(client, client.sources()[0], target, LARGE_BYTES * 8)
        .unwrap()
        .finish()
        .unwrap();
    assert!(whole.whole, "{whole:?}");
    assert_eq!(
        at_director.stop().unwrap(),
        std::collections::BTreeMap::new()
    );

    drop(attached);
    get(
        client,
        client.sources()[0],
        target,
        "/",
        Duration::from_millis(500),
    )
    .unwrap_err();
}

#[test]
fn load_is_recorded_request_by_request() {
    let testbed = Testbed::builder()
        .clients(1, 20)
        .backends(1)
        .build()
        .unwrap();
    let mut nginx = Nginx::start(testbed.host("b1")).unwrap();
    let client = testbed.host("c1");
    point_vip_at(&testbed, "b1");
    let target = SocketAddr::new(testbed.vip(), 80);

    for keep_alive in [false, true] {
        let load = LoadGenerator::start(
            client,
            LoadSpec {
                rate: 500,
                keep_alive,
                ..LoadSpec::new(target)
            },
        )
        .unwrap();
        let mut records = Vec::new();
        let sources: BTreeSet<_> = client.sources().iter().copied().collect();
        while records
            .iter()
            .map(|record: &Record| record.source)
            .collect::<BTreeSet<_>>()
            != sources
        {
            std::thread::sleep(Duration::from_millis(10));
            records.extend(load.take());
        }
        for record in &records {
            assert_eq!(record.error, None);
            assert_eq!(record.backend.as_deref(), Some("b1"));
            assert!(record.latency() > Duration::ZERO);
        }
        nginx.stop().unwrap();
        while records.iter().all(|record| record.error.is_none()) {
            std::thread::sleep(Duration::from_millis(10));
            records.extend(load.take());
        }
        load.stop().unwrap();
        nginx.resume().unwrap();
    }
}

#[test]
fn a_download_ends_whole_or_says_why_not() {
    let testbed = Testbed::builder()
        .clients(1, 2)
        .backends(1)
        .build()
        .unwrap();
    let mut nginx = Nginx::start(testbed.host("b1")).unwrap();
    let client = testbed.host("c1");
    point_vip_at(&testbed, "b1");
    let target = SocketAddr::new(testbed.vip(), 80);

    let whole = Download::start(client, client.sources()[0], target, LARGE_BYTES)
        .unwrap()
        .finish()
        .unwrap();
    assert!(whole.whole, "{whole:?}");
    assert_eq!(
        (whole.bytes, whole.backend.as_deref()),
        (LARGE_BYTES, Some("b1"))
    );

    let broken = Download::start(client, client.sources()[1], target, LARGE_BYTES / 100).unwrap();
    while broken.progress().bytes == 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    nginx.stop().unwrap();
    let broken = broken.finish().unwrap();
    assert!(!broken.whole && broken.error.is_some(), "{broken:?}");
}

#[test]
fn nothing_is_left_behind() {
    let testbed = Testbed::builder()
        .clients(1, 1)
        .backends(1)
        .label("leftover")
        .build()
        .unwrap();
    let nginx = Nginx::start(testbed.host("b1")).unwrap();
    let mut sleeper = testbed
        .director()
        .command("sleep")
        .unwrap()
        .arg("600")
        .spawn()
        .unwrap();
    let prefix = format!("xlb-{}-", testbed.tag());
    let pins = testbed.pin_path();
    std::fs::create_dir(&pins).unwrap();
    let (directory, server) = (testbed.directory(), testbed.host("b1").namespace().clone());
    assert_eq!(Namespace::all_with_prefix(&prefix).len(), 4);
    assert!(!server.processes().is_empty());

    drop(testbed);
    assert_eq!(
        sleeper.wait().unwrap().code(),
        None,
        "it was ended by a signal"
    );
    assert!(Namespace::all_with_prefix(&prefix).is_empty());
    assert!(!directory.exists() && !pins.exists());
    drop(nginx);
}

#[test]
fn what_a_killed_process_left_is_removed_by_the_next() {
    // An instance whose lock nobody holds, as SIGKILL leaves it.
    let directory = Path::new("/run/xdp-lb-testbed/dead-1-0");
    std::fs::create_dir_all(directory).unwrap();
    let name = "xlb-dead-1-0-b1";
    // A run of this test that was killed has left both; the claim below removes them.
    let _ = std::process::Command::new("ip")
        .args(["netns", "add", name])
        .output()
        .unwrap();
    assert!(!Namespace::all_with_prefix(name).is_empty());

    let testbed = Testbed::builder()
        .clients(0, 0)
        .backends(0)
        .build()
        .unwrap();
    assert!(Namespace::all_with_prefix(name).is_empty());
    assert!(!directory.exists());
    assert!(testbed.directory().exists());
}

#[test]
fn more_than_the_plan_has_room_for_is_refused() {
    let error = Testbed::builder().clients(17, 1).build().unwrap_err();
    assert_eq!(
        error.to_string(),
        "17 clients were asked for; the address plan has room for 16"
    );
    let error = Testbed::builder()
        .vip("10.77.1.11".parse().unwrap())
        .build()
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the VIP 10.77.1.11 is a host's own address"
    );
}
