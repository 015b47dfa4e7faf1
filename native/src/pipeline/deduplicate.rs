//! The deduplicating stage: a tick whose id its symbol had before is dropped, and skipped ids are noticed. The rules are
//! those of `workers.core.pipeline.deduplicate`.

use std::collections::VecDeque;

use compact_str::CompactString;
use hashbrown::hash_table::Entry;
use hashbrown::HashTable;

use crate::msgpack::{put_array, put_bin, put_integer, put_optional, Reader};
use crate::pipeline::effects::{Effects, Notice, Reason, SequenceGap, Written};
use crate::pipeline::facts::{take_identity, take_number, LONGEST_IDENTITY};
use crate::pipeline::hash::Seed;
use crate::pipeline::stage::{DeduplicateSpec, Deletions, Drops, Passing, StageContext, StateKey, StateKeys};
use crate::pipeline::symbols::{Slot, SymbolId, SymbolStates, Symbols};

const FORGOTTEN_AT_ONCE: usize = 5_000; // ids, by one tick
const SEGMENT_BYTES: usize = 512 * 1024;
/// Ids in one changelog record, each with its time and what MessagePack adds.
const PART_IDS: usize = SEGMENT_BYTES / (LONGEST_IDENTITY + 16);
/// Bytes of forgotten ids that are kept before the others move up.
const LEAST_MOVED: usize = 4_096;

/// Ids with their times, in the order they came, numbered from 0; `first` is the number of the oldest kept.
///
/// A million are usual, so they are packed: an id's bytes lie behind those of the one before, and the table finds an
/// id's last number by its hash. Some 30 bytes each, and the id's own.
#[derive(Debug, Default)]
struct Ids {
    first: u64,
    entries: VecDeque<IdEntry>,
    bytes: Vec<u8>,
    /// Where the first id begins in `bytes`, and what `bytes` begins with, counted from the first id ever (wrapping).
    begin: usize,
    base: u32,
    table: Table,
}

/// (hash, number) of ids, the number being cut to 32 bits: never are that many kept. A large table is in parts, which
/// grow one at a time, so that no tick waits for all.
#[derive(Debug, Default)]
struct Table {
    few: HashTable<(u32, u32)>,
    /// By the hash's upper bits; empty while they are few.
    parts: Vec<HashTable<(u32, u32)>>,
}

const FEW_IDS: usize = 14_336; // as many as fit in a table of 2^14 places
const PART_BITS: u32 = 6;

impl Table {
    #[inline(always)]
    fn part(&mut self, hash: u32) -> &mut HashTable<(u32, u32)> {
        if self.parts.is_empty() {
            &mut self.few
        } else {
            &mut self.parts[(hash >> (32 - PART_BITS)) as usize]
        }
    }

    /// Makes room for one more id.
    #[inline(always)]
    fn grow(&mut self) {
        if self.few.len() == FEW_IDS {
            self.split();
        }
    }

    #[cold]
    fn split(&mut self) {
        let few = std::mem::take(&mut self.few);
        self.parts = (0..1 << PART_BITS).map(|_| HashTable::new()).collect();
        for (hash, number) in few {
            self.part(hash).insert_unique(spread(hash), (hash, number), |(hash, _)| spread(*hash));
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.few.len() + self.parts.iter().map(HashTable::len).sum::<usize>()
    }
}

#[derive(Clone, Copy, Debug)]
struct IdEntry {
    ts_ns: i64,
    /// Where its bytes end, counted from the first id ever (wrapping).
    end: u32,
    hash: u32,
}

#[derive(Clone, Copy, Debug)]
struct Identity<'a> {
    hash: u32,
    bytes: &'a [u8],
}

impl<'a> Identity<'a> {
    #[inline(always)]
    fn new(bytes: &'a [u8], seed: &Seed) -> Self {
        Self { hash: seed.hash(bytes) as u32, bytes }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Met {
    /// It is remembered now.
    New,
    /// It was first seen then.
    Again(i64),
    /// Its own time is too far back for it to be remembered.
    Passing,
}

/// The bits that the table wants, of the 32 that it keeps.
#[inline(always)]
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

impl Ids {
    /// The number that the next id gets.
    fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn bytes_at(&self, place: usize) -> &[u8] {
        let begin = match place.checked_sub(1) {
            Some(before) => self.entries[before].end.wrapping_sub(self.base) as usize,
            None => self.begin,
        };
        &self.bytes[begin..self.entries[place].end.wrapping_sub(self.base) as usize]
    }

    /// Looks an id up, and remembers it: unless it is known of a time that `repeats`, or not to be kept.
    #[inline]
    fn meet(&mut self, identity: Identity, ts_ns: i64, is_kept: bool, repeats: impl Fn(i64) -> bool) -> Met {
        let (first, base, begin) = (self.first as u32, self.base, self.begin);
        let number = first.wrapping_add(self.entries.len() as u32);
        let (entries, bytes) = (&self.entries, &self.bytes);
        let place_of = |number: u32| number.wrapping_sub(first) as usize;
        let is_same = |(hash, number): &(u32, u32)| {
            if *hash != identity.hash {
                return false;
            }
            let place = place_of(*number);
            let from = if place == 0 { begin } else { entries[place - 1].end.wrapping_sub(base) as usize };
            bytes[from..entries[place].end.wrapping_sub(base) as usize] == *identity.bytes
        };
        self.table.grow();
        match self.table.part(identity.hash).entry(spread(identity.hash), is_same, |(hash, _)| spread(*hash)) {
            Entry::Occupied(mut known) => {
                let seen_ns = entries[place_of(known.get().1)].ts_ns;
                if repeats(seen_ns) {
                    return Met::Again(seen_ns);
                }
                if !is_kept {
                    return Met::Passing;
                }
                known.get_mut().1 = number;
            }
            Entry::Vacant(vacant) => {
                if !is_kept {
                    return Met::Passing;
                }
                vacant.insert((identity.hash, number));
            }
        }
        self.bytes.extend_from_slice(identity.bytes);
        let end = self.base.wrapping_add(self.bytes.len() as u32);
        self.entries.push_back(IdEntry { ts_ns, end, hash: identity.hash });
        Met::New
    }

    #[inline]
    fn drop_oldest(&mut self) {
        let Some(oldest) = self.entries.pop_front() else {
            return;
        };
        let number = self.first as u32;
        // Where it was seen anew, the table has its later number.
        if let Ok(entry) = self.table.part(oldest.hash).find_entry(spread(oldest.hash), |(_, other)| *other == number) {
            entry.remove();
        }
        self.begin = oldest.end.wrapping_sub(self.base) as usize;
        self.first += 1;
        if self.begin >= LEAST_MOVED && self.begin > self.bytes.len() / 2 {
            self.bytes.drain(..self.begin);
            self.base = self.base.wrapping_add(self.begin as u32);
            self.begin = 0;
        }
    }
}

/// The ids of one symbol.
#[derive(Debug, Default)]
struct Memory {
    ids: Ids,
    lowest: Option<i64>,
    greatest: Option<i64>,
    /// Ids below this number are in the changelog.
    stored_to: u64,
    /// (part, number after its last id).
    parts: VecDeque<(u64, u64)>,
    next_part: u64,
}

/// A stored part that waits for its head.
#[derive(Debug)]
struct StoredPart {
    symbol: CompactString,
    number: u64,
    value: Box<[u8]>,
}

#[derive(Debug)]
pub struct Deduplicator {
    spec: DeduplicateSpec,
    stage: usize,
    unit_ns: i64,
    drops: Drops,
    keys: StateKeys,
    seed: Seed,
    memories: SymbolStates<Memory>,
    deletions: Deletions,
    /// Ids remembered since changes were taken.
    fresh: usize,
    stored_parts: Vec<StoredPart>,
}

impl Deduplicator {
    pub const KIND: &'static str = "deduplicate";

    pub fn new(spec: &DeduplicateSpec, context: StageContext) -> Self {
        Self {
            spec: spec.clone(),
            stage: context.index,
            unit_ns: context.lane.unit_ns,
            drops: Drops::new(context, Self::KIND, Reason::Duplicate, spec.ledger),
            keys: StateKeys::new(context.index),
            seed: Seed::default(),
            memories: SymbolStates::new(context.lane.key_ttl_ns),
            deletions: Deletions::default(),
            fresh: 0,
            stored_parts: Vec::new(),
        }
    }

    /// Whether the tick goes on.
    #[inline]
    pub fn take(
        &mut self,
        id: SymbolId,
        tick: &Passing,
        facts: &mut &[u8],
        symbols: &mut Symbols,
        out: &mut Effects,
    ) -> bool {
        let ttl_ns = self.spec.ttl_ns;
        let identity = take_identity(facts);
        let sequence_number = if self.spec.gaps { take_number(facts) } else { None };
        let slot = self.memories.observe(id, tick.ts_ns, symbols);
        if let Some(forgotten) = self.memories.take_forgotten() {
            self.bury(&forgotten, symbols);
        }
        let slot = self.memories.slot(slot);
        let (clock_ns, memory) = (slot.clock_ns, &mut slot.state);
        let is_kept = |ts_ns: i64| ts_ns.saturating_add(ttl_ns) > clock_ns;
        for _ in 0..FORGOTTEN_AT_ONCE {
            // A tick far ahead must not hold up the others; the next ones go on.
            match memory.ids.entries.front() {
                Some(oldest) if !is_kept(oldest.ts_ns) => memory.ids.drop_oldest(),
                _ => break,
            }
        }
        let Some(identity) = identity else {
            out.notice(self.stage, Notice::WithoutId);
            return true;
        };
        let identity = Identity::new(identity, &self.seed);
        match memory.ids.meet(identity, tick.ts_ns, is_kept(tick.ts_ns), is_kept) {
            Met::Again(seen_ns) => {
                self.drops.note(tick, "first_ts", seen_ns.div_euclid(self.unit_ns), out);
                return false;
            }
            Met::Passing => {}
            Met::New => {
                self.fresh += 1;
                if memory.ids.entries.len() > self.spec.max_ids {
                    if memory.ids.entries.front().is_some_and(|oldest| is_kept(oldest.ts_ns)) {
                        out.notice(self.stage, Notice::ForgottenEarly);
                    }
                    memory.ids.drop_oldest();
                }
            }
        }
        if self.spec.gaps {
            look_for_gap(memory, sequence_number, tick, self.stage, out);
        }
        true
    }

    /// Has the records of forgotten symbols deleted; before a new state of the same symbol writes its own.
    #[cold]
    fn bury(&mut self, forgotten: &[Slot<Memory>], symbols: &Symbols) {
        for slot in forgotten.iter().filter(|slot| slot.stored) {
            let symbol = symbols.name(slot.symbol);
            self.deletions.add(|key| self.keys.put_head(symbol, key));
            for (number, _) in &slot.state.parts {
                self.deletions.add(|key| self.keys.put_part(symbol, *number, key));
            }
        }
    }

    pub fn changes_waiting(&self) -> usize {
        self.fresh + self.memories.changes_waiting() + self.deletions.count()
    }

    pub fn take_changes(&mut self, symbols: &Symbols, out: &mut Written) {
        self.deletions.take(out);
        let keys = self.keys;
        self.memories.take_changed(|slot| {
            let symbol = symbols.name(slot.symbol);
            let memory = &mut slot.state;
            while let Some((number, _)) = memory.parts.front().filter(|(_, end)| *end <= memory.ids.first) {
                out.put_deletion(|key| keys.put_part(symbol, *number, key));
                memory.parts.pop_front();
            }
            let end = memory.ids.end();
            let mut begin = memory.stored_to.max(memory.ids.first);
            while begin < end {
                let part_end = end.min(begin + PART_IDS as u64);
                out.put(
                    |key| keys.put_part(symbol, memory.next_part, key),
                    |value| put_part(&memory.ids, begin, part_end, value),
                );
                memory.parts.push_back((memory.next_part, part_end));
                memory.next_part += 1;
                out.stored.operators += 1;
                begin = part_end;
            }
            memory.stored_to = end;
            let clock_ns = slot.clock_ns;
            out.put(
                |key| keys.put_head(symbol, key),
                |value| {
                    put_array(value, 5);
                    put_integer(value, clock_ns);
                    put_integer(value, memory.ids.first as i64);
                    put_integer(value, memory.next_part as i64);
                    put_optional(value, memory.lowest);
                    put_optional(value, memory.greatest);
                },
            );
            out.stored.operators += i64::from(!slot.stored);
            slot.stored = true;
        });
        self.fresh = 0;
    }

    pub fn restore(&mut self, key: StateKey, value: &[u8], symbols: &mut Symbols) -> Result<(), String> {
        match key {
            StateKey::Head(symbol) => {
                let head = read_head(value)
                    .ok_or_else(|| format!("the head of the ids of {:?} can't be read", shortened(symbol)))?;
                let slot = self.memories.load(symbols.intern(symbol), head.clock_ns, symbols);
                self.memories.slot(slot).state = head.memory();
            }
            StateKey::Part(symbol, number) => {
                self.stored_parts.push(StoredPart { symbol: symbol.into(), number, value: value.into() });
            }
        }
        Ok(())
    }

    /// All state was handed over: sorts its parts; then come `restore_step`s.
    pub fn sort_parts(&mut self) {
        // From the last to the first, which is the one taken next.
        self.stored_parts.sort_by(|left, right| (&right.symbol, right.number).cmp(&(&left.symbol, left.number)));
    }

    /// Takes over one part; whether there was one.
    pub fn restore_step(&mut self, symbols: &Symbols) -> Result<bool, String> {
        let Some(part) = self.stored_parts.pop() else {
            return Ok(false);
        };
        let slot = symbols
            .find(&part.symbol)
            .and_then(|id| self.memories.of(id))
            .ok_or_else(|| format!("part {} of the ids of {:?} has no head", part.number, shortened(&part.symbol)))?;
        restore_part(&mut self.memories.slot(slot).state, &part, &self.seed)?;
        Ok(true)
    }
}

fn look_for_gap(memory: &mut Memory, number: Option<i64>, tick: &Passing, stage: usize, out: &mut Effects) {
    let Some(number) = number else {
        out.notice(stage, Notice::WithoutId);
        return;
    };
    let (Some(lowest), Some(greatest)) = (memory.lowest, memory.greatest) else {
        (memory.lowest, memory.greatest) = (Some(number), Some(number));
        return;
    };
    if number > greatest {
        if number > greatest.saturating_add(1) {
            let symbol = tick.symbol.into();
            out.gaps.push(SequenceGap { stage, symbol, first: greatest + 1, last: number - 1, offset: tick.offset });
            out.notice(stage, Notice::Gap);
        }
        memory.greatest = Some(number);
    } else if number > lowest {
        out.notice(stage, Notice::Filled);
    }
}

/// Appends the ids from one number to another as a part has them.
fn put_part(ids: &Ids, begin: u64, end: u64, value: &mut Vec<u8>) {
    put_array(value, 2);
    put_integer(value, begin as i64);
    put_array(value, (end - begin) as usize);
    for place in (begin - ids.first) as usize..(end - ids.first) as usize {
        put_array(value, 2);
        put_bin(value, ids.bytes_at(place));
        put_integer(value, ids.entries[place].ts_ns);
    }
}

struct Head {
    clock_ns: i64,
    first: u64,
    next_part: u64,
    lowest: Option<i64>,
    greatest: Option<i64>,
}

impl Head {
    fn memory(self) -> Memory {
        Memory {
            ids: Ids { first: self.first, ..Ids::default() },
            lowest: self.lowest,
            greatest: self.greatest,
            stored_to: self.first,
            next_part: self.next_part,
            ..Memory::default()
        }
    }
}

fn read_head(value: &[u8]) -> Option<Head> {
    let mut reader = Reader(value);
    reader.array_of(5)?;
    let head = Head {
        clock_ns: reader.integer()?,
        first: reader.count()?,
        next_part: reader.count()?,
        lowest: reader.optional(Reader::integer)?,
        greatest: reader.optional(Reader::integer)?,
    };
    reader.end()?;
    Some(head)
}

fn restore_part(memory: &mut Memory, part: &StoredPart, seed: &Seed) -> Result<(), String> {
    let symbol = shortened(&part.symbol);
    let unreadable = || format!("part {} of the ids of {symbol:?} can't be read", part.number);
    let mut reader = Reader(&part.value);
    let (begin, number) = read_part_head(&mut reader).ok_or_else(unreadable)?;
    let expected = memory.ids.end();
    if begin.max(memory.ids.first) != expected {
        let at = part.number;
        return Err(format!("the ids of {symbol:?} go on at {begin} in part {at}; expected {expected}"));
    }
    for place in 0..number {
        let (identity, ts_ns) = read_id(&mut reader).ok_or_else(unreadable)?;
        if begin + place >= expected {
            memory.ids.meet(Identity::new(identity, seed), ts_ns, true, |_| false);
        }
    }
    reader.end().ok_or_else(unreadable)?;
    memory.parts.push_back((part.number, begin + number));
    memory.stored_to = memory.ids.end();
    Ok(())
}

fn read_part_head(reader: &mut Reader) -> Option<(u64, u64)> {
    reader.array_of(2)?;
    Some((reader.count().filter(|begin| *begin < 1 << 62)?, reader.array_len()? as u64))
}

fn read_id<'a>(reader: &mut Reader<'a>) -> Option<(&'a [u8], i64)> {
    reader.array_of(2)?;
    Some((reader.bin()?, reader.integer()?))
}

fn shortened(symbol: &str) -> String {
    symbol.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        /// Against a map and a list, as Python's stage has them.
        #[test]
        fn ids_are_remembered_and_forgotten(steps in proptest::collection::vec((0u16..60, 0usize..3), 0..600), long in any::<bool>()) {
            let seed = Seed::default();
            let mut ids = Ids::default();
            let mut list: VecDeque<(String, i64)> = VecDeque::new();
            let mut times: HashMap<String, i64> = HashMap::new();
            for (ts_ns, (id, dropped)) in steps.into_iter().enumerate() {
                let ts_ns = ts_ns as i64;
                let identity = if long { format!("{id:064}") } else { id.to_string() };
                let found = Identity::new(identity.as_bytes(), &seed);
                let seen = times.get(&identity).map_or(Met::Passing, |seen_ns| Met::Again(*seen_ns));
                prop_assert_eq!(ids.meet(found, ts_ns, false, |_| true), seen);
                prop_assert_eq!(ids.meet(found, ts_ns, true, |_| false), Met::New);
                list.push_back((identity.clone(), ts_ns));
                times.insert(identity, ts_ns);
                for _ in 0..dropped {
                    ids.drop_oldest();
                    if let Some((identity, ts_ns)) = list.pop_front() {
                        if times.get(&identity) == Some(&ts_ns) {
                            times.remove(&identity);
                        }
                    }
                }
                prop_assert_eq!(ids.entries.len(), list.len());
                prop_assert_eq!(ids.table.len(), times.len());
                for (place, (identity, ts_ns)) in list.iter().enumerate() {
                    prop_assert_eq!(ids.bytes_at(place), identity.as_bytes());
                    prop_assert_eq!(ids.entries[place].ts_ns, *ts_ns);
                }
            }
        }
    }

    #[test]
    fn a_large_table_is_in_parts() {
        for (count, dropped) in [(FEW_IDS, 5), (FEW_IDS + 1, FEW_IDS), (FEW_IDS + 3_000, 7_000)] {
            let seed = Seed::default();
            let mut ids = Ids::default();
            let texts: Vec<String> = (0..count).map(|id| id.to_string()).collect();
            for (ts_ns, text) in texts.iter().enumerate() {
                ids.meet(Identity::new(text.as_bytes(), &seed), ts_ns as i64, true, |_| true);
            }
            for _ in 0..dropped {
                ids.drop_oldest();
            }
            assert_eq!(ids.table.len(), count - dropped);
            for (ts_ns, text) in texts.iter().enumerate() {
                let expected = if ts_ns < dropped { Met::Passing } else { Met::Again(ts_ns as i64) };
                assert_eq!(ids.meet(Identity::new(text.as_bytes(), &seed), 0, false, |_| true), expected);
            }
        }
    }
}
