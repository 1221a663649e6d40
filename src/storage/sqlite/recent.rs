//! The tokens that were written last, so that the next move of one need not ask the file.
//!
//! After every commit SQLite's readers read their pages anew, so just what moves often would be slow to read.
//! They are kept as they stand in the file: what is parsed takes four times the memory, and to parse a small one
//! again takes a fraction of what a read takes.

use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use uuid::Uuid;

use crate::storage::{Sequence, cache};

/// Bytes of memory that the kept tokens may take.
const KEPT_BYTES_MAX: u64 = 16 << 20;

/// Bytes of one of them: a larger one would push out many, and take long to parse.
const TOKEN_BYTES_MAX: usize = 32 << 10;

/// Bytes that one takes beside its text.
const ENTRY_BYTES: u64 = 128;

/// Tokens that the cache is laid out for.
const KEPT_TOKENS: usize = 12 << 10;

/// Tokens as they stand in the file.
///
/// Only the writer changes it: it forgets a token before it commits a change of it and remembers
/// it afterwards. So what is found here is never older than what a read of the file that began
/// earlier has shown, and a token that is being changed is read from the file, which knows.
#[derive(Debug)]
pub struct Recent {
    tokens: Cache<Uuid, Kept, Bytes>,
}

/// A token's stored form and its revision.
#[derive(Debug, Clone)]
pub struct Kept {
    pub body: Arc<str>,
    pub revision: Sequence,
}

#[derive(Debug, Clone)]
struct Bytes;

impl Weighter<Uuid, Kept> for Bytes {
    fn weight(&self, _: &Uuid, kept: &Kept) -> u64 {
        ENTRY_BYTES + kept.body.len() as u64
    }
}

impl Recent {
    pub fn new() -> Self {
        let largest = ENTRY_BYTES + TOKEN_BYTES_MAX as u64;
        Self { tokens: cache::bounded(KEPT_TOKENS, KEPT_BYTES_MAX, largest, Bytes) }
    }

    pub fn get(&self, id: Uuid) -> Option<Kept> {
        self.tokens.get(&id)
    }

    pub fn forget(&self, id: Uuid) {
        self.tokens.remove(&id);
    }

    /// Keeps a token, unless it is large.
    pub fn remember(&self, id: Uuid, body: &str, revision: Sequence) {
        if body.len() <= TOKEN_BYTES_MAX {
            self.tokens.insert(id, Kept { body: body.into(), revision });
        }
    }
}
