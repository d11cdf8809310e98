//! What was found, most of it with chance's help, and is kept.

use super::super::memory::Memory as _;
use super::{FLOWS, INTERVAL, Probing, Step, live, live_with, never_twice, world::World};

/// It knows its peers before it serves, and counts them as gone and in again as its first answers come. That was believed: they
/// gave all their flows up.
#[test]
fn a_node_that_has_just_begun_puts_nobody_out() {
    use Step::*;
    never_twice(
        7_667_096_497_400_147_872,
        &[
            Kill(1),
            Open(0, 3),
            StopDaemon(0),
            Boot(1),
            ToggleDrain(2),
            ToggleDrain(1),
            Wait(1_961),
            ToggleDrain(2),
            StartDaemon(0),
        ],
    );
    never_twice(
        164_938_438_759_966_961,
        &[ToggleDrain(1), Kill(1), Open(0, 1), Boot(1)],
    );
}

/// A word on its way when its node lost its power comes after the first one of the node that began again.
#[test]
fn a_late_word_of_a_run_that_is_over_is_not_believed() {
    use Step::*;
    never_twice(
        8_909_426_990_776_414_234,
        &[Kill(1), Boot(1), Open(0, 1), ToggleDrain(1)],
    );
    never_twice(
        6_232_041_947_238_442_817,
        &[ToggleDrain(2), Kill(2), Boot(2), Open(0, 1), ToggleDrain(2)],
    );
}

/// While its daemon was away a peer failed, and another took that one's slots. It came back, found the peer failed, and took the
/// slots in its turn, with the flows that had begun there.
#[test]
fn a_node_whose_daemon_was_away_leaves_alone_what_a_third_took() {
    use Step::*;
    live(
        0,
        &[
            StopDaemon(2),
            StopServer(0),
            Weight(1, 200),
            Wait(2_681),
            Open(4, 8),
            Weight(1, 5),
        ],
    );
    never_twice(
        0,
        &[
            StopDaemon(0),
            Kill(1),
            Wait(2_051),
            StartDaemon(0),
            Open(0, 4),
            ToggleDrain(2),
        ],
    );
}

/// A peer dies while a drain is taken back: one node takes over by a table that the other only comes to know together with the
/// next one.
#[test]
fn a_flow_on_a_dead_node_may_be_one_that_a_third_has_taken() {
    use Step::*;
    never_twice(
        7_571_077_861_734_599_337,
        &[
            ToggleDrain(0),
            ToggleDrain(2),
            Wait(1_351),
            Kill(1),
            Wait(2_051),
            ToggleDrain(2),
            Open(0, 1),
        ],
    );
}

/// The last one serves nobody any more, and does not know yet that another has just begun to.
#[test]
fn a_flow_that_opens_while_nobody_is_known_to_serve_is_no_old_one() {
    use Step::*;
    never_twice(
        3_905_955_564_143_533_826,
        &[
            Wait(141),
            Wait(1_911),
            Wait(1_041),
            Kill(2),
            Kill(1),
            Wait(2_751),
            Wait(3_381),
            ToggleDrain(0),
            Wait(651),
            Boot(2),
            Wait(1_261),
            Open(0, 1),
        ],
    );
}

/// It is drained and taken back at once, and one of the others hears of the first alone, for a while.
#[test]
fn what_was_given_up_comes_back_when_all_have_heard_that_it_is_wanted_again() {
    use Step::*;
    never_twice(
        14_621_959_116_875_019_437,
        &[
            Kill(0),
            ToggleDrain(1),
            Wait(1_121),
            Weight(1, 5),
            Boot(0),
            Wait(1_861),
            ToggleDrain(0),
            ToggleDrain(0),
        ],
    );
    for random in 0..24 {
        never_twice(
            random,
            &[ToggleDrain(0), ToggleDrain(0), Wait(400), Weight(1, 5)],
        );
    }
}

/// Its daemon is gone and its server fails: nobody is there to give its share up, which its peers take. Then the server is back
/// before the daemon.
#[test]
fn a_node_without_a_daemon_is_fenced_when_its_server_fails() {
    use Step::*;
    for random in 0..4 {
        live(
            random,
            &[
                StopDaemon(0),
                Open(0, 20),
                StopServer(0),
                Wait(12_000),
                StartServer(0),
                Open(0, 60),
                Wait(4_000),
                StartDaemon(0),
                Wait(4_000),
            ],
        );
    }
}

/// It begins with nothing, and the only other node that lives has no daemon: nobody says that this one is there, but its data path.
#[test]
fn a_node_that_begins_asks_the_data_path_of_one_that_nobody_hears() {
    use Step::*;
    let alone = [
        Kill(1),
        Kill(2),
        Wait(6_000),
        StopDaemon(0),
        Open(0, 20),
        Boot(1),
        Wait(8_000),
        Open(20, 20),
    ];
    let back = [StartDaemon(0), Wait(8_000), Open(40, 20)];
    // By what the first has heard of it, this one can fence it as well.
    let failed = [StopServer(0), Wait(8_000), Open(40, 20), StartServer(0)];
    for random in 0..4 {
        never_twice(random, &[&alone[..], &back].concat());
        live(random, &[&alone[..], &failed, &back].concat());
    }
}

/// The same where the server had failed before, so that its data path is all that is left of it.
#[test]
fn a_node_that_begins_fences_one_whose_data_path_is_all_that_is_left() {
    use Step::*;
    for random in 0..4 {
        live(
            random,
            &[
                Kill(1),
                Kill(2),
                Wait(6_000),
                StopDaemon(0),
                Open(0, 20),
                StopServer(0),
                Boot(1),
                Wait(8_000),
                Open(0, 60),
                StartServer(0),
                Wait(4_000),
            ],
        );
    }
}

/// All drain, and its daemon ends. Then a peer serves again, and a client takes the ports of a flow that this node had once.
#[test]
fn a_flow_that_opens_again_elsewhere_is_not_the_one_recorded_here() {
    use Step::*;
    live(
        0,
        &[
            ToggleDrain(2),
            ToggleDrain(2),
            Open(12, 16),
            ToggleDrain(0),
            ToggleDrain(2),
            StopServer(0),
            StartServer(0),
            ToggleDrain(1),
            Wait(41),
            StopDaemon(0),
            Wait(401),
            ToggleDrain(1),
            Wait(581),
            Open(0, 13),
        ],
    );
}

/// Its operator takes a drain back, and its daemon ends at once; a node that begins meanwhile learns it from the data path, which has
/// to know it by then.
#[test]
fn a_node_that_begins_asks_the_data_path_of_one_that_it_hears_no_more() {
    use Step::*;
    for random in 0..6 {
        never_twice(
            random,
            &[
                Leave(2),
                Kill(1),
                ToggleDrain(0),
                Boot(1),
                Wait(2_741),
                ToggleDrain(0),
                StopDaemon(0),
                Wait(2_322),
            ],
        );
    }
}

/// A dead node is told so by each of the others: four times within a second, then once in each interval of the probes; and no more
/// when it is back.
#[test]
fn nobody_is_fenced_more_often_than_it_takes() {
    let mut world = World::new(0, Probing::Tcp);
    world.wait(10_000);
    assert_eq!(world.fenced, 0);
    world.step(Step::Kill(2));
    world.wait(6 * INTERVAL);
    assert!(world.fenced >= 8, "{}", world.fenced);
    let before = world.fenced;
    world.wait(10 * INTERVAL);
    assert_eq!(world.fenced - before, 20);
    world.step(Step::Boot(2));
    world.wait(6 * INTERVAL);
    let before = world.fenced;
    world.wait(6 * INTERVAL);
    assert_eq!(world.fenced, before);
}

/// A server that answers is no node: those that begin beside it serve without it.
#[test]
fn a_host_without_a_data_path_is_not_waited_for() {
    use Step::*;
    for random in 0..4 {
        let all = [Kill(0), Kill(1), Kill(2), Bare(0), Bare(2), Boot(1)];
        let served = [Wait(8_000), Open(0, FLOWS), Wait(1_000)];
        never_twice(random, &[&all[..], &served].concat());
        never_twice(
            random,
            &[&[Kill(1), Wait(6_000), Bare(1)][..], &served].concat(),
        );
    }
}

/// It has taken its data path away and said so. Its server answered on, so that the others left it its share for good.
#[test]
fn who_has_left_has_no_share_though_its_server_answers() {
    use Step::*;
    for random in 0..4 {
        let left = [Open(0, FLOWS), Leave(1), Wait(3_000), Open(0, FLOWS)];
        let back = [Boot(1), Wait(12_000), Open(0, FLOWS)];
        never_twice(random, &left);
        never_twice(random, &[&left[..], &back].concat());
        // Nor by one whose daemon was down when it said so.
        never_twice(random, &[Leave(0), StopDaemon(1), Wait(500)]);
    }
}

/// It took the others for gone, and they it. When it was back, they began anew as well as it did, and lost all connections.
#[test]
fn who_was_cut_off_ends_no_connection_of_the_others() {
    use Step::*;
    for random in 0..4 {
        let away = [Open(0, FLOWS), Cut(1), Wait(10_000), Open(0, FLOWS)];
        let steps = [&away[..], &[Heal(1), Wait(10_000)]].concat();
        live(random, &steps);
        live_with(random, &steps, Probing::Never);
        live(
            random,
            &[Open(0, FLOWS), Cut(1), Wait(1_500), Heal(1), Wait(10_000)],
        );
    }
}

/// Its card or its switch takes its time, and its first probes find nobody.
#[test]
fn who_boots_before_its_link_is_up_ends_no_connection_of_the_others() {
    use Step::*;
    let late = [Cut(0), Wait(8_500), Heal(0), Wait(10_000)];
    for random in 0..4 {
        live(
            random,
            &[&[Kill(0), Wait(8_000), Open(0, FLOWS), Boot(0)][..], &late].concat(),
        );
        // Beside a single one, which has been there for longer.
        let alone = [Kill(2), Wait(6_000), Kill(0), Wait(6_000)];
        let boots = [Open(0, FLOWS), Boot(0)];
        live(random, &[&alone[..], &boots, &late].concat());
        // The same, and its daemon is down: its data path can't yield, and must not be fenced.
        let silent = [Open(0, FLOWS), StopDaemon(1), Boot(0)];
        live(random, &[&alone[..], &silent, &late].concat());
    }
}

/// It has asked, and been answered, when its first probe fails, as its own link was down again. It took the other for gone, and
/// fenced it.
#[test]
fn a_first_failure_alone_says_nothing_of_a_node_that_is_there() {
    use Step::*;
    for random in 0..6 {
        let alone = [Kill(1), Kill(2), Wait(6_000), Open(0, FLOWS), StopDaemon(0)];
        let begins = [Boot(1), Wait(300), Cut(1), Wait(900), Heal(1)];
        let stays = [Wait(6_000), StartDaemon(0), Wait(6_000)];
        live(random, &[&alone[..], &begins, &stays].concat());
    }
}

/// A peer's server had failed, and was back while this node's daemon was away. By what the maps had kept, it was gone: this one
/// fenced it, and took its data path's answer for that of one that had been there before.
#[test]
fn who_was_gone_before_a_daemon_came_back_may_have_been_let_in_again() {
    use Step::*;
    let apart = [
        StopServer(0),
        Wait(9_000),
        Kill(1),
        Wait(4_911),
        Boot(1),
        Wait(10_821),
        StartServer(0),
        StopDaemon(1),
        Wait(6_800),
        Open(0, FLOWS),
        Wait(2_100),
    ];
    for random in [
        6_418_527_882_788_381_366,
        6_418_527_882_788_539_746,
        6_418_527_882_788_626_855,
    ] {
        live(
            random,
            &[&apart[..], &[StartDaemon(1), Wait(4_000)]].concat(),
        );
        // It is not heard, as its daemon is gone in its turn.
        let silent = [StopDaemon(0), Wait(2_000), StartDaemon(1), Wait(9_000)];
        live(random, &[&apart[..], &silent].concat());
    }
}

/// It has taken its data path away and said so, to those whose daemons ended before they told the third. Its server answers on.
#[test]
fn who_is_neither_heard_nor_has_a_data_path_has_no_share() {
    use Step::*;
    for random in 0..4 {
        never_twice(
            random,
            &[Leave(2), StopDaemon(0), Wait(4_631), StopDaemon(1)],
        );
        never_twice(random, &[StopDaemon(2), Leave(0), Kill(1), Wait(11)]);
        never_twice(random, &[Kill(0), Bare(0)]);
    }
    never_twice(
        570_738_468_134_028,
        &[Leave(2), StopDaemon(0), Wait(4_631), StopDaemon(1)],
    );
}

/// A peer had counted this node as gone once, long ago, and this one's maps have that peer as failed: to a daemon that begins, that
/// is no news.
#[test]
fn what_was_over_before_a_daemon_came_back_ends_no_connection() {
    use Step::*;
    for random in 0..6 {
        live(
            random,
            &[
                Kill(1),
                Wait(8_000),
                Boot(1),
                Wait(9_000),
                Open(0, FLOWS),
                StopServer(1),
                Wait(8_000),
                StopDaemon(0),
                StartDaemon(0),
                Wait(3_000),
            ],
        );
    }
    live(
        17_972_005_963_282_861_636,
        &[
            StopServer(2),
            StopServer(1),
            Wait(2_211),
            Kill(2),
            Wait(31),
            StopDaemon(0),
            Open(0, 1),
        ],
    );
}

/// It joins while another's daemon is down, which has everything. A third had joined before it, and waited for the same slots. That one
/// died, and what it never had was taken.
#[test]
fn what_a_dead_node_waited_for_is_not_free() {
    use Step::*;
    for random in 0..6 {
        live(
            random,
            &[
                StopServer(1),
                StopServer(2),
                Wait(4_000),
                StopDaemon(0),
                StartServer(1),
                Wait(1_902),
                StartServer(2),
                Kill(1),
                Wait(4_121),
            ],
        );
    }
}

/// It was fenced, and fails a while longer; the daemon that comes back has nobody else in its maps, and nobody has spoken to it yet.
/// It said that it had counted the other as gone, who gave up all it had.
#[test]
fn a_daemon_that_has_yet_to_listen_has_put_nobody_out() {
    use Step::*;
    for random in (0..6).chain([918_279_999_873_087_208]) {
        live(
            random,
            &[
                StopServer(1),
                Wait(4_081),
                StartServer(1),
                StopDaemon(0),
                StopServer(2),
                StopServer(0),
                Wait(3_041),
                Open(0, FLOWS),
            ],
        );
    }
}

/// Its daemon may end before its next word: from the drain on, its data path says of it what it would say itself.
#[test]
fn a_data_path_knows_each_decision_at_once() {
    let mut world = World::new(0, Probing::Tcp);
    for drained in [true, false] {
        world.step(Step::ToggleDrain(0));
        let node = &world.nodes[0];
        let own = node.knowledge.own_presence("web", node.bench.actual());
        let own = own.unwrap();
        assert_eq!(own.drained, drained);
        let told = node.bench.executor.maps.presences();
        assert_eq!(told[0].said.get(), own.word());
    }
}
