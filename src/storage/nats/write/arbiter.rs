//! Who has won: what a change can rely on before it is sent, what became of one whose answer was
//! lost, and what a refusal means.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, stream};
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::claim::{self, Outcome};
use super::commit::{Commit, Kind, Target};
use super::end_of_stream::EndOfStream;
use super::find::{self, Found};
use super::mend::Mender;
use super::pending::{Pending, answer, expire_or_keep, no_room_for};
use super::pieces::{Verdict, judge};
use super::preceding::Preceding;
use crate::domain::workflow_hash;
use crate::storage::StorageError;
use crate::storage::nats::read::anchor::{self, Anchor};
use crate::storage::nats::read::known::Standing;
use crate::storage::nats::read::reader::unavailable;
use crate::storage::nats::read::token;
use crate::storage::nats::wire::jetstream::{self, StreamState};
use crate::storage::nats::wire::names;

/// Tokens that are asked for at once.
const ASKED_AT_ONCE: usize = 32;

/// Time for all of them; they take a fraction of a millisecond each.
const ASK_WAIT_MAX: Duration = Duration::from_secs(2);

/// By how much nats-server may remove something before its time.
const GONE_MARGIN: Duration = Duration::from_millis(500);

/// How long after the first leader another one is heard that answers, too.
const RIVAL_WAIT: Duration = Duration::from_millis(100);

/// What a message stands in the way of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// This change of the group.
    Change(usize),
    /// This server's own record, which is the first message of each batch.
    Anchor(anchor::Found),
    Unknown,
}

/// Answers changes that have won or lost, by what the stream shows.
pub struct Arbiter {
    pub mender: Arc<Mender>,
    pub preceding: Arc<Preceding>,
}

impl Arbiter {
    /// Looks for these changes, in their order, as far as that is possible now. What others wrote before
    /// those that are there is looked at later.
    pub async fn find_all(&self, commits: &[&Commit]) -> Vec<Found> {
        let found = find::find_commits(&self.mender, commits).await;
        found.iter().for_each(|found| self.note(found));
        found
    }

    /// The same for one that was refused, with the sequence that stood in its way.
    async fn find(&self, commit: &Commit, told: u64) -> Result<Found, StorageError> {
        let found = find::find_in_time(&self.mender, commit, told).await;
        found.inspect(|found| self.note(found))
    }

    fn note(&self, found: &Found) {
        if let Found::Stored(sequence) = found {
            self.preceding.push_before(sequence.0);
        }
    }

    /// Tells each move of a group what it can rely on; asks for what cannot be known. Gives those that
    /// can be tried, and those that must wait for another try. What is not known to be whole is looked at.
    pub async fn rely(
        &self,
        group: Vec<Pending>,
        end: &EndOfStream,
    ) -> (Vec<Pending>, Vec<Pending>) {
        let (reader, now) = (&self.mender.reader, Instant::now());
        let (mut ready, mut unsure) = (Vec::with_capacity(group.len()), Vec::new());
        for mut pending in group {
            let Some((workflow, id, state)) = pending.commit.moves() else {
                ready.push(pending);
                continue;
            };
            let (workflow, is_whole) = (workflow.clone(), end.is_whole(state, pending.life));
            match reader.known.expected(id, state, now) {
                // A newest message of its own is a departure, the last one of a change.
                Some((events, newest)) if is_whole || newest != state => {
                    pending.commit.rely_on(newest, &events);
                    ready.push(pending);
                }
                _ => unsure.push((pending, workflow, id, state, is_whole)),
            }
        }
        if unsure.is_empty() {
            return (ready, Vec::new());
        }
        let until = Instant::now() + ASK_WAIT_MAX;
        let tokens: Vec<_> = unsure
            .iter()
            .map(|(_, workflow, id, _, whole)| (workflow.clone(), *id, *whole))
            .collect();
        let mut asked = stream::iter(tokens)
            .map(|(workflow, id, is_whole)| async move {
                let found = token::find(reader, &workflow, id).await?;
                if !is_whole
                    && let Some(found) = &found
                    && !self.mender.is_whole(found).await?
                {
                    return Err(unavailable("its newest change was cut, and is mended"));
                }
                Ok(found)
            })
            .buffered(ASKED_AT_ONCE);
        let mut retries = Vec::new();
        for (mut pending, _, id, state, _) in unsure {
            let late = || unavailable("its token could not be read in time");
            let found = timeout_at(until, asked.next()).await.ok().flatten();
            let found = match found.unwrap_or_else(|| Err(late())) {
                Ok(found) => found,
                Err(error) => {
                    error.to_string().clone_into(&mut pending.reason);
                    retries.push(pending);
                    continue;
                }
            };
            let verdict = judge(state, pending.told, found.as_ref().map(Standing::seen));
            if let (Verdict::Try(newest), Some(found)) = (verdict, &found) {
                pending.commit.rely_on(newest, &found.state.marks.events);
            }
            match verdict {
                Verdict::Try(_) => ready.push(pending),
                Verdict::Lost if !pending.maybe_done => {
                    retries.extend(self.move_lost(pending, found.as_ref(), id, state).await);
                }
                Verdict::Lost | Verdict::LookAgain => retries.push(pending),
            }
        }
        (ready, retries)
    }

    /// Answers what has run out of time or was done by an earlier try; gives the rest.
    pub async fn worth_trying(&self, group: Vec<Pending>) -> Vec<Pending> {
        let now = Instant::now();
        let (maybe_done, mut worth): (Vec<_>, Vec<_>) = group.into_iter().partition(|pending| {
            pending.maybe_done || (pending.contested && now >= pending.deadline)
        });
        worth = worth.into_iter().filter_map(|pending| expire_or_keep(pending, now)).collect();
        if maybe_done.is_empty() {
            return worth;
        }
        let commits: Vec<_> = maybe_done.iter().map(|pending| &pending.commit).collect();
        let mut found = self.find_all(&commits).await.into_iter();
        let shows_all = OnceCell::new();
        for mut pending in maybe_done {
            match found.next() {
                Some(Found::Stored(sequence)) => answer(pending, Ok(sequence)),
                Some(Found::Unclear(reason)) => {
                    answer(pending, Err(StorageError::OutcomeUnknown { reason }));
                }
                Some(Found::Gone) => {
                    let reason = self.gone(&pending);
                    answer(pending, Err(reason));
                }
                // It is not there, or cannot be looked for; then a try that fails says more.
                absent => {
                    if pending.contested && absent.is_some() {
                        pending.contested = !*shows_all.get_or_init(|| self.shows_all()).await;
                    }
                    worth.extend(expire_or_keep(pending, Instant::now()));
                }
            }
        }
        worth
    }

    /// Whether what was just looked at shows all that is done: where several nats-servers hold the stream, one
    /// that was cut off and leads no more may have shown less than the leader has.
    async fn shows_all(&self) -> bool {
        let reader = &self.mender.reader;
        let acknowledged = reader.acknowledged();
        let leads = |one: &StreamState| !one.is_cut_off && one.last_sequence >= acknowledged;
        if !reader.has_copies() {
            return true;
        }
        let leaders = jetstream::leaders(&reader.link, RIVAL_WAIT).await;
        leaders.is_ok_and(|leaders| leaders.len() == 1 && leaders.iter().all(leads))
    }

    /// What a message stands in the way of.
    pub async fn whose(&self, group: &[Pending], told: u64) -> Whose {
        let Ok(Some(message)) = self.mender.reader.at(told).await else { return Whose::Unknown };
        if names::is_server(&message.subject) {
            // One that wanted the end of the stream as it was has met another server's record there.
            if group.iter().any(|pending| pending.commit.end.is_some()) {
                return Whose::Unknown;
            }
            return Whose::Anchor(Anchor::read(&message.payload, message.sequence));
        }
        let mut group = group.iter();
        let place =
            match (names::parse_token(&message.subject), names::parse_pointer(&message.subject)) {
                (Some((_, _, token)), _) | (None, Some(token)) => {
                    group.position(|pending| pending.commit.target == Target::Token(token))
                }
                (None, None) => group.position(|pending| pending.commit.expects(&message.subject)),
            };
        place.map_or(Whose::Unknown, Whose::Change)
    }

    /// Looks afresh at each change of a group, answers those that have lost, and gives the others. After
    /// more than one refusal several have lost, and one refusal each would hold up everyone else.
    pub async fn sift(&self, group: Vec<Pending>) -> Vec<Pending> {
        let until = Instant::now() + ASK_WAIT_MAX;
        let look = |pending| async move {
            // What there is no time for is tried as it is.
            if Instant::now() >= until { Some(pending) } else { self.lost(pending).await }
        };
        let sifted = stream::iter(group).map(|pending| look(pending).boxed());
        let kept: Vec<_> = sifted.buffered(ASKED_AT_ONCE).collect().await;
        kept.into_iter().flatten().collect()
    }

    /// What is told of a move whose token is not there any more. Had it been made, the token would stand
    /// where it went for as long as one that is completed is kept.
    fn gone(&self, pending: &Pending) -> StorageError {
        if let Some((_, id, _)) = pending.commit.moves() {
            self.mender.reader.known.gone(id);
        }
        if pending.accepted.elapsed() + GONE_MARGIN < self.mender.age {
            return pending.commit.lost();
        }
        StorageError::OutcomeUnknown { reason: "the token is not there any more".to_owned() }
    }

    /// After a refusal that may have come once something was stored: answers what is there, and gives
    /// the rest. Nothing of it is under way any more, so what is not there is not done, unless it is contested.
    pub async fn settle_refused(&self, group: Vec<Pending>) -> Vec<Pending> {
        let before: Vec<_> = group.iter().map(|pending| pending.maybe_done).collect();
        let commits: Vec<_> = group.iter().map(|pending| &pending.commit).collect();
        let mut found = self.find_all(&commits).await.into_iter();
        let mut rest = Vec::with_capacity(group.len());
        for (mut pending, before) in group.into_iter().zip(before) {
            match found.next() {
                Some(Found::Stored(sequence)) => answer(pending, Ok(sequence)),
                Some(Found::Absent) => {
                    pending.maybe_done = before;
                    rest.push(pending);
                }
                Some(Found::Unclear(reason)) => {
                    answer(pending, Err(StorageError::OutcomeUnknown { reason }));
                }
                Some(Found::Gone) => {
                    let reason = self.gone(&pending);
                    answer(pending, Err(reason));
                }
                // It cannot be looked for now.
                None => {
                    pending.maybe_done = true;
                    rest.push(pending);
                }
            }
        }
        rest
    }

    /// The same for those of a group that were contested, before they are told not to be done.
    pub async fn settle_contested(&self, group: Vec<Pending>) -> Vec<Pending> {
        let (contested, mut rest): (Vec<_>, Vec<_>) =
            group.into_iter().partition(|pending| pending.contested);
        let mut absent = self.settle_refused(contested).await;
        if !absent.is_empty() {
            let is_open = !self.shows_all().await;
            absent.iter_mut().for_each(|pending| pending.contested = is_open);
        }
        rest.extend(absent);
        rest
    }

    /// Answers creations for which there is no room: what is there already is told as that.
    pub async fn refuse_for_room(&self, group: Vec<Pending>, reason: String) {
        let (reason, until) = (&reason, Instant::now() + ASK_WAIT_MAX);
        let shows_all = &OnceCell::new();
        let refused = stream::iter(group).map(|mut pending| async move {
            let taken = self.is_taken(&pending, until).await;
            if taken == Some(true) && !pending.maybe_done {
                if let Some(unseen) = self.really_lost(pending, 0).await {
                    no_room_for(unseen, Some(reason.clone()));
                }
            } else {
                if pending.contested && taken.is_some() {
                    pending.contested = !*shows_all.get_or_init(|| self.shows_all()).await;
                }
                no_room_for(pending, Some(reason.clone()));
            }
        });
        refused.boxed().buffer_unordered(ASKED_AT_ONCE).collect::<()>().await;
    }

    /// Whether what a creation is for is there; none if that cannot be seen now.
    async fn is_taken(&self, pending: &Pending, until: Instant) -> Option<bool> {
        let Mender { reader, index, .. } = &*self.mender;
        let look = async {
            match (&pending.commit.target, &pending.commit.kind) {
                (Target::Token(id), Kind::CreateToken { workflow, .. }) => {
                    let outcome = claim::look(reader, index, *id, workflow).await;
                    outcome.ok().map(|outcome| outcome == Outcome::Taken)
                }
                (Target::Workflow(workflow), _) => {
                    let there = reader.last(&names::definition(workflow)).await;
                    there.ok().map(|there| there.is_some())
                }
                (Target::Token(_), _) => None,
            }
        };
        timeout_at(until, look).await.unwrap_or(None)
    }

    /// A change that nats-server has refused, as another one came before: unless that was an earlier
    /// try of itself, or only the departure of its own token has come or gone. Gives it back if it
    /// should be tried again.
    pub async fn lost(&self, pending: Pending) -> Option<Pending> {
        if pending.maybe_done {
            match self.find(&pending.commit, pending.told).await {
                Ok(Found::Stored(sequence)) => {
                    answer(pending, Ok(sequence));
                    return None;
                }
                // It has lost only to something else, as below: where its token is as it was decided on,
                // an earlier try that is still under way could yet be taken.
                Ok(Found::Absent) => {}
                Ok(Found::Gone | Found::Unclear(_)) | Err(_) => return Some(pending),
            }
        }
        if let Some((workflow, id, state)) = pending.commit.moves() {
            let Ok(found) = token::find(&self.mender.reader, workflow, id).await else {
                return Some(pending);
            };
            let seen = found.as_ref().map(Standing::seen);
            if judge(state, pending.told, seen) != Verdict::Lost {
                return Some(pending);
            }
            return self.move_lost(pending, found.as_ref(), id, state).await;
        }
        self.creation_lost(pending).await
    }

    /// A move whose token is not as it was decided on.
    async fn move_lost(
        &self,
        pending: Pending,
        found: Option<&Standing>,
        id: Uuid,
        state: u64,
    ) -> Option<Pending> {
        if pending.contested && find::may_be_in(found, &pending.commit) {
            let told = pending.told.max(found.map_or(0, Standing::newest));
            return self.really_lost(pending, told).await;
        }
        self.mender.reader.known.lost(id, state);
        let lost = pending.commit.lost();
        answer(pending, Err(lost));
        None
    }

    /// A change that has lost to something that is there, up to the sequence `told`: unless that is itself, as
    /// it was contested. Gives it back if that cannot be seen now.
    async fn really_lost(&self, pending: Pending, told: u64) -> Option<Pending> {
        let outcome = if pending.contested {
            match self.find(&pending.commit, told).await {
                Ok(Found::Stored(sequence)) => Ok(sequence),
                Ok(Found::Absent) => Err(pending.commit.lost()),
                Ok(Found::Gone) => Err(self.gone(&pending)),
                Ok(Found::Unclear(reason)) => Err(StorageError::OutcomeUnknown { reason }),
                Err(_) => return Some(pending),
            }
        } else {
            Err(pending.commit.lost())
        };
        answer(pending, outcome);
        None
    }

    /// nats-server refuses a creation also where it cannot look, such as while it shuts down, and for a
    /// pointer that is nobody's. So it has lost only to something that is there; else it is given back,
    /// with what it can claim now.
    async fn creation_lost(&self, mut pending: Pending) -> Option<Pending> {
        let Mender { reader, index, .. } = &*self.mender;
        // What is in the way of a token may be in another workflow: then this one has none. What the look has
        // seen in this one is known.
        let taken = match (&pending.commit.target, &pending.commit.kind) {
            (Target::Token(id), Kind::CreateToken { workflow, .. }) => {
                match claim::look(reader, index, *id, workflow).await {
                    Ok(Outcome::Free(claim)) => {
                        pending.commit.claim(&claim);
                        None
                    }
                    Ok(Outcome::Taken) => Some(0),
                    Err(_) => return Some(pending),
                }
            }
            (Target::Workflow(workflow), _) => {
                match reader.last(&names::definition(workflow)).await {
                    Ok(Some(there)) => Some(there.sequence),
                    Ok(None) => {
                        let hash = workflow_hash(workflow);
                        if matches!(index.first(reader, hash).await, Ok(Some(_))) {
                            pending.commit.without_pointer();
                        }
                        None
                    }
                    Err(_) => return Some(pending),
                }
            }
            (Target::Token(_), _) => return Some(pending),
        };
        match taken {
            Some(told) => self.really_lost(pending, told).await,
            None => Some(pending),
        }
    }
}
