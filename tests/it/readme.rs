//! The README's walk, sent as it stands there.

use serde_json::{Value, json};

use crate::support::{Api, Backend, runtime};

/// Fenced blocks: what stands behind the opening fence, and the text.
fn blocks(document: &str) -> Vec<(&str, String)> {
    let mut blocks = Vec::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        if let Some(kind) = line.strip_prefix("```") {
            let text: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push((kind, text.join("\n")));
        }
    }
    blocks
}

#[test]
fn every_request_of_the_readme_gets_the_answer_beside_it() {
    let blocks = blocks(include_str!("../../README.md"));
    let mut asked = 0;
    for backend in Backend::all() {
        let api = Api::new(backend);
        runtime().block_on(async {
            for pair in blocks.windows(2) {
                let [("graphql", query), (kind, expected)] = pair else { continue };
                asked += 1;
                if *kind == "error" {
                    let error = api.error(query, json!({})).await;
                    assert_eq!(error["extensions"]["code"], expected.as_str(), "{query}");
                } else {
                    assert_eq!(*kind, "json", "{query}");
                    let expected: Value = serde_json::from_str(expected).unwrap();
                    assert_eq!(api.data(query, json!({})).await, expected, "{query}");
                }
            }
        });
    }
    let written = blocks.iter().filter(|(kind, _)| *kind == "graphql").count();
    assert_eq!(asked, written * Backend::all().len());
    assert!(written >= 7, "{written}");
}
