//! What the tests of xdp-lb stand on: the network testbed and the demo.

pub mod demo;
pub mod testbed;
