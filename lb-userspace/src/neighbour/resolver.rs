//! Follows the MAC addresses of neighbours, and the host's interfaces and addresses, as they change.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use futures::TryStreamExt;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::MissedTickBehavior;

use super::facts::{self, Link};
use super::netlink::Listener;
use super::table::{Outcome, Table, Target};
use super::{AddressEvent, LinkEvent, Mac, Netlink, NetlinkError, NetworkEvent, mac};

/// How often those are asked for whom the kernel does not care for by itself: the unresolved, so
/// that a backend that comes back is found soon.
const TICK: Duration = Duration::from_secs(1);

enum Command {
    Follow(HashSet<Target>),
    Confirm(Target),
}

/// Follows neighbours and interfaces in a task of its own until it is dropped.
///
/// A neighbour is reported when its MAC becomes known, changes or is lost; not before the first
/// answer, or the kernel's giving up after a broadcast (three requests, one second apart by default);
/// a table flushed by hand loses nobody. The kernel
/// confirms an entry that is in use and lets one that is not go stale; as XDP's use of a MAC is
/// invisible to it, a stale entry is declared used the moment it is reported stale, which makes the
/// kernel ask again. What the kernel drops or gives up is asked for once a second.
#[derive(Debug)]
pub struct Resolver {
    commands: mpsc::UnboundedSender<Command>,
    task: AbortHandle,
}

impl Resolver {
    /// Starts following, in the network namespace of this thread; to be called within a tokio
    /// runtime. A full channel of events delays the next ones and loses none.
    ///
    /// # Errors
    /// No netlink socket.
    pub fn start(events: mpsc::Sender<NetworkEvent>) -> Result<Self, NetlinkError> {
        let (commands, receiver) = mpsc::unbounded_channel();
        let following = Following {
            netlink: Netlink::open()?,
            listener: Listener::open()?,
            table: Table::default(),
            links: HashMap::new(),
            addresses: HashSet::new(),
            events,
        };
        Ok(Self {
            commands,
            task: tokio::spawn(following.run(receiver)).abort_handle(),
        })
    }

    /// Follows exactly these neighbours from now on; those followed before and still wanted are not
    /// disturbed, nor reported again.
    pub fn follow(&self, targets: HashSet<Target>) {
        // The task lives as long as this handle.
        let _ = self.commands.send(Command::Follow(targets));
    }

    /// Has the kernel confirm a MAC now, and not when it would by itself. For a backend whose
    /// probes stay without an answer: a MAC that changed silently is found after three seconds
    /// instead of up to a minute (three unanswered requests to the old one, then a broadcast).
    pub fn confirm(&self, target: Target) {
        let _ = self.commands.send(Command::Confirm(target));
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Nobody wants the events any more.
struct Unheard;

struct Following {
    netlink: Netlink,
    listener: Listener,
    table: Table,
    links: HashMap<u32, Link>,
    addresses: HashSet<(IpAddr, u32)>,
    events: mpsc::Sender<NetworkEvent>,
}

impl Following {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut fresh = false;
        loop {
            if !fresh {
                match self.list().await {
                    Ok(Ok(())) => fresh = true,
                    Ok(Err(Unheard)) => return,
                    Err(error) => {
                        tracing::warn!(%error, "cannot list neighbours and interfaces; trying again");
                        tokio::time::sleep(TICK).await;
                        continue;
                    }
                }
            }
            let done = tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Follow(targets)) => {
                        self.table.follow(&targets);
                        self.list_neighbours_or_retry(&mut fresh).await
                    }
                    Some(Command::Confirm(target)) => self.confirm(target).await,
                    None => Err(Unheard),
                },
                message = self.listener.next() => match message {
                    Some(payload) => match payload {
                        NetlinkPayload::InnerMessage(message) => self.notified(message).await,
                        NetlinkPayload::Overrun(_) => {
                            tracing::debug!("notifications were lost; listing anew");
                            fresh = false;
                            Ok(())
                        }
                        _ => Ok(()),
                    },
                    None => {
                        self.reopen().await;
                        fresh = false;
                        Ok(())
                    }
                },
                _ = ticks.tick() => {
                    let mut done = Ok(());
                    for target in self.table.neglected() {
                        done = self.ask(target).await;
                        if done.is_err() {
                            break;
                        }
                    }
                    done
                }
            };
            if done.is_err() {
                return;
            }
        }
    }

    /// The listening socket broke: opens another one, however long that takes.
    async fn reopen(&mut self) {
        loop {
            match Listener::open() {
                Ok(listener) => {
                    self.listener = listener;
                    return;
                }
                Err(error) => tracing::warn!(%error, "cannot follow the network; trying again"),
            }
            tokio::time::sleep(TICK).await;
        }
    }

    async fn send(&self, event: NetworkEvent) -> Result<(), Unheard> {
        self.events.send(event).await.map_err(|_| Unheard)
    }

    /// Reads everything anew and reports what differs from what was known.
    async fn list(&mut self) -> Result<Result<(), Unheard>, NetlinkError> {
        let facts = facts::facts(&self.netlink).await?;
        let neighbours = self.neighbours().await?;
        Ok(async {
            let present: HashSet<u32> = facts.interfaces.iter().map(|i| i.link.ifindex).collect();
            let vanished: Vec<Link> = self
                .links
                .values()
                .filter(|link| !present.contains(&link.ifindex))
                .cloned()
                .collect();
            for link in vanished {
                self.link_gone(link).await?;
            }
            let mut assigned = HashSet::new();
            for interface in facts.interfaces {
                let ifindex = interface.link.ifindex;
                assigned.extend(interface.addresses.iter().map(|net| (net.addr(), ifindex)));
                self.link_seen(interface.link).await?;
            }
            let known = self.addresses.clone();
            for (address, ifindex) in known.difference(&assigned) {
                self.address(*address, *ifindex, false).await?;
            }
            for (address, ifindex) in &assigned {
                self.address(*address, *ifindex, true).await?;
            }
            self.listed(neighbours).await
        }
        .await)
    }

    async fn list_neighbours_or_retry(&mut self, fresh: &mut bool) -> Result<(), Unheard> {
        match self.neighbours().await {
            Ok(neighbours) => self.listed(neighbours).await,
            Err(error) => {
                tracing::warn!(%error, "cannot list neighbours; trying again");
                *fresh = false;
                Ok(())
            }
        }
    }

    async fn neighbours(
        &self,
    ) -> Result<HashMap<Target, (NeighbourState, Option<Mac>)>, NetlinkError> {
        let request = self.netlink.handle().neighbours().get().execute();
        let messages: Vec<NeighbourMessage> = self
            .netlink
            .ask(|| "list neighbours".to_owned(), request.try_collect())
            .await?;
        Ok(messages
            .iter()
            .filter_map(neighbour)
            .map(|(target, state, mac)| (target, (state, mac)))
            .collect())
    }

    async fn listed(
        &mut self,
        neighbours: HashMap<Target, (NeighbourState, Option<Mac>)>,
    ) -> Result<(), Unheard> {
        let targets: Vec<Target> = self.table.targets().collect();
        for target in targets {
            let outcome = match neighbours.get(&target) {
                Some((state, mac)) => self.table.shown(target, *state, *mac),
                None => self.table.gone(target),
            };
            self.follow_up(target, outcome).await?;
        }
        Ok(())
    }

    async fn notified(&mut self, message: RouteNetlinkMessage) -> Result<(), Unheard> {
        match message {
            RouteNetlinkMessage::NewNeighbour(message) => {
                if let Some((target, state, mac)) = neighbour(&message) {
                    let outcome = self.table.shown(target, state, mac);
                    self.follow_up(target, outcome).await?;
                }
            }
            RouteNetlinkMessage::DelNeighbour(message) => {
                if let Some((target, ..)) = neighbour(&message) {
                    let outcome = self.table.gone(target);
                    self.follow_up(target, outcome).await?;
                }
            }
            // What a bridge says of its port leaves out most of what the port is.
            RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message)
                if message.header.interface_family == AddressFamily::Bridge => {}
            RouteNetlinkMessage::NewLink(message) => {
                self.link_seen(facts::link(&message)).await?;
            }
            RouteNetlinkMessage::DelLink(message) => {
                self.link_gone(facts::link(&message)).await?;
            }
            RouteNetlinkMessage::NewAddress(message) => {
                if let Some(net) = facts::address(&message) {
                    self.address(net.addr(), message.header.index, true).await?;
                }
            }
            RouteNetlinkMessage::DelAddress(message) => {
                if let Some(net) = facts::address(&message) {
                    self.address(net.addr(), message.header.index, false)
                        .await?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    async fn follow_up(&mut self, target: Target, outcome: Outcome) -> Result<(), Unheard> {
        if let Some(event) = outcome.event {
            self.send(NetworkEvent::Neighbour(event)).await?;
        }
        if outcome.ask {
            self.ask(target).await?;
        }
        Ok(())
    }

    /// Has the kernel resolve or confirm: `NTF_USE` declares the entry used, which starts what a
    /// packet to it would start (net/core/neighbour.c, `neigh_add` and `neigh_event_send`).
    async fn ask(&mut self, target: Target) -> Result<(), Unheard> {
        self.update(target, NeighbourState::None, NeighbourFlags::Use)
            .await
    }

    /// Has the kernel ask the MAC it knows, at once and not after the usual delay.
    async fn confirm(&mut self, target: Target) -> Result<(), Unheard> {
        if self.table.confirmable(target) {
            self.update(target, NeighbourState::Probe, NeighbourFlags::empty())
                .await
        } else {
            Ok(())
        }
    }

    async fn update(
        &mut self,
        target: Target,
        state: NeighbourState,
        flags: NeighbourFlags,
    ) -> Result<(), Unheard> {
        let request = self
            .netlink
            .handle()
            .neighbours()
            .add(target.ifindex, target.address)
            .state(state)
            .flags(flags)
            .replace()
            .execute();
        let action = || format!("ask for {}", target.address);
        let Err(error) = self.netlink.ask(action, request).await else {
            self.table.asked(target);
            return Ok(());
        };
        let memory = matches!(error.errno(), Some(libc::ENOBUFS | libc::ENOMEM));
        let cause = match &error {
            NetlinkError::Request { error, .. } | NetlinkError::Socket(error) => error.to_string(),
        };
        tracing::debug!(%error, "the kernel does not resolve");
        match self.table.refused(target, &cause, memory) {
            Some(event) => self.send(NetworkEvent::Neighbour(event)).await,
            None => Ok(()),
        }
    }

    async fn link_seen(&mut self, link: Link) -> Result<(), Unheard> {
        // Some notifications of wireless and bridge ports carry no name; they change nothing here.
        if link.name.is_empty() {
            return Ok(());
        }
        self.table.name_interface(link.ifindex, &link.name);
        let before = self.links.insert(link.ifindex, link.clone());
        if before.as_ref() == Some(&link) {
            return Ok(());
        }
        self.send(NetworkEvent::Link(LinkEvent { link, exists: true }))
            .await
    }

    async fn link_gone(&mut self, link: Link) -> Result<(), Unheard> {
        if self.links.remove(&link.ifindex).is_none() {
            return Ok(());
        }
        self.send(NetworkEvent::Link(LinkEvent {
            link,
            exists: false,
        }))
        .await
    }

    async fn address(
        &mut self,
        address: IpAddr,
        ifindex: u32,
        assigned: bool,
    ) -> Result<(), Unheard> {
        let changed = if assigned {
            self.addresses.insert((address, ifindex))
        } else {
            self.addresses.remove(&(address, ifindex))
        };
        if !changed {
            return Ok(());
        }
        self.send(NetworkEvent::Address(AddressEvent {
            address,
            ifindex,
            assigned,
        }))
        .await
    }
}

/// Whom a neighbour message is about, and what it says.
fn neighbour(message: &NeighbourMessage) -> Option<(Target, NeighbourState, Option<Mac>)> {
    let mut address = None;
    let mut lladdr = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                address = Some(IpAddr::from(*ip));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                address = Some(IpAddr::from(*ip));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => lladdr = mac(bytes),
            _ => {}
        }
    }
    let target = Target {
        address: address?,
        ifindex: message.header.ifindex,
    };
    Some((target, message.header.state, lladdr))
}
