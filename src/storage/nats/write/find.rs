//! Whether a commit is there whose answer was lost.

use std::time::Duration;

use futures_util::{FutureExt, StreamExt, stream};
use tokio::time::{Instant, timeout_at};

use super::commit::{Commit, Kind, Target};
use crate::storage::nats::read::chain;
use crate::storage::nats::read::reader::Reader;
use crate::storage::nats::read::stored::Stored;
use crate::storage::nats::wire::names;
use crate::storage::{Sequence, StorageError};

/// Events that are looked at for a commit whose answer was lost: since then others may have moved
/// the token, though hardly that often in those seconds.
const LOOK_BACK_MAX: usize = 256;

/// Commits that are looked for at once, and how long it may take.
const LOOKS_AT_ONCE: usize = 16;
const LOOK_WAIT: Duration = Duration::from_secs(3);

/// What a look for a commit has found.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// It is stored, with its token or definition in this message.
    Stored(Sequence),
    /// It is not stored.
    Absent,
    /// What would tell is gone.
    Unclear(String),
}

/// Looks for several commits, in their order, for a few seconds at most; ends at the first that
/// cannot be looked for.
pub async fn find_commits(reader: &Reader, commits: &[&Commit]) -> Vec<Found> {
    let until = Instant::now() + LOOK_WAIT;
    let mut each = Vec::with_capacity(commits.len());
    for commit in commits {
        each.push(find_commit(reader, commit).boxed());
    }
    let mut looks = stream::iter(each).buffered(LOOKS_AT_ONCE);
    let mut found = Vec::with_capacity(commits.len());
    while let Ok(Some(Ok(next))) = timeout_at(until, looks.next()).await {
        found.push(next);
    }
    found
}

/// Looks whether a commit is stored, by the id of its event, and where its token or definition is.
pub async fn find_commit(reader: &Reader, commit: &Commit) -> Result<Found, StorageError> {
    let unclear = |reason: &str| Ok(Found::Unclear(reason.to_owned()));
    let state = match (reader.last(&state_subject(commit)).await?, &commit.kind) {
        (Some(state), _) => state,
        (None, Kind::Move { .. }) => return unclear("the token is not there any more"),
        (None, Kind::CreateToken { .. } | Kind::CreateWorkflow) => return Ok(Found::Absent),
    };
    if state.is_departure() {
        return unclear("the token is not there any more");
    }
    let mut event = chain::event_of(reader, state.sequence).await?;
    for step in 0..LOOK_BACK_MAX {
        let Some(stored) = event else {
            return if step == 0 {
                by_state(&state, commit)
            } else {
                unclear("history was removed")
            };
        };
        if stored.event_link()?.event_id == commit.event_id {
            // Its own message may have been replaced since; it stood right before its event.
            return Ok(Found::Stored(Sequence(stored.sequence - 1)));
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
    let ours = &commit.messages[commit.state_index];
    if state.payload == ours.payload {
        return Ok(Found::Stored(Sequence(state.sequence)));
    }
    let later = match commit.kind {
        Kind::CreateWorkflow => false,
        Kind::CreateToken { .. } | Kind::Move { .. } => {
            state.token()?.token.version > commit.version
        }
    };
    Ok(if later { Found::Unclear("history was removed".to_owned()) } else { Found::Absent })
}

/// Whether there is something of the id that a creation is for.
pub async fn is_taken(reader: &Reader, commit: &Commit) -> Result<bool, StorageError> {
    let subject = match &commit.target {
        Target::Workflow(workflow) => names::definition(workflow),
        Target::Token(id) => names::token_in_any_workflow(*id),
    };
    Ok(reader.last(&subject).await?.is_some())
}

fn state_subject(commit: &Commit) -> String {
    match (&commit.target, &commit.kind) {
        (Target::Workflow(workflow), _) => names::definition(workflow),
        (Target::Token(id), Kind::CreateToken { workflow } | Kind::Move { workflow, .. }) => {
            names::token_anywhere(workflow, *id)
        }
        (Target::Token(id), Kind::CreateWorkflow) => names::token_in_any_workflow(*id),
    }
}
