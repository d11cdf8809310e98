//! The library of xdp-lb.

pub mod health;
pub mod neighbour;
