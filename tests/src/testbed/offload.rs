//! Transmit checksum offload, switched off.
//!
//! A veth "offloads" a checksum by leaving it partial and telling its peer so in the packet's metadata. The metadata does
//! not survive XDP, and the receiver then drops the segment without a word.

use std::io;

use super::error::{IoContext, Result};
use super::namespace::Namespace;

// include/uapi/linux/ethtool.h
const ETHTOOL_STXCSUM: u32 = 0x17;

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    value: u32,
}

/// Does what `ethtool -K INTERFACE tx off` does.
pub(super) fn disable_transmit_checksum(namespace: &Namespace, interface: &str) -> Result<()> {
    namespace.run_in(|| disable(interface))?.to_do(|| {
        format!(
            "switch transmit checksum offload off for {interface} in {}",
            namespace.name()
        )
    })
}

fn disable(interface: &str) -> io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    let mut value = EthtoolValue {
        command: ETHTOOL_STXCSUM,
        value: 0,
    };
    // SAFETY: all zeroes are a valid `ifreq`: integers, byte arrays and a null pointer.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays the terminating zero.
    let room = request.ifr_name.len() - 1;
    if interface.len() > room {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("an interface name has at most {room} bytes"),
        ));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_data = std::ptr::from_mut(&mut value).cast();
    // SAFETY: SIOCETHTOOL takes an `ifreq` whose data points to a structure of the size its command word says; both live
    // until the call has returned.
    let result = unsafe {
        libc::ioctl(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            libc::SIOCETHTOOL,
            &raw mut request,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
