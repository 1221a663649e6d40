//! Where everything is: as a table, and as a diagram.

use serde_json::Value;

/// Titles of one place in the table; the count says how many there are.
const TITLES_MAX: usize = 3;

/// One line for each place, with how many tokens are there and which came first.
pub fn table(places: &[(String, Vec<String>)]) -> String {
    let width = places.iter().map(|(place, _)| place.len()).max().unwrap_or(0).max(5);
    let mut table = format!("{:<width$}  tokens\n", "place");
    let mut total = 0;
    for (place, titles) in places {
        total += titles.len();
        let mut shown = titles.iter().take(TITLES_MAX).cloned().collect::<Vec<_>>().join(", ");
        if titles.len() > TITLES_MAX {
            shown += ", …";
        }
        let line = format!("{place:<width$}  {:>6}  {shown}", titles.len());
        table += &format!("{}\n", line.trim_end());
    }
    table + &format!("{:<width$}  {total:>6}\n", "in all")
}

/// The workflow as a Mermaid flowchart, which Markdown files and many wikis draw.
pub fn mermaid(definition: &Value, places: &[(String, Vec<String>)]) -> String {
    // Names of places may be words of Mermaid, such as `end`: numbers are not.
    let number = |name: &Value| places.iter().position(|(place, _)| name == place.as_str());
    let mut lines = vec!["```mermaid".to_owned(), "flowchart LR".to_owned()];
    for (number, (place, titles)) in places.iter().enumerate() {
        lines.push(format!("    p{number}[\"{place}: {}\"]", titles.len()));
    }
    for transition in definition["transitions"].as_array().into_iter().flatten() {
        let Some(to) = number(&transition["toPlace"]) else { continue };
        let id = transition["id"].as_str().unwrap_or_default();
        for from in transition["fromPlaces"].as_array().into_iter().flatten().filter_map(number) {
            lines.push(format!("    p{from} -->|{id}| p{to}"));
        }
    }
    lines.push("```\n".to_owned());
    lines.join("\n")
}
