//! The kernel's side as userspace sees it: load, attach, pin, and one typed facade over the maps.

pub mod attach;
mod batch;
mod bench_object;
pub mod bpffs;
pub mod clock;
mod direct;
pub mod explain;
pub mod layout;
pub mod live;
pub mod load;
pub mod mapped;
pub mod maps;
pub mod memory;
pub mod rig;

pub use layout::MapFacts;
pub use load::{Instance, Sizes};
pub use maps::{Access, Maps};

/// The kernel object, built by `cargo xtask build`.
pub static KERNEL_OBJECT: &[u8] = aya::include_bytes_aligned!(env!("XDP_LB_KERNEL_OBJECT"));

/// The benchmark's own programs, which are no part of the data path; built by the same task.
pub static BENCH_OBJECT: &[u8] = aya::include_bytes_aligned!(env!("XDP_LB_BENCH_OBJECT"));

/// Everything that can go wrong between userspace and the kernel's side.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// The kernel refused the program or a map.
    #[error("the kernel did not take the program: {0}")]
    Load(#[from] Box<aya::EbpfError>),
    /// A program could not be loaded or attached.
    #[error("{what}: {source}")]
    Program {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: Box<aya::programs::ProgramError>,
    },
    /// A map could not be read or written.
    #[error("map {map}: {source}")]
    Map {
        /// The map's name.
        map: &'static str,
        /// What the kernel said.
        source: Box<aya::maps::MapError>,
    },
    /// A pin is there, but not of this version.
    #[error(
        "the maps pinned under {path} have layout version {found}, this xdp-lb has {expected}: run the xdp-lb that \
         made them, or remove them with `rm -r {path}` (which stops forwarding) and start again"
    )]
    OtherVersion {
        /// The pin path.
        path: String,
        /// Version of the pins.
        found: u32,
        /// Version of this program.
        expected: u32,
    },
    /// Whoever made the pins did not come to an end.
    #[error(
        "the maps under {path} are half made: xdp-lb was interrupted in its start; start it again with `xdp-lb run`, which \
         makes them anew"
    )]
    HalfMade {
        /// The pin path.
        path: String,
    },
    /// A pin is there, but is not what the name says.
    #[error(
        "{path} is pinned, but {what}: it was not made by this xdp-lb; remove it or choose another `pin_path`"
    )]
    Foreign {
        /// The pin.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// Nothing is pinned.
    #[error(
        "no maps are pinned under {path}: xdp-lb has not run here since boot, or was told to detach; start it with `xdp-lb run`"
    )]
    NotPinned {
        /// The pin path.
        path: String,
    },
    /// Not enough rights.
    #[error("{what} needs root (CAP_BPF and CAP_NET_ADMIN): run it with sudo")]
    Privileges {
        /// What was tried.
        what: String,
    },
    /// Another program is attached.
    #[error(
        "{interface} already has an XDP program: {program} (id {id}); detach it first (`ip link set dev {interface} xdp off`), or \
         take {interface} out of `interfaces`"
    )]
    Occupied {
        /// The interface.
        interface: String,
        /// The name of the attached program.
        program: String,
        /// Its id.
        id: u32,
    },
    /// Native XDP was demanded, and the driver has none.
    #[error(
        "{interface} has no native XDP ({source}): set `xdp_mode = \"auto\"` to fall back to generic XDP, which costs several times the time per packet"
    )]
    NoNative {
        /// The interface.
        interface: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The maps would not fit.
    #[error(transparent)]
    NoRoom(#[from] memory::NoRoom),
    /// An input or output error.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl DataplaneError {
    pub(crate) fn io(what: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::Io {
            what: what.into(),
            source: source.into(),
        }
    }

    pub(crate) fn map(map: &'static str, source: aya::maps::MapError) -> Self {
        Self::Map {
            map,
            source: Box::new(source),
        }
    }
}
