//! Definitions as clients write them, with nothing checked.

use serde_json::{Map, Value};

use super::{PlaceSettings, TransitionDefinition, WorkflowDefinition};

/// A definition as a client wrote it, with nothing checked.
#[derive(Debug, Clone, Default)]
pub struct WorkflowDraft {
    /// The id of the workflow; without one the engine makes one.
    pub id: Option<String>,
    /// For people.
    pub name: String,
    /// For people.
    pub description: Option<String>,
    /// Names of places.
    pub places: Vec<String>,
    /// Transitions between them.
    pub transitions: Vec<TransitionDraft>,
    /// A name out of `places`.
    pub initial_place: String,
    /// Names of places; any place where there is none.
    pub entry_places: Option<Vec<String>>,
    /// Names of places; those that no transition leaves where there is none.
    pub final_places: Option<Vec<String>>,
    /// What is known of places.
    pub place_settings: Vec<PlaceSettingsDraft>,
}

/// What is known of a place as a client wrote it, with nothing checked.
#[derive(Debug, Clone, Default)]
pub struct PlaceSettingsDraft {
    /// The name of a place.
    pub place: String,
    /// For people.
    pub name: Option<String>,
    /// For people.
    pub description: Option<String>,
    /// For programs.
    pub metadata: Option<Map<String, Value>>,
}

/// A transition as a client wrote it, with nothing checked.
#[derive(Debug, Clone, Default)]
pub struct TransitionDraft {
    /// The id of the transition.
    pub id: String,
    /// For people.
    pub name: Option<String>,
    /// For people.
    pub description: Option<String>,
    /// Names of places, or `*` alone: every place but `except_places` and `to_place`.
    pub from_places: Vec<String>,
    /// Names of places that `*` leaves out.
    pub except_places: Vec<String>,
    /// The name of a place.
    pub to_place: String,
    /// CEL expressions.
    pub conditions: Vec<String>,
    /// The members of a request's data that it takes; all where there is none.
    pub accepts: Option<Vec<String>>,
}

impl WorkflowDefinition {
    pub(super) fn into_draft(self) -> WorkflowDraft {
        let names = |places: Vec<_>| places.into_iter().map(String::from).collect();
        WorkflowDraft {
            id: Some(self.id.into()),
            name: self.name,
            description: self.description,
            places: self.places.into_iter().map(String::from).collect(),
            transitions: self
                .transitions
                .into_iter()
                .map(TransitionDefinition::into_draft)
                .collect(),
            initial_place: self.initial_place.into(),
            entry_places: self.entry_places.map(names),
            final_places: self.final_places.map(names),
            place_settings: self
                .place_settings
                .into_iter()
                .map(PlaceSettings::into_draft)
                .collect(),
        }
    }
}

impl PlaceSettings {
    fn into_draft(self) -> PlaceSettingsDraft {
        let Self { place, name, description, metadata } = self;
        PlaceSettingsDraft { place: place.into(), name, description, metadata }
    }
}

impl TransitionDefinition {
    fn into_draft(self) -> TransitionDraft {
        TransitionDraft {
            id: self.id.into(),
            name: self.name,
            description: self.description,
            from_places: self.from_places.into_iter().map(String::from).collect(),
            except_places: Vec::new(),
            to_place: self.to_place.into(),
            conditions: self.conditions,
            accepts: self.accepts,
        }
    }
}
