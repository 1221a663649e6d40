//! Everything that can be wrong with a definition.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use serde::Serialize;

use serde_json::{Map, Value};

use super::{
    PlaceSettings, PlaceSettingsDraft, TransitionDefinition, TransitionDraft, Workflow,
    WorkflowDefinition, WorkflowDraft,
};
use crate::domain::condition::{Condition, PatternRoom};
use crate::domain::id::{InvalidId, PlaceId, Shown, TransitionId, WorkflowId};
use crate::domain::json::depth_exceeds;
use crate::domain::limits::{
    ACCEPTS_MAX, ALL_CONDITIONS_BYTES_MAX, CONDITIONS_MAX, DEFINITION_BYTES_MAX,
    DESCRIPTION_BYTES_MAX, JSON_DEPTH_MAX, NAME_BYTES_MAX, PLACES_MAX, PROBLEMS_MAX,
    TRANSITIONS_MAX,
};

/// Stands for every place but those that are left out and the one that the transition leads to.
const EVERY_PLACE: &str = "*";

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
    /// Two things that do not go together.
    Contradiction,
    /// A text holds control characters.
    InvalidText,
    /// A condition is not an expression that can be evaluated.
    InvalidCondition,
}

/// Goes once through a draft, builds the definition and notes every problem on the way.
///
/// A part that is wrong yields `None` and a problem; the walk goes on to find the rest.
pub struct Checker<'a> {
    /// Whether anybody still waits for the answer.
    wanted: &'a dyn Fn() -> bool,
    pub problems: Vec<Problem>,
    condition_bytes: usize,
    patterns: PatternRoom,
    /// It is stored already, maybe by an earlier version.
    is_stored: bool,
    /// Bytes that `*` stands for.
    written_out: usize,
}

impl<'a> Checker<'a> {
    /// For a new one.
    pub fn of_new(wanted: &'a dyn Fn() -> bool) -> Self {
        Self {
            wanted,
            problems: Vec::new(),
            condition_bytes: 0,
            patterns: PatternRoom::default(),
            is_stored: false,
            written_out: 0,
        }
    }

    /// For one that is stored.
    pub fn of_stored(wanted: &'a dyn Fn() -> bool) -> Self {
        Self { is_stored: true, ..Self::of_new(wanted) }
    }

    pub fn workflow(
        &mut self,
        draft: WorkflowDraft,
        created_at: DateTime<Utc>,
    ) -> Option<Workflow> {
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
                self.listed_twice(field, &place);
            } else if let Some(place) = self.id(&field, PlaceId::parse(place)) {
                places.push(place);
            }
        }
        let initial_place = self.place("initialPlace", draft.initial_place, &known);
        let entries = draft.entry_places;
        let entry_places = entries.map(|entries| self.places("entryPlaces", entries, &known));
        let finals = draft.final_places;
        let final_places = finals.map(|finals| self.places("finalPlaces", finals, &known));
        let place_settings = self.place_settings(draft.place_settings, &known);

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
            if let Some((transition, compiled)) =
                self.transition(&field, transition, &known, &places)
            {
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
        if self.written_out > DEFINITION_BYTES_MAX {
            let message = format!(
                "the places that \"{EVERY_PLACE}\" stands for have {} bytes, at most {DEFINITION_BYTES_MAX} are allowed",
                self.written_out
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
            entry_places,
            final_places,
            place_settings,
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
        places: &[PlaceId],
    ) -> Option<(TransitionDefinition, Vec<Condition>)> {
        let id = self.id(&format!("{field}.id"), TransitionId::parse(draft.id.clone()));
        self.optional_text(&format!("{field}.name"), draft.name.as_deref(), NAME_BYTES_MAX);
        self.optional_text(
            &format!("{field}.description"),
            draft.description.as_deref(),
            DESCRIPTION_BYTES_MAX,
        );

        let from_places = self.starts(field, &draft, known, places);
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
            if !(self.wanted)() {
                let message = "it was not looked at, as nobody waits for the answer any more";
                self.add(ProblemKind::InvalidCondition, conditions_field, message);
                return None;
            }
            let parsed = if self.is_stored {
                Condition::parse(source, &mut self.patterns)
            } else {
                Condition::parse_new(source, &mut self.patterns)
            };
            match parsed {
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
        self.accepts(&format!("{field}.accepts"), draft.accepts.as_deref().unwrap_or_default());
        let definition = TransitionDefinition {
            id: id?,
            name: draft.name,
            description: draft.description,
            from_places,
            to_place: to_place?,
            conditions: draft.conditions,
            accepts: draft.accepts,
        };
        Some((definition, compiled))
    }

    /// Where a transition starts, with `*` written out.
    fn starts(
        &mut self,
        field: &str,
        draft: &TransitionDraft,
        known: &HashSet<String>,
        places: &[PlaceId],
    ) -> Vec<PlaceId> {
        let (from_field, except_field) =
            (format!("{field}.fromPlaces"), format!("{field}.exceptPlaces"));
        let nothing = draft.from_places.is_empty();
        self.not_empty(
            &from_field,
            nothing,
            "name at least one place that the token may come from",
        );
        let every = draft.from_places.iter().position(|place| place == EVERY_PLACE);
        if let Some(index) = every.filter(|_| draft.from_places.len() > 1) {
            let message = format!(
                "\"{EVERY_PLACE}\" stands for every place, so nothing else is named beside it; exceptPlaces leaves some out"
            );
            self.add(ProblemKind::Contradiction, format!("{from_field}[{index}]"), message);
            return Vec::new();
        }
        if every.is_none() {
            if !draft.except_places.is_empty() {
                let message = format!("it goes with fromPlaces [\"{EVERY_PLACE}\"] alone");
                self.add(ProblemKind::Contradiction, except_field, message);
            }
            return self.places(&from_field, draft.from_places.clone(), known);
        }
        let except = self.places(&except_field, draft.except_places.clone(), known);
        let except: HashSet<_> =
            except.iter().map(PlaceId::as_str).chain([draft.to_place.as_str()]).collect();
        let others = places.iter().filter(|place| !except.contains(place.as_str()));
        self.written_out += others.clone().map(|place| place.len() + 3).sum::<usize>();
        if self.written_out > DEFINITION_BYTES_MAX {
            // Noted once, at the end.
            return Vec::new();
        }
        let from_places: Vec<_> = others.cloned().collect();
        self.not_empty(&from_field, from_places.is_empty(), "no place is left that it starts from");
        from_places
    }

    /// Places of the workflow, none twice.
    fn places(&mut self, field: &str, names: Vec<String>, known: &HashSet<String>) -> Vec<PlaceId> {
        self.count(field, names.len(), PLACES_MAX);
        let mut seen = HashSet::new();
        let mut places = Vec::new();
        for (index, place) in names.into_iter().take(PLACES_MAX).enumerate() {
            let field = format!("{field}[{index}]");
            if !seen.insert(place.clone()) {
                self.listed_twice(field, &place);
            } else if let Some(place) = self.place(&field, place, known) {
                places.push(place);
            }
        }
        places
    }

    fn listed_twice(&mut self, field: String, place: &str) {
        let message = format!("place {} is listed twice", Shown(place));
        self.add(ProblemKind::Duplicate, field, message);
    }

    fn place_settings(
        &mut self,
        drafts: Vec<PlaceSettingsDraft>,
        known: &HashSet<String>,
    ) -> Vec<PlaceSettings> {
        self.count("placeSettings", drafts.len(), PLACES_MAX);
        let mut seen = HashSet::new();
        let mut all = Vec::new();
        for (index, draft) in drafts.into_iter().take(PLACES_MAX).enumerate() {
            let field = format!("placeSettings[{index}]");
            let PlaceSettingsDraft { place, name, description, metadata } = draft;
            self.optional_text(&format!("{field}.name"), name.as_deref(), NAME_BYTES_MAX);
            let of_description = format!("{field}.description");
            self.optional_text(&of_description, description.as_deref(), DESCRIPTION_BYTES_MAX);
            let mut values = metadata.iter().flat_map(Map::values);
            if values.any(|value| depth_exceeds(value, JSON_DEPTH_MAX - 1)) {
                let message = format!("arrays and objects may nest {JSON_DEPTH_MAX} deep");
                self.add(ProblemKind::TooLarge, format!("{field}.metadata"), message);
            }
            let of_place = format!("{field}.place");
            if !seen.insert(place.clone()) {
                self.listed_twice(of_place, &place);
            } else if let Some(place) = self.place(&of_place, place, known) {
                all.push(PlaceSettings { place, name, description, metadata });
            }
        }
        all
    }

    fn accepts(&mut self, field: &str, members: &[String]) {
        self.count(field, members.len(), ACCEPTS_MAX);
        let mut seen = HashSet::new();
        for (index, member) in members.iter().take(ACCEPTS_MAX).enumerate() {
            let field = format!("{field}[{index}]");
            self.text(&field, member, NAME_BYTES_MAX);
            if !seen.insert(member) {
                let message = format!("member {} is listed twice", Shown(member));
                self.add(ProblemKind::Duplicate, field, message);
            }
        }
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
            128 + texts
                + strings(&t.from_places)
                + strings(&t.conditions)
                + strings(t.accepts.as_deref().unwrap_or_default())
        });
        let settings = draft.place_settings.iter().map(|of| {
            let metadata = of.metadata.as_ref().map_or(0, json_bytes);
            64 + of.place.len() + optional(&of.name) + optional(&of.description) + metadata
        });
        let named = [&draft.entry_places, &draft.final_places].into_iter().flatten();
        let named = named.map(|places| strings(places)).sum::<usize>();
        let texts = draft.name.len() + optional(&draft.description) + strings(&draft.places);
        let bytes = 256 + texts + named + settings.sum::<usize>() + transitions.sum::<usize>();
        if bytes > DEFINITION_BYTES_MAX {
            let message = format!(
                "the definition has about {bytes} bytes, at most {DEFINITION_BYTES_MAX} are allowed"
            );
            self.add(ProblemKind::TooLarge, "", message);
        }
    }
}

fn json_bytes(members: &Map<String, Value>) -> usize {
    serde_json::to_string(members).map_or(0, |json| json.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> WorkflowDraft {
        WorkflowDraft {
            id: Some("w".to_owned()),
            name: "Orders".to_owned(),
            places: vec!["a".to_owned(), "b".to_owned()],
            transitions: vec![TransitionDraft {
                id: "t".to_owned(),
                from_places: vec!["a".to_owned()],
                to_place: "b".to_owned(),
                ..TransitionDraft::default()
            }],
            initial_place: "a".to_owned(),
            ..WorkflowDraft::default()
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
    fn every_place_is_written_out() {
        use ProblemKind::*;
        let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let from = |from: &[&str], except: &[&str], to: &str| {
            let mut draft = good();
            draft.places = owned(&["a", "b", "c"]);
            let transition = &mut draft.transitions[0];
            transition.from_places = owned(from);
            transition.except_places = owned(except);
            transition.to_place = to.to_owned();
            match Workflow::check(draft, DateTime::UNIX_EPOCH) {
                Ok(workflow) => {
                    let from = workflow.definition().transitions[0].from_places.iter();
                    Ok(from.map(ToString::to_string).collect::<Vec<_>>())
                }
                Err(problems) => {
                    Err(problems.into_iter().map(|p| (p.problem, p.field)).collect::<Vec<_>>())
                }
            }
        };
        let t = |field: &str| format!("transitions[0].{field}");
        assert_eq!(from(&["*"], &[], "b"), Ok(owned(&["a", "c"])));
        assert_eq!(from(&["*"], &["a"], "b"), Ok(owned(&["c"])));
        assert_eq!(from(&["*"], &["b"], "b"), Ok(owned(&["a", "c"])));
        assert_eq!(from(&["*"], &["a", "c"], "b"), Err(vec![(Empty, t("fromPlaces"))]));
        assert_eq!(from(&["*"], &["x"], "b"), Err(vec![(UnknownPlace, t("exceptPlaces[0]"))]));
        assert_eq!(from(&["a", "*"], &["c"], "b"), Err(vec![(Contradiction, t("fromPlaces[1]"))]));
        assert_eq!(from(&["a"], &["c"], "b"), Err(vec![(Contradiction, t("exceptPlaces"))]));
    }

    #[test]
    fn what_is_written_out_counts() {
        let mut draft = good();
        draft.places = (0..1_000).map(|n| format!("place-number-{n}")).collect();
        draft.initial_place = draft.places[0].clone();
        let every = TransitionDraft {
            from_places: vec!["*".to_owned()],
            to_place: draft.places[1].clone(),
            ..TransitionDraft::default()
        };
        let transition = |n| TransitionDraft { id: format!("t{n}"), ..every.clone() };
        draft.transitions = (0..1_000).map(transition).collect();
        let problems = Workflow::check(draft, DateTime::UNIX_EPOCH).unwrap_err();
        let [problem] = problems.as_slice() else { panic!("{problems:?}") };
        assert_eq!((problem.problem, &*problem.field), (ProblemKind::TooLarge, "transitions"));
    }

    #[test]
    fn entries_and_settings_name_places_of_the_workflow() {
        use ProblemKind::*;
        let settings =
            |place: &str| PlaceSettingsDraft { place: place.into(), ..Default::default() };
        check(|d| d.entry_places = Some(vec![]), &[]);
        check(|d| d.entry_places = Some(vec!["a".into(), "b".into()]), &[]);
        check(
            |d| d.entry_places = Some(vec!["b".into(), "x".into(), "b".into()]),
            &[(UnknownPlace, "entryPlaces[1]"), (Duplicate, "entryPlaces[2]")],
        );
        check(|d| d.place_settings = vec![settings("a"), settings("b")], &[]);
        check(
            |d| d.place_settings = vec![settings("a"), settings("a"), settings("x")],
            &[(Duplicate, "placeSettings[1].place"), (UnknownPlace, "placeSettings[2].place")],
        );
        let named = |name: &str| PlaceSettingsDraft { name: Some(name.into()), ..settings("a") };
        check(|d| d.place_settings = vec![named("In transit (with driver)")], &[]);
        check(
            |d| d.place_settings = vec![named("\u{7}")],
            &[(InvalidText, "placeSettings[0].name")],
        );
        let with = |value: Value| {
            let metadata = Some(Map::from_iter([("x".to_owned(), value)]));
            PlaceSettingsDraft { metadata, ..settings("a") }
        };
        let deep = (0..JSON_DEPTH_MAX).fold(Value::Null, |inner, _| Value::from(vec![inner]));
        check(|d| d.place_settings = vec![with(deep)], &[(TooLarge, "placeSettings[0].metadata")]);
        let large = Value::from("y".repeat(DEFINITION_BYTES_MAX));
        check(|d| d.place_settings = vec![with(large)], &[(TooLarge, "")]);
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
        let loaded = Workflow::load(serde_json::from_str(&json).unwrap(), &|| true).unwrap();
        assert_eq!(loaded.definition(), workflow.definition());
        let other =
            Workflow::check(WorkflowDraft { name: "x".into(), ..good() }, DateTime::UNIX_EPOCH);
        assert_eq!(other.unwrap().definition().differences(workflow.definition()), ["name"]);
    }
}
