//! What two definitions of one id do not have in common.

use std::collections::HashSet;

use super::{TransitionDefinition, WorkflowDefinition};
use crate::domain::id::PlaceId;

/// Differences that are named.
const NAMED_MAX: usize = 20;

impl WorkflowDefinition {
    /// Where this definition says something else than `other`, by paths such as `transitions[2].conditions`, at most
    /// 20. None where both define the same, whenever they were stored: what is left out is the same as what stands
    /// for it.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let set = |places: &mut dyn Iterator<Item = &PlaceId>| -> HashSet<PlaceId> {
            places.cloned().collect()
        };
        let entries = |of: &Self| set(&mut of.places.iter().filter(|place| of.is_entry(place)));
        let finals = |of: &Self| set(&mut of.final_places());
        let parts = [
            ("name", self.name == other.name),
            ("description", self.description == other.description),
            ("places", self.places == other.places),
            ("initialPlace", self.initial_place == other.initial_place),
            ("entryPlaces", entries(self) == entries(other)),
            ("finalPlaces", finals(self) == finals(other)),
            ("placeSettings", self.place_settings == other.place_settings),
        ];
        let parts = parts.into_iter().filter(|(_, same)| !same).map(|(part, _)| part.to_owned());
        let (mine, theirs) = (&self.transitions, &other.transitions);
        let count = (mine.len() != theirs.len()).then(|| "transitions".to_owned());
        let transitions = mine.iter().zip(theirs).enumerate();
        let transitions = transitions.flat_map(|(index, (mine, theirs))| {
            let parts = mine.differences(theirs);
            parts.map(move |part| format!("transitions[{index}].{part}"))
        });
        parts.chain(count).chain(transitions).take(NAMED_MAX).collect()
    }
}

impl TransitionDefinition {
    fn differences(&self, other: &Self) -> impl Iterator<Item = &'static str> {
        let parts = [
            ("id", self.id == other.id),
            ("name", self.name == other.name),
            ("description", self.description == other.description),
            ("fromPlaces", self.from_places == other.from_places),
            ("toPlace", self.to_place == other.to_place),
            ("conditions", self.conditions == other.conditions),
            ("accepts", self.accepts == other.accepts),
        ];
        parts.into_iter().filter(|(_, same)| !same).map(|(part, _)| part)
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use crate::domain::{TransitionDraft, Workflow, WorkflowDefinition, WorkflowDraft};

    fn definition(change: impl FnOnce(&mut WorkflowDraft)) -> WorkflowDefinition {
        let transition = |id: &str, from: &str, to: &str| TransitionDraft {
            id: id.to_owned(),
            from_places: vec![from.to_owned()],
            to_place: to.to_owned(),
            ..TransitionDraft::default()
        };
        let mut draft = WorkflowDraft {
            id: Some("w".to_owned()),
            name: "Orders".to_owned(),
            places: ["a", "b", "c"].map(str::to_owned).to_vec(),
            transitions: vec![transition("t", "a", "b"), transition("u", "b", "c")],
            initial_place: "a".to_owned(),
            ..WorkflowDraft::default()
        };
        change(&mut draft);
        Workflow::check(draft, DateTime::UNIX_EPOCH).unwrap().definition().clone()
    }

    #[test]
    fn what_differs_is_named_and_what_stands_for_nothing_said_does_not() {
        let names = |names: &[&str]| Some(names.iter().map(ToString::to_string).collect());
        let check = |change: &dyn Fn(&mut WorkflowDraft), differs: &[&str]| {
            let (one, other) = (definition(|_| {}), definition(change));
            assert_eq!(other.differences(&one), differs);
            assert_eq!(one.differences(&other), differs);
        };
        check(&|_| {}, &[]);
        check(&|d| d.entry_places = names(&["c", "b", "a"]), &[]);
        check(&|d| d.entry_places = names(&["b", "c"]), &[]);
        check(&|d| d.final_places = names(&["c"]), &[]);
        check(&|d| d.transitions[0].from_places = vec!["a".to_owned()], &[]);
        check(&|d| d.entry_places = names(&["b"]), &["entryPlaces"]);
        check(&|d| d.entry_places = names(&[]), &["entryPlaces"]);
        check(&|d| d.final_places = names(&["b", "c"]), &["finalPlaces"]);
        check(&|d| d.description = Some("x".to_owned()), &["description"]);
        check(
            &|d| {
                d.name = "x".to_owned();
                d.transitions[1].to_place = "a".to_owned();
                d.transitions[1].accepts = names(&[]);
            },
            &["name", "transitions[1].toPlace", "transitions[1].accepts"],
        );
        check(&|d| drop(d.transitions.pop()), &["finalPlaces", "transitions"]);
    }
}
