//! What the tests of xdp-lb are made of.

pub mod packets;
