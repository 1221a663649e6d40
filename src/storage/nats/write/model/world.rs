//! What there is: the stream as nats-server keeps it, and what each server holds.

use std::collections::BTreeSet;

use chrono::DateTime;
use uuid::Uuid;

use super::super::pieces::{Piece, Presence, Shape};
use crate::domain::WorkflowId;
use crate::storage::nats::read::stored::{Marks, Stored};
use crate::storage::nats::read::token::{End, Search};
use crate::storage::nats::wire::names;

/// Places, and which of them a move leads to. A token is completed in the last one.
pub const PLACES: [&str; 3] = ["a", "b", "done"];
pub const NEXT: [&[u8]; 3] = [&[1, 0], &[0, 2], &[]];

pub const TOKEN: Uuid = Uuid::from_u128(1);

/// The id of an event: unique to the server's attempt.
pub type Id = u16;

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum What {
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
pub struct Token {
    pub version: u8,
    /// Where its newest move began.
    pub from: Option<u8>,
    /// The ids of all its events, oldest first.
    pub ids: Vec<Id>,
    /// The sequences of its earlier messages, oldest first.
    pub earlier: Vec<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Message {
    pub sequence: u16,
    pub place: u8,
    pub what: What,
}

/// A change that a server has decided on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Change {
    pub token: Token,
    pub to: u8,
    /// The token's message that it was decided on, and the newest one; 0 for a creation.
    pub state: u16,
    pub newest: u16,
    /// An earlier try of it may have been stored, or may yet be.
    pub maybe_done: bool,
    /// It was refused where that is no proof.
    pub contested: bool,
    /// What it was decided on was seen to be whole.
    pub relies: bool,
    /// Its outcome was told to be unknown.
    pub given_up: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step {
    Idle,
    /// Has met this departure, which leads to that place.
    Reading(u16, u8),
    Hold(Change),
    /// Has no answer.
    Doubt(Change),
    /// Has found its change in this message, and looks now at what is missing of it; with the newest
    /// sequence of the token, and the stream's last one before that.
    Mending(Box<Step>, Message, [u16; 2]),
    /// Looks in the same way at the change of others that its own goes on from.
    Relying(Change, Message, [u16; 2]),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Server {
    pub step: Step,
    /// Changes that it may still decide on.
    pub left: u8,
    /// It must look at the end of the stream before it writes.
    pub looks: bool,
    /// It must look for stale states.
    pub scans: bool,
    /// The sequence up to which it knows that all is whole.
    pub whole: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    pub stream: Vec<Message>,
    pub last: u16,
    pub removed: BTreeSet<Message>,
    pub servers: Vec<Server>,
    /// A batch whose answer did not come and that may yet arrive.
    pub late: Option<Change>,
    pub cuts: u8,
    pub back: u8,
    /// How often one that leads no more may still refuse what the leader takes.
    pub lies: u8,
    pub lied: bool,
    pub acked: BTreeSet<Vec<Id>>,
    pub refused: BTreeSet<Vec<Id>>,
}

/// What differs from the code, to see that each of its parts is needed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Without {
    pub look_at_the_end: bool,
    pub token_first: bool,
    pub check_over_all_places: bool,
    pub repair_record: bool,
    pub fence: bool,
    pub look_before_relying: bool,
    pub doubt_of_refusals: bool,
}

/// The token as a read finds it: its message and the newest sequence.
pub struct Seen {
    pub state: Message,
    pub token: Token,
    pub newest: u16,
}

pub type Batch = Vec<(u8, What, bool)>;

impl Change {
    /// One that was decided on the message `state` of a token whose newest one is `newest`.
    pub fn new(token: Token, to: u8, [state, newest]: [u16; 2]) -> Self {
        let (maybe_done, contested, relies, given_up) = (false, false, false, false);
        Self { token, to, state, newest, maybe_done, contested, relies, given_up }
    }
}

impl Token {
    pub fn completes(&self, place: u8) -> bool {
        NEXT[usize::from(place)].is_empty()
    }

    pub fn shape(&self, place: u8) -> Shape {
        let leaves = self.from.is_some_and(|from| from != place);
        // Pointers have a model of their own.
        Shape {
            creates: false,
            pointer: false,
            leaves,
            completes: self.completes(place),
            ends: self.completes(place),
        }
    }

    pub fn newest_id(&self) -> Id {
        *self.ids.last().expect("it was created")
    }

    /// The message of a piece of its newest change.
    pub fn message(&self, piece: Piece, place: u8, repair: Option<bool>) -> (u8, What, bool) {
        let (version, id) = (self.version, self.newest_id());
        let stays = self.from == Some(place);
        match piece {
            Piece::State => (place, What::State(self.clone()), stays || repair.is_some()),
            Piece::Event => (place, What::Event { version, id }, false),
            Piece::Completion => (place, What::Completion { version, id }, false),
            Piece::RepairRecord => {
                (place, What::Record { id, completion: repair == Some(true) }, false)
            }
            Piece::Pointer | Piece::PointerTtl => unreachable!("it has no pointer"),
            Piece::Departure => {
                (self.from.expect("it leaves"), What::Departure { to: place }, true)
            }
        }
    }
}

impl Message {
    pub fn token(&self) -> Option<&Token> {
        match &self.what {
            What::State(token) => Some(token),
            _ => None,
        }
    }

    pub fn is_of_place(&self) -> bool {
        matches!(self.what, What::State(_) | What::Departure { .. })
    }

    /// As a read would get it, as far as a search looks at it.
    pub fn stored(&self, workflow: &WorkflowId) -> Stored {
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
    pub fn new(changes: [u8; 2], cuts: u8, back: u8, lies: u8) -> Self {
        let server = |left| Server { step: Step::Idle, left, looks: true, scans: true, whole: 0 };
        Self {
            stream: Vec::new(),
            last: 0,
            removed: BTreeSet::new(),
            servers: changes.map(server).to_vec(),
            late: None,
            cuts,
            back,
            lies,
            lied: false,
            acked: BTreeSet::new(),
            refused: BTreeSet::new(),
        }
    }

    pub fn newest(&self, place: Option<u8>) -> Option<&Message> {
        let mut of_places = self.stream.iter().rev().filter(|message| message.is_of_place());
        of_places.find(|message| place.is_none_or(|place| message.place == place))
    }

    /// The message that a search asks for next.
    pub fn answer(&self, search: &Search<'_>, workflow: &WorkflowId) -> Option<Stored> {
        let subject = search.next();
        let place = PLACES.iter().position(|name| subject.split('.').nth(4) == Some(name));
        let place = place.map(|place| u8::try_from(place).expect("few"));
        self.newest(place).map(|message| message.stored(workflow))
    }

    /// What a search has found.
    pub fn seen(&self, end: End) -> Option<Seen> {
        let End::Found(standing) = end else { return None };
        let (state, newest) = standing.seen();
        let state = self.stream.iter().find(|m| u64::from(m.sequence) == state)?.clone();
        let token = state.token()?.clone();
        Some(Seen { state, token, newest: u16::try_from(newest).expect("few") })
    }

    /// A read by id while nothing else happens.
    pub fn read(&self) -> Option<Seen> {
        let workflow: WorkflowId = "w".parse().expect("a name");
        let mut search = Search::new(&workflow, TOKEN);
        loop {
            let found = self.answer(&search, &workflow);
            if let Some(end) = search.on(found) {
                return self.seen(end);
            }
        }
    }

    pub fn at(&self, sequence: u16) -> Option<&Message> {
        self.stream.iter().find(|message| message.sequence == sequence)
    }

    pub fn has_record(&self, id: Id, completion: bool) -> bool {
        self.stream.iter().any(|message| message.what == What::Record { id, completion })
    }

    /// What is there of a token's newest change, as `Mender::missing` looks at it; none if the token
    /// has moved on into the place that it had left.
    pub fn presence(&self, seen: &Seen, last: u16) -> Option<Presence> {
        let (version, id) = (seen.token.version, seen.token.newest_id());
        let stands = |n: u16, completion: bool| match self.at(seen.state.sequence + n) {
            Some(message) => match message.what {
                What::Event { version: v, .. } => !completion && v == version,
                What::Completion { version: v, .. } => completion && v == version,
                _ => false,
            },
            None => seen.state.sequence + n <= last,
        };
        let event = stands(1, false) || self.has_record(id, false);
        let completion = !event || stands(2, true) || self.has_record(id, true);
        let shown = seen.token.from.and_then(|from| self.newest(Some(from)));
        let shown = shown.filter(|shown| shown.token().is_some());
        if shown.is_some_and(|shown| shown.sequence > seen.state.sequence) {
            return None;
        }
        let left = shown.is_none_or(|shown| shown.sequence >= seen.state.sequence);
        Some(Presence { event, completion, pointer_ages: true, left })
    }

    /// The batch that mends a token's newest change, empty if it is whole; none if that must be looked
    /// at anew.
    pub fn mending(&self, seen: &Seen, last: u16, without: Without) -> Option<Batch> {
        let place = seen.state.place;
        let presence = self.presence(seen, last)?;
        let mut pieces = seen.token.shape(place).mending(presence);
        if without.repair_record {
            pieces.retain(|piece| *piece != Piece::RepairRecord);
        }
        let alone = !pieces.contains(&Piece::Event);
        let message = |piece: &Piece| seen.token.message(*piece, place, Some(alone));
        Some(pieces.iter().map(message).collect())
    }

    pub fn store(&mut self, (place, what, rollup): &(u8, What, bool)) {
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
    pub fn takes(&self, batch: &Batch, newest: Option<u16>, over: Option<u8>) -> bool {
        let first = batch.iter().all(|(_, what, _)| match what {
            What::Record { id, completion } => !self.has_record(*id, *completion),
            _ => true,
        });
        first && newest.is_none_or(|newest| self.newest(over).map_or(0, |m| m.sequence) == newest)
    }

    /// A server has its answer.
    pub fn acknowledge(&mut self, who: usize, change: &Change) {
        if !change.given_up {
            self.acked.insert(change.token.ids.clone());
        }
        self.end(who);
    }

    /// A server is started anew, and knows nothing.
    pub fn begun(&mut self, who: usize) {
        let server = &mut self.servers[who];
        (server.step, server.whole) = (Step::Idle, 0);
        (server.looks, server.scans) = (true, true);
    }

    pub fn end(&mut self, who: usize) {
        let server = &mut self.servers[who];
        (server.step, server.left) = (Step::Idle, server.left - 1);
    }

    /// nats-server was restarted: all must look, and a connection that broke is no late batch.
    pub fn restarted(&mut self) {
        self.late = None;
        for server in &mut self.servers {
            (server.looks, server.scans) = (true, true);
        }
    }
}
