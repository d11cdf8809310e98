//! The library of xdp-lb.

pub mod config;
