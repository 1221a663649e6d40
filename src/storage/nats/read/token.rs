//! Where a token is: its newest message, or the one that its newest message leads to.
//!
//! A move writes the token in its new place first and takes it out of the old one last, with a
//! departure that names the new place and lives for about a second. For that second the departure is
//! the token's newest message, so who meets it looks once more, in the place that it names.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::known::{Departure, Known, Standing};
use super::reader::{Reader, unavailable};
use super::stored::Stored;
use super::workflow_index::{self, WorkflowIndex};
use crate::domain::WorkflowId;
use crate::storage::StorageError;
use crate::storage::nats::wire::names;

/// How often a search begins anew where the token moves on under it.
const ROUNDS_MAX: usize = 16;

/// How long a read is doubted that shows less than was seen here before. A departure lives for a second.
pub const DOUBT_MAX: Duration = Duration::from_millis(1_500);
pub const DOUBT_PAUSE: Duration = Duration::from_millis(100);

/// A search for one token: what to ask next, as long as it has no end.
pub struct Search<'a> {
    workflow: &'a WorkflowId,
    token: Uuid,
    /// The departure that was met last, and where it leads.
    met: Option<Stored>,
    /// One that led nowhere: met again it means that the token has aged.
    led_nowhere: Option<u64>,
    rounds: usize,
}

/// How a search ends.
#[derive(Debug)]
pub enum End {
    /// Here it is.
    Found(Box<Standing>),
    /// There is none.
    Nothing,
    /// It moves on faster than it can be read.
    Restless,
}

impl<'a> Search<'a> {
    pub fn new(workflow: &'a WorkflowId, token: Uuid) -> Self {
        Self { workflow, token, met: None, led_nowhere: None, rounds: 0 }
    }

    /// The subject whose newest message is wanted next.
    pub fn next(&self) -> String {
        match self.met.as_ref().and_then(|met| met.marks.moved_to.as_ref()) {
            Some(place) => names::token(self.workflow, place, self.token),
            None => names::token_anywhere(self.workflow, self.token),
        }
    }

    /// Takes what was found there. Gives the end, if this is it.
    pub fn on(&mut self, found: Option<Stored>) -> Option<End> {
        match (self.met.take(), found) {
            (None, None) => Some(End::Nothing),
            (None, Some(newest)) if !newest.is_departure() => {
                Some(End::Found(Box::new(Standing { state: newest, departure: None })))
            }
            // It names no place: of the first version, or of a token that was deleted.
            (None, Some(newest)) if newest.marks.moved_to.is_none() => Some(End::Nothing),
            (None, Some(newest)) if self.led_nowhere == Some(newest.sequence) => Some(End::Nothing),
            (None, Some(newest)) => {
                self.met = Some(newest);
                None
            }
            (Some(met), Some(state)) if !state.is_departure() && state.sequence < met.sequence => {
                let departure = Some(Departure { sequence: met.sequence, time: met.time });
                Some(End::Found(Box::new(Standing { state, departure })))
            }
            // It has come back there since, with a departure of its own, which may be the newest message
            // by now: whoever commits is told so.
            (Some(_), Some(state)) if !state.is_departure() => {
                Some(End::Found(Box::new(Standing { state, departure: None })))
            }
            // It has left that place, too, and says where it went.
            (Some(met), Some(left))
                if left.marks.moved_to.is_some() && left.sequence > met.sequence =>
            {
                self.met = Some(left);
                self.rounds += 1;
                (self.rounds >= ROUNDS_MAX).then_some(End::Restless)
            }
            (Some(met), found) => {
                if found.is_none() {
                    self.led_nowhere = Some(met.sequence);
                }
                self.rounds += 1;
                (self.rounds >= ROUNDS_MAX).then_some(End::Restless)
            }
        }
    }
}

/// Finds a token of a workflow as it is there now. One get, two where it meets a departure, and two more
/// each time that the token moves on in between.
pub async fn find(
    reader: &Reader,
    workflow: &WorkflowId,
    token: Uuid,
) -> Result<Option<Standing>, StorageError> {
    let begun = reader.epoch.now();
    let found = search(reader, workflow, token).await?;
    note(reader, token, &found, begun);
    Ok(found.standing)
}

/// The same for who is told of it: never less than was seen here before.
pub async fn find_surely(
    reader: &Reader,
    workflow: &WorkflowId,
    token: Uuid,
) -> Result<Option<Standing>, StorageError> {
    sure(reader, token, Some(workflow), || search(reader, workflow, token)).await
}

fn note(reader: &Reader, token: Uuid, found: &Outcome, begun: u64) {
    if let (Some(standing), Some(workflow)) = (&found.standing, &found.workflow) {
        reader.known.record(token, Known::read(workflow, standing, Instant::now()), begun);
    }
}

/// Finds a token by its id alone, never less than was seen here before: in the workflow that the id
/// names, or in the one that its pointer leads to. Two gets; one more where it meets a departure, where
/// another workflow has the same hash, and for a hash that is not known yet.
pub async fn find_anywhere(
    reader: &Reader,
    index: &WorkflowIndex,
    token: Uuid,
) -> Result<Option<Standing>, StorageError> {
    sure(reader, token, None, || search_anywhere(reader, index, token)).await
}

/// What a search has found.
#[derive(Default)]
struct Outcome {
    standing: Option<Standing>,
    /// In which workflow, if it has found something.
    workflow: Option<WorkflowId>,
    /// It found nothing where a departure leads.
    led_nowhere: bool,
}

async fn search(
    reader: &Reader,
    workflow: &WorkflowId,
    token: Uuid,
) -> Result<Outcome, StorageError> {
    let mut search = Search::new(workflow, token);
    loop {
        let found = reader.last(&search.next()).await?;
        match search.on(found) {
            None => {}
            Some(End::Found(standing)) => {
                let (standing, workflow) = (Some(*standing), Some(workflow.clone()));
                return Ok(Outcome { standing, workflow, led_nowhere: false });
            }
            Some(End::Nothing) => {
                let led_nowhere = search.led_nowhere.is_some();
                return Ok(Outcome { led_nowhere, ..Outcome::default() });
            }
            Some(End::Restless) => {
                return Err(unavailable(format!("token {token} moves on faster than it is read")));
            }
        }
    }
}

async fn search_anywhere(
    reader: &Reader,
    index: &WorkflowIndex,
    token: Uuid,
) -> Result<Outcome, StorageError> {
    let first = index.first_of(reader, token).await?;
    let mut found = Outcome::default();
    if let Some(first) = &first {
        found = search(reader, first, token).await?;
        if found.standing.is_some() {
            return Ok(found);
        }
    }
    match workflow_index::pointer_of(reader, token).await? {
        Some(pointer) if Some(&pointer.workflow) != first.as_ref() => {
            search(reader, &pointer.workflow, token).await
        }
        Some(_) | None => Ok(found),
    }
}

/// Searches again where the outcome shows less than was seen here before. Several copies have a leader
/// each for a moment, after a partition, or while one is removed.
async fn sure<F: Future<Output = Result<Outcome, StorageError>>>(
    reader: &Reader,
    token: Uuid,
    workflow: Option<&WorkflowId>,
    search: impl Fn() -> F,
) -> Result<Option<Standing>, StorageError> {
    let (begun, mut doubted) = (reader.epoch.now(), None);
    loop {
        let found = search().await?;
        let Outcome { standing, led_nowhere, .. } = &found;
        let known = if reader.has_copies() { reader.known.state(token, workflow) } else { None };
        let is_doubtful = match standing {
            Some(standing) => known.is_some_and(|known| standing.state.sequence < known),
            None => reader.has_copies() && (known.is_some() || *led_nowhere),
        };
        if !is_doubtful || reader.epoch.now() != begun {
            note(reader, token, &found, begun);
            return Ok(found.standing);
        }
        if doubted.get_or_insert_with(Instant::now).elapsed() < DOUBT_MAX {
            sleep(DOUBT_PAUSE).await;
            continue;
        }
        if standing.is_some() {
            return Err(unavailable("a nats-server that leads no more has answered"));
        }
        // It has aged, or was removed.
        reader.known.gone(token);
        return Ok(None);
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::storage::nats::read::stored::Marks;

    fn message(sequence: u64, place: &str, leads_to: Option<&str>) -> Stored {
        let moved_to = leads_to.map(|place| place.parse().unwrap());
        let payload = if leads_to.is_some() { "" } else { "{}" };
        Stored {
            subject: format!("cb.workflows.w.places.{place}.tokens.{}", Uuid::from_u128(7)),
            sequence,
            time: DateTime::UNIX_EPOCH,
            marks: Marks { moved_to, ..Marks::default() },
            payload: payload.into(),
        }
    }

    /// What a search asks and how it ends, given what it finds.
    fn searched(found: &[Option<Stored>]) -> (Vec<String>, String) {
        let workflow = "w".parse().unwrap();
        let mut search = Search::new(&workflow, Uuid::from_u128(7));
        let mut asked = Vec::new();
        for found in found {
            let subject = search.next();
            asked.push(subject.split('.').nth(4).unwrap().to_owned());
            match search.on(found.clone()) {
                None => {}
                Some(End::Found(standing)) => {
                    let (state, newest) = (standing.state.sequence, standing.newest());
                    return (asked, format!("{state} newest {newest}"));
                }
                Some(End::Nothing) => return (asked, "nothing".to_owned()),
                Some(End::Restless) => return (asked, "restless".to_owned()),
            }
        }
        (asked, "asks on".to_owned())
    }

    #[test]
    fn a_search_follows_departures() {
        let at = |n, place| Some(message(n, place, None));
        let left = |n, place, to| Some(message(n, place, Some(to)));
        let gone = || {
            let mut gone = message(9, "a", Some("b"));
            gone.marks.moved_to = None;
            Some(gone)
        };
        for (found, asked, end) in [
            (vec![None], vec!["*"], "nothing"),
            (vec![at(4, "a")], vec!["*"], "4 newest 4"),
            (vec![left(6, "a", "b"), at(4, "b")], vec!["*", "b"], "4 newest 6"),
            (vec![gone()], vec!["*"], "nothing"),
            // It has moved on to c.
            (
                vec![left(6, "a", "b"), left(9, "b", "c"), at(7, "c")],
                vec!["*", "b", "c"],
                "7 newest 9",
            ),
            // It has come back to b, with a departure of its own.
            (vec![left(6, "a", "b"), at(10, "b")], vec!["*", "b"], "10 newest 10"),
            // It has aged, and its departure outlives it.
            (vec![left(6, "a", "b"), None, left(6, "a", "b")], vec!["*", "b", "*"], "nothing"),
            (vec![left(6, "a", "b"), None, None], vec!["*", "b", "*"], "nothing"),
        ] {
            let asked: Vec<_> = asked.into_iter().map(str::to_owned).collect();
            assert_eq!(searched(&found), (asked, end.to_owned()), "{found:?}");
        }
        let restless: Vec<_> =
            (0..20).flat_map(|n| [left(3 * n + 1, "a", "b"), left(3 * n + 3, "b", "a")]).collect();
        assert_eq!(searched(&restless).1, "restless");
    }
}
