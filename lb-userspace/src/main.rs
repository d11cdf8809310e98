//! xdp-lb: a layer-4 load balancer in the network driver. All of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    lb_userspace::cli::main()
}
