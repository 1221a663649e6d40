//! A model of how an id is taken: every order of steps of servers that create tokens of one id in
//! several workflows, while a workflow of the id's hash comes into being.
//!
//! What is claimed and how a look goes on, the code decides (`claim.rs`). A batch whose checks hold is
//! stored message by message: reads see its first messages before the last one is there. A cut drops
//! the rest, once; then its sender does not know, and goes on as one that was refused. A stored token
//! may age, once, and its pointer may outlive it.

use std::collections::HashSet;

use chrono::DateTime;
use uuid::Uuid;

use super::super::claim::{Asked, Claim, Heard, Look, Outcome, claim};
use crate::domain::{WorkflowId, new_token_id, workflow_hash};
use crate::storage::nats::read::workflow_index::Pointer;
use crate::storage::nats::wire::names;

/// Worlds that a run may have.
const WORLDS_MAX: usize = 5_000_000;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Message {
    sequence: u64,
    subject: String,
    /// The workflow that a pointer leads to.
    leads_to: Option<WorkflowId>,
}

/// What a batch still stores, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Applying {
    who: usize,
    rest: Vec<(String, Option<WorkflowId>)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Step {
    /// Reads which workflow is the first of the hash.
    Begin,
    /// Sends the definition of its workflow, claiming the hash or not.
    Define(bool),
    /// Sends the creation of the token.
    Create(Claim),
    Look(Look),
    Waits,
    Made,
    Refused,
}

/// A server that creates the token in one workflow.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Server {
    workflow: WorkflowId,
    step: Step,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    id: Uuid,
    stream: Vec<Message>,
    last: u64,
    applying: Option<Applying>,
    servers: Vec<Server>,
    cuts: u8,
    ages: u8,
}

/// What differs from the code, to see that each of its parts is needed.
#[derive(Debug, Clone, Copy, Default)]
struct Without {
    event_check: bool,
    hash_check: bool,
    end: bool,
    pointer_check: bool,
}

impl World {
    fn last_of(&self, subject: &str) -> Option<&Message> {
        self.stream.iter().rev().find(|message| message.subject == subject)
    }

    fn sequence_of(&self, subject: &str) -> u64 {
        self.last_of(subject).map_or(0, |message| message.sequence)
    }

    fn pointer(&self, subject: &str) -> Option<Pointer> {
        let message = self.last_of(subject)?;
        Some(Pointer { workflow: message.leads_to.clone()?, sequence: message.sequence })
    }

    fn first(&self) -> Option<WorkflowId> {
        let hash = names::named_hash(self.id)?;
        Some(self.pointer(&names::hash_pointer(hash))?.workflow)
    }

    fn has_token(&self, workflow: &WorkflowId) -> bool {
        self.last_of(&names::token_anywhere(workflow, self.id)).is_some()
    }

    /// The workflow in which a read by id alone finds the token.
    fn found(&self) -> Option<WorkflowId> {
        let first = self.first().filter(|first| self.has_token(first));
        let pointed = || Some(self.pointer(&names::pointer(self.id))?.workflow);
        first.or_else(|| pointed().filter(|workflow| self.has_token(workflow)))
    }

    fn store(&mut self, (subject, leads_to): (String, Option<WorkflowId>)) {
        self.last += 1;
        self.stream.retain(|message| message.subject != subject);
        self.stream.push(Message { sequence: self.last, subject, leads_to });
    }

    /// All worlds that one step leads to.
    fn next(&self, without: Without) -> Vec<(String, World)> {
        let mut all = Vec::new();
        let mut push = |label: String, change: &dyn Fn(&mut World)| {
            let mut world = self.clone();
            change(&mut world);
            all.push((label, world));
        };
        if let Some(Applying { who, rest }) = &self.applying {
            push(format!("{who}'s batch goes on"), &|world| world.apply(*who, rest));
            if self.cuts > 0 {
                push(format!("{who}'s batch is cut"), &|world| {
                    world.cuts -= 1;
                    world.applying = None;
                    world.servers[*who].step = world.again(*who);
                });
            }
        }
        if self.ages > 0 && self.applying.is_none() {
            for message in &self.stream {
                if message.subject.contains(".places.") {
                    push(format!("{} ages", message.subject), &|world| {
                        world.ages -= 1;
                        world.stream.retain(|there| there != message);
                    });
                }
            }
        }
        for (who, server) in self.servers.iter().enumerate() {
            match &server.step {
                Step::Waits | Step::Made | Step::Refused => {}
                Step::Begin => push(format!("{who} reads the first"), &|world| {
                    let first = world.first();
                    world.servers[who].step = if world.is_defined(who) {
                        Step::Create(claim(world.id, &server.workflow, first.as_ref(), 0))
                    } else {
                        Step::Define(first.is_none())
                    };
                }),
                Step::Define(claims) if self.applying.is_none() => {
                    push(format!("{who} defines"), &|world| world.define(who, *claims));
                }
                Step::Create(claim) if self.applying.is_none() => {
                    push(format!("{who} creates with {claim:?}"), &|world| {
                        world.create(who, claim, without);
                    });
                }
                // One batch after the other.
                Step::Define(_) | Step::Create(_) => {}
                Step::Look(look) => push(format!("{who} asks {:?}", look.next()), &|world| {
                    let mut look = look.clone();
                    let heard = world.answer(look.next());
                    world.servers[who].step = match look.on(heard) {
                        None => Step::Look(look),
                        Some(Outcome::Taken) => Step::Refused,
                        Some(Outcome::Free(claim)) => Step::Create(claim),
                    };
                }),
            }
        }
        all
    }

    fn answer(&self, asked: &Asked) -> Heard {
        match asked {
            Asked::First => Heard::First(self.first()),
            Asked::Pointer => Heard::Pointer(self.pointer(&names::pointer(self.id))),
            Asked::Last => Heard::Last(self.last),
            Asked::Token(workflow) => Heard::Token(self.has_token(workflow)),
        }
    }

    fn is_defined(&self, who: usize) -> bool {
        self.last_of(&names::definition(&self.servers[who].workflow)).is_some()
    }

    /// How a server goes on whose batch was refused, or cut.
    fn again(&self, who: usize) -> Step {
        if self.is_defined(who) {
            Step::Look(Look::new(self.id, &self.servers[who].workflow))
        } else {
            Step::Begin
        }
    }

    fn define(&mut self, who: usize, claims: bool) {
        let workflow = self.servers[who].workflow.clone();
        let hash = names::hash_pointer(workflow_hash(&workflow));
        if claims && self.sequence_of(&hash) > 0 {
            self.servers[who].step = Step::Begin;
            return;
        }
        let mut rest = vec![(names::definition(&workflow), None)];
        if claims {
            rest.insert(0, (hash, Some(workflow)));
        }
        self.servers[who].step = Step::Waits;
        self.applying = Some(Applying { who, rest });
    }

    fn create(&mut self, who: usize, claim: &Claim, without: Without) {
        let workflow = self.servers[who].workflow.clone();
        let (token, pointer) = (names::token_anywhere(&workflow, self.id), names::pointer(self.id));
        let event = claim.event.as_ref().is_none_or(|check| {
            let of_hash = check.subject.starts_with("cb.store.hashes.");
            let left_out = if of_hash { without.hash_check } else { without.event_check };
            left_out || self.sequence_of(&check.subject) == check.sequence
        });
        let taken = event
            && self.sequence_of(&token) == 0
            && claim.pointer.is_none_or(|expected| {
                without.pointer_check || self.sequence_of(&pointer) == expected
            })
            && claim.end.is_none_or(|end| without.end || self.last == end);
        if !taken {
            self.servers[who].step = Step::Look(Look::new(self.id, &workflow));
            return;
        }
        let mut rest = vec![(token, None), (format!("event {who}"), None)];
        if claim.pointer.is_some() {
            rest.insert(0, (pointer, Some(workflow)));
        }
        self.servers[who].step = Step::Waits;
        self.applying = Some(Applying { who, rest });
    }

    fn apply(&mut self, who: usize, rest: &[(String, Option<WorkflowId>)]) {
        self.store(rest[0].clone());
        if rest.len() > 1 {
            self.applying = Some(Applying { who, rest: rest[1..].to_vec() });
            return;
        }
        self.applying = None;
        let defined = rest[0].0.ends_with(".definition");
        self.servers[who].step = if defined { Step::Begin } else { Step::Made };
    }

    /// What must always hold, and once nobody has anything left to do.
    fn check(&self, at_rest: bool) -> Result<(), String> {
        let holders: HashSet<_> = self.servers.iter().map(|server| &server.workflow).collect();
        let there: Vec<_> =
            holders.into_iter().filter(|workflow| self.has_token(workflow)).collect();
        if there.len() > 1 {
            return Err(format!("the token is in {there:?}"));
        }
        let made = self.servers.iter().filter(|server| server.step == Step::Made).count();
        if made > 1 && self.ages > 0 {
            return Err("two creations of one id were acknowledged".to_owned());
        }
        if at_rest && self.applying.is_none() && self.found().as_ref() != there.first().copied() {
            return Err(format!("a read finds {:?}, it is in {there:?}", self.found()));
        }
        if at_rest && there.is_empty() && self.ages > 0 {
            return Err("nobody has made it".to_owned());
        }
        Ok(())
    }
}

/// Tries every order of steps. Gives the number of worlds, or the shortest way to a broken promise.
fn explore(start: World, without: Without) -> Result<usize, String> {
    let mut known = HashSet::from([start.clone()]);
    let mut worlds = vec![(start, 0_usize, String::new())];
    let mut at = 0;
    while at < worlds.len() {
        let world = worlds[at].0.clone();
        let next = world.next(without);
        let moves = |step: &Step| !matches!(step, Step::Made | Step::Refused);
        let at_rest = !world.servers.iter().any(|server| moves(&server.step));
        if let Err(broken) = world.check(at_rest) {
            let mut way = Vec::new();
            while at > 0 {
                way.push(worlds[at].2.clone());
                at = worlds[at].1;
            }
            way.reverse();
            return Err(format!("{broken}\n  {}", way.join("\n  ")));
        }
        for (label, next) in next {
            if known.insert(next.clone()) {
                worlds.push((next, at, label));
            }
        }
        assert!(worlds.len() <= WORLDS_MAX, "too many worlds");
        at += 1;
    }
    Ok(worlds.len())
}

/// Two workflows of one hash, and one of another.
fn workflows() -> [WorkflowId; 3] {
    // Found by trying names; the hash never changes.
    let [a, same, other] =
        ["flow-7080", "flow-13013", "other"].map(|id| id.parse().expect("a name"));
    [a, same, other]
}

/// Worlds to begin with: which workflows are there, what the id is, and who creates it where.
fn starts() -> Vec<World> {
    let [a, same, other] = workflows();
    let made = new_token_id(&a, DateTime::UNIX_EPOCH, [7; 10]);
    let chosen = Uuid::from_u128(0x1234_4000_8000_0000_0000_0000);
    let mut all = Vec::new();
    for id in [made, chosen] {
        for creators in [
            vec![&a, &other],
            vec![&a, &same],
            vec![&same, &other],
            vec![&other, &other],
            vec![&a, &a],
            vec![&a, &same, &other],
        ] {
            for defined in 0..1_u8 << creators.len() {
                let mut world = World {
                    id,
                    stream: Vec::new(),
                    last: 0,
                    applying: None,
                    servers: Vec::new(),
                    cuts: u8::from(creators.len() < 3),
                    ages: u8::from(creators.len() < 3),
                };
                for (place, workflow) in creators.iter().enumerate() {
                    let there = defined & (1 << place) > 0;
                    if there && world.last_of(&names::definition(workflow)).is_none() {
                        let hash = names::hash_pointer(workflow_hash(workflow));
                        if world.sequence_of(&hash) == 0 {
                            world.store((hash, Some((*workflow).clone())));
                        }
                        world.store((names::definition(workflow), None));
                    }
                    let workflow = (*workflow).clone();
                    world.servers.push(Server { workflow, step: Step::Begin });
                }
                all.push(world);
            }
        }
    }
    all
}

#[test]
#[allow(clippy::print_stdout)]
fn no_order_of_steps_takes_an_id_twice() {
    let [a, same, other] = workflows();
    assert_eq!(workflow_hash(&a), workflow_hash(&same));
    assert_ne!(workflow_hash(&a), workflow_hash(&other));
    let mut worlds = 0;
    for start in starts() {
        let label = format!("{:?}", start.servers);
        match explore(start, Without::default()) {
            Ok(count) => worlds += count,
            Err(broken) => panic!("{label}: {broken}"),
        }
    }
    println!("{worlds} worlds");
    assert!(worlds > 1_000);
}

#[test]
fn each_part_of_a_claim_is_needed() {
    let default = Without::default();
    for without in [
        Without { event_check: true, ..default },
        Without { hash_check: true, ..default },
        Without { end: true, ..default },
        Without { pointer_check: true, ..default },
    ] {
        let broken = starts().into_iter().any(|start| explore(start, without).is_err());
        assert!(broken, "{without:?}");
    }
}
