//! What comes of a creation or a move: the token as it will be, and the events that say so.

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use super::caller::Caller;
use super::decision::Deciding;
use super::definition::{Completion, TransitionDefinition, Workflow, WorkflowDefinition};
use super::event::{EventKind, WorkflowEvent};
use super::id::{PlaceId, TransitionId, WorkflowId};
use super::limits::{EMBEDDED_DATA_BYTES_MAX, EMBEDDED_HISTORY_MAX};
use super::token::{HistoryEvent, Token, TokenMetadata};

/// A token as it will be and the events that say so. A store takes both or neither.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The token after the change.
    pub token: Token,
    /// The creation or the move; after it the completion, if the token is completed there.
    pub events: Vec<WorkflowEvent>,
    /// The life of the store in which what it was decided on was read, if that is known: in another one
    /// it is nothing.
    pub life: Option<u64>,
    /// Whether the token is completed where it comes to.
    pub completion: Completion,
}

/// What a change comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The token was created, or came from elsewhere as it is.
    Created {
        /// Who asked for it.
        by: Option<String>,
    },
    /// It moved, as the newest record of its history says.
    Moved,
}

impl Change {
    /// The change that made `token` what it is, as far as the token itself remembers it: the data of a
    /// move only up to [`EMBEDDED_DATA_BYTES_MAX`].
    pub fn newest_of(token: Token, cause: Cause, completion: Completion) -> Self {
        let newest = token.transition_history.last().zip(token.history.last());
        let event = match (cause, newest) {
            (Cause::Created { by }, _) => {
                let kind = EventKind::TokenCreated;
                let data = Some(token.data.clone());
                WorkflowEvent { data, ..WorkflowEvent::of_token(kind, &token, by) }
            }
            (Cause::Moved, None) => {
                WorkflowEvent::of_token(EventKind::TokenTransitioned, &token, None)
            }
            (Cause::Moved, Some((record, history))) => WorkflowEvent {
                transition_id: Some(record.transition_id.clone()),
                from_place: Some(record.from_place.clone()),
                data: history.data.clone(),
                ..WorkflowEvent::of_token(
                    EventKind::TokenTransitioned,
                    &token,
                    record.triggered_by.clone(),
                )
            },
        };
        Self::of(token, event, completion)
    }

    /// A change told by one event, and by another one if it completes the token.
    fn of(token: Token, event: WorkflowEvent, completion: Completion) -> Self {
        let triggered_by = event.triggered_by.clone();
        let mut events = vec![event];
        if completion != Completion::Open {
            events.push(WorkflowEvent::of_token(EventKind::TokenCompleted, &token, triggered_by));
        }
        Self { token, events, life: None, completion }
    }

    /// Where the token was before, if it has moved.
    pub fn from_place(&self) -> Option<&PlaceId> {
        self.events.iter().find_map(|event| event.from_place.as_ref())
    }

    /// What it comes from.
    pub fn cause(&self) -> Cause {
        match self.events.first() {
            Some(event) if event.kind == EventKind::TokenCreated => {
                Cause::Created { by: event.triggered_by.clone() }
            }
            _ => Cause::Moved,
        }
    }

    /// Whether it completes the token.
    pub fn completes(&self) -> bool {
        self.completion != Completion::Open
    }

    /// Whether it completes the token for good, so that it may age.
    pub fn ends(&self) -> bool {
        self.completion == Completion::ForGood
    }

    /// A token that comes from elsewhere as it is, with the event of its creation here.
    pub fn adopted(
        token: Token,
        definition: &WorkflowDefinition,
        triggered_by: Option<String>,
    ) -> Self {
        let mut event = WorkflowEvent::of_token(EventKind::TokenCreated, &token, triggered_by);
        event.data = Some(token.data.clone());
        let completion = definition.completion(&token.place);
        Self::of(token, event, completion)
    }
}

/// A request to create a token.
#[derive(Debug, Clone, Default)]
pub struct NewToken {
    /// Where to put it, if not in the workflow's initial place.
    pub place: Option<PlaceId>,
    /// Its data.
    pub data: Value,
    /// Its metadata.
    pub metadata: TokenMetadata,
    /// Who asks.
    pub triggered_by: Option<String>,
}

/// A request to move a token.
#[derive(Debug, Clone)]
pub struct MoveRequest {
    /// The transition to fire.
    pub transition: TransitionId,
    /// Where the caller expects the transition to lead.
    pub new_place: Option<PlaceId>,
    /// A JSON Merge Patch (RFC 7396) for the token's data.
    pub data: Option<Value>,
    /// Who asks.
    pub triggered_by: Option<String>,
    /// The only version of the token that may be moved.
    pub expected_version: Option<u32>,
}

/// Why a token cannot be created.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CreateError {
    /// The place that was asked for is not one of the workflow's.
    #[error("workflow {workflow} has no place {place}")]
    PlaceNotFound {
        /// The workflow.
        workflow: WorkflowId,
        /// The place that it does not have.
        place: PlaceId,
    },
    /// No token may begin in the place that was asked for.
    #[error(
        "initialPlace: no token of workflow {workflow} begins in place {place}; one may begin in {}", entries(.initial_place, .entry_places)
    )]
    NotAnEntry {
        /// The workflow.
        workflow: WorkflowId,
        /// The place that was asked for.
        place: PlaceId,
        /// Where one may begin.
        initial_place: PlaceId,
        /// Where else one may begin.
        entry_places: Vec<PlaceId>,
    },
}

fn entries(initial: &PlaceId, others: &[PlaceId]) -> String {
    let others = others.iter().filter(|place| *place != initial);
    [initial].into_iter().chain(others).map(PlaceId::as_str).collect::<Vec<_>>().join(", ")
}

impl Workflow {
    /// Decides where a new token goes, or says why there can be none.
    pub fn create_token(
        &self,
        request: NewToken,
        id: Uuid,
        caller: &Caller,
        at: DateTime<Utc>,
    ) -> Result<Change, CreateError> {
        let definition = self.definition();
        let place = request.place.unwrap_or_else(|| definition.initial_place.clone());
        if !definition.places.contains(&place) {
            return Err(CreateError::PlaceNotFound { workflow: definition.id.clone(), place });
        }
        if !definition.is_entry(&place) {
            return Err(CreateError::NotAnEntry {
                workflow: definition.id.clone(),
                initial_place: definition.initial_place.clone(),
                entry_places: definition.entry_places.clone().unwrap_or_default(),
                place,
            });
        }
        let token = Token {
            id,
            workflow_id: definition.id.clone(),
            place,
            version: 1,
            data: request.data,
            metadata: request.metadata,
            created_at: at,
            updated_at: at,
            history: Vec::new(),
            nats_sequence: None,
            nats_timestamp: None,
            nats_subject: None,
            transition_history: Vec::new(),
        };
        let triggered_by = caller.triggered_by(request.triggered_by);
        let mut event = WorkflowEvent::of_token(EventKind::TokenCreated, &token, triggered_by);
        event.data = Some(token.data.clone());
        Ok(self.change(token, event))
    }

    /// The change that a transition makes of a token, whose data will be `data`.
    pub(super) fn moved(
        &self,
        token: &Token,
        data: Value,
        transition: &TransitionDefinition,
        request: &MoveRequest,
        by: &Deciding<'_>,
    ) -> Change {
        let from_place = token.place.clone();
        let mut token = Token {
            id: token.id,
            workflow_id: token.workflow_id.clone(),
            place: transition.to_place.clone(),
            version: token.version + 1,
            data,
            metadata: token.metadata.clone(),
            created_at: token.created_at,
            updated_at: by.now,
            history: token.history.clone(),
            // Facts of a stored message; the store that keeps the new one knows its own.
            nats_sequence: None,
            nats_timestamp: None,
            nats_subject: None,
            transition_history: token.transition_history.clone(),
        };
        let event = WorkflowEvent {
            transition_id: Some(transition.id.clone()),
            from_place: Some(from_place),
            data: request.data.clone(),
            ..WorkflowEvent::of_token(
                EventKind::TokenTransitioned,
                &token,
                by.caller.triggered_by(request.triggered_by.clone()),
            )
        };
        remember(&mut token, &event);
        self.change(token, event)
    }

    fn change(&self, token: Token, event: WorkflowEvent) -> Change {
        let completion = self.definition().completion(&token.place);
        Change::of(token, event, completion)
    }
}

/// Adds a move to what the token carries of its past and drops what is too old for that.
fn remember(token: &mut Token, event: &WorkflowEvent) {
    let Some(record) = event.transition_record() else { return };
    let short = |data: &&Value| data.to_string().len() <= EMBEDDED_DATA_BYTES_MAX;
    token.history.push(HistoryEvent {
        timestamp: record.timestamp,
        transition: record.transition_id.clone(),
        from_place: record.from_place.clone(),
        to_place: record.to_place.clone(),
        data: event.data.as_ref().filter(short).cloned(),
    });
    token.transition_history.push(record);
    let excess = token.history.len().saturating_sub(EMBEDDED_HISTORY_MAX);
    token.history.drain(..excess);
    let excess = token.transition_history.len().saturating_sub(EMBEDDED_HISTORY_MAX);
    token.transition_history.drain(..excess);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::samples::{asks, at, fire, token, workflow};
    use serde_json::json;

    #[test]
    fn a_move_changes_place_version_time_and_data_and_nothing_else() {
        let before = token(json!({ "paid": true, "n": 1, "drop": 1 }));
        let request = asks("pack", Some(json!({ "box": "B", "drop": null })));
        let Change { token: after, events, .. } = fire(&before, &request, at(9)).unwrap();
        let data = json!({ "paid": true, "n": 1, "box": "B" });
        let place: PlaceId = "packed".parse().unwrap();
        assert_eq!((&*after.place, after.version, after.updated_at), ("packed", 2, at(9)));
        let same = Token { history: vec![], transition_history: vec![], ..after.clone() };
        let expected =
            Token { place: place.clone(), version: 2, data, updated_at: at(9), ..before.clone() };
        assert_eq!(same, expected);

        let [event] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!(event.kind, EventKind::TokenTransitioned);
        assert_eq!(
            (event.from_place.as_deref(), event.to_place.clone()),
            (Some("open"), Some(place))
        );
        assert_eq!((event.token_version, event.timestamp), (Some(2), at(9)));
        assert_eq!(event.data, request.data, "the event has what was asked, not what came of it");
        assert_eq!(after.transition_history, [event.transition_record().unwrap()]);
        assert_eq!(after.history[0].data, request.data);
    }

    #[test]
    fn where_nothing_leads_on_a_token_is_complete() {
        let kinds = |change: &Change| change.events.iter().map(|e| e.kind).collect::<Vec<_>>();
        let open = token(json!({ "paid": true, "n": 1 }));
        let done = fire(&open, &asks("cancel", None), at(9)).unwrap();
        assert_eq!(kinds(&done), [EventKind::TokenTransitioned, EventKind::TokenCompleted]);
        assert_eq!(done.events[1].triggered_by.as_deref(), Some("ann"));
        let born = NewToken { place: Some("gone".parse().unwrap()), ..NewToken::default() };
        let born =
            workflow().create_token(born, Uuid::from_u128(8), &Caller::anyone(), at(0)).unwrap();
        assert_eq!(kinds(&born), [EventKind::TokenCreated, EventKind::TokenCompleted]);
    }

    #[test]
    fn a_token_remembers_its_newest_change() {
        let born = NewToken {
            data: json!({ "paid": true, "n": 1 }),
            triggered_by: Some("bo".to_owned()),
            ..NewToken::default()
        };
        let mut change =
            workflow().create_token(born, Uuid::from_u128(8), &Caller::anyone(), at(0)).unwrap();
        for transition in ["note", "pack", "cancel"] {
            let remembered =
                Change::newest_of(change.token.clone(), change.cause(), change.completion);
            assert_eq!(remembered, change);
            let request = asks(transition, Some(json!({ "by": transition })));
            change = fire(&change.token, &request, at(3)).unwrap();
        }
        let remembered = Change::newest_of(change.token.clone(), Cause::Moved, Completion::ForGood);
        assert_eq!(remembered, change);
        assert_eq!(change.from_place().map(PlaceId::as_str), Some("packed"));
    }

    #[test]
    fn a_token_remembers_its_newest_moves_and_short_data_alone() {
        let mut token = token(json!({}));
        let quotes = EMBEDDED_DATA_BYTES_MAX - 2;
        for n in 0..20 {
            let data = match n {
                18 => json!("x".repeat(quotes)),
                19 => json!("x".repeat(quotes + 1)),
                n => json!({ "n": n }),
            };
            let change = fire(&token, &asks("note", Some(data.clone())), at(n)).unwrap();
            assert_eq!(change.events[0].data, Some(data), "the event has all");
            token = change.token;
        }
        assert_eq!(token.history.len(), EMBEDDED_HISTORY_MAX);
        assert_eq!(token.transition_history.len(), EMBEDDED_HISTORY_MAX);
        let oldest = 20 - EMBEDDED_HISTORY_MAX as i64;
        assert_eq!(token.history[0].timestamp, at(oldest), "the newest, oldest first");
        assert!(token.history[EMBEDDED_HISTORY_MAX - 2].data.is_some());
        assert!(token.history[EMBEDDED_HISTORY_MAX - 1].data.is_none());
    }
}
