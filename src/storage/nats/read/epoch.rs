//! Which life of the store something is remembered of.

use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use std::hash::Hash;

/// Counts the lives of the store. What is remembered after a wait belongs to the life in which that began:
/// if it has ended meanwhile, it is not remembered.
#[derive(Debug, Default)]
pub struct Epoch(AtomicU64);

impl Epoch {
    /// The one of now.
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Another one begins. What is remembered of this one is to be dropped after that, not before.
    pub fn end(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    /// Remembers what was learnt since `begun`.
    pub fn insert<K: Eq + Hash + Clone, V: Clone, W: Weighter<K, V> + Clone>(
        &self,
        begun: u64,
        cache: &Cache<K, V, W>,
        key: K,
        value: V,
    ) {
        if self.now() != begun {
            return;
        }
        cache.insert(key.clone(), value);
        // It may have ended right then, and may have dropped everything before this came.
        if self.now() != begun {
            cache.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_learnt_in_another_life_is_not_remembered() {
        let (epoch, cache) = (Epoch::default(), Cache::new(10));
        let begun = epoch.now();
        epoch.insert(begun, &cache, 1, "a");
        epoch.end();
        cache.clear();
        epoch.insert(begun, &cache, 2, "b");
        epoch.insert(epoch.now(), &cache, 3, "c");
        assert_eq!([1, 2, 3].map(|key| cache.get(&key)), [None, None, Some("c")]);
    }
}
