//! Decisions, which may take long where conditions loop over data.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::budget::unavailable;
use super::{EngineError, Session};
use crate::domain::{Deciding, Steps, TooCostly};

/// Steps that a decision may take on a thread that serves requests, less than half a millisecond. What
/// takes more begins anew elsewhere.
const STEPS_AT_ONCE_MAX: i64 = 2_000;

/// Long decisions at once: as many threads, which nothing else needs, are busy with them.
const LONG_MAX: usize = 2;

/// Time that a long decision waits for its turn.
const TURN_TIME_MAX: Duration = Duration::from_secs(10);

/// The places of long decisions.
pub fn places() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(LONG_MAX))
}

/// Calculates what a caller asks for, on the steps of the session. It always comes to the same, and
/// costs the same, wherever it is done.
pub async fn calculate<T: Send + 'static>(
    session: &Session,
    now: DateTime<Utc>,
    answer: impl Fn(&Deciding<'_>) -> Result<T, TooCostly> + Send + 'static,
) -> Result<T, EngineError> {
    let all = session.budget.steps();
    let few = all.left().min(STEPS_AT_ONCE_MAX);
    let steps = Arc::new(Steps::new(few));
    let outcome = answer(&Deciding { caller: &session.caller, now, steps: &steps });
    if let Ok(answer) = outcome {
        session.budget.pay_steps(few - steps.left())?;
        return Ok(answer);
    }
    let place = Arc::clone(&session.engine.calculating).acquire_owned();
    let place = timeout(TURN_TIME_MAX, place)
        .await
        .map_err(|_| unavailable("too many conditions are being evaluated; try again later"))?
        .map_err(|_| unavailable("it was closed"))?;
    let (caller, steps) = (Arc::clone(&session.caller), Arc::clone(all));
    let calculation = move || {
        // It is free when the thread is, whether anybody still waits or not.
        let _place = place;
        answer(&Deciding { caller: &caller, now, steps: &steps })
    };
    match tokio::task::spawn_blocking(calculation).await {
        Ok(answer) => Ok(answer?),
        // A defect: it goes on to whoever turns panics into answers.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
