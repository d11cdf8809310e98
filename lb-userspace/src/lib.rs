//! The controller of xdp-lb and everything its command line is made of.

pub mod api;
pub mod bench;
pub mod cli;
pub mod config;
pub mod control;
#[cfg(test)]
mod counting;
pub mod dataplane;
pub mod health;
mod heap;
pub mod maglev;
pub mod neighbour;
