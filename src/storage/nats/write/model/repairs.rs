//! How a server looks at what is there before it writes, and for a change of its own, and mends it.

use uuid::Uuid;

use super::super::pieces::{Piece, Remembered, Trace, trace};
use super::steps::{Sent, Steps};
use super::world::{Batch, Change, Id, Message, Seen, Step, Token, What, World};
use crate::storage::nats::read::known::events_after;

impl Steps<'_> {
    pub fn look(&mut self, who: usize) {
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
                let last = world.last;
                (world.servers[who].looks, world.servers[who].whole) = (false, last);
            }),
        }
    }

    /// As `Arbiter::rely` does where what was decided on is not known to be whole.
    pub fn look_before_relying(&mut self, who: usize, change: &Change) {
        let (world, id) = (self.world, change.token.newest_id());
        match world.read().filter(|seen| seen.state.sequence == change.state) {
            // A departure is the last message of a change.
            Some(seen) if seen.newest != seen.state.sequence => {
                let sure = Change { newest: seen.newest, relies: true, ..change.clone() };
                self.push(format!("{who} sees what {id} goes on from end in a departure"), |w| {
                    w.servers[who].step = Step::Hold(sure);
                });
            }
            Some(seen) => {
                let step = Step::Relying(change.clone(), seen.state, [seen.newest, world.last]);
                self.push(format!("{who} looks at what {id} goes on from"), |w| {
                    w.servers[who].step = step;
                });
            }
            None => self.refused(who, change),
        }
    }

    /// As `Mender::is_whole` does.
    pub fn rely(&mut self, who: usize, change: &Change, state: Message, [newest, last]: [u16; 2]) {
        let (world, id) = (self.world, change.token.newest_id());
        let Some(token) = state.token().cloned() else { unreachable!("it is a token") };
        let again = |world: &mut World| world.servers[who].step = Step::Hold(change.clone());
        let seen = Seen { state, token, newest };
        match world.mending(&seen, last, self.without) {
            Some(batch) if batch.is_empty() => {
                let sure = Change { newest, relies: true, ..change.clone() };
                self.push(format!("{who} sees that {id} goes on from a whole change"), |w| {
                    w.servers[who].step = Step::Hold(sure);
                });
            }
            Some(batch) if world.takes(&batch, Some(newest), None) => {
                let label = format!("{who} mends what {id} goes on from");
                self.apply(&Sent { who, label, batch, newest, over: None }, again, again);
            }
            _ => self.push(format!("{who} looks again at what {id} goes on from"), again),
        }
    }

    /// Its outcome is told to be unknown, and it is looked for on: once a later record of this server is
    /// stored, nothing that it sent before can be.
    pub fn give_up(&mut self, who: usize, change: &Change) {
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
    pub fn find(&mut self, who: usize, change: Change) {
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
    pub fn mend(&mut self, who: usize, before: &Step, state: Message, [newest, last]: [u16; 2]) {
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
    pub fn passed(&mut self, who: usize, change: &Change, seen: &Seen, state: u64) {
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
pub fn remembered(seen: &Seen, id: Id, version: u8) -> Trace {
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
