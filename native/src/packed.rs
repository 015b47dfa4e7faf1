//! Records to be written, as one text: keys and values end to end, where each ends, and what else a record has.
//!
//! What `workers.core.frames.OutRecord` says of one record, without an object for each. Copies and parts share the text,
//! and joining joins texts without copying them.

use std::ops::Range;
use std::sync::Arc;

use crate::frames::Frames;
use crate::ledger::Late;
use crate::snapshot::Written;
use crate::varint::{put_bytes, put_varint};

/// The header that says why a record is in a ledger, `workers.core.ledger.REASON_HEADER`.
const REASON_HEADER: &str = "workers.reason";
/// Sets of headers that a new one is compared with: ledgers have few, and strangers' must not make it slow.
const SETS_COMPARED: usize = 16;
/// What `OutRecord.size` adds for a header, generously: the lengths before its name and its value.
const HEADER_OVERHEAD: usize = 16;
const NO_TIMESTAMP: i64 = i64::MIN;
/// A text of so many bytes is copied where it is joined to another: many short ones would cost more than that.
const SHORT_BYTES: usize = 16 * 1024;

pub type Headers = Vec<(String, Option<Vec<u8>>)>;

/// The headers that records have in common.
#[derive(Clone, Debug)]
struct HeaderSet {
    headers: Headers,
    /// Their number and themselves, as they stand in a record.
    wire: Vec<u8>,
    size: usize,
}

impl HeaderSet {
    fn new(headers: Headers) -> Self {
        let mut wire = Vec::new();
        let mut size = 0;
        put_varint(&mut wire, headers.len() as i64);
        for (name, value) in &headers {
            put_bytes(&mut wire, Some(name.as_bytes()));
            put_bytes(&mut wire, value.as_deref());
            size += name.len() + value.as_ref().map_or(0, Vec::len) + HEADER_OVERHEAD;
        }
        Self { headers, wire, size }
    }
}

#[derive(Clone, Copy, Debug)]
struct Row {
    key_end: usize,
    end: usize,
    timestamp: i64,
    headers: u32,
    has_key: bool,
    has_value: bool,
}

/// A record as it lies in the text. `timestamp`: ms since the epoch; none leaves the time of sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub timestamp: Option<i64>,
    pub headers: &'a [(String, Option<Vec<u8>>)],
    pub headers_wire: &'a [u8],
}

#[derive(Clone, Debug)]
struct Packed {
    text: Vec<u8>,
    rows: Vec<Row>,
    /// Distinct, and none of them the first.
    sets: Vec<HeaderSet>,
}

impl Packed {
    fn new(text: Vec<u8>, rows: Vec<Row>) -> Self {
        Self { text, rows, sets: vec![HeaderSet::new(Vec::new())] }
    }

    fn begin_of(&self, row: usize) -> usize {
        row.checked_sub(1).map_or(0, |before| self.rows[before].end)
    }

    fn entry(&self, number: usize) -> Entry<'_> {
        let row = &self.rows[number];
        let set = &self.sets[row.headers as usize];
        Entry {
            key: row.has_key.then(|| &self.text[self.begin_of(number)..row.key_end]),
            value: row.has_value.then(|| &self.text[row.key_end..row.end]),
            timestamp: (row.timestamp != NO_TIMESTAMP).then_some(row.timestamp),
            headers: &set.headers,
            headers_wire: &set.wire,
        }
    }

    fn size(&self, number: usize) -> usize {
        let row = &self.rows[number];
        row.end - self.begin_of(number) + self.sets[row.headers as usize].size
    }

    fn intern(&mut self, headers: &[(String, Option<Vec<u8>>)]) -> u32 {
        if headers.is_empty() {
            return 0;
        }
        let recent = self.sets.len().saturating_sub(SETS_COMPARED);
        let known = self.sets[recent..].iter().position(|set| set.headers == headers);
        known.map_or_else(
            || {
                self.sets.push(HeaderSet::new(headers.to_vec()));
                self.sets.len() - 1
            },
            |place| recent + place,
        ) as u32
    }

    fn push(&mut self, key: Option<&[u8]>, value: Option<&[u8]>, timestamp: Option<i64>, headers: &Headers) {
        let headers = self.intern(headers);
        self.text.extend_from_slice(key.unwrap_or_default());
        let key_end = self.text.len();
        self.text.extend_from_slice(value.unwrap_or_default());
        let end = self.text.len();
        let timestamp = timestamp.unwrap_or(NO_TIMESTAMP);
        self.rows.push(Row { key_end, end, timestamp, headers, has_key: key.is_some(), has_value: value.is_some() });
    }

    fn append(&mut self, more: &Self, range: Range<usize>) {
        let (begin, end) = (more.begin_of(range.start), more.begin_of(range.end));
        let at = self.text.len();
        self.text.extend_from_slice(&more.text[begin..end]);
        let sets: Vec<u32> = more.sets.iter().map(|set| self.intern(&set.headers)).collect();
        self.rows.extend(more.rows[range].iter().map(|row| Row {
            key_end: row.key_end - begin + at,
            end: row.end - begin + at,
            headers: sets[row.headers as usize],
            ..*row
        }));
    }
}

/// Some records of a text, one after another.
#[derive(Clone, Debug)]
struct Stretch {
    packed: Arc<Packed>,
    range: Range<usize>,
    /// Records of the stretches before.
    before: usize,
}

impl Stretch {
    fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        self.range.clone().map(|number| self.packed.entry(number))
    }

    fn sizes(&self) -> impl Iterator<Item = usize> + '_ {
        self.range.clone().map(|number| self.packed.size(number))
    }
}

/// Records in order: stretches of texts, each of which others may share.
#[derive(Clone, Debug, Default)]
pub struct Records {
    stretches: Vec<Stretch>,
    len: usize,
}

impl From<Frames> for Records {
    fn from(frames: Frames) -> Self {
        let rows = frames.cuts.iter().zip(&frames.timestamps);
        let rows = rows.map(|((key_end, end), timestamp)| Row {
            key_end: *key_end,
            end: *end,
            timestamp: *timestamp,
            headers: 0,
            has_key: true,
            has_value: true,
        });
        let rows = rows.collect();
        Self::of(Packed::new(frames.text, rows))
    }
}

impl From<Late> for Records {
    fn from(late: Late) -> Self {
        let mut packed = Packed::new(late.text, Vec::with_capacity(late.cuts.len()));
        let mut last = ("", 0);
        for ((key_end, end), reason) in late.cuts.into_iter().zip(late.reasons) {
            if last.0 != reason {
                last = (reason, packed.intern(&[(REASON_HEADER.to_owned(), Some(reason.as_bytes().to_vec()))]));
            }
            let timestamp = NO_TIMESTAMP;
            packed.rows.push(Row { key_end, end, timestamp, headers: last.1, has_key: true, has_value: true });
        }
        Self::of(packed)
    }
}

impl From<Written> for Records {
    fn from(written: Written) -> Self {
        let rows = written.cuts.into_iter().map(|(key_end, end)| Row {
            key_end,
            end: end.unwrap_or(key_end),
            timestamp: NO_TIMESTAMP,
            headers: 0,
            has_key: true,
            has_value: end.is_some(),
        });
        let rows = rows.collect();
        Self::of(Packed::new(written.text, rows))
    }
}

impl Records {
    fn of(packed: Packed) -> Self {
        let mut new = Self::default();
        let range = 0..packed.rows.len();
        new.put(Arc::new(packed), range);
        new
    }

    fn put(&mut self, packed: Arc<Packed>, range: Range<usize>) {
        let (len, before) = (range.len(), self.len);
        if len > 0 {
            self.stretches.push(Stretch { packed, range, before });
            self.len += len;
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A record by its number, which must be below `len()`.
    pub fn entry(&self, number: usize) -> Entry<'_> {
        let place = self.stretches.partition_point(|stretch| stretch.before <= number) - 1;
        let stretch = &self.stretches[place];
        stretch.packed.entry(stretch.range.start + number - stretch.before)
    }

    pub fn iter(&self) -> impl Iterator<Item = Entry<'_>> {
        self.stretches.iter().flat_map(Stretch::entries)
    }

    fn sizes(&self) -> impl Iterator<Item = usize> + '_ {
        self.stretches.iter().flat_map(Stretch::sizes)
    }

    /// Bytes of keys, values and headers.
    pub fn size(&self) -> usize {
        self.sizes().sum()
    }

    /// The bytes of the largest; 0 where there is none.
    pub fn largest(&self) -> usize {
        self.sizes().max().unwrap_or(0)
    }

    /// The lowest timestamp, of those that have one.
    pub fn oldest(&self) -> Option<i64> {
        self.iter().filter_map(|entry| entry.timestamp).min()
    }

    /// Some of them, which share the text.
    pub fn some(&self, range: Range<usize>) -> Self {
        let mut found = Self::default();
        for stretch in &self.stretches {
            let begin = range.start.max(stretch.before);
            let end = range.end.min(stretch.before + stretch.range.len());
            if begin < end {
                let first = stretch.range.start + begin - stretch.before;
                found.put(Arc::clone(&stretch.packed), first..first + end - begin);
            }
        }
        found
    }

    /// All of them in portions, each closed by the record with which it comes to so many bytes.
    pub fn portions(&self, bytes: usize) -> Vec<Self> {
        let mut found = Vec::new();
        let (mut begin, mut size) = (0, 0);
        for (number, more) in self.sizes().enumerate() {
            size += more;
            if size >= bytes || number + 1 == self.len {
                found.push(self.some(begin..number + 1));
                (begin, size) = (number + 1, 0);
            }
        }
        found
    }

    pub fn push(&mut self, key: Option<&[u8]>, value: Option<&[u8]>, timestamp: Option<i64>, headers: &Headers) {
        match self.last_of_its_own() {
            Some(packed) => {
                packed.push(key, value, timestamp, headers);
                self.grew(1);
            }
            None => {
                let mut packed = Packed::new(Vec::new(), Vec::new());
                packed.push(key, value, timestamp, headers);
                self.put(Arc::new(packed), 0..1);
            }
        }
    }

    /// Appends all of others; texts are shared, but for short ones.
    pub fn extend(&mut self, more: &Self) {
        for Stretch { packed, range, .. } in &more.stretches {
            let is_short = packed.begin_of(range.end) - packed.begin_of(range.start) <= SHORT_BYTES;
            match self.last_of_its_own().filter(|_| is_short) {
                Some(last) => {
                    last.append(packed, range.clone());
                    self.grew(range.len());
                }
                None => self.put(Arc::clone(packed), range.clone()),
            }
        }
    }

    /// The last text, where nobody shares it and it goes no further.
    fn last_of_its_own(&mut self) -> Option<&mut Packed> {
        let Stretch { packed, range, .. } = self.stretches.last_mut()?;
        let end = range.end;
        Arc::get_mut(packed).filter(|packed| packed.rows.len() == end)
    }

    fn grew(&mut self, records: usize) {
        self.len += records;
        if let Some(last) = self.stretches.last_mut() {
            last.range.end += records;
        }
    }
}

impl PartialEq for Records {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(numbers: Range<u8>) -> Records {
        let mut records = Records::default();
        for number in numbers {
            let reason = vec![number % 2];
            let headers = vec![("why".to_owned(), Some(reason))];
            records.push(Some(&[number]), (number % 3 > 0).then_some(&[number; 2]), Some(i64::from(number)), &headers);
        }
        records
    }

    #[test]
    fn what_is_appended_to_a_shared_text_is_not_seen_by_the_others() {
        let mut mine = Records::default();
        let first = some(0..3);
        mine.extend(&first);
        mine.extend(&some(3..5));
        assert_eq!((first.len(), mine.len()), (3, 5));
        assert!(mine == some(0..5));
        let mut middle = mine.some(1..4);
        middle.extend(&some(7..9));
        middle.push(Some(b"k"), None, None, &Vec::new());
        assert!(mine == some(0..5));
        assert!(middle.some(0..3) == some(1..4) && middle.some(3..5) == some(7..9));
        assert_eq!(middle.entry(5).key, Some(&b"k"[..]));
    }

    #[test]
    fn texts_are_shared_and_short_ones_joined() {
        let mut long = Records::default();
        long.push(Some(b"k"), Some(&[7; SHORT_BYTES]), None, &Vec::new());
        let mut mine = Records::default();
        for _ in 0..3 {
            mine.extend(&long);
            mine.extend(&some(0..2));
            mine.extend(&some(2..4));
        }
        assert_eq!(mine.stretches.len(), 6);
        assert!(Arc::ptr_eq(&mine.stretches[0].packed, &long.stretches[0].packed));
        assert!(mine.some(6..10) == some(0..4));
        assert_eq!(mine.len(), mine.iter().count());
    }

    #[test]
    fn portions_are_all_records_in_order() {
        let records = some(0..10);
        for bytes in [1, 30, 1 << 20] {
            let mut joined = Records::default();
            records.portions(bytes).iter().for_each(|portion| joined.extend(portion));
            assert!(joined == records);
        }
        assert_eq!(records.portions(1).len(), 10);
        assert_eq!(records.portions(1 << 20).len(), 1);
        assert!(Records::default().portions(1).is_empty());
    }

    #[test]
    fn sets_of_headers_are_kept_once() {
        let mut records = some(0..20);
        records.extend(&some(20..40));
        assert_eq!(records.stretches.len(), 1, "the second was short");
        assert_eq!(records.stretches[0].packed.sets.len(), 3);
        assert_eq!(records.size(), 40 + 2 * (0..40).filter(|number| number % 3 > 0).count() + 40 * (3 + 1 + 16));
        assert_eq!(records.largest(), 1 + 2 + 3 + 1 + 16);
        assert_eq!(records.oldest(), Some(0));
    }
}
