//! What the rows should reach.

/// Of the data path: at most so many times the floor.
const TIMES_FLOOR: [(&str, f64); 10] = [
    ("tcp4_one_flow", 3.0),
    ("udp4_one_flow", 3.0),
    ("tcp4_1m_flows", 4.0),
    ("udp4_1m_flows", 4.0),
    ("syn4_flood", 4.0),
    ("not_ours", 1.5),
    ("tcp6_1m_flows", 5.0),
    ("transition_10pct", 10.0),
    ("services_4096", 8.0),
    ("track_always_1m", 25.0),
];

/// Of live frames: at least this share of the floor's rate.
pub(crate) const LIVE_RATE: f64 = 0.9;

/// The target of a row of the data path, if it has one.
pub(crate) fn times_floor(name: &str) -> Option<f64> {
    TIMES_FLOOR
        .iter()
        .find(|(row, _)| *row == name)
        .map(|(_, target)| *target)
}
