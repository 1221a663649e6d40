//! Reads the definitions and the rows of the example from their files.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value};

/// One document, order or incident, and what happens to it.
#[derive(Deserialize)]
pub struct Row {
    pub data: Value,
    #[serde(default)]
    pub metadata: Value,
    pub moves: Vec<Move>,
}

/// A transition to fire, who fires it, and the data that goes with it.
#[derive(Deserialize)]
pub struct Move {
    pub transition: String,
    pub by: String,
    #[serde(default)]
    pub data: Value,
}

impl Row {
    pub fn title(&self) -> &str {
        self.data["title"].as_str().unwrap_or_default()
    }
}

fn path(folder: &str, file: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "examples", folder, file].iter().collect()
}

fn read(path: &PathBuf) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// The definition of a workflow, as `createWorkflow` takes it.
pub fn definition(workflow: &str) -> Result<Value, String> {
    let path = path("workflows", &format!("{workflow}.json"));
    serde_json::from_str(&read(&path)?).map_err(|error| format!("{}: {error}", path.display()))
}

/// The rows of a CSV or JSON file.
pub fn rows(file: &str) -> Result<Vec<Row>, String> {
    let path = path("data", file);
    let text = read(&path)?;
    let rows = if file.ends_with(".csv") {
        from_csv(&text)
    } else {
        serde_json::from_str(&text).map_err(|error| error.to_string())
    };
    rows.map_err(|error| format!("{}: {error}", path.display()))
}

/// Each column is a member of the data, or of the metadata where it says so; but `moves` says what happens:
/// `submit by ann; approve by ben reviewer=ben`.
fn from_csv(text: &str) -> Result<Vec<Row>, String> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let columns = reader.headers().map_err(|error| error.to_string())?.clone();
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| error.to_string())?;
        let line = record.position().map_or(0, csv::Position::line);
        let mut row = Row { data: Value::Null, metadata: Value::Null, moves: Vec::new() };
        let (mut data, mut metadata) = (Map::new(), Map::new());
        for (column, text) in columns.iter().zip(&record) {
            if column == "moves" {
                row.moves = moves(text).map_err(|error| format!("line {line}: {error}"))?;
            } else {
                let number = text.parse::<i64>().map(Value::from);
                let value = number.unwrap_or_else(|_| text.into());
                match column.strip_prefix("metadata.") {
                    Some(name) => metadata.insert(name.to_owned(), value),
                    None => data.insert(column.to_owned(), value),
                };
            }
        }
        (row.data, row.metadata) = (data.into(), metadata.into());
        rows.push(row);
    }
    Ok(rows)
}

fn moves(text: &str) -> Result<Vec<Move>, String> {
    let one = |text: &str| {
        let words: Vec<_> = text.split_whitespace().collect();
        let [transition, "by", by, members @ ..] = words.as_slice() else {
            return Err(format!("{text:?} is not a move such as: submit by ann"));
        };
        let member = |member: &&str| {
            let (name, value) = member.split_once('=').ok_or_else(|| {
                format!("{member:?} in {text:?} is not a member such as: reviewer=ben")
            })?;
            Ok((name.to_owned(), Value::from(value)))
        };
        let data = members.iter().map(member).collect::<Result<Map<_, _>, String>>()?;
        let data = if data.is_empty() { Value::Null } else { data.into() };
        Ok(Move { transition: (*transition).to_owned(), by: (*by).to_owned(), data })
    };
    text.split(';').filter(|part| !part.trim().is_empty()).map(one).collect()
}
