//! The keys of a partition by name. The table is in parts, which grow one at a time, so that no tick waits for all.

use std::hash::BuildHasher;

use compact_str::CompactString;
use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::due::Due;
use crate::json::same;
use crate::order::Order;
use crate::partitioning::partition_for;
use crate::slab::{Slab, NONE};
use crate::window::{Key, LONG_AGO};

const PARTS: usize = 64;

pub struct Keys {
    rows: Slab<Key>,
    table: Vec<HashTable<u32>>,
    hasher: RandomState,
    partition: u32,
    partitions: u32,
    serial: u64,
}

impl Keys {
    pub fn new(partition: u32, partitions: u32) -> Self {
        Self {
            rows: Slab::default(),
            table: (0..PARTS).map(|_| HashTable::new()).collect(),
            hasher: RandomState::default(), // seeded by chance: nobody can choose symbols that collide
            partition,
            partitions,
            serial: 0,
        }
    }

    /// The row of a key, made where it has none. The name must be UTF-8.
    #[inline]
    pub fn enter(&mut self, name: &str) -> u32 {
        let hash = self.hasher.hash_one(name.as_bytes());
        let rows = &self.rows;
        match self.table[part_of(hash)].find(hash, |row| same(rows[*row].name.as_bytes(), name.as_bytes())) {
            Some(row) => *row,
            None => self.add(name, hash),
        }
    }

    #[cold]
    fn add(&mut self, name: &str, hash: u64) -> u32 {
        self.serial += 1;
        let row = self.rows.insert(Key {
            name: name.into(),
            hash,
            max: LONG_AGO,
            windows: Order::default(),
            due: Due::default(),
            serial: self.serial,
            newest: LONG_AGO,
            recent: NONE,
            rows: 0,
            is_known: false,
            is_plain: is_plain(name.as_bytes()),
            is_misrouted: partition_for(name.as_bytes(), self.partitions) != self.partition,
        });
        let rows = &self.rows;
        self.table[part_of(hash)].insert_unique(hash, row, |other| rows[*other].hash);
        row
    }

    /// Forgets a key that has no clock and that no window refers to.
    pub fn remove(&mut self, row: u32) {
        let hash = self.rows[row].hash;
        if let Ok(entry) = self.table[part_of(hash)].find_entry(hash, |other| *other == row) {
            entry.remove();
            let key = &mut self.rows[row];
            key.name = CompactString::default();
            key.due = Due::default();
            key.windows = Order::default();
            self.rows.free(row);
        }
    }

    /// How many rows there are, used or not.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// The rows of all keys.
    pub fn all(&self) -> impl Iterator<Item = u32> + '_ {
        self.table.iter().flat_map(|part| part.iter().copied())
    }
}

/// Whether a text stands in JSON as it is.
fn is_plain(text: &[u8]) -> bool {
    text.iter().all(|byte| *byte >= 0x20 && *byte != b'"' && *byte != b'\\')
}

#[inline(always)]
fn part_of(hash: u64) -> usize {
    (hash >> 32) as usize % PARTS // the table itself uses the bits at both ends
}

impl std::ops::Index<u32> for Keys {
    type Output = Key;

    #[inline(always)]
    fn index(&self, row: u32) -> &Key {
        &self.rows[row]
    }
}

impl std::ops::IndexMut<u32> for Keys {
    #[inline(always)]
    fn index_mut(&mut self, row: u32) -> &mut Key {
        &mut self.rows[row]
    }
}
