//! Whether the store can be read and written now, and what a call waits for a moment.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::storage::StorageError;
use crate::storage::nats::read::reader::unavailable;
use crate::storage::nats::upkeep::supervisor::{NATSOpenError, Standing};
use crate::storage::nats::wire::link::Link;

/// How long a list waits for the end of the scan that follows a start of nats-server.
const CLEAN_WAIT_MAX: Duration = Duration::from_secs(2);

/// How long a read waits for the look at the end of the stream that follows a start of nats-server.
const LOOK_WAIT_MAX: Duration = Duration::from_secs(2);

/// What calls look at before they begin.
pub struct Readiness {
    link: Arc<Link>,
    standing: watch::Receiver<Standing>,
    /// What had disturbed the connection when the end of the stream was looked at last.
    looked: watch::Receiver<Option<u64>>,
    /// Since when that is not done: reads wait for it a moment in all, not a moment each.
    unlooked: Mutex<Option<Instant>>,
    /// The nats-server process whose stream was cleaned last.
    clean: watch::Receiver<String>,
    /// The one that is not yet, and until when lists wait for it.
    waiting: Mutex<(String, Instant)>,
}

impl Readiness {
    pub fn new(
        link: Arc<Link>,
        standing: watch::Receiver<Standing>,
        looked: watch::Receiver<Option<u64>>,
        clean: watch::Receiver<String>,
    ) -> Self {
        let (unlooked, waiting) = (Mutex::new(None), Mutex::new((String::new(), Instant::now())));
        Self { link, standing, looked, unlooked, clean, waiting }
    }

    /// Waits until the store can be used, however long that takes, or it is clear that it cannot.
    pub async fn opened(&self) -> Result<(), NATSOpenError> {
        let mut standing = self.standing.clone();
        let reached = standing.wait_for(|standing| !matches!(standing, Standing::NotYet(_))).await;
        match reached.as_deref() {
            Ok(Standing::Open | Standing::Broken(_)) => Ok(()),
            Ok(Standing::Refused(reason) | Standing::NotYet(reason)) => {
                Err(NATSOpenError::Refused { reason: reason.clone() })
            }
            Err(_) => Err(NATSOpenError::Refused { reason: "it was closed".to_owned() }),
        }
    }

    /// Why it is not open yet.
    pub fn not_opened(&self) -> String {
        match &*self.standing.borrow() {
            Standing::Open => String::new(),
            Standing::NotYet(reason) | Standing::Refused(reason) | Standing::Broken(reason) => {
                reason.clone()
            }
        }
    }

    /// Whether reads make sense now.
    pub fn usable(&self) -> Result<(), StorageError> {
        match &*self.standing.borrow() {
            Standing::Open | Standing::Broken(_) => Ok(()),
            Standing::NotYet(reason) | Standing::Refused(reason) => Err(unavailable(reason)),
        }
    }

    /// Whether writes make sense now.
    pub fn writable(&self) -> Result<(), StorageError> {
        match &*self.standing.borrow() {
            Standing::Open => Ok(()),
            Standing::NotYet(reason) | Standing::Refused(reason) | Standing::Broken(reason) => {
                Err(unavailable(reason))
            }
        }
    }

    /// Waits a moment until the stream has been looked at: whether it is the one that was known, and
    /// whether its end is whole.
    pub async fn looked(&self) {
        let mut looked = self.looked.clone();
        let disturbances = Some(self.link.disturbances());
        let is_current = |looked: &Option<u64>| *looked >= disturbances;
        let until = {
            let mut since = self.unlooked.lock().unwrap_or_else(PoisonError::into_inner);
            if is_current(&looked.borrow()) {
                *since = None;
                return;
            }
            *since.get_or_insert_with(Instant::now) + LOOK_WAIT_MAX
        };
        // A read by id is right before it, too; what is missing is events, and places show more. So
        // where it takes long, reads go on.
        if self.link.is_connected() {
            drop(timeout_at(until, looked.wait_for(is_current)).await);
        }
    }

    /// Waits until what a crash of nats-server may have brought back is removed, for a moment after
    /// the connection to it was made.
    pub async fn cleaned(&self) {
        let mut clean = self.clean.clone();
        let server_id = self.link.server_id();
        if *clean.borrow() == server_id {
            return;
        }
        let until = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.0 != server_id {
                *waiting = (server_id.clone(), Instant::now() + CLEAN_WAIT_MAX);
            }
            waiting.1
        };
        // After that a list is better than none.
        drop(timeout_at(until, clean.wait_for(|cleaned| *cleaned == server_id)).await);
    }
}
