//! Parts of a batch.

use std::collections::VecDeque;

use super::pending::Pending;
use crate::storage::nats::upkeep::room::Allowance;

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
