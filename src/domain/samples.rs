//! A workflow, its tokens and what is asked of them, for the tests of this room.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use super::limits::STEPS_MAX;
use super::{
    Caller, Change, Deciding, MoveError, MoveRequest, NewToken, Steps, Token, TransitionDraft,
    Workflow, WorkflowDraft,
};

pub fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_764_000_000 + seconds, 0).unwrap()
}

pub fn workflow() -> Workflow {
    let transition = |id: &str, from: &[&str], to: &str, conditions: &[&str]| TransitionDraft {
        id: id.to_owned(),
        from_places: from.iter().map(ToString::to_string).collect(),
        to_place: to.to_owned(),
        conditions: conditions.iter().map(ToString::to_string).collect(),
        ..TransitionDraft::default()
    };
    let draft = WorkflowDraft {
        id: Some("w".to_owned()),
        name: "Orders".to_owned(),
        places: ["open", "packed", "sent", "gone"].map(str::to_owned).to_vec(),
        transitions: vec![
            transition("pack", &["open"], "packed", &["token.data.paid", "token.data.n > 0"]),
            transition("send", &["packed"], "sent", &["input.carrier != ''"]),
            transition("cancel", &["open", "packed"], "gone", &[]),
            transition("note", &["open"], "open", &[]),
        ],
        initial_place: "open".to_owned(),
        ..WorkflowDraft::default()
    };
    Workflow::check(draft, at(0)).unwrap()
}

pub fn fire(token: &Token, request: &MoveRequest, now: DateTime<Utc>) -> Result<Change, MoveError> {
    let steps = Arc::new(Steps::new(STEPS_MAX));
    let by = Deciding { caller: &Caller::anyone(), now, steps: &steps };
    workflow().fire(token, request, &by)
}

pub fn token(data: Value) -> Token {
    let new = NewToken { data, ..NewToken::default() };
    workflow().create_token(new, Uuid::from_u128(7), &Caller::anyone(), at(0)).unwrap().token
}

pub fn asks(transition: &str, data: Option<Value>) -> MoveRequest {
    MoveRequest {
        transition: transition.parse().unwrap(),
        new_place: None,
        data,
        triggered_by: Some("ann".to_owned()),
        expected_version: None,
    }
}
