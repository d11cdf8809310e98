//! `cargo xtask demo`: see `lb_tests::demo`.

use std::process::ExitCode;

use clap::Parser;
use lb_tests::{demo, testbed};

fn main() -> ExitCode {
    // Panics abort, so no destructor would run: clean up in the hook.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        testbed::remove_all_of_this_process();
    }));
    match demo::run(&demo::Options::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
