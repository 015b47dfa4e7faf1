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

use crate::children::{ChildBar, ChildDecoder};
use crate::corrections::{put_trade, Arrival, Found};
use crate::engine::{Engine, Entry, Lateness};
use crate::ledger::{Missed, Source};
use crate::pipeline::effects::Effects;
use crate::pipeline::stage::Passing;
use crate::pipeline::Pipeline;
use crate::records::{BatchHead, Broken, Record, Records};
use crate::resample::Outcome;
use crate::snapshot::{Stored, Written};
use crate::sums::Amount;
use crate::ticks::Decoder;

/// Where a walk over a batch stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    End,
    /// The record that begins there is not plainly a tick: it is taken by whoever asked.
    Unsure(usize),
    /// The step is over: so much was taken, or came of it.
    Full,
    /// The payload ends within the record that begins there, which has so many bytes.
    Cut(usize, usize),
    /// The record that begins there has so many bytes, more than are read.
    Large(usize, usize),
}

/// What a step may take and give.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Until `Lane::records` is that.
    pub records_end: u64,
    /// Bytes of results; the record with which they are reached is the step's last.
    pub bytes: usize,
}

/// The payload, or an offset, is not what the format says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt;

/// What records are, and what of them windows take.
#[derive(Debug)]
pub enum Input {
    Ticks,
    /// Ticks that messages correct; `values`: windows keep theirs.
    Trades {
        values: bool,
    },
    /// Frames of another application.
    Children(Box<ChildDecoder>),
}

pub struct Lane {
    pub input: Input,
    pub engine: Engine,
    pub pipeline: Option<Pipeline>,
    /// What does not reach the windows: late ticks, and what stages have to report.
    pub departures: Effects,
    pub source: Source,
    pub decoder: Decoder,
    /// Nanoseconds of the tick's unit.
    pub unit: i64,
    pub position: i64,
    /// What the changelog holds.
    pub stored: Stored,
    pub records: u64,
    pub aggregated: u64,
    /// Children that changed nothing.
    pub repeated: u64,
    resume: (usize, u32),
    facts: Vec<u8>,
    /// Of the record that is left to Python.
    headers: Vec<u8>,
    /// The item that is being made.
    item: Vec<u8>,
}

impl Lane {
    /// `pipeline`: for ticks alone.
    pub fn new(
        input: Input,
        engine: Engine,
        decoder: Decoder,
        pipeline: Option<Pipeline>,
        source: Source,
        unit: i64,
    ) -> Self {
        Self {
            input,
            engine,
            pipeline,
            departures: Effects::default(),
            source,
            decoder,
            unit,
            position: 0,
            stored: Stored::default(),
            records: 0,
            aggregated: 0,
            repeated: 0,
            resume: (0, 0),
            facts: Vec::new(),
            headers: Vec::new(),
            item: Vec::new(),
        }
    }

    /// Begins with a batch.
    pub fn begin(&mut self, head: &BatchHead) {
        self.resume = (0, head.count);
        self.position = self.position.max(head.base_offset);
    }

    /// Where the next call of `advance` goes on in the payload.
    pub fn resume_at(&mut self, position: usize) {
        self.resume.0 = position;
    }

    /// Bytes of what has come of records and was not taken over yet, but for what stages drop.
    fn result_bytes(&self) -> usize {
        self.engine.frames.text.len() + self.departures.late.text.len() + self.departures.routed.text.len()
    }

    /// Whether a record is not to be taken, being before those that are wanted.
    fn is_passed(&mut self, offset: i64, head: &BatchHead) -> Result<bool, Corrupt> {
        if offset >= head.next_offset {
            return Err(Corrupt);
        }
        if offset < self.position {
            if offset >= head.start_offset.max(head.base_offset) || offset < head.base_offset {
                return Err(Corrupt); // offsets rise
            }
            return Ok(true);
        }
        self.position = offset + 1;
        Ok(offset < head.start_offset)
    }

    /// Takes the records of a batch, from where the last call stopped.
    pub fn advance(&mut self, payload: &[u8], head: &BatchHead, step: &Step) -> Result<Stop, Corrupt> {
        let (position, left) = self.resume;
        let mut records = Records::resume(payload, *head, position, left);
        loop {
            let place = records.place();
            if place.1 > 0 && (self.records >= step.records_end || self.result_bytes() >= step.bytes) {
                self.resume = place;
                return Ok(Stop::Full);
            }
            let record = match records.next() {
                Some(Ok(record)) => record,
                Some(Err(why)) => {
                    self.resume = place;
                    return match why {
                        Broken::Corrupt => Err(Corrupt),
                        Broken::Cut(bytes) => Ok(Stop::Cut(place.0, bytes)),
                        Broken::Large(bytes) => Ok(Stop::Large(place.0, bytes)),
                    };
                }
                None => {
                    self.resume = place;
                    return Ok(Stop::End);
                }
            };
            if self.is_passed(record.offset, head)? {
                continue;
            }
            self.records += 1;
            let taken = match (record.key, record.value) {
                (Some(key), Some(value)) => match self.input {
                    Input::Ticks => self.take_plain(key, value, &record),
                    Input::Children(_) => self.take_plain_child(key, value, record.offset),
                    Input::Trades { values } => {
                        self.take_plain_trade(key, value, record.offset, record.timestamp, values)
                    }
                },
                _ => None,
            };
            if taken.is_none() {
                self.headers.clear();
                self.headers.extend_from_slice(record.headers);
                self.resume = records.place();
                return Ok(Stop::Unsure(record.position));
            }
        }
    }

    /// Passes a record that is too long to be read, at an offset; whether it is wanted. Before `advance` is called again,
    /// `resume_at` is to be told what follows it.
    pub fn take_large(&mut self, offset: i64, head: &BatchHead) -> Result<bool, Corrupt> {
        self.resume.1 -= 1;
        let is_wanted = !self.is_passed(offset, head)?;
        self.records += u64::from(is_wanted);
        Ok(is_wanted)
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

    /// Takes a tick that was decoded elsewhere, with its facts where there is a pipeline, and its own id where trades are
    /// corrected; false where these are no facts.
    pub fn take(
        &mut self,
        name: &str,
        entry: &Entry,
        offset: i64,
        timestamp: i64,
        facts: &[u8],
        id: Option<&str>,
    ) -> bool {
        if let Some(pipeline) = self.pipeline.as_mut() {
            if !pipeline.facts().is_valid(facts, 0) {
                return false;
            }
            let passing = Passing {
                symbol: name,
                ts_ns: entry.ts,
                price: entry.price.value,
                size: entry.size.value,
                offset,
                timestamp_ms: timestamp,
                value: entry.value,
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
        match self.input {
            Input::Ticks | Input::Children(_) => self.place(row, name, entry, offset),
            Input::Trades { values } => self.place_trade(row, name, entry, offset, id, values),
        }
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
        let mut out = Written { stored: self.stored, ..Written::default() };
        self.engine.take_changes(&mut out);
        if let Some(pipeline) = self.pipeline.as_mut() {
            pipeline.take_changes(&mut out);
        }
        self.stored = out.stored;
        out
    }

    /// How much waits to be stored, in windows.
    pub fn changes_waiting(&self) -> usize {
        self.engine.changes_waiting() + self.pipeline.as_ref().map_or(0, Pipeline::changes_waiting)
    }

    fn take_plain_trade(&mut self, key: &[u8], value: &[u8], offset: i64, timestamp: i64, keeps: bool) -> Option<()> {
        let name = std::str::from_utf8(key).ok()?;
        let row = self.engine.keys.enter(name);
        let state = &self.engine.keys[row];
        if state.is_plain && (state.is_known || !state.is_misrouted) {
            if let Some((tick, id)) = self.decoder.decode_trade(key, value, timestamp) {
                if self.engine.assigner.knows(tick.ts_ns) {
                    let entry = Entry { ts: tick.ts_ns, price: tick.price, size: tick.size, value };
                    self.place_trade(row, name, &entry, offset, id, keeps);
                    return Some(());
                }
            }
        }
        self.engine.release(row);
        None
    }

    fn place_trade(&mut self, row: u32, name: &str, entry: &Entry, offset: i64, id: Option<&str>, keeps: bool) {
        let mut item = std::mem::take(&mut self.item);
        item.clear();
        let (price, size) = (entry.price.value, entry.size.value);
        put_trade(&mut item, &Arrival { offset, id, ts: entry.ts, price, size, value: keeps.then_some(entry.value) });
        match self.engine.add(row, &Entry { value: &item, ..*entry }) {
            None => {
                self.aggregated += 1;
                self.engine.note_trade(row, entry.ts, id);
            }
            Some(why) => self.miss(row, name, entry, offset, &why),
        }
        self.item = item;
    }

    fn take_plain_child(&mut self, key: &[u8], value: &[u8], offset: i64) -> Option<()> {
        let name = std::str::from_utf8(key).ok()?;
        let row = self.engine.keys.enter(name);
        let state = &self.engine.keys[row];
        if state.is_plain && (state.is_known || !state.is_misrouted) {
            if let Input::Children(decoder) = &mut self.input {
                if let Some(bar) = decoder.decode(key, value, &self.engine.assigner) {
                    self.place_child(row, name, &bar, offset, value);
                    return Some(());
                }
            }
        }
        self.engine.release(row);
        None
    }

    /// Places a child that was decoded elsewhere.
    pub fn take_child(&mut self, name: &str, bar: &ChildBar, offset: i64, value: &[u8]) {
        let row = self.engine.keys.enter(name);
        self.place_child(row, name, bar, offset, value);
    }

    fn place_child(&mut self, row: u32, name: &str, bar: &ChildBar, offset: i64, value: &[u8]) {
        match self.engine.add_child(row, bar) {
            Outcome::Joined => self.aggregated += 1,
            Outcome::Repeated => {
                self.repeated += 1;
                self.engine.release(row);
            }
            Outcome::Missed(why) => {
                let missed = Missed { key: name, ts: bar.child.start, offset, value };
                self.departures.late.write(&missed, &why, self.unit, &self.source);
                self.engine.release(row);
            }
        }
    }

    /// Finds the trade that a message is about.
    pub fn find_trade(&mut self, name: &str, id: &str) -> Option<Found> {
        let row = self.engine.keys.enter(name);
        let found = self.engine.find_trade(row, id);
        self.engine.release(row);
        found
    }

    /// Changes a trade that was found; the windows that it changed.
    pub fn change_trade(&mut self, name: &str, ts: i64, offset: i64, change: &[u8]) -> Vec<(i64, i64)> {
        let row = self.engine.keys.enter(name);
        let changed = self.engine.change_trade(row, ts, offset, change);
        self.engine.release(row);
        changed
    }

    /// The watermark that judges a key's next tick.
    pub fn watermark(&mut self, name: &str) -> Option<i64> {
        let row = self.engine.keys.enter(name);
        let found = self.engine.watermark(row);
        self.engine.release(row);
        found
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
            Some(why) => self.miss(row, name, entry, offset, &why),
        }
    }

    fn miss(&mut self, row: u32, name: &str, entry: &Entry, offset: i64, why: &Lateness) {
        let missed = Missed { key: name, ts: entry.ts, offset, value: entry.value };
        self.departures.late.write(&missed, why, self.unit, &self.source);
        self.engine.release(row);
    }
}
