//! The changelog's records of windows, to the byte those of `workers.core.snapshot`.

use std::collections::HashMap;

use crate::corrections::check_trades;
use crate::engine::Engine;
use crate::msgpack::{put_array, put_bin, put_unsigned, Reader};
use crate::resample::Contents;
use crate::sums::{Sum, DUMP_LEN};
use crate::window::*;

const FORMAT: u8 = 1;
const SEGMENT_BYTES: usize = 512 * 1024;

const HAS_CLOSED: u8 = 1;
const HAS_CHANGED: u8 = 2;
const HAS_OWN_CLOCK: u8 = 4;
const HAS_SHOWN: u8 = 8;
const HAS_ORDERS: u8 = 16;
const HAS_CORRECTED: u8 = 32;
const HAS_SETTLED: u8 = 64;
const KNOWN: u8 = HAS_CLOSED | HAS_CHANGED | HAS_OWN_CLOCK | HAS_SHOWN | HAS_ORDERS | HAS_CORRECTED | HAS_SETTLED;

const FLAGS: [(u16, u8); 4] =
    [(CLOSED, HAS_CLOSED), (CHANGED, HAS_CHANGED), (SHOWN, HAS_SHOWN), (SETTLED, HAS_SETTLED)];

/// How many records of each kind the changelog holds: as `workers.core.snapshot.StoredRecords`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    pub windows: i64,
    pub items: i64,
    pub operators: i64,
    /// Ticks that are ahead of their time, and their clock; written by Python's lane alone.
    pub held: i64,
}

impl Stored {
    fn count(&mut self, kind: u8, records: i64) {
        match kind {
            b'w' => self.windows += records,
            b'i' => self.items += records,
            b'o' => self.operators += records,
            b'h' => self.held += records,
            _ => {}
        }
    }
}

/// Records end to end, each a key and a value or none.
#[derive(Debug, Default)]
pub struct Written {
    pub text: Vec<u8>,
    /// Where a key ends and where its value does; `None` deletes.
    pub cuts: Vec<(usize, Option<usize>)>,
    /// What the changelog holds once they are written.
    pub stored: Stored,
}

impl Written {
    /// Appends a record.
    pub fn put(&mut self, key: impl FnOnce(&mut Vec<u8>), value: impl FnOnce(&mut Vec<u8>)) {
        key(&mut self.text);
        let key_end = self.text.len();
        value(&mut self.text);
        self.end(key_end);
    }

    /// Appends a record that deletes one of the stages' state.
    pub fn put_deletion(&mut self, key: impl FnOnce(&mut Vec<u8>)) {
        key(&mut self.text);
        self.cuts.push((self.text.len(), None));
        self.stored.operators -= 1;
    }

    fn key(&mut self, kind: u8, start: i64, segment: Option<u32>, name: &str) -> usize {
        self.text.push(kind);
        self.text.extend(start.to_be_bytes());
        if let Some(segment) = segment {
            self.text.extend(segment.to_be_bytes());
        }
        self.text.extend(name.as_bytes());
        self.text.len()
    }

    fn end(&mut self, key_end: usize) {
        self.cuts.push((key_end, Some(self.text.len())));
    }

    fn delete(&mut self, kind: u8, start: i64, segment: Option<u32>, name: &str) {
        let key_end = self.key(kind, start, segment, name);
        self.cuts.push((key_end, None));
        self.stored.count(kind, -1);
    }

    fn delete_segments(&mut self, start: i64, segments: std::ops::Range<u32>, name: &str) {
        for segment in segments {
            self.delete(b'i', start, Some(segment), name);
        }
    }
}

impl Engine {
    /// The records of the windows that changed; what they hold counts as stored.
    pub fn take_changes(&mut self, out: &mut Written) {
        self.fresh_bytes = 0;
        self.ghosts.clear();
        for row in self.changes.take() {
            let window = &mut self.windows[row];
            window.flags &= !IN_CHANGES;
            let name = &self.keys[window.key].name;
            if window.is(DROPPED) {
                if window.is(STORED) {
                    out.delete(b'w', window.start, None, name);
                    let segments = window.items.as_ref().map_or(0, |items| items.segments);
                    out.delete_segments(window.start, 0..segments, name);
                }
                self.free_window(row);
                continue;
            }
            write_window(window, name, self.rules.folds, self.rules.is_session, out);
            window.flags |= STORED;
        }
    }
}

fn write_window(window: &mut Window, name: &str, folds: bool, ordered: bool, out: &mut Written) {
    let start = window.start;
    let mut segments = 0;
    let mut flags = 0;
    if let Some(items) = &mut window.items {
        write_items(items, start, name, ordered, out);
        segments = items.segments;
        flags |= if ordered { HAS_ORDERS } else { 0 };
        flags |= if items.values.len() as u64 != window.count { HAS_CORRECTED } else { 0 };
    }
    flags |= FLAGS.iter().filter(|(ours, _)| window.is(*ours)).fold(0, |sum, (_, theirs)| sum | theirs);
    let has_own_clock = window.clock != window.last;
    flags |= if has_own_clock { HAS_OWN_CLOCK } else { 0 };
    let key_end = out.key(b'w', start, None, name);
    out.stored.windows += i64::from(!window.is(STORED));
    let text = &mut out.text;
    text.extend([FORMAT, flags]);
    text.extend(window.rev.to_le_bytes());
    text.extend(window.count.to_le_bytes());
    for time in [window.end, window.first, window.last] {
        text.extend(time.to_le_bytes());
    }
    text.extend(segments.to_le_bytes());
    if has_own_clock {
        text.extend(window.clock.to_le_bytes());
    }
    if let Some(contents) = &window.contents {
        contents.dump(text);
    } else if folds {
        let bar = &window.bar;
        text.extend(bar.open_ns.to_le_bytes());
        text.extend(bar.close_ns.to_le_bytes());
        for price in [bar.open, bar.high, bar.low, bar.close] {
            text.extend(price.to_le_bytes());
        }
        bar.volume.dump(text);
        bar.notional.dump(text);
    }
    out.end(key_end);
}

/// The segments of the items that are not stored yet: of all, where sessions merged.
fn write_items(items: &mut Items, start: i64, name: &str, ordered: bool, out: &mut Written) {
    if !items.values.is_empty() && items.stored == 0 && items.segments > 0 {
        out.delete_segments(start, 1..items.segments, name);
        out.stored.items -= 1; // the first is overwritten
        items.segments = 0;
    }
    while items.stored < items.values.len() {
        let (first, end) = (items.stored, segment_end(&items.values, items.stored));
        let key_end = out.key(b'i', start, Some(items.segments), name);
        if ordered {
            out.text.push(0x92); // an array of two
            put_array(&mut out.text, end - first);
            items.orders[first..end].iter().for_each(|order| put_unsigned(&mut out.text, *order));
        }
        put_array(&mut out.text, end - first);
        items.values[first..end].iter().for_each(|value| put_bin(&mut out.text, value));
        out.end(key_end);
        items.stored = end;
        items.segments += 1;
        out.stored.items += 1;
    }
}

/// Where the segment that begins with item `first` ends: a record must not be too large for its topic.
fn segment_end(values: &[Box<[u8]>], first: usize) -> usize {
    let mut size = 0;
    for (number, value) in values.iter().enumerate().skip(first) {
        size += value.len();
        if size > SEGMENT_BYTES && number > first {
            return number;
        }
    }
    values.len()
}

// -- restore ----------------------------------------------------------------------------------------------------------

/// What of stored state was seen so far. Windows that have items wait for them.
#[derive(Debug, Default)]
pub struct Restore {
    keys: Vec<u32>,
    /// With the number of its segments, and its flags.
    windows: Vec<(Window, u32, u8)>,
    segments: HashMap<Vec<u8>, Vec<u8>>,
    /// What was seen.
    pub stored: Stored,
}

impl Restore {
    /// Takes one record over; `None` where it is not what is written here.
    pub fn take(&mut self, engine: &mut Engine, key: &[u8], value: &[u8]) -> Option<()> {
        self.stored.count(*key.first()?, 1);
        match key.first()? {
            b'w' => {
                let (window, segments, flags) = read_window(engine, key, value)?;
                self.note_key(engine, window.key);
                if engine.rules.keeps {
                    self.windows.push((window, segments, flags));
                } else if segments == 0 {
                    engine.load(window);
                } else {
                    return None;
                }
            }
            b'i' => {
                self.segments.insert(key.to_vec(), value.to_vec());
            }
            b'm' | b'o' | b'h' => {} // whose business they are, knows them
            _ => return None,
        }
        Some(())
    }

    fn note_key(&mut self, engine: &mut Engine, key: u32) {
        let state = &mut engine.keys[key];
        if !state.is_known {
            state.is_known = true;
            engine.known += 1;
            self.keys.push(key);
        }
    }

    /// After the last record.
    pub fn finish(mut self, engine: &mut Engine, partition_max: i64) -> Option<()> {
        for (mut window, segments, flags) in std::mem::take(&mut self.windows) {
            let ordered = flags & HAS_ORDERS != 0;
            let name = engine.keys[window.key].name.clone();
            let mut items = Items { segments, ..Items::default() };
            for segment in 0..segments {
                let mut place = Written::default();
                place.key(b'i', window.start, Some(segment), &name);
                read_segment(self.segments.get(&place.text)?, ordered, &mut items)?;
            }
            items.stored = items.values.len();
            let is_corrected = items.values.len() as u64 != window.count;
            if is_corrected != (flags & HAS_CORRECTED != 0) || (segments > 0 && ordered != engine.rules.is_session) {
                return None;
            }
            match &engine.trades {
                Some(_) => check_trades(&items.values, window.count)?,
                None if is_corrected => return None,
                None => {}
            }
            window.items = Some(Box::new(items));
            engine.load(window);
        }
        engine.loaded(partition_max, &self.keys);
        Some(())
    }
}

/// What follows a window's head is binary, not MessagePack.
impl Reader<'_> {
    fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    fn f64(&mut self) -> Option<f64> {
        self.array().map(f64::from_le_bytes)
    }

    fn sum(&mut self) -> Option<Sum> {
        Sum::load(&self.array::<DUMP_LEN>()?)
    }
}

fn read_segment(data: &[u8], ordered: bool, items: &mut Items) -> Option<()> {
    let mut reader = Reader(data);
    if ordered {
        if reader.byte()? != 0x92 {
            return None;
        }
        for _ in 0..reader.array_len()? {
            items.orders.push(reader.unsigned()?);
        }
    }
    for _ in 0..reader.array_len()? {
        items.values.push(reader.bin()?.into());
    }
    (reader.0.is_empty() && (!ordered || items.orders.len() == items.values.len())).then_some(())
}

fn read_window(engine: &mut Engine, key: &[u8], value: &[u8]) -> Option<(Window, u32, u8)> {
    let start = i64::from_be_bytes(key.get(1..9)?.try_into().ok()?);
    let name = std::str::from_utf8(&key[9..]).ok()?;
    let mut reader = Reader(value);
    if reader.byte()? != FORMAT {
        return None;
    }
    let flags = reader.byte()?;
    if flags & !KNOWN != 0 {
        return None;
    }
    let rev = u32::from_le_bytes(reader.array()?);
    let count = u64::from_le_bytes(reader.array()?);
    let (end, first, last) = (reader.i64()?, reader.i64()?, reader.i64()?);
    let segments = u32::from_le_bytes(reader.array()?);
    let clock = if flags & HAS_OWN_CLOCK != 0 { reader.i64()? } else { last };
    let (mut bar, mut contents) = (Bar::default(), None);
    if engine.rules.children {
        contents = Some(Box::new(Contents::load(reader.0)?));
        reader.0 = &[];
    } else if engine.rules.folds {
        (bar.open_ns, bar.close_ns) = (reader.i64()?, reader.i64()?);
        (bar.open, bar.high, bar.low, bar.close) = (reader.f64()?, reader.f64()?, reader.f64()?, reader.f64()?);
        (bar.volume, bar.notional) = (reader.sum()?, reader.sum()?);
    }
    if !reader.0.is_empty() {
        return None;
    }
    let ours = FLAGS.iter().filter(|(_, theirs)| flags & theirs != 0).fold(STORED, |sum, (ours, _)| sum | ours);
    let window = Window {
        bar,
        start,
        end,
        first,
        last,
        clock,
        due: LONG_AGO,
        count,
        serial: 0,
        items: None,
        contents,
        key: engine.keys.enter(name),
        rev,
        change: 0,
        flags: ours,
    };
    Some((window, segments, flags))
}
