//! Kafka's record format v2: the records of one batch, end to end, as they lie behind its header.
//!
//! A record is length, attributes, timestamp delta, offset delta, key, value and headers; integers are zigzag varints.
//! Bytes come from strangers: every length is checked against what is there before anything is read.

use crate::varint::{bytes, varint};

/// Bytes of the longest record that is read whole, as `workers.core.records.LARGEST_RECORD`.
pub const LARGEST_RECORD: usize = 1 << 24;

/// Of a longer one, so many bytes are looked at: `workers.core.records.EXCERPT`.
pub const EXCERPT: usize = 1 << 18;

/// What a batch's header says of its records.
#[derive(Clone, Copy, Debug)]
pub struct BatchHead {
    pub base_offset: i64,
    /// Behind its last record's.
    pub next_offset: i64,
    pub count: u32,
    /// Milliseconds since the epoch.
    pub first_timestamp: i64,
    /// The timestamp of every record, where the topic stamps them itself (log append time).
    pub fixed_timestamp: Option<i64>,
    /// Records below it are no longer wanted.
    pub start_offset: i64,
}

/// A record's parts, as slices of the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub offset: i64,
    /// Milliseconds since the epoch; -1 for none.
    pub timestamp: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    /// Packed, from their number on.
    pub headers: &'a [u8],
    /// Where it begins in the payload.
    pub position: usize,
}

/// A record with its headers, as its own owner.
pub type OwnRecord = (i64, i64, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(Vec<u8>, Option<Vec<u8>>)>);

/// The record that begins at `position` of a payload that was walked up to there, with its headers.
pub fn whole_record(payload: &[u8], position: usize, head: &BatchHead) -> Option<OwnRecord> {
    let (record, end) = read_record(payload, position, head)?;
    let body = &payload[..end];
    let mut at = varint(body, position)?.1 + 1;
    for _ in 0..2 {
        at = varint(body, at)?.1;
    }
    for _ in 0..2 {
        at = bytes(body, at)?.1;
    }
    let (number, mut at) = varint(body, at)?;
    let mut headers = Vec::new();
    for _ in 0..number {
        let (name, next) = bytes(body, at)?;
        let (content, next) = bytes(body, next)?;
        headers.push((name.unwrap_or_default().to_vec(), content.map(Into::into)));
        at = next;
    }
    Some((record.offset, record.timestamp, record.key.map(Into::into), record.value.map(Into::into), headers))
}

/// Why there is no record where one should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The payload is not what the format says.
    Corrupt,
    /// It ends within the record, which has so many bytes, or more.
    Cut(usize),
    /// The record has more bytes than are read at once.
    Large(usize),
}

/// Bytes that a record's length takes at most.
pub const LENGTH_BYTES: usize = 10;

/// What is wrong with the record that begins at `begin`, and that could not be read.
#[cold]
fn broken(payload: &[u8], begin: usize) -> Broken {
    let Some((length, body_begin)) = varint(payload, begin) else {
        let there = payload.len() - begin;
        return if there < LENGTH_BYTES { Broken::Cut(there + 1) } else { Broken::Corrupt };
    };
    let Ok(length) = usize::try_from(length) else { return Broken::Corrupt };
    if length > LARGEST_RECORD {
        return Broken::Large(length);
    }
    let end = body_begin + length;
    if end > payload.len() {
        return Broken::Cut(end - begin);
    }
    Broken::Corrupt
}

/// What is read of a record that is too long: offset, timestamp, key and the begin of its value, each where it is within
/// the first `EXCERPT` bytes; and where the record's body begins. `payload` ends there, or with the record.
pub fn excerpt(payload: &[u8], begin: usize, head: &BatchHead) -> Option<(OwnRecord, usize)> {
    let (_, body_begin) = varint(payload, begin)?;
    let body = &payload[..payload.len().min(body_begin + EXCERPT)];
    let (delta_ms, position) = varint(body, body_begin + 1)?;
    let (offset_delta, position) = varint(body, position)?;
    let offset = head.base_offset.wrapping_add(offset_delta);
    let timestamp = head.fixed_timestamp.unwrap_or(head.first_timestamp.wrapping_add(delta_ms));
    let (key, position) = match bytes(body, position) {
        Some((key, position)) => (key.map(<[u8]>::to_vec), Some(position)),
        None => (None, None),
    };
    let value = position.and_then(|position| varint(body, position)).filter(|(length, _)| *length >= 0);
    let value = value.map(|(length, position)| {
        let end = position.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
        body[position..end.min(body.len())].to_vec()
    });
    Some(((offset, timestamp, key, value, Vec::new()), body_begin))
}

/// The records of a payload, in order. Ends after the first error, and with one where bytes are left over.
pub struct Records<'a> {
    payload: &'a [u8],
    position: usize,
    left: u32,
    head: BatchHead,
}

impl<'a> Records<'a> {
    pub fn new(payload: &'a [u8], head: BatchHead) -> Self {
        Self::resume(payload, head, 0, head.count)
    }

    /// Goes on where `place` said.
    pub fn resume(payload: &'a [u8], head: BatchHead, position: usize, left: u32) -> Self {
        Self { payload, position, left, head }
    }

    /// Where the next record begins, and how many are left.
    pub fn place(&self) -> (usize, u32) {
        (self.position, self.left)
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, Broken>;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            if self.position == self.payload.len() {
                return None;
            }
            self.position = self.payload.len();
            return Some(Err(Broken::Corrupt));
        }
        match read_record(self.payload, self.position, &self.head) {
            Some((record, end)) => {
                self.left -= 1;
                self.position = end;
                Some(Ok(record))
            }
            None => {
                let why = broken(self.payload, self.position);
                self.left = 0;
                self.position = self.payload.len();
                Some(Err(why))
            }
        }
    }
}

#[inline(always)]
fn read_record<'a>(payload: &'a [u8], begin: usize, head: &BatchHead) -> Option<(Record<'a>, usize)> {
    let (length, body_begin) = varint(payload, begin)?;
    let length = usize::try_from(length).ok().filter(|length| *length <= LARGEST_RECORD)?;
    let end = body_begin + length;
    let body = payload.get(..end)?; // what is read below can't leave the record
    let (delta_ms, position) = varint(body, body_begin + 1)?; // behind the attributes
    let (offset_delta, position) = varint(body, position)?;
    let (key, position) = bytes(body, position)?;
    let (value, position) = bytes(body, position)?;
    let headers_begin = position;
    let (headers, mut position) = varint(body, position)?;
    if headers != 0 {
        for _ in 0..headers {
            position = bytes(body, position)?.1;
            position = bytes(body, position)?.1;
        }
    }
    if position != end || headers < 0 {
        return None;
    }
    let timestamp = match head.fixed_timestamp {
        Some(fixed) => fixed,
        None => head.first_timestamp.wrapping_add(delta_ms), // as 64-bit arithmetic has it
    };
    let offset = head.base_offset.wrapping_add(offset_delta);
    let headers = &body[headers_begin..];
    Some((Record { offset, timestamp, key, value, headers, position: begin }, end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::varint::{put_bytes, put_varint, varint_len};
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    /// Appends a record as it stands in a batch: `offset_delta` and `delta_ms` are those from the batch's first.
    fn put_record(
        out: &mut Vec<u8>,
        offset_delta: i64,
        delta_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&[u8], &[u8])],
    ) {
        let part = |part: Option<&[u8]>| part.map_or(1, |bytes| varint_len(bytes.len() as i64) + bytes.len());
        let mut length = 1 + varint_len(delta_ms) + varint_len(offset_delta) + part(key) + part(value);
        length += varint_len(headers.len() as i64);
        length += headers.iter().map(|(name, content)| part(Some(name)) + part(Some(content))).sum::<usize>();
        put_varint(out, length as i64);
        out.push(0);
        put_varint(out, delta_ms);
        put_varint(out, offset_delta);
        put_bytes(out, key);
        put_bytes(out, value);
        put_varint(out, headers.len() as i64);
        for (name, content) in headers {
            put_bytes(out, Some(name));
            put_bytes(out, Some(content));
        }
    }

    #[test]
    fn of_a_record_that_is_too_long_an_excerpt_is_read() {
        let mut payload = Vec::new();
        put_record(&mut payload, 7, 5, Some(b"key"), Some(&vec![b'x'; LARGEST_RECORD]), &[(b"name", b"content")]);
        let Some(Err(Broken::Large(length))) = Records::new(&payload, head(1)).next() else { panic!() };
        let (found, body_begin) = excerpt(&payload, 0, &head(1)).unwrap();
        assert_eq!(body_begin + length, payload.len());
        assert_eq!((found.0, found.1, found.2.as_deref()), (1_007, 1_700_000_000_005, Some(&b"key"[..])));
        let value = found.3.unwrap();
        assert!(value.len() > EXCERPT - 50 && value.len() < EXCERPT);
        payload.truncate(body_begin + 5);
        assert_eq!(excerpt(&payload, 0, &head(1)).unwrap().0 .2, None);
    }

    type Parts = (i64, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(Vec<u8>, Vec<u8>)>);

    fn head(count: usize) -> BatchHead {
        BatchHead {
            base_offset: 1_000,
            next_offset: 1_000 + count as i64,
            count: count as u32,
            first_timestamp: 1_700_000_000_000,
            fixed_timestamp: None,
            start_offset: 1_000,
        }
    }

    fn parts() -> impl Strategy<Value = Parts> {
        let blob = || vec(any::<u8>(), 0..40);
        (-1_000i64..100_000, option::of(blob()), option::of(blob()), vec((blob(), blob()), 0..3))
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(records in vec(parts(), 0..20)) {
            let mut payload = Vec::new();
            for (number, (delta, key, value, headers)) in records.iter().enumerate() {
                let headers: Vec<_> = headers.iter().map(|(name, content)| (&name[..], &content[..])).collect();
                put_record(&mut payload, number as i64, *delta, key.as_deref(), value.as_deref(), &headers);
            }
            let found: Result<Vec<_>, _> = Records::new(&payload, head(records.len())).collect();
            let found = found.unwrap();
            prop_assert_eq!(found.len(), records.len());
            for (number, (record, (delta, key, value, written))) in found.iter().zip(&records).enumerate() {
                prop_assert_eq!(record.offset, 1_000 + number as i64);
                prop_assert_eq!(record.timestamp, 1_700_000_000_000 + delta);
                prop_assert_eq!(record.key, key.as_deref());
                prop_assert_eq!(record.value, value.as_deref());
                let whole = whole_record(&payload, record.position, &head(records.len())).unwrap();
                prop_assert_eq!((whole.0, whole.1), (record.offset, record.timestamp));
                prop_assert_eq!((whole.2.as_deref(), whole.3.as_deref()), (record.key, record.value));
                let headers: Vec<_> = whole.4.into_iter().map(|(name, content)| (name, content.unwrap())).collect();
                prop_assert_eq!(&headers, written);
            }
        }

        #[test]
        fn what_is_cut_short_says_how_much_is_missing(value in vec(any::<u8>(), 0..300), cut in 1usize..300) {
            let mut payload = Vec::new();
            put_record(&mut payload, 0, 5, Some(b"key"), Some(&value), &[]);
            let there = payload.len() - cut.min(payload.len());
            match Records::new(&payload[..there], head(1)).next() {
                Some(Err(Broken::Cut(wanted))) => prop_assert!(there < wanted && wanted <= payload.len()),
                other => prop_assert!(false, "{:?}", other),
            }
        }

        #[test]
        fn any_bytes_end_in_an_error_or_in_records(payload in vec(any::<u8>(), 0..200), count in 0u32..50) {
            let found: Vec<_> = Records::new(&payload, head(count as usize)).collect();
            prop_assert!(found.len() <= count as usize + 1);
        }
    }
}
