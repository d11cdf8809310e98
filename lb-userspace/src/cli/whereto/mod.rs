//! `xdp-lb where`: which backend a packet would go to, and each step that leads there.

mod arrival;
mod words;

use std::net::{IpAddr, SocketAddr};

use anyhow::bail;
use clap::ValueEnum;
use lb_common::{
    service::{ServiceValue, Track},
    tables::Step,
    verdict::Verdict,
};
use serde::Serialize;

use self::words::{Line, Narrator};
use super::{
    Context, Exit,
    pinned::{Pinned, interface, mac},
    screen::Look,
};
use crate::dataplane::explain::{Arrival, Explained, Kind, Question, explain};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The client's address, with its port where that takes part in the pick
    #[arg(value_name = "CLIENT[:PORT]", value_parser = client)]
    client: Client,
    /// The VIP and the service's port
    #[arg(value_name = "VIP:PORT", value_parser = service)]
    service: SocketAddr,
    /// The protocol
    #[arg(long, value_enum, default_value = "tcp")]
    protocol: Protocol,
    /// The interface it comes in on, one with the program or a VLAN on one; by default the one that the route to the client
    /// leads through
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// For programs: one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// The client's address and, where it was given, its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Client {
    address: IpAddr,
    port: Option<u16>,
}

impl std::fmt::Display for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}", SocketAddr::new(self.address, port)),
            None => write!(f, "{}", self.address),
        }
    }
}

fn client(text: &str) -> Result<Client, String> {
    // An address that is to get a port may be in brackets already.
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(Client {
            address: address.to_canonical(),
            port: None,
        });
    }
    match text.parse::<SocketAddr>() {
        Ok(both) => Ok(Client {
            address: both.ip().to_canonical(),
            port: Some(both.port()),
        }),
        Err(_error) => Err(
            "expected an address, or one with a port as 10.1.2.3:40000 or [2001:db8::1]:40000"
                .to_owned(),
        ),
    }
}

fn service(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_error| {
        "expected an address with a port as 192.0.2.10:80 or [2001:db8::10]:80".to_owned()
    })?;
    Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// The shape of `where --json`.
#[derive(Debug, Serialize)]
struct Answer {
    verdict: &'static str,
    service: Option<String>,
    /// Index in the service's own table.
    slot: Option<u32>,
    /// The backend's name.
    backend: Option<String>,
    /// The frame's new destination.
    mac: Option<String>,
    /// The interface it leaves through.
    interface: Option<String>,
    /// The interface it came in on.
    arrived: Option<String>,
    steps: Vec<Line>,
    /// Where that may be another: the packet of a TCP flow or QUIC connection that is there already. The outer answer is the one for a
    /// packet that opens a flow.
    #[serde(skip_serializing_if = "Option::is_none")]
    established: Option<Box<Answer>>,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    if args.client.address.is_ipv6() != args.service.is_ipv6() {
        bail!(
            "{} and {} are of different families: a packet has two IPv4 addresses or two IPv6 ones",
            args.client.address,
            args.service.ip()
        );
    }
    let pinned = Pinned::open(context)?;
    let unserved_pass = context.reach.setting("node", "unserved", "drop")? == "pass";
    let arrival = arrival::of(
        args.interface.as_deref(),
        args.client.address,
        &pinned.maps.ports()?,
    )?;
    let ask = |kind| {
        let question = Question {
            client: SocketAddr::new(args.client.address, args.client.port.unwrap_or(0)),
            service: args.service,
            kind,
            unserved_pass,
            arrival,
        };
        explain(&pinned.maps, &question)
    };
    let (opens, continues) = match args.protocol {
        Protocol::Tcp => (Kind::TcpOpens, Kind::TcpContinues),
        Protocol::Udp => (Kind::QuicOpens, Kind::Udp),
    };
    // Where nobody looks into it, it does not matter what a UDP packet says.
    let explained = ask(opens)?;
    needs_port(args, &explained)?;

    let mut answer = answer(&explained, args, arrival, &pinned);
    if differs(&explained.steps, args.protocol) {
        match args.client.port {
            Some(_) => {
                let established = self::answer(&ask(continues)?, args, arrival, &pinned);
                answer.established = Some(Box::new(established));
            }
            None => answer.steps.push(Line::new(
                "transition",
                "where a packet of a flow goes that is there already depends on that flow: give the client's port",
            )),
        }
    }
    let text = if args.json {
        serde_json::to_string_pretty(&answer)?
    } else {
        render(&answer, args, context.screen.look)
    };
    context.screen.line(&text)?;
    Ok(Exit::Done)
}

/// Whether a packet that opens a flow and one of a flow that is there may go different ways.
fn differs(steps: &[Step], protocol: Protocol) -> bool {
    let service = steps.iter().find_map(|step| match step {
        Step::Service { found, .. } => *found,
        _ => None,
    });
    let in_transition = steps.iter().any(|step| match step {
        Step::Slot { slot, .. } => slot.in_transition(),
        Step::HotSlot { .. } => true,
        _ => false,
    });
    match (service.map(ServiceValue::track), protocol) {
        (None, _) | (Some(Track::Changes | Track::Always), Protocol::Udp) => false,
        (Some(Track::Always), Protocol::Tcp) => true,
        (Some(Track::Changes), Protocol::Tcp) | (Some(Track::Quic), _) => in_transition,
    }
}

/// Refuses to answer where the answer would be about port 0.
fn needs_port(args: &Args, explained: &Explained) -> anyhow::Result<()> {
    let picks = |step: &Step| matches!(step, Step::Service { found: Some(service), .. } if service.affinity().ports);
    let hot = |step: &Step| matches!(step, Step::Hot { .. });
    if args.client.port.is_none() && explained.steps.iter().any(hot) {
        bail!(
            "the client is of a hot source, which is spread by its ports, so the client's port takes part in the pick: give it, as `xdp-lb where {}:40000 {}`",
            args.client,
            args.service
        );
    }
    if args.client.port.is_none() && explained.steps.iter().any(picks) {
        bail!(
            "the service's affinity is `none`, so the client's port takes part in the pick: give it, as `xdp-lb where {} {}`",
            SocketAddr::new(args.client.address, 40_000),
            args.service
        );
    }
    Ok(())
}

/// An interface, and the VLAN where a frame has a tag there.
fn tagged(interface: String, vlan: u16) -> String {
    match vlan {
        0 => interface,
        id => format!("{interface}, VLAN {id}"),
    }
}

fn answer(explained: &Explained, args: &Args, arrival: Arrival, pinned: &Pinned) -> Answer {
    let narrator = Narrator {
        names: &pinned.names,
        client: SocketAddr::new(args.client.address, args.client.port.unwrap_or(0)),
        port: args.service.port(),
    };
    let mut answer = Answer {
        verdict: explained.verdict.name(),
        service: None,
        slot: None,
        backend: None,
        mac: explained.destination.map(mac),
        interface: explained
            .egress
            .map(|index| tagged(interface(index), explained.egress_vlan)),
        arrived: explained
            .ingress
            .map(|index| tagged(interface(index), arrival.vlan)),
        steps: narrator.steps(&explained.steps),
        established: None,
    };
    for step in &explained.steps {
        match step {
            Step::Service {
                found: Some(value), ..
            } => {
                answer.service = Some(pinned.names.service(value.id()));
            }
            // Of a hot source in transition, that of its new flows.
            Step::Slot { index, .. } => {
                answer.slot.get_or_insert(*index);
            }
            Step::Backend { number, .. } => answer.backend = Some(pinned.names.backend(*number)),
            _ => {}
        }
    }
    if let (Some(destination), Some(source), Some(interface)) =
        (&answer.mac, explained.source.map(mac), &answer.interface)
    {
        let text = format!("destination MAC {destination}, source MAC {source}");
        answer.steps.push(Line::new("rewrite", text));
        let came = answer.arrived.as_deref().unwrap_or("an interface");
        let text = format!("in on {came}, out on {interface}");
        answer.steps.push(Line::new("way", text));
    }
    answer.steps.push(words::verdict(explained.verdict));
    answer
}

fn render(answer: &Answer, args: &Args, look: Look) -> String {
    let head = |what: &str, answer: &Answer| {
        let goes = match &answer.backend {
            Some(backend) if answer.verdict == Verdict::Local.name() => {
                format!("stays here: this node is {backend}")
            }
            Some(backend) if answer.verdict == Verdict::OtherNode.name() => {
                format!("is kept by {backend}, another node")
            }
            Some(backend) if answer.mac.is_some() => format!("goes to {backend}"),
            _ => format!("reaches no backend: {}", answer.verdict),
        };
        look.bold(&format!(
            "{} {} -> {}{what} {goes}",
            args.protocol.name(),
            args.client,
            args.service
        ))
    };
    let what = if answer.established.is_some() {
        ", a packet that opens a flow,"
    } else {
        ""
    };
    let mut lines = vec![head(what, answer)];
    lines.extend(indented(&answer.steps));
    if let Some(established) = &answer.established {
        lines.push(String::new());
        lines.push(head(
            ", a packet of a flow that is there already,",
            established,
        ));
        // What comes before the slot is the same for both.
        let differs = established
            .steps
            .iter()
            .position(|line| line.step == "transition")
            .unwrap_or(0);
        lines.extend(indented(&established.steps[differs..]));
    }
    lines.join("\n")
}

fn indented(steps: &[Line]) -> impl Iterator<Item = String> {
    let line = |line: &Line| format!("  {:<10}  {}", line.step, line.text);
    steps.iter().map(line)
}

impl Line {
    fn new(step: &'static str, text: impl Into<String>) -> Self {
        Self {
            step,
            text: text.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let address = IpAddr::from([10, 1, 2, 3]);
        assert_eq!(
            client("10.1.2.3"),
            Ok(Client {
                address,
                port: None
            })
        );
        assert_eq!(
            client("10.1.2.3:9"),
            Ok(Client {
                address,
                port: Some(9)
            })
        );
        let address = IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]);
        for (text, port) in [
            ("2001:db8::1", None),
            ("[2001:db8::1]", None),
            ("[2001:DB8:0::1]:443", Some(443)),
        ] {
            assert_eq!(client(text), Ok(Client { address, port }), "{text}");
        }
        let shown = client("[2001:db8::1]:9").expect("an address").to_string();
        assert_eq!(shown, "[2001:db8::1]:9");
        for wrong in [
            "10.1.2",
            "10.1.2.3:",
            "10.1.2.3:65536",
            "[::1",
            "[2001:db8::1]:",
            "client",
        ] {
            assert!(client(wrong).is_err(), "{wrong}");
        }
        for portless in ["192.0.2.10", "2001:db8::10", "[2001:db8::10]"] {
            assert!(service(portless).is_err(), "{portless} has no port");
        }
        assert!(service("[2001:db8::10]:443").is_ok());
    }

    /// What design.md section 7 promises to whoever reads `where --json`.
    #[test]
    fn the_promised_fields_are_there_even_where_nothing_was_found() {
        let answer = Answer {
            verdict: Verdict::NotOurs.name(),
            service: None,
            slot: None,
            backend: None,
            mac: None,
            interface: None,
            arrived: None,
            steps: vec![words::verdict(Verdict::NotOurs)],
            established: None,
        };
        let json = serde_json::to_value(&answer).expect("serializes");
        for field in ["verdict", "service", "slot", "backend", "mac", "steps"] {
            assert!(json.get(field).is_some(), "no {field} in {json}");
        }
        assert_eq!(json["steps"][0]["step"], "verdict");
    }
}
