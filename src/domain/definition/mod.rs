//! The definition of a workflow.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

mod check;
mod difference;
mod draft;
mod soundness;

pub use check::{Problem, ProblemKind};
pub use draft::{PlaceSettingsDraft, TransitionDraft, WorkflowDraft};
pub use soundness::{SoundnessCode, SoundnessWarning};

use self::check::Checker;
use super::condition::Condition;
use super::id::{PlaceId, TransitionId, WorkflowId};
use super::json::memory_of_fields;

/// Places and the transitions between them. Its JSON is its stored form on every backend.
///
/// It never changes once it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkflowDefinition {
    /// Chosen by the client, or a new UUID.
    pub id: WorkflowId,
    /// For people; not empty.
    pub name: String,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Where a token can be; at least one, none twice.
    pub places: Vec<PlaceId>,
    /// How a token can move; no id twice.
    pub transitions: Vec<TransitionDefinition>,
    /// Where a new token is put unless the client says otherwise; one of `places`.
    pub initial_place: PlaceId,
    /// Where else a client may put a new token; anywhere where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry_places: Option<Vec<PlaceId>>,
    /// Where a token is completed, whether transitions lead on or not; the places that none leaves where there is
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_places: Option<Vec<PlaceId>>,
    /// What else is known of places, at most once of each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub place_settings: Vec<PlaceSettings>,
    /// When it was stored.
    #[serde(with = "crate::domain::time")]
    pub created_at: DateTime<Utc>,
    /// The same, as definitions do not change.
    #[serde(with = "crate::domain::time")]
    pub updated_at: DateTime<Utc>,
}

/// What is known of a place, for people and programs; no move depends on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlaceSettings {
    /// One of the workflow's places.
    pub place: PlaceId,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// For programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
}

/// A way from any of several places to one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TransitionDefinition {
    /// Unique in its workflow.
    pub id: TransitionId,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The token may be in any one of these; at least one.
    pub from_places: Vec<PlaceId>,
    /// Where the token goes.
    pub to_place: PlaceId,
    /// CEL expressions that must all be true.
    #[serde(default)]
    pub conditions: Vec<String>,
    /// The members of a request's data that the transition takes; all where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepts: Option<Vec<String>>,
}

/// Whether a token in a place is completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Completion {
    /// It is not.
    Open,
    /// It is, and a transition still leaves the place: the token is live.
    Reopens,
    /// It is for good: the token is history from then on.
    ForGood,
}

/// A definition that holds every rule, with its conditions ready to be evaluated.
#[derive(Debug)]
pub struct Workflow {
    definition: WorkflowDefinition,
    /// As many as there are transitions, in their order.
    conditions: Vec<Vec<Condition>>,
}

impl Workflow {
    /// Checks a draft and compiles its conditions, or lists all that is wrong with it.
    ///
    /// The parser of conditions recurses: call this on a thread with
    /// [`super::condition::PARSER_STACK_BYTES`] of stack.
    pub fn check(draft: WorkflowDraft, created_at: DateTime<Utc>) -> Result<Self, Vec<Problem>> {
        Self::check_while(&|| true, draft, created_at)
    }

    /// The same for as long as the answer is `wanted`; after that it ends with any answer.
    pub fn check_while(
        wanted: &dyn Fn() -> bool,
        draft: WorkflowDraft,
        created_at: DateTime<Utc>,
    ) -> Result<Self, Vec<Problem>> {
        Self::check_with(Checker::of_new(wanted), draft, created_at)
    }

    /// Makes a stored definition ready for use, with the same need of stack. What later versions refuse at its
    /// creation does what it did.
    pub fn load(
        definition: WorkflowDefinition,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Self, Vec<Problem>> {
        let created_at = definition.created_at;
        Self::check_with(Checker::of_stored(wanted), definition.into_draft(), created_at)
    }

    fn check_with(
        mut checker: Checker<'_>,
        draft: WorkflowDraft,
        created_at: DateTime<Utc>,
    ) -> Result<Self, Vec<Problem>> {
        match checker.workflow(draft, created_at) {
            Some(workflow) if checker.problems.is_empty() => Ok(workflow),
            _ => Err(checker.problems),
        }
    }

    /// The definition.
    pub fn definition(&self) -> &WorkflowDefinition {
        &self.definition
    }

    /// About how many bytes it takes in memory.
    pub fn memory_bytes(&self) -> usize {
        let conditions = self.conditions.iter().flatten();
        self.definition.memory() + conditions.map(Condition::memory_bytes).sum::<usize>()
    }

    /// The conditions of the transition at `index` of the definition's transitions.
    pub(super) fn conditions(&self, index: usize) -> &[Condition] {
        &self.conditions[index]
    }
}

impl WorkflowDefinition {
    /// About how many bytes it takes in memory.
    pub fn memory(&self) -> usize {
        const NAME_BYTES: usize = 64;
        const TRANSITION_BYTES: usize = 400;
        let texts =
            |texts: &[String]| texts.iter().map(|text| NAME_BYTES + text.len()).sum::<usize>();
        let transitions = self.transitions.iter().map(|transition| {
            let description = transition.description.as_ref().map_or(0, String::len);
            TRANSITION_BYTES
                + description
                + transition.from_places.len() * NAME_BYTES
                + texts(&transition.conditions)
                + transition.accepts.as_deref().map_or(0, texts)
        });
        let settings = self.place_settings.iter().map(|settings| {
            let description = settings.description.as_ref().map_or(0, String::len);
            let metadata = settings.metadata.as_ref().map_or(0, memory_of_fields);
            TRANSITION_BYTES + description + metadata as usize
        });
        1_024
            + self.places.len() * NAME_BYTES
            + transitions.sum::<usize>()
            + settings.sum::<usize>()
    }

    /// Whether a client may put a new token there.
    pub fn is_entry(&self, place: &PlaceId) -> bool {
        match &self.entry_places {
            Some(entries) => *place == self.initial_place || entries.contains(place),
            None => self.places.contains(place),
        }
    }

    /// The places where a token is completed.
    pub fn final_places(&self) -> impl Iterator<Item = &PlaceId> {
        let ends: Vec<_> = match &self.final_places {
            Some(named) => {
                let named: HashSet<_> = named.iter().collect();
                self.places.iter().filter(|place| named.contains(place)).collect()
            }
            None => self.ends().collect(),
        };
        ends.into_iter()
    }

    /// The places where a token is completed for good, as no transition leaves them.
    pub fn last_places(&self) -> impl Iterator<Item = &PlaceId> {
        let named = self.final_places.as_deref();
        self.ends().filter(move |end| named.is_none_or(|named| named.contains(end)))
    }

    /// The places that no transition leaves.
    fn ends(&self) -> impl Iterator<Item = &PlaceId> {
        let leads_on: HashSet<_> = self.transitions.iter().flat_map(|t| &t.from_places).collect();
        self.places.iter().filter(move |place| !leads_on.contains(place))
    }

    /// Whether a token in this place is completed.
    pub fn completion(&self, place: &PlaceId) -> Completion {
        let leads_on = || self.transitions.iter().any(|t| t.from_places.contains(place));
        match &self.final_places {
            Some(named) if !named.contains(place) => Completion::Open,
            Some(_) if leads_on() => Completion::Reopens,
            None if leads_on() => Completion::Open,
            Some(_) | None => Completion::ForGood,
        }
    }
}
