//! A lane: one partition's record batches in, frames, late records and changes out.
//!
//! ```text
//! payload ─▶ records ─▶ ticks ─▶ pipeline ─▶ engine ─▶ frames
//!                         │         │           │
//!                         ▼         ▼           ▼
//!                  left to Python  ledger     ledger
//! ```
//!
//! Whatever is not plainly a tick is left to Python's lane, which is the reference, and which hands it back where it is
//! one: it takes effect at its place in the log.

use crate::engine::{Engine, Entry};
use crate::ledger::{Missed, Source};
use crate::pipeline::effects::Effects;
use crate::pipeline::stage::Passing;
use crate::pipeline::Pipeline;
use crate::records::{BatchHead, Corrupt, Record, Records};
use crate::snapshot::Written;
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
    pub pipeline: Option<Pipeline>,
    /// What does not reach the windows: late ticks, and what stages have to report.
    pub departures: Effects,
    pub source: Source,
    pub decoder: Decoder,
    /// Nanoseconds of the tick's unit.
    pub unit: i64,
    pub position: i64,
    pub records: u64,
    pub aggregated: u64,
    resume: (usize, u32),
    facts: Vec<u8>,
    /// Of the record that is left to Python.
    headers: Vec<u8>,
}

impl Lane {
    pub fn new(engine: Engine, decoder: Decoder, pipeline: Option<Pipeline>, source: Source, unit: i64) -> Self {
        Self {
            engine,
            pipeline,
            departures: Effects::default(),
            source,
            decoder,
            unit,
            position: 0,
            records: 0,
            aggregated: 0,
            resume: (0, 0),
            facts: Vec::new(),
            headers: Vec::new(),
        }
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
            if record.offset >= head.next_offset {
                return Err(Corrupt);
            }
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
                (Some(key), Some(value)) => self.take_plain(key, value, &record),
                _ => None,
            };
            if taken.is_none() {
                self.headers.clear();
                self.headers.extend_from_slice(record.headers);
                self.resume = records.place();
                return Ok(Stop::Unsure(record.position));
            }
        }
        Ok(Stop::End)
    }

    #[inline(always)]
    fn take_plain(&mut self, key: &[u8], value: &[u8], record: &Record) -> Option<()> {
        let name = std::str::from_utf8(key).ok()?;
        let row = self.engine.keys.enter(name);
        let state = &self.engine.keys[row];
        let taken = if state.is_plain && (state.is_known || !state.is_misrouted) {
            match self.pipeline {
                None => self.take_tick(row, name, value, record),
                Some(_) => self.take_through(row, name, value, record),
            }
        } else {
            None
        };
        if taken.is_none() {
            self.engine.release(row);
        }
        taken
    }

    #[inline(always)]
    fn take_tick(&mut self, row: u32, name: &str, value: &[u8], record: &Record) -> Option<()> {
        let tick = self.decoder.decode(name.as_bytes(), value, record.timestamp)?;
        if !self.engine.assigner.knows(tick.ts_ns) {
            return None;
        }
        let entry = Entry { ts: tick.ts_ns, price: tick.price, size: tick.size, value };
        self.place(row, name, &entry, record.offset);
        Some(())
    }

    /// Takes a tick through the pipeline.
    fn take_through(&mut self, row: u32, name: &str, value: &[u8], record: &Record) -> Option<()> {
        let pipeline = self.pipeline.as_mut()?;
        let tick = self.decoder.decode_watched(name.as_bytes(), value, record.timestamp, pipeline.facts().begin())?;
        if !self.engine.assigner.knows(tick.ts_ns) {
            return None;
        }
        self.facts.clear();
        pipeline.facts().read_watched(value, 0, &mut self.facts)?;
        let passing = Passing {
            symbol: name,
            ts_ns: tick.ts_ns,
            price: tick.price.value,
            size: tick.size.value,
            offset: record.offset,
            timestamp_ms: record.timestamp,
            value,
            original: None,
            headers: record.headers,
            facts: &self.facts,
        };
        let goes_on = pipeline.push(&passing, &mut self.departures);
        let row = if self.place_held() { self.engine.keys.enter(name) } else { row }; // the row may have been freed
        if goes_on {
            let entry = Entry { ts: tick.ts_ns, price: tick.price, size: tick.size, value };
            self.place(row, name, &entry, record.offset);
        } else {
            self.engine.release(row);
        }
        Some(())
    }

    /// Places the ticks that stages held back and let go; whether there were any.
    #[inline(always)]
    fn place_held(&mut self) -> bool {
        if self.departures.going.is_empty() {
            return false;
        }
        let mut going = std::mem::take(&mut self.departures.going);
        for held in going.drain(..) {
            let tick = held.passing();
            let row = self.engine.keys.enter(tick.symbol);
            let (price, size) = (Amount::of_float(tick.price), Amount::of_float(tick.size));
            self.place(row, tick.symbol, &Entry { ts: tick.ts_ns, price, size, value: tick.value }, tick.offset);
        }
        self.departures.going = going;
        true
    }

    /// Takes a tick that was decoded elsewhere, with its facts where there is a pipeline; false where these are none.
    #[allow(clippy::too_many_arguments)] // a tick has as many parts
    pub fn take(
        &mut self,
        name: &str,
        ts: i64,
        price: f64,
        size: f64,
        offset: i64,
        timestamp: i64,
        value: &[u8],
        facts: &[u8],
    ) -> bool {
        if let Some(pipeline) = self.pipeline.as_mut() {
            if !pipeline.facts().is_valid(facts, 0) {
                return false;
            }
            let passing = Passing {
                symbol: name,
                ts_ns: ts,
                price,
                size,
                offset,
                timestamp_ms: timestamp,
                value,
                original: None,
                headers: &self.headers,
                facts,
            };
            let goes_on = pipeline.push(&passing, &mut self.departures);
            self.place_held();
            if !goes_on {
                return true;
            }
        }
        let row = self.engine.keys.enter(name);
        let (price, size) = (Amount::of_float(price), Amount::of_float(size));
        self.place(row, name, &Entry { ts, price, size, value }, offset);
        true
    }

    /// Counts a record that is not of a batch, and that `take` may follow.
    pub fn count(&mut self, offset: i64, headers: Vec<u8>) {
        self.position = offset + 1;
        self.records += 1;
        self.headers = headers;
    }

    /// The input has ended: what waits comes out, ticks that stages hold back and windows.
    pub fn end_of_input(&mut self) {
        if let Some(pipeline) = self.pipeline.as_mut() {
            pipeline.end_of_input(&mut self.departures);
            self.place_held();
        }
        self.engine.end_of_input();
    }

    /// The changelog's records of what changed; what they hold counts as stored.
    pub fn take_changes(&mut self) -> Written {
        let mut out = Written::default();
        self.engine.take_changes(&mut out);
        if let Some(pipeline) = self.pipeline.as_mut() {
            pipeline.take_changes(&mut out);
        }
        out
    }

    /// How much waits to be stored, in windows.
    pub fn changes_waiting(&self) -> usize {
        self.engine.changes_waiting() + self.pipeline.as_ref().map_or(0, Pipeline::changes_waiting)
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
                self.departures.late.write(&missed, &why, self.unit, &self.source);
                self.engine.release(row);
            }
        }
    }
}
