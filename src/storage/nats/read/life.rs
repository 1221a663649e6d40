//! One life of one store, and what this process remembers of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, Notify};
use tokio::time::timeout;

use super::anchor::{self, Anchor};
use super::reader::Reader;
use super::workflow_index::WorkflowIndex;

/// How long a record that was named waits for whoever compares it.
const NAMED_WAIT: Duration = Duration::from_secs(1);

/// What belongs to one life of the store: once that has ended, all of it is dropped.
pub struct Life {
    reader: Arc<Reader>,
    index: Arc<WorkflowIndex>,
    /// Lives that were seen to end by something else than a look.
    suspected: AtomicU64,
    wanted: Notify,
    anchor: Mutex<Anchor>,
}

impl Life {
    pub fn new(reader: Arc<Reader>, index: Arc<WorkflowIndex>) -> Self {
        let (suspected, anchor) = (AtomicU64::new(0), Mutex::new(Anchor::new()));
        Self { reader, index, suspected, wanted: Notify::new(), anchor }
    }

    /// A number that grows whenever the store turns out to be another one than it was.
    pub fn number(&self) -> u64 {
        self.reader.epoch.now()
    }

    /// This server's own record; who writes or compares it holds it until that is done.
    pub async fn anchor(&self) -> MutexGuard<'_, Anchor> {
        self.anchor.lock().await
    }

    /// A refusal has named this server's own record, where another one was expected. If it is one that
    /// nats-server was said to have refused, and has taken, the next batch goes on from there: whether
    /// that is so. In any case whoever looks says which store this is.
    pub async fn goes_on_from(&self, named: anchor::Found) -> bool {
        self.want_look();
        let held = timeout(NAMED_WAIT, self.anchor()).await;
        held.is_ok_and(|mut anchor| anchor.named(named))
    }

    /// Drops everything that is remembered. Once the number has grown, nothing of it is left.
    pub fn end(&self) {
        self.index.forget();
        self.reader.forget();
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
