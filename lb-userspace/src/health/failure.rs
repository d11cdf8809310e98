//! Why a probe failed, in the words the operator reads in `status`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

/// Why a probe failed. `Display` is the reason shown in `status` and in the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeFailure {
    /// The backend answered with a reset: it is alive, nothing listens there.
    #[error("connection refused on {target}")]
    Refused {
        /// Where the connection was refused.
        target: SocketAddr,
    },
    /// No answer to the connection request.
    #[error("no answer from {target} within {}{}", milliseconds(*.timeout), hint(*.alive))]
    TimedOut {
        /// Who did not answer.
        target: SocketAddr,
        /// How long the probe waited.
        timeout: Duration,
        /// The backend's own address, if that one refused a connection meanwhile. The host lives
        /// then, but whether it lacks the VIP or a filter ate the probe can't be told apart.
        alive: Option<SocketAddr>,
    },
    /// The backend accepts connections on its own address, but the VIP does not answer there.
    #[error(
        "VIP not served: answers on {address} but not on {} (is the VIP on its loopback?)",
        .vip.ip()
    )]
    VipNotServed {
        /// The VIP and port that did not answer.
        vip: SocketAddr,
        /// The backend's address, which did.
        address: IpAddr,
    },
    /// The network said that the target can't be reached: an ICMP error, no route, or no answer
    /// to the director's ARP request.
    #[error("{target} is unreachable: {error}")]
    Unreachable {
        /// Who can't be reached.
        target: SocketAddr,
        /// The kernel's words.
        error: String,
    },
    /// The connection broke before the answer was whole.
    #[error("{target} closed the connection before its answer was complete")]
    Reset {
        /// Who broke it.
        target: SocketAddr,
    },
    /// Connected, but the HTTP answer was not whole in time.
    #[error("{target} accepts connections, but its HTTP answer was not complete within {}", milliseconds(*.timeout))]
    HttpTimedOut {
        /// Who was too slow.
        target: SocketAddr,
        /// How long the probe waited, connecting included.
        timeout: Duration,
    },
    /// An HTTP answer with the wrong status.
    #[error("HTTP status {found} from {target}{path}, expected {}", range(.expected))]
    HttpStatus {
        /// Who answered.
        target: SocketAddr,
        /// What was asked for.
        path: String,
        /// The status of the answer.
        found: u16,
        /// The statuses that mean healthy.
        expected: RangeInclusive<u16>,
    },
    /// The answer is not HTTP.
    #[error("{target} does not answer in HTTP: {error}")]
    HttpProtocol {
        /// Who answered.
        target: SocketAddr,
        /// What is wrong with the answer.
        error: String,
    },
    /// The backend's MAC address is not known, so nothing can be sent to it.
    #[error("no MAC address: {0}")]
    NoMac(String),
    /// The director itself could not send the probe; nothing is known about the backend.
    #[error("not probed, trouble on this director: {action}: {error}")]
    Local {
        /// What the director tried to do.
        action: &'static str,
        /// Why that failed.
        error: String,
    },
}

impl ProbeFailure {
    /// The director's own trouble, which says nothing about the backend.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Local { .. })
    }

    /// Certain without a second look: counts at once, whatever `fall` says.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        // The kernel asked three times for the MAC before it gave up, and without one no packet
        // can be sent there.
        matches!(self, Self::NoMac(_))
    }

    pub(super) fn local(action: &'static str, error: &impl ToString) -> Self {
        Self::Local {
            action,
            error: error.to_string(),
        }
    }

    /// What an error of `connect` or of the connection says.
    pub(super) fn from_io(error: &io::Error, target: SocketAddr, timeout: Duration) -> Self {
        match error.raw_os_error() {
            Some(libc::ECONNREFUSED) => Self::Refused { target },
            Some(libc::ETIMEDOUT) => Self::TimedOut {
                target,
                timeout,
                alive: None,
            },
            Some(libc::ECONNRESET | libc::EPIPE) => Self::Reset { target },
            // What ICMP errors become (RFC 1122 4.2.3.9; net/ipv4/icmp.c, icmp_err_convert), and
            // EHOSTUNREACH of an ARP request without an answer.
            Some(
                libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::ENOPROTOOPT
                | libc::EPROTO,
            ) => Self::Unreachable {
                target,
                error: error.to_string(),
            },
            _ => Self::local("connect", error),
        }
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}

fn hint(own: Option<SocketAddr>) -> String {
    own.map_or_else(String::new, |own| {
        format!("; the host is alive (it refuses on {own}): is the VIP on its loopback?")
    })
}

fn range(range: &RangeInclusive<u16>) -> String {
    if range.start() == range.end() {
        range.start().to_string()
    } else {
        format!("{}-{}", range.start(), range.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_read_well() {
        let target: SocketAddr = "10.1.0.100:80".parse().unwrap();
        let timeout = Duration::from_millis(500);
        let cases: [(ProbeFailure, &str); 11] = [
            (
                ProbeFailure::Refused { target },
                "connection refused on 10.1.0.100:80",
            ),
            (
                ProbeFailure::TimedOut {
                    target,
                    timeout,
                    alive: None,
                },
                "no answer from 10.1.0.100:80 within 500 ms",
            ),
            (
                ProbeFailure::TimedOut {
                    target,
                    timeout,
                    alive: Some("10.1.0.11:80".parse().unwrap()),
                },
                "no answer from 10.1.0.100:80 within 500 ms; the host is alive (it refuses on \
                 10.1.0.11:80): is the VIP on its loopback?",
            ),
            (
                ProbeFailure::VipNotServed {
                    vip: target,
                    address: "10.1.0.11".parse().unwrap(),
                },
                "VIP not served: answers on 10.1.0.11 but not on 10.1.0.100 (is the VIP on its \
                 loopback?)",
            ),
            (
                ProbeFailure::from_io(
                    &io::Error::from_raw_os_error(libc::EHOSTUNREACH),
                    target,
                    timeout,
                ),
                "10.1.0.100:80 is unreachable: No route to host (os error 113)",
            ),
            (
                ProbeFailure::Reset { target },
                "10.1.0.100:80 closed the connection before its answer was complete",
            ),
            (
                ProbeFailure::HttpTimedOut { target, timeout },
                "10.1.0.100:80 accepts connections, but its HTTP answer was not complete within \
                 500 ms",
            ),
            (
                ProbeFailure::HttpStatus {
                    target,
                    path: "/healthz".into(),
                    found: 503,
                    expected: 200..=299,
                },
                "HTTP status 503 from 10.1.0.100:80/healthz, expected 200-299",
            ),
            (
                ProbeFailure::HttpStatus {
                    target,
                    path: "/".into(),
                    found: 404,
                    expected: 200..=200,
                },
                "HTTP status 404 from 10.1.0.100:80/, expected 200",
            ),
            (
                ProbeFailure::NoMac("no ARP answer from 10.1.0.11 on eth0".into()),
                "no MAC address: no ARP answer from 10.1.0.11 on eth0",
            ),
            (
                ProbeFailure::local("SO_MARK", &"Operation not permitted"),
                "not probed, trouble on this director: SO_MARK: Operation not permitted",
            ),
        ];
        for (failure, text) in cases {
            assert_eq!(failure.to_string(), text);
        }
    }

    #[test]
    fn errors_of_the_director_are_told_from_those_of_the_backend() {
        let target: SocketAddr = "10.1.0.100:80".parse().unwrap();
        let of = |errno| {
            ProbeFailure::from_io(
                &io::Error::from_raw_os_error(errno),
                target,
                Duration::from_secs(1),
            )
        };
        for errno in [
            libc::EMFILE,
            libc::EADDRNOTAVAIL,
            libc::EPERM,
            libc::ENOBUFS,
        ] {
            assert!(of(errno).is_local(), "errno {errno}: {}", of(errno));
        }
        for errno in [
            libc::ECONNREFUSED,
            libc::EHOSTUNREACH,
            libc::ECONNRESET,
            libc::ETIMEDOUT,
        ] {
            assert!(!of(errno).is_local(), "errno {errno}: {}", of(errno));
        }
    }
}
