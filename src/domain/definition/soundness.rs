//! What the graph of a definition shows to be odd. It is stored all the same.

use std::collections::{HashMap, VecDeque};

use super::WorkflowDefinition;
use crate::domain::id::PlaceId;

/// Warnings for one definition.
const WARNINGS_MAX: usize = 100;

/// Places and transitions in the paths of all warnings that tell how a token comes to a place: the longest path fits,
/// where it is the first; those that do not fit any more show the place alone.
const PATHS_MAX: usize = 2_000;

/// Names that one message repeats.
const NAMES_SHOWN_MAX: usize = 10;

/// What can be odd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SoundnessCode {
    /// No path leads to a place from where tokens begin.
    UnreachablePlace,
    /// A transition starts only where no token can come.
    DeadTransition,
    /// A token that comes to a place can never be completed.
    NoWayOut,
}

/// One thing that is odd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SoundnessWarning {
    /// What it is.
    pub code: SoundnessCode,
    /// The same for people.
    pub message: String,
    /// The places and transitions that show it, in order.
    pub path: Vec<String>,
}

impl WorkflowDefinition {
    /// What the graph shows to be odd, at most 100 things. Tokens begin in the initial place, and in the entry
    /// places where they are named.
    pub fn warnings(&self) -> Vec<SoundnessWarning> {
        let graph = Graph::of(self);
        let reached = graph.forward(graph.entries(), &[]);
        let mut warnings = Vec::new();
        for (place, came) in self.places.iter().zip(&reached) {
            if came.is_none() {
                warnings.push(SoundnessWarning {
                    code: SoundnessCode::UnreachablePlace,
                    message: format!("no path leads to place {place} from where tokens begin"),
                    path: vec![place.to_string()],
                });
            }
        }
        for transition in &self.transitions {
            if transition.from_places.iter().all(|from| reached[graph.index[from]].is_none()) {
                let from = transition.from_places.iter().take(NAMES_SHOWN_MAX);
                let id = &transition.id;
                warnings.push(SoundnessWarning {
                    code: SoundnessCode::DeadTransition,
                    message: format!("transition {id} starts only where no token can come"),
                    path: from.map(ToString::to_string).chain([id.to_string()]).collect(),
                });
            }
        }
        warnings.extend(graph.traps(&reached));
        warnings.truncate(WARNINGS_MAX);
        warnings
    }

    /// About how many steps [`Self::warnings`] takes.
    pub fn edges(&self) -> usize {
        let from = self.transitions.iter().map(|transition| transition.from_places.len());
        self.places.len() + from.sum::<usize>()
    }
}

/// How a place was reached: by a transition from a place, or as a beginning.
type Came = Option<Option<(usize, usize)>>;

struct Graph<'a> {
    definition: &'a WorkflowDefinition,
    index: HashMap<&'a PlaceId, usize>,
    /// The transitions that start in each place.
    out: Vec<Vec<usize>>,
}

impl<'a> Graph<'a> {
    fn of(definition: &'a WorkflowDefinition) -> Self {
        let index: HashMap<_, _> = definition.places.iter().zip(0..).collect();
        let mut out = vec![Vec::new(); definition.places.len()];
        for (number, transition) in definition.transitions.iter().enumerate() {
            for from in &transition.from_places {
                out[index[from]].push(number);
            }
        }
        Self { definition, index, out }
    }

    fn entries(&self) -> Vec<usize> {
        let definition = self.definition;
        let entries = definition.entry_places.iter().flatten();
        [&definition.initial_place].into_iter().chain(entries).map(|p| self.index[p]).collect()
    }

    fn leads_to(&self, transition: usize) -> usize {
        self.index[&self.definition.transitions[transition].to_place]
    }

    /// All places that are reached from some, by the shortest path to each, without a way through those that are
    /// `closed`.
    fn forward(&self, begin: Vec<usize>, closed: &[bool]) -> Vec<Came> {
        let mut came: Vec<Came> = vec![None; self.out.len()];
        let mut waiting = VecDeque::new();
        for place in begin {
            came[place] = Some(None);
            waiting.push_back(place);
        }
        while let Some(place) = waiting.pop_front() {
            for &transition in &self.out[place] {
                let to = self.leads_to(transition);
                if came[to].is_none() && !closed.get(to).is_some_and(|closed| *closed) {
                    came[to] = Some(Some((transition, place)));
                    waiting.push_back(to);
                }
            }
        }
        came
    }

    /// The places from which a final place is reached.
    fn lead_to_an_end(&self) -> Vec<bool> {
        let mut into: Vec<Vec<usize>> = vec![Vec::new(); self.out.len()];
        for (transition, definition) in self.definition.transitions.iter().enumerate() {
            into[self.leads_to(transition)]
                .extend(definition.from_places.iter().map(|p| self.index[p]));
        }
        let mut leads = vec![false; self.out.len()];
        let mut waiting: Vec<_> =
            self.definition.final_places().map(|place| self.index[place]).collect();
        waiting.iter().for_each(|place| leads[*place] = true);
        while let Some(place) = waiting.pop() {
            for &before in &into[place] {
                if !leads[before] {
                    leads[before] = true;
                    waiting.push(before);
                }
            }
        }
        leads
    }

    /// Parts that a token can come to and never leave, each once, where it is first met.
    fn traps(&self, reached: &[Came]) -> Vec<SoundnessWarning> {
        let leads = self.lead_to_an_end();
        let (mut told, mut names_left) = (leads, PATHS_MAX);
        let mut warnings = Vec::new();
        for place in 0..told.len() {
            if told[place] || reached[place].is_none() || warnings.len() == WARNINGS_MAX {
                continue;
            }
            let inside = self.forward(vec![place], &told);
            let inside: Vec<_> = (0..told.len()).filter(|there| inside[*there].is_some()).collect();
            inside.iter().for_each(|there| told[*there] = true);
            let name = &self.definition.places[place];
            let others = inside.iter().filter(|there| **there != place);
            let others: Vec<_> = others
                .take(NAMES_SHOWN_MAX)
                .map(|there| self.definition.places[*there].as_str())
                .collect();
            let others = match others.as_slice() {
                [] => String::new(),
                some => format!(", nor from where it leads: {}", some.join(", ")),
            };
            let mut path = self.path(reached, place);
            match names_left.checked_sub(path.len()) {
                Some(left) => names_left = left,
                None => path = vec![name.to_string()],
            }
            warnings.push(SoundnessWarning {
                code: SoundnessCode::NoWayOut,
                message: format!(
                    "a token that comes to place {name} is never completed: no final place can be reached from there{others}"
                ),
                path,
            });
        }
        warnings
    }

    /// The path by which a place was reached, from where it begins.
    fn path(&self, reached: &[Came], place: usize) -> Vec<String> {
        let mut path = vec![self.definition.places[place].to_string()];
        let mut at = place;
        while let Some(Some((transition, from))) = reached[at] {
            path.push(self.definition.transitions[transition].id.to_string());
            path.push(self.definition.places[from].to_string());
            at = from;
        }
        path.reverse();
        path
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::domain::{TransitionDraft, Workflow, WorkflowDraft};

    /// The warnings of a workflow with these places and ways, each `from>to`, that begins in the first.
    fn warnings(places: &str, ways: &str, entries: Option<&str>) -> Vec<String> {
        let names = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let transition = |way: String| {
            let (from, to) = way.split_once('>').unwrap();
            TransitionDraft {
                id: way.replace(['>', ','], "_"),
                from_places: from.split(',').map(str::to_owned).collect(),
                to_place: to.to_owned(),
                ..TransitionDraft::default()
            }
        };
        let draft = WorkflowDraft {
            id: Some("w".to_owned()),
            name: "w".to_owned(),
            places: names(places),
            transitions: names(ways).into_iter().map(transition).collect(),
            initial_place: names(places).remove(0),
            entry_places: entries.map(names),
            ..WorkflowDraft::default()
        };
        let workflow = Workflow::check(draft, DateTime::UNIX_EPOCH).unwrap();
        let shown =
            |warning: &SoundnessWarning| format!("{:?} {}", warning.code, warning.path.join(" "));
        workflow.definition().warnings().iter().map(shown).collect()
    }

    #[test]
    fn what_is_odd_is_named_with_the_path_that_shows_it() {
        for (places, ways, entries, expected) in [
            ("a b c", "a>b b>c", None, &[][..]),
            ("a", "", None, &[]),
            ("a b c", "a>b b>c c>b", None, &["NoWayOut a"]),
            ("a b", "a>b b>a", None, &["NoWayOut a"]),
            ("a b c d", "a>b a>c c>d d>c", None, &["NoWayOut a a_c c"]),
            (
                "a b c d e",
                "a>b b>c c>c b>d d>d b>e",
                None,
                &["NoWayOut a a_b b b_c c", "NoWayOut a a_b b b_d d"],
            ),
            // What leads to a trap that was told is one, too.
            (
                "a b c d e",
                "a>b b>b a>c c>b a>d e>d",
                Some("e"),
                &["NoWayOut a a_b b", "NoWayOut a a_c c"],
            ),
            ("a b c", "a>b c>b", None, &["UnreachablePlace c", "DeadTransition c c_b"]),
            ("a b c", "a>b c>b", Some("c"), &[]),
            ("a b c", "a>b c>b", Some(""), &["UnreachablePlace c", "DeadTransition c c_b"]),
            ("a b c", "a,c>b", None, &["UnreachablePlace c"]),
            (
                "a b c d",
                "a>b c>d d>c",
                None,
                &[
                    "UnreachablePlace c",
                    "UnreachablePlace d",
                    "DeadTransition c c_d",
                    "DeadTransition d d_c",
                ],
            ),
        ] {
            assert_eq!(warnings(places, ways, entries), expected, "{places}: {ways}");
        }
    }

    #[test]
    fn a_large_definition_is_looked_at_in_little_time_and_warned_of_in_bounds() {
        let places: Vec<_> = (0..1_000).map(|n| format!("p{n}")).collect();
        let ways: Vec<_> = (0..999).map(|n| format!("p{n}>p{n}")).collect();
        assert_eq!(warnings(&places.join(" "), &ways.join(" "), None).len(), WARNINGS_MAX);
        // A trap within a trap within a trap.
        let ways: Vec<_> =
            (0..999).map(|n| format!("p{n}>p{}", n + 1)).chain(["p999>p998".to_owned()]).collect();
        assert_eq!(warnings(&places.join(" "), &ways.join(" "), None), ["NoWayOut p0"]);
    }
}
