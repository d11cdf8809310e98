//! Nanoseconds per packet of a loaded program on this machine: packets, bursts, and what is made of the figures.
//!
//! The kernel runs the program over packets in memory (`BPF_PROG_TEST_RUN`); nothing is sent. What is told of a program is
//! its own time, NET: the time of preparing a packet and running the program, less that of preparing a packet and running a
//! program that returns at once. The suite (`cargo xtask bench`) and `xdp-lb bench` are both made of this.

pub mod figures;
pub mod frame;
pub mod machine;
pub mod measure;
pub mod results;
pub mod running;
pub mod table;
