//! Parts of a batch.

use std::collections::VecDeque;

use super::pending::{Pending, answer, not_done};
use crate::storage::nats::upkeep::room::Allowance;
use crate::storage::nats::upkeep::supervisor::Standing;
use crate::storage::nats::wire::link::Link;

/// Parts of a batch that are still to be tried, in their order.
pub type Groups = VecDeque<Vec<Pending>>;

/// Takes those out of a group that must find the stream's end as it was, each for a batch of its own.
pub fn one_alone(group: Vec<Pending>, groups: &mut Groups) -> Vec<Pending> {
    if group.len() <= 1 || group.iter().all(|pending| pending.commit.end.is_none()) {
        return group;
    }
    let (mut alone, rest): (Vec<_>, Vec<_>) =
        group.into_iter().partition(|pending| pending.commit.end.is_some());
    if !rest.is_empty() {
        groups.push_front(rest);
    }
    let first = alone.pop();
    alone.into_iter().for_each(|pending| groups.push_front(vec![pending]));
    first.into_iter().collect()
}

/// Puts a group back as two halves.
pub fn split(mut group: Vec<Pending>, groups: &mut Groups) {
    let second = group.split_off(group.len() / 2);
    groups.push_front(second);
    groups.push_front(group);
}

/// Parts the changes of a batch that fit from the creations for which there is no room, in their order.
pub fn fitting(batch: Vec<Pending>, mut room: Allowance) -> (Vec<Pending>, Vec<Pending>) {
    let (mut rest, mut refused) = (Vec::with_capacity(batch.len()), Vec::new());
    for pending in batch {
        let (messages, bytes) = (pending.commit.messages.len() as u64, pending.bytes as u64);
        if !pending.commit.creates() {
            rest.push(pending);
        } else if messages <= room.messages && bytes <= room.bytes {
            room.messages -= messages;
            room.bytes -= bytes;
            rest.push(pending);
        } else {
            refused.push(pending);
        }
    }
    (rest, refused)
}

/// Answers what was decided on a store that is no more.
pub fn of_this_life(group: Vec<Pending>, life: u64) -> Vec<Pending> {
    let (kept, others): (Vec<_>, Vec<_>) =
        group.into_iter().partition(|pending| pending.life == life);
    for pending in others {
        if pending.commit.creates() || pending.is_unclear() {
            let reason = "the store went back in time or was made anew while this was written";
            not_done(pending, reason.to_owned());
        } else {
            let lost = pending.commit.lost();
            answer(pending, Err(lost));
        }
    }
    kept
}

/// Answers what cannot be written until a person has put something right.
pub fn unless_broken(group: Vec<Pending>, standing: &Standing, link: &Link) -> Vec<Pending> {
    let reason = match standing {
        Standing::Broken(reason) => Some(reason.clone()),
        Standing::Open | Standing::NotYet(_) | Standing::Refused(_) => None,
    };
    let (hopeless, rest): (Vec<_>, Vec<_>) = group
        .into_iter()
        .partition(|pending| reason.is_some() || pending.commit.denied(link).is_some());
    for pending in hopeless {
        let denied = || pending.commit.denied(link).map(|error| error.to_string());
        let reason = reason.clone().or_else(denied);
        not_done(pending, reason.unwrap_or_default());
    }
    rest
}
