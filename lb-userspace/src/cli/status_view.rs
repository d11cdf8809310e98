//! How `status` looks.

use std::{collections::HashMap, fmt::Write as _, time::Duration};

use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Row, Table, presets};
use console::Style;
use jiff::{Timestamp, tz::TimeZone};
use lb_common::verdict::{Action, Verdict};

use super::{human, screen::Look};
use crate::api::{BackendStatus, ServiceStatus, Status};

/// What the view depends on beside the status.
pub(crate) struct Window {
    pub(crate) look: Look,
    pub(crate) now: Timestamp,
    pub(crate) zone: TimeZone,
    pub(crate) rates: Option<Rates>,
}

impl Window {
    pub(crate) fn new(look: Look, now: Timestamp) -> Self {
        Self {
            look,
            now,
            zone: TimeZone::system(),
            rates: None,
        }
    }
}

/// Packets per second of each backend, by the names of service and backend.
#[derive(Debug, Default)]
pub(crate) struct Rates(HashMap<(String, String), f64>);

impl Rates {
    /// From two looks that lie `elapsed` apart.
    pub(crate) fn between(before: &Status, after: &Status, elapsed: Duration) -> Self {
        let packets = |status: &Status| -> HashMap<(String, String), u64> {
            let services = status.services.iter();
            services
                .flat_map(|service| {
                    service.backends.iter().map(|backend| {
                        (
                            (service.name.clone(), backend.name.clone()),
                            backend.packets,
                        )
                    })
                })
                .collect()
        };
        let before = packets(before);
        let rate = |key: &(String, String), now: u64| {
            let passed = now.checked_sub(*before.get(key)?)?;
            Some(passed as f64 / elapsed.as_secs_f64())
        };
        let rates = packets(after).into_iter();
        Self(
            rates
                .filter_map(|(key, now)| Some((key.clone(), rate(&key, now)?)))
                .collect(),
        )
    }

    fn of(&self, service: &str, backend: &str) -> Option<f64> {
        self.0
            .get(&(service.to_owned(), backend.to_owned()))
            .copied()
    }
}

/// The whole status, without a line feed at its end.
pub(crate) fn render(status: &Status, window: &Window) -> String {
    let mut text = String::new();
    node(&mut text, status, window);
    for service in &status.services {
        text.push('\n');
        heading(&mut text, service, window);
        text.push_str(&backends(service, window));
        hot_sources(&mut text, service, window);
    }
    verdicts(&mut text, status, window.look);
    text.truncate(text.trim_end().len());
    text
}

/// Writing to a string can't fail.
macro_rules! put {
    ($text:expr, $($what:tt)*) => {{
        let _never = writeln!($text, $($what)*);
    }};
}

fn node(text: &mut String, status: &Status, window: &Window) {
    let (node, look) = (&status.node, window.look);
    let up = human::passed(&node.started, window.now).unwrap_or_default();
    put!(
        text,
        "{}  xdp-lb {}, pid {}, running for {}, {} applied",
        look.bold(&node.name),
        node.version,
        node.pid,
        human::rough(up),
        human::counted(node.generation, "change"),
    );
    if let Some(cluster) = &node.cluster {
        let peers: Vec<String> = cluster
            .peers
            .iter()
            .map(
                |peer| match (peer.heard, peer.has_another_file, peer.agrees) {
                    (false, ..) => look.warning(&format!("{} not heard", peer.name)),
                    (true, true, _) => look.warning(&format!("{} has another file", peer.name)),
                    (true, false, false) => look.warning(&format!("{} by other tables", peer.name)),
                    (true, false, true) => format!("{} agrees", peer.name),
                },
            )
            .collect();
        put!(
            text,
            "  cluster  {}  {}",
            cluster.mac,
            if peers.is_empty() {
                "alone".to_owned()
            } else {
                peers.join(", ")
            }
        );
    }
    for interface in &node.interfaces {
        let slow = interface.mode == "generic";
        let mode = if slow {
            look.warning(&interface.mode)
        } else {
            interface.mode.clone()
        };
        put!(
            text,
            "  {}  {}  {mode}, program {}{}",
            interface.name,
            interface.mac,
            interface.program_id,
            if slow {
                "  (slow: the kernel makes a socket buffer of each packet first)"
            } else {
                ""
            }
        );
    }
    if !node.features.is_empty() {
        put!(text, "  features in use: {}", node.features.join(", "));
    }
    if let Some(last) = &node.last_apply {
        put!(
            text,
            "  last change {}: {} ({} in {:.1} ms)",
            human::ago(&last.at, window.now),
            last.cause,
            human::counted(last.slots, "slot"),
            last.duration_us as f64 / 1000.0,
        );
    }
}

fn heading(text: &mut String, service: &ServiceStatus, window: &Window) {
    let transition = if service.slots_in_transition == 0 {
        String::new()
    } else {
        window.look.warning(&format!(
            ", {} in transition",
            human::count(service.slots_in_transition)
        ))
    };
    put!(
        text,
        "{}  {} {} {}  affinity {}  {} slots{transition}",
        window.look.bold(&service.name),
        service.vip,
        service.protocol,
        service.ports.join(","),
        service.affinity,
        human::count(service.slots),
    );
    if let (true, Some(priority)) = (service.held, service.priority) {
        let what = match service.better_priority {
            Some(better) => format!(
                "held at priority {priority}; {}{better} is up: `xdp-lb failback {}`",
                if is_preferred(service, better) {
                    "preferred "
                } else {
                    "priority "
                },
                service.name
            ),
            None => format!("held at priority {priority}; nobody of a better one is up"),
        };
        put!(text, "  {}", window.look.warning(&what));
    }
}

/// Whether no backend of the service has a better priority.
fn is_preferred(service: &ServiceStatus, priority: u32) -> bool {
    service
        .backends
        .iter()
        .all(|backend| backend.priority >= priority)
}

/// One column of the backends' table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Column {
    Backend,
    Address,
    State,
    Priority,
    Weight,
    Share,
    Packets,
    Bytes,
    Rate,
    Flows,
    Since,
    Reason,
}

impl Column {
    const ALL: [Self; 12] = [
        Self::Backend,
        Self::Address,
        Self::State,
        Self::Priority,
        Self::Weight,
        Self::Share,
        Self::Packets,
        Self::Bytes,
        Self::Rate,
        Self::Flows,
        Self::Since,
        Self::Reason,
    ];

    /// What a narrow terminal goes without, first to last; a reason that has no column gets a line of its own.
    const DISPENSABLE: [Self; 6] = [
        Self::Reason,
        Self::Bytes,
        Self::Priority,
        Self::Address,
        Self::Since,
        Self::Weight,
    ];

    const fn title(self) -> &'static str {
        match self {
            Self::Backend => "BACKEND",
            Self::Address => "ADDRESS",
            Self::State => "STATE",
            Self::Priority => "PRIORITY",
            Self::Weight => "WEIGHT",
            Self::Share => "SHARE",
            Self::Packets => "PACKETS",
            Self::Bytes => "BYTES",
            Self::Rate => "RATE",
            Self::Flows => "FLOWS",
            Self::Since => "SINCE",
            Self::Reason => "REASON",
        }
    }

    const fn is_number(self) -> bool {
        matches!(
            self,
            Self::Priority
                | Self::Weight
                | Self::Share
                | Self::Packets
                | Self::Bytes
                | Self::Rate
                | Self::Flows
        )
    }
}

/// The backends of a service: as many columns as the terminal has room for.
fn backends(service: &ServiceStatus, window: &Window) -> String {
    let same_priority = service
        .backends
        .windows(2)
        .all(|two| two[0].priority == two[1].priority);
    let mut columns: Vec<Column> = Column::ALL.to_vec();
    columns.retain(|column| match column {
        Column::Rate => window.rates.is_some(),
        Column::Priority => !same_priority,
        _ => true,
    });
    let mut lines = table(service, &columns, window);
    for dispensable in Column::DISPENSABLE {
        let width = lines
            .iter()
            .map(|line| console::measure_text_width(line))
            .max()
            .unwrap_or(0);
        if window
            .look
            .width
            .is_none_or(|room| width <= usize::from(room))
        {
            break;
        }
        columns.retain(|column| *column != dispensable);
        lines = table(service, &columns, window);
    }
    let mut text = String::new();
    for line in lines {
        put!(text, "{}", line.trim_end());
    }
    for backend in &service.backends {
        below(
            &mut text,
            backend,
            columns.contains(&Column::Reason),
            window,
        );
    }
    text
}

/// The sources that are spread, or were until lately.
fn hot_sources(text: &mut String, service: &ServiceStatus, window: &Window) {
    for hot in &service.hot_sources {
        let how = match hot.state.as_str() {
            "spread" => "spread over all backends",
            "spreading" => "its new flows are spread over all backends",
            _ => "its new flows go to one backend again",
        };
        let line = format!(
            "  {} is {:.1}% of the packets: {how} since {}",
            hot.source,
            hot.share * 100.0,
            human::clock(&hot.since, window.now, &window.zone)
        );
        put!(text, "{}", window.look.warning(&line));
    }
}

/// What is said of a backend below the table.
fn below(text: &mut String, backend: &BackendStatus, has_reason: bool, window: &Window) {
    if !has_reason && backend.state != "up" {
        put!(text, "  {}: {}", backend.name, backend.reason);
    }
    if let Some(until) = &backend.drain_until {
        let until = human::clock(until, window.now, &window.zone);
        put!(
            text,
            "  {}: flows that are left at {until} are ended",
            backend.name
        );
    } else if let Some(until) = &backend.silent_until
        && backend.state != "up"
    {
        let until = human::clock(until, window.now, &window.zone);
        put!(
            text,
            "  {}: silent flows may still exist until {until}",
            backend.name
        );
    }
}

fn table(service: &ServiceStatus, columns: &[Column], window: &Window) -> Vec<String> {
    let mut table = plain_table(window.look);
    table.set_header(Row::from(
        columns
            .iter()
            .map(|column| header(column.title(), column.is_number())),
    ));
    for backend in &service.backends {
        table.add_row(Row::from(
            columns
                .iter()
                .map(|column| cell(*column, service, backend, window)),
        ));
    }
    table.lines().collect()
}

fn cell(column: Column, service: &ServiceStatus, backend: &BackendStatus, window: &Window) -> Cell {
    let text = match column {
        Column::Backend => backend.name.clone(),
        Column::Address => backend.address.clone(),
        Column::State => return Cell::new(&backend.state).fg(state_colour(&backend.state)),
        Column::Priority => backend.priority.to_string(),
        Column::Weight => backend.weight.to_string(),
        Column::Share => human::percent(backend.slots, service.slots),
        Column::Packets => human::count(backend.packets),
        Column::Bytes => human::bytes(backend.bytes),
        Column::Rate => {
            let rate = window
                .rates
                .as_ref()
                .and_then(|rates| rates.of(&service.name, &backend.name));
            rate.map_or_else(|| "-".to_owned(), human::rate)
        }
        Column::Flows => human::count(backend.flows),
        Column::Since => human::ago(&backend.since, window.now),
        Column::Reason => backend.reason.clone(),
    };
    let cell = Cell::new(text);
    if column.is_number() {
        cell.set_alignment(CellAlignment::Right)
    } else {
        cell
    }
}

fn state_colour(state: &str) -> Color {
    match state {
        "up" => Color::Green,
        "down" | "failed" => Color::Red,
        "draining" => Color::Yellow,
        _ => Color::Cyan,
    }
}

fn verdicts(text: &mut String, status: &Status, look: Look) {
    let mut table = plain_table(look);
    if let Some(width) = look.width {
        table
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(width);
    }
    table.set_header(vec![
        header("VERDICT", false),
        header("PACKETS", true),
        header("ACTION", false),
        header("WHY", false),
    ]);
    for verdict in Verdict::ALL {
        let packets = status.verdicts.get(verdict.name()).copied().unwrap_or(0);
        if packets == 0 {
            continue;
        }
        let (action, colour) = match verdict.action() {
            Action::Transmit | Action::Redirect => ("sent", Color::Green),
            Action::Pass => ("to the host", Color::Reset),
            Action::Drop => ("dropped", Color::Yellow),
        };
        table.add_row(vec![
            Cell::new(verdict.name()),
            Cell::new(human::count(packets)).set_alignment(CellAlignment::Right),
            Cell::new(action).fg(colour),
            Cell::new(verdict.why()),
        ]);
    }
    if !table.is_empty() {
        text.push('\n');
        for line in table.lines() {
            put!(text, "{}", line.trim_end());
        }
    }
    flow_table(text, status, look);
}

fn flow_table(text: &mut String, status: &Status, look: Look) {
    let flows = &status.flow_table;
    let event = |name: &str| status.events.get(name).copied().unwrap_or(0);
    let forgotten = event(lb_common::tables::Event::FlowForgotten.name());
    if flows.used == 0 && forgotten == 0 {
        return;
    }
    put!(
        text,
        "\nflow table  {} of {} flows ({}), {} recorded since the maps were made",
        human::count(flows.used),
        human::count(flows.capacity),
        human::percent(flows.used, flows.capacity),
        human::count(event(lb_common::tables::Event::FlowRecorded.name())),
    );
    if forgotten > 0 {
        let warning = format!(
            "  forgotten because the table was full: {}; raise `flows` in [limits]",
            human::counted(forgotten, "flow")
        );
        put!(text, "{}", look.paint(Style::new().yellow(), &warning));
    }
}

/// A table without lines, indented; colours as `look` says, whatever stdout is.
pub(crate) fn plain_table(look: Look) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if look.colour {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table
}

/// The head of a column.
pub(crate) fn header(title: &str, right: bool) -> Cell {
    let cell = Cell::new(title).fg(Color::DarkGrey);
    if right {
        cell.set_alignment(CellAlignment::Right)
    } else {
        cell
    }
}

#[cfg(test)]
#[path = "status_view_tests.rs"]
pub(crate) mod tests;
