//! What is kept of a window and of its key.

use compact_str::CompactString;

use crate::due::Due;
use crate::order::Order;
use crate::resample::Contents;
use crate::sums::{Amount, Sum};

pub const LONG_AGO: i64 = i64::MIN;

/// Open, high, low, close, volume and notional, with the event times that opened and closed them.
#[derive(Clone, Debug, Default)]
pub struct Bar {
    pub open_ns: i64,
    pub close_ns: i64,
    pub open: f64,
    pub high: f64,
    pub low: f64,
    pub close: f64,
    pub volume: Sum,
    pub notional: Sum,
}

impl Bar {
    /// Takes a tick in. Open and close go by event time; at equal times the first opens and the last closes.
    #[inline]
    pub fn add(&mut self, is_first: bool, ts: i64, price: &Amount, size: &Amount) {
        let value = price.value;
        if is_first {
            (self.open, self.high, self.low, self.close) = (value, value, value, value);
            (self.open_ns, self.close_ns) = (ts, ts);
        } else {
            if ts < self.open_ns {
                (self.open, self.open_ns) = (value, ts);
            }
            if ts >= self.close_ns {
                (self.close, self.close_ns) = (value, ts);
            }
            if value > self.high {
                self.high = value;
            }
            if value < self.low {
                self.low = value;
            }
        }
        self.volume.add(size);
        self.notional.add_product(price, size);
    }

    /// Takes in a bar all of whose ticks came after.
    pub fn merge(&mut self, later: &Bar) {
        self.close = later.close;
        self.close_ns = later.close_ns;
        if later.high > self.high {
            self.high = later.high;
        }
        if later.low < self.low {
            self.low = later.low;
        }
        self.volume.merge(&later.volume);
        self.notional.merge(&later.notional);
    }

    /// A bar without ticks that follows this one: its close, and no volume.
    pub fn empty_after(&self) -> Self {
        let close = self.close;
        Self { open: close, high: close, low: close, close, ..Self::default() }
    }
}

/// The ticks of a window as they came, and how many of them the changelog holds.
#[derive(Debug, Default)]
pub struct Items {
    pub values: Vec<Box<[u8]>>,
    /// Where windows merge: of each item, its place among all.
    pub orders: Vec<u64>,
    pub stored: usize,
    pub segments: u32,
}

pub const CLOSED: u16 = 1;
pub const CHANGED: u16 = 1 << 1;
pub const SETTLED: u16 = 1 << 2;
pub const OVERDUE: u16 = 1 << 3;
pub const SHOWN: u16 = 1 << 4;
pub const DROPPED: u16 = 1 << 5;
/// The changelog holds a record of it.
pub const STORED: u16 = 1 << 6;
pub const IN_CHANGES: u16 = 1 << 7;
pub const IN_IDLE: u16 = 1 << 8;
pub const IN_UNFLUSHED: u16 = 1 << 9;
/// A frame of it shows the price before, for there are no ticks.
pub const FILLED: u16 = 1 << 10;

#[derive(Debug)]
pub struct Window {
    pub bar: Bar,
    pub start: i64,
    pub end: i64,
    pub first: i64,
    pub last: i64,
    /// The greatest time that the key's clock was set to through it.
    pub clock: i64,
    /// The watermark at which it is looked at next.
    pub due: i64,
    pub count: u64,
    /// Tells it from others that had its row before.
    pub serial: u64,
    pub items: Option<Box<Items>>,
    /// Where bars are made of bars: its children.
    pub contents: Option<Box<Contents>>,
    pub key: u32,
    pub rev: u32,
    /// Where it stands in the list of changes.
    pub change: u32,
    pub flags: u16,
}

impl Window {
    #[inline(always)]
    pub fn is(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

#[derive(Debug)]
pub struct Key {
    pub name: CompactString,
    pub hash: u64,
    pub max: i64,
    pub windows: Order,
    /// (watermark that acts, start), for a clock of its own.
    pub due: Due,
    /// Tells it from others that had its row before.
    pub serial: u64,
    /// Of its newest window, where gaps are filled.
    pub newest: i64,
    /// The window that took its last tick.
    pub recent: u32,
    /// Window rows that refer to it, those dropped and not yet taken as changes included.
    pub rows: u32,
    /// Has a clock.
    pub is_known: bool,
    pub is_misrouted: bool,
    /// Its name stands in JSON as it is.
    pub is_plain: bool,
}
