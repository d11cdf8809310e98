//! One address in front of many clients (`spread_hot_sources`): found, spread over all backends without breaking what it
//! has open, and sent to one backend again once it is calm.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use lb_tests::testbed::scene::{HTTP_PROBE, SEED, Scene, service};
use lb_tests::testbed::{
    DEADLINE, Download, LARGE_BYTES, LoadGenerator, LoadSpec, Record, Testbed,
};
use lb_userspace::api::{HotSourceStatus, Status};

/// Addresses beside the hot one.
const OTHERS: usize = 15;

fn config(testbed: &Testbed, more: &str) -> String {
    let web = service(testbed, "web", "tcp", 80, "client", HTTP_PROBE);
    let web = web.replace(
        "affinity = \"client\"\n",
        &format!("affinity = \"client\"\n{more}"),
    );
    [
        testbed.node_config_with(SEED),
        web,
        testbed.backend_config(),
    ]
    .concat()
}

fn hot_source(status: &Status, source: IpAddr) -> Option<&HotSourceStatus> {
    let mut sources = status.services[0].hot_sources.iter();
    sources.find(|hot| hot.source == source.to_string())
}

/// Waits until the source is in that state; `None` where it is to be as any other.
fn wait_for_state(scene: &mut Scene, source: IpAddr, state: Option<&str>) -> Status {
    let is = |status: &Status| hot_source(status, source).map(|hot| hot.state.as_str()) == state;
    let what = format!("that {source} is {state:?}");
    // It takes twenty seconds of calm to return: a busy machine may need more than the usual time.
    scene
        .daemon
        .wait_for(&what, is)
        .or_else(|_| scene.daemon.wait_for(&what, is))
        .unwrap()
}

/// A connection for each request: half of them from `hot`, if there is one, and the others from all others in turn.
fn load(scene: &Scene, hot: Option<IpAddr>, others: &[IpAddr]) -> LoadGenerator {
    let sources = others
        .iter()
        .flat_map(|other| [Some(*other), hot])
        .flatten()
        .collect();
    let spec = LoadSpec {
        sources,
        ..scene.load()
    };
    LoadGenerator::start(scene.testbed.host("c1"), spec).unwrap()
}

/// A download that has begun, over at least so many seconds.
fn download(scene: &Scene, source: IpAddr, seconds: usize) -> Download {
    let rate = LARGE_BYTES / seconds;
    let started = Download::start(scene.testbed.host("c1"), source, scene.target(), rate).unwrap();
    let deadline = Instant::now() + DEADLINE;
    while started.progress().bytes == 0 {
        assert!(Instant::now() < deadline, "the download has not begun");
        std::thread::sleep(Duration::from_millis(10));
    }
    started
}

fn assert_unbroken(download: Download) {
    let report = download.finish().unwrap();
    assert_eq!(report.error, None, "{report:?}");
    assert!(report.whole, "{report:?}");
}

/// Waits until connections of the source that began from now on have been answered by every backend.
fn wait_for_all_backends(load: &LoadGenerator, source: IpAddr, backends: usize) -> Vec<Record> {
    let (begin, deadline) = (Instant::now(), Instant::now() + DEADLINE);
    let mut records = Vec::new();
    loop {
        records.extend(load.take());
        let answered: BTreeSet<&String> = records
            .iter()
            .filter(|record: &&Record| record.source == source && record.start > begin)
            .filter_map(|record| record.backend.as_ref())
            .collect();
        if answered.len() == backends {
            return records;
        }
        assert!(Instant::now() < deadline, "only {answered:?} have answered");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Nothing failed, and whoever is not hot has one backend.
fn assert_others_undisturbed(records: &[Record], hot: IpAddr) {
    assert!(!records.is_empty());
    let mut homes = std::collections::BTreeMap::new();
    for record in records {
        assert_eq!(record.error, None, "{record:?}");
        let home = homes.entry(record.source).or_insert(&record.backend);
        assert!(
            record.source == hot || *home == &record.backend,
            "{record:?} is not on {home:?}"
        );
    }
}

#[test]
fn a_hot_source_is_spread_and_returns_without_breaking_what_it_has_open() {
    let testbed = Testbed::builder()
        .clients(1, 1 + OTHERS)
        .backends(3)
        .label("hot")
        .build()
        .unwrap();
    let with = config(&testbed, "spread_hot_sources = \"30%\"\n");
    let without = config(&testbed, "");
    let mut scene = Scene::start(testbed, &[80], &with).unwrap();
    let (hot, others) = {
        let sources = scene.testbed.host("c1").sources();
        (sources[0], sources[1..].to_vec())
    };

    // Before: all its connections go to one backend.
    let home = scene.who(hot, 80).unwrap();
    for _ in 0..10 {
        assert_eq!(scene.who(hot, 80).unwrap(), home);
    }
    let status = scene.daemon.status().unwrap();
    assert_eq!(status.services[0].spread_hot_sources, Some(0.3));
    assert_eq!(status.services[0].hot_sources, []);

    // Hot: new ones go to all, an old one stays.
    let old = download(&scene, hot, 25);
    assert_eq!(old.progress().backend.as_ref(), Some(&home));
    let busy = load(&scene, Some(hot), &others);
    let status = wait_for_state(&mut scene, hot, Some("spreading"));
    let found = hot_source(&status, hot).unwrap();
    assert!((0.3..0.8).contains(&found.share), "{found:?}");
    assert_eq!(
        status.services[0].hot_sources.len(),
        1,
        "nobody else: {status:?}"
    );
    let mut records = wait_for_all_backends(&busy, hot, 3);
    assert!(!old.ended(), "ended too early to prove anything");
    let text = scene.daemon.cli_ok(&["status"]).unwrap();
    assert!(
        text.contains(&format!("{hot} is ")) && text.contains("spread over all backends since"),
        "{text}"
    );
    let metrics = scene.daemon.status_json().unwrap();
    assert_eq!(
        metrics["services"][0]["hot_sources"][0]["source"],
        hot.to_string()
    );
    let target = scene.target().to_string();
    let explained = scene
        .daemon
        .cli_ok(&["where", &format!("{hot}:40000"), &target])
        .unwrap();
    assert!(explained.contains("is a hot source"), "{explained}");
    let decoded = scene.daemon.cli_ok(&["maps", "HOT"]).unwrap();
    assert!(
        decoded.contains(&hot.to_string()) && decoded.contains("spreading"),
        "{decoded}"
    );
    assert_unbroken(old);

    // Settled: flows are not recorded any more, and another daemon knows who is hot.
    let status = wait_for_state(&mut scene, hot, Some("spread"));
    let since = hot_source(&status, hot).unwrap().since.clone();
    scene.daemon.kill9().unwrap();
    scene.daemon.restart().unwrap();
    let status = scene.daemon.status().unwrap();
    let adopted = hot_source(&status, hot).unwrap();
    assert_eq!((adopted.state.as_str(), &adopted.since), ("spread", &since));
    records.extend(wait_for_all_backends(&busy, hot, 3));

    // Calm: what is open stays where address and ports led it, new ones come home.
    let spread = loop {
        let one = download(&scene, hot, 40);
        if one.progress().backend.as_ref() != Some(&home) {
            break one;
        }
    };
    records.extend(busy.stop().unwrap());
    let calm = load(&scene, None, &others);
    wait_for_state(&mut scene, hot, Some("returning"));
    assert_eq!(scene.who(hot, 80).unwrap(), home);
    assert!(!spread.ended(), "ended too early to prove anything");
    assert_unbroken(spread);
    wait_for_state(&mut scene, hot, None);
    assert_eq!(scene.who(hot, 80).unwrap(), home);
    records.extend(calm.stop().unwrap());

    // Hot again, and then the configuration spreads nobody any more: the same way back.
    let busy = load(&scene, Some(hot), &others);
    wait_for_state(&mut scene, hot, Some("spreading"));
    scene.daemon.write_config(&without).unwrap();
    scene.daemon.cli_ok(&["reload"]).unwrap();
    wait_for_state(&mut scene, hot, Some("returning"));
    assert_eq!(scene.who(hot, 80).unwrap(), home);
    wait_for_state(&mut scene, hot, None);
    records.extend(busy.stop().unwrap());
    assert_others_undisturbed(&records, hot);
    let decoded = scene.daemon.cli_ok(&["maps", "HOT"]).unwrap();
    assert!(!decoded.contains(&hot.to_string()), "{decoded}");
}
