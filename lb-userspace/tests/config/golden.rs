//! One golden message for each kind of error: a change of a word shows in review. `cargo insta review` (or
//! `INSTA_UPDATE=always cargo test`) takes over intended changes.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};

use lb_userspace::config::{Config, ConfigErrors, ErrorKind};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use crate::{BASE, changed};

fn errors(text: &str) -> ConfigErrors {
    match Config::parse("config.toml", text) {
        Ok(config) => panic!("accepted:\n{text}\nas {config:?}"),
        Err(errors) => errors,
    }
}

/// Asserts that `text` has exactly one error, of that kind and with that message.
fn one(name: &str, kind: ErrorKind, text: &str) {
    let errors = errors(text);
    let rendered = errors.render(false);
    assert_eq!(
        errors.errors().len(),
        1,
        "{name}: one mistake, one error:\n{rendered}"
    );
    assert_eq!(errors.errors()[0].kind, kind, "{name}:\n{rendered}");
    insta::assert_snapshot!(name, rendered);
}

/// A node of a cluster, at its beginning.
const PICK: &str = "name = \"web1\"\nmode = \"pick\"\nseed = \"00112233445566778899aabbccddeeff\"";
const PICK_ELSEWHERE: &str =
    "name = \"wbe1\"\nmode = \"pick\"\nseed = \"00112233445566778899aabbccddeeff\"";
const PICK_PASSING: &str = "name = \"web1\"\nmode = \"pick\"\nunserved = \"pass\"\nseed = \"00112233445566778899aabbccddeeff\"";

/// Cases that change one thing of the valid file, or more: name, kind, what is replaced, what it becomes.
macro_rules! golden {
    ($($name:ident: $kind:ident, $old:expr => $new:expr $(=> $old2:expr => $new2:expr)*;)*) => {$(
        #[test]
        fn $name() {
            let text = changed($old, $new);
            $(let text = text.replacen($old2, $new2, 1);)*
            one(stringify!($name), ErrorKind::$kind, &text);
        }
    )*};
}

golden! {
    unknown_key: UnknownKey, "weight = 50" => "wieght = 50";
    unknown_key_hides_the_missing_one: UnknownKey, "address = \"192.0.2.21\"" => "adress = \"192.0.2.21\"";
    unknown_key_far_from_all: UnknownKey, "weight = 50" => "colour = \"red\"";
    unknown_key_of_another_table: UnknownKey, "interval = \"1s\"" => "flow_idle = \"1s\"";
    unknown_key_with_control_characters: UnknownKey, "weight = 50" => "\"a\\u001b[31mb\" = 1";
    unknown_table: UnknownKey, "[node]" => "[contrl]\n[node]";
    unknown_table_hides_the_missing_one: UnknownKey, "[node]" => "[nodes]";
    conflict_quic_over_tcp: Conflict, "ports = [80, 443]" => "ports = [80, 443]\ntrack = \"quic\"";
    conflict_affinity_timeout_without_affinity: Conflict,
        "ports = [80, 443]" => "ports = [80, 443]\naffinity_timeout = \"1h\"";
    conflict_affinity_timeout_and_never: Conflict,
        "ports = [80, 443]" => "ports = [80, 443]\naffinity = \"client\"\ntrack = \"never\"\naffinity_timeout = \"1h\"";
    value_track: BadValue, "ports = [80, 443]" => "ports = [80, 443]\ntrack = \"alway\"";
    range_affinity_timeout: OutOfRange,
        "ports = [80, 443]" => "ports = [80, 443]\naffinity = \"client\"\naffinity_timeout = \"9h\"";

    missing_key_in_node: MissingKey, "interfaces = [\"eth0\"]\n" => "";
    missing_key_in_service: MissingKey, "vip = \"192.0.2.10\"\n" => "";
    missing_key_in_probe: MissingKey, "type = \"http\"\n" => "";
    missing_key_in_backend: MissingKey, "name = \"web2\"\n" => "";
    missing_node: MissingKey, "[node]\nname = \"lb1\"\ninterfaces = [\"eth0\"]\n" => "";
    probe_port_for_any: MissingKey, "ports = [80, 443]" => "ports = \"any\"";
    default_probe_for_any: MissingKey,
        "ports = [80, 443]\n\n[service.probe]\ntype = \"http\"\ninterval = \"1s\"\n" => "ports = \"any\"\n";

    type_text_for_number: WrongType, "weight = 50" => "weight = \"50\"";
    type_number_for_text: WrongType, "name = \"web1\"" => "name = 1";
    type_boolean: WrongType, "weight = 50" => "weight = true";
    type_fraction: WrongType, "weight = 50" => "weight = 0.5";
    type_date: WrongType, "name = \"web1\"" => "name = 2026-01-01";
    type_number_for_duration: WrongType, "interval = \"1s\"" => "interval = 15";
    type_text_for_list: WrongType, "[\"eth0\"]" => "\"eth0\"";
    type_number_for_ports: WrongType, "[80, 443]" => "80";
    type_table_for_value: WrongType, "name = \"web1\"" => "name = { first = 1 }";
    type_number_for_hot_share: WrongType, "ports = [80, 443]" => "ports = [80]\naffinity = \"client\"\nspread_hot_sources = 5";
    type_entry_of_interfaces: WrongType, "[\"eth0\"]" => "[\"eth0\", 1]";
    type_seed: WrongType, "name = \"lb1\"" => "name = \"lb1\"\nseed = 12345678";

    shape_value_for_table: WrongShape, "[node]" => "control = 5\n[node]";
    shape_single_brackets: WrongShape,
        "[[service.backend]]\nname = \"web1\"\naddress = \"192.0.2.21\"\nweight = 50\n\n[[service.backend]]"
        => "[service.backend]";

    pick_without_seed: MissingKey, "name = \"lb1\"" => "name = \"web1\"\nmode = \"pick\"";
    pick_on_a_foreign_node: Conflict, "name = \"lb1\"" => PICK_ELSEWHERE;
    pick_via_vip: Conflict, "type = \"http\"\n" => "type = \"http\"\nvia = \"vip\"\n" => "name = \"lb1\"" => PICK;
    pick_with_unserved: Conflict, "name = \"lb1\"" => PICK_PASSING;
    pick_with_manual_failback: Conflict,
        "ports = [80, 443]" => "ports = [80, 443]\nfailback = \"manual\"" => "name = \"lb1\"" => PICK;
    pick_and_hot_sources: Conflict,
        "ports = [80, 443]" => "ports = [80, 443]\naffinity = \"client\"\nspread_hot_sources = \"5%\"" => "name = \"lb1\"" => PICK;
    pick_and_affinity_timeout: Conflict,
        "ports = [80, 443]" => "ports = [80, 443]\naffinity = \"client\"\naffinity_timeout = \"1h\"" => "name = \"lb1\"" => PICK;
    pick_and_recorded_udp: Conflict,
        "ports = [80, 443]" => "ports = [80, 443]\ntrack = \"always\"" => "\"tcp\"" => "\"tcp+udp\"" => "name = \"lb1\"" => PICK;
    mode_unknown: BadValue, "name = \"lb1\"" => "name = \"lb1\"\nmode = \"nlb\"";
    cluster_key_without_cluster: Conflict, "name = \"lb1\"" => "name = \"lb1\"\ncluster_mac = \"igmp\"";
    rule_single_with_equal_priorities: Conflict, "ports = [80, 443]" => "ports = [80, 443]\nrule = \"single\"";

    range_weight: OutOfRange, "weight = 50" => "weight = 65536";
    range_negative: OutOfRange, "weight = 50" => "weight = -1";
    range_beyond_all_integers: OutOfRange, "weight = 50" => "weight = 999999999999999999999999999999999999999999";
    range_priority: OutOfRange, "weight = 50" => "priority = 0";
    range_interval: OutOfRange, "interval = \"1s\"" => "interval = \"50ms\"";
    range_flow_idle: OutOfRange, "ports = [80, 443]" => "ports = [80]\nflow_idle = \"1day\"";
    range_hot_share: OutOfRange, "ports = [80, 443]" => "ports = [80]\naffinity = \"client\"\nspread_hot_sources = \"0.5%\"";
    range_rise: OutOfRange, "interval = \"1s\"" => "rise = 0";
    range_probe_port: OutOfRange, "interval = \"1s\"" => "port = 0";
    range_port_zero: OutOfRange, "[80, 443]" => "[80, 0]";
    range_port_high: OutOfRange, "[80, 443]" => "[\"65000-66000\"]";
    range_status: OutOfRange, "interval = \"1s\"" => "status = 99";
    range_limit: OutOfRange, "[node]" => "[limits]\nflows = 10\n[node]";
    range_socket_path: OutOfRange, "[node]" => concat!(
        "[control]\nsocket = \"/run/a-directory-with-a-name-that-takes-more-room-than-the-address-of-a-unix-socket-has-in-it/",
        "xdp-lb/control.sock\"\n[node]");

    value_protocol: BadValue, "protocol = \"tcp\"" => "protocol = \"tpc\"";
    value_case: BadValue, "protocol = \"tcp\"" => "protocol = \"TCP\"";
    value_affinity: BadValue, "ports = [80, 443]" => "ports = [80]\naffinity = \"source-ip\"";
    value_hot_share_without_unit: BadValue, "ports = [80, 443]" => "ports = [80]\naffinity = \"client\"\nspread_hot_sources = \"5\"";
    value_failback: BadValue, "ports = [80, 443]" => "ports = [80]\nfailback = \"manuel\"";
    type_failback: WrongType, "ports = [80, 443]" => "ports = [80]\nfailback = true";
    value_probe_type_later: BadValue, "type = \"http\"" => "type = \"https\"";
    value_probe_type_unknown: BadValue, "type = \"http\"" => "type = \"htp\"";
    value_duration: BadValue, "interval = \"1s\"" => "interval = \"1 parsec\"";
    value_duration_without_unit: BadValue, "interval = \"1s\"" => "interval = \"15\"";
    value_vip_link_local: BadValue, "vip = \"192.0.2.10\"" => "vip = \"fe80::10\"";
    value_vip_mapped: BadValue, "vip = \"192.0.2.10\"" => "vip = \"::ffff:192.0.2.10\"";
    value_vip_brackets: BadValue, "vip = \"192.0.2.10\"" => "vip = \"[2001:db8::10]\"";
    value_address_zone: BadValue, "address = \"192.0.2.21\"" => "address = \"fe80::21%eth0\"";
    range_network_prefix: OutOfRange,
        "ports = [80, 443]" => "ports = [80, 443]\naffinity = \"network\"\nnetwork_prefix = 56";
    conflict_network_prefix: Conflict,
        "ports = [80, 443]" => "ports = [80, 443]\naffinity = \"client\"\nnetwork_prefix = 20";
    conflict_family: Conflict, "address = \"192.0.2.21\"" => "address = \"2001:DB8:0::21\"";
    value_vip_prefix: BadValue, "vip = \"192.0.2.10\"" => "vip = \"192.0.2.10/32\"";
    value_vip_port: BadValue, "vip = \"192.0.2.10\"" => "vip = \"192.0.2.10:80\"";
    value_vip_multicast: BadValue, "vip = \"192.0.2.10\"" => "vip = \"224.0.0.1\"";
    value_address_name: BadValue, "address = \"192.0.2.21\"" => "address = \"web1.example.com\"";
    value_address_octet: BadValue, "address = \"192.0.2.21\"" => "address = \"192.0.2.256\"";
    value_address_loopback: BadValue, "address = \"192.0.2.21\"" => "address = \"127.0.0.1\"";
    value_name: BadValue, "name = \"web\"" => "name = \"web server\"";
    value_name_empty: BadValue, "name = \"web\"" => "name = \"\"";
    value_name_long: BadValue, "name = \"web\""
        => "name = \"a-name-of-more-than-sixty-three-letters-is-longer-than-a-label-of-the-dns-may-be\"";
    value_interface: BadValue, "[\"eth0\"]" => "[\"eth0/1\"]";
    value_interfaces_empty: BadValue, "[\"eth0\"]" => "[]";
    value_ports_empty: BadValue, "[80, 443]" => "[]";
    value_port_reversed: BadValue, "[80, 443]" => "[\"8010-8000\"]";
    value_port_quoted: BadValue, "[80, 443]" => "[\"80\"]";
    value_port_word: BadValue, "[80, 443]" => "[\"http\"]";
    value_pin_path: BadValue, "name = \"lb1\"" => "name = \"lb1\"\npin_path = \"xdp-lb\"";
    value_http: BadValue, "[node]" => "[control]\nhttp = \"localhost\"\n[node]";
    value_http_port: BadValue, "[node]" => "[control]\nhttp = \"127.0.0.1:0\"\n[node]";
    value_probe_path: BadValue, "interval = \"1s\"" => "path = \"health\"";
    value_probe_host: BadValue, "interval = \"1s\"" => "host = \"a b\"";
    value_services_empty: BadValue, BASE => "service = []\n[node]\ninterfaces = [\"eth0\"]\n";

    duplicate_backend_name: Duplicate, "name = \"web2\"" => "name = \"web1\"";
    duplicate_backend_address: Duplicate, "192.0.2.22" => "192.0.2.21";
    duplicate_interface: Duplicate, "[\"eth0\"]" => "[\"eth0\", \"eth0\"]";
    conflict_hot_sources_without_affinity: Conflict, "ports = [80, 443]" => "ports = [80]\nspread_hot_sources = 0.05";
    conflict_hot_sources_and_timeout: Conflict, "ports = [80, 443]"
        => "ports = [80]\naffinity = \"client\"\naffinity_timeout = \"1h\"\nspread_hot_sources = 0.05";
    conflict_timeout: Conflict, "interval = \"1s\"" => "interval = \"1s\"\ntimeout = \"2s\"";
    conflict_http_key: Conflict, "type = \"http\"" => "type = \"tcp\"\npath = \"/\"";
    conflict_vip_is_backend: Conflict, "address = \"192.0.2.22\"" => "address = \"192.0.2.10\"";
    conflict_weights_all_zero: Conflict,
        "weight = 50\n\n[[service.backend]]\nname = \"web2\"\naddress = \"192.0.2.22\"\n" => "weight = 0\n";
    limit_backends: Limit, "[node]" => "[limits]\nbackends = 1\n[node]";
    limit_slots: Limit, "[node]" => "[limits]\nslots = 1024\n[node]";
    syntax_unquoted: Syntax, "[\"eth0\"]" => "[eth0]";
    syntax_unclosed_text: Syntax, "\"lb1\"" => "\"lb1";
    syntax_unclosed_list: Syntax, "[\"eth0\"]" => "[\"eth0\"";
    syntax_unclosed_header: Syntax, "[[service]]" => "[[service]";
    syntax_unquoted_word: Syntax, "protocol = \"tcp\"" => "protocol = none";
    syntax_empty_value: Syntax, "protocol = \"tcp\"" => "protocol =";
    syntax_no_value: Syntax, "name = \"web1\"" => "name";
    syntax_duplicate_key: Syntax, "name = \"web1\"" => "name = \"web1\"\nname = \"web9\"";
    syntax_duplicate_table: Syntax, "[[service]]" => "[node]\n[[service]]";
    syntax_control_character: Syntax, "\"lb1\"" => "\"lb\u{1b}[31m1\"";
}

/// A second service to follow [`BASE`].
fn second(name: &str, ports: &str, backend: &str, address: &str) -> String {
    format!(
        "{BASE}\n[[service]]\nname = \"{name}\"\nvip = \"192.0.2.10\"\nprotocol = \"tcp\"\nports = {ports}\n\
         probe.type = \"none\"\n\n[[service.backend]]\nname = \"{backend}\"\naddress = \"{address}\"\n"
    )
}

#[test]
fn pick_without_a_common_family() {
    let text = format!(
        "{}\n[[service]]\nname = \"six\"\nvip = \"2001:db8::10\"\nprotocol = \"tcp\"\nports = [80]\n\n\
         [[service.backend]]\nname = \"web3\"\naddress = \"2001:db8::3\"\n",
        changed("name = \"lb1\"", PICK)
    );
    one("pick_without_a_common_family", ErrorKind::Conflict, &text);
}

#[test]
fn duplicate_service_name() {
    let text = second("web", "[25]", "mx1", "192.0.2.31");
    one("duplicate_service_name", ErrorKind::Duplicate, &text);
}

#[test]
fn overlapping_ports() {
    let text = second("mail", "[25, \"400-500\"]", "mx1", "192.0.2.31");
    one("overlapping_ports", ErrorKind::Overlap, &text);
}

#[test]
fn both_protocols_overlap_each() {
    let both = second("sip", "[80]", "sip1", "192.0.2.31");
    let (first, rest) = both.rsplit_once("protocol = \"tcp\"").expect("a protocol");
    let text = format!("{first}protocol = \"tcp+udp\"{rest}");
    one("both_protocols_overlap_each", ErrorKind::Overlap, &text);
}

#[test]
fn any_overlaps_all() {
    let text = second("mail", "\"any\"", "mx1", "192.0.2.31");
    one("any_overlaps_all", ErrorKind::Overlap, &text);
}

#[test]
fn limit_ports() {
    let text = second("any", "[53, 54]", "dns1", "192.0.2.31")
        .replace("[80, 443]", "[\"55-65535\", 1]")
        + "[limits]\nports = 65482\n";
    one("limit_ports", ErrorKind::Limit, &text);
}

#[test]
fn one_name_for_two_addresses() {
    let text = second("mail", "[25]", "web1", "192.0.2.31");
    one("one_name_for_two_addresses", ErrorKind::Conflict, &text);
}

#[test]
fn no_service() {
    let text = "[node]\ninterfaces = [\"eth0\"]\n";
    one("no_service", ErrorKind::MissingKey, text);
}

#[test]
fn no_backend() {
    let (text, _) = BASE
        .split_once("[[service.backend]]")
        .expect("the base has backends");
    one("no_backend", ErrorKind::MissingKey, text);
}

#[test]
fn too_many_services() {
    let mut text =
        "[node]\nname = \"lb1\"\ninterfaces = [\"eth0\"]\n[limits]\nbackends = 65535\n".to_owned();
    for number in 0..4_097 {
        let (high, low) = (number / 256, number % 256);
        text.push_str(&format!(
            "[[service]]\nname = \"s{number}\"\nvip = \"198.18.{high}.{low}\"\nprotocol = \"tcp\"\nports = [80]\n\
             backend = [{{ name = \"b\", address = \"192.0.2.1\" }}]\n"
        ));
    }
    one("too_many_services", ErrorKind::Limit, &text);
}

/// The secret must not get into a log because something is wrong in its line.
#[test]
fn the_seed_is_never_shown() {
    let secret = "0123456789abcdef0123456789abcde";
    let lines = [
        (
            "value_seed",
            ErrorKind::BadValue,
            format!("seed = \"{secret}\""),
        ),
        (
            "value_seed_not_hex",
            ErrorKind::BadValue,
            format!("seed = \"{secret}g\""),
        ),
        (
            "unknown_key_seed",
            ErrorKind::UnknownKey,
            format!("sed = \"{secret}0\""),
        ),
        (
            "syntax_seed",
            ErrorKind::Syntax,
            format!("seed = {secret}0"),
        ),
        (
            "syntax_seed_unclosed",
            ErrorKind::Syntax,
            format!("seed = \"{secret}0"),
        ),
    ];
    for (name, kind, line) in lines {
        let text = changed("name = \"lb1\"", &format!("name = \"lb1\"\n{line}"));
        one(name, kind, &text);
        assert!(!errors(&text).to_string().contains("0123"), "{name}");
    }
}

#[test]
fn ten_errors_at_once() {
    let text = r#"[nod]
interfaces = ["eth0"]

[limits]
flow = 1000

[[service]]
name = "web"
vip = "fe80::1"
protocol = "tcpp"
ports = [80, 0, "90-80"]
afinity = "client"

[service.probe]
type = "smtp"
interval = 5

[[service.backend]]
name = "web 1"
address = "192.0.2.21"
weight = "fifty"
"#;
    let errors = errors(text);
    assert_eq!(errors.errors().len(), 11, "{errors}");
    insta::assert_snapshot!("ten_errors_at_once", errors.render(false));
    insta::assert_snapshot!(
        "ten_errors_as_json",
        serde_json::to_string_pretty(errors.errors()).expect("errors serialize")
    );
}

/// A mistake in the syntax hides neither the other mistakes in the syntax nor those elsewhere in the file.
#[test]
fn syntax_and_other_errors_at_once() {
    let text = r#"[node]
name = lb1
interfaces = ["eth0"]
xdp_mode = nativ

[control]
sockt = "/run/x"

[[service]]
name = "web"
vip = 
"#;
    insta::assert_snapshot!(errors(text).render(false));
}

#[test]
fn a_line_too_long_to_show() {
    let ports = format!("[80{}, 0]", ", 80".repeat(300));
    let text = changed("[80, 443]", &ports);
    one("a_line_too_long_to_show", ErrorKind::OutOfRange, &text);
}

#[test]
fn of_thousands_of_errors_the_first_are_shown() {
    let errors = errors(&(BASE.to_owned() + &"no TOML\n".repeat(3_000)));
    assert_eq!(errors.errors().len(), 1_000);
    let rendered = errors.render(false);
    assert!(
        rendered.ends_with("error: 1000 errors, and 2000 more that are not shown, in config.toml"),
        "{}",
        &rendered[rendered.len() - 200..]
    );
}

#[test]
fn colours_only_when_asked() {
    let errors = errors(&changed("weight = 50", "wieght = 50"));
    assert!(errors.render(true).contains('\u{1b}'));
    assert!(!errors.render(false).contains('\u{1b}'));
    assert_eq!(errors.to_string(), errors.render(false));
}

#[test]
fn columns_count_characters() {
    let errors = errors(&format!("control = {{ \"ä\" = 1, x = 2 }}\n{BASE}"));
    let places: Vec<_> = errors
        .errors()
        .iter()
        .map(|error| (error.line, error.column))
        .collect();
    assert_eq!(places, [(Some(1), Some(13)), (Some(1), Some(22))]);
    // The rendered place is the same one.
    assert!(
        errors.to_string().contains("config.toml:1:22\n"),
        "{errors}"
    );
}

/// Wherever a file is cut, it is refused, or all backends that it begins are whole.
#[test]
fn a_file_cut_short_anywhere_is_refused_or_whole() {
    let mut accepted = 0;
    for end in 0..BASE.len() {
        let text = &BASE[..end];
        match Config::parse("config.toml", text) {
            Ok(config) => {
                let begun = text.matches("[[service.backend]]").count();
                assert_eq!(
                    config.services[0].backends.len(),
                    begun,
                    "accepted:\n{text}"
                );
                accepted += 1;
            }
            Err(errors) => assert!(!errors.errors().is_empty()),
        }
    }
    // Most cuts are found; at the end of a line behind the first backend there is nothing to find.
    assert!(accepted < BASE.len() / 10, "{accepted} of {}", BASE.len());
}

#[test]
fn cut_short_in_a_value() {
    let (text, _) = BASE.split_once(".2.22\"").expect("the last backend");
    one("cut_short_in_a_value", ErrorKind::Syntax, text);
}

#[test]
fn files_that_cannot_be_read() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let root = directory
        .path()
        .to_str()
        .expect("a path in UTF-8")
        .to_owned();
    let file = |name: &str, content: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, content).expect("the file can be written");
        path
    };
    symlink("loop", directory.path().join("loop")).expect("a link can be made");
    let cases = [
        directory.path().join("missing.toml"),
        directory.path().to_owned(),
        directory.path().join("loop"),
        file("empty.toml", b""),
        file("blank.toml", b" \n\t\n"),
        file("latin1.toml", b"[node]\nname = \"M\xfcnchen\"\n"),
        file("large.toml", &vec![b'#'; (16 << 20) + 1]),
        "/dev/zero".into(),
    ];
    let rendered: Vec<String> = cases
        .iter()
        .map(|path| {
            let errors = Config::load(path).expect_err("unreadable");
            assert_eq!(errors.errors().len(), 1);
            assert_eq!(errors.errors()[0].kind, ErrorKind::File);
            errors.render(false).replace(&root, "DIR")
        })
        .collect();
    insta::assert_snapshot!(rendered.join("\n\n\n"));
    Config::load(&file("good.toml", BASE.as_bytes())).expect("the base is valid");
}

/// Root may read everything, so as root the file is read by a thread that gives its privileges up.
#[test]
fn a_file_without_permission() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("config.toml");
    fs::write(&path, BASE).expect("the file can be written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).expect("its owner may change it");
    let reader = std::thread::spawn(move || {
        let none = CapabilitySet::empty();
        let sets = CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        };
        set_capabilities(None, sets).expect("a thread may give up its capabilities");
        Config::load(&path).expect_err("unreadable")
    });
    let errors = reader.join().expect("the reader ends");
    assert_eq!(errors.errors()[0].kind, ErrorKind::File);
    let root = directory.path().to_str().expect("a path in UTF-8");
    insta::assert_snapshot!(errors.render(false).replace(root, "DIR"));
}
