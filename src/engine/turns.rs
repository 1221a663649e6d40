//! Movers of one token take turns, once one of them has lost.
//!
//! Where a crowd decides on the same state, one wins and all others have decided in vain. The store
//! refuses those; this only spares the work, so it need not know of other servers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex as Queue, OwnedMutexGuard};
use tokio::time::timeout;
use uuid::Uuid;

/// How long one waits for its turn.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The turns of the tokens that somebody waits for or has: no more than there are moves under way.
#[derive(Debug, Default)]
pub struct Turns {
    tokens: Mutex<HashMap<Uuid, Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    queue: Arc<Queue<()>>,
    /// Who has the turn or waits for it.
    count: usize,
}

/// A place among those who wait for the turn of a token; it is theirs once they have the guard.
#[derive(Debug)]
pub struct Turn<'a> {
    turns: &'a Turns,
    token: Uuid,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    fn tokens(&self) -> MutexGuard<'_, HashMap<Uuid, Waiting>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody has the turn of a token.
    pub fn are_taken(&self, token: Uuid) -> bool {
        self.tokens().contains_key(&token)
    }

    /// Waits for the turn of a token, in the order of those who wait; none if that takes too long.
    pub async fn take(&self, token: Uuid) -> Option<Turn<'_>> {
        let queue = {
            let mut tokens = self.tokens();
            let waiting = tokens.entry(token).or_default();
            waiting.count += 1;
            Arc::clone(&waiting.queue)
        };
        // From here on it is given back also by one who goes away.
        let mut turn = Turn { turns: self, token, guard: None };
        turn.guard = Some(timeout(WAIT_MAX, queue.lock_owned()).await.ok()?);
        Some(turn)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        drop(self.guard.take());
        let mut tokens = self.turns.tokens();
        if let Some(waiting) = tokens.get_mut(&self.token) {
            waiting.count -= 1;
            if waiting.count == 0 {
                tokens.remove(&self.token);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_token_is_taken_by_one_at_a_time_and_nothing_stays() {
        let (turns, token) = (Turns::default(), Uuid::from_u128(7));
        assert!(!turns.are_taken(token));
        let turn = turns.take(token).await;
        assert!(turn.is_some() && turns.are_taken(token));
        for other in (0..1_000).filter(|other| *other != 7).map(Uuid::from_u128) {
            assert!(!turns.are_taken(other), "no other token waits for it");
        }
        // One who goes away before it is his turn.
        let gone = timeout(Duration::from_millis(1), turns.take(token)).await;
        assert!(gone.is_err() && turns.are_taken(token));
        drop(turn);
        assert!(!turns.are_taken(token) && turns.take(token).await.is_some());
        assert!(turns.tokens().is_empty(), "nothing is kept of it");
    }
}
