//! The values used most recently, up to a number.

use std::collections::VecDeque;

/// A small least-recently-used cache. Lookups compare keys one by one: it is meant for some hundred entries whose
/// values take far longer to make.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    capacity: usize,
    /// Most recently used last.
    entries: VecDeque<(K, V)>,
}

impl<K, V: Clone> Recent<K, V> {
    pub(super) fn new(capacity: usize) -> Self {
        Recent {
            capacity,
            entries: VecDeque::new(),
        }
    }

    /// The value of the key that `is_key` recognises, which becomes the most recently used.
    pub(super) fn get(&mut self, is_key: impl Fn(&K) -> bool) -> Option<V> {
        let position = self.entries.iter().position(|(key, _)| is_key(key))?;
        let entry = self.entries.remove(position)?;
        let value = entry.1.clone();
        self.entries.push_back(entry);
        Some(value)
    }

    /// Adds a value, for which the least recently used one may have to go.
    pub(super) fn insert(&mut self, key: K, value: V) {
        if self.entries.len() >= self.capacity {
            self.entries.pop_front();
        }
        self.entries.push_back((key, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_value_goes_first() {
        let mut recent = Recent::new(3);
        (0..3).for_each(|i| recent.insert(i, i * 10));
        assert_eq!(recent.get(|k| *k == 0), Some(0));
        recent.insert(3, 30);
        assert_eq!(recent.get(|k| *k == 1), None);
        assert_eq!(
            [0, 2, 3].map(|i| recent.get(|k| *k == i)),
            [Some(0), Some(20), Some(30)]
        );
        (4..100).for_each(|i| recent.insert(i, i));
        assert_eq!(recent.entries.len(), 3);
    }
}
