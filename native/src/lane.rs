//! A lane: one partition's record batches in, frames, late records and changes out.
//!
//! ```text
//! payload ─▶ records ─▶ ticks ─▶ engine ─▶ frames
//!                         │         │
//!                         ▼         ▼
//!                    left to Python  ledger
//! ```
//!
//! Whatever is not plainly a tick is left to Python's lane, which is the reference, and which hands it back where it is
//! one: it takes effect at its place in the log.

use crate::engine::{Engine, Entry};
use crate::ledger::{Late, Missed, Source};
use crate::records::{BatchHead, Corrupt, Records};
use crate::sums::Amount;
use crate::ticks::Decoder;

/// Where a walk over a batch stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    End,
    /// The record that begins there is not plainly a tick: it is taken by whoever asked.
    Unsure(usize),
}

pub struct Lane {
    pub engine: Engine,
    pub late: Late,
    pub source: Source,
    pub decoder: Decoder,
    /// Nanoseconds of the tick's unit.
    pub unit: i64,
    pub position: i64,
    pub records: u64,
    pub aggregated: u64,
    resume: (usize, u32),
}

impl Lane {
    pub fn new(engine: Engine, decoder: Decoder, source: Source, unit: i64) -> Self {
        let late = Late::default();
        Self { engine, late, source, decoder, unit, position: 0, records: 0, aggregated: 0, resume: (0, 0) }
    }

    /// Begins with a batch.
    pub fn begin(&mut self, head: &BatchHead) {
        self.resume = (0, head.count);
        self.position = self.position.max(head.base_offset);
    }

    /// Takes the records of a batch, from where the last call stopped.
    pub fn advance(&mut self, payload: &[u8], head: &BatchHead) -> Result<Stop, Corrupt> {
        let (position, left) = self.resume;
        let mut records = Records::resume(payload, *head, position, left);
        while let Some(record) = records.next() {
            let record = record?;
            if record.offset < self.position {
                if record.offset >= head.start_offset.max(head.base_offset) || record.offset < head.base_offset {
                    return Err(Corrupt); // offsets rise
                }
                continue;
            }
            self.position = record.offset + 1;
            if record.offset < head.start_offset {
                continue;
            }
            self.records += 1;
            let taken = match (record.key, record.value) {
                (Some(key), Some(value)) => self.take_plain(key, value, record.offset, record.timestamp),
                _ => None,
            };
            if taken.is_none() {
                self.resume = records.place();
                return Ok(Stop::Unsure(record.position));
            }
        }
        Ok(Stop::End)
    }

    #[inline(always)]
    fn take_plain(&mut self, key: &[u8], value: &[u8], offset: i64, timestamp: i64) -> Option<()> {
        let name = std::str::from_utf8(key).ok()?;
        let row = self.engine.keys.enter(name);
        let state = &self.engine.keys[row];
        if state.is_plain && (state.is_known || !state.is_misrouted) {
            if let Some(tick) = self.decoder.decode(key, value, timestamp) {
                if self.engine.assigner.knows(tick.ts_ns) {
                    let entry = Entry { ts: tick.ts_ns, price: tick.price, size: tick.size, value };
                    self.place(row, name, &entry, offset);
                    return Some(());
                }
            }
        }
        self.engine.release(row);
        None
    }

    /// Places a tick that was decoded elsewhere.
    pub fn take(&mut self, name: &str, ts: i64, price: f64, size: f64, offset: i64, value: &[u8]) {
        let row = self.engine.keys.enter(name);
        let (price, size) = (Amount::of_float(price), Amount::of_float(size));
        self.place(row, name, &Entry { ts, price, size, value }, offset);
    }

    /// Whether a key has no state yet and belongs on another partition.
    pub fn is_misplaced(&mut self, name: &str) -> bool {
        let row = self.engine.keys.enter(name);
        let state = &self.engine.keys[row];
        let found = state.is_misrouted && !state.is_known;
        self.engine.release(row);
        found
    }

    #[inline]
    fn place(&mut self, row: u32, name: &str, entry: &Entry, offset: i64) {
        match self.engine.add(row, entry) {
            None => self.aggregated += 1,
            Some(why) => {
                let missed = Missed { key: name, ts: entry.ts, offset, value: entry.value };
                self.late.write(&missed, &why, self.unit, &self.source);
                self.engine.release(row);
            }
        }
    }
}
