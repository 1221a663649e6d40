//! A model of the commit: every order of steps of two servers that create and move one token, with
//! cuts, lost and late answers, expiring departures and states that nats-server brings back.
//!
//! What is decided here, the code decides: the order of the messages, what a repair writes, how a
//! read goes on from a departure, what a refusal and a lost answer mean. nats-server is modelled: it
//! takes a batch whose check holds and stores it message by message, unbroken, and a cut drops the
//! rest. What is learnt of the protocol is as true as that.
//!
//! `CB_MODEL="moves=2 other=2 cuts=2 back=1 lies=1" cargo test --release model` runs it with other bounds than
//! `./test` does.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

mod ids;
mod repairs;
mod steps;
mod world;

use steps::Steps;
use world::{Id, Server, Step, What, Without, World};

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

fn bounds() -> [u8; 5] {
    let text = option_env!("CB_MODEL").unwrap_or_default();
    let of = |name: &str, default| {
        let found = text.split(' ').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
        found.and_then(|number| number.parse().ok()).unwrap_or(default)
    };
    [of("moves", 2), of("other", 1), of("cuts", 1), of("back", 0), of("lies", 0)]
}

#[test]
#[allow(clippy::print_stdout)]
fn no_order_of_steps_breaks_a_promise() {
    let [moves, other, cuts, back, lies] = bounds();
    let start = World::new([moves, other], cuts, back, lies);
    match explore(start, Without::default(), 20_000_000) {
        Ok(worlds) => {
            println!(
                "{worlds} worlds: {moves} and {other} changes, {cuts} cuts, {back} brought back, {lies} false refusals"
            );
            assert!(worlds > 1_000);
        }
        Err(broken) => panic!("{broken}"),
    }
}

#[test]
fn no_false_refusal_breaks_a_promise() {
    let worlds = explore(World::new([2, 1], 0, 0, 2), Without::default(), 20_000_000);
    assert!(worlds.unwrap_or_else(|broken| panic!("{broken}")) > 1_000);
}

#[test]
fn each_part_of_the_commit_is_needed() {
    let default = Without::default();
    for (without, cuts, lies) in [
        (Without { token_first: true, ..default }, 1, 0),
        (Without { look_at_the_end: true, ..default }, 1, 0),
        (Without { check_over_all_places: true, ..default }, 1, 0),
        (Without { look_before_relying: true, ..default }, 1, 0),
        (Without { doubt_of_refusals: true, ..default }, 0, 1),
        (Without { fence: true, ..default }, 2, 0),
    ] {
        let broken = explore(World::new([2, 1], cuts, 0, lies), without, 20_000_000);
        assert!(broken.is_err(), "{without:?}");
    }
}
