//! A model of the commit: every order of steps of two servers that create and move one token, with
//! cuts, lost and late answers, expiring departures and states that nats-server brings back.
//!
//! What is decided here, the code decides: the order of the messages, what a repair writes, how a
//! read goes on from a departure, what a refusal and a lost answer mean. nats-server is modelled: it
//! takes a batch whose check holds and stores it message by message, unbroken, and a cut drops the
//! rest. What is learnt of the protocol is as true as that.
//!
//! `CB_MODEL="moves=2 other=2 cuts=2 back=1" cargo test --release model` runs it with other bounds than
//! `./test` does.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use chrono::DateTime;
use uuid::Uuid;

use super::pieces::{Piece, Presence, Remembered, Shape, Trace, Verdict, judge, trace};
use crate::domain::WorkflowId;
use crate::storage::nats::read::known::events_after;
use crate::storage::nats::read::stored::{Marks, Stored};
use crate::storage::nats::read::token::{End, Search};
use crate::storage::nats::wire::names;

/// Places, and which of them a move leads to. A token is completed in the last one.
const PLACES: [&str; 3] = ["a", "b", "done"];
const NEXT: [&[u8]; 3] = [&[1, 0], &[0, 2], &[]];

const TOKEN: Uuid = Uuid::from_u128(1);

/// The id of an event: unique to the server's attempt.
type Id = u16;

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum What {
    State(Token),
    Departure {
        to: u8,
    },
    Event {
        version: u8,
        id: Id,
    },
    Completion {
        version: u8,
        id: Id,
    },
    /// That a repair has written the event, or the completion alone.
    Record {
        id: Id,
        completion: bool,
    },
}

/// A token as its message holds it, with all of its past, of which the code keeps a part.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Token {
    version: u8,
    /// Where its newest move began.
    from: Option<u8>,
    /// The ids of all its events, oldest first.
    ids: Vec<Id>,
    /// The sequences of its earlier messages, oldest first.
    earlier: Vec<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Message {
    sequence: u16,
    place: u8,
    what: What,
}

/// A change that a server has decided on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Change {
    token: Token,
    to: u8,
    /// The token's message that it was decided on, and the newest one; 0 for a creation.
    state: u16,
    newest: u16,
    /// An earlier try of it may have been stored, or may yet be.
    maybe_done: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Step {
    Idle,
    /// Has met this departure, which leads to that place.
    Reading(u16, u8),
    Hold(Change),
    /// Has no answer.
    Doubt(Change),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Server {
    step: Step,
    /// Changes that it may still decide on.
    left: u8,
    /// It must look at the end of the stream before it writes.
    looks: bool,
    /// It must look for stale states.
    scans: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    stream: Vec<Message>,
    last: u16,
    removed: BTreeSet<Message>,
    servers: Vec<Server>,
    /// A batch whose answer did not come and that may yet arrive.
    late: Option<Change>,
    cuts: u8,
    back: u8,
    acked: BTreeSet<Vec<Id>>,
    refused: BTreeSet<Vec<Id>>,
}

/// What differs from the code, to see that each of its parts is needed.
#[derive(Debug, Clone, Copy, Default)]
struct Without {
    look_at_the_end: bool,
    token_first: bool,
    check_over_all_places: bool,
    repair_record: bool,
}

/// The token as a read finds it: its message and the newest sequence.
struct Seen {
    state: Message,
    token: Token,
    newest: u16,
}

type Batch = Vec<(u8, What, bool)>;

impl Token {
    fn completes(&self, place: u8) -> bool {
        NEXT[usize::from(place)].is_empty()
    }

    fn shape(&self, place: u8) -> Shape {
        let leaves = self.from.is_some_and(|from| from != place);
        Shape { leaves, completes: self.completes(place) }
    }

    fn newest_id(&self) -> Id {
        *self.ids.last().expect("it was created")
    }

    /// The message of a piece of its newest change.
    fn message(&self, piece: Piece, place: u8, repair: Option<bool>) -> (u8, What, bool) {
        let (version, id) = (self.version, self.newest_id());
        let stays = self.from == Some(place);
        match piece {
            Piece::State => (place, What::State(self.clone()), stays || repair.is_some()),
            Piece::Event => (place, What::Event { version, id }, false),
            Piece::Completion => (place, What::Completion { version, id }, false),
            Piece::RepairRecord => {
                (place, What::Record { id, completion: repair == Some(true) }, false)
            }
            Piece::Departure => {
                (self.from.expect("it leaves"), What::Departure { to: place }, true)
            }
        }
    }
}

impl Message {
    fn token(&self) -> Option<&Token> {
        match &self.what {
            What::State(token) => Some(token),
            _ => None,
        }
    }

    fn is_of_place(&self) -> bool {
        matches!(self.what, What::State(_) | What::Departure { .. })
    }

    /// As a read would get it, as far as a search looks at it.
    fn stored(&self, workflow: &WorkflowId) -> Stored {
        let place = PLACES[usize::from(self.place)].parse().expect("a name");
        let moved_to = match self.what {
            What::Departure { to } => Some(PLACES[usize::from(to)].parse().expect("a name")),
            _ => None,
        };
        Stored {
            subject: names::token(workflow, &place, TOKEN),
            sequence: self.sequence.into(),
            time: DateTime::UNIX_EPOCH,
            payload: if moved_to.is_some() { "" } else { "{}" }.into(),
            marks: Marks { moved_to, ..Marks::default() },
        }
    }
}

impl World {
    fn new(changes: [u8; 2], cuts: u8, back: u8) -> Self {
        let server = |left| Server { step: Step::Idle, left, looks: true, scans: true };
        Self {
            stream: Vec::new(),
            last: 0,
            removed: BTreeSet::new(),
            servers: changes.map(server).to_vec(),
            late: None,
            cuts,
            back,
            acked: BTreeSet::new(),
            refused: BTreeSet::new(),
        }
    }

    fn newest(&self, place: Option<u8>) -> Option<&Message> {
        let mut of_places = self.stream.iter().rev().filter(|message| message.is_of_place());
        of_places.find(|message| place.is_none_or(|place| message.place == place))
    }

    /// The message that a search asks for next.
    fn answer(&self, search: &Search<'_>, workflow: &WorkflowId) -> Option<Stored> {
        let subject = search.next();
        let place = PLACES.iter().position(|name| subject.split('.').nth(4) == Some(name));
        let place = place.map(|place| u8::try_from(place).expect("few"));
        self.newest(place).map(|message| message.stored(workflow))
    }

    /// What a search has found.
    fn seen(&self, end: End) -> Option<Seen> {
        let End::Found(standing) = end else { return None };
        let (state, newest) = standing.seen();
        let state = self.stream.iter().find(|m| u64::from(m.sequence) == state)?.clone();
        let token = state.token()?.clone();
        Some(Seen { state, token, newest: u16::try_from(newest).expect("few") })
    }

    /// A read by id while nothing else happens.
    fn read(&self) -> Option<Seen> {
        let workflow: WorkflowId = "w".parse().expect("a name");
        let mut search = Search::new(&workflow, TOKEN);
        loop {
            let found = self.answer(&search, &workflow);
            if let Some(end) = search.on(found) {
                return self.seen(end);
            }
        }
    }

    fn at(&self, sequence: u16) -> Option<&Message> {
        self.stream.iter().find(|message| message.sequence == sequence)
    }

    fn has_record(&self, id: Id, completion: bool) -> bool {
        self.stream.iter().any(|message| message.what == What::Record { id, completion })
    }

    /// What is there of a token's newest change, as `Mender::missing` looks at it.
    fn presence(&self, seen: &Seen) -> Presence {
        let (version, id) = (seen.token.version, seen.token.newest_id());
        let stands = |n: u16, completion: bool| match self.at(seen.state.sequence + n) {
            Some(message) => match message.what {
                What::Event { version: v, .. } => !completion && v == version,
                What::Completion { version: v, .. } => completion && v == version,
                _ => false,
            },
            None => seen.state.sequence + n <= self.last,
        };
        let event = stands(1, false) || self.has_record(id, false);
        let completion = !event || stands(2, true) || self.has_record(id, true);
        let left = seen.token.from.is_none_or(|from| {
            self.newest(Some(from)).is_none_or(|shown| {
                shown.token().is_none() || shown.sequence >= seen.state.sequence
            })
        });
        Presence { event, completion, left }
    }

    /// The batch that mends a token's newest change; empty if it is whole.
    fn mending(&self, seen: &Seen, without: Without) -> Batch {
        let place = seen.state.place;
        let mut pieces = seen.token.shape(place).mending(self.presence(seen));
        if without.repair_record {
            pieces.retain(|piece| *piece != Piece::RepairRecord);
        }
        let alone = !pieces.contains(&Piece::Event);
        pieces.iter().map(|piece| seen.token.message(*piece, place, Some(alone))).collect()
    }

    fn store(&mut self, (place, what, rollup): &(u8, What, bool)) {
        if *rollup {
            let (gone, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.stream)
                .into_iter()
                .partition(|message| message.place == *place && message.is_of_place());
            self.stream = rest;
            self.removed.extend(gone.into_iter().filter(|message| message.token().is_some()));
        }
        self.last += 1;
        self.stream.push(Message { sequence: self.last, place: *place, what: what.clone() });
    }

    /// Whether nats-server takes a batch whose first message expects `newest` over all places, and
    /// whose record must be the first.
    fn takes(&self, batch: &Batch, newest: Option<u16>, over: Option<u8>) -> bool {
        let first = batch.iter().all(|(_, what, _)| match what {
            What::Record { id, completion } => !self.has_record(*id, *completion),
            _ => true,
        });
        first && newest.is_none_or(|newest| self.newest(over).map_or(0, |m| m.sequence) == newest)
    }

    /// nats-server was restarted: all must look, and a connection that broke is no late batch.
    fn restarted(&mut self) {
        self.late = None;
        for server in &mut self.servers {
            (server.looks, server.scans) = (true, true);
        }
    }
}

/// All worlds that one step leads to.
struct Steps<'a> {
    world: &'a World,
    without: Without,
    next: Vec<(String, World)>,
}

impl Steps<'_> {
    fn push(&mut self, label: String, change: impl FnOnce(&mut World)) {
        let mut world = self.world.clone();
        change(&mut world);
        self.next.push((label, world));
    }

    fn all(mut self) -> Result<Vec<(String, World)>, String> {
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
        if self.next.is_empty() || at_rest(world) {
            check_at_rest(world)?;
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
            self.push(format!("a late batch arrives, taken: {taken}"), |world| {
                world.late = None;
                if taken {
                    batch.iter().for_each(|message| world.store(message));
                }
            });
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
        let writes = matches!(server.step, Step::Hold(_) | Step::Doubt(_));
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
            Step::Doubt(change) => self.find(who, change),
        }
    }

    fn look(&mut self, who: usize) {
        let world = self.world;
        // A departure is the last message of its change, so what ends in one is whole.
        let end = world.newest(None);
        let torn = end.filter(|end| end.token().is_some()).and_then(|end| {
            let seen = world.read().filter(|seen| seen.state.sequence == end.sequence)?;
            let batch = world.mending(&seen, self.without);
            (!batch.is_empty()).then_some((batch, seen.newest))
        });
        match torn {
            Some((batch, newest)) if !self.without.look_at_the_end => {
                self.apply(
                    who,
                    &format!("{who} mends the end"),
                    &batch,
                    newest,
                    None,
                    |_| {},
                    |_| {},
                );
            }
            _ => self.push(format!("{who} finds the end whole"), |world| {
                world.servers[who].looks = false;
            }),
        }
    }

    /// Stores a batch whole, or up to each cut, if its check holds.
    fn apply(
        &mut self,
        who: usize,
        label: &str,
        batch: &Batch,
        newest: u16,
        over: Option<u8>,
        done: impl Fn(&mut World),
        cut: impl Fn(&mut World),
    ) {
        if !self.world.takes(batch, Some(newest), over) {
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
                            world.servers[who].step = Step::Idle;
                            world.restarted();
                        }
                    }
                });
            }
        }
        self.push(label.to_owned(), |world| {
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
        let change = Change { token, to: 0, state: 0, newest: 0, maybe_done: false };
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
            let change = Change { token, to: *to, state, newest, maybe_done: false };
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
        let done = |world: &mut World| {
            world.acked.insert(change.token.ids.clone());
            let server = &mut world.servers[who];
            (server.step, server.left) = (Step::Idle, server.left - 1);
        };
        let in_doubt = |world: &mut World| world.servers[who].step = doubt.clone();
        self.apply(
            who,
            &format!("{who} commits {id}"),
            &batch,
            change.newest,
            over,
            done,
            in_doubt,
        );
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

    /// As `find::find_commit` and what the committer does with it.
    fn find(&mut self, who: usize, change: Change) {
        let (world, id) = (self.world, change.token.newest_id());
        let done = |world: &mut World| {
            world.acked.insert(change.token.ids.clone());
            let server = &mut world.servers[who];
            (server.step, server.left) = (Step::Idle, server.left - 1);
        };
        let refused = matches!(world.servers[who].step, Step::Hold(_));
        let Some(seen) = world.read() else {
            // A creation that is not there is tried again.
            if !refused {
                let again = Step::Hold(change);
                self.push(format!("{who} finds nothing"), |w| w.servers[who].step = again);
            }
            return;
        };
        let uuid = |id: &Id| Uuid::from_u128((*id).into());
        let events = seen.token.ids.iter().rev().map(uuid).collect::<Vec<_>>();
        let events = events_after(events[0], &events[1..]);
        let moves: Vec<_> = std::iter::once(seen.state.sequence)
            .chain(seen.token.earlier.iter().rev().copied())
            .map(|sequence| Some(u64::from(sequence)))
            .collect();
        let previous = seen.token.earlier.last().map(|sequence| u64::from(*sequence) + 1);
        let version = seen.token.version.into();
        let remembered = Remembered { version, events: &events, previous, moves: &moves };
        match trace(&remembered, uuid(&id), change.token.version.into()) {
            Trace::Newest => {
                let batch = world.mending(&seen, self.without);
                if batch.is_empty() {
                    self.push(format!("{who} finds {id} done"), done);
                } else {
                    let label = format!("{who} mends {id}");
                    self.apply(who, &label, &batch, seen.newest, None, |_| {}, |_| {});
                }
            }
            Trace::Passed(state) => {
                let state = u16::try_from(state).expect("few");
                let told = self.world.at(state + 1).is_some_and(
                    |it| matches!(it.what, What::Event { id: found, .. } if found == id),
                ) || world.has_record(id, false);
                if told {
                    let newest = seen.state.sequence;
                    self.push(
                        format!("{who} finds {id} done and passed, removes older"),
                        |world| {
                            world.stream.retain(|m| m.token().is_none() || m.sequence >= newest);
                            done(world);
                        },
                    );
                    return;
                }
                let late = Token { ids: vec![id], ..change.token.clone() };
                let pieces = [Piece::Event, Piece::RepairRecord];
                let records = if self.without.repair_record { 1 } else { 2 };
                let batch: Batch = pieces[..records]
                    .iter()
                    .map(|piece| late.message(*piece, change.to, Some(false)))
                    .collect();
                if world.takes(&batch, None, None) {
                    self.push(format!("{who} tells {id} late"), |world| {
                        batch.iter().for_each(|message| world.store(message));
                    });
                }
            }
            // What was refused is not under way any more.
            Trace::None if refused => self.push(format!("{who} finds {id} not done"), |world| {
                world.refused.insert(change.token.ids.clone());
                let server = &mut world.servers[who];
                (server.step, server.left) = (Step::Idle, server.left - 1);
            }),
            Trace::None => {
                let again = Step::Hold(change);
                self.push(format!("{who} finds {id} not there"), |w| w.servers[who].step = again);
            }
            // The answer is that nobody knows.
            Trace::Untold => self.push(format!("{who} cannot tell of {id}"), |world| {
                let server = &mut world.servers[who];
                (server.step, server.left) = (Step::Idle, server.left - 1);
            }),
        }
    }
}

fn at_rest(world: &World) -> bool {
    let rests = |server: &Server| server.step == Step::Idle && !server.looks && !server.scans;
    world.late.is_none() && world.servers.iter().all(rests)
}

/// What must hold once nobody has anything left to do.
fn check_at_rest(world: &World) -> Result<(), String> {
    if !at_rest(world) {
        return Err("nobody can go on".to_owned());
    }
    let Some(seen) = world.read() else {
        return if world.acked.is_empty() { Ok(()) } else { Err("the token is gone".to_owned()) };
    };
    let states = world.stream.iter().filter(|message| message.token().is_some()).count();
    if states != 1 {
        return Err(format!("it stands in {states} places at rest"));
    }
    let ids = &seen.token.ids;
    if let Some(lost) = world.acked.iter().find(|acked| !ids.starts_with(acked)) {
        return Err(format!("{lost:?} was acknowledged, {ids:?} is there"));
    }
    if let Some(done) = world.refused.iter().find(|refused| ids.starts_with(refused)) {
        return Err(format!("{done:?} was told not done and is done"));
    }
    let mut told: HashMap<(u8, bool), Vec<Id>> = HashMap::new();
    for message in &world.stream {
        match message.what {
            What::Event { version, id } => told.entry((version, false)).or_default().push(id),
            What::Completion { version, id } => told.entry((version, true)).or_default().push(id),
            _ => {}
        }
    }
    let mut wanted: HashMap<(u8, bool), Vec<Id>> = HashMap::new();
    for (version, id) in (1..).zip(ids) {
        wanted.insert((version, false), vec![*id]);
    }
    if seen.token.completes(seen.state.place) {
        wanted.insert((seen.token.version, true), vec![seen.token.newest_id()]);
    }
    if told != wanted { Err(format!("events are {told:?}, not {wanted:?}")) } else { Ok(()) }
}

/// Tries every order of steps. Gives the number of worlds, or the shortest way to a broken promise.
fn explore(start: World, without: Without, worlds_max: usize) -> Result<usize, String> {
    let start = Rc::new(start);
    let mut known = HashSet::from([Rc::clone(&start)]);
    // Each world with the one that it came from, and how.
    let mut worlds = vec![(start, 0_usize, String::new())];
    let mut at = 0;
    while at < worlds.len() {
        let world = Rc::clone(&worlds[at].0);
        let steps = Steps { world: &world, without, next: Vec::new() };
        match steps.all() {
            Ok(next) => {
                for (label, next) in next {
                    let next = Rc::new(next);
                    if known.insert(Rc::clone(&next)) {
                        worlds.push((next, at, label));
                    }
                }
            }
            Err(broken) => {
                let mut way = Vec::new();
                while at > 0 {
                    way.push(worlds[at].2.as_str());
                    at = worlds[at].1;
                }
                way.reverse();
                return Err(format!("{broken}\n  {}\n{:#?}", way.join("\n  "), world.stream));
            }
        }
        assert!(worlds.len() <= worlds_max, "more than {worlds_max} worlds; take smaller bounds");
        at += 1;
    }
    Ok(worlds.len())
}

fn bounds() -> (u8, u8, u8, u8) {
    let text = std::env::var("CB_MODEL").unwrap_or_default();
    let of = |name: &str, default| {
        let found = text.split(' ').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
        found.and_then(|number| number.parse().ok()).unwrap_or(default)
    };
    (of("moves", 2), of("other", 1), of("cuts", 1), of("back", 0))
}

#[test]
#[allow(clippy::print_stdout)]
fn no_order_of_steps_breaks_a_promise() {
    let (moves, other, cuts, back) = bounds();
    let worlds = explore(World::new([moves, other], cuts, back), Without::default(), 20_000_000);
    match worlds {
        Ok(worlds) => {
            println!(
                "{worlds} worlds: {moves} and {other} changes, {cuts} cuts, {back} brought back"
            );
            assert!(worlds > 1_000);
        }
        Err(broken) => panic!("{broken}"),
    }
}

#[test]
fn each_part_of_the_commit_is_needed() {
    let default = Without::default();
    for without in [
        Without { token_first: true, ..default },
        Without { look_at_the_end: true, ..default },
        Without { check_over_all_places: true, ..default },
    ] {
        let broken = explore(World::new([2, 1], 1, 0), without, 20_000_000);
        assert!(broken.is_err(), "{without:?}");
    }
}
