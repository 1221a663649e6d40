//! What was stored once must load for ever: these files are of the first version, and of later ones.

use std::path::Path;

use circuit_breaker::domain::{Workflow, WorkflowEvent};
use circuit_breaker::{Token, WorkflowDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Loads a file and writes it again: every field is understood, none is lost.
fn loads_and_keeps<T: DeserializeOwned + Serialize>(name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let text = std::fs::read_to_string(path).unwrap();
    let record: T = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_string(&record).unwrap(), text.trim(), "{name}");
    record
}

#[test]
fn a_token_of_version_1_loads() {
    let token: Token = loads_and_keeps("token-1.json");
    assert_eq!(token.version, 3);
    assert_eq!(token.transition_history[1].triggered_by.as_deref(), Some("manager@example.com"));
}

#[test]
fn a_workflow_of_version_1_loads_and_compiles() {
    let definition: WorkflowDefinition = loads_and_keeps("workflow-1.json");
    Workflow::load(definition, &|| true).unwrap();
}

/// With all that a definition can say since, and a condition that is refused by now where it is new.
#[test]
fn a_workflow_of_version_2_loads_and_does_what_it_did() {
    let definition: WorkflowDefinition = loads_and_keeps("workflow-2.json");
    let workflow = Workflow::load(definition.clone(), &|| true).unwrap();
    assert_eq!(*workflow.definition(), definition);
}

#[test]
fn events_of_version_1_load() {
    for name in [
        "event-workflow-created-1.json",
        "event-token-created-1.json",
        "event-token-transitioned-1.json",
        "event-token-completed-1.json",
    ] {
        loads_and_keeps::<WorkflowEvent>(name);
    }
}
