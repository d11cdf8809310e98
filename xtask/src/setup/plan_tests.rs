//! Machines that nobody has at hand, and what each is to install.

use std::collections::BTreeSet;

use super::*;
use crate::{setup::apt::Family, toolchain::Origin};

const MINIMUM: Version = Version::new(1, 95, 0);

/// A machine with nothing: a Rust toolchain of whatever kind runs xtask, and no more.
fn bare() -> Found {
    Found {
        minimum: MINIMUM,
        rustup: None,
        compilers: Vec::new(),
        linkers: Vec::new(),
        llvm: BTreeMap::new(),
        missing_tools: Vec::new(),
        missing_lints: Vec::new(),
    }
}

fn with_rustup() -> Found {
    Found {
        rustup: Some(Rustup {
            packaged: false,
            active: true,
        }),
        ..bare()
    }
}

fn compiler(origin: Origin, minor: u64, llvm: u64) -> Compiler {
    Compiler {
        origin,
        rustc: "/somewhere/rustc".into(),
        cargo: Some("/somewhere/cargo".into()),
        version: Version::new(1, minor, 0),
        llvm,
        has_source: true,
    }
}

fn linker(llvm: u64) -> Linker {
    Linker {
        path: format!("/linker-{llvm}").into(),
        version: LINKER_VERSION,
        llvm: Some(llvm),
    }
}

fn llvm(major: u64) -> BTreeMap<u64, PathBuf> {
    BTreeMap::from([(major, format!("/usr/lib/llvm-{major}").into())])
}

fn family(suffix: &str, minor: u64, llvm: Option<u64>) -> Family {
    Family {
        suffix: suffix.to_owned(),
        version: Version::new(1, minor, 0),
        llvm,
        installed: false,
        missing: vec![
            format!("rustc{suffix}"),
            format!("cargo{suffix}"),
            format!("rust{suffix}-src"),
        ],
    }
}

/// Debian 12 with its security updates.
fn debian_12() -> Offers {
    Offers {
        families: vec![family("", 63, Some(14)), family("-web", 96, Some(22))],
        llvm_dev: BTreeSet::from([22]),
        lists: true,
        fresh: true,
    }
}

/// Ubuntu 24.04: no compiler that is new enough, no LLVM that bpf-linker takes.
fn ubuntu_24_04() -> Offers {
    Offers {
        families: vec![family("", 75, Some(17)), family("-1.89", 89, Some(20))],
        llvm_dev: BTreeSet::new(),
        lists: true,
        fresh: true,
    }
}

/// The commands of a plan, one a line.
fn commands(steps: Option<Vec<Step>>) -> Vec<String> {
    let steps = steps.expect("a way");
    steps.iter().map(ToString::to_string).collect()
}

const BUILD_LINKER_22: &str =
    "cargo install bpf-linker --version 0.13.0 --locked --no-default-features --features llvm-22";

#[test]
fn nothing_is_missing_where_compiler_and_linker_go_together() {
    let mut found = bare();
    found.compilers = vec![compiler(Origin::System, 96, 22)];
    found.linkers = vec![linker(22)];
    let toolchain = ready(&found).expect("ready");
    assert_eq!(toolchain.compiler, found.compilers[0]);
    assert_eq!(
        commands(with_apt(&found, &debian_12())),
        Vec::<String>::new()
    );
}

#[test]
fn nightly_goes_before_the_distributions_compiler() {
    let mut found = with_rustup();
    found.compilers = vec![
        compiler(Origin::RustupNightly, 97, 22),
        compiler(Origin::System, 96, 22),
    ];
    found.linkers = vec![linker(22)];
    let toolchain = ready(&found).expect("ready");
    assert_eq!(toolchain.compiler.origin, Origin::RustupNightly);
}

#[test]
fn each_compiler_gets_the_linker_of_its_llvm() {
    let mut found = with_rustup();
    found.compilers = vec![compiler(Origin::System, 96, 22)];
    found.linkers = vec![linker(23), linker(22)];
    assert_eq!(ready(&found).expect("ready").linker, linker(22));
}

#[test]
fn a_nightly_without_source_gives_way_to_the_distribution() {
    let mut found = with_rustup();
    let mut nightly = compiler(Origin::RustupNightly, 97, 22);
    nightly.has_source = false;
    found.compilers = vec![nightly, compiler(Origin::System, 96, 22)];
    found.linkers = vec![linker(22)];
    let toolchain = ready(&found).expect("ready");
    assert_eq!(toolchain.compiler.origin, Origin::System);
}

#[test]
fn a_new_debian_12_gets_compiler_source_llvm_and_linker() {
    for found in [bare(), with_rustup()] {
        assert_eq!(
            commands(with_apt(&found, &debian_12())),
            [
                "apt-get install --no-install-recommends rustc-web cargo-web rust-web-src llvm-22-dev",
                BUILD_LINKER_22,
            ]
        );
    }
}

#[test]
fn what_is_there_is_not_installed_again() {
    let mut offers = debian_12();
    offers.families[1].installed = true;
    offers.families[1].missing = vec!["rust-web-src".to_owned()];
    let mut found = bare();
    found.llvm = llvm(22);
    let mut sourceless = compiler(Origin::System, 96, 22);
    sourceless.has_source = false;
    found.compilers = vec![sourceless];
    found.linkers = vec![linker(22)];
    assert_eq!(
        commands(with_apt(&found, &offers)),
        ["apt-get install --no-install-recommends rust-web-src"]
    );
}

#[test]
fn an_installed_family_goes_before_a_newer_one() {
    let mut offers = debian_12();
    offers.families.push(family("-1.98", 98, Some(22)));
    offers.families[1].installed = true;
    let plan = commands(with_apt(&bare(), &offers));
    assert!(plan[0].contains("rustc-web"), "{plan:?}");
    offers.families[1].installed = false;
    let plan = commands(with_apt(&bare(), &offers));
    assert!(plan[0].contains("rust-1.98-src"), "{plan:?}");
}

#[test]
fn a_newer_compiler_whose_llvm_no_linker_takes_is_passed_over() {
    let mut offers = debian_12();
    offers.families.push(family("-1.99", 99, Some(24)));
    let plan = commands(with_apt(&bare(), &offers));
    assert!(plan[0].contains("rustc-web"), "{plan:?}");
}

#[test]
fn an_llvm_that_the_packages_do_not_tell_waits_for_the_compiler() {
    let mut offers = debian_12();
    offers.families[1].llvm = None;
    assert_eq!(
        commands(with_apt(&bare(), &offers)),
        ["apt-get install --no-install-recommends rustc-web cargo-web rust-web-src"]
    );
}

#[test]
fn a_nightly_that_lacks_only_the_linker_is_completed() {
    let mut found = with_rustup();
    found.compilers = vec![compiler(Origin::RustupNightly, 97, 22)];
    assert_eq!(
        commands(with_apt(&found, &debian_12())),
        [
            "apt-get install --no-install-recommends llvm-22-dev",
            BUILD_LINKER_22
        ]
    );
    found.llvm = llvm(22);
    assert_eq!(commands(with_apt(&found, &debian_12())), [BUILD_LINKER_22]);
}

#[test]
fn a_nightly_ahead_of_the_distributions_llvm_gives_way_to_its_compiler() {
    let mut found = with_rustup();
    found.compilers = vec![compiler(Origin::RustupNightly, 99, 23)];
    let plan = commands(with_apt(&found, &debian_12()));
    assert!(plan[0].contains("rustc-web"), "{plan:?}");
}

#[test]
fn someone_elses_linker_is_left_alone() {
    let mut found = bare();
    found.compilers = vec![compiler(Origin::System, 96, 22)];
    found.llvm = llvm(22);
    let beside = |found: &Found| match with_apt(found, &debian_12()).expect("a way").last() {
        Some(Step::Linker { beside, .. }) => *beside,
        other => panic!("not a linker: {other:?}"),
    };
    assert!(!beside(&found));
    found.linkers = vec![linker(21)];
    assert!(beside(&found));
}

#[test]
fn without_a_compiler_in_the_distribution_rustup_fetches_nightly() {
    assert_eq!(
        commands(with_apt(&with_rustup(), &ubuntu_24_04())),
        ["rustup toolchain install nightly --profile minimal --component rust-src"]
    );
}

#[test]
fn debians_own_rustup_is_not_replaced_by_the_compiler_it_conflicts_with() {
    let mut found = with_rustup();
    found.rustup = Some(Rustup {
        packaged: true,
        active: true,
    });
    assert_eq!(
        commands(with_apt(&found, &debian_12())),
        ["rustup toolchain install nightly --profile minimal --component rust-src"]
    );
}

#[test]
fn no_way_is_said_and_not_tried_for_ever() {
    assert_eq!(with_apt(&bare(), &ubuntu_24_04()), None);
    let mut found = with_rustup();
    found.compilers = vec![compiler(Origin::RustupNightly, 99, 23)];
    assert_eq!(with_apt(&found, &ubuntu_24_04()), None);
}

#[test]
fn missing_lists_are_fetched_before_giving_up() {
    let empty = Offers::default();
    for found in [bare(), with_rustup()] {
        let mut found = found;
        found.missing_tools = RUNTIME_TOOLS.iter().collect();
        assert_eq!(commands(with_apt(&found, &empty)), ["apt-get update"]);
    }
}

#[test]
fn old_lists_are_fetched_before_installing_but_not_for_cargo() {
    let mut offers = debian_12();
    offers.fresh = false;
    assert_eq!(commands(with_apt(&bare(), &offers))[0], "apt-get update");
    let mut found = bare();
    found.compilers = vec![compiler(Origin::System, 96, 22)];
    found.llvm = llvm(22);
    assert_eq!(commands(with_apt(&found, &offers)), [BUILD_LINKER_22]);
}

#[test]
fn tools_come_with_the_same_call_of_apt() {
    let mut found = bare();
    found.missing_tools = RUNTIME_TOOLS
        .iter()
        .filter(|t| t.program == "nginx")
        .collect();
    assert!(ready(&found).is_none());
    let plan = commands(with_apt(&found, &debian_12()));
    assert!(plan[0].ends_with("llvm-22-dev nginx"), "{plan:?}");
    found.compilers = vec![compiler(Origin::System, 96, 22)];
    found.linkers = vec![linker(22)];
    assert_eq!(
        commands(with_apt(&found, &debian_12())),
        ["apt-get install --no-install-recommends nginx"]
    );
}

#[test]
fn lints_come_from_where_cargo_comes_from() {
    let mut found = with_rustup();
    found.compilers = vec![compiler(Origin::System, 96, 22)];
    found.linkers = vec![linker(22)];
    found.missing_lints = LINTS.to_vec();
    assert_eq!(
        commands(with_apt(&found, &debian_12())),
        ["rustup component add rustfmt clippy"]
    );
    found.rustup = None;
    assert_eq!(with_apt(&found, &debian_12()), None);
    let mut offers = debian_12();
    offers.families[1].installed = true;
    assert_eq!(
        commands(with_apt(&found, &offers)),
        ["apt-get install --no-install-recommends rustfmt-web rust-web-clippy"]
    );
}

#[test]
fn without_apt_packages_are_the_users_to_install() {
    let mut found = with_rustup();
    assert_eq!(without_apt(&found), None);
    found.compilers = vec![compiler(Origin::RustupNightly, 97, 22)];
    assert_eq!(without_apt(&found), None);
    found.llvm = llvm(22);
    assert_eq!(commands(without_apt(&found)), [BUILD_LINKER_22]);
    found.missing_tools = RUNTIME_TOOLS.iter().collect();
    assert_eq!(without_apt(&found), None);
}

#[test]
fn every_reason_is_given() {
    let mut found = bare();
    found.missing_tools = RUNTIME_TOOLS.iter().collect();
    let steps = with_apt(&found, &debian_12()).expect("a way");
    for step in &steps {
        assert!(!step.reasons().is_empty(), "{step}");
    }
    assert_eq!(steps[0].reasons().len(), 4 + RUNTIME_TOOLS.len());
}
