//! The decision: whether a transition may fire, or all that stands in its way.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::caller::Caller;
use super::change::{Change, MoveRequest};
use super::condition::{Condition, Scope, Seen, Verdict};
use super::definition::{TransitionDefinition, Workflow};
use super::id::{PlaceId, Shown, TransitionId, WorkflowId};
use super::json::merge_patch;
use super::limits::VERSION_MAX;
use super::steps::Steps;
use super::token::Token;

/// Names that a refusal repeats; its details have all.
const NAMES_SHOWN_MAX: usize = 10;

/// What a decision is made with, beside the token and what is asked of it.
#[derive(Debug, Clone, Copy)]
pub struct Deciding<'a> {
    /// Who asks.
    pub caller: &'a Caller,
    /// The time of the decision.
    pub now: DateTime<Utc>,
    /// What it may cost.
    pub steps: &'a Arc<Steps>,
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
    #[error("transition {transition} starts from {}, but token {token} is in {place}, from where {}", list(.from_places.iter().map(PlaceId::as_str)), may_fire(.enabled))]
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
    /// Something stands in the way of a transition that starts where the token is.
    #[error(transparent)]
    Blocked(Box<Blocker>),
    /// The steps of the request were not enough to decide it.
    #[error(transparent)]
    TooCostly(#[from] TooCostly),
}

/// The steps of a request were not enough for its conditions.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the conditions that this request asks for take more than {steps_max} steps on this data; ask for fewer at once, or have them look at less"
)]
pub struct TooCostly {
    /// The steps of a request.
    pub steps_max: i64,
}

/// Something that stands in the way of a transition that starts where the token is.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Blocker {
    /// The data has members that the transition does not accept.
    #[error("data: transition {transition} accepts {}, not {}", accepted(.accepts), shown(.others))]
    NotAccepted {
        /// The transition.
        transition: TransitionId,
        /// The members that it accepts.
        accepts: Vec<String>,
        /// Others that the data has, the first of them; none where it is not an object.
        others: Vec<String>,
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
        /// What it looked at, by its text.
        values: Map<String, Value>,
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
        /// What it looked at, by its text.
        values: Map<String, Value>,
    },
    /// The token has made as many moves as a token can make.
    #[error("token {token} has made {VERSION_MAX} moves, the most that one token can make")]
    VersionsUsedUp {
        /// The token.
        token: Uuid,
    },
}

/// A transition that starts where a token is, and whether it may fire.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// The transition.
    pub transition: TransitionDefinition,
    /// All that stands in its way; it may fire if nothing does.
    pub blockers: Vec<Blocker>,
}

fn accepted(members: &[String]) -> String {
    if members.is_empty() { "no data".to_owned() } else { shown(members) }
}

fn shown(members: &[String]) -> String {
    if members.is_empty() {
        return "data that is no object".to_owned();
    }
    let names = members.iter().take(NAMES_SHOWN_MAX).map(|name| Shown(name).to_string());
    let names: Vec<_> = names.collect();
    names.join(", ") + &more(members.len())
}

fn more(names: usize) -> String {
    match names.saturating_sub(NAMES_SHOWN_MAX) {
        0 => String::new(),
        others => format!(" and {others} more"),
    }
}

/// The first names, and how many there are beside them.
fn list<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = more(names.len());
    names.take(NAMES_SHOWN_MAX).collect::<Vec<_>>().join(", ") + &more
}

fn may_fire(transitions: &[TransitionId]) -> String {
    match transitions {
        [] => "no transition leads on".to_owned(),
        some => format!("{} start", list(some.iter().map(TransitionId::as_str))),
    }
}

impl Workflow {
    /// Moves `token` as `request` asks, or says why it may not move.
    pub fn fire(
        &self,
        token: &Token,
        request: &MoveRequest,
        by: &Deciding<'_>,
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
        let next = next_data(token, request.data.as_ref());
        let asked = Asked::new(token, request.data.as_ref(), &next, by);
        if let Some(blocker) = self.blockers(index, &asked).next() {
            return Err(MoveError::Blocked(Box::new(blocker?)));
        }
        drop(asked);
        Ok(self.moved(token, next.into_owned(), transition, request, by))
    }

    /// The transitions that may fire from where `token` is, for this caller and with this data.
    pub fn available_transitions(
        &self,
        token: &Token,
        data: Option<&Value>,
        by: &Deciding<'_>,
    ) -> Result<Vec<TransitionDefinition>, TooCostly> {
        let next = next_data(token, data);
        let asked = Asked::new(token, data, &next, by);
        let mut available = Vec::new();
        for (index, transition) in self.leading_from(&token.place) {
            if self.blockers(index, &asked).next().transpose()?.is_none() {
                available.push(transition.clone());
            }
        }
        Ok(available)
    }

    /// Every transition that starts where `token` is, with all that stands in its way.
    pub fn explain_transitions(
        &self,
        token: &Token,
        data: Option<&Value>,
        by: &Deciding<'_>,
    ) -> Result<Vec<Explanation>, TooCostly> {
        let next = next_data(token, data);
        let asked = Asked::new(token, data, &next, by);
        let explain = |(index, transition): (usize, &TransitionDefinition)| {
            let blockers = self.blockers(index, &asked).collect::<Result<_, _>>()?;
            Ok(Explanation { transition: transition.clone(), blockers })
        };
        self.leading_from(&token.place).map(explain).collect()
    }

    /// What stands in the way of a transition that starts where the token is. This is the one place
    /// where it is decided, whoever asks; each thing is looked at when it is asked for.
    fn blockers<'a, 'b: 'a>(
        &'a self,
        index: usize,
        asked: &'a Asked<'b>,
    ) -> impl Iterator<Item = Result<Blocker, TooCostly>> + 'a {
        let transition = &self.definition().transitions[index];
        let token = asked.seen.token.id;
        let used_up = asked.seen.token.version >= VERSION_MAX;
        let used_up = used_up.then_some(Blocker::VersionsUsedUp { token });
        let before = used_up.into_iter().chain(not_accepted(transition, asked.seen.input));
        let of_condition = move |condition: &'a Condition| {
            let source = || condition.source().to_owned();
            Some(Ok(match asked.evaluate(condition) {
                Verdict::True => return None,
                Verdict::TooCostly => {
                    return Some(Err(TooCostly { steps_max: asked.steps.max() }));
                }
                Verdict::False => Blocker::ConditionFalse {
                    token,
                    transition: transition.id.clone(),
                    condition: source(),
                    values: condition.values(&asked.seen),
                },
                Verdict::Failed(reason) => Blocker::ConditionFailed {
                    token,
                    transition: transition.id.clone(),
                    condition: source(),
                    reason,
                    values: condition.values(&asked.seen),
                },
            }))
        };
        before.map(Ok).chain(self.conditions(index).iter().filter_map(of_condition))
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

    pub(super) fn leading_from<'a>(
        &'a self,
        place: &'a PlaceId,
    ) -> impl Iterator<Item = (usize, &'a TransitionDefinition)> {
        let transitions = self.definition().transitions.iter().enumerate();
        transitions.filter(move |(_, transition)| transition.from_places.contains(place))
    }
}

/// A token and what is asked of it, as conditions see them.
struct Asked<'a> {
    seen: Seen<'a>,
    /// Made for the first condition.
    scope: OnceCell<Scope<'a>>,
    steps: &'a Arc<Steps>,
}

impl<'a> Asked<'a> {
    fn new(token: &'a Token, input: Option<&'a Value>, next: &'a Value, by: &Deciding<'a>) -> Self {
        let seen = Seen { token, input, next, now: by.now, caller: by.caller };
        Self { seen, scope: OnceCell::new(), steps: by.steps }
    }

    fn evaluate(&self, condition: &Condition) -> Verdict {
        self.scope.get_or_init(|| Scope::new(&self.seen)).evaluate(condition, self.steps)
    }
}

/// The token's data after a move with this data: a JSON Merge Patch (RFC 7396).
fn next_data<'a>(token: &'a Token, data: Option<&Value>) -> Cow<'a, Value> {
    let Some(patch) = data else { return Cow::Borrowed(&token.data) };
    let mut next = token.data.clone();
    merge_patch(&mut next, patch);
    Cow::Owned(next)
}

fn not_accepted(transition: &TransitionDefinition, data: Option<&Value>) -> Option<Blocker> {
    let (accepts, data) = (transition.accepts.as_ref()?, data?);
    let others = match data {
        Value::Object(members) => {
            let others = members.keys().filter(|name| !accepts.contains(name));
            let others: Vec<_> = others.take(NAMES_SHOWN_MAX).cloned().collect();
            if others.is_empty() {
                return None;
            }
            others
        }
        _ => Vec::new(),
    };
    let (transition, accepts) = (transition.id.clone(), accepts.clone());
    Some(Blocker::NotAccepted { transition, accepts, others })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::limits::STEPS_MAX;
    use crate::domain::samples::{asks, at, fire, token, workflow};
    use crate::domain::{TransitionDraft, WorkflowDraft};
    use serde_json::json;

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
                fire(&token, &request, at(9)).unwrap_err().to_string()
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
                    "transition pack starts from open, but token {id} is in packed, from where send, cancel start"
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
    fn a_refusal_repeats_some_names() {
        let names = |n: usize| (0..n).map(|n| format!("p{n}")).collect::<Vec<_>>();
        let shown = |n| list(names(n).iter().map(String::as_str));
        assert_eq!(shown(1), "p0");
        assert_eq!(shown(10), "p0, p1, p2, p3, p4, p5, p6, p7, p8, p9");
        assert_eq!(shown(12), "p0, p1, p2, p3, p4, p5, p6, p7, p8, p9 and 2 more");
    }

    #[test]
    fn a_token_at_the_last_version_moves_no_more() {
        let mut token = token(json!({}));
        token.version = VERSION_MAX - 1;
        let moved = fire(&token, &asks("note", None), at(9)).unwrap().token;
        assert_eq!(moved.version, VERSION_MAX);
        let error = fire(&moved, &asks("note", None), at(9)).unwrap_err();
        assert!(
            matches!(&error, MoveError::Blocked(by) if matches!(**by, Blocker::VersionsUsedUp { .. })),
            "{error}"
        );
    }

    #[test]
    fn available_are_those_that_start_here_and_whose_conditions_hold() {
        let available = |place: &str, data: Value| {
            let mut token = token(data);
            token.place = place.parse().unwrap();
            let workflow = workflow();
            let steps = Arc::new(Steps::new(STEPS_MAX));
            let by = Deciding { caller: &Caller::anyone(), now: at(9), steps: &steps };
            let found = workflow.available_transitions(&token, None, &by).unwrap();
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

    const CONDITIONS: [&str; 20] = [
        "true",
        "token.data.n > 2",
        "next.n <= 3",
        "next.n == token.data.n",
        "has(input.n)",
        "input.n == 1",
        "input.who == caller.id",
        "'clerk' in caller.roles",
        "size(caller.roles) < 2 || next.n > 1",
        "token.data.l.all(x, x < next.n)",
        "token.data.l.exists(x, x == input.n)",
        "now > token.updated_at",
        "token.place == 'a' && token.version < 3",
        "next.none == 1",
        "next.who.matches('^a[a-z]+$')",
        "token.data.l.map(x, x + 1).all(x, x > next.n)",
        "size(token.data.l.filter(x, x == next.n)) < 2",
        "[1, 2, 3].exists(x, [x].all(y, y == next.n))",
        "{'a': 1, 'ann': 2}[next.who] == 2",
        "type(next.n) == int || next.`other` == null",
    ];

    fn random_workflow(random: &mut fastrand::Rng) -> Workflow {
        let place = |random: &mut fastrand::Rng| ["a", "b", "c"][random.usize(..3)].to_owned();
        let transition = |n: usize, random: &mut fastrand::Rng| {
            let mut from_places = vec![place(random), place(random)];
            from_places.sort();
            from_places.dedup();
            let conditions = (0..random.usize(..4))
                .map(|_| CONDITIONS[random.usize(..CONDITIONS.len())].to_owned())
                .collect();
            let members = ["n", "who", "l"].into_iter().filter(|_| random.bool());
            let accepts = members.map(str::to_owned).collect();
            TransitionDraft {
                id: format!("t{n}"),
                from_places,
                to_place: place(random),
                conditions,
                accepts: Some(accepts).filter(|_| random.bool()),
                ..TransitionDraft::default()
            }
        };
        let draft = WorkflowDraft {
            id: Some("w".to_owned()),
            name: "w".to_owned(),
            places: ["a", "b", "c"].map(str::to_owned).to_vec(),
            transitions: (0..6).map(|n| transition(n, random)).collect(),
            initial_place: "a".to_owned(),
            ..WorkflowDraft::default()
        };
        Workflow::check(draft, at(0)).unwrap()
    }

    fn random_data(random: &mut fastrand::Rng) -> Value {
        let mut data = json!({});
        for member in ["n", "who", "l", "other"] {
            if random.bool() {
                data[member] = match random.u8(..6) {
                    0 => Value::Null,
                    1 => json!("ann"),
                    2 => json!([1, 2]),
                    n => json!(n - 2),
                };
            }
        }
        data
    }

    /// `CB_QUESTIONS=100000` asks as many.
    #[test]
    fn what_is_explained_is_what_a_move_is_told() {
        let questions = std::env::var("CB_QUESTIONS").map_or(5_000, |n| n.parse().unwrap());
        let mut random = fastrand::Rng::with_seed(9);
        let (mut made, mut refused) = (0, 0);
        for _ in 0..questions / 25 {
            let workflow = random_workflow(&mut random);
            for _ in 0..25 {
                let steps = Arc::new(Steps::new(STEPS_MAX));
                let known = Caller {
                    id: "ann".to_owned(),
                    roles: vec!["clerk".to_owned()],
                    ..Caller::default()
                };
                let caller = if random.bool() { known } else { Caller::anyone() };
                let by = Deciding { caller: &caller, now: at(9), steps: &steps };
                let mut token = token(random_data(&mut random));
                token.place = ["a", "b", "c"][random.usize(..3)].parse().unwrap();
                token.version = [1, 5, VERSION_MAX][random.usize(..3)];
                let data = Some(random_data(&mut random)).filter(|_| random.bool());
                let explained = workflow.explain_transitions(&token, data.as_ref(), &by).unwrap();
                let available = workflow.available_transitions(&token, data.as_ref(), &by).unwrap();
                let allowed = explained.iter().filter(|explained| explained.blockers.is_empty());
                let allowed: Vec<_> =
                    allowed.map(|explained| explained.transition.clone()).collect();
                assert_eq!(available, allowed);
                for transition in &workflow.definition().transitions {
                    let request = asks(&transition.id, data.clone());
                    let fired = workflow.fire(&token, &request, &by);
                    let told = explained.iter().find(|told| told.transition.id == transition.id);
                    match (fired, told.map(|told| &told.blockers[..])) {
                        (Ok(_), Some([])) => made += 1,
                        (Err(MoveError::Blocked(by)), Some([first, ..])) if *by == *first => {
                            refused += 1
                        }
                        (Err(MoveError::NotAllowed { .. }), None) => {}
                        other => panic!("{transition:?} {other:?}"),
                    }
                }
            }
        }
        assert!(made > questions / 2 && refused > questions, "{made} made, {refused} refused");
    }

    #[test]
    fn what_a_transition_does_not_accept_is_named() {
        let mut draft = WorkflowDraft {
            id: Some("w".to_owned()),
            name: "w".to_owned(),
            places: vec!["open".to_owned()],
            initial_place: "open".to_owned(),
            transitions: vec![TransitionDraft {
                id: "note".to_owned(),
                from_places: vec!["open".to_owned()],
                to_place: "open".to_owned(),
                ..TransitionDraft::default()
            }],
            ..WorkflowDraft::default()
        };
        let mut refusal = |accepts: Option<&[&str]>, data: Option<Value>| {
            let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
            draft.transitions[0].accepts = accepts.map(owned);
            let workflow = Workflow::check(draft.clone(), at(0)).unwrap();
            let steps = Arc::new(Steps::new(STEPS_MAX));
            let by = Deciding { caller: &Caller::anyone(), now: at(9), steps: &steps };
            let moved = workflow.fire(&token(json!({ "a": 1, "b": 2 })), &asks("note", data), &by);
            moved.map(|_| ()).map_err(|error| error.to_string())
        };
        assert_eq!(refusal(None, Some(json!({ "x": 1 }))), Ok(()));
        assert_eq!(refusal(Some(&["a"]), Some(json!({ "a": null }))), Ok(()));
        assert_eq!(refusal(Some(&["a"]), None), Ok(()));
        assert_eq!(refusal(Some(&[]), Some(json!({}))), Ok(()));
        for (accepts, data, expected) in [
            (
                &["a", "c"][..],
                json!({ "a": 1, "b": null, "d": {} }),
                r#"data: transition note accepts "a", "c", not "b", "d""#,
            ),
            (&[], json!({ "a": 1 }), r#"data: transition note accepts no data, not "a""#),
            (
                &["a"],
                json!("x"),
                r#"data: transition note accepts "a", not data that is no object"#,
            ),
        ] {
            assert_eq!(refusal(Some(accepts), Some(data)), Err(expected.to_owned()));
        }
    }
}
