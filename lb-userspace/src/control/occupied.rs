//! Before anything is made: whether the interfaces are free for the program, or have this instance's own.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lb_common::abi::program;
use tracing::info;

use crate::{
    config::Config,
    dataplane::{DataplaneError, attach},
    neighbour::{self, HostFacts},
};

/// How long a program may stay after its last pin has gone. The kernel's workers take it off (`bpf_link_put` in
/// `kernel/bpf/syscall.c`), within milliseconds unless they get no processor.
const GOES_WITHIN: Duration = Duration::from_secs(5);
/// How often it is looked for meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Waits until the interfaces have no XDP program but this instance's own, and gives the host as it is then.
///
/// A program that has lost its pins a moment ago is still there: as `rm -r` of the pins and a start after it would find it.
///
/// # Errors
/// [`DataplaneError::Occupied`] where somebody else's program is attached, which is left alone; an interface that is not
/// there.
pub async fn wait_until_free(config: &Config, mut facts: HostFacts) -> Result<HostFacts> {
    let deadline = Instant::now() + GOES_WITHIN;
    let mut told = false;
    while let Some(occupant) = occupant(config, &facts)? {
        if !occupant.may_go() || Instant::now() > deadline {
            return Err(occupant.refusal().into());
        }
        if !told {
            info!(
                interface = occupant.interface,
                program = occupant.id,
                "the interface has an XDP program that is not pinned here: waiting, in case its pins have gone a moment ago"
            );
            told = true;
        }
        tokio::time::sleep(LOOK_EVERY).await;
        facts = neighbour::host_facts()
            .await
            .context("reading the interfaces")?;
    }
    Ok(facts)
}

/// A program on an interface that this instance has not pinned there.
struct Occupant {
    interface: String,
    id: u32,
    /// `None` where it has none, or where the kernel does not tell: that takes CAP_SYS_ADMIN.
    name: Option<String>,
}

impl Occupant {
    fn may_go(&self) -> bool {
        self.name.as_deref().is_none_or(|name| name == program::XDP)
    }

    fn refusal(self) -> DataplaneError {
        DataplaneError::Occupied {
            interface: self.interface,
            program: attach::shown_name(self.name),
            id: self.id,
        }
    }
}

fn occupant(config: &Config, facts: &HostFacts) -> Result<Option<Occupant>> {
    for name in &config.node.interfaces {
        let interface = facts
            .interface(name)
            .with_context(|| format!("there is no interface {name}"))?;
        if let Some(xdp) = interface.link.xdp
            && attach::own_program(&config.node.pin_path, name) != Some(xdp.program)
        {
            return Ok(Some(Occupant {
                interface: name.clone(),
                id: xdp.program,
                name: attach::program_name(xdp.program),
            }));
        }
    }
    Ok(None)
}
