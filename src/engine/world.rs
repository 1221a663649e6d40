//! Time and chance, which the domain must be given.

use chrono::{DateTime, DurationRound, TimeDelta, Utc};

/// Where time and random numbers come from; a test can decide them.
pub trait World: Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> DateTime<Utc>;
    /// Random bytes that nobody can foresee.
    fn random(&self) -> [u8; 16];
}

/// The clock and the random numbers of this machine.
#[derive(Debug, Clone, Copy)]
pub struct SystemWorld;

impl World for SystemWorld {
    /// In whole microseconds: more digits would cost bytes in every record and mean nothing.
    fn now(&self) -> DateTime<Utc> {
        let now = Utc::now();
        now.duration_trunc(TimeDelta::microseconds(1)).unwrap_or(now)
    }

    fn random(&self) -> [u8; 16] {
        uuid::Uuid::new_v4().into_bytes()
    }
}
