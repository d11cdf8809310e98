//! Attaching the program to an interface, replacing it without a moment without one, and taking it away.

use std::{
    io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode,
        links::{FdLink, PinnedLink},
        loaded_programs,
        tc::{SchedClassifierLink, qdisc_add_clsact, qdisc_detach_program},
        xdp::XdpLink,
    },
    util::KernelVersion,
};
use lb_common::abi::program;

use super::DataplaneError;

/// How the program runs on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver.
    Native,
    /// In the network stack, on a packet that is already an `sk_buff`: several times slower.
    Generic,
}

impl Mode {
    /// The name in `status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// Which mode is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Native, else generic.
    Auto,
    /// Native or nothing.
    Native,
    /// Generic.
    Generic,
}

/// What came of an attachment.
#[derive(Debug)]
pub struct Attached {
    /// The mode it got; `None` where an existing link was taken over, whose mode the kernel tells by the interface.
    pub mode: Option<Mode>,
    /// Why it did not get the native mode, where `auto` fell back.
    pub fallback: Option<io::Error>,
    /// Whether an existing link was taken over.
    pub adopted: bool,
    /// The kernel's id of the program.
    pub program_id: u32,
}

/// Where an interface's link is pinned.
#[must_use]
pub fn link_path(pin_path: &Path, interface: &str) -> PathBuf {
    pin_path.join("links").join(interface)
}

/// The kernel's id of the program that our pinned link on this interface runs, if there is such a link.
#[must_use]
pub fn own_program(pin_path: &Path, interface: &str) -> Option<u32> {
    let link = FdLink::from(PinnedLink::from_pin(link_path(pin_path, interface)).ok()?);
    let id = link.info().ok()?.program_id();
    // Dropping an FdLink closes our descriptor; the pin keeps the link.
    drop(link);
    Some(id)
}

/// The name of a loaded program; `None` where it has none, or where the kernel does not tell (it takes CAP_SYS_ADMIN).
#[must_use]
pub fn program_name(id: u32) -> Option<String> {
    loaded_programs()
        .filter_map(Result::ok)
        .find(|info| info.id() == id)
        .and_then(|info| info.name_as_str().map(str::to_owned))
        .filter(|name| !name.is_empty())
}

/// What a message says for a program's name.
#[must_use]
pub fn shown_name(name: Option<String>) -> String {
    name.unwrap_or_else(|| "a program without a name".into())
}

/// Attaches the program of `object` to an interface, or puts it in place of the one that our pinned link runs.
///
/// `occupant` is the id of the XDP program that the interface has now, if any.
///
/// # Errors
/// [`DataplaneError::Occupied`] where somebody else's program is attached, which stays untouched;
/// [`DataplaneError::NoNative`] where native mode was demanded and is not to be had.
pub fn attach(
    object: &mut Ebpf,
    pin_path: &Path,
    interface: &str,
    ifindex: u32,
    wanted: Wanted,
    occupant: Option<u32>,
) -> Result<Attached, DataplaneError> {
    let xdp = xdp_program(object)?;
    let path = link_path(pin_path, interface);
    let own = own_program(pin_path, interface);
    if let Some(id) = occupant
        && own != Some(id)
    {
        return Err(DataplaneError::Occupied {
            interface: interface.into(),
            program: shown_name(program_name(id)),
            id,
        });
    }
    xdp.load()
        .map_err(|e| failed("loading the XDP program", e))?;
    let program_id = xdp
        .info()
        .map_err(|e| failed("asking for the program's id", e))?
        .id();

    if own.is_some() && occupant.is_some() {
        let link = PinnedLink::from_pin(&path).map_err(|e| {
            DataplaneError::io(format!("opening {}", path.display()), io::Error::other(e))
        })?;
        let link = XdpLink::try_from(FdLink::from(link)).map_err(|e| {
            DataplaneError::io(
                format!("{} is no XDP link", path.display()),
                io::Error::other(e),
            )
        })?;
        let id = xdp
            .attach_to_link(link)
            .map_err(|e| failed("replacing the program", e))?;
        // Forget the link without detaching: the pin keeps it.
        let link = xdp
            .take_link(id)
            .map_err(|e| failed("taking the link", e))?;
        drop(FdLink::try_from(link));
        return Ok(Attached {
            mode: None,
            fallback: None,
            adopted: true,
            program_id,
        });
    }
    // A pin whose interface is gone: its link can never run again.
    if own.is_some() || path.exists() {
        std::fs::remove_file(&path).map_err(|e| {
            DataplaneError::io(format!("removing the dead link {}", path.display()), e)
        })?;
    }

    let (id, mode, fallback) = match wanted {
        Wanted::Generic => (attach_mode(xdp, ifindex, XdpMode::Skb), Mode::Generic, None),
        Wanted::Native => (
            attach_mode(xdp, ifindex, XdpMode::Driver),
            Mode::Native,
            None,
        ),
        Wanted::Auto => match attach_mode(xdp, ifindex, XdpMode::Driver) {
            Err(source) if no_native(&source) => (
                attach_mode(xdp, ifindex, XdpMode::Skb),
                Mode::Generic,
                Some(source),
            ),
            result => (result, Mode::Native, None),
        },
    };
    let link = id.map_err(|source| {
        if wanted == Wanted::Native && no_native(&source) {
            DataplaneError::NoNative {
                interface: interface.into(),
                source,
            }
        } else {
            DataplaneError::io(format!("attaching the XDP program to {interface}"), source)
        }
    })?;
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(|e| {
            DataplaneError::io(format!("making the directory {}", dir.display()), e)
        })?;
    }
    link.pin(&path).map_err(|e| {
        DataplaneError::io(
            format!("pinning the link to {}", path.display()),
            io::Error::other(e),
        )
    })?;
    Ok(Attached {
        mode: Some(mode),
        fallback,
        adopted: false,
        program_id,
    })
}

fn attach_mode(xdp: &mut Xdp, ifindex: u32, mode: XdpMode) -> Result<FdLink, io::Error> {
    let id = xdp
        .attach_to_if_index(ifindex, mode)
        .map_err(|error| match error {
            ProgramError::SyscallError(call) => call.io_error,
            other => io::Error::other(other),
        })?;
    let link = xdp.take_link(id).map_err(io::Error::other)?;
    // aya falls back to netlink on its own; such a link can't be pinned, and would end with the process.
    FdLink::try_from(link).map_err(|_error| {
        io::Error::other("the kernel has no XDP links (they came with Linux 5.9)")
    })
}

/// Whether the kernel's answer means that the driver has no native XDP: the error numbers of `dev_xdp_attach` and of the
/// drivers' `ndo_bpf`.
fn no_native(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS | libc::ERANGE | libc::ENOMEM)
    )
}

/// The probes' egress program on one interface; it lives as long as this value.
#[derive(Debug)]
pub struct ProbeEgress {
    _link: SchedClassifierLink,
}

/// Attaches the egress program that aims probes.
///
/// # Errors
/// [`DataplaneError::Program`].
pub fn attach_probe(object: &mut Ebpf, interface: &str) -> Result<ProbeEgress, DataplaneError> {
    if !KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0)) {
        // Without TCX, a daemon that was killed left its filter behind, and the filter needs this queueing discipline. It may
        // be there already, for somebody else's filters as well, so nobody takes it away again.
        let _ = qdisc_detach_program(interface, TcAttachType::Egress, program::PROBE);
        let _ = qdisc_add_clsact(interface);
    }
    let classifier: &mut SchedClassifier = object
        .program_mut(program::PROBE)
        .ok_or_else(|| missing(program::PROBE))?
        .try_into()
        .map_err(|e| failed("the probes' egress program", e))?;
    classifier
        .load()
        .map_err(|e| failed("loading the probes' egress program", e))?;
    let id = classifier
        .attach(interface, TcAttachType::Egress)
        .map_err(|e| {
            failed(
                &format!("attaching the probes' egress program to {interface}"),
                e,
            )
        })?;
    let link = classifier
        .take_link(id)
        .map_err(|e| failed("taking the link", e))?;
    Ok(ProbeEgress { _link: link })
}

/// Takes the XDP program off an interface by removing its pinned link.
///
/// # Errors
/// [`DataplaneError::Io`].
pub fn detach(pin_path: &Path, interface: &str) -> Result<(), DataplaneError> {
    let path = link_path(pin_path, interface);
    match std::fs::remove_file(&path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(DataplaneError::io(
            format!("removing {}", path.display()),
            error,
        )),
    }
}

/// The interfaces that have a pinned link.
///
/// # Errors
/// [`DataplaneError::Io`].
pub fn pinned_interfaces(pin_path: &Path) -> Result<Vec<String>, DataplaneError> {
    let dir = pin_path.join("links");
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(DataplaneError::io(
                format!("reading {}", dir.display()),
                error,
            ));
        }
    };
    Ok(entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect())
}

/// Removes everything that is pinned: the data path stops.
///
/// # Errors
/// [`DataplaneError::Io`].
pub fn remove_pins(pin_path: &Path) -> Result<(), DataplaneError> {
    for interface in pinned_interfaces(pin_path)? {
        detach(pin_path, &interface)?;
    }
    match std::fs::remove_dir_all(pin_path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(DataplaneError::io(
            format!("removing {}", pin_path.display()),
            error,
        )),
    }
}

/// The XDP program of a loaded object.
///
/// # Errors
/// [`DataplaneError::Program`] where the object does not have it.
pub fn xdp_program(object: &mut Ebpf) -> Result<&mut Xdp, DataplaneError> {
    object
        .program_mut(program::XDP)
        .ok_or_else(|| missing(program::XDP))?
        .try_into()
        .map_err(|e| failed("the XDP program", e))
}

fn failed(what: &str, source: ProgramError) -> DataplaneError {
    DataplaneError::Program {
        what: what.into(),
        source: Box::new(source),
    }
}

fn missing(name: &str) -> DataplaneError {
    DataplaneError::Foreign {
        path: name.into(),
        what: "the kernel object does not have this program".into(),
    }
}
