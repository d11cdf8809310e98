//! `track`: UDP flows that stay where they are because every one of them is recorded, and QUIC connections, which a drain
//! leaves alone like TCP's.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use lb_tests::testbed::scene::{NO_PROBE, PATIENCE, SEED};
use lb_tests::testbed::{DEADLINE, Host, StatusExt as _, Testbed, UdpClient, UdpEcho, XdpLb};
use lb_userspace::api::Status;
use quinn::rustls::RootCertStore;
use quinn::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, ServerConfig, TokioRuntime, TransportConfig,
};
use tokio::runtime::Runtime;

fn testbed(label: &str, sources: usize) -> Testbed {
    Testbed::builder()
        .clients(1, sources)
        .backends(3)
        .label(label)
        .build()
        .unwrap()
}

fn config(testbed: &Testbed, port: u16, track: &str) -> String {
    format!(
        "{}\n[[service]]\nname = \"udp\"\nvip = \"{}\"\nprotocol = \"udp\"\nports = [{port}]\ntrack = \"{track}\"\n\
         flow_idle = \"6s\"\n\n{NO_PROBE}{}",
        testbed.node_config_with(SEED),
        testbed.vip(),
        testbed.backend_config()
    )
}

fn flows(status: &Status) -> BTreeMap<String, u64> {
    let backends = &status.services[0].backends;
    backends.iter().map(|b| (b.name.clone(), b.flows)).collect()
}

fn counted<'h>(homes: impl IntoIterator<Item = &'h String>) -> BTreeMap<String, u64> {
    let mut counts: BTreeMap<String, u64> =
        (1..=3).map(|number| (format!("b{number}"), 0)).collect();
    for home in homes {
        *counts.entry(home.clone()).or_default() += 1;
    }
    counts
}

#[test]
fn every_flow_of_a_service_that_tracks_always_stays_and_is_counted() {
    const PORT: u16 = 53;
    let testbed = testbed("always", 30);
    let _echoes: Vec<UdpEcho> = testbed
        .backends()
        .map(|host| UdpEcho::start_on(host, &[PORT]).unwrap())
        .collect();
    let mut daemon = XdpLb::start(&testbed, &config(&testbed, PORT, "always")).unwrap();
    let status = daemon
        .wait_for("that all slots settle", |status| {
            status.services[0].slots_in_transition == 0
        })
        .unwrap();
    assert_eq!(status.node.features, ["fragments", "track_always"]);
    assert_eq!(status.services[0].track, "always");

    let client = testbed.host("c1");
    let socket = |source: &IpAddr| UdpClient::on(client, *source, 0, PORT).unwrap();
    let ask = |socket: &UdpClient| socket.ask(b"hello", PATIENCE).unwrap();
    let sockets: Vec<UdpClient> = client.sources().iter().map(socket).collect();
    let homes: Vec<String> = sockets.iter().map(ask).collect();
    let expected = counted(&homes);
    assert!(expected["b1"] > 0, "{expected:?}");
    // Nothing has changed, and all are known.
    daemon
        .wait_for("that every flow is counted", |status| {
            flows(status) == expected
        })
        .unwrap();

    // A drain and a weight: UDP flows stay, each on its backend; new ones do not come.
    daemon.cli_ok(&["drain", "b1"]).unwrap();
    daemon.cli_ok(&["weight", "b2", "200"]).unwrap();
    let again: Vec<String> = sockets.iter().map(ask).collect();
    assert_eq!(again, homes);
    let new: Vec<String> = client
        .sources()
        .iter()
        .map(socket)
        .map(|s| ask(&s))
        .collect();
    assert!(!new.contains(&"b1".to_owned()), "{new:?}");
    let status = daemon.status().unwrap();
    assert_eq!(status.backend("b1").unwrap().state, "draining");
    daemon
        .wait_for("that the drain counts its flows", |status| {
            status.backend("b1").unwrap().flows == expected["b1"]
        })
        .unwrap();

    // Also by a daemon that has just taken over.
    daemon.kill9().unwrap();
    daemon.spawn(&[]).unwrap();
    let again: Vec<String> = sockets.iter().map(ask).collect();
    assert_eq!(again, homes);
    daemon.wait_state("b1", "draining").unwrap();
    drop(sockets);
    daemon.wait_state("b1", "drained").unwrap();

    // Without tracking, the program forgets how, and nothing is recorded any more.
    daemon
        .write_config(&config(&testbed, PORT, "changes"))
        .unwrap();
    daemon.cli_ok(&["reload"]).unwrap();
    let status = daemon
        .wait_for("that no flow is recorded", |status| {
            status.flow_table.used == 0
        })
        .unwrap();
    assert_eq!(status.node.features, ["fragments"]);
    assert_eq!(status.services[0].slots_in_transition, 0);
    let socket = socket(&client.sources()[0]);
    let home = ask(&socket);
    daemon.cli_ok(&["drain", &home, "--force"]).unwrap();
    assert_ne!(ask(&socket), home, "every change is at once");
}

/// A QUIC server on a backend that answers each stream with its host's name.
struct Server {
    endpoint: Endpoint,
}

fn transport() -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    // A segmented send is cut by the network card, which a pair of veth has none of.
    transport.enable_segmentation_offload(false);
    transport.max_idle_timeout(Some(DEADLINE.try_into().unwrap()));
    // However slow the machine, no connection is silent for `flow_idle`.
    transport.keep_alive_interval(Some(Duration::from_secs(1)));
    Arc::new(transport)
}

fn bind(host: &Host, address: SocketAddr) -> UdpSocket {
    host.run_in(|| UdpSocket::bind(address)).unwrap().unwrap()
}

impl Server {
    fn start(runtime: &Runtime, host: &Host, port: u16, mut config: ServerConfig) -> Self {
        let _inside = runtime.enter();
        config.transport_config(transport());
        let socket = bind(host, SocketAddr::new(host.vip(), port));
        let endpoint = Endpoint::new(
            EndpointConfig::default(),
            Some(config),
            socket,
            Arc::new(TokioRuntime),
        )
        .unwrap();
        let (accepting, name) = (endpoint.clone(), host.name().to_owned());
        runtime.spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                let name = name.clone();
                tokio::spawn(async move {
                    let Ok(connection) = incoming.await else {
                        return;
                    };
                    while let Ok((mut send, mut receive)) = connection.accept_bi().await {
                        // Whoever asked may be gone.
                        let Ok(question) = receive.read_to_end(100_000).await else {
                            continue;
                        };
                        let answer = format!("{name} {}", question.len());
                        let _ = send.write_all(answer.as_bytes()).await;
                        let _ = send.finish();
                    }
                });
            }
        });
        Self { endpoint }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.endpoint.close(0_u32.into(), b"end");
    }
}

/// One connection from a socket of its own.
struct Client {
    source: SocketAddr,
    _endpoint: Endpoint,
    connection: Connection,
}

impl Client {
    async fn connect(host: &Host, source: IpAddr, port: u16, config: &ClientConfig) -> Self {
        let socket = bind(host, SocketAddr::new(source, 0));
        let endpoint = Endpoint::new(
            EndpointConfig::default(),
            None,
            socket,
            Arc::new(TokioRuntime),
        )
        .unwrap();
        let connecting = endpoint.connect_with(
            config.clone(),
            SocketAddr::new(host.vip(), port),
            "quic.test",
        );
        let connection = connecting.unwrap().await;
        Self {
            source: endpoint.local_addr().unwrap(),
            connection: connection.unwrap_or_else(|error| panic!("{source}: {error}")),
            _endpoint: endpoint,
        }
    }

    /// Who answers a stream of several packets.
    async fn ask(&self) -> String {
        const SIZE: usize = 5_000;
        let (mut send, mut receive) = self.connection.open_bi().await.unwrap();
        send.write_all(&[7; SIZE]).await.unwrap();
        send.finish().unwrap();
        let answer = receive.read_to_end(100).await;
        let answer = answer.unwrap_or_else(|error| {
            panic!(
                "{error} for {:?}: {:?}",
                self.source,
                self.connection.stats().path
            )
        });
        let answer = String::from_utf8(answer).unwrap();
        let (name, got) = answer.split_once(' ').unwrap();
        assert_eq!(got, SIZE.to_string());
        name.to_owned()
    }
}

async fn connect_all(host: &Host, port: u16, config: &ClientConfig) -> Vec<Client> {
    let mut clients = Vec::new();
    for source in host.sources() {
        clients.push(Client::connect(host, *source, port, config).await);
    }
    clients
}

async fn ask_all(clients: &[Client]) -> Vec<String> {
    let mut homes = Vec::new();
    for client in clients {
        homes.push(client.ask().await);
    }
    homes
}

#[test]
fn quic_connections_go_on_through_a_drain_and_new_ones_go_elsewhere() {
    const PORT: u16 = 443;
    let testbed = testbed("quic", 30);
    let runtime = Runtime::new().unwrap();
    let key = rcgen::generate_simple_self_signed(["quic.test".to_owned()]).unwrap();
    let certificate = CertificateDer::from(key.cert);
    let secret = key.signing_key.serialize_der();
    let servers: Vec<Server> = testbed
        .backends()
        .map(|host| {
            let secret = PrivatePkcs8KeyDer::from(secret.clone());
            let config =
                ServerConfig::with_single_cert(vec![certificate.clone()], secret.into()).unwrap();
            Server::start(&runtime, host, PORT, config)
        })
        .collect();
    let mut trusted = RootCertStore::empty();
    trusted.add(certificate).unwrap();
    let mut client_config = ClientConfig::with_root_certificates(Arc::new(trusted)).unwrap();
    client_config.transport_config(transport());

    // QUIC is what a reload makes of it: the program that runs learns it then.
    let mut daemon = XdpLb::start(&testbed, &config(&testbed, PORT, "changes")).unwrap();
    let before = daemon.status().unwrap();
    assert_eq!(before.node.features, ["fragments"]);
    daemon
        .write_config(&config(&testbed, PORT, "quic"))
        .unwrap();
    daemon.cli_ok(&["reload"]).unwrap();
    let status = daemon
        .wait_for("that all slots settle", |status| {
            status.services[0].slots_in_transition == 0
        })
        .unwrap();
    assert_eq!(status.node.features, ["fragments", "quic"]);
    assert_ne!(
        status.node.interfaces[0].program_id,
        before.node.interfaces[0].program_id
    );

    let client = testbed.host("c1");
    runtime.block_on(async {
        let old = connect_all(client, PORT, &client_config).await;
        let homes = ask_all(&old).await;
        let expected = counted(&homes);
        assert!(expected["b1"] > 0 && expected["b1"] < 25, "{expected:?}");

        daemon.cli_ok(&["drain", "b1"]).unwrap();
        let new = connect_all(client, PORT, &client_config).await;
        let new_homes = ask_all(&new).await;
        assert!(!new_homes.contains(&"b1".to_owned()), "{new_homes:?}");
        for _ in 0..3 {
            assert_eq!(ask_all(&old).await, homes, "no connection is broken");
            assert_eq!(ask_all(&new).await, new_homes);
        }
        // Those that send are counted.
        let status = daemon
            .wait_for("that the drain counts its connections", |status| {
                status.backend("b1").unwrap().flows >= expected["b1"]
            })
            .unwrap();
        assert_eq!(status.backend("b1").unwrap().flows, expected["b1"]);
        assert_eq!(status.backend("b1").unwrap().state, "draining");

        // Taken back in the middle, and drained again: still none is broken.
        daemon.cli_ok(&["resume", "b1"]).unwrap();
        assert_eq!(ask_all(&old).await, homes);
        assert_eq!(ask_all(&new).await, new_homes);
        let newest = connect_all(client, PORT, &client_config).await;
        let newest_homes = ask_all(&newest).await;
        assert!(newest_homes.contains(&"b1".to_owned()), "{newest_homes:?}");
        daemon.cli_ok(&["drain", "b1"]).unwrap();
        for (clients, homes) in [(&old, &homes), (&new, &new_homes), (&newest, &newest_homes)] {
            assert_eq!(ask_all(clients).await, *homes);
        }

        for one in old.iter().chain(&new).chain(&newest) {
            assert!(one.connection.close_reason().is_none());
            one.connection.close(0_u32.into(), b"done");
        }
        // Lets the last packets leave.
        tokio::time::sleep(Duration::from_millis(100)).await;
    });
    daemon.wait_state("b1", "drained").unwrap();
    drop(servers);
}
