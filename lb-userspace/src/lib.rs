//! The controller of xdp-lb and everything its command line is made of.

pub mod api;
pub mod cli;
