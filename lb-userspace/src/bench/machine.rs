//! Where it was measured, and whether that machine had something else to do.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

use super::measure::Sample;

/// Median lap over shortest lap, less one: beyond this, something else was running. A machine of one's own stays under 0.05.
const NOISY_SPREAD: f64 = 0.25;
/// Load average, per processor, beyond which something else was running before it began.
const NOISY_LOAD: f64 = 0.3;

/// Where and how it was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// How many there are.
    pub processors: u32,
    /// Whether a hypervisor is below.
    pub virtual_machine: bool,
    /// The kernel's release.
    pub kernel: String,
    /// `net.core.bpf_jit_enable`: whether programs are compiled; `null` where it can't be read.
    pub jit: Option<bool>,
    /// Whether the kernel measures every run itself (`kernel.bpf_stats_enabled`), which costs more than a run.
    pub bpf_stats: Option<bool>,
    /// The frequency governor; `null` where there is none to see, as in most virtual machines.
    pub governor: Option<String>,
    /// The clock.
    pub clocksource: Option<String>,
    /// The load average of the last minute before it began.
    pub load: Option<f64>,
    /// How far the laps of a program were apart: the median of the medians over the shortest, less one.
    pub spread: Option<f64>,
    /// The version that measured.
    pub version: String,
    /// Packets of a lap.
    pub packets_per_lap: u32,
    /// Laps of each program.
    pub laps: u32,
    /// Where the rows in [`Unit::Instructions`](super::results::Unit::Instructions) are of; `null` without them.
    #[serde(default)]
    pub vm: Option<VirtualMachine>,
}

/// A virtual machine whose clock counts instructions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VirtualMachine {
    /// Its kernel's release.
    pub kernel: String,
    /// The emulator's version.
    pub emulator: String,
    /// An instruction is 2 to this power nanoseconds of its clock.
    pub icount_shift: u8,
}

impl VirtualMachine {
    /// One line, which says what its rows are not.
    #[must_use]
    pub fn line(&self) -> String {
        format!(
            "Linux {} in QEMU {} (TCG, -icount shift={}): instructions of a frame, not comparable with nanoseconds",
            self.kernel, self.emulator, self.icount_shift
        )
    }
}

impl Machine {
    /// This one, now.
    #[must_use]
    pub fn read() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let flag = |path: &str| word(path).map(|value| value != "0");
        Self {
            processor: field(&cpuinfo, "model name").unwrap_or_else(|| "unknown".into()),
            processors: u32::try_from(cpuinfo.matches("\nprocessor").count() + 1).unwrap_or(1),
            virtual_machine: field(&cpuinfo, "flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            kernel: word("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".into()),
            jit: flag("/proc/sys/net/core/bpf_jit_enable"),
            bpf_stats: flag("/proc/sys/kernel/bpf_stats_enabled"),
            governor: word("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            clocksource: word("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            load: word("/proc/loadavg").and_then(|text| text.split(' ').next()?.parse().ok()),
            spread: None,
            version: env!("CARGO_PKG_VERSION").into(),
            packets_per_lap: crate::dataplane::rig::LAP,
            laps: 0,
            vm: None,
        }
    }

    /// Notes how far the laps are apart, and how many there are.
    pub fn note(&mut self, samples: &[Sample]) {
        let mut spreads: Vec<f64> = samples.iter().filter_map(|s| s.base.spread()).collect();
        spreads.sort_by(f64::total_cmp);
        self.spread = spreads.get(spreads.len() / 2).copied();
        let laps = samples.iter().map(|sample| sample.program.len()).max();
        self.laps = u32::try_from(laps.unwrap_or(0)).unwrap_or(u32::MAX);
    }

    /// One line.
    #[must_use]
    pub fn line(&self) -> String {
        let virtual_machine = if self.virtual_machine {
            ", virtual"
        } else {
            ""
        };
        let jit = match self.jit {
            Some(true) => "on",
            Some(false) => "off",
            None => "unknown",
        };
        format!(
            "{} x {}{virtual_machine}; Linux {}; JIT {jit}; governor {}; {} laps of {} packets",
            self.processors,
            self.processor,
            self.kernel,
            self.governor.as_deref().unwrap_or("none to see"),
            self.laps,
            self.packets_per_lap,
        )
    }

    /// What makes the figures doubtful, and what to do about it.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.jit == Some(false) {
            warnings.push(
                "the kernel interprets BPF programs: `sysctl net.core.bpf_jit_enable=1` compiles them".into(),
            );
        }
        if self.bpf_stats == Some(true) {
            warnings.push(
                "the kernel measures every run of a program itself, which takes longer than the run: \
                 `sysctl kernel.bpf_stats_enabled=0`"
                    .into(),
            );
        }
        if let Some(governor) = &self.governor
            && governor != "performance"
        {
            warnings.push(format!(
                "the frequency governor is {governor}: `cpupower frequency-set -g performance` keeps the clock where it is"
            ));
        }
        if let Some(load) = self.load
            && load > NOISY_LOAD * f64::from(self.processors)
        {
            warnings.push(format!(
                "the load average was {load:.1} on {} processors: something else was running",
                self.processors
            ));
        }
        if let Some(spread) = self.spread
            && spread > NOISY_SPREAD
        {
            warnings.push(format!(
                "the median lap took {:.0} % longer than the shortest: something else was running, here or on the host; \
                 minima and ratios mean more than medians",
                spread * 100.0
            ));
        }
        warnings
    }
}

/// The one word of a file.
fn word(path: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new(path)).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// A field of `/proc/cpuinfo`.
fn field(cpuinfo: &str, name: &str) -> Option<String> {
    cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quiet() -> Machine {
        Machine {
            processors: 4,
            jit: Some(true),
            load: Some(0.1),
            spread: Some(0.02),
            ..Machine::default()
        }
    }

    #[test]
    fn a_quiet_machine_is_not_warned_of() {
        assert_eq!(quiet().warnings(), Vec::<String>::new());
        assert_eq!(Machine::default().warnings(), Vec::<String>::new());
    }

    #[test]
    fn what_makes_figures_doubtful() {
        let cases = [
            (
                Machine {
                    jit: Some(false),
                    ..quiet()
                },
                "interprets",
            ),
            (
                Machine {
                    bpf_stats: Some(true),
                    ..quiet()
                },
                "bpf_stats_enabled",
            ),
            (
                Machine {
                    governor: Some("powersave".into()),
                    ..quiet()
                },
                "powersave",
            ),
            (
                Machine {
                    load: Some(2.5),
                    ..quiet()
                },
                "2.5 on 4",
            ),
            (
                Machine {
                    spread: Some(0.8),
                    ..quiet()
                },
                "80 %",
            ),
        ];
        for (machine, words) in cases {
            let warnings = machine.warnings();
            assert_eq!(warnings.len(), 1, "{warnings:?}");
            assert!(warnings[0].contains(words), "{warnings:?}");
        }
        let governed = Machine {
            governor: Some("performance".into()),
            ..quiet()
        };
        assert_eq!(governed.warnings(), Vec::<String>::new());
    }

    #[test]
    fn the_spread_is_that_of_the_row_in_the_middle() {
        let sample = |base: [f64; 3]| Sample {
            name: String::new(),
            base: base.into_iter().collect(),
            program: [1.0].into_iter().collect(),
        };
        let mut machine = quiet();
        machine.note(&[
            sample([10.0, 30.0, 30.0]),
            sample([10.0, 11.0, 12.0]),
            sample([10.0, 10.0, 10.0]),
        ]);
        assert!((machine.spread.expect("rows") - 0.1).abs() < 1e-9);
        assert_eq!(machine.laps, 1);
    }

    #[test]
    fn a_virtual_machine_is_named_with_what_it_is_not() {
        let vm = VirtualMachine {
            kernel: "6.1.0-56-amd64".into(),
            emulator: "7.2.22".into(),
            icount_shift: 0,
        };
        let line = vm.line();
        for part in [
            "Linux 6.1.0-56-amd64 in QEMU 7.2.22",
            "icount shift=0",
            "not comparable",
        ] {
            assert!(line.contains(part), "no {part} in {line}");
        }
        let machine = Machine {
            vm: Some(vm),
            ..quiet()
        };
        let mut json = serde_json::to_value(&machine).expect("serializes");
        assert_eq!(json["vm"]["icount_shift"], 0);
        // A file of an earlier version has none.
        json.as_object_mut().expect("an object").remove("vm");
        let back: Machine = serde_json::from_value(json).expect("reads back");
        assert_eq!(back, quiet());
    }

    #[test]
    fn this_machine_has_a_kernel_and_a_processor() {
        let machine = Machine::read();
        assert!(machine.processors >= 1);
        assert!(machine.kernel.contains('.'), "{machine:?}");
        assert!(machine.line().contains("Linux "));
    }

    #[test]
    fn fields_of_cpuinfo() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu hypervisor\n";
        assert_eq!(
            field(text, "model name").as_deref(),
            Some("Some CPU @ 2 GHz")
        );
        assert_eq!(field(text, "nothing"), None);
    }
}
