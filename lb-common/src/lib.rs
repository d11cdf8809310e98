//! What the kernel side and the userspace side of xdp-lb share: the data path, written once, and the map layouts.
//!
//! The data path is [`forward::process`]: a function generic over [`packet::Packet`] (how bytes are reached) and
//! [`tables::Tables`] (how maps are reached). The kernel program is that function over `xdp_md` and BPF maps; the
//! tests, the fuzzer and `xdp-lb where` run the very same function over byte buffers and plain memory.
//!
//! A packet walks the modules in this order: [`parse`] → [`service`] → [`hash`] → [`pick`] → [`transition`] (only where
//! flows are recorded) → [`vlan`] → [`rewrite`]; a later fragment takes the short way through [`fragment`]; [`arp`], [`ndp`]
//! and [`icmp`] answer for the VIPs; [`cluster`] hears of a cluster's nodes that this one has been replaced ([`fence`]), or tells
//! them that it is there ([`presence`]); [`verdict`] names every end it can come to. What differs between IPv4 and IPv6 is in
//! [`address`], what a configuration does not use in [`features`].
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod abi;
pub mod address;
pub mod arp;
pub mod cluster;
pub mod features;
pub mod fence;
pub mod flow;
pub mod forward;
pub mod fragment;
pub mod hash;
pub mod hot;
pub mod icmp;
pub mod memory;
pub mod ndp;
pub mod packet;
pub mod parse;
pub mod pick;
#[cfg(any(test, feature = "plain"))]
pub mod plain;
pub mod presence;
pub mod rewrite;
pub mod service;
pub mod settled;
pub mod tables;
pub mod transition;
pub mod verdict;
pub mod vlan;
pub mod wire;
