//! Frames: what a window looks like on the wire, as `workers.core.frames` writes it.

use crate::corrections::shown_values;
use crate::engine::Rules;
use crate::json::{put_float, put_integer, put_string};
use crate::sums::average;
use crate::window::{Bar, Window, FILLED};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Provisional,
    Closed,
    Final,
}

impl Status {
    pub const ALL: [Self; 3] = [Self::Provisional, Self::Closed, Self::Final];

    pub fn name(self) -> &'static str {
        match self {
            Self::Provisional => "provisional",
            Self::Closed => "closed",
            Self::Final => "final",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    Watermark,
    Late,
    Expiry,
    End,
    Idle,
    Timeout,
    Partial,
    Merged,
    Correction,
}

impl Trigger {
    pub const ALL: [Self; 9] = [
        Self::Watermark,
        Self::Late,
        Self::Expiry,
        Self::End,
        Self::Idle,
        Self::Timeout,
        Self::Partial,
        Self::Merged,
        Self::Correction,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Watermark => "watermark",
            Self::Late => "late",
            Self::Expiry => "expiry",
            Self::End => "end",
            Self::Idle => "idle",
            Self::Timeout => "timeout",
            Self::Partial => "partial",
            Self::Merged => "merged",
            Self::Correction => "correction",
        }
    }
}

const NS_PER_MS: i64 = 1_000_000;

/// Frames one after another: their keys and values end to end, and where each begins.
#[derive(Debug)]
pub struct Frames {
    pub text: Vec<u8>,
    /// Where a frame's key ends, and its value.
    pub cuts: Vec<(usize, usize)>,
    /// The record time of each in ms: the end of its window; of a provisional one, its last tick's time.
    pub timestamps: Vec<i64>,
    pub emitted: [[u64; Trigger::ALL.len()]; Status::ALL.len()],
    unit: i64,
}

impl Frames {
    /// `unit`: nanoseconds of the tick's unit.
    pub fn new(unit: i64) -> Self {
        Self { text: Vec::new(), cuts: Vec::new(), timestamps: Vec::new(), emitted: Default::default(), unit }
    }

    /// Appends the frame of a window as it is.
    /// `traded`: its items are trades and what was done to them.
    pub fn write(&mut self, key: &str, window: &Window, status: Status, trigger: Trigger, rules: &Rules, traded: bool) {
        self.emitted[status as usize][trigger as usize] += 1;
        let out = &mut self.text;
        out.extend_from_slice(key.as_bytes());
        let middle = out.len();
        let (start_ms, end_ms) = (window.start.div_euclid(NS_PER_MS), window.end.div_euclid(NS_PER_MS));
        out.extend_from_slice(b"{\"key\":");
        put_string(out, key);
        put_member(out, b",\"start\":", start_ms);
        put_member(out, b",\"end\":", end_ms);
        put_member(out, b",\"rev\":", i64::from(window.rev));
        out.extend_from_slice(b",\"status\":\"");
        out.extend_from_slice(status.name().as_bytes());
        out.extend_from_slice(b"\",\"trigger\":\"");
        out.extend_from_slice(trigger.name().as_bytes());
        out.push(b'"');
        if rules.folds {
            put_bar(
                out,
                (window.count > 0 || rules.fill_gaps > 0 || window.is(FILLED)).then_some(&window.bar),
                window.count,
            );
        }
        out.extend_from_slice(b",\"count\":");
        put_integer(out, window.count);
        if window.count > 0 {
            put_member(out, b",\"first_ts\":", window.first.div_euclid(self.unit));
            put_member(out, b",\"last_ts\":", window.last.div_euclid(self.unit));
        } else {
            out.extend_from_slice(b",\"first_ts\":null,\"last_ts\":null");
        }
        if let Some(items) = window.items.as_ref().filter(|_| rules.shows) {
            if traded {
                put_items(out, shown_values(&items.values, window.count).into_iter());
            } else {
                put_items(out, items.values.iter().map(|value| &**value));
            }
        }
        if window.count == 0 && (rules.fill_gaps > 0 || window.is(FILLED)) {
            out.extend_from_slice(b",\"filled\":true");
        }
        out.push(b'}');
        self.cuts.push((middle, out.len()));
        let time_ms = match status {
            Status::Provisional if window.count > 0 => window.last.div_euclid(NS_PER_MS),
            Status::Provisional => start_ms,
            _ => end_ms,
        };
        self.timestamps.push(time_ms.max(0)); // Kafka has no negative record timestamps
    }

    /// Takes all frames out.
    pub fn take(&mut self) -> Self {
        let unit = self.unit;
        std::mem::replace(self, Self::new(unit))
    }
}

#[inline(always)]
fn put_member(out: &mut Vec<u8>, name: &[u8], value: i64) {
    out.extend_from_slice(name);
    put_integer(out, value);
}

fn put_bar(out: &mut Vec<u8>, bar: Option<&Bar>, count: u64) {
    let Some(bar) = bar else {
        const NOTHING: &[u8] =
            b",\"open\":null,\"high\":null,\"low\":null,\"close\":null,\"volume\":null,\"vwap\":null";
        out.extend_from_slice(NOTHING);
        return;
    };
    let members: [(&[u8], f64); 5] = [
        (b",\"open\":", bar.open),
        (b",\"high\":", bar.high),
        (b",\"low\":", bar.low),
        (b",\"close\":", bar.close),
        (b",\"volume\":", bar.volume.value()),
    ];
    for (name, value) in members {
        out.extend_from_slice(name);
        put_float(out, value);
    }
    out.extend_from_slice(b",\"vwap\":");
    let average = if count > 0 { average(&bar.notional, &bar.volume, bar.low, bar.high) } else { None };
    match average {
        Some(value) => put_float(out, value),
        None => out.extend_from_slice(b"null"),
    }
}

fn put_items<'a>(out: &mut Vec<u8>, values: impl Iterator<Item = &'a [u8]>) {
    out.extend_from_slice(b",\"items\":[");
    for (number, value) in values.enumerate() {
        if number > 0 {
            out.push(b',');
        }
        out.extend_from_slice(value);
    }
    out.push(b']');
}
