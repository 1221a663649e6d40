//! Caches that are bounded by the bytes of what they hold.

use std::hash::Hash;

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

/// A cache of up to so many `bytes`, laid out for so many `items`.
///
/// Its room is split into parts that work at once, and nothing larger than a part is ever kept. By itself
/// the cache has more of them the more processors there are; here they are few enough that one of the
/// `largest` items has room in each.
pub fn bounded<K: Eq + Hash, V: Clone, W: Weighter<K, V> + Clone>(
    items: usize,
    bytes: u64,
    largest: u64,
    weighter: W,
) -> Cache<K, V, W> {
    let options = OptionsBuilder::new()
        .estimated_items_capacity(items)
        .weight_capacity(bytes)
        .shards(parts(bytes, largest))
        .build();
    // Both that it asks for are given.
    let options = options.unwrap_or_else(|_| unreachable!("items and bytes are given"));
    Cache::with_options(
        options,
        weighter,
        DefaultHashBuilder::default(),
        DefaultLifecycle::default(),
    )
}

/// The largest power of two such that each part has twice the room of the largest item, at most 16.
fn parts(bytes: u64, largest: u64) -> usize {
    let most = usize::try_from(bytes / (2 * largest).max(1)).unwrap_or(usize::MAX).clamp(1, 16);
    1 << most.ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct Bytes;

    impl Weighter<u64, u64> for Bytes {
        fn weight(&self, _: &u64, bytes: &u64) -> u64 {
            *bytes
        }
    }

    #[test]
    fn the_largest_item_is_kept() {
        for (bytes, largest, expected) in
            [(64 << 20, 4 << 20, 8), (16 << 20, 192 << 10, 16), (32 << 20, 30 << 20, 1), (10, 9, 1)]
        {
            assert_eq!(parts(bytes, largest), expected, "{bytes} {largest}");
            let cache = bounded(10_000, bytes, largest, Bytes);
            cache.insert(1, largest);
            assert_eq!(cache.get(&1), Some(largest), "{bytes} {largest}");
            (2..100).for_each(|key| cache.insert(key, largest));
            assert!(cache.weight() <= bytes, "{bytes} {largest}");
        }
    }
}
