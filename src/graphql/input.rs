//! What clients send, and its way into the domain's types.

use async_graphql::{InputObject, Json, Result};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::error::{invalid_id, invalid_input};
use crate::domain::{
    MoveRequest, NewToken, PlaceId, PlaceSettingsDraft, TokenMetadata, TransitionDraft,
    TransitionId, WorkflowDraft, WorkflowId, parse_token_id,
};

pub fn workflow_id(field: &str, value: String) -> Result<WorkflowId> {
    WorkflowId::parse(value).map_err(|error| invalid_id(field, &error))
}

pub fn place_id(field: &str, value: String) -> Result<PlaceId> {
    PlaceId::parse(value).map_err(|error| invalid_id(field, &error))
}

pub fn token_id(field: &str, value: &str) -> Result<Uuid> {
    parse_token_id(value).map_err(|error| invalid_id(field, &error))
}

fn transition_id(value: String) -> Result<TransitionId> {
    TransitionId::parse(value).map_err(|error| invalid_id("transitionId", &error))
}

/// Null counts as nothing given, so that a token's data is never null.
pub fn given(value: Option<Json<Value>>) -> Option<Value> {
    value.map(|Json(value)| value).filter(|value| !value.is_null())
}

fn metadata(value: Option<Json<Value>>) -> Result<TokenMetadata> {
    match given(value) {
        None => Ok(TokenMetadata::new()),
        Some(Value::Object(members)) => Ok(members),
        Some(_) => Err(invalid_input("metadata", "use a JSON object")),
    }
}

fn version(value: Option<i32>) -> Result<Option<u32>> {
    let parse = |value: i32| u32::try_from(value).ok().filter(|version| *version >= 1);
    let rule = "versions begin at 1";
    value
        .map(|value| parse(value).ok_or_else(|| invalid_input("expectedVersion", rule)))
        .transpose()
}

/// A workflow as a client defines it.
#[derive(InputObject)]
pub struct WorkflowDefinitionInput {
    /// Chosen by the caller, else a new UUID.
    id: Option<String>,
    name: String,
    description: Option<String>,
    places: Vec<String>,
    transitions: Vec<TransitionDefinitionInput>,
    initial_place: String,
    /// Where createToken may put a token, beside initialPlace. Absent: anywhere.
    entry_places: Option<Vec<String>>,
    /// Where a token is completed, though transitions may lead on. Absent: the places that no transition leaves.
    final_places: Option<Vec<String>>,
    place_settings: Option<Vec<PlaceSettingsInput>>,
}

/// What is known of a place, for people and programs; no move depends on it.
#[derive(InputObject)]
pub struct PlaceSettingsInput {
    place: String,
    /// What people read.
    name: Option<String>,
    description: Option<String>,
    /// Any JSON object.
    metadata: Option<Json<Value>>,
}

/// A transition as a client defines it.
#[derive(InputObject)]
pub struct TransitionDefinitionInput {
    id: String,
    name: Option<String>,
    description: Option<String>,
    /// Names of places, or `*` alone: every place but exceptPlaces and toPlace, written out when stored.
    from_places: Vec<String>,
    /// With fromPlaces ["*"]: every place but these and toPlace.
    except_places: Option<Vec<String>>,
    to_place: String,
    /// CEL expressions over `token`, `input`, `next`, `now` and `caller` that must all be true.
    conditions: Option<Vec<String>>,
    /// The members of `data` that a caller may write. Absent: all.
    accepts: Option<Vec<String>>,
}

impl WorkflowDefinitionInput {
    pub fn into_draft(self) -> Result<WorkflowDraft> {
        Ok(WorkflowDraft {
            id: self.id,
            name: self.name,
            description: self.description,
            places: self.places,
            transitions: self
                .transitions
                .into_iter()
                .map(TransitionDefinitionInput::into_draft)
                .collect(),
            initial_place: self.initial_place,
            entry_places: self.entry_places,
            final_places: self.final_places,
            place_settings: self
                .place_settings
                .unwrap_or_default()
                .into_iter()
                .enumerate()
                .map(|(index, settings)| settings.into_draft(index))
                .collect::<Result<_>>()?,
        })
    }
}

impl PlaceSettingsInput {
    fn into_draft(self, index: usize) -> Result<PlaceSettingsDraft> {
        let Self { place, name, description, metadata } = self;
        let metadata = match given(metadata) {
            None => None,
            Some(Value::Object(members)) => Some(members),
            Some(_) => {
                let field = format!("placeSettings[{index}].metadata");
                return Err(invalid_input(&field, "use a JSON object"));
            }
        };
        Ok(PlaceSettingsDraft { place, name, description, metadata })
    }
}

impl TransitionDefinitionInput {
    fn into_draft(self) -> TransitionDraft {
        TransitionDraft {
            id: self.id,
            name: self.name,
            description: self.description,
            from_places: self.from_places,
            except_places: self.except_places.unwrap_or_default(),
            to_place: self.to_place,
            conditions: self.conditions.unwrap_or_default(),
            accepts: self.accepts,
        }
    }
}

/// A token as a client creates it.
#[derive(InputObject)]
pub struct TokenCreateInput {
    /// A UUID chosen by the caller, so that a retried creation cannot make a second token (TOKEN_EXISTS); else a new UUIDv7.
    id: Option<String>,
    workflow_id: String,
    /// Defaults to the workflow's initial place.
    initial_place: Option<String>,
    data: Option<Json<Value>>,
    metadata: Option<Json<Value>>,
}

impl TokenCreateInput {
    pub fn into_request(self) -> Result<(WorkflowId, Option<Uuid>, NewToken)> {
        let request = NewToken {
            place: self.initial_place.map(|place| place_id("initialPlace", place)).transpose()?,
            data: given(self.data).unwrap_or_else(|| Value::Object(Map::new())),
            metadata: metadata(self.metadata)?,
            triggered_by: None,
        };
        let id = self.id.map(|id| token_id("id", &id)).transpose()?;
        Ok((workflow_id("workflowId", self.workflow_id)?, id, request))
    }
}

/// A move as a client asks for it.
#[derive(InputObject)]
pub struct TransitionFireInput {
    token_id: String,
    transition_id: String,
    /// Merged into the token's data as a JSON Merge Patch (RFC 7396).
    data: Option<Json<Value>>,
    triggered_by: Option<String>,
    /// Fails with CONFLICT unless the token still has this version.
    expected_version: Option<i32>,
}

impl TransitionFireInput {
    pub fn into_request(self) -> Result<(Uuid, MoveRequest)> {
        let request = MoveRequest {
            transition: transition_id(self.transition_id)?,
            new_place: None,
            data: given(self.data),
            triggered_by: self.triggered_by,
            expected_version: version(self.expected_version)?,
        };
        Ok((token_id("tokenId", &self.token_id)?, request))
    }
}

/// A token in the workflow's initial place, as a client creates it.
#[derive(InputObject)]
pub struct CreateWorkflowInstanceInput {
    /// A UUID chosen by the caller, so that a retried creation cannot make a second token (TOKEN_EXISTS); else a new UUIDv7.
    id: Option<String>,
    workflow_id: String,
    initial_data: Option<Json<Value>>,
    metadata: Option<Json<Value>>,
    triggered_by: Option<String>,
}

impl CreateWorkflowInstanceInput {
    pub fn into_request(self) -> Result<(WorkflowId, Option<Uuid>, NewToken)> {
        let request = NewToken {
            place: None,
            data: given(self.initial_data).unwrap_or_else(|| Value::Object(Map::new())),
            metadata: metadata(self.metadata)?,
            triggered_by: self.triggered_by,
        };
        let id = self.id.map(|id| token_id("id", &id)).transpose()?;
        Ok((workflow_id("workflowId", self.workflow_id)?, id, request))
    }
}

/// A move as a client asks for it, with where it must lead.
#[derive(InputObject)]
#[graphql(name = "TransitionTokenWithNATSInput")]
pub struct TransitionTokenWithNatsInput {
    token_id: String,
    transition_id: String,
    /// The place that the transition leads to.
    new_place: String,
    triggered_by: Option<String>,
    /// Merged into the token's data as a JSON Merge Patch (RFC 7396).
    data: Option<Json<Value>>,
    /// Fails with CONFLICT unless the token still has this version.
    expected_version: Option<i32>,
}

impl TransitionTokenWithNatsInput {
    pub fn into_request(self) -> Result<(Uuid, MoveRequest)> {
        let request = MoveRequest {
            transition: transition_id(self.transition_id)?,
            new_place: Some(place_id("newPlace", self.new_place)?),
            data: given(self.data),
            triggered_by: self.triggered_by,
            expected_version: version(self.expected_version)?,
        };
        Ok((token_id("tokenId", &self.token_id)?, request))
    }
}
