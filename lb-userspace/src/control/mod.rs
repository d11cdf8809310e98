//! The controller: desired state against actual state, and the daemon around it.
//!
//! [`reconcile`] and [`sweep`] are pure and know neither kernel nor time; [`daemon`] feeds them events and has
//! [`execute`] do what they say.

pub mod actual;
pub mod adopt;
pub mod announce;
pub mod areas;
pub mod cluster;
pub mod comeback;
pub mod daemon;
pub mod decisions;
pub mod desired;
pub mod directory;
pub mod execute;
pub mod failback;
pub mod failure;
pub mod features;
pub mod fencing;
pub mod fixed;
pub mod following;
pub mod fragments;
pub mod hot;
pub mod knowledge;
pub mod memory;
pub mod occupied;
pub mod orders;
pub mod pace;
pub mod peers;
pub mod ports;
pub mod prepared;
pub mod presence;
pub mod probe_routes;
pub mod reconcile;
pub mod regions;
pub mod report;
pub mod retarget;
pub mod silence;
pub mod siphash;
pub mod startup;
pub mod sweep;
pub mod sweeper;
pub mod vip_groups;
pub mod voice;
pub mod words;

#[cfg(test)]
mod cluster_simulation;
#[cfg(test)]
mod cluster_tests;
#[cfg(test)]
mod guards;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod simulation;

pub use daemon::{Options, run};
