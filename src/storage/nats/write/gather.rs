//! A batch in the making.

use std::collections::HashSet;

use super::batch::BATCH_MESSAGES_MAX;
use super::commit::Target;
use super::pending::Pending;

/// Messages of the changes of a batch; this server's own record is the first.
const MESSAGES_MAX: usize = BATCH_MESSAGES_MAX - 1;

/// Bytes of a batch; a single change may be larger.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// A batch in the making.
#[derive(Default)]
pub struct Gathered {
    pub batch: Vec<Pending>,
    targets: HashSet<Target>,
    messages: usize,
    bytes: usize,
}

impl Gathered {
    pub fn has_room(&self) -> bool {
        self.messages < MESSAGES_MAX && self.bytes < BATCH_BYTES_MAX
    }

    pub fn fits(&self, pending: &Pending) -> bool {
        self.batch.is_empty()
            || (!self.targets.contains(&pending.commit.target)
                && self.messages + pending.commit.messages.len() <= MESSAGES_MAX
                && self.bytes + pending.bytes <= BATCH_BYTES_MAX)
    }

    pub fn push(&mut self, pending: Pending) {
        self.targets.insert(pending.commit.target.clone());
        self.messages += pending.commit.messages.len();
        self.bytes += pending.bytes;
        self.batch.push(pending);
    }
}
