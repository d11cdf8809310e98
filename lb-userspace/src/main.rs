//! xdp-lb.
fn main() {}
