//! What a network card does with VLAN tags before the host sees the frames.

use std::{io, os::fd::AsRawFd as _};

// include/uapi/linux/ethtool.h
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETH_FLAG_RXVLAN: u32 = 1 << 8;

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    value: u32,
}

/// Whether the interface takes the VLAN tag off the frames it receives (`rxvlan` of `ethtool -k`), so that XDP never sees
/// it; `None` where that can't be told.
#[must_use]
pub fn strips_tags(interface: &str) -> Option<bool> {
    let flags = flags(interface).ok()?;
    Some(flags & ETH_FLAG_RXVLAN != 0)
}

/// The flags that `ETHTOOL_GFLAGS` gives.
fn flags(interface: &str) -> io::Result<u32> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    let mut value = EthtoolValue {
        command: ETHTOOL_GFLAGS,
        value: 0,
    };
    // SAFETY: all zeroes are a valid `ifreq`: integers, byte arrays and a null pointer.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays the terminating zero.
    if interface.len() >= request.ifr_name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_data = std::ptr::from_mut(&mut value).cast();
    // SAFETY: SIOCETHTOOL takes an `ifreq` whose data points to a structure of the size its command word says; both live
    // until the call has returned.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_told() {
        assert_eq!(strips_tags("no-such-if"), None);
        assert_eq!(strips_tags("a name that no interface can have"), None);
    }

    /// The loopback has no card that could: the kernel says so.
    #[test]
    fn the_loopback_strips_nothing() {
        assert_eq!(strips_tags("lo"), Some(false));
    }
}
