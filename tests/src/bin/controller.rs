//! What the controller takes: see `lb_tests::controller`.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use lb_tests::{controller, testbed};

/// Measures the controller of xdp-lb from outside.
#[derive(Debug, Parser)]
struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The time of a start, from nothing and with what was pinned
    Load {
        /// How many services
        #[arg(default_value_t = 4096)]
        services: usize,
        /// How many backends each has
        #[arg(default_value_t = 16)]
        backends: usize,
    },
    /// Memory and processor time of a daemon that only probes
    Idle {
        /// How many backends are probed, each once a second
        #[arg(default_value_t = 1000)]
        backends: usize,
        /// For how many seconds it is watched
        #[arg(long, default_value_t = 20)]
        seconds: u64,
    },
    /// The time from a probe's verdict to the last store
    Failures {
        /// How many backends the service has whose backends fail
        #[arg(default_value_t = 1000)]
        backends: usize,
        /// How many other services there are, of sixteen backends each
        #[arg(default_value_t = 0)]
        others: usize,
        /// How many backends fail, one after the other
        #[arg(long, default_value_t = 5)]
        times: usize,
        /// After how many failed probes; at the first one nothing is prepared
        #[arg(long, default_value_t = 2)]
        fall: u32,
    },
}

fn main() -> ExitCode {
    // Panics abort, so no destructor would run: clean up in the hook.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        testbed::remove_all_of_this_process();
    }));
    match run(&Options::parse().what) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(what: &What) -> testbed::Result<()> {
    match *what {
        What::Load { services, backends } => {
            let [fresh, again] = controller::load(services, backends)?;
            println!("from nothing: {fresh:#?}\nwith what was pinned: {again:#?}");
        }
        What::Idle { backends, seconds } => {
            let idle = controller::idle(backends, Duration::from_secs(seconds))?;
            println!("{idle:#?}");
        }
        What::Failures {
            backends,
            others,
            times,
            fall,
        } => {
            for apply in controller::failures(backends, others, times, fall)? {
                println!("{apply:?}");
            }
        }
    }
    Ok(())
}
