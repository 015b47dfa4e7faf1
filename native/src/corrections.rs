//! Cancelled and corrected trades: the rules of `workers.core.windows.corrections`.
//!
//! A window's items are its trades and what was done to them, in log order, as MessagePack. They are read only where a
//! message asks for a trade of the symbol. The first message of a symbol reads all that is kept of it, to learn which
//! ids are where; from then on each trade is noted as it comes. A symbol that no message names pays for nothing of this.

use std::collections::hash_map;
use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasher;

use foldhash::fast::RandomState;

use crate::assign::Span;
use crate::engine::{Engine, Entry};
use crate::frames::Trigger;
use crate::msgpack::*;
use crate::sums::Amount;
use crate::window::*;

const TRADE: u64 = 0;
const CANCEL: u64 = 1;
const CORRECT: u64 = 2;

/// Entries of windows that are gone are let go of when they are half of an index, and more than these.
const FEW_GONE: usize = 16;

// -- the trades of a window -------------------------------------------------------------------------------------------

/// A window's item, read. `offset` is that of the record that made it, `target` that of the trade it changes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Item<'a> {
    Trade { offset: i64, id: Option<&'a str>, ts: i64, price: f64, size: f64, value: Option<&'a [u8]> },
    Cancel { offset: i64, target: i64 },
    Correct { target: i64, price: f64, size: f64, value: Option<&'a [u8]> },
}

/// A trade as it came; `value` where it is needed again.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    pub offset: i64,
    pub id: Option<&'a str>,
    pub ts: i64,
    pub price: f64,
    pub size: f64,
    pub value: Option<&'a [u8]>,
}

/// Appends the item of a trade.
pub fn put_trade(out: &mut Vec<u8>, trade: &Arrival) {
    put_array(out, 7);
    put_unsigned(out, TRADE);
    put_integer(out, trade.offset);
    match trade.id {
        Some(id) => put_text(out, id),
        None => put_nil(out),
    }
    put_integer(out, trade.ts);
    put_float(out, trade.price);
    put_float(out, trade.size);
    match trade.value {
        Some(value) => put_bin(out, value),
        None => put_nil(out),
    }
}

fn read_item(data: &[u8]) -> Option<Item<'_>> {
    let mut reader = Reader(data);
    let length = reader.array_len()?;
    let item = match (reader.unsigned()?, length) {
        (TRADE, 7) => Item::Trade {
            offset: reader.integer()?,
            id: if reader.nil() { None } else { Some(reader.text()?) },
            ts: reader.integer()?,
            price: finite(&mut reader)?,
            size: finite(&mut reader)?,
            value: value_of(&mut reader)?,
        },
        (CANCEL, 3) => Item::Cancel { offset: reader.integer()?, target: reader.integer()? },
        (CORRECT, 6) => {
            reader.integer()?;
            let target = reader.integer()?;
            let (price, size) = (finite(&mut reader)?, finite(&mut reader)?);
            Item::Correct { target, price, size, value: value_of(&mut reader)? }
        }
        _ => return None,
    };
    reader.0.is_empty().then_some(item)
}

fn finite(reader: &mut Reader) -> Option<f64> {
    reader.float().filter(|value| value.is_finite())
}

fn value_of<'a>(reader: &mut Reader<'a>) -> Option<Option<&'a [u8]>> {
    Some(if reader.nil() { None } else { Some(reader.bin()?) })
}

/// Whether stored items are what is written here, and what they change is there.
pub fn check_trades(items: &[Box<[u8]>], count: u64) -> Option<()> {
    if items.len() as u64 == count {
        return items.iter().all(|item| matches!(read_item(item), Some(Item::Trade { .. }))).then_some(());
    }
    Log::default().read_on(items)
}

/// What a frame shows of a window's items: the trades that are not cancelled, as they are now.
pub fn shown_values(items: &[Box<[u8]>], count: u64) -> Vec<&[u8]> {
    if items.len() as u64 == count {
        return items.iter().filter_map(|item| own_value(item)).collect(); // none was changed
    }
    let mut log = Log::default();
    log.read_on(items);
    log.effective().filter_map(|trade| own_value(&items[trade.item])).collect()
}

/// The value that an item holds.
fn own_value(item: &[u8]) -> Option<&[u8]> {
    match read_item(item)? {
        Item::Trade { value, .. } | Item::Correct { value, .. } => value,
        Item::Cancel { .. } => None,
    }
}

/// A trade as it is now.
#[derive(Clone, Copy, Debug)]
struct Trade {
    offset: i64,
    ts: i64,
    price: Amount,
    size: Amount,
    /// The item that has its value.
    item: usize,
    /// The offset of the record that did.
    cancelled_by: Option<i64>,
}

/// What a window's items say, read up to some item: trades in log order, and the last one of each id.
#[derive(Debug, Default)]
pub struct Log {
    read: usize,
    trades: Vec<Trade>,
    by_offset: HashMap<i64, usize, RandomState>,
    by_id: HashMap<Box<str>, usize, RandomState>,
}

impl Log {
    /// Takes in what was appended; `None` where that can't be. Stored items were checked when they were restored.
    fn read_on(&mut self, items: &[Box<[u8]>]) -> Option<()> {
        for (number, item) in items.iter().enumerate().skip(self.read) {
            match read_item(item)? {
                Item::Trade { offset, id, ts, price, size, .. } => {
                    let (price, size) = (Amount::of_float(price), Amount::of_float(size));
                    let trade = Trade { offset, ts, price, size, item: number, cancelled_by: None };
                    let place = *self.by_offset.entry(offset).or_insert(self.trades.len());
                    match self.trades.get_mut(place) {
                        Some(there) => *there = trade,
                        None => self.trades.push(trade),
                    }
                    if let Some(id) = id {
                        self.by_id.insert(id.into(), place);
                    }
                }
                Item::Cancel { offset, target } => self.find_mut(target)?.cancelled_by = Some(offset),
                Item::Correct { target, price, size, .. } => {
                    let trade = self.find_mut(target)?;
                    (trade.price, trade.size) = (Amount::of_float(price), Amount::of_float(size));
                    trade.item = number;
                }
            }
            self.read = number + 1;
        }
        Some(())
    }

    fn find(&self, offset: i64) -> Option<&Trade> {
        self.by_offset.get(&offset).map(|place| &self.trades[*place])
    }

    fn find_mut(&mut self, offset: i64) -> Option<&mut Trade> {
        self.by_offset.get(&offset).map(|place| &mut self.trades[*place])
    }

    fn effective(&self) -> impl Iterator<Item = &Trade> {
        self.trades.iter().filter(|trade| trade.cancelled_by.is_none())
    }
}

// -- where a symbol's trades are --------------------------------------------------------------------------------------

#[derive(Debug)]
enum Starts {
    One(i64),
    Many(BTreeSet<i64>),
}

/// Of one symbol: in which windows the trades of an id are, by the hash of the id. A window is told by the start that it
/// had when the trade joined it; of several windows that a trade is in, the last is noted, which is kept longest.
#[derive(Debug, Default)]
struct Index {
    starts: HashMap<u64, Starts, RandomState>,
    /// How many starts there are.
    noted: usize,
    /// Trades of windows that went since it was last swept.
    gone: usize,
}

impl Index {
    fn note(&mut self, id: u64, start: i64) {
        let is_new = match self.starts.entry(id) {
            hash_map::Entry::Vacant(place) => {
                place.insert(Starts::One(start));
                true
            }
            hash_map::Entry::Occupied(mut place) => match place.get_mut() {
                Starts::Many(all) => all.insert(start),
                Starts::One(there) if *there == start => false,
                Starts::One(there) => {
                    let both = BTreeSet::from([*there, start]);
                    place.insert(Starts::Many(both));
                    true
                }
            },
        };
        self.noted += usize::from(is_new);
    }

    fn of(&self, id: u64) -> Vec<i64> {
        match self.starts.get(&id) {
            None => Vec::new(),
            Some(Starts::One(start)) => vec![*start],
            Some(Starts::Many(all)) => all.iter().copied().collect(),
        }
    }

    fn sweep(&mut self, is_kept: impl Fn(i64) -> bool) {
        (self.gone, self.noted) = (0, 0);
        self.starts.retain(|_, starts| {
            let left = match starts {
                Starts::One(start) => usize::from(is_kept(*start)),
                Starts::Many(all) => {
                    all.retain(|start| is_kept(*start));
                    all.len()
                }
            };
            self.noted += left;
            left > 0
        });
    }
}

/// What is known of trades beyond what windows hold. All of it can be made anew from them.
#[derive(Debug, Default)]
pub struct Trades {
    /// Of windows that messages asked for, by row.
    logs: HashMap<u32, Log, RandomState>,
    /// Of keys that messages named, by row.
    indices: HashMap<u32, Index, RandomState>,
    hasher: RandomState,
}

/// A trade that a message is about.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub offset: i64,
    pub ts: i64,
    /// The offset of the record that cancelled it.
    pub cancelled_by: Option<i64>,
    pub value: Option<Vec<u8>>,
}

impl Engine {
    /// The watermark that judges a key's next tick; `None` before its clock has seen anything.
    pub fn watermark(&self, key: u32) -> Option<i64> {
        let state = &self.keys[key];
        if self.rules.by_partition {
            return (self.partition_max != LONG_AGO).then(|| self.partition_max - self.rules.lag);
        }
        state.is_known.then(|| state.max - self.rules.lag)
    }

    /// A trade has joined its windows.
    #[inline]
    pub fn note_trade(&mut self, key: u32, ts: i64, id: Option<&str>) {
        let (Some(trades), Some(id)) = (&self.trades, id) else { return };
        if trades.indices.contains_key(&key) {
            let hash = trades.hasher.hash_one(id);
            self.note_hash(key, ts, hash);
        }
    }

    fn note_hash(&mut self, key: u32, ts: i64, hash: u64) {
        let Some(last) = self.last_window_at(key, ts).map(|row| self.windows[row].start) else { return };
        if let Some(index) = self.trades.as_mut().and_then(|trades| trades.indices.get_mut(&key)) {
            index.note(hash, last);
        }
    }

    /// The last trade of a symbol with this id in the windows that can still be corrected.
    pub fn find_trade(&mut self, key: u32, id: &str) -> Option<Found> {
        let watermark = self.watermark(key).filter(|_| self.keys[key].is_known)?;
        self.index(key);
        let trades = self.trades.as_ref()?;
        let noted = trades.indices.get(&key)?.of(trades.hasher.hash_one(id));
        let mut found: Option<(u32, Trade)> = None;
        for start in noted {
            let Some(row) = self.window_from(key, start).filter(|row| self.is_correctable(*row, watermark)) else {
                continue;
            };
            let log = self.log(row)?;
            if let Some(trade) = log.by_id.get(id).map(|place| log.trades[*place]) {
                if found.is_none_or(|(_, best)| trade.offset > best.offset) {
                    found = Some((row, trade));
                }
            }
        }
        let (row, trade) = found?;
        let items = self.windows[row].items.as_ref()?;
        let value = own_value(items.values.get(trade.item)?).map(Into::into);
        Some(Found { offset: trade.offset, ts: trade.ts, cancelled_by: trade.cancelled_by, value })
    }

    /// Has a change, an item, follow a trade in every window that holds it and can still be corrected; these windows.
    pub fn change_trade(&mut self, key: u32, ts: i64, offset: i64, change: &[u8]) -> Vec<(i64, i64)> {
        let Some(watermark) = self.watermark(key) else { return Vec::new() };
        let mut holders = self.windows_at(key, ts);
        holders.retain(|row| {
            self.is_correctable(*row, watermark) && self.log(*row).is_some_and(|log| log.find(offset).is_some())
        });
        for row in &holders {
            if let Some(items) = &mut self.windows[*row].items {
                items.values.push(change.into());
                if self.rules.is_session {
                    items.orders.push(self.next_order);
                    self.next_order += 1;
                }
            }
            self.refold(*row);
            self.show_change(*row, Trigger::Correction);
        }
        holders.iter().map(|row| (self.windows[*row].start, self.windows[*row].end)).collect()
    }

    /// Not where a window is kept for nothing but the clock: its frame was final, or its input has ended.
    fn is_correctable(&self, row: u32, watermark: i64) -> bool {
        let window = &self.windows[row];
        window.end.saturating_add(self.rules.lateness) > watermark && !window.is(SETTLED)
    }

    /// The window that had this start when a trade joined it: of sessions the one that it is, or is part of by now.
    fn window_from(&self, key: u32, start: i64) -> Option<u32> {
        if self.rules.is_session {
            return self.window_around(key, start);
        }
        self.keys[key].windows.get(start)
    }

    /// The one window kept that contains a time, of windows that don't overlap.
    fn window_around(&self, key: u32, ts: i64) -> Option<u32> {
        let mut found = None;
        self.keys[key].windows.back_from(ts.saturating_add(1), |row| {
            found = (ts < self.windows[row].end).then_some(row);
            false
        });
        found
    }

    /// The last of the windows kept that trades of this time are in.
    fn last_window_at(&self, key: u32, ts: i64) -> Option<u32> {
        if self.rules.is_session || self.assigner.gives_one() {
            return self.window_around(key, ts);
        }
        let span = self.assigner.assign(ts);
        let mut starts = (0..i64::from(span.count)).rev().map(|number| span.start + number * span.step);
        starts.find_map(|start| self.keys[key].windows.get(start))
    }

    /// The windows kept that trades of this time are in, by start.
    fn windows_at(&self, key: u32, ts: i64) -> Vec<u32> {
        if self.rules.is_session || self.assigner.gives_one() {
            return self.window_around(key, ts).into_iter().collect();
        }
        let span = self.assigner.assign(ts);
        let starts = (0..i64::from(span.count)).map(|number| span.start + number * span.step);
        starts.filter_map(|start| self.keys[key].windows.get(start)).collect()
    }

    /// Learns where a key's trades are, where that is not known.
    fn index(&mut self, key: u32) {
        let Some(trades) = &mut self.trades else { return };
        if trades.indices.contains_key(&key) {
            return;
        }
        let mut index = Index::default();
        for row in self.keys[key].windows.rows() {
            let window = &self.windows[row];
            for item in window.items.iter().flat_map(|items| &items.values) {
                // In several windows: the last one is noted, too, as it comes last.
                if let Some(Item::Trade { id: Some(id), .. }) = read_item(item) {
                    index.note(trades.hasher.hash_one(id), window.start);
                }
            }
        }
        trades.indices.insert(key, index);
    }

    /// A window's trades, read to the end.
    fn log(&mut self, row: u32) -> Option<&Log> {
        let items = self.windows[row].items.as_ref()?;
        let log = self.trades.as_mut()?.logs.entry(row).or_default();
        log.read_on(&items.values)?;
        Some(log)
    }

    /// Computes a window anew from its trades as they are now. Its clock stays.
    fn refold(&mut self, row: u32) {
        if self.log(row).is_none() {
            return;
        }
        let Some(log) = self.trades.as_ref().and_then(|trades| trades.logs.get(&row)) else { return };
        let window = &mut self.windows[row];
        (window.bar, window.count) = (Bar::default(), 0);
        for trade in log.effective() {
            if self.rules.folds {
                window.bar.add(window.count == 0, trade.ts, &trade.price, &trade.size);
            }
            if window.count == 0 {
                (window.first, window.last) = (trade.ts, trade.ts);
            }
            window.first = window.first.min(trade.ts);
            window.last = window.last.max(trade.ts);
            window.count += 1;
        }
    }

    pub(crate) fn join_traded(&mut self, key: u32, span: &Span, entry: &Entry, watermark: i64) {
        let (mut start, mut end) = (span.start, span.end);
        for _ in 0..span.count {
            if let Some(row) = self.keys[key].windows.get(start) {
                self.begin_anew(row, entry.ts);
            }
            self.join_one(key, start, end, entry, watermark);
            start += span.step;
            end += span.step;
        }
    }

    /// A tick is about to join: a window all of whose trades were cancelled begins anew.
    pub(crate) fn begin_anew(&mut self, row: u32, ts: i64) {
        let window = &mut self.windows[row];
        if window.count == 0 {
            (window.first, window.last) = (ts, ts);
            window.bar = Bar::default();
        }
    }

    /// What is known of a session's trades, taken out before others join it.
    pub(crate) fn take_log(&mut self, row: u32) -> Option<Log> {
        self.trades.as_mut()?.logs.remove(&row)
    }

    /// After sessions were made one. `log`: of the first of them. Where that is the only one the session only begins
    /// earlier: what it holds is the same, in the same order.
    pub(crate) fn unite_trades(&mut self, row: u32, log: Option<Log>, is_one: bool) {
        let was_read = log.is_some();
        if !is_one {
            self.refold(row);
        }
        let Some(trades) = &mut self.trades else { return };
        match log {
            Some(log) if is_one => {
                trades.logs.insert(row, log);
            }
            _ if !was_read => {
                trades.logs.remove(&row);
            }
            _ => {}
        }
    }

    /// A window is gone.
    pub(crate) fn forget_trades(&mut self, row: u32) {
        let Some(trades) = &mut self.trades else { return };
        trades.logs.remove(&row);
        let window = &self.windows[row];
        let key = window.key;
        let Some(index) = trades.indices.get_mut(&key) else { return };
        index.gone += window.items.as_ref().map_or(0, |items| items.values.len());
        if index.gone > index.noted / 2 + FEW_GONE {
            let mut index = std::mem::take(index);
            index.sweep(|start| self.window_from(key, start).is_some());
            if let Some(trades) = &mut self.trades {
                trades.indices.insert(key, index);
            }
        }
    }

    /// A key is gone.
    pub(crate) fn forget_index(&mut self, key: u32) {
        if let Some(trades) = &mut self.trades {
            trades.indices.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packed(offset: i64, id: Option<&str>, price: f64, value: Option<&[u8]>) -> Box<[u8]> {
        let mut out = Vec::new();
        put_trade(&mut out, &Arrival { offset, id, ts: 7, price, size: 2.0, value });
        out.into()
    }

    fn change(kind: u64, target: i64, rest: &[f64]) -> Box<[u8]> {
        let mut out = Vec::new();
        put_array(&mut out, if rest.is_empty() { 3 } else { 6 });
        put_unsigned(&mut out, kind);
        put_integer(&mut out, 100);
        put_integer(&mut out, target);
        rest.iter().for_each(|number| put_float(&mut out, *number));
        if !rest.is_empty() {
            put_bin(&mut out, b"new");
        }
        out.into()
    }

    #[test]
    fn items_show_trades_as_they_are_now() {
        let mut items = vec![
            packed(1, Some("a"), 1.5, Some(b"one")),
            packed(2, Some("a"), 2.5, Some(b"two")),
            packed(3, None, 3.5, Some(b"three")),
        ];
        assert_eq!(shown_values(&items, 3), [b"one".as_slice(), b"two", b"three"]);
        items.push(change(CORRECT, 1, &[9.0, 1.0]));
        items.push(change(CANCEL, 3, &[]));
        assert_eq!(shown_values(&items, 2), [b"new".as_slice(), b"two"]);
        assert_eq!(check_trades(&items, 2), Some(()));
        items.push(change(CANCEL, 4, &[])); // of a trade that is not there
        assert_eq!(check_trades(&items, 1), None);
    }

    #[test]
    fn an_index_counts_what_it_holds() {
        let mut index = Index::default();
        for (id, start) in [(1, 10), (1, 20), (1, 20), (2, 10), (2, 10), (1, 30)] {
            index.note(id, start);
        }
        assert_eq!((index.noted, index.of(1), index.of(2), index.of(3)), (4, vec![10, 20, 30], vec![10], vec![]));
        index.sweep(|start| start != 10);
        assert_eq!((index.noted, index.of(1), index.of(2)), (2, vec![20, 30], vec![]));
    }

    proptest! {
        #[test]
        fn trades_are_read_as_written(offset in 0i64.., id in proptest::option::of(".{0,40}"), price in -1e300f64..1e300, value in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300))) {
            let item = packed(offset, id.as_deref(), price, value.as_deref());
            let expected = Item::Trade { offset, id: id.as_deref(), ts: 7, price, size: 2.0, value: value.as_deref() };
            prop_assert_eq!(read_item(&item), Some(expected));
        }

        #[test]
        fn any_items_are_taken_or_refused(items in proptest::collection::vec((0u8..10, proptest::collection::vec(any::<u8>(), 0..20)), 0..5)) {
            let items: Vec<Box<[u8]>> = items
                .into_iter()
                .map(|(length, mut rest)| { rest.insert(0, 0x90 | length); rest.into() })
                .collect();
            check_trades(&items, 1);
            shown_values(&items, 1);
        }
    }
}
