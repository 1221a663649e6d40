//! What a user can ask for, each thing in one function: load, let the domain decide, commit.

use std::sync::Arc;

use tokio::sync::Semaphore;

mod budget;
mod calculate;
mod definitions;
mod error;
mod lists;
mod meter;
mod reads;
mod session;
mod turns;
mod world;
mod writes;

pub use error::EngineError;
pub use lists::TokenPageRequest;
pub use reads::{Health, HealthStatus, ReadToken};
pub use session::{Session, Waiting};
pub use world::{SystemWorld, World};

pub use crate::domain::Caller;

use self::budget::Budget;
use self::definitions::Definitions;
use self::meter::Meter;
use self::turns::Turns;
use crate::storage::WorkflowStorage;

/// The engine over one store. Any number of engines, in any number of processes, can share one
/// store that allows it: nothing that matters is kept here.
///
/// Whatever is asked of it goes through a [`Session`].
pub struct Engine {
    storage: Arc<dyn WorkflowStorage>,
    definitions: Definitions,
    world: Arc<dyn World>,
    places: Arc<budget::Places>,
    calculating: Arc<Semaphore>,
    turns: Turns,
    meter: Meter,
}

impl Engine {
    /// An engine with the clock and the random numbers of this machine.
    pub fn new(storage: Arc<dyn WorkflowStorage>) -> Self {
        Self::with_world(storage, Arc::new(SystemWorld))
    }

    /// An engine whose time and random numbers come from `world`.
    pub fn with_world(storage: Arc<dyn WorkflowStorage>, world: Arc<dyn World>) -> Self {
        Self {
            definitions: Definitions::new(Arc::clone(&storage)),
            storage,
            world,
            places: budget::Places::new(),
            calculating: calculate::places(),
            turns: Turns::default(),
            meter: Meter::default(),
        }
    }

    /// Opens the door to one request of a caller, with a budget of its own.
    pub fn session(self: &Arc<Self>, caller: Caller) -> Session {
        let budget = Arc::new(Budget::new(Arc::clone(&self.places)));
        Session::new(Arc::clone(self), Arc::new(caller), budget)
    }

    /// Finishes what the store accepted; afterwards every call fails.
    pub async fn close(&self) {
        self.storage.close().await;
    }
}
