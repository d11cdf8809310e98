//! The data path as a table of cases: what is in the maps, what comes in, what goes out.
//!
//! A [`case::Case`] is run over byte buffers and plain memory, and through the kernel's own run of the loaded program
//! ([`both::Both`]); the two must agree on everything that can be seen from outside.

pub mod both;
pub mod case;
pub mod cases;
pub mod differential;
pub mod fixture;
pub mod frame;
pub mod kernel;
pub mod network;
pub mod random;
