//! The suite.
mod scenes;
mod stage;

use anyhow::Result;
use lb_userspace::bench::measure::{Plan, measure};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |place: usize, usual: u32| {
        arguments
            .get(place)
            .and_then(|text| text.parse().ok())
            .unwrap_or(usual)
    };
    let plan = Plan {
        laps: number(1, 31),
        bursts: number(2, 31),
    };
    let (mut rows, _stages) = scenes::rows()?;
    let samples = measure(&mut rows, plan, |_| Ok(()));
    for stage in &_stages { eprintln!("{:?} dir {:x} feat {:?}", stage.executor.maps.verdicts()?, stage.executor.maps.control().directory.get(), stage.executor.maps.features()); }
 let samples = samples?;
    let floor = samples
        .iter()
        .find(|s| s.name == "floor")
        .and_then(|s| s.net());
    for sample in &samples {
        let (Some(net), Some(floor)) = (sample.net(), floor) else {
            continue;
        };
        println!(
            "{:20} base {:6.2}/{:6.2} net {:6.2}/{:6.2} ratio {:5.2}",
            sample.name,
            sample.base.min().unwrap_or_default(),
            sample.base.median().unwrap_or_default(),
            net.min,
            net.median,
            net.ratio(&floor).unwrap_or_default()
        );
    }
    Ok(())
}
