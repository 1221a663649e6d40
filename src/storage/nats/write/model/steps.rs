//! What can happen next: to nats-server, and in each server.

use super::super::pieces::{Piece, Trace, Verdict, judge};
use super::repairs::remembered;
use super::world::{
    Batch, Change, Id, Message, NEXT, Seen, Step, TOKEN, Token, What, Without, World,
};
use crate::domain::WorkflowId;
use crate::storage::nats::read::token::{End, Search};

/// A batch that a server sends, expecting `newest` over all places or one.
pub struct Sent {
    pub who: usize,
    pub label: String,
    pub batch: Batch,
    pub newest: u16,
    pub over: Option<u8>,
}

/// All worlds that one step leads to.
pub struct Steps<'a> {
    pub world: &'a World,
    pub without: Without,
    pub next: Vec<(String, World)>,
}

impl Steps<'_> {
    pub fn push(&mut self, label: String, change: impl FnOnce(&mut World)) {
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
        let writes = !matches!(server.step, Step::Idle | Step::Reading(..));
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
            Step::Relying(change, state, ends) => self.rely(who, &change, state, ends),
        }
    }

    /// Stores a batch whole, or up to each cut, if its check holds.
    pub fn apply(&mut self, sent: &Sent, done: impl Fn(&mut World), cut: impl Fn(&mut World)) {
        let Sent { who, label, batch, newest, over } = sent;
        if !self.world.takes(batch, Some(*newest), *over) {
            self.push(format!("{label}: refused"), |_| {});
            return;
        }
        for stored in 0..batch.len() {
            if self.world.cuts == 0 {
                break;
            }
            for how in ["a limit", "a restart", "a restart of the sender", "a restart of both"] {
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
                        // Once it is back.
                        "a restart of the sender" => world.begun(*who),
                        _ => {
                            world.begun(*who);
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
        let change = Change::new(token, 0, [0, 0]);
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
            let change = Change::new(token, *to, [state, newest]);
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
        let looks = change.state > world.servers[who].whole && !self.without.look_before_relying;
        if looks && !change.relies && change.newest == change.state {
            return self.look_before_relying(who, change);
        }
        if !world.takes(&batch, Some(change.newest), over) {
            return self.refused(who, change);
        }
        let id = change.token.newest_id();
        let doubt = Step::Doubt(Change { maybe_done: true, ..change.clone() });
        let done = |world: &mut World| {
            world.acknowledge(who, change);
            world.servers[who].whole = world.last;
        };
        let in_doubt = |world: &mut World| world.servers[who].step = doubt.clone();
        let label = format!("{who} commits {id}");
        let sent = Sent { who, label, batch, newest: change.newest, over };
        self.apply(&sent, done, in_doubt);
        let batch = &sent.batch;
        if world.lies > 0 {
            self.refused_falsely(who, change, batch);
        }
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

    /// One that leads no more refuses it, and the leader takes it, now or in a moment.
    fn refused_falsely(&mut self, who: usize, change: &Change, batch: &Batch) {
        let contested = !self.without.doubt_of_refusals;
        let step = Step::Hold(Change { contested, relies: false, ..change.clone() });
        let id = change.token.newest_id();
        self.push(format!("{who} commits {id}, and is told that it is not done"), |world| {
            (world.lies, world.lied) = (world.lies - 1, true);
            batch.iter().for_each(|message| world.store(message));
            world.servers[who].step = step.clone();
        });
        if self.world.late.is_none() {
            self.push(format!("{who} is told that {id} is not done, it comes later"), |world| {
                (world.lies, world.lied) = (world.lies - 1, true);
                world.late = Some(change.clone());
                world.servers[who].step = step.clone();
            });
        }
    }

    /// As `Committer::lost` does.
    pub fn refused(&mut self, who: usize, change: &Change) {
        let id = change.token.newest_id();
        if change.maybe_done {
            return self.find(who, change.clone());
        }
        let told = self.world.newest(self.over(change)).map_or(0, |message| message.sequence);
        let seen = self.world.read();
        let may_be_it = |seen: &Seen| remembered(seen, id, change.token.version) != Trace::None;
        let is_unsure = change.contested && seen.as_ref().is_none_or(may_be_it);
        let seen = seen.map(|seen| (u64::from(seen.state.sequence), u64::from(seen.newest)));
        match judge(change.state.into(), told.into(), seen) {
            Verdict::Try(newest) if change.state > 0 => {
                let newest = u16::try_from(newest).expect("few");
                let again = Change { newest, relies: false, ..change.clone() };
                self.push(format!("{who} tries {id} again on {newest}"), |world| {
                    world.servers[who].step = Step::Hold(again);
                });
            }
            Verdict::Try(_) | Verdict::Lost if is_unsure => self.find(who, change.clone()),
            Verdict::Try(_) | Verdict::Lost => {
                self.push(format!("{who} has lost {id}"), |world| {
                    if world.lied {
                        world.refused.insert(change.token.ids.clone());
                    }
                    world.servers[who].step = Step::Idle;
                });
            }
            Verdict::LookAgain => {}
        }
    }
}
