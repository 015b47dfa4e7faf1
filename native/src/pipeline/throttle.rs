//! The rate limiting stages, by event time: a token bucket, or the latest tick of each interval. The rules are those of
//! `workers.core.pipeline.throttle`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::msgpack::{put_array, put_bin, put_float, put_integer, put_nil, Reader};
use crate::pipeline::effects::{Effects, Reason, Written};
use crate::pipeline::headers;
use crate::pipeline::stage::{
    ConflateSpec, Deletions, Drops, Held, Passing, StageContext, StateKey, StateKeys, ThrottleSpec,
};
use crate::pipeline::symbols::{SymbolId, SymbolStates, Symbols};
use crate::window::LONG_AGO;

/// The state of a bucket from which nothing was ever taken.
const ALWAYS_FULL: i64 = i64::MIN;
/// The symbol under which a bucket for all symbols is kept.
const WHOLE_PARTITION: &str = "";

pub const KIND: &str = "throttle";

// -- at most so many per second ---------------------------------------------------------------------------------------

/// When a symbol's bucket will be full again.
#[derive(Debug)]
struct Bucket {
    full_at_ns: i64,
}

impl Default for Bucket {
    fn default() -> Self {
        Self { full_at_ns: ALWAYS_FULL }
    }
}

#[derive(Debug)]
pub struct Throttler {
    spec: ThrottleSpec,
    depth_ns: i64,
    unit_ns: i64,
    drops: Drops,
    keys: StateKeys,
    buckets: SymbolStates<Bucket>,
    deletions: Deletions,
}

impl Throttler {
    pub fn new(spec: &ThrottleSpec, context: StageContext) -> Self {
        Self {
            spec: spec.clone(),
            depth_ns: spec.burst.saturating_mul(spec.spacing_ns),
            unit_ns: context.lane.unit_ns,
            drops: Drops::new(context, KIND, Reason::Throttled, spec.ledger),
            keys: StateKeys::new(context.index),
            buckets: SymbolStates::new(context.lane.key_ttl_ns),
            deletions: Deletions::default(),
        }
    }

    /// Whether the tick goes on.
    #[inline]
    pub fn take(&mut self, id: SymbolId, tick: &Passing, symbols: &mut Symbols, out: &mut Effects) -> bool {
        let id = if self.spec.per_symbol { id } else { symbols.intern(WHOLE_PARTITION) };
        let slot = self.buckets.observe(id, tick.ts_ns, symbols);
        if let Some(forgotten) = self.buckets.take_forgotten() {
            for old in forgotten.iter().filter(|old| old.stored) {
                self.deletions.add(|key| self.keys.put_head(symbols.name(old.symbol), key));
            }
        }
        let slot = self.buckets.slot(slot);
        let (clock_ns, bucket) = (slot.clock_ns, &mut slot.state);
        let wait_ns = if bucket.full_at_ns <= clock_ns {
            0 // it is full
        } else {
            let taken_ns = self.depth_ns - self.spec.spacing_ns.min(self.depth_ns);
            i128::from(bucket.full_at_ns) - i128::from(taken_ns) - i128::from(clock_ns)
        };
        if wait_ns > 0 {
            let free_ns = i128::from(clock_ns) + wait_ns;
            let next = -(-free_ns).div_euclid(i128::from(self.unit_ns));
            self.drops.note(tick, "next_ts", i64::try_from(next).unwrap_or(i64::MAX), out);
            return false;
        }
        bucket.full_at_ns = bucket.full_at_ns.max(clock_ns).saturating_add(self.spec.spacing_ns);
        true
    }

    pub fn changes_waiting(&self) -> usize {
        self.buckets.changes_waiting() + self.deletions.count()
    }

    pub fn take_changes(&mut self, symbols: &Symbols, out: &mut Written) {
        self.deletions.take(out);
        let keys = self.keys;
        self.buckets.take_changed(|slot| {
            out.put(
                |key| keys.put_head(symbols.name(slot.symbol), key),
                |value| {
                    put_array(value, 2);
                    put_integer(value, slot.clock_ns);
                    put_integer(value, slot.state.full_at_ns);
                },
            );
            out.stored.operators += i64::from(!slot.stored);
            slot.stored = true;
        });
    }

    pub fn restore(&mut self, key: StateKey, value: &[u8], symbols: &mut Symbols) -> Result<(), String> {
        let StateKey::Head(symbol) = key else {
            return Ok(());
        };
        let (clock_ns, full_at_ns) = read_bucket(value).ok_or_else(|| unreadable(symbol))?;
        let slot = self.buckets.load(symbols.intern(symbol), clock_ns, symbols);
        self.buckets.slot(slot).state = Bucket { full_at_ns };
        Ok(())
    }
}

fn read_bucket(value: &[u8]) -> Option<(i64, i64)> {
    let mut reader = Reader(value);
    reader.array_of(2)?;
    let found = (reader.integer()?, reader.integer()?);
    reader.end()?;
    Some(found)
}

fn unreadable(symbol: &str) -> String {
    format!("the state of {:?} can't be read", symbol.chars().take(80).collect::<String>())
}

// -- the latest of each interval --------------------------------------------------------------------------------------

/// A symbol's newest tick: held back, or only its time where it has gone on.
#[derive(Debug)]
struct Latest {
    passed_ns: i64,
    held: Option<Held>,
}

impl Default for Latest {
    fn default() -> Self {
        Self { passed_ns: LONG_AGO, held: None }
    }
}

#[derive(Debug)]
pub struct Conflator {
    spec: ConflateSpec,
    stage: usize,
    unit_ns: i64,
    drops: Drops,
    keys: StateKeys,
    latest: SymbolStates<Latest>,
    /// (interval's end, slot); what is no longer held is skipped.
    due: BinaryHeap<Reverse<(i64, u32)>>,
    deletions: Deletions,
    held: usize,
    /// Slots that were restored with a tick whose facts Python must say.
    doubtful: Vec<u32>,
}

/// A tick as the changelog has it.
struct Stored<'a> {
    clock_ns: i64,
    passed_ns: i64,
    held: Option<(Passing<'a>, Vec<u8>)>,
}

impl Conflator {
    pub fn new(spec: &ConflateSpec, context: StageContext) -> Self {
        Self {
            spec: spec.clone(),
            stage: context.index,
            unit_ns: context.lane.unit_ns,
            drops: Drops::new(context, KIND, Reason::Throttled, spec.ledger),
            keys: StateKeys::new(context.index),
            latest: SymbolStates::new(context.lane.key_ttl_ns),
            due: BinaryHeap::new(),
            deletions: Deletions::default(),
            held: 0,
            doubtful: Vec::new(),
        }
    }

    pub fn held(&self) -> usize {
        self.held
    }

    /// The times of the ticks that are held back.
    pub fn held_times(&self) -> Vec<i64> {
        let held = |slot: u32| self.latest.state_of(slot).held.as_ref().map(|held| held.ts_ns);
        self.due.iter().filter_map(|entry| held(entry.0 .1)).collect()
    }

    /// Whether the tick goes on; before it go the ticks that are appended to `released`.
    #[inline]
    pub fn take(
        &mut self,
        id: SymbolId,
        tick: &Passing,
        facts: &[u8],
        symbols: &mut Symbols,
        out: &mut Effects,
        released: &mut Vec<Held>,
    ) -> bool {
        let slot = self.latest.observe(id, tick.ts_ns, symbols);
        self.release_forgotten(symbols, released);
        self.release_due(released);
        let end_ns = interval_end(tick.ts_ns, self.spec.interval_ns);
        let partition_ns = self.latest.partition_ns;
        let latest = &mut self.latest.slot(slot).state;
        if let Some(held) = latest.held.take_if(|held| end_ns > interval_end(held.ts_ns, self.spec.interval_ns)) {
            latest.passed_ns = held.ts_ns; // it was marked as changed when the tick was observed
            self.held -= 1;
            released.push(held);
        }
        let newest_ns = latest.held.as_ref().map_or(latest.passed_ns, |held| held.ts_ns);
        if tick.ts_ns < newest_ns {
            self.drops.note(tick, "newer_ts", newest_ns.div_euclid(self.unit_ns), out);
            return false;
        }
        if end_ns.saturating_add(self.spec.margin_ns) <= partition_ns {
            latest.passed_ns = tick.ts_ns;
            return true;
        }
        match &mut latest.held {
            Some(held) => {
                self.drops.note(&held.passing(), "newer_ts", tick.ts_ns.div_euclid(self.unit_ns), out);
                held.assign(tick, facts);
            }
            None => {
                latest.held = Some(Held::new(id, tick, facts));
                self.held += 1;
                self.due.push(Reverse((end_ns, slot)));
            }
        }
        false
    }

    /// The input has ended: the ticks that are held back, by symbol.
    pub fn release(&mut self, released: &mut Vec<Held>) {
        let from = released.len();
        for Reverse((_, slot)) in std::mem::take(&mut self.due) {
            self.let_go(slot, |_| true, released);
        }
        released[from..].sort_by(|left, right| left.symbol.cmp(&right.symbol));
        // They count as changed in that order, too.
        for held in &released[from..] {
            if let Some(slot) = self.latest.of(held.id) {
                self.latest.mark_changed(slot);
            }
        }
    }

    fn let_go(&mut self, slot: u32, is_it: impl FnOnce(&Held) -> bool, released: &mut Vec<Held>) -> bool {
        let latest = &mut self.latest.slot(slot).state;
        let Some(held) = latest.held.take_if(|held| is_it(held)) else {
            return false;
        };
        latest.passed_ns = held.ts_ns;
        self.held -= 1;
        released.push(held);
        true
    }

    #[inline(always)]
    fn release_due(&mut self, released: &mut Vec<Held>) {
        let due_ns = self.latest.partition_ns.saturating_sub(self.spec.margin_ns);
        if self.due.peek().is_some_and(|Reverse((end_ns, _))| *end_ns <= due_ns) {
            self.release_all_due(due_ns, released);
        }
    }

    #[cold]
    fn release_all_due(&mut self, due_ns: i64, released: &mut Vec<Held>) {
        let (from, interval_ns) = (released.len(), self.spec.interval_ns);
        while let Some(Reverse((end_ns, slot))) = self.due.peek().copied() {
            if end_ns > due_ns {
                break;
            }
            self.due.pop();
            self.let_go(slot, |held| interval_end(held.ts_ns, interval_ns) == end_ns, released);
        }
        released[from..].sort_by(|left, right| {
            let ends = [left, right].map(|held| interval_end(held.ts_ns, interval_ns));
            ends[0].cmp(&ends[1]).then_with(|| left.symbol.cmp(&right.symbol))
        });
        for held in &released[from..] {
            if let Some(slot) = self.latest.of(held.id) {
                self.latest.mark_changed(slot);
            }
        }
    }

    #[inline(always)]
    fn release_forgotten(&mut self, symbols: &Symbols, released: &mut Vec<Held>) {
        let Some(forgotten) = self.latest.take_forgotten() else {
            return;
        };
        for slot in forgotten {
            if slot.stored {
                self.deletions.add(|key| self.keys.put_head(symbols.name(slot.symbol), key));
            }
            if let Some(held) = slot.state.held {
                self.held -= 1;
                released.push(held);
            }
        }
    }

    pub fn changes_waiting(&self) -> usize {
        self.latest.changes_waiting() + self.deletions.count()
    }

    pub fn take_changes(&mut self, symbols: &Symbols, out: &mut Written) {
        self.deletions.take(out);
        let keys = self.keys;
        self.latest.take_changed(|slot| {
            out.put(
                |key| keys.put_head(symbols.name(slot.symbol), key),
                |value| {
                    put_array(value, 3);
                    put_integer(value, slot.clock_ns);
                    put_integer(value, slot.state.passed_ns);
                    match &slot.state.held {
                        Some(held) => put_held(&held.passing(), value),
                        None => put_nil(value),
                    }
                },
            );
            out.stored.operators += i64::from(!slot.stored);
            slot.stored = true;
        });
    }

    /// `facts` appends the facts of a tick's JSON for the stages behind this one, or says that it can't.
    pub fn restore(
        &mut self,
        key: StateKey,
        value: &[u8],
        symbols: &mut Symbols,
        facts: impl FnOnce(&[u8], &mut Vec<u8>) -> Option<()>,
    ) -> Result<(), String> {
        let StateKey::Head(symbol) = key else {
            return Ok(());
        };
        let stored = read_latest(symbol, value).ok_or_else(|| unreadable(symbol))?;
        let id = symbols.intern(symbol);
        let number = self.latest.load(id, stored.clock_ns, symbols);
        let slot = self.latest.slot(number);
        slot.state.passed_ns = stored.passed_ns;
        if let Some((tick, headers)) = stored.held {
            let tick = Passing { headers: &headers, ..tick };
            let mut own = Vec::new();
            let is_sure = facts(tick.value, &mut own).is_some();
            slot.state.held = Some(Held::new(id, &tick, &own));
            self.held += 1;
            self.due.push(Reverse((interval_end(tick.ts_ns, self.spec.interval_ns), number)));
            if !is_sure {
                self.doubtful.push(number);
            }
        }
        Ok(())
    }

    /// The value of a restored tick whose facts `settle` must be told next, for the stages behind this one.
    pub fn doubtful(&mut self) -> Option<&[u8]> {
        let number = *self.doubtful.last()?;
        self.latest.slot(number).state.held.as_ref().map(|held| held.passing().value)
    }

    pub fn settle(&mut self, facts: &[u8]) {
        if let Some(number) = self.doubtful.pop() {
            if let Some(held) = &mut self.latest.slot(number).state.held {
                held.set_facts(facts);
            }
        }
    }

    pub fn stage(&self) -> usize {
        self.stage
    }
}

#[inline(always)]
fn interval_end(ts_ns: i64, interval_ns: i64) -> i64 {
    ts_ns.div_euclid(interval_ns).saturating_add(1).saturating_mul(interval_ns)
}

/// Appends a tick and its record as the changelog has them.
fn put_held(tick: &Passing, out: &mut Vec<u8>) {
    put_array(out, 8);
    put_integer(out, tick.ts_ns);
    put_float(out, tick.price);
    put_float(out, tick.size);
    put_integer(out, tick.offset);
    put_bin(out, tick.value);
    match tick.original {
        Some(original) => put_bin(out, original),
        None => put_nil(out),
    }
    put_integer(out, tick.timestamp_ms);
    headers::put_stored(out, tick.headers);
}

fn read_latest<'a>(symbol: &'a str, value: &'a [u8]) -> Option<Stored<'a>> {
    let mut reader = Reader(value);
    reader.array_of(3)?;
    let (clock_ns, passed_ns) = (reader.integer()?, reader.integer()?);
    let held = reader.optional(|reader| read_held(symbol, reader))?;
    reader.end()?;
    Some(Stored { clock_ns, passed_ns, held })
}

fn read_held<'a>(symbol: &'a str, reader: &mut Reader<'a>) -> Option<(Passing<'a>, Vec<u8>)> {
    reader.array_of(8)?;
    let (ts_ns, price, size) = (reader.integer()?, reader.number()?, reader.number()?);
    let (offset, value) = (reader.integer()?, reader.bin()?);
    let original = reader.optional(Reader::bin)?;
    let timestamp_ms = reader.integer()?;
    let headers = headers::read_stored(reader)?;
    let tick = Passing { symbol, ts_ns, price, size, offset, timestamp_ms, value, original, headers: &[], facts: &[] };
    Some((tick, headers))
}
