//! What became of a commit whose answer was lost.

use std::time::Duration;

use futures_util::{FutureExt, StreamExt, stream};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::commit::{Commit, Kind, Target};
use super::mend::{Mended, Mender};
use super::outgoing::Outgoing;
use super::pieces::Piece;
use crate::storage::nats::read::chain;
use crate::storage::nats::read::known::Standing;
use crate::storage::nats::read::reader::Reader;
use crate::storage::nats::read::stored::Stored;
use crate::storage::nats::read::token;
use crate::storage::nats::wire::jetstream;
use crate::storage::nats::wire::names;
use crate::storage::{Sequence, StorageError};

/// Events that are looked at for a commit whose answer was lost: since then others may have moved
/// the token, though hardly that often in those seconds.
const LOOK_BACK_MAX: usize = 256;

/// How often it looks anew where others mend or move the same token.
const ROUNDS_MAX: usize = 8;

/// Commits that are looked for at once, and how long it may take.
const LOOKS_AT_ONCE: usize = 16;
const LOOK_WAIT: Duration = Duration::from_secs(3);

/// What a look for a commit has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It is stored as a whole, with its token or definition in this message.
    Stored(Sequence),
    /// It is not stored.
    Absent,
    /// What would tell is gone, or older than what is known.
    Unclear(String),
}

/// What the token shows of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Trace {
    /// It is the token's newest change.
    Newest,
    /// Others have gone on from it; its token was in this message.
    Passed(u64),
    /// It never was.
    None,
    /// The token does not tell: too many changes ago, or of the first version.
    Untold,
}

/// Looks for several commits, in their order, for a few seconds at most; ends at the first that
/// cannot be looked for. What is torn is mended first.
pub async fn find_commits(mender: &Mender, commits: &[&Commit]) -> Vec<Found> {
    let until = Instant::now() + LOOK_WAIT;
    let mut each = Vec::with_capacity(commits.len());
    for commit in commits {
        each.push(find_commit(mender, commit, 0).boxed());
    }
    let mut looks = stream::iter(each).buffered(LOOKS_AT_ONCE);
    let mut found = Vec::with_capacity(commits.len());
    while let Ok(Some(Ok(next))) = timeout_at(until, looks.next()).await {
        found.push(next);
    }
    found
}

/// Looks whether a commit is stored, by the id of its event, and mends it if it is torn. `told` is
/// the newest sequence that nats-server named when it refused it, else 0: a look that shows less is
/// older than that.
pub async fn find_commit(
    mender: &Mender,
    commit: &Commit,
    told: u64,
) -> Result<Found, StorageError> {
    let (Target::Token(id), Kind::CreateToken { workflow } | Kind::Move { workflow, .. }) =
        (&commit.target, &commit.kind)
    else {
        return find_definition(mender, commit).await;
    };
    for _ in 0..ROUNDS_MAX {
        let last = jetstream::stream_state(&mender.link).await?.last_sequence;
        let Some(found) = token::find(&mender.reader, workflow, *id).await? else {
            return Ok(match commit.kind {
                _ if told > 0 => Found::Unclear("the token is not there any more".to_owned()),
                Kind::Move { .. } => Found::Unclear("the token is not there any more".to_owned()),
                Kind::CreateToken { .. } | Kind::CreateWorkflow => Found::Absent,
            });
        };
        if found.newest() < told {
            return Ok(Found::Unclear("a leader that was cut off has answered".to_owned()));
        }
        match trace(&found.state, commit.event_id, commit.version)? {
            Trace::None => return Ok(Found::Absent),
            Trace::Untold => return along_the_events(&mender.reader, &found, commit).await,
            Trace::Passed(state) => {
                return tell_if_untold(mender, commit, state).await.map(Found::Stored);
            }
            Trace::Newest => match mender.mend(&found, last, event_of(commit)).await? {
                None => return Ok(Found::Stored(Sequence(found.state.sequence))),
                Some(Mended::Done | Mended::Overtaken) => {}
            },
        }
    }
    Ok(Found::Unclear("the token moves on faster than it can be looked at".to_owned()))
}

/// What a token's message tells of a commit.
fn trace(state: &Stored, event_id: Uuid, version: u32) -> Result<Trace, StorageError> {
    let token = state.token()?.token;
    let place = state.marks.events.iter().position(|id| *id == event_id);
    Ok(match place {
        Some(0) => Trace::Newest,
        Some(1) => match state.marks.previous {
            Some(event) => Trace::Passed(event.saturating_sub(1)),
            None => Trace::Untold,
        },
        Some(later) => {
            let records = token.transition_history.iter().rev();
            match records.map(|record| record.nats_sequence).nth(later).flatten() {
                Some(sequence) => Trace::Passed(sequence),
                None => Trace::Untold,
            }
        }
        None if token.version < version => Trace::None,
        None if state.marks.events.is_empty() => Trace::Untold,
        // It names the events of as many versions; that of this commit is another one's.
        None if token.version - version < state.marks.events.len() as u32 => Trace::None,
        None => Trace::Untold,
    })
}

/// Writes the event of a commit from which others have gone on, if it is missing.
async fn tell_if_untold(
    mender: &Mender,
    commit: &Commit,
    state: u64,
) -> Result<Sequence, StorageError> {
    let (Target::Token(id), Some(event)) = (&commit.target, event_of(commit)) else {
        return Ok(Sequence(state));
    };
    let there = mender.reader.at(state + 1).await?;
    let told = there.is_some_and(|it| chain::is_event_of(&it, *id, commit.version, false))
        || mender.reader.last(&names::repair(commit.event_id)).await?.is_some();
    if !told {
        mender.tell_late(event, commit.event_id, state).await?;
    }
    Ok(Sequence(state))
}

/// The event of a commit as it was sent.
fn event_of(commit: &Commit) -> Option<Outgoing> {
    let event = commit.messages.iter().find(|(piece, _)| *piece == Piece::Event);
    event.map(|(_, message)| message.clone())
}

/// Looks for a commit along the token's events, newest first.
async fn along_the_events(
    reader: &Reader,
    found: &Standing,
    commit: &Commit,
) -> Result<Found, StorageError> {
    let mut event = chain::event_of(reader, &found.state).await?;
    for step in 0..LOOK_BACK_MAX {
        let Some(stored) = event else {
            return if step == 0 {
                by_state(&found.state, commit)
            } else {
                Ok(Found::Unclear("history was removed".to_owned()))
            };
        };
        if stored.event_link()?.event_id == commit.event_id {
            // Its own message may have been replaced since; it stood right before its event.
            let place = stored.marks.repaired.unwrap_or(stored.sequence);
            return Ok(Found::Stored(Sequence(place - 1)));
        }
        if stored.event()?.event.token_version.is_none_or(|version| version <= commit.version) {
            return Ok(Found::Absent);
        }
        event = chain::event_before(reader, &stored).await?;
    }
    Ok(Found::Unclear(format!(
        "{LOOK_BACK_MAX} later changes of the same token were looked through"
    )))
}

/// The same by what is there now, where its event was removed.
fn by_state(state: &Stored, commit: &Commit) -> Result<Found, StorageError> {
    if state.payload == commit.messages[0].1.payload {
        return Ok(Found::Stored(Sequence(state.sequence)));
    }
    let later = state.token()?.token.version > commit.version;
    Ok(if later { Found::Unclear("history was removed".to_owned()) } else { Found::Absent })
}

async fn find_definition(mender: &Mender, commit: &Commit) -> Result<Found, StorageError> {
    let Target::Workflow(workflow) = &commit.target else { return Ok(Found::Absent) };
    let Some(state) = mender.reader.last(&names::definition(workflow)).await? else {
        return Ok(Found::Absent);
    };
    let own = state.event_id() == Some(commit.event_id);
    if !own {
        return Ok(Found::Absent);
    }
    let there = mender.reader.at(state.sequence + 1).await?;
    let is_it =
        |event: &Stored| event.event_link().is_ok_and(|link| link.event_id == commit.event_id);
    if let Some(event) = event_of(commit)
        && !there.as_ref().is_some_and(is_it)
        && mender.reader.last(&names::repair(commit.event_id)).await?.is_none()
    {
        mender.tell_late(event, commit.event_id, state.sequence).await?;
    }
    Ok(Found::Stored(Sequence(state.sequence)))
}

/// Whether there is something of the id that a creation is for.
pub async fn is_taken(reader: &Reader, target: &Target) -> Result<bool, StorageError> {
    let subject = match target {
        Target::Workflow(workflow) => names::definition(workflow),
        Target::Token(id) => names::token_in_any_workflow(*id),
    };
    Ok(reader.last(&subject).await?.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::nats::read::stored::Marks;
    use chrono::DateTime;

    #[test]
    fn a_token_tells_what_became_of_a_commit() {
        let id = |n| Uuid::from_u128(n);
        let record = |sequence: Option<u64>| {
            serde_json::json!({ "from_place": "a", "to_place": "a", "transition_id": "t",
                "timestamp": "2026-01-01T00:00:00Z", "nats_sequence": sequence })
        };
        let state = |version: u32, events: &[u128], previous| {
            let token = serde_json::json!({ "id": id(1), "workflow_id": "w", "place": "a", "version": version,
                "data": {}, "metadata": {}, "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
                "history": [], "transition_history": [record(Some(10)), record(Some(20)), record(None)] });
            let events = events.iter().map(|n| id(*n)).collect();
            Stored {
                subject: format!("cb.workflows.w.places.a.tokens.{}", id(1)),
                sequence: 30,
                time: DateTime::UNIX_EPOCH,
                marks: Marks { events, previous, ..Marks::default() },
                payload: token.to_string().into(),
            }
        };
        for (version, state, trace_is) in [
            (5, state(5, &[7, 6, 5], Some(21)), Trace::Newest),
            (4, state(5, &[8, 7, 6], Some(21)), Trace::Passed(20)),
            (3, state(5, &[9, 8, 7], Some(21)), Trace::Passed(10)),
            (5, state(5, &[8, 6, 5], Some(21)), Trace::None),
            (6, state(5, &[8, 6, 5], Some(21)), Trace::None),
            (3, state(5, &[8, 6, 5], Some(21)), Trace::None),
            (2, state(5, &[8, 6, 5], Some(21)), Trace::Untold),
            (5, state(5, &[], None), Trace::Untold),
        ] {
            assert_eq!(trace(&state, id(7), version).unwrap(), trace_is, "{version} {state:?}");
        }
    }
}
