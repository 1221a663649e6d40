//! What became of a commit whose answer was lost.

use std::time::Duration;

use futures_util::{FutureExt, StreamExt, stream};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::debug;
use uuid::Uuid;

use super::commit::{Commit, Kind, Target};
use super::mend::{Mended, Mender};
use super::outgoing::Outgoing;
use super::pieces::{Piece, Remembered, Trace, trace};
use crate::domain::WorkflowId;
use crate::storage::nats::read::chain;
use crate::storage::nats::read::known::Standing;
use crate::storage::nats::read::reader::{Reader, unavailable};
use crate::storage::nats::read::stored::Stored;
use crate::storage::nats::read::token;
use crate::storage::nats::upkeep::stale_states;
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
    /// The token is not there any more.
    Gone,
    /// What would tell is gone, or older than what is known.
    Unclear(String),
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
    while let Ok(Some(next)) = timeout_at(until, looks.next()).await {
        match next {
            Ok(next) => found.push(next),
            Err(error) => {
                debug!(%error, "a change of unknown outcome cannot be looked for now");
                break;
            }
        }
    }
    found
}

/// The same for one commit that was refused: see [`find_commit`].
pub async fn find_in_time(
    mender: &Mender,
    commit: &Commit,
    told: u64,
) -> Result<Found, StorageError> {
    let looked = timeout(LOOK_WAIT, find_commit(mender, commit, told)).await;
    looked.unwrap_or_else(|_| Err(unavailable("it could not be looked for in time")))
}

/// Looks whether a commit is stored, by the id of its event, and mends it if it is torn. `told` is
/// the newest sequence that is known to stand in its way, by a refusal or an earlier look, else 0. A look that
/// shows less than that, or than was seen here before, is one at a leader that leads no more: it tells nothing.
async fn find_commit(mender: &Mender, commit: &Commit, told: u64) -> Result<Found, StorageError> {
    let (Target::Token(id), Kind::CreateToken { workflow, .. } | Kind::Move { workflow, .. }) =
        (&commit.target, &commit.kind)
    else {
        return find_definition(mender, commit, told).await;
    };
    let mut doubt = Doubt::default();
    for _ in 0..ROUNDS_MAX {
        let last = jetstream::stream_state(&mender.link).await?.last_sequence;
        let found = look(mender, workflow, *id, told, &mut doubt).await?;
        let Some(found) = found else {
            return Ok(match commit.kind {
                Kind::Move { .. } => Found::Gone,
                // What stood in its way may have been the token itself, or a pointer.
                _ if told > 0 && was_token(&mender.reader, *id, told).await? => {
                    Found::Unclear("the token is not there any more".to_owned())
                }
                Kind::CreateToken { .. } | Kind::CreateWorkflow => Found::Absent,
            });
        };
        match trace_of(&found.state, commit)? {
            Trace::None => return Ok(Found::Absent),
            Trace::Untold if is_of_others(&found.state, commit)? => return Ok(Found::Absent),
            Trace::Untold => match along_the_events(&mender.reader, &found, commit).await? {
                Along::End(found) => return Ok(found),
                Along::Passed(state) if is_told(mender, commit, state).await? => {
                    return passed(mender, workflow, *id, state).await;
                }
                Along::Passed(_) => {}
            },
            Trace::Passed(state) if is_told(mender, commit, state).await? => {
                return passed(mender, workflow, *id, state).await;
            }
            // Somebody else writes its event at the same time.
            Trace::Passed(_) => {}
            Trace::Newest => match mender.mend(&found, last, event_of(commit)).await? {
                None => return Ok(Found::Stored(Sequence(found.state.sequence))),
                Some(Mended::Done | Mended::Overtaken) => {}
            },
        }
    }
    Ok(Found::Unclear("the token moves on faster than it can be looked at".to_owned()))
}

/// How long a look is doubted that shows less than is known. Only where there are copies can it be wrong: of
/// a leader that leads no more.
#[derive(Default)]
struct Doubt {
    since: Option<Instant>,
}

impl Doubt {
    /// Waits before the next look; or there is no time for one.
    async fn is_over(&mut self, reader: &Reader) -> bool {
        let since = *self.since.get_or_insert_with(Instant::now);
        let over = !reader.has_copies() || since.elapsed() >= token::DOUBT_MAX;
        if !over {
            sleep(token::DOUBT_PAUSE).await;
        }
        over
    }
}

/// Finds a token as it is there, never less than is known to be there: a departure of the leader may lead to a
/// state that one shows that leads no more.
async fn look(
    mender: &Mender,
    workflow: &WorkflowId,
    id: Uuid,
    told: u64,
    doubt: &mut Doubt,
) -> Result<Option<Standing>, StorageError> {
    loop {
        let known = mender.reader.known.state(id, Some(workflow)).unwrap_or(0);
        let found = token::find(&mender.reader, workflow, id).await?;
        let (state, newest) = found.as_ref().map_or((0, 0), Standing::seen);
        if newest >= told && state >= known {
            return Ok(found);
        }
        if doubt.is_over(&mender.reader).await {
            let older = || unavailable("a nats-server that leads no more has answered");
            // What is not there any more has aged, or was removed.
            return if found.is_some() { Err(older()) } else { Ok(None) };
        }
    }
}

/// Whether a token as it is there may show a commit; one that is gone may have.
pub fn may_be_in(found: Option<&Standing>, commit: &Commit) -> bool {
    found.is_none_or(|found| {
        trace_of(&found.state, commit).map_or(true, |trace| trace != Trace::None)
    })
}

/// Whether a token that does not name a commit among its newest changes was surely made what it is
/// without it: nobody has written it since, or it is another one than the commit has created.
fn is_of_others(state: &Stored, commit: &Commit) -> Result<bool, StorageError> {
    let is_another = match commit.kind {
        Kind::CreateToken { created_at, .. } => state.token()?.token.created_at != created_at,
        Kind::Move { .. } | Kind::CreateWorkflow => false,
    };
    Ok(is_another || commit.is_behind(state.sequence))
}

/// A commit from which others have gone on; its token was in the message `state`.
async fn passed(
    mender: &Mender,
    workflow: &WorkflowId,
    id: Uuid,
    state: u64,
) -> Result<Found, StorageError> {
    // Its departure may have been cut off, too, and nobody who went on has seen that.
    stale_states::remove_older(&mender.link, &mender.reader, workflow, id).await?;
    Ok(Found::Stored(Sequence(state)))
}

/// Whether the message with this sequence is of the token, or was something that is gone.
async fn was_token(reader: &Reader, id: Uuid, sequence: u64) -> Result<bool, StorageError> {
    let message = reader.at(sequence).await?;
    Ok(message.is_none_or(|message| {
        names::parse_token(&message.subject).is_some_and(|(_, _, token)| token == id)
    }))
}

/// What a token's message tells of a commit.
fn trace_of(state: &Stored, commit: &Commit) -> Result<Trace, StorageError> {
    let token = state.token()?.token;
    let records = token.transition_history.iter().rev();
    let moves: Vec<_> = records.map(|record| record.nats_sequence).collect();
    let seen = Remembered {
        version: token.version,
        events: &state.marks.events,
        previous: state.marks.previous,
        moves: &moves,
    };
    Ok(trace(&seen, commit.event_id, commit.version))
}

/// Whether the event is there of a commit from which others have gone on; writes it if it is missing.
/// Not if somebody else writes it at the same time: then that must be seen.
async fn is_told(mender: &Mender, commit: &Commit, state: u64) -> Result<bool, StorageError> {
    let (Target::Token(id), Some(event)) = (&commit.target, event_of(commit)) else {
        return Ok(true);
    };
    let stands = match mender.reader.at(state + 1).await? {
        Some(there) => chain::is_event_of(&there, *id, commit.version, false)?,
        None => false,
    };
    if stands || mender.reader.last(&names::repair(commit.event_id)).await?.is_some() {
        return Ok(true);
    }
    let told = mender.tell_late(event, commit.event_id, state, None).await?;
    Ok(told == Mended::Done)
}

/// The event of a commit as it was sent.
fn event_of(commit: &Commit) -> Option<Outgoing> {
    let event = commit.messages.iter().find(|(piece, _)| *piece == Piece::Event);
    event.map(|(_, message)| message.clone())
}

/// What a look along the events of a token has found.
enum Along {
    End(Found),
    /// The event after it names it; its token was in this message. Its own event may be missing.
    Passed(u64),
}

/// Looks for a commit along the token's events, newest first.
async fn along_the_events(
    reader: &Reader,
    found: &Standing,
    commit: &Commit,
) -> Result<Along, StorageError> {
    let mut event = chain::event_of(reader, &found.state).await?;
    for step in 0..LOOK_BACK_MAX {
        let Some(stored) = event else {
            return Ok(Along::End(if step == 0 {
                by_state(&found.state, commit)?
            } else {
                Found::Unclear("history was removed".to_owned())
            }));
        };
        let link = stored.event_link()?;
        if link.event_id == commit.event_id {
            // Its own message may have been replaced since; it stood right before its event.
            let place = stored.marks.repaired.unwrap_or(stored.sequence);
            return Ok(Along::End(Found::Stored(Sequence(place - 1))));
        }
        if stored.marks.events.get(1) == Some(&commit.event_id)
            && let Some(previous) = link.previous_sequence
        {
            return Ok(Along::Passed(previous - 1));
        }
        if commit.is_behind(stored.sequence) {
            return Ok(Along::End(Found::Absent));
        }
        if stored.event()?.event.token_version.is_none_or(|version| version <= commit.version) {
            return Ok(Along::End(Found::Absent));
        }
        event = chain::event_before(reader, &stored).await?;
    }
    Ok(Along::End(Found::Unclear(format!(
        "{LOOK_BACK_MAX} later changes of the same token were looked through"
    ))))
}

/// The same by what is there now, where its event was removed.
fn by_state(state: &Stored, commit: &Commit) -> Result<Found, StorageError> {
    if state.payload == *commit.state_payload() {
        return Ok(Found::Stored(Sequence(state.sequence)));
    }
    let later = state.token()?.token.version > commit.version;
    Ok(if later { Found::Unclear("history was removed".to_owned()) } else { Found::Absent })
}

async fn find_definition(
    mender: &Mender,
    commit: &Commit,
    told: u64,
) -> Result<Found, StorageError> {
    let Target::Workflow(workflow) = &commit.target else { return Ok(Found::Absent) };
    let mut doubt = Doubt::default();
    for _ in 0..ROUNDS_MAX {
        let last = jetstream::stream_state(&mender.link).await?.last_sequence;
        let state = loop {
            let state = mender.reader.last(&names::definition(workflow)).await?;
            let newest = state.as_ref().map_or(0, |state| state.sequence);
            if newest >= told || doubt.is_over(&mender.reader).await {
                break state;
            }
        };
        let Some(state) = state.filter(|state| state.event_id() == Some(commit.event_id)) else {
            return Ok(Found::Absent);
        };
        match mender.mend_definition(&state, last).await? {
            None => return Ok(Found::Stored(Sequence(state.sequence))),
            Some(Mended::Done | Mended::Overtaken) => {}
        }
    }
    Ok(Found::Unclear("the end of the stream changes faster than it can be looked at".to_owned()))
}
