//! When a key's windows are looked at next: (watermark, start), the least first. Most keys wait for one window.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

type Entry = (i64, i64);

#[derive(Debug, Default)]
pub enum Due {
    #[default]
    Nothing,
    One(Entry),
    Many(Box<BinaryHeap<Reverse<Entry>>>),
}

impl Due {
    #[inline(always)]
    pub fn least(&self) -> Option<Entry> {
        match self {
            Self::Nothing => None,
            Self::One(entry) => Some(*entry),
            Self::Many(heap) => heap.peek().map(|entry| entry.0),
        }
    }

    pub fn push(&mut self, entry: Entry) {
        match self {
            Self::Nothing => *self = Self::One(entry),
            Self::One(other) => *self = Self::Many(Box::new([Reverse(*other), Reverse(entry)].into())),
            Self::Many(heap) => heap.push(Reverse(entry)),
        }
    }

    pub fn pop(&mut self) {
        match self {
            Self::Nothing | Self::One(_) => *self = Self::Nothing,
            Self::Many(heap) => {
                heap.pop();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_least_comes_first(entries in proptest::collection::vec((0i64..9, 0i64..9), 0..30)) {
            let mut due = Due::default();
            entries.iter().for_each(|entry| due.push(*entry));
            let mut expected = entries;
            expected.sort_unstable();
            for entry in expected {
                prop_assert_eq!(due.least(), Some(entry));
                due.pop();
            }
            prop_assert_eq!(due.least(), None);
        }
    }
}
