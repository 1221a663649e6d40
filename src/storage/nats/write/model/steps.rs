//! What can happen next: to nats-server, and in each server.

use uuid::Uuid;

use super::super::pieces::{Piece, Remembered, Trace, Verdict, judge, trace};
use super::world::{
    Batch, Change, Id, Message, NEXT, Seen, Step, TOKEN, Token, What, Without, World,
};
use crate::domain::WorkflowId;
use crate::storage::nats::read::known::events_after;
use crate::storage::nats::read::token::{End, Search};

/// A batch that a server sends, expecting `newest` over all places or one.
struct Sent {
    who: usize,
    label: String,
    batch: Batch,
    newest: u16,
    over: Option<u8>,
}

/// All worlds that one step leads to.
pub struct Steps<'a> {
    pub world: &'a World,
    pub without: Without,
    pub next: Vec<(String, World)>,
}

impl Steps<'_> {
    fn push(&mut self, label: String, change: impl FnOnce(&mut World)) {
        let mut world = self.world.clone();
        change(&mut world);
        self.next.push((label, world));
    }

    pub fn all(mut self) -> Result<Vec<(String, World)>, String> {
        let world = self.world;
        if let Some(seen) = world.read() {
            let top = world.acked.iter().map(Vec::len).max().unwrap_or(0);
            if usize::from(seen.token.version) < top {
                return Err(format!(
                    "a read shows version {}, {top} is acknowledged",
                    seen.token.version
                ));
            }
        } else if world.stream.iter().all(|m| m.token().is_none()) && !world.acked.is_empty() {
            return Err("the token is nowhere".to_owned());
        }
        self.nats_server();
        for who in 0..world.servers.len() {
            self.server(who);
        }
        if self.next.is_empty() || super::at_rest(world) {
            super::check_at_rest(world)?;
        }
        Ok(self.next)
    }

    fn nats_server(&mut self) {
        for message in &self.world.stream {
            if matches!(message.what, What::Departure { .. }) {
                let sequence = message.sequence;
                self.push(format!("departure {sequence} expires"), |world| {
                    world.stream.retain(|message| message.sequence != sequence);
                });
            }
        }
        let newest = self.world.stream.iter().rev().find(|m| m.token().is_some());
        if self.world.back > 0 {
            for message in &self.world.removed {
                if newest.is_some_and(|newest| message.sequence < newest.sequence) {
                    self.push(format!("a restart brings back {}", message.sequence), |world| {
                        world.back -= 1;
                        world.removed.remove(message);
                        world.stream.push(message.clone());
                        world.stream.sort_unstable_by_key(|message| message.sequence);
                        world.restarted();
                    });
                }
            }
        }
        if let Some(change) = &self.world.late {
            let (batch, over) = (self.batch_of(change), self.over(change));
            let taken = self.world.takes(&batch, Some(change.newest), over);
            let most = if taken { batch.len() } else { 0 };
            let least = if taken && self.world.cuts > 0 { 0 } else { most };
            for stored in least..=most {
                self.push(format!("of a late batch {stored} of {} arrive", batch.len()), |world| {
                    world.late = None;
                    world.cuts -= u8::from(stored < most);
                    batch[..stored].iter().for_each(|message| world.store(message));
                });
            }
        }
    }

    fn batch_of(&self, change: &Change) -> Batch {
        let mut pieces = change.token.shape(change.to).pieces();
        if self.without.token_first && pieces.last() == Some(&Piece::Departure) {
            pieces.rotate_right(1);
        }
        pieces.iter().map(|piece| change.token.message(*piece, change.to, None)).collect()
    }

    /// What the check of a change looks at.
    fn over(&self, change: &Change) -> Option<u8> {
        if self.without.check_over_all_places { change.token.from } else { None }
    }

    fn server(&mut self, who: usize) {
        let server = &self.world.servers[who];
        if server.scans {
            self.push(format!("{who} scans"), |world| {
                world.servers[who].scans = false;
                if let Some(seen) = world.read() {
                    let newest = seen.state.sequence;
                    world.stream.retain(|m| m.token().is_none() || m.sequence >= newest);
                }
            });
        }
        let writes = matches!(server.step, Step::Hold(_) | Step::Doubt(_) | Step::Mending(..));
        if server.looks && (writes || matches!(server.step, Step::Idle)) {
            self.look(who);
            if writes {
                return;
            }
        }
        match server.step.clone() {
            Step::Idle if server.left > 0 => self.begin_to_read(who),
            Step::Idle => {}
            Step::Reading(sequence, to) => self.read_on(who, sequence, to),
            Step::Hold(change) => self.send(who, &change),
            Step::Doubt(change) => {
                if !change.given_up {
                    self.give_up(who, &change);
                }
                self.find(who, change);
            }
            Step::Mending(before, state, ends) => self.mend(who, &before, state, ends),
        }
    }

    fn look(&mut self, who: usize) {
        let world = self.world;
        // A departure is the last message of its change, so what ends in one is whole.
        let end = world.newest(None);
        let torn = end.filter(|end| end.token().is_some()).and_then(|end| {
            let seen = world.read().filter(|seen| seen.state.sequence == end.sequence)?;
            let batch = world.mending(&seen, world.last, self.without)?;
            (!batch.is_empty()).then_some((batch, seen.newest))
        });
        match torn {
            Some((batch, newest)) if !self.without.look_at_the_end => {
                let label = format!("{who} mends the end");
                self.apply(&Sent { who, label, batch, newest, over: None }, |_| {}, |_| {});
            }
            _ => self.push(format!("{who} finds the end whole"), |world| {
                world.servers[who].looks = false;
            }),
        }
    }

    /// Stores a batch whole, or up to each cut, if its check holds.
    fn apply(&mut self, sent: &Sent, done: impl Fn(&mut World), cut: impl Fn(&mut World)) {
        let Sent { who, label, batch, newest, over } = sent;
        if !self.world.takes(batch, Some(*newest), *over) {
            self.push(format!("{label}: refused"), |_| {});
            return;
        }
        for stored in 0..batch.len() {
            if self.world.cuts == 0 {
                break;
            }
            for how in ["a limit", "a restart", "a restart of the sender, too"] {
                let label = format!("{label}: cut after {stored} of {}, {how}", batch.len());
                self.push(label, |world| {
                    world.cuts -= 1;
                    batch[..stored].iter().for_each(|message| world.store(message));
                    match how {
                        "a limit" => cut(world),
                        "a restart" => {
                            cut(world);
                            world.restarted();
                        }
                        // It comes back and knows nothing.
                        _ => {
                            world.servers[*who].step = Step::Idle;
                            world.restarted();
                        }
                    }
                });
            }
        }
        self.push(label.clone(), |world| {
            batch.iter().for_each(|message| world.store(message));
            done(world);
        });
    }

    fn begin_to_read(&mut self, who: usize) {
        let workflow: WorkflowId = "w".parse().expect("a name");
        let mut search = Search::new(&workflow, TOKEN);
        let found = self.world.answer(&search, &workflow);
        let met = found.clone();
        match (search.on(found), met) {
            (Some(End::Nothing), None) => self.decide_to_create(who),
            (Some(end), _) => {
                if let Some(seen) = self.world.seen(end) {
                    self.decide(who, &seen);
                }
            }
            (None, Some(met)) => {
                let sequence = u16::try_from(met.sequence).expect("few");
                let Some(message) = self.world.at(sequence) else { return };
                let What::Departure { to } = message.what else { return };
                self.push(format!("{who} meets departure {sequence}"), |world| {
                    world.servers[who].step = Step::Reading(sequence, to);
                });
            }
            (None, None) => {}
        }
    }

    fn read_on(&mut self, who: usize, sequence: u16, to: u8) {
        let workflow: WorkflowId = "w".parse().expect("a name");
        let mut search = Search::new(&workflow, TOKEN);
        // Where it was does not matter, only where it leads.
        let met = Message { sequence, place: 0, what: What::Departure { to } };
        let end = search.on(Some(met.stored(&workflow)));
        assert!(end.is_none(), "a departure leads on");
        match search.on(self.world.answer(&search, &workflow)) {
            Some(end) => {
                if let Some(seen) = self.world.seen(end) {
                    self.decide(who, &seen);
                }
            }
            None => self.push(format!("{who} reads anew"), |world| {
                world.servers[who].step = Step::Idle;
            }),
        }
    }

    fn id(&self, who: usize) -> Id {
        let left = u16::from(self.world.servers[who].left);
        let who = u16::try_from(who).expect("few");
        // Each attempt has an id of its own; what tells attempts apart is what they were decided on.
        who * 1_000 + left * 100 + self.world.last
    }

    fn decide_to_create(&mut self, who: usize) {
        let token = Token { version: 1, from: None, ids: vec![self.id(who)], earlier: vec![] };
        let change =
            Change { token, to: 0, state: 0, newest: 0, maybe_done: false, given_up: false };
        self.push(format!("{who} decides to create"), |world| {
            world.servers[who].step = Step::Hold(change);
        });
    }

    fn decide(&mut self, who: usize, seen: &Seen) {
        let from = seen.state.place;
        for to in NEXT[usize::from(from)] {
            let mut token = seen.token.clone();
            token.version += 1;
            token.from = Some(from);
            token.ids.push(self.id(who));
            token.earlier.push(seen.state.sequence);
            let (state, newest) = (seen.state.sequence, seen.newest);
            let (maybe_done, given_up) = (false, false);
            let change = Change { token, to: *to, state, newest, maybe_done, given_up };
            let label = format!("{who} decides on {state}: {from} to {to}");
            self.push(label, |world| world.servers[who].step = Step::Hold(change));
        }
        if NEXT[usize::from(from)].is_empty() {
            self.push(format!("{who} finds it completed"), |world| {
                (world.servers[who].step, world.servers[who].left) = (Step::Idle, 0);
            });
        }
    }

    fn send(&mut self, who: usize, change: &Change) {
        let (world, batch, over) = (self.world, self.batch_of(change), self.over(change));
        if !world.takes(&batch, Some(change.newest), over) {
            return self.refused(who, change);
        }
        let id = change.token.newest_id();
        let doubt = Step::Doubt(Change { maybe_done: true, ..change.clone() });
        let done = |world: &mut World| world.acknowledge(who, change);
        let in_doubt = |world: &mut World| world.servers[who].step = doubt.clone();
        let label = format!("{who} commits {id}");
        let sent = Sent { who, label, batch, newest: change.newest, over };
        self.apply(&sent, done, in_doubt);
        let batch = &sent.batch;
        if world.cuts > 0 {
            self.push(format!("{who} commits {id}, the answer is lost"), |world| {
                world.cuts -= 1;
                batch.iter().for_each(|message| world.store(message));
                in_doubt(world);
            });
            if world.late.is_none() {
                self.push(format!("{who} sends {id}, which is late"), |world| {
                    world.cuts -= 1;
                    world.late = Some(change.clone());
                    in_doubt(world);
                });
            }
        }
    }

    /// As `Committer::lost` does.
    fn refused(&mut self, who: usize, change: &Change) {
        let id = change.token.newest_id();
        if change.maybe_done {
            return self.find(who, change.clone());
        }
        let told = self.world.newest(self.over(change)).map_or(0, |message| message.sequence);
        let seen = self.world.read();
        let seen = seen.map(|seen| (u64::from(seen.state.sequence), u64::from(seen.newest)));
        match judge(change.state.into(), told.into(), seen) {
            Verdict::Try(newest) if change.state > 0 => {
                let newest = u16::try_from(newest).expect("few");
                let again = Change { newest, ..change.clone() };
                self.push(format!("{who} tries {id} again on {newest}"), |world| {
                    world.servers[who].step = Step::Hold(again);
                });
            }
            Verdict::Try(_) | Verdict::Lost => {
                self.push(format!("{who} has lost {id}"), |world| {
                    world.servers[who].step = Step::Idle;
                });
            }
            Verdict::LookAgain => {}
        }
    }

    /// Its outcome is told to be unknown, and it is looked for on: once a later record of this server is
    /// stored, nothing that it sent before can be.
    fn give_up(&mut self, who: usize, change: &Change) {
        let (ids, fences) = (change.token.ids.clone(), !self.without.fence);
        let change = Change { given_up: true, ..change.clone() };
        self.push(format!("{who} gives {} up", change.token.newest_id()), |world| {
            if fences && world.late.as_ref().is_some_and(|late| late.token.ids == ids) {
                world.late = None;
            }
            world.servers[who].step = Step::Doubt(change);
        });
    }

    /// As `find::find_commit` and what the committer does with it.
    fn find(&mut self, who: usize, change: Change) {
        let (world, id) = (self.world, change.token.newest_id());
        let refused = matches!(world.servers[who].step, Step::Hold(_));
        let Some(seen) = world.read() else {
            if change.given_up {
                self.push(format!("{who} finds nothing and ends"), |w| w.end(who));
            } else if !refused {
                // A creation that is not there is tried again.
                let again = Step::Hold(change);
                self.push(format!("{who} finds nothing"), |w| w.servers[who].step = again);
            }
            return;
        };
        match remembered(&seen, id, change.token.version) {
            Trace::Newest => {
                let before = Box::new(world.servers[who].step.clone());
                let step = Step::Mending(before, seen.state, [seen.newest, world.last]);
                self.push(format!("{who} finds {id}"), |w| w.servers[who].step = step);
            }
            Trace::Passed(state) => self.passed(who, &change, &seen, state),
            // What was refused is not under way any more.
            // It has lost only to something else: an earlier try could yet be taken.
            Trace::None if refused && seen.state.sequence == change.state => {
                let again = Step::Hold(Change { newest: seen.newest, ..change });
                self.push(format!("{who} tries {id} again"), |w| w.servers[who].step = again);
            }
            Trace::None if refused => self.push(format!("{who} finds {id} not done"), |world| {
                world.refused.insert(change.token.ids.clone());
                world.end(who);
            }),
            Trace::None if change.given_up => {
                self.push(format!("{who} finds {id} not there and ends"), |w| w.end(who));
            }
            Trace::None => {
                let again = Step::Hold(change);
                self.push(format!("{who} finds {id} not there"), |w| w.servers[who].step = again);
            }
            Trace::Untold => match along_the_events(world, &seen, id, change.token.version) {
                Some(state) => self.passed(who, &change, &seen, state),
                // The answer is that nobody knows.
                None => self.push(format!("{who} cannot tell of {id}"), |w| w.end(who)),
            },
        }
    }

    /// As `Mender::mend` does: what is missing is looked at after the token, which may have moved on.
    fn mend(&mut self, who: usize, before: &Step, state: Message, [newest, last]: [u16; 2]) {
        let (Step::Hold(change) | Step::Doubt(change), Some(token)) = (before, state.token())
        else {
            unreachable!("who mends has found its change");
        };
        let (world, id, token) = (self.world, change.token.newest_id(), token.clone());
        let again = |world: &mut World| world.servers[who].step = before.clone();
        let seen = Seen { state, token, newest };
        match world.mending(&seen, last, self.without) {
            None => self.push(format!("{who} finds {id} passed"), again),
            Some(batch) if batch.is_empty() => {
                self.push(format!("{who} finds {id} done"), |w| w.acknowledge(who, change));
            }
            Some(batch) if world.takes(&batch, Some(newest), None) => {
                let label = format!("{who} mends {id}");
                self.apply(&Sent { who, label, batch, newest, over: None }, again, again);
            }
            Some(_) => self.push(format!("{who} is too late to mend {id}"), again),
        }
    }

    /// Others have gone on from a change whose token was in the message `state`.
    fn passed(&mut self, who: usize, change: &Change, seen: &Seen, state: u64) {
        let (world, id) = (self.world, change.token.newest_id());
        let state = u16::try_from(state).expect("few");
        let stands = |it: &Message| matches!(it.what, What::Event { id: found, .. } if found == id);
        if world.at(state + 1).is_some_and(stands) || world.has_record(id, false) {
            let newest = seen.state.sequence;
            self.push(format!("{who} finds {id} done and passed, removes older"), |world| {
                world.stream.retain(|m| m.token().is_none() || m.sequence >= newest);
                world.acknowledge(who, change);
            });
            return;
        }
        let late = Token { ids: vec![id], ..change.token.clone() };
        let mut batch: Batch = [Piece::Event, Piece::RepairRecord]
            .iter()
            .map(|piece| late.message(*piece, change.to, Some(false)))
            .collect();
        if self.without.repair_record {
            batch.pop();
        }
        if world.takes(&batch, None, None) {
            self.push(format!("{who} tells {id} late"), |world| {
                batch.iter().for_each(|message| world.store(message));
            });
        }
    }
}

/// Looks for a change that the token does not remember along its events, as `find::along_the_events`
/// does: each names the one before it. Gives the message of its token.
fn along_the_events(world: &World, seen: &Seen, id: Id, version: u8) -> Option<u64> {
    let ids = &seen.token.ids;
    let is_there = |of: u8| {
        let id = ids[usize::from(of) - 1];
        let is_it = |m: &Message| matches!(m.what, What::Event { id: found, .. } if found == id);
        world.stream.iter().any(is_it)
    };
    let whole = (version + 1..=seen.token.version).all(is_there);
    let named = ids[usize::from(version) - 1] == id;
    (whole && named).then(|| seen.token.earlier[usize::from(version) - 1].into())
}

/// What the token's message remembers of a change, as the code keeps it.
fn remembered(seen: &Seen, id: Id, version: u8) -> Trace {
    let uuid = |id: &Id| Uuid::from_u128((*id).into());
    let events = seen.token.ids.iter().rev().map(uuid).collect::<Vec<_>>();
    let events = events_after(events[0], &events[1..]);
    let moves: Vec<_> = std::iter::once(seen.state.sequence)
        .chain(seen.token.earlier.iter().rev().copied())
        .map(|sequence| Some(u64::from(sequence)))
        .collect();
    let previous = seen.token.earlier.last().map(|sequence| u64::from(*sequence) + 1);
    let remembered =
        Remembered { version: seen.token.version.into(), events: &events, previous, moves: &moves };
    trace(&remembered, uuid(&id), version.into())
}
