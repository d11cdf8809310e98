//! The rows of the controller: `lb_tests::controller` runs the binary, and these say what came of it.

use std::{hint::black_box, time::Duration, time::Instant};

use anyhow::{Context as _, Result};
use lb_tests::controller::{self, Idle, Load};
use lb_userspace::{
    bench::{
        figures::Series,
        results::{Outcome, Unit},
    },
    maglev::{self, Member},
};

use crate::progress::Progress;

/// A table of 65,536 slots for a thousand backends of different weights.
const MAGLEV: &str = "maglev_65536x1000";
/// A failure, from the probe's verdict to the last store: one of sixteen backends, among 4,096 services.
const FAILOVER: &str = "failover_apply";
/// The same at the first probe that fails, for which nothing is prepared.
const FAILOVER_UNPREPARED: &str = "failover_apply_unprepared";
/// The same as the first: one of a thousand backends of one service.
const FAILOVER_1000: &str = "failover_apply_1000_backends";
/// A start until every slot of the last service has a backend.
const LOAD: &str = "load_4096_services";
/// The same with as many backends as there can be.
const LOAD_FULL: &str = "load_65535_backends";
const RSS: &str = "rss_1000_backends";
const RSS_FULL: &str = "rss_65535_backends";
const CPU: &str = "idle_cpu_1000_backends";

/// For so long an idle daemon is watched.
const WATCHED: Duration = Duration::from_secs(20);
/// Tables built for one figure.
const TABLES: usize = 200;
const MILLISECOND: f64 = 1e6;

/// The rows of the controller that are wanted. `quick` watches for a shorter time and lets fewer backends fail.
pub(crate) fn run(wanted: impl Fn(&str) -> bool, quick: bool) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    if wanted(MAGLEV) {
        outcomes.extend(time(MAGLEV, &tables(), Some(10.0 * MILLISECOND)));
    }
    let times = if quick { 2 } else { 7 };
    // A build without optimisation is to come to an end as well.
    let less = |number: usize| if quick { number / 40 } else { number };
    for (name, probed, others, fall) in [
        (FAILOVER, 16, less(4_000), 2),
        (FAILOVER_UNPREPARED, 16, less(4_000), 1),
        (FAILOVER_1000, less(1_000), 0, 2),
    ] {
        if wanted(name) {
            let _shown = Progress::spinner(name);
            let applied = controller::failures(probed, others, times, fall)
                .with_context(|| format!("measuring {name}"))?;
            let series = applied.iter().map(|apply| apply.duration_us as f64 * 1e3);
            outcomes.extend(time(name, &series.collect(), Some(MILLISECOND)));
        }
    }
    for (name, memory, services, backends, target) in [
        (LOAD, None, less(4_096), 1, Some(3_000.0 * MILLISECOND)),
        (LOAD_FULL, Some(RSS_FULL), less(4_096), 16, None),
    ] {
        if wanted(name) || memory.is_some_and(&wanted) {
            let _shown = Progress::spinner(name);
            let starts = if quick { 1 } else { 3 };
            let loads: Vec<Load> = (0..starts)
                .map(|_| Ok(controller::load(services, backends)?[0]))
                .collect::<Result<_>>()
                .with_context(|| format!("measuring {name}"))?;
            if wanted(name) {
                let series = loads.iter().map(|load| load.took.as_nanos() as f64);
                outcomes.extend(time(name, &series.collect(), target));
            }
            if let (Some(memory), Some(load)) = (memory, loads.last())
                && wanted(memory)
            {
                let bytes = load.resident.total() as f64;
                outcomes.push(Outcome::amount(memory, Unit::Bytes, bytes, None));
            }
        }
    }
    if wanted(RSS) || wanted(CPU) {
        let _shown = Progress::spinner(CPU);
        let watched = if quick { WATCHED / 4 } else { WATCHED };
        let Idle {
            resident,
            processor,
        } = controller::idle(less(1_000), watched).context("measuring an idle daemon")?;
        let (bytes, percent) = (resident.total() as f64, 100.0 * processor);
        let most = (64_u64 << 20) as f64;
        let rows = [
            (RSS, Unit::Bytes, bytes, most),
            (CPU, Unit::Percent, percent, 5.0),
        ];
        for (name, unit, value, most) in rows {
            if wanted(name) {
                outcomes.push(Outcome::amount(name, unit, value, Some(most)));
            }
        }
    }
    Ok(outcomes)
}

/// Nanoseconds of each table, of which one backend is missing: the slots are given away twice then.
fn tables() -> Series {
    let identities: Vec<String> = (0..1_000_u32)
        .map(|index| format!("be{index} 10.1.{}.{}", index / 250, index % 250))
        .collect();
    let mut members: Vec<Member<'_>> = identities
        .iter()
        .zip(1_u16..)
        .map(|(identity, number)| {
            let weight = 50 + u32::from(number.wrapping_mul(40_503)) % 101;
            Member::new(identity, weight, number)
        })
        .collect();
    members[700].weight = 0;
    (0..TABLES)
        .map(|_| {
            let begun = Instant::now();
            black_box(maglev::build(black_box(&members), 16));
            begun.elapsed().as_nanos() as f64
        })
        .collect()
}

/// `None` where nothing was measured: no failure was told of.
fn time(name: &str, series: &Series, target: Option<f64>) -> Option<Outcome> {
    Some(Outcome::time(name, series.min()?, series.median()?, target))
}
