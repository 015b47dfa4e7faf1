//! Symbols, and what stages keep of each.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use compact_str::CompactString;
use hashbrown::HashTable;

use crate::pipeline::hash::Seed;
use crate::slab::{Slab, NONE};
use crate::window::LONG_AGO;

/// A symbol's number, as long as any stage keeps something of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SymbolId(u32);

impl SymbolId {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug, Default)]
struct Symbol {
    name: CompactString,
    hash: u64,
    /// Stages that keep something of it.
    uses: u32,
}

const FEWEST_SWEPT: usize = 4_096;

const PARTS: usize = 64;

/// The symbols of a pipeline: looked up once for each tick, whatever the number of stages. The table is in parts, which
/// grow one at a time, so that no tick waits for all.
#[derive(Debug)]
pub struct Symbols {
    seed: Seed,
    parts: Vec<HashTable<u32>>,
    symbols: Slab<Symbol>,
    count: usize,
    /// At that many, those that no stage uses are given up.
    limit: usize,
}

impl Default for Symbols {
    fn default() -> Self {
        let parts = (0..PARTS).map(|_| HashTable::new()).collect();
        Self { seed: Seed::default(), parts, symbols: Slab::default(), count: 0, limit: FEWEST_SWEPT }
    }
}

/// The table itself uses the bits at both ends.
#[inline(always)]
fn part_of(hash: u64) -> usize {
    (hash >> 32) as usize % PARTS
}

impl Symbols {
    #[inline]
    pub fn find(&self, name: &str) -> Option<SymbolId> {
        self.find_hashed(name, self.seed.hash(name.as_bytes()))
    }

    #[inline(always)]
    fn find_hashed(&self, name: &str, hash: u64) -> Option<SymbolId> {
        let is_it = |number: &u32| self.symbols[*number].name == name;
        self.parts[part_of(hash)].find(hash, is_it).map(|number| SymbolId(*number))
    }

    /// The symbol's number, new if need be.
    #[inline]
    pub fn intern(&mut self, name: &str) -> SymbolId {
        let hash = self.seed.hash(name.as_bytes());
        self.find_hashed(name, hash).unwrap_or_else(|| self.add(name, hash))
    }

    #[cold]
    fn add(&mut self, name: &str, hash: u64) -> SymbolId {
        let number = self.symbols.insert(Symbol { name: name.into(), hash, uses: 0 });
        let symbols = &self.symbols;
        self.parts[part_of(hash)].insert_unique(hash, number, |other| symbols[*other].hash);
        self.count += 1;
        SymbolId(number)
    }

    /// Whether it is time to sweep: there are twice as many as after the last time.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.count >= self.limit
    }

    /// Gives up the symbols that no stage uses: their numbers may come again for others. Not while ticks are on their
    /// way.
    pub fn sweep(&mut self, mut given_up: impl FnMut(SymbolId)) {
        let symbols = &mut self.symbols;
        for part in &mut self.parts {
            part.retain(|number| {
                let symbol = &mut symbols[*number];
                if symbol.uses > 0 {
                    return true;
                }
                symbol.name = CompactString::default();
                symbols.free(*number);
                given_up(SymbolId(*number));
                false
            });
        }
        self.count = self.parts.iter().map(HashTable::len).sum();
        self.limit = FEWEST_SWEPT.max(2 * self.count);
    }

    pub fn name(&self, id: SymbolId) -> &str {
        &self.symbols[id.0].name
    }

    fn hold(&mut self, id: SymbolId) {
        self.symbols[id.0].uses += 1;
    }

    fn let_go(&mut self, id: SymbolId) {
        self.symbols[id.0].uses -= 1;
    }
}

/// What a stage keeps of a symbol. `stored`: the changelog holds its head.
#[derive(Debug, Default)]
pub struct Slot<S> {
    pub symbol: SymbolId,
    pub clock_ns: i64,
    pub stored: bool,
    /// Its place among those changed; `NONE` for none.
    changed_at: u32,
    pub state: S,
}

/// A stage's state per symbol, each with the symbol's own clock, and what of it the changelog does not have yet.
#[derive(Debug)]
pub struct SymbolStates<S> {
    key_ttl_ns: Option<i64>,
    slots: Slab<Slot<S>>,
    /// By the symbol's number.
    of_symbol: Vec<u32>,
    /// In the order in which they changed first; `NONE` for one that was forgotten since.
    changed: Vec<u32>,
    changed_count: usize,
    /// (clock when pushed, slot); empty where nothing expires.
    expiry: BinaryHeap<Reverse<(i64, u32)>>,
    forgotten: Vec<Slot<S>>,
    pub partition_ns: i64,
}

impl<S: Default> SymbolStates<S> {
    pub fn new(key_ttl_ns: Option<i64>) -> Self {
        Self {
            key_ttl_ns,
            slots: Slab::default(),
            of_symbol: Vec::new(),
            changed: Vec::new(),
            changed_count: 0,
            expiry: BinaryHeap::new(),
            forgotten: Vec::new(),
            partition_ns: LONG_AGO,
        }
    }

    #[inline(always)]
    pub fn slot(&mut self, number: u32) -> &mut Slot<S> {
        &mut self.slots[number]
    }

    /// What is in a slot that was given out at some time.
    pub fn state_of(&self, number: u32) -> &S {
        &self.slots[number].state
    }

    #[inline(always)]
    pub fn of(&self, symbol: SymbolId) -> Option<u32> {
        self.of_symbol.get(symbol.index()).copied().filter(|slot| *slot != NONE)
    }

    /// The slot of the symbol's state, new if need be, its clock moved to `ts_ns` if that is later.
    #[inline]
    pub fn observe(&mut self, symbol: SymbolId, ts_ns: i64, symbols: &mut Symbols) -> u32 {
        let number = match self.of(symbol) {
            Some(number) => {
                let slot = &mut self.slots[number];
                slot.clock_ns = slot.clock_ns.max(ts_ns);
                number
            }
            None => self.add(symbol, ts_ns, symbols),
        };
        self.mark_changed(number);
        if ts_ns > self.partition_ns {
            self.partition_ns = ts_ns;
            self.forget(symbols);
        }
        number
    }

    #[cold]
    fn add(&mut self, symbol: SymbolId, clock_ns: i64, symbols: &mut Symbols) -> u32 {
        let slot = Slot { symbol, clock_ns, stored: false, changed_at: NONE, state: S::default() };
        let number = self.slots.insert(slot);
        if self.of_symbol.len() <= symbol.index() {
            self.of_symbol.resize(symbol.index() + 1, NONE);
        }
        self.of_symbol[symbol.index()] = number;
        symbols.hold(symbol);
        if self.key_ttl_ns.is_some() {
            self.expiry.push(Reverse((clock_ns, number)));
        }
        number
    }

    /// Takes over a stored state; the symbol's last one counts. The symbol with the latest clock is never forgotten, so
    /// that the partition's time needs no record of its own.
    pub fn load(&mut self, symbol: SymbolId, clock_ns: i64, symbols: &mut Symbols) -> u32 {
        let number = self.of(symbol).unwrap_or_else(|| self.add(symbol, clock_ns, symbols));
        let slot = &mut self.slots[number];
        (slot.clock_ns, slot.stored) = (clock_ns, true);
        self.partition_ns = self.partition_ns.max(clock_ns);
        number
    }

    #[inline(always)]
    fn forget(&mut self, symbols: &mut Symbols) {
        let Some(ttl_ns) = self.key_ttl_ns else {
            return;
        };
        let is_due = |pushed_ns: i64| self.partition_ns.saturating_sub(pushed_ns) > ttl_ns;
        if self.expiry.peek().is_some_and(|Reverse((pushed_ns, _))| is_due(*pushed_ns)) {
            self.forget_due(ttl_ns, symbols);
        }
    }

    #[cold]
    fn forget_due(&mut self, ttl_ns: i64, symbols: &mut Symbols) {
        while let Some(Reverse((pushed_ns, number))) = self.expiry.peek().copied() {
            if self.partition_ns.saturating_sub(pushed_ns) <= ttl_ns {
                break;
            }
            self.expiry.pop();
            let slot = &mut self.slots[number];
            if slot.clock_ns > pushed_ns {
                self.expiry.push(Reverse((slot.clock_ns, number)));
                continue;
            }
            let slot = std::mem::take(slot);
            if slot.changed_at != NONE {
                self.changed[slot.changed_at as usize] = NONE;
                self.changed_count -= 1;
            }
            self.of_symbol[slot.symbol.index()] = NONE;
            self.slots.free(number);
            symbols.let_go(slot.symbol);
            self.forgotten.push(slot);
        }
        self.forgotten.sort_by(|left, right| {
            left.clock_ns.cmp(&right.clock_ns).then_with(|| symbols.name(left.symbol).cmp(symbols.name(right.symbol)))
        });
    }

    /// How many states `take_changed` would give.
    pub fn changes_waiting(&self) -> usize {
        self.changed_count + self.forgotten.len()
    }

    /// The states forgotten since the last call, by clock and symbol.
    #[inline(always)]
    pub fn take_forgotten(&mut self) -> Option<Vec<Slot<S>>> {
        (!self.forgotten.is_empty()).then(|| std::mem::take(&mut self.forgotten))
    }

    /// Has the state written with the next changes.
    #[inline(always)]
    pub fn mark_changed(&mut self, number: u32) {
        if self.slots[number].changed_at == NONE {
            self.add_changed(number);
        }
    }

    fn add_changed(&mut self, number: u32) {
        if self.changed.len() > 2 * self.changed_count + 64 {
            self.changed.retain(|changed| *changed != NONE); // what was forgotten since
            for (at, changed) in self.changed.iter().enumerate() {
                self.slots[*changed].changed_at = at as u32;
            }
        }
        self.slots[number].changed_at = self.changed.len() as u32;
        self.changed.push(number);
        self.changed_count += 1;
    }

    /// Calls `each` with the states that may differ from what was taken last.
    pub fn take_changed(&mut self, mut each: impl FnMut(&mut Slot<S>)) {
        for number in self.changed.drain(..).filter(|number| *number != NONE) {
            let slot = &mut self.slots[number];
            slot.changed_at = NONE;
            each(slot);
        }
        self.changed_count = 0;
    }
}
