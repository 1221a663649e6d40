//! The tokens that were written last, so that the next move of one need not ask the file.
//!
//! After every commit SQLite's readers read their pages anew, so just what moves often would be
//! slow to read.

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use uuid::Uuid;

use crate::storage::{StoredToken, cache};

/// Bytes of memory that the kept tokens may take.
const KEPT_BYTES_MAX: u64 = 16 << 20;

/// Bytes of memory of one of them: a larger one would push out many.
const TOKEN_BYTES_MAX: u64 = 192 << 10;

/// Tokens that the cache is laid out for.
const KEPT_TOKENS: usize = 8 << 10;

/// Tokens as they stand in the file.
///
/// Only the writer changes it: it forgets a token before it commits a change of it and remembers
/// it afterwards. So what is found here is never older than what a read of the file that began
/// earlier has shown, and a token that is being changed is read from the file, which knows.
#[derive(Debug)]
pub struct Recent {
    tokens: Cache<Uuid, Kept, Bytes>,
}

#[derive(Debug, Clone)]
struct Kept {
    stored: StoredToken,
    /// Bytes that it takes, about.
    memory: u64,
}

#[derive(Debug, Clone)]
struct Bytes;

impl Weighter<Uuid, Kept> for Bytes {
    fn weight(&self, _: &Uuid, kept: &Kept) -> u64 {
        kept.memory
    }
}

impl Recent {
    pub fn new() -> Self {
        Self { tokens: cache::bounded(KEPT_TOKENS, KEPT_BYTES_MAX, TOKEN_BYTES_MAX, Bytes) }
    }

    pub fn get(&self, id: Uuid) -> Option<StoredToken> {
        self.tokens.get(&id).map(|kept| kept.stored)
    }

    pub fn forget(&self, id: Uuid) {
        self.tokens.remove(&id);
    }

    /// Keeps a token, unless it is large.
    pub fn remember(&self, stored: StoredToken) {
        let memory = stored.token.memory();
        if memory <= TOKEN_BYTES_MAX {
            self.tokens.insert(stored.token.id, Kept { stored, memory });
        }
    }
}
