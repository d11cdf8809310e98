//! The program as the kernel really runs it: what its verifier made of the kernel object ("translated", as
//! `bpftool prog dump xlated` shows it), and what a packet executes of that.

pub mod dump;
pub mod machine;
pub mod paths;
pub mod table;
