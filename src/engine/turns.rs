//! Movers of one token take turns, once one of them has lost.
//!
//! Where a crowd decides on the same state, one wins and all others have decided in vain. The store
//! refuses those; this only spares the work, so it need not know of other servers.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;
use uuid::Uuid;

/// Tokens share so many turns.
const TURNS: usize = 256;

/// How long one waits for its turn.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The turns of all tokens.
#[derive(Debug)]
pub struct Turns {
    turns: Vec<Mutex<()>>,
}

impl Turns {
    pub fn new() -> Self {
        Self { turns: (0..TURNS).map(|_| Mutex::new(())).collect() }
    }

    fn of(&self, token: Uuid) -> &Mutex<()> {
        // The last bits of an id are those of its workflow.
        let mut hasher = DefaultHasher::new();
        token.hash(&mut hasher);
        let place = usize::try_from(hasher.finish() % TURNS as u64).unwrap_or(0);
        &self.turns[place]
    }

    /// Whether somebody has the turn of a token.
    pub fn are_taken(&self, token: Uuid) -> bool {
        self.of(token).try_lock().is_err()
    }

    /// Waits for the turn of a token, in the order of those who wait; none if that takes too long.
    pub async fn take(&self, token: Uuid) -> Option<MutexGuard<'_, ()>> {
        timeout(WAIT_MAX, self.of(token).lock()).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_token_is_taken_by_one_at_a_time() {
        let (turns, token) = (Turns::new(), Uuid::from_u128(7));
        assert!(!turns.are_taken(token));
        let turn = turns.take(token).await;
        assert!(turn.is_some() && turns.are_taken(token));
        drop(turn);
        assert!(!turns.are_taken(token) && turns.take(token).await.is_some());
        let others = (0..1_000).map(Uuid::from_u128);
        let places: std::collections::HashSet<_> =
            others.map(|id| std::ptr::from_ref(turns.of(id))).collect();
        assert!(places.len() > TURNS / 2, "tokens share them evenly");
    }
}
