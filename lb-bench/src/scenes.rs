//! The configurations that are measured.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::stage::INTERFACE;

/// The VIP of the scenes with one service.
pub(crate) const VIP4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The same of IPv6.
pub(crate) const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
/// Nobody's VIP.
pub(crate) const OTHER4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 77);
/// The service's port, or the first one.
pub(crate) const PORT: u16 = 8000;
/// The first VIP of many: of 198.18.0.0/15, which is for benchmarks (RFC 2544, appendix C.2.2).
pub(crate) const FIRST_VIP: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 0);

/// How a configuration differs from one that says nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scene {
    /// The VIP.
    pub(crate) vip: IpAddr,
    /// Backends of each service.
    pub(crate) backends: u32,
    /// 2 to this power are the VIPs, from [`FIRST_VIP`] on, unless there is one.
    pub(crate) vip_bits: u8,
    /// 2 to this power are the services of each VIP.
    pub(crate) port_bits: u8,
    /// `flows` in `[limits]`, if it is stated.
    pub(crate) flows: Option<u32>,
    /// Further keys of each service.
    pub(crate) keys: &'static str,
}

impl Scene {
    /// One service with ten backends.
    pub(crate) const fn one(vip: IpAddr) -> Self {
        Self {
            vip,
            backends: 10,
            vip_bits: 0,
            port_bits: 0,
            flows: None,
            keys: "",
        }
    }

    /// The configuration file. No backend is probed.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("[node]\nname = \"bench\"\ninterfaces = [\"{INTERFACE}\"]\n");
        if let Some(flows) = self.flows {
            let _ = write!(text, "[limits]\nflows = {flows}\n");
        }
        for number in 0..1_u32 << self.vip_bits {
            let vip = match self.vip {
                IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits() + number).into(),
                IpAddr::V6(first) => {
                    Ipv6Addr::from_bits(first.to_bits() + u128::from(number)).into()
                }
            };
            for place in 0..1_u16 << self.port_bits {
                self.service(&mut text, number, vip, PORT + place);
            }
        }
        text
    }

    fn service(&self, text: &mut String, number: u32, vip: IpAddr, port: u16) {
        let _ = write!(
            text,
            "[[service]]\nname = \"s{number}-{port}\"\nvip = \"{vip}\"\nprotocol = \"tcp+udp\"\nports = [{port}]\n{}\n\
             [service.probe]\ntype = \"none\"\n",
            self.keys
        );
        for number in 1..=self.backends {
            let address: IpAddr = if vip.is_ipv4() {
                Ipv4Addr::from_bits(0x0a00_0000 + number).into()
            } else {
                Ipv6Addr::from_bits(0x2001_0db8_0000_0000_0000_0000_0001_0000 + u128::from(number))
                    .into()
            };
            let _ = write!(
                text,
                "[[service.backend]]\nname = \"b{number}\"\naddress = \"{address}\"\n"
            );
        }
    }
}
