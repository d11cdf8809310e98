//! What changes of this host itself: its interfaces and its addresses.

use anyhow::{Context as _, Error, Result};
use tracing::{error, info};

use super::{
    super::{ports::PortState, report, startup},
    Cause, Daemon, Touched,
};
use crate::{
    api::ApplyKind,
    neighbour::{self, NetlinkError, NetworkEvent},
};

/// Whether both are about the same: the later one says how it is. Addresses are read all at once.
fn same_subject(one: &NetworkEvent, other: &NetworkEvent) -> bool {
    match (one, other) {
        (NetworkEvent::Link(one), NetworkEvent::Link(other)) => {
            one.link.ifindex == other.link.ifindex
        }
        (NetworkEvent::Address(_), NetworkEvent::Address(_)) => true,
        _ => false,
    }
}

fn is_netlinks(error: &Error) -> bool {
    error
        .chain()
        .any(<dyn std::error::Error>::is::<NetlinkError>)
}

impl Daemon {
    /// Something of this host has changed. Where the kernel does not tell what, or does not do what follows from it, this is
    /// tried again ([`Self::follow_host_again`]): the data path goes on as it is.
    pub(super) async fn follow_host(&mut self, event: NetworkEvent) -> Result<()> {
        self.unfollowed
            .retain(|before| !same_subject(before, &event));
        match self.on_host(&event).await {
            Err(error) if is_netlinks(&error) => {
                error!(
                    error = format!("{error:#}"),
                    "a change of this host's network can't be followed yet; it is tried again"
                );
                self.unfollowed.push(event);
                Ok(())
            }
            done => done,
        }
    }

    /// Tries again what could not be followed.
    pub(super) async fn follow_host_again(&mut self) -> Result<()> {
        for event in std::mem::take(&mut self.unfollowed) {
            match self.on_host(&event).await {
                Ok(()) => info!("a change of this host's network was followed at last"),
                Err(error) if is_netlinks(&error) => self.unfollowed.push(event),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Something of the director itself changed.
    async fn on_host(&mut self, event: &NetworkEvent) -> Result<()> {
        match event {
            NetworkEvent::Neighbour(_) => {}
            NetworkEvent::Link(event) => {
                if self.is_vlan(&event.link) {
                    return self.on_other_ways("VLANs of the director").await;
                }
                let Some(port) = self
                    .knowledge
                    .ports
                    .iter()
                    .find(|p| p.ifindex == event.link.ifindex)
                else {
                    return Ok(());
                };
                if !event.exists {
                    error!(
                        interface = port.name,
                        "the interface is gone, and with it the data path on it; restart xdp-lb when it is back"
                    );
                } else if let Some(mac) = event.link.mac
                    && mac != port.mac
                {
                    self.adopt_mac(port.number, mac).await?;
                } else if event.link.up {
                    self.take_in().await?;
                    // The kernel dropped the probes' routes while it was down.
                    self.prepare_network().await;
                }
            }
            NetworkEvent::Address(_) => {
                self.on_other_ways("addresses of the director").await?;
            }
        }
        Ok(())
    }

    /// The interfaces are not what they were, and with them the ways to the backends: all that follows from them is done anew.
    async fn on_other_ways(&mut self, what: &str) -> Result<()> {
        self.knowledge.facts = neighbour::host_facts()
            .await
            .context("reading the interfaces")?;
        self.widen_features();
        self.number_vlans()?;
        self.change(&Cause::new(ApplyKind::Host, what), Touched::All)?;
        self.narrow_features();
        // Another way to a backend: other neighbours to follow.
        self.follow_all();
        self.prepare_network().await;
        Ok(())
    }

    /// The interface has another MAC address: the program that answers ARP with it is loaded anew.
    async fn adopt_mac(&mut self, number: u16, mac: neighbour::Mac) -> Result<()> {
        self.knowledge.facts = neighbour::host_facts()
            .await
            .context("reading the interfaces")?;
        if let Some(port) = self.knowledge.ports.iter_mut().find(|p| p.number == number) {
            info!(
                interface = port.name,
                mac = report::mac_text(mac),
                "the interface's MAC address changed"
            );
            port.mac = mac;
            let port: PortState = port.clone();
            startup::reload_program(
                self.knowledge.config(),
                &self.knowledge.facts,
                &port,
                &mut self.running,
            )?;
        }
        Ok(())
    }
}
