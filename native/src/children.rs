//! Children: the frames of another application, read and checked in one pass (`workers.core.formats.frames`).
//!
//! As with ticks, what this decoder accepts the plain one accepts with the same values; all else it leaves to that one.

use crate::assign::Assigner;
use crate::json::{Cursor, Shape};

/// A child as it is kept; times in nanoseconds. Without ticks, and not `filled`, it is empty: numbers are 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Child {
    pub start: i64,
    pub end: i64,
    pub rev: i64,
    pub count: i64,
    pub filled: bool,
    pub open: f64,
    pub high: f64,
    pub low: f64,
    pub close: f64,
    pub volume: f64,
    pub vwap: f64,
    pub first: i64,
    pub last: i64,
}

/// A child on its way into a window.
#[derive(Clone, Debug, PartialEq)]
pub struct ChildBar {
    pub child: Child,
    pub provisional: bool,
    /// What brought it out was a correction.
    pub is_correction: bool,
}

/// How frames are written, and which times they may have. Times are nanoseconds since the epoch.
#[derive(Clone, Debug)]
pub struct ChildFormat {
    /// Nanoseconds in one unit of `first_ts` and `last_ts`.
    pub unit_ns: i64,
    pub min_ns: i64,
    pub max_ns: i64,
}

const NS_PER_MS: i64 = 1_000_000;

const NAMES: [&[u8]; FIELDS] = [
    b"key",
    b"start",
    b"end",
    b"rev",
    b"status",
    b"trigger",
    b"open",
    b"high",
    b"low",
    b"close",
    b"volume",
    b"vwap",
    b"count",
    b"first_ts",
    b"last_ts",
    b"filled",
];
const FIELDS: usize = 16;
const KEY: usize = 0;
const START: usize = 1;
const END: usize = 2;
const REV: usize = 3;
const STATUS: usize = 4;
const TRIGGER: usize = 5;
const OPEN: usize = 6;
const HIGH: usize = 7;
const LOW: usize = 8;
const CLOSE: usize = 9;
const VOLUME: usize = 10;
const VWAP: usize = 11;
const COUNT: usize = 12;
const FIRST: usize = 13;
const LAST: usize = 14;
const FILLED: usize = 15;
const OTHER: usize = FIELDS;
const NEEDED: u32 = (1 << FILLED) - 1;

#[derive(Debug)]
pub struct ChildDecoder {
    format: ChildFormat,
    shape: Shape<usize>,
}

/// A frame's members as they stand; what is null is `None`.
#[derive(Default)]
struct Members {
    integers: [Option<i64>; FIELDS],
    numbers: [Option<f64>; FIELDS],
    provisional: bool,
    is_correction: bool,
    filled: bool,
}

impl ChildDecoder {
    pub fn new(format: ChildFormat) -> Self {
        Self { format, shape: Shape::default() }
    }

    /// The child in `value`; `None` where the plain decoder must look. `key` must stand in JSON as it is.
    pub fn decode(&mut self, key: &[u8], value: &[u8], assigner: &Assigner) -> Option<ChildBar> {
        let members = self.read(key, value)?;
        let child = self.child_of(&members)?;
        let fits = child.start >= self.format.min_ns && assigner.knows(child.start) && is_in_place(&child, assigner);
        let Members { provisional, is_correction, .. } = members;
        fits.then_some(ChildBar { child, provisional, is_correction })
    }

    fn read(&mut self, key: &[u8], value: &[u8]) -> Option<Members> {
        let mut cursor = Cursor::new(value);
        let mut found = Members::default();
        let mut seen = 0u32;
        let mut number = 0;
        loop {
            let field = self.shape.member(&mut cursor, number, field_of)?;
            if field == OTHER {
                cursor.skip_value(1)?;
            } else {
                if seen & 1 << field != 0 {
                    return None; // twice: the last one counts, says JSON
                }
                seen |= 1 << field;
                found.take(field, key, &mut cursor)?;
            }
            number += 1;
            if !cursor.has_more()? {
                break;
            }
        }
        (seen & NEEDED == NEEDED && cursor.is_whole()).then_some(found)
    }

    fn child_of(&self, found: &Members) -> Option<Child> {
        let (integers, numbers) = (&found.integers, &found.numbers);
        let (start, end) = (self.time(integers[START]?, NS_PER_MS)?, self.time(integers[END]?, NS_PER_MS)?);
        let length = end.checked_sub(start)?;
        let (rev, count) = (integers[REV]?, integers[COUNT]?);
        if length <= 0 || rev < 0 || !(0..=length).contains(&count) || (found.filled && count > 0) {
            return None;
        }
        let nothing = Child {
            start,
            end,
            rev,
            count,
            filled: found.filled,
            open: 0.0,
            high: 0.0,
            low: 0.0,
            close: 0.0,
            volume: 0.0,
            vwap: 0.0,
            first: 0,
            last: 0,
        };
        if count == 0 && !found.filled {
            return Some(nothing);
        }
        let (open, high, low, close) = (numbers[OPEN]?, numbers[HIGH]?, numbers[LOW]?, numbers[CLOSE]?);
        let child = Child { open, high, low, close, ..nothing };
        if count == 0 {
            return Some(child);
        }
        let unit = self.format.unit_ns;
        let (first, last) = (self.time(integers[FIRST]?, unit)?, self.time(integers[LAST]?, unit)?);
        // Both were floored to the unit when they were written.
        if start.div_euclid(unit) * unit > first || first > last || last >= end {
            return None;
        }
        let (volume, vwap) = averaged(numbers[VOLUME], numbers[VWAP])?;
        Some(Child { volume, vwap, first, last, ..child })
    }

    fn time(&self, value: i64, unit: i64) -> Option<i64> {
        value.checked_mul(unit).filter(|time| time.unsigned_abs() <= self.format.max_ns.unsigned_abs())
    }
}

fn field_of(name: &[u8]) -> usize {
    NAMES.iter().position(|each| *each == name).unwrap_or(OTHER)
}

impl Members {
    #[inline(always)]
    fn take(&mut self, field: usize, key: &[u8], cursor: &mut Cursor) -> Option<()> {
        match field {
            KEY => {
                cursor.expect(b'"')?;
                (cursor.take(key) && cursor.take(b"\"")).then_some(())
            }
            STATUS => {
                cursor.expect(b'"')?;
                match cursor.plain_string()? {
                    b"provisional" => self.provisional = true,
                    b"closed" | b"final" => {}
                    _ => return None,
                }
                Some(())
            }
            TRIGGER => {
                cursor.expect(b'"')?;
                self.is_correction = cursor.plain_string()? == b"correction";
                Some(())
            }
            FILLED => {
                self.filled = cursor.take(b"true");
                (self.filled || cursor.take(b"false")).then_some(())
            }
            START | END | REV | COUNT | FIRST | LAST => {
                if !cursor.take(b"null") {
                    self.integers[field] = Some(cursor.short_integer()?);
                }
                Some(())
            }
            _ => {
                if !cursor.take(b"null") {
                    self.numbers[field] = Some(cursor.number()?.value);
                }
                Some(())
            }
        }
    }
}

/// Volume and vwap. Null stands for what JSON can't hold, beyond the greatest float; both are then unknown.
fn averaged(volume: Option<f64>, vwap: Option<f64>) -> Option<(f64, f64)> {
    match (volume, vwap) {
        (None, _) => Some((f64::INFINITY, f64::NAN)),
        (Some(volume), _) if volume < 0.0 => None,
        (Some(volume), None) => Some((volume, if volume == 0.0 { 0.0 } else { f64::NAN })),
        (Some(volume), Some(vwap)) => Some((volume, vwap)),
    }
}

/// Whether the child lies in each of its parents whole, and all children like it would.
fn is_in_place(child: &Child, assigner: &Assigner) -> bool {
    let length = child.end - child.start;
    let divides = match assigner {
        Assigner::Tumbling { size, .. } => size % length == 0,
        Assigner::Hopping { size, hop, .. } => size % length == 0 && hop % length == 0,
        _ => true,
    };
    let parents = assigner.assign(child.start);
    divides && (parents.count == 0 || child.end <= parents.end) // the first of several ends first
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FRAME: &str = r#"{"key":"A","start":1000,"end":2000,"rev":0,"status":"closed","trigger":"watermark","open":1.5,"high":2,"low":1.0,"close":1.25,"volume":3.0,"vwap":1.3,"count":2,"first_ts":1000,"last_ts":1999}"#;

    fn decode(value: &str) -> Option<ChildBar> {
        let max_ns = i64::MAX - 1;
        let mut decoder = ChildDecoder::new(ChildFormat { unit_ns: NS_PER_MS, min_ns: -max_ns, max_ns });
        decoder.decode(b"A", value.as_bytes(), &Assigner::Tumbling { size: 60_000_000_000, offset: 0 })
    }

    #[test]
    fn a_frame_is_a_child() {
        let found = decode(FRAME).unwrap();
        assert!(!found.provisional && !found.is_correction);
        let child = found.child;
        assert_eq!((child.start, child.end, child.rev, child.count), (1_000_000_000, 2_000_000_000, 0, 2));
        assert_eq!((child.open, child.high, child.low, child.close), (1.5, 2.0, 1.0, 1.25));
        assert_eq!((child.volume, child.vwap, child.first, child.last), (3.0, 1.3, 1_000_000_000, 1_999_000_000));
    }

    #[test]
    fn what_is_unusual_is_left_to_the_plain_decoder() {
        for (part, other) in [
            (r#""key":"A""#, r#""key":"B""#),
            (r#""start":1000"#, r#""start":1000.0"#),
            (r#""start":1000"#, r#""start":null"#),
            (r#""end":2000"#, r#""end":1000"#),
            (r#""end":2000"#, r#""end":8000"#), // does not divide a minute
            (r#""rev":0"#, r#""rev":-1"#),
            (r#""closed""#, r#""open""#),
            (r#""count":2"#, r#""count":-2"#),
            (r#""count":2"#, r#""count":2000000000"#),
            (r#""count":2"#, r#""count":2,"filled":true"#),
            (r#""count":2"#, r#""count":2,"rev":1"#),
            (r#""open":1.5"#, r#""open":"1.5""#),
            (r#""open":1.5"#, r#""open":null"#),
            (r#""volume":3.0"#, r#""volume":-3.0"#),
            (r#""last_ts":1999"#, r#""last_ts":2000"#),
            (r#""first_ts":1000,"#, ""),
        ] {
            assert!(FRAME.contains(part));
            assert_eq!(decode(&FRAME.replace(part, other)), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn any_change_of_a_frame_is_decoded_or_left(at in 0usize..FRAME.len(), byte in any::<u8>(), more in any::<bool>()) {
            let mut value = FRAME.as_bytes().to_vec();
            if more { value.insert(at, byte) } else { value[at] = byte }
            let mut decoder = ChildDecoder::new(ChildFormat { unit_ns: 1, min_ns: i64::MIN, max_ns: i64::MAX });
            let assigner = Assigner::Hopping { size: 60_000_000_000, hop: 1_000_000_000, offset: 0 };
            decoder.decode(b"A", FRAME.as_bytes(), &assigner);
            decoder.decode(b"A", &value, &assigner);
        }
    }
}
