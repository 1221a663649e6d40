//! The decision: what a request does to a token, or why it may not.

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use super::condition::{Condition, Scope, Verdict};
use super::definition::{TransitionDefinition, Workflow, WorkflowDefinition};
use super::event::{EventKind, WorkflowEvent};
use super::id::{PlaceId, TransitionId, WorkflowId};
use super::json::merge_patch;
use super::limits::{EMBEDDED_DATA_BYTES_MAX, EMBEDDED_HISTORY_MAX, VERSION_MAX};
use super::token::{HistoryEvent, Token, TokenMetadata};

/// A token as it will be and the events that say so. A store takes both or neither.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The token after the change.
    pub token: Token,
    /// The creation or the move; after it the completion, if the token can go nowhere from there.
    pub events: Vec<WorkflowEvent>,
    /// The life of the store in which what it was decided on was read, if that is known: in another one
    /// it is nothing.
    pub life: Option<u64>,
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
    /// move only up to [`EMBEDDED_DATA_BYTES_MAX`]. It `completes` the token or does not.
    pub fn newest_of(token: Token, cause: Cause, completes: bool) -> Self {
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
        let triggered_by = event.triggered_by.clone();
        let mut events = vec![event];
        if completes {
            events.push(WorkflowEvent::of_token(EventKind::TokenCompleted, &token, triggered_by));
        }
        Self { token, events, life: None }
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
        self.events.iter().any(|event| event.kind == EventKind::TokenCompleted)
    }

    /// A token that comes from elsewhere as it is, with the event of its creation here.
    pub fn adopted(
        token: Token,
        definition: &WorkflowDefinition,
        triggered_by: Option<String>,
    ) -> Self {
        let mut event =
            WorkflowEvent::of_token(EventKind::TokenCreated, &token, triggered_by.clone());
        event.data = Some(token.data.clone());
        let mut events = vec![event];
        if definition.final_places().any(|place| *place == token.place) {
            events.push(WorkflowEvent::of_token(EventKind::TokenCompleted, &token, triggered_by));
        }
        Self { token, events, life: None }
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
}

/// Why a token may not move. Nothing has changed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MoveError {
    /// The token is at another version than the caller expects.
    #[error("token {token} is at version {actual} in place {place}, not at version {expected}")]
    VersionMismatch {
        /// The token.
        token: Uuid,
        /// The version that the caller named.
        expected: u32,
        /// The version that it has.
        actual: u32,
        /// Where it is.
        place: PlaceId,
    },
    /// The workflow has no such transition.
    #[error("workflow {workflow} has no transition {transition}")]
    TransitionNotFound {
        /// The workflow.
        workflow: WorkflowId,
        /// The transition that it does not have.
        transition: TransitionId,
    },
    /// The transition leads elsewhere than the caller expects.
    #[error("transition {transition} leads to {to_place}, not to {new_place}")]
    PlaceMismatch {
        /// The transition.
        transition: TransitionId,
        /// Where it leads.
        to_place: PlaceId,
        /// Where the caller expected it to lead.
        new_place: PlaceId,
    },
    /// The transition does not start where the token is.
    #[error("transition {transition} starts from {}, but token {token} is in {place}, from where {}", list(.from_places), may_fire(.enabled))]
    NotAllowed {
        /// The token.
        token: Uuid,
        /// The transition.
        transition: TransitionId,
        /// Where the token is.
        place: PlaceId,
        /// Where the transition starts.
        from_places: Vec<PlaceId>,
        /// The transitions that start where the token is, whatever their conditions say.
        enabled: Vec<TransitionId>,
    },
    /// A condition of the transition does not hold.
    #[error("condition {condition} of transition {transition} is false for token {token}")]
    ConditionFalse {
        /// The token.
        token: Uuid,
        /// The transition.
        transition: TransitionId,
        /// The condition, as it is written in the definition.
        condition: String,
    },
    /// A condition could not be evaluated on this token and request.
    #[error(
        "condition {condition} of transition {transition} could not be evaluated for token {token}: {reason}"
    )]
    ConditionFailed {
        /// The token.
        token: Uuid,
        /// The transition.
        transition: TransitionId,
        /// The condition, as it is written in the definition.
        condition: String,
        /// Why not.
        reason: String,
    },
    /// The token has made as many moves as a token can make.
    #[error("token {token} has made {VERSION_MAX} moves, the most that one token can make")]
    VersionsUsedUp {
        /// The token.
        token: Uuid,
    },
}

fn list(names: &[PlaceId]) -> String {
    names.iter().map(PlaceId::as_str).collect::<Vec<_>>().join(", ")
}

fn may_fire(transitions: &[TransitionId]) -> String {
    match transitions {
        [] => "no transition leads on".to_owned(),
        some => format!(
            "{} may fire",
            some.iter().map(TransitionId::as_str).collect::<Vec<_>>().join(", ")
        ),
    }
}

impl Workflow {
    /// Decides where a new token goes, or says why there can be none.
    pub fn create_token(
        &self,
        request: NewToken,
        id: Uuid,
        at: DateTime<Utc>,
    ) -> Result<Change, CreateError> {
        let definition = self.definition();
        let place = match request.place {
            None => definition.initial_place.clone(),
            Some(place) if definition.places.contains(&place) => place,
            Some(place) => {
                return Err(CreateError::PlaceNotFound { workflow: definition.id.clone(), place });
            }
        };
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
        let mut event =
            WorkflowEvent::of_token(EventKind::TokenCreated, &token, request.triggered_by);
        event.data = Some(token.data.clone());
        Ok(self.change(token, event))
    }

    /// Moves `token` as `request` asks, or says why it may not move.
    ///
    /// Conditions see the token as it was before the move.
    pub fn fire(
        &self,
        token: &Token,
        request: &MoveRequest,
        at: DateTime<Utc>,
    ) -> Result<Change, MoveError> {
        if let Some(expected) = request.expected_version
            && expected != token.version
        {
            return Err(MoveError::VersionMismatch {
                token: token.id,
                expected,
                actual: token.version,
                place: token.place.clone(),
            });
        }
        let (index, transition) = self.find_transition(&request.transition)?;
        if let Some(new_place) = &request.new_place
            && *new_place != transition.to_place
        {
            return Err(MoveError::PlaceMismatch {
                transition: transition.id.clone(),
                to_place: transition.to_place.clone(),
                new_place: new_place.clone(),
            });
        }
        if !transition.from_places.contains(&token.place) {
            return Err(MoveError::NotAllowed {
                token: token.id,
                transition: transition.id.clone(),
                enabled: self.leading_from(&token.place).map(|(_, t)| t.id.clone()).collect(),
                place: token.place.clone(),
                from_places: transition.from_places.clone(),
            });
        }
        if token.version >= VERSION_MAX {
            return Err(MoveError::VersionsUsedUp { token: token.id });
        }
        self.check_conditions(index, transition, token, request.data.as_ref())?;
        Ok(self.moved(token.clone(), transition, request, at))
    }

    /// The transitions that may fire from where `token` is and whose conditions hold for it.
    ///
    /// A condition that cannot be evaluated, for example because it asks for `input`, does not hold.
    pub fn available_transitions<'a>(&'a self, token: &'a Token) -> Vec<&'a TransitionDefinition> {
        let scope = Scope::new(token, None);
        self.leading_from(&token.place)
            .filter(|(index, _)| {
                self.conditions(*index)
                    .iter()
                    .all(|condition| scope.evaluate(condition) == Verdict::True)
            })
            .map(|(_, transition)| transition)
            .collect()
    }

    /// Whether to fire `transition` may take milliseconds: a condition of it loops over data.
    pub fn may_take_long(&self, transition: &TransitionId) -> bool {
        let found = self.find_transition(transition);
        found.is_ok_and(|(index, _)| self.conditions(index).iter().any(Condition::loops))
    }

    fn find_transition(
        &self,
        id: &TransitionId,
    ) -> Result<(usize, &TransitionDefinition), MoveError> {
        let mut transitions = self.definition().transitions.iter().enumerate();
        transitions.find(|(_, transition)| transition.id == *id).ok_or_else(|| {
            MoveError::TransitionNotFound {
                workflow: self.definition().id.clone(),
                transition: id.clone(),
            }
        })
    }

    fn leading_from<'a>(
        &'a self,
        place: &'a PlaceId,
    ) -> impl Iterator<Item = (usize, &'a TransitionDefinition)> {
        let transitions = self.definition().transitions.iter().enumerate();
        transitions.filter(move |(_, transition)| transition.from_places.contains(place))
    }

    fn check_conditions(
        &self,
        index: usize,
        transition: &TransitionDefinition,
        token: &Token,
        input: Option<&Value>,
    ) -> Result<(), MoveError> {
        let conditions = self.conditions(index);
        if conditions.is_empty() {
            return Ok(());
        }
        let scope = Scope::new(token, input);
        for condition in conditions {
            let (token, transition) = (token.id, transition.id.clone());
            let source = || condition.source().to_owned();
            match scope.evaluate(condition) {
                Verdict::True => {}
                Verdict::False => {
                    return Err(MoveError::ConditionFalse {
                        token,
                        transition,
                        condition: source(),
                    });
                }
                Verdict::Failed(reason) => {
                    return Err(MoveError::ConditionFailed {
                        token,
                        transition,
                        condition: source(),
                        reason,
                    });
                }
            }
        }
        Ok(())
    }

    fn moved(
        &self,
        mut token: Token,
        transition: &TransitionDefinition,
        request: &MoveRequest,
        at: DateTime<Utc>,
    ) -> Change {
        let from_place = std::mem::replace(&mut token.place, transition.to_place.clone());
        token.version += 1;
        token.updated_at = at;
        if let Some(patch) = &request.data {
            merge_patch(&mut token.data, patch);
        }
        // Facts of the stored message of before; the store that keeps the new one knows its own.
        (token.nats_sequence, token.nats_timestamp, token.nats_subject) = (None, None, None);

        let event = WorkflowEvent {
            transition_id: Some(transition.id.clone()),
            from_place: Some(from_place),
            data: request.data.clone(),
            ..WorkflowEvent::of_token(
                EventKind::TokenTransitioned,
                &token,
                request.triggered_by.clone(),
            )
        };
        remember(&mut token, &event);
        self.change(token, event)
    }

    fn change(&self, token: Token, event: WorkflowEvent) -> Change {
        let mut events = vec![event];
        if self.leading_from(&token.place).next().is_none() {
            let triggered_by = events[0].triggered_by.clone();
            events.push(WorkflowEvent::of_token(EventKind::TokenCompleted, &token, triggered_by));
        }
        Change { token, events, life: None }
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
    use crate::domain::{TransitionDraft, WorkflowDraft};
    use serde_json::json;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_764_000_000 + seconds, 0).unwrap()
    }

    fn workflow() -> Workflow {
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
            description: None,
            places: ["open", "packed", "sent", "gone"].map(str::to_owned).to_vec(),
            transitions: vec![
                transition("pack", &["open"], "packed", &["token.data.paid", "token.data.n > 0"]),
                transition("send", &["packed"], "sent", &["input.carrier != ''"]),
                transition("cancel", &["open", "packed"], "gone", &[]),
                transition("note", &["open"], "open", &[]),
            ],
            initial_place: "open".to_owned(),
        };
        Workflow::check(draft, at(0)).unwrap()
    }

    fn token(data: Value) -> Token {
        let new = NewToken { data, ..NewToken::default() };
        workflow().create_token(new, Uuid::from_u128(7), at(0)).unwrap().token
    }

    fn asks(transition: &str, data: Option<Value>) -> MoveRequest {
        MoveRequest {
            transition: transition.parse().unwrap(),
            new_place: None,
            data,
            triggered_by: Some("ann".to_owned()),
            expected_version: None,
        }
    }

    #[test]
    fn a_move_changes_place_version_time_and_data_and_nothing_else() {
        let before = token(json!({ "paid": true, "n": 1, "drop": 1 }));
        let request = asks("pack", Some(json!({ "box": "B", "drop": null })));
        let Change { token: after, events, .. } =
            workflow().fire(&before, &request, at(9)).unwrap();
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
    fn what_may_not_move_says_why_in_a_fixed_order() {
        let refused =
            |place: &str, version: Option<u32>, to: Option<&str>, transition: &str, data| {
                let mut token = token(data);
                token.place = place.parse().unwrap();
                let request = MoveRequest {
                    new_place: to.map(|to| to.parse().unwrap()),
                    expected_version: version,
                    ..asks(transition, None)
                };
                workflow().fire(&token, &request, at(9)).unwrap_err().to_string()
            };
        let good = || json!({ "paid": true, "n": 1 });
        let id = Uuid::from_u128(7);
        for (message, expected) in [
            // The version comes first: who asks about another version asks about another token.
            (
                refused("open", Some(2), Some("x"), "none", good()),
                format!("token {id} is at version 1 in place open, not at version 2"),
            ),
            (
                refused("open", Some(1), Some("x"), "none", good()),
                "workflow w has no transition none".to_owned(),
            ),
            (
                refused("sent", None, Some("x"), "pack", good()),
                "transition pack leads to packed, not to x".to_owned(),
            ),
            (
                refused("sent", None, None, "pack", good()),
                format!(
                    "transition pack starts from open, but token {id} is in sent, from where no transition leads on"
                ),
            ),
            (
                refused("packed", None, None, "pack", good()),
                format!(
                    "transition pack starts from open, but token {id} is in packed, from where send, cancel may fire"
                ),
            ),
            (
                refused("open", None, None, "pack", json!({ "paid": false })),
                format!("condition token.data.paid of transition pack is false for token {id}"),
            ),
            (
                refused("open", None, None, "pack", json!({ "paid": true, "n": 0 })),
                format!("condition token.data.n > 0 of transition pack is false for token {id}"),
            ),
        ] {
            assert_eq!(message, expected);
        }
        let failed = refused("packed", None, None, "send", good());
        assert!(failed.contains("could not be evaluated"), "{failed}");
    }

    #[test]
    fn a_token_at_the_last_version_moves_no_more() {
        let mut token = token(json!({}));
        token.version = VERSION_MAX - 1;
        let moved = workflow().fire(&token, &asks("note", None), at(9)).unwrap().token;
        assert_eq!(moved.version, VERSION_MAX);
        let error = workflow().fire(&moved, &asks("note", None), at(9)).unwrap_err();
        assert!(matches!(error, MoveError::VersionsUsedUp { .. }), "{error}");
    }

    #[test]
    fn where_nothing_leads_on_a_token_is_complete() {
        let kinds = |change: &Change| change.events.iter().map(|e| e.kind).collect::<Vec<_>>();
        let open = token(json!({ "paid": true, "n": 1 }));
        let done = workflow().fire(&open, &asks("cancel", None), at(9)).unwrap();
        assert_eq!(kinds(&done), [EventKind::TokenTransitioned, EventKind::TokenCompleted]);
        assert_eq!(done.events[1].triggered_by.as_deref(), Some("ann"));
        let born = NewToken { place: Some("gone".parse().unwrap()), ..NewToken::default() };
        let born = workflow().create_token(born, Uuid::from_u128(8), at(0)).unwrap();
        assert_eq!(kinds(&born), [EventKind::TokenCreated, EventKind::TokenCompleted]);
    }

    #[test]
    fn a_token_remembers_its_newest_change() {
        let born = NewToken {
            data: json!({ "paid": true, "n": 1 }),
            triggered_by: Some("bo".to_owned()),
            ..NewToken::default()
        };
        let mut change = workflow().create_token(born, Uuid::from_u128(8), at(0)).unwrap();
        for transition in ["note", "pack", "cancel"] {
            let remembered =
                Change::newest_of(change.token.clone(), change.cause(), change.completes());
            assert_eq!(remembered, change);
            let request = asks(transition, Some(json!({ "by": transition })));
            change = workflow().fire(&change.token, &request, at(3)).unwrap();
        }
        let remembered = Change::newest_of(change.token.clone(), Cause::Moved, true);
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
            let change = workflow().fire(&token, &asks("note", Some(data.clone())), at(n)).unwrap();
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

    #[test]
    fn available_are_those_that_start_here_and_whose_conditions_hold() {
        let available = |place: &str, data: Value| {
            let mut token = token(data);
            token.place = place.parse().unwrap();
            let workflow = workflow();
            let found = workflow.available_transitions(&token);
            found.iter().map(|t| t.id.to_string()).collect::<Vec<_>>().join(" ")
        };
        for (place, data, expected) in [
            ("open", json!({ "paid": true, "n": 1 }), "pack cancel note"),
            ("open", json!({ "paid": true, "n": 0 }), "cancel note"),
            ("open", json!({}), "cancel note"),
            // `send` asks for something in `input`, which there is none of.
            ("packed", json!({}), "cancel"),
            ("sent", json!({}), ""),
        ] {
            assert_eq!(available(place, data.clone()), expected, "{place} {data}");
        }
    }
}
