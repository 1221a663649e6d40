//! The definition of a workflow, and everything that can be wrong with one.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::condition::Condition;
use super::id::{InvalidId, PlaceId, Shown, TransitionId, WorkflowId};
use super::limits::{
    ALL_CONDITIONS_BYTES_MAX, CONDITIONS_MAX, DEFINITION_BYTES_MAX, DESCRIPTION_BYTES_MAX,
    NAME_BYTES_MAX, PLACES_MAX, PROBLEMS_MAX, TRANSITIONS_MAX,
};

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
    /// When it was stored.
    pub created_at: DateTime<Utc>,
    /// The same, as definitions do not change.
    pub updated_at: DateTime<Utc>,
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
}

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
    /// Names of places.
    pub from_places: Vec<String>,
    /// The name of a place.
    pub to_place: String,
    /// CEL expressions.
    pub conditions: Vec<String>,
}

/// One thing that is wrong with a definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Which rule is broken.
    pub problem: ProblemKind,
    /// Where, as a path into the definition, such as `transitions[2].fromPlaces[0]`.
    pub field: String,
    /// What is wrong there and what to do.
    pub message: String,
}

/// The rules that a definition can break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ProblemKind {
    /// An id does not follow the rule of names.
    InvalidId,
    /// Two places have one name, or two transitions one id.
    Duplicate,
    /// A place is named that is not among the places.
    UnknownPlace,
    /// Nothing where at least one thing must be.
    Empty,
    /// Longer or more than the limit.
    TooLarge,
    /// A text holds control characters.
    InvalidText,
    /// A condition is not an expression that can be evaluated.
    InvalidCondition,
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
        let mut checker = Checker::default();
        match checker.workflow(draft, created_at) {
            Some(workflow) if checker.problems.is_empty() => Ok(workflow),
            _ => Err(checker.problems),
        }
    }

    /// Makes a stored definition ready for use, with the same checks and the same need of stack.
    pub fn load(definition: WorkflowDefinition) -> Result<Self, Vec<Problem>> {
        let created_at = definition.created_at;
        Self::check(definition.into_draft(), created_at)
    }

    /// The definition.
    pub fn definition(&self) -> &WorkflowDefinition {
        &self.definition
    }

    /// About how many bytes it takes in memory.
    pub fn memory_bytes(&self) -> usize {
        const NAME_BYTES: usize = 64;
        let transitions = self.definition.transitions.iter();
        let names = self.definition.places.len()
            + transitions.map(|t| 4 + t.from_places.len()).sum::<usize>();
        let conditions =
            self.conditions.iter().flatten().map(Condition::memory_bytes).sum::<usize>();
        1_024 + names * NAME_BYTES + 2 * conditions
    }

    /// The conditions of the transition at `index` of the definition's transitions.
    pub(super) fn conditions(&self, index: usize) -> &[Condition] {
        &self.conditions[index]
    }
}

impl WorkflowDefinition {
    /// Whether `other` defines the same, whenever it was stored.
    pub fn same_as(&self, other: &Self) -> bool {
        self.id == other.id
            && self.name == other.name
            && self.description == other.description
            && self.places == other.places
            && self.transitions == other.transitions
            && self.initial_place == other.initial_place
    }

    /// The places that no transition leads on from: a token there is completed.
    pub fn final_places(&self) -> impl Iterator<Item = &PlaceId> {
        let leads_on: HashSet<_> = self.transitions.iter().flat_map(|t| &t.from_places).collect();
        self.places.iter().filter(move |place| !leads_on.contains(place))
    }

    fn into_draft(self) -> WorkflowDraft {
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
        }
    }
}

impl TransitionDefinition {
    fn into_draft(self) -> TransitionDraft {
        TransitionDraft {
            id: self.id.into(),
            name: self.name,
            description: self.description,
            from_places: self.from_places.into_iter().map(String::from).collect(),
            to_place: self.to_place.into(),
            conditions: self.conditions,
        }
    }
}

/// Goes once through a draft, builds the definition and notes every problem on the way.
///
/// A part that is wrong yields `None` and a problem; the walk goes on to find the rest.
#[derive(Default)]
struct Checker {
    problems: Vec<Problem>,
    condition_bytes: usize,
}

impl Checker {
    fn workflow(&mut self, draft: WorkflowDraft, created_at: DateTime<Utc>) -> Option<Workflow> {
        self.size(&draft);
        let id = self.id("id", WorkflowId::parse(draft.id.unwrap_or_default()));
        self.text("name", &draft.name, NAME_BYTES_MAX);
        self.not_empty("name", draft.name.trim().is_empty(), "give the workflow a name");
        self.optional_text("description", draft.description.as_deref(), DESCRIPTION_BYTES_MAX);

        self.not_empty("places", draft.places.is_empty(), "a workflow needs at least one place");
        self.count("places", draft.places.len(), PLACES_MAX);
        let mut known = HashSet::new();
        let mut places = Vec::new();
        for (index, place) in draft.places.into_iter().take(PLACES_MAX).enumerate() {
            let field = format!("places[{index}]");
            if !known.insert(place.clone()) {
                self.add(
                    ProblemKind::Duplicate,
                    field,
                    format!("place {} is listed twice", Shown(&place)),
                );
            } else if let Some(place) = self.id(&field, PlaceId::parse(place)) {
                places.push(place);
            }
        }
        let initial_place = self.place("initialPlace", draft.initial_place, &known);

        self.count("transitions", draft.transitions.len(), TRANSITIONS_MAX);
        let mut ids = HashSet::new();
        let mut transitions = Vec::new();
        let mut conditions = Vec::new();
        for (index, transition) in draft.transitions.into_iter().take(TRANSITIONS_MAX).enumerate() {
            let field = format!("transitions[{index}]");
            if !ids.insert(transition.id.clone()) {
                let message = format!("transition {} is defined twice", Shown(&transition.id));
                self.add(ProblemKind::Duplicate, format!("{field}.id"), message);
            }
            if let Some((transition, compiled)) = self.transition(&field, transition, &known) {
                transitions.push(transition);
                conditions.push(compiled);
            }
        }
        if self.condition_bytes > ALL_CONDITIONS_BYTES_MAX {
            let bytes = self.condition_bytes;
            let message = format!(
                "all conditions together have {bytes} bytes, at most {ALL_CONDITIONS_BYTES_MAX} are allowed"
            );
            self.add(ProblemKind::TooLarge, "transitions", message);
        }
        let definition = WorkflowDefinition {
            id: id?,
            name: draft.name,
            description: draft.description,
            places,
            transitions,
            initial_place: initial_place?,
            created_at,
            updated_at: created_at,
        };
        Some(Workflow { definition, conditions })
    }

    fn transition(
        &mut self,
        field: &str,
        draft: TransitionDraft,
        known: &HashSet<String>,
    ) -> Option<(TransitionDefinition, Vec<Condition>)> {
        let id = self.id(&format!("{field}.id"), TransitionId::parse(draft.id));
        self.optional_text(&format!("{field}.name"), draft.name.as_deref(), NAME_BYTES_MAX);
        self.optional_text(
            &format!("{field}.description"),
            draft.description.as_deref(),
            DESCRIPTION_BYTES_MAX,
        );

        let from_field = format!("{field}.fromPlaces");
        let nothing = draft.from_places.is_empty();
        self.not_empty(
            &from_field,
            nothing,
            "name at least one place that the token may come from",
        );
        self.count(&from_field, draft.from_places.len(), PLACES_MAX);
        let mut seen = HashSet::new();
        let mut from_places = Vec::new();
        for (index, place) in draft.from_places.into_iter().take(PLACES_MAX).enumerate() {
            let field = format!("{from_field}[{index}]");
            if !seen.insert(place.clone()) {
                self.add(
                    ProblemKind::Duplicate,
                    field,
                    format!("place {} is listed twice", Shown(&place)),
                );
            } else if let Some(place) = self.place(&field, place, known) {
                from_places.push(place);
            }
        }
        let to_place = self.place(&format!("{field}.toPlace"), draft.to_place, known);

        let conditions_field = format!("{field}.conditions");
        self.count(&conditions_field, draft.conditions.len(), CONDITIONS_MAX);
        let mut compiled = Vec::new();
        for (index, source) in draft.conditions.iter().take(CONDITIONS_MAX).enumerate() {
            // What is too much in all is noted once; it is not parsed.
            self.condition_bytes += source.len();
            if self.condition_bytes > ALL_CONDITIONS_BYTES_MAX {
                continue;
            }
            match Condition::parse(source) {
                Ok(condition) => compiled.push(condition),
                Err(message) => {
                    self.add(
                        ProblemKind::InvalidCondition,
                        format!("{conditions_field}[{index}]"),
                        message,
                    );
                }
            }
        }
        let definition = TransitionDefinition {
            id: id?,
            name: draft.name,
            description: draft.description,
            from_places,
            to_place: to_place?,
            conditions: draft.conditions,
        };
        Some((definition, compiled))
    }

    fn add(&mut self, problem: ProblemKind, field: impl Into<String>, message: impl Into<String>) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(Problem { problem, field: field.into(), message: message.into() });
        }
    }

    fn id<T>(&mut self, field: &str, parsed: Result<T, InvalidId>) -> Option<T> {
        parsed.map_err(|error| self.add(ProblemKind::InvalidId, field, error.to_string())).ok()
    }

    fn place(&mut self, field: &str, name: String, known: &HashSet<String>) -> Option<PlaceId> {
        if !known.contains(&name) {
            let message = format!("place {} is not among the places of the workflow", Shown(&name));
            self.add(ProblemKind::UnknownPlace, field, message);
            return None;
        }
        // A place with a wrong name was noted where it is listed.
        PlaceId::parse(name).ok()
    }

    fn not_empty(&mut self, field: &str, empty: bool, message: &str) {
        if empty {
            self.add(ProblemKind::Empty, field, message);
        }
    }

    fn count(&mut self, field: &str, count: usize, max: usize) {
        if count > max {
            self.add(
                ProblemKind::TooLarge,
                field,
                format!("{count} entries, at most {max} are allowed"),
            );
        }
    }

    fn optional_text(&mut self, field: &str, text: Option<&str>, bytes_max: usize) {
        if let Some(text) = text {
            self.text(field, text, bytes_max);
        }
    }

    fn text(&mut self, field: &str, text: &str, bytes_max: usize) {
        if text.len() > bytes_max {
            let message = format!("{} bytes, at most {bytes_max} are allowed", text.len());
            self.add(ProblemKind::TooLarge, field, message);
        }
        if text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t')) {
            self.add(ProblemKind::InvalidText, field, "remove the control characters");
        }
    }

    fn size(&mut self, draft: &WorkflowDraft) {
        let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        // About what the JSON takes: every string with its quotes and comma, every object with its keys.
        let strings = |list: &[String]| list.iter().map(|text| text.len() + 3).sum::<usize>();
        let transitions = draft.transitions.iter().map(|t| {
            let texts =
                t.id.len() + t.to_place.len() + optional(&t.name) + optional(&t.description);
            128 + texts + strings(&t.from_places) + strings(&t.conditions)
        });
        let texts = draft.name.len() + optional(&draft.description) + strings(&draft.places);
        let bytes = 256 + texts + transitions.sum::<usize>();
        if bytes > DEFINITION_BYTES_MAX {
            let message = format!(
                "the definition has about {bytes} bytes, at most {DEFINITION_BYTES_MAX} are allowed"
            );
            self.add(ProblemKind::TooLarge, "", message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> WorkflowDraft {
        WorkflowDraft {
            id: Some("w".to_owned()),
            name: "Orders".to_owned(),
            description: None,
            places: vec!["a".to_owned(), "b".to_owned()],
            transitions: vec![TransitionDraft {
                id: "t".to_owned(),
                from_places: vec!["a".to_owned()],
                to_place: "b".to_owned(),
                ..TransitionDraft::default()
            }],
            initial_place: "a".to_owned(),
        }
    }

    /// All problems of the good draft once something in it is changed.
    fn problems(change: impl FnOnce(&mut WorkflowDraft)) -> Vec<(ProblemKind, String)> {
        let mut draft = good();
        change(&mut draft);
        match Workflow::check(draft, DateTime::UNIX_EPOCH) {
            Ok(_) => Vec::new(),
            Err(problems) => problems.into_iter().map(|p| (p.problem, p.field)).collect(),
        }
    }

    fn check(change: impl FnOnce(&mut WorkflowDraft), expected: &[(ProblemKind, &str)]) {
        let found = problems(change);
        let found: Vec<_> = found.iter().map(|(kind, field)| (*kind, field.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn each_rule_is_named_with_its_field() {
        use ProblemKind::*;
        check(|_| {}, &[]);
        check(|d| d.transitions.clear(), &[]);
        check(|d| d.id = Some("a.b".into()), &[(InvalidId, "id")]);
        check(|d| d.name = " ".into(), &[(Empty, "name")]);
        check(|d| d.name = "n".repeat(NAME_BYTES_MAX), &[]);
        check(|d| d.name = "n".repeat(NAME_BYTES_MAX + 1), &[(TooLarge, "name")]);
        check(|d| d.name = "a\u{7}".into(), &[(InvalidText, "name")]);
        check(|d| d.description = Some("line\nline\t".into()), &[]);
        check(|d| d.description = Some("\0".into()), &[(InvalidText, "description")]);
        check(|d| d.places.push("a".into()), &[(Duplicate, "places[2]")]);
        check(|d| d.places.push("*".into()), &[(InvalidId, "places[2]")]);
        check(|d| d.initial_place = "c".into(), &[(UnknownPlace, "initialPlace")]);
        check(|d| d.transitions[0].id = ">".into(), &[(InvalidId, "transitions[0].id")]);
        check(|d| d.transitions[0].from_places.clear(), &[(Empty, "transitions[0].fromPlaces")]);
        check(
            |d| d.transitions[0].from_places.push("c".into()),
            &[(UnknownPlace, "transitions[0].fromPlaces[1]")],
        );
        check(
            |d| d.transitions[0].from_places.push("a".into()),
            &[(Duplicate, "transitions[0].fromPlaces[1]")],
        );
        check(
            |d| d.transitions[0].to_place = "c".into(),
            &[(UnknownPlace, "transitions[0].toPlace")],
        );
        check(
            |d| d.transitions.push(d.transitions[0].clone()),
            &[(Duplicate, "transitions[1].id")],
        );
        check(
            |d| d.transitions[0].conditions = vec!["true".into(), "1 +".into()],
            &[(InvalidCondition, "transitions[0].conditions[1]")],
        );
        check(
            |d| d.transitions[0].conditions = vec!["true".into(); CONDITIONS_MAX + 1],
            &[(TooLarge, "transitions[0].conditions")],
        );
        check(
            |d| d.places.extend((2..=PLACES_MAX).map(|n| format!("p{n}"))),
            &[(TooLarge, "places")],
        );
    }

    #[test]
    fn all_problems_are_found_at_once() {
        use ProblemKind::*;
        let wrong = |d: &mut WorkflowDraft| {
            *d = WorkflowDraft {
                places: vec!["".into()],
                initial_place: "x".into(),
                ..WorkflowDraft::default()
            };
            d.transitions = vec![TransitionDraft::default(), TransitionDraft::default()];
        };
        let expected = [
            (InvalidId, "id"),
            (Empty, "name"),
            (InvalidId, "places[0]"),
            (UnknownPlace, "initialPlace"),
            (InvalidId, "transitions[0].id"),
            (Empty, "transitions[0].fromPlaces"),
            (Duplicate, "transitions[1].id"),
            (InvalidId, "transitions[1].id"),
            (Empty, "transitions[1].fromPlaces"),
        ];
        check(wrong, &expected);
    }

    #[test]
    fn what_is_far_too_much_is_bounded() {
        let many = |d: &mut WorkflowDraft| d.places = vec!["a".into(); 5 * PLACES_MAX];
        assert_eq!(problems(many).len(), PROBLEMS_MAX);
        let condition = format!("token.data.x == '{}'", "y".repeat(4_000));
        let wide = |d: &mut WorkflowDraft| {
            d.transitions[0].conditions = vec![condition.clone(); 12];
            d.transitions = (0..4)
                .map(|n| TransitionDraft { id: format!("t{n}"), ..d.transitions[0].clone() })
                .collect();
        };
        check(wide, &[(ProblemKind::TooLarge, "transitions")]);
        let large = |d: &mut WorkflowDraft| {
            let text = "x".repeat(DESCRIPTION_BYTES_MAX);
            d.transitions = (0..200)
                .map(|n| TransitionDraft {
                    id: format!("t{n}"),
                    description: Some(text.clone()),
                    ..d.transitions[0].clone()
                })
                .collect();
        };
        check(large, &[(ProblemKind::TooLarge, "")]);
    }

    #[test]
    fn a_stored_definition_loads_as_what_it_was() {
        let workflow = Workflow::check(good(), DateTime::UNIX_EPOCH).unwrap();
        let json = serde_json::to_string(workflow.definition()).unwrap();
        let loaded = Workflow::load(serde_json::from_str(&json).unwrap()).unwrap();
        assert_eq!(loaded.definition(), workflow.definition());
        let other =
            Workflow::check(WorkflowDraft { name: "x".into(), ..good() }, DateTime::UNIX_EPOCH);
        assert!(!other.unwrap().definition().same_as(workflow.definition()));
    }
}
