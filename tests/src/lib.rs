//! What the tests of xdp-lb stand on: packets and their fixtures, the network testbed, and the demo.

pub mod controller;
pub mod demo;
pub mod packets;
pub mod testbed;
pub mod translated;
