//! The tasks of xdp-lb: `cargo xtask setup|build|test|demo|bench`.
//!
//! Each one starts from a machine with nothing but a Rust toolchain and installs what it lacks. All that xtask
//! itself has to say goes to standard error; standard output belongs to what a task runs.

mod bench;
mod build;
mod demo;
mod leftovers;
mod privilege;
mod setup;
mod sources;
mod test;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{setup::Needs, workspace::Workspace};

/// The build, test, demo and benchmark tasks of xdp-lb.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what building, testing and the demo need and this machine lacks
    Setup,
    /// Build the kernel object and, with it inside, target/release/xdp-lb
    Build,
    /// Check format and lints, then run every test; the end-to-end tests run as root
    Test {
        /// Run only the tests whose name contains this
        name_filter: Option<String>,
    },
    /// Watch xdp-lb spread, fail over and drain real requests in a network of namespaces
    Demo(demo::Arguments),
    /// Measure nanoseconds per packet against the least that a balancer must do
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    let result = Workspace::find().and_then(|workspace| match Arguments::parse().task {
        Task::Setup => setup::ensure(&workspace, Needs::EVERYTHING).map(|_| ()),
        Task::Build => build::run(&workspace),
        Task::Test { name_filter } => test::run(&workspace, name_filter.as_deref()),
        Task::Demo(arguments) => demo::run(&workspace, &arguments),
        Task::Bench(arguments) => bench::run(&workspace, &arguments),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
