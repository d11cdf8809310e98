//! Rows with named columns that can be shown as a table or as JSON, so that the two can't drift apart.

use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::Value;

use comfy_table::{Cell, CellAlignment, Row as TableRow};

use super::{
    screen::Look,
    status_view::{header, plain_table},
};

/// Named values, in the order of the columns.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row(pub(crate) Vec<(&'static str, Value)>);

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// `row! { "name" => value, ... }`, with whatever serde_json takes as a value.
macro_rules! row {
    ($($name:literal => $value:expr),* $(,)?) => {
        $crate::cli::rows::Row(vec![$(($name, serde_json::json!($value))),*])
    };
}
pub(crate) use row;

/// The rows as a table; the columns are the first row's.
pub(crate) fn table(rows: &[Row], look: Look) -> String {
    let Some(first) = rows.first() else {
        return "nothing there".to_owned();
    };
    let mut table = plain_table(look);
    let is_number = |value: &Value| value.is_number();
    let heads = first
        .0
        .iter()
        .map(|(name, value)| header(&name.replace('_', " ").to_uppercase(), is_number(value)));
    table.set_header(TableRow::from(heads));
    for row in rows {
        let cells = row.0.iter().map(|(name, value)| {
            let cell = Cell::new(text(name, value));
            if is_number(value) {
                cell.set_alignment(CellAlignment::Right)
            } else {
                cell
            }
        });
        table.add_row(TableRow::from(cells));
    }
    let lines: Vec<String> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines.join("\n")
}

/// Columns whose numbers name something instead of counting it.
const NAMING: [&str; 8] = [
    "abi",
    "bucket",
    "first_slot",
    "id",
    "index",
    "number",
    "port",
    "service_port",
];

fn text(column: &str, value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Number(number) if !NAMING.contains(&column) => number.as_u64().map_or_else(
            || number.to_string(),
            |n| indicatif::HumanCount(n).to_string(),
        ),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_and_json_have_the_same_columns() {
        let rows = [
            row! { "client" => "10.0.0.1", "silent_s" => 1234 },
            row! { "client" => "10.0.0.22", "silent_s" => Value::Null },
        ];
        let look = Look {
            colour: false,
            width: None,
        };
        let expected = " CLIENT     SILENT S\n 10.0.0.1      1,234\n 10.0.0.22  -";
        assert_eq!(table(&rows, look), expected);
        assert_eq!(
            serde_json::to_string(&rows[0]).expect("serializes"),
            r#"{"client":"10.0.0.1","silent_s":1234}"#
        );
    }

    #[test]
    fn no_rows_are_said_to_be_none() {
        assert_eq!(
            table(
                &[],
                Look {
                    colour: false,
                    width: None
                }
            ),
            "nothing there"
        );
    }
}
