//! Which life of the store something is remembered of.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::Equivalent;
use quick_cache::sync::Cache;

/// Counts the lives of the store. What is remembered after a wait belongs to the life in which that began.
#[derive(Debug, Default)]
pub struct Epoch(AtomicU64);

impl Epoch {
    /// The one of now.
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Another one begins: nothing of this one is remembered any more.
    pub fn end(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

/// What is remembered of one life of the store, and of no other.
pub struct Remembered<K, V> {
    epoch: Arc<Epoch>,
    cache: Cache<K, (u64, V)>,
}

impl<K: Eq + Hash, V: Clone> Remembered<K, V> {
    /// As many as `items` at most.
    pub fn new(epoch: Arc<Epoch>, items: usize) -> Self {
        Self { epoch, cache: Cache::new(items) }
    }

    /// What is remembered in this life.
    pub fn get<Q: Hash + Equivalent<K> + ?Sized>(&self, key: &Q) -> Option<V> {
        let (of, value) = self.cache.get(key)?;
        (of == self.epoch.now()).then_some(value)
    }

    /// Remembers what was learnt since `begun`.
    pub fn insert(&self, begun: u64, key: K, value: V) {
        if self.epoch.now() == begun {
            self.cache.insert(key, (begun, value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_learnt_in_another_life_is_not_remembered() {
        let epoch = Arc::<Epoch>::default();
        let remembered = Remembered::new(Arc::clone(&epoch), 10);
        let begun = epoch.now();
        remembered.insert(begun, 1, "a");
        assert_eq!(remembered.get(&1), Some("a"));
        epoch.end();
        remembered.insert(begun, 2, "b");
        remembered.insert(epoch.now(), 3, "c");
        assert_eq!([1, 2, 3].map(|key| remembered.get(&key)), [None, None, Some("c")]);
    }
}
