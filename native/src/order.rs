//! A key's windows in order of their starts: nearly always a few, and then a sorted list; else a tree, so that nothing
//! costs in proportion to how many there are.

use std::collections::BTreeMap;

const FEW: usize = 48;

#[derive(Debug, Default)]
pub enum Order {
    #[default]
    Nothing,
    One(i64, u32),
    Few(Vec<(i64, u32)>),
    Many(BTreeMap<i64, u32>),
}

impl Order {
    #[inline]
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Nothing => true,
            Self::One(..) => false,
            Self::Few(list) => list.is_empty(),
            Self::Many(tree) => tree.is_empty(),
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::One(..) => 1,
            Self::Few(list) => list.len(),
            Self::Many(tree) => tree.len(),
        }
    }

    /// The row of the window that begins at `start`.
    #[inline]
    pub fn get(&self, start: i64) -> Option<u32> {
        match self {
            Self::Nothing => None,
            Self::One(only, row) => (*only == start).then_some(*row),
            // From the newest on: that is where ticks go.
            Self::Few(list) => list.iter().rev().find(|entry| entry.0 <= start).filter(|e| e.0 == start).map(|e| e.1),
            Self::Many(tree) => tree.get(&start).copied(),
        }
    }

    pub fn insert(&mut self, start: i64, row: u32) {
        match self {
            Self::Nothing => *self = Self::One(start, row),
            Self::One(only, other) => {
                let mut list = vec![(*only, *other), (start, row)];
                list.sort_unstable();
                *self = Self::Few(list);
            }
            Self::Few(list) => {
                if list.len() == FEW {
                    let mut tree: BTreeMap<i64, u32> = list.drain(..).collect();
                    tree.insert(start, row);
                    *self = Self::Many(tree);
                    return;
                }
                let at = list.iter().rposition(|entry| entry.0 < start).map_or(0, |found| found + 1);
                list.insert(at, (start, row));
            }
            Self::Many(tree) => {
                tree.insert(start, row);
            }
        }
    }

    pub fn remove(&mut self, start: i64) {
        match self {
            Self::Nothing => {}
            Self::One(only, _) => {
                if *only == start {
                    *self = Self::Nothing;
                }
            }
            Self::Few(list) => {
                if let Some(at) = list.iter().position(|entry| entry.0 == start) {
                    list.remove(at);
                }
            }
            Self::Many(tree) => {
                tree.remove(&start);
                if tree.len() < FEW / 2 {
                    *self = Self::Few(tree.iter().map(|(start, row)| (*start, *row)).collect());
                }
            }
        }
    }

    pub fn newest(&self) -> Option<(i64, u32)> {
        match self {
            Self::Nothing => None,
            Self::One(only, row) => Some((*only, *row)),
            Self::Few(list) => list.last().copied(),
            Self::Many(tree) => tree.last_key_value().map(|(start, row)| (*start, *row)),
        }
    }

    /// The rows, by start.
    pub fn rows(&self) -> Vec<u32> {
        match self {
            Self::Nothing => Vec::new(),
            Self::One(_, row) => vec![*row],
            Self::Few(list) => list.iter().map(|entry| entry.1).collect(),
            Self::Many(tree) => tree.values().copied().collect(),
        }
    }

    /// The windows that begin before `before`, the newest first, for as long as `wanted` says so.
    pub fn back_from(&self, before: i64, mut wanted: impl FnMut(u32) -> bool) {
        match self {
            Self::Nothing => {}
            Self::One(only, row) => {
                if *only < before {
                    wanted(*row);
                }
            }
            Self::Few(list) => {
                for (start, row) in list.iter().rev() {
                    if *start < before && !wanted(*row) {
                        return;
                    }
                }
            }
            Self::Many(tree) => {
                for (_, row) in tree.range(..before).rev() {
                    if !wanted(*row) {
                        return;
                    }
                }
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
        fn it_is_a_sorted_map(steps in proptest::collection::vec((any::<bool>(), -40i64..80), 0..400)) {
            let (mut order, mut model) = (Order::default(), BTreeMap::new());
            for (number, (put, start)) in steps.into_iter().enumerate() {
                if put && !model.contains_key(&start) {
                    order.insert(start, number as u32);
                    model.insert(start, number as u32);
                } else if !put {
                    order.remove(start);
                    model.remove(&start);
                }
                prop_assert_eq!(order.rows(), model.values().copied().collect::<Vec<_>>());
                prop_assert_eq!(order.get(start), model.get(&start).copied());
                prop_assert_eq!((order.len(), order.is_empty()), (model.len(), model.is_empty()));
                let mut back = Vec::new();
                order.back_from(start, |row| { back.push(row); back.len() < 3 });
                let expected: Vec<u32> = model.range(..start).rev().take(3).map(|(_, row)| *row).collect();
                prop_assert_eq!(back, expected);
            }
        }
    }
}
