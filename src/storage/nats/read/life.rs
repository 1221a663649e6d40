//! One life of one store, and what this process remembers of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Mutex, MutexGuard, Notify};

use super::anchor::Anchor;
use super::reader::Reader;
use super::workflow_index::WorkflowIndex;

/// What belongs to one life of the store: once that has ended, all of it is dropped.
pub struct Life {
    reader: Arc<Reader>,
    index: Arc<WorkflowIndex>,
    number: AtomicU64,
    /// Lives that were seen to end by something else than a look.
    suspected: AtomicU64,
    wanted: Notify,
    anchor: Mutex<Anchor>,
}

impl Life {
    pub fn new(reader: Arc<Reader>, index: Arc<WorkflowIndex>) -> Self {
        let (number, suspected) = (AtomicU64::new(0), AtomicU64::new(0));
        let anchor = Mutex::new(Anchor::new());
        Self { reader, index, number, suspected, wanted: Notify::new(), anchor }
    }

    /// A number that grows whenever the store turns out to be another one than it was.
    pub fn number(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    /// This server's own record; who writes or compares it holds it until that is done.
    pub async fn anchor(&self) -> MutexGuard<'_, Anchor> {
        self.anchor.lock().await
    }

    /// Drops everything that is remembered.
    pub fn end(&self) {
        self.reader.forget();
        self.index.forget();
        self.number.fetch_add(1, Ordering::AcqRel);
    }

    /// Ends it because of what an acknowledgement has shown; whoever looks next goes on from there.
    pub fn suspect(&self) {
        self.end();
        self.suspected.fetch_add(1, Ordering::AcqRel);
        self.reader.link.disturb();
    }

    /// Whether it was suspected since this was asked last.
    pub fn take_suspicion(&self) -> bool {
        self.suspected.swap(0, Ordering::AcqRel) > 0
    }

    /// Asks for a look at the store.
    pub fn want_look(&self) {
        self.wanted.notify_one();
    }

    /// Waits until a look is asked for; for one waiter.
    pub async fn look_wanted(&self) {
        self.wanted.notified().await;
    }
}
