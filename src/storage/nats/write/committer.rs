//! Gathers the changes that wait while a batch is under way and commits them as the next one.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::debug;

use super::arbiter::{Arbiter, Whose};
use super::batch::{self, Answered, BatchError};
use super::doubts::Doubts;
use super::end_of_stream::EndOfStream;
use super::gather::{self, Gathering};
use super::groups::{Groups, fitting, of_this_life, one_alone, split, unless_broken};
use super::outgoing::Outgoing;
use super::pending::{self, Pending, answer, expire_or_keep, no_room_for, refused, tried};
use super::refusal::{Plan, Refusal};
use super::turns::{Turn, Turns};
use crate::storage::nats::read::known::{Known, Leaving};
use crate::storage::nats::read::life::Life;
use crate::storage::nats::read::reader::Reader;
use crate::storage::nats::upkeep::retention::Retention;
use crate::storage::nats::upkeep::room::Allowance;
use crate::storage::nats::upkeep::supervisor::Standing;
use crate::storage::nats::wire::jetstream::code;
use crate::storage::nats::wire::link::Link;
use crate::storage::nats::wire::meter::Meter;
use crate::storage::nats::wire::names::header;
use crate::storage::{Sequence, StorageError};

/// Pause before a change is tried again that the server could not take.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Pause before a change is tried again whose subject another server is just writing.
const BUSY_PAUSE: Duration = Duration::from_millis(3);

/// How long a try waits for a connection that is being made anew.
const CONNECT_WAIT: Duration = Duration::from_secs(1);

/// How long a change waits for room in a full stream. Departures vanish within two seconds.
const FULL_WAIT: Duration = Duration::from_millis(2_500);

/// Pause before it looks for room again.
const FULL_PAUSE: Duration = Duration::from_millis(100);

/// How often it is asked whether the end of the stream must be looked at, in case a signal was lost.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// How long all messages of a batch are answered after one was refused without a reason. It costs a
/// small answer a message.
const EACH_FOR: Duration = Duration::from_secs(10);

/// Refusals of one batch after which each of its changes is looked at.
const REFUSALS_MAX: usize = 1;

/// The one task that writes to the stream for this process.
pub struct Committer {
    link: Arc<Link>,
    reader: Arc<Reader>,
    retention: Arc<Retention>,
    meter: Arc<Meter>,
    life: Arc<Life>,
    arbiter: Arbiter,
    queue: mpsc::Receiver<Pending>,
    end: EndOfStream,
    gathering: Gathering<Pending>,
    turns: Turns<Pending>,
    doubts: Arc<Doubts>,
    /// Whether a part of a batch may have been stored since the last one that was.
    partial: bool,
    /// Until when all messages of a batch are to be answered, as the last one's answer did not tell why it
    /// was refused.
    each_until: Option<Instant>,
    /// When a look was asked for last because a refusal did not tell what stands in the way.
    untold_at: Option<Instant>,
}

impl Committer {
    pub fn new(
        arbiter: Arbiter,
        retention: Arc<Retention>,
        life: Arc<Life>,
        queue: mpsc::Receiver<Pending>,
        doubts: Arc<Doubts>,
        end: EndOfStream,
    ) -> Self {
        Self {
            meter: Arc::clone(&arbiter.mender.meter),
            link: Arc::clone(&arbiter.mender.link),
            reader: Arc::clone(&arbiter.mender.reader),
            retention,
            life,
            arbiter,
            queue,
            end,
            gathering: Gathering::new(),
            turns: Turns::new(),
            doubts,
            partial: false,
            each_until: None,
            untold_at: None,
        }
    }

    /// Commits until nobody can send more and everything is answered.
    pub async fn run(mut self) {
        while let Some(work) = self.next().await {
            match work {
                Work::New(batch) => {
                    let (begun, count) = (Instant::now(), batch.len());
                    let batch = self.admit(batch).await;
                    let refusals = self.settle(batch).await;
                    let waiting = self.gathering.held() + self.queue.len();
                    self.gathering.ended(count, waiting, begun.elapsed(), refusals > 0);
                }
                Work::Retry(group) => drop(self.settle(group).await),
                // It has told what stands in its way, and is tried again.
                Work::Look => drop(self.look_at_the_end().await),
                Work::Doubts => {
                    let begun = Instant::now();
                    self.look_for_doubts().await;
                    self.doubts.looked(begun, Instant::now());
                }
            }
        }
    }

    /// What to do next; none at the end.
    async fn next(&mut self) -> Option<Work> {
        loop {
            let is_open = *self.end.signals.standing.borrow() == Standing::Open;
            // Whether trouble is over, only a write tells, and perhaps nobody sends one.
            let due = self.doubts.are_due(self.meter.is_in_trouble(), Instant::now());
            if due && is_open && self.link.is_connected() {
                return Some(Work::Doubts);
            }
            let is_new = self.gathering.held() > 0 || !self.queue.is_empty();
            let due = match self.turns.next(Instant::now(), is_new, self.end.wants_look(&self.link))
            {
                Turn::New => return Some(Work::New(self.gather(None).await)),
                Turn::Retry(group) => return Some(Work::Retry(group)),
                Turn::Look => return Some(Work::Look),
                Turn::Wait(due) => due,
            };
            let until = due.into_iter().chain(self.end.look_at()).min();
            let until = until.unwrap_or_else(|| Instant::now() + LOOK_PERIOD);
            tokio::select! {
                first = self.queue.recv() => match (first, due) {
                    (Some(first), _) => return Some(Work::New(self.gather(Some(first)).await)),
                    // Nobody sends any more; what is tried again comes to its end.
                    (None, Some(due)) => sleep_until(due).await,
                    (None, None) => return None,
                },
                // Whatever changed, or if time passed, it begins anew.
                Ok(()) = self.end.signals.settled.changed() => {}
                Ok(()) = self.end.signals.standing.changed() => {}
                () = sleep_until(until) => {}
            }
        }
    }

    /// Looks for changes of unknown outcome, which mends what is torn of them; those that cannot be
    /// looked for now are looked for again.
    async fn look_for_doubts(&mut self) {
        if self.look_at_the_end().await.is_err() {
            return;
        }
        // Once a later record of this server is stored, nothing that it sent before can be: what is
        // not there then, never will be.
        match self.send(&[]).await {
            Ok(last) => self.done(Vec::new(), last, Instant::now(), 0),
            Err(error) => return debug!(?error, "doubts cannot be looked for yet"),
        }
        let commits = self.doubts.take();
        let all: Vec<_> = commits.iter().collect();
        let found = self.arbiter.find_all(&all).await.len();
        self.doubts.put_back(commits.into_iter().skip(found).collect());
    }

    /// Nothing is written before the end of the stream is whole.
    async fn look_at_the_end(&mut self) -> Result<(), StorageError> {
        let looked = self.end.look(&self.arbiter.mender, &self.life).await;
        if let Err(StorageError::Full { .. }) = &looked {
            self.retention.make_room(false).await;
        }
        looked
    }

    /// What waits, as far as it fits one batch.
    async fn gather(&mut self, first: Option<Pending>) -> Vec<Pending> {
        for lost in self.gathering.begin(Instant::now()) {
            let reason = lost.commit.lost();
            answer(lost, Err(reason));
        }
        let mut next = first;
        loop {
            if let Some(pending) = next {
                self.gathering.take(pending);
            }
            next = match self.gathering.next_step(Instant::now(), !self.queue.is_empty()) {
                gather::Step::Take => self.queue.try_recv().ok(),
                gather::Step::WaitUntil(until) => {
                    match timeout_at(until, self.queue.recv()).await {
                        Ok(Some(pending)) => Some(pending),
                        // Nobody has come in time, or comes any more.
                        Ok(None) | Err(_) => break,
                    }
                }
                gather::Step::Send => break,
            };
        }
        let batch = self.gathering.finish();
        if let Some(first) = batch.first() {
            self.meter.record_wait(first.accepted.elapsed());
        }
        batch
    }

    /// Refuses creations for which there is no room.
    async fn admit(&self, batch: Vec<Pending>) -> Vec<Pending> {
        let messages = batch.iter().map(|pending| pending.commit.messages.len() as u64).sum();
        let bytes = batch.iter().map(|pending| pending.bytes as u64).sum();
        let creates = batch.iter().any(|pending| pending.commit.creates());
        match self.retention.before_batch(messages, bytes, creates).await {
            None => batch,
            Some(room) => self.refuse_creations(batch, room).await,
        }
    }

    /// Answers the creations of a batch for which there is no room, in their order; gives the rest.
    async fn refuse_creations(&self, batch: Vec<Pending>, room: Allowance) -> Vec<Pending> {
        let reason = room.reason.clone();
        let (rest, refused) = fitting(batch, room);
        self.arbiter.refuse_for_room(refused, reason).await;
        rest
    }

    /// Tries a batch, in parts where parts of it cannot be committed, until each change is answered
    /// or put back for another try. Gives how often nats-server has refused.
    async fn settle(&mut self, batch: Vec<Pending>) -> usize {
        let mut groups = Groups::from([batch]);
        let mut refusals = 0;
        while let Some(group) = groups.pop_front() {
            let standing = self.end.signals.standing.borrow().clone();
            let group = unless_broken(group, &standing, &self.link);
            if group.is_empty() {
                continue;
            }
            if let Err(error) = self.look_at_the_end().await {
                let (group, now) = (tried(group, &error.to_string(), false), Instant::now());
                let in_time = group.into_iter().filter_map(|one| expire_or_keep(one, now));
                self.put_back(in_time.collect(), RETRY_PAUSE);
                continue;
            }
            let group = of_this_life(group, self.life.number());
            let group = one_alone(group, &mut groups);
            let group = self.arbiter.worth_trying(group).await;
            let (mut group, unclear) = self.arbiter.rely(group, &self.end).await;
            self.put_back(unclear, RETRY_PAUSE);
            if group.is_empty() {
                continue;
            }
            let (sent, before) = (Instant::now(), self.reader.acknowledged());
            let begun = self.reader.epoch.now();
            pending::sent(&mut group, before);
            match self.send(&group).await {
                Ok(last) => {
                    if last <= before {
                        // The stream has gone back since: it is another one, and has taken this.
                        self.life.suspect();
                    }
                    self.done(group, last, sent, begun);
                }
                Err(BatchError::Unknown(reason)) => {
                    self.partial = true;
                    if sent.elapsed() >= batch::COMMIT_WAIT {
                        self.meter.record_silence(sent, &reason);
                    }
                    debug!(reason, changes = group.len(), "a batch has no answer, looking for it");
                    self.put_back(tried(group, &reason, true), RETRY_PAUSE);
                }
                Err(BatchError::NotDone(reason)) => {
                    if let Some(denied) = self.link.all_denied() {
                        self.meter.record_denied(&denied);
                    }
                    self.put_back(tried(group, &reason, false), RETRY_PAUSE);
                }
                Err(BatchError::Refused(refusal)) => {
                    refusals += 1;
                    self.refused(group, refusal, refusals, &mut groups).await;
                }
            }
        }
        refusals
    }

    fn put_back(&mut self, group: Vec<Pending>, pause: Duration) {
        self.turns.put_back(group, Instant::now() + pause);
    }

    fn answered(&self) -> Answered {
        let each = self.each_until.is_some_and(|until| Instant::now() < until);
        if each { Answered::Each } else { Answered::Last }
    }

    async fn send(&self, group: &[Pending]) -> Result<u64, BatchError> {
        let connected = self.link.connected(Instant::now() + CONNECT_WAIT).await;
        connected.map_err(|error| BatchError::NotDone(error.to_string()))?;
        // Nobody else writes it meanwhile. A look holds it, too, and may take long in a store that must
        // be completed first.
        let held = || BatchError::NotDone("it is being seen what store this is".to_owned());
        let anchor = timeout_at(Instant::now() + CONNECT_WAIT, self.life.anchor()).await;
        let mut anchor = anchor.map_err(|_| held())?;
        // A look that ended another life has held it until now.
        let life = self.life.number();
        if group.iter().any(|pending| pending.life != life) {
            return Err(BatchError::NotDone("it is another life of the store".to_owned()));
        }
        let next = anchor.next(self.reader.whole());
        let mut first = Outgoing::of(&next);
        if let Some(end) = group.iter().find_map(|pending| pending.commit.end) {
            first.set(header::EXPECTED_LAST_SEQUENCE, end);
        }
        let changes = group.iter().flat_map(|pending| &pending.commit.messages);
        let mut messages: Vec<_> = changes.map(|(_, message)| message).collect();
        let witness = anchor.witness(SystemTime::now()).filter(|_| !messages.is_empty());
        let check = witness.map(|witness| batch::check(&witness, &messages));
        if let Some(check) = &check {
            check.join(&mut messages);
        }
        messages.insert(0, &first);
        let count = messages.len() as u64;
        let outcome = batch::send(&self.link, &messages, self.answered()).await;
        match &outcome {
            Ok(last) => anchor.done(&next, last + 1 - count),
            Err(BatchError::NotDone(_)) => anchor.refused(&next),
            Err(BatchError::Refused(refusal)) if refusal.is_whole() => anchor.refused(&next),
            // It may be there: the next look tells.
            Err(BatchError::Refused(_) | BatchError::Unknown(_)) => self.life.want_look(),
        }
        outcome
    }

    /// `refusals` is how many there were of this batch and its parts.
    async fn refused(
        &mut self,
        mut group: Vec<Pending>,
        refusal: Refusal,
        refusals: usize,
        groups: &mut Groups,
    ) {
        debug!(?refusal, changes = group.len(), "nats-server has refused a batch");
        if refusal.err_code == code::BATCH_INCOMPLETE {
            self.each_until = Some(Instant::now() + EACH_FOR);
        }
        let told = refusal.told();
        let whose = if told > 0 { self.arbiter.whose(&group, told).await } else { Whose::Unknown };
        let culprit = match whose {
            Whose::Change(place) => Some(place),
            Whose::Unknown => None,
            Whose::Anchor(named) => {
                refused(&mut group, self.reader.has_copies());
                self.arbiter.preceding.push_before(named.sequence);
                let is_known = self.life.goes_on_from(named).await;
                let pause = if is_known { Duration::ZERO } else { RETRY_PAUSE };
                self.put_back(tried(group, &refusal.description, false), pause);
                return;
            }
        };
        // It may be its own record that is gone, or a limit that somebody has lowered; but mostly another
        // server is just writing, or the stream is full.
        if told == 0 && self.untold_at.is_none_or(|at| at.elapsed() >= LOOK_PERIOD) {
            self.untold_at = Some(Instant::now());
            self.life.want_look();
        }
        let often = group.iter().map(|pending| pending.refusals).max().unwrap_or(0);
        let plan = refusal.plan(group.len(), often + 1, culprit);
        if !refusal.is_whole() {
            self.partial = true;
            group = self.arbiter.settle_refused(group).await;
        }
        refused(&mut group, self.reader.has_copies());
        let reason = refusal.reason();
        match plan {
            Plan::Culprit(place) => {
                // Its sequence says which one it is, so the others need not suffer for it.
                let mut culprit = group.remove(place);
                culprit.told = told;
                if refusals > REFUSALS_MAX {
                    group = self.arbiter.sift(group).await;
                }
                groups.push_front(group);
                let again = self.lost(culprit).await;
                self.put_back(again.into_iter().collect(), Duration::ZERO);
            }
            Plan::Halves if refusals > REFUSALS_MAX => {
                split(self.arbiter.sift(group).await, groups);
            }
            Plan::Halves => split(group, groups),
            Plan::Judge => {
                for mut pending in tried(group, &reason, false) {
                    pending.told = told;
                    let again = self.lost(pending).await;
                    let pause = if told > 0 { Duration::ZERO } else { RETRY_PAUSE };
                    self.put_back(again.into_iter().collect(), pause);
                }
            }
            Plan::Busy => self.put_back(tried(group, &reason, false), BUSY_PAUSE),
            Plan::NoRoom => {
                if refusal.advice().is_some() {
                    self.meter
                        .record_limit(&reason, group.iter().map(|pending| pending.bytes).sum());
                }
                self.no_room(tried(group, &reason, false), groups).await;
            }
            Plan::LookAndRetry => {
                self.meter.record_trouble(&reason);
                self.life.want_look();
                self.put_back(tried(group, &reason, false), RETRY_PAUSE);
            }
        }
    }

    /// One that was refused as another came before: gives it back if it should be tried again.
    async fn lost(&mut self, pending: Pending) -> Option<Pending> {
        let created = pending.commit.creates().then(|| pending.commit.target.clone());
        let again = self.arbiter.lost(pending).await;
        if let (None, Some(target)) = (&again, created) {
            self.gathering.exists(target);
        }
        again
    }

    /// The stream is at its limits, or its disk fails.
    async fn no_room(&mut self, mut group: Vec<Pending>, groups: &mut Groups) {
        let now = Instant::now();
        for pending in &mut group {
            pending.full_since.get_or_insert(now);
        }
        self.retention.make_room(group.iter().any(|pending| pending.commit.creates())).await;
        if let Some(reason) = self.retention.full() {
            let none = Allowance { messages: 0, bytes: 0, reason };
            group = self.refuse_creations(group, none).await;
        }
        if group.len() > 1 {
            // A batch needs room for all of its messages at once; smaller ones may fit.
            split(group, groups);
            return;
        }
        let (waited, group): (Vec<_>, Vec<_>) = group.into_iter().partition(|pending| {
            pending.full_since.is_some_and(|since| since.elapsed() > FULL_WAIT)
        });
        for pending in self.arbiter.settle_contested(waited).await {
            no_room_for(pending, self.retention.full());
        }
        self.put_back(group, FULL_PAUSE);
    }

    /// Notes where each change of an acknowledged batch stands, and says so.
    fn done(&mut self, group: Vec<Pending>, last: u64, sent: Instant, begun: u64) {
        let count: usize = group.iter().map(|pending| pending.commit.messages.len()).sum();
        let now = Instant::now();
        self.reader.record_acknowledged(last);
        self.meter.end_trouble(group.iter().map(|pending| pending.bytes).sum());
        if std::mem::take(&mut self.partial) {
            self.meter.record_partial();
            self.life.want_look();
        }
        // This server's own record comes before them.
        let first = last - count as u64;
        self.end.written(first..=last, self.life.number(), &self.reader);
        let mut next = last + 1 - count as u64;
        for pending in group {
            let (commit, state) = (&pending.commit, next + pending.commit.state_at() as u64);
            next += commit.messages.len() as u64;
            if let Some((workflow, token)) = commit.token() {
                let leaving = Leaving { sequence: next - 1, not_before: sent, not_after: now };
                let departure = commit.leaves().then_some(leaving);
                let (workflow, events) = (workflow.clone(), commit.events());
                let known = Known { workflow, state, events, departure };
                self.reader.known.record(token, known, begun);
            }
            self.gathering.changed(commit.target.clone(), state);
            answer(pending, Ok(Sequence(state)));
        }
    }
}

/// What the task does next.
enum Work {
    /// A batch of what has come.
    New(Vec<Pending>),
    /// What was tried before.
    Retry(Vec<Pending>),
    /// A look at the end of the stream.
    Look,
    /// A look for changes of unknown outcome.
    Doubts,
}
