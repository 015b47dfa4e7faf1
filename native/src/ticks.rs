//! Ticks: the four fields of a record's JSON object, read and checked in one pass.
//!
//! What this decoder accepts, the plain decoder (`workers.core.ticks`) accepts with the same values; everything else it
//! leaves to that one, which has the last word and words for it. Most payloads repeat the text between their values from
//! record to record, so each member's name is first compared with what stood there in the record before.

use crate::json::{Cursor, Shape};
use crate::sums::Amount;

/// How a tick is written, and which times it may have. Times are nanoseconds since the epoch.
#[derive(Clone, Debug)]
pub struct TickFormat {
    pub symbol: Box<[u8]>,
    pub ts: Box<[u8]>,
    pub price: Box<[u8]>,
    pub size: Box<[u8]>,
    /// Nanoseconds in one unit of an integer timestamp.
    pub unit_ns: i64,
    pub min_ns: i64,
    pub max_ns: i64,
    /// How far a time may be ahead of its record's own.
    pub max_future_skew_ns: i64,
    /// Where trades can be corrected.
    pub messages: Option<MessageFormat>,
}

impl TickFormat {
    fn field_of(&self, name: &[u8]) -> Field {
        if *name == *self.symbol {
            Field::Symbol
        } else if *name == *self.ts {
            Field::Ts
        } else if *name == *self.price {
            Field::Price
        } else if *name == *self.size {
            Field::Size
        } else {
            Field::Other
        }
    }
}

/// How messages about trades are told from trades, and trades from one another.
#[derive(Clone, Debug)]
pub struct MessageFormat {
    /// The field that says what a message is.
    pub kind: Box<[u8]>,
    /// What it then says where it is no trade.
    pub kinds: Vec<Box<[u8]>>,
    /// The field of a trade's id.
    pub id: Box<[u8]>,
}

/// A tick; its symbol is the record's key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tick {
    pub ts_ns: i64,
    pub price: Amount,
    pub size: Amount,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Symbol,
    Ts,
    Price,
    Size,
    Other,
}

/// Who wants to know where the values of more members stand than those of the four fields. A decoder must always be
/// given the same one.
pub trait Watch {
    /// The place of a member of that name; `None` where nobody wants it.
    fn place(&self, name: &[u8]) -> Option<usize>;
    /// Where its value stands; `None` where the plain decoder must look.
    fn note(&mut self, place: usize, begin: usize, end: usize) -> Option<()>;
}

/// Nobody.
impl Watch for () {
    #[inline(always)]
    fn place(&self, _: &[u8]) -> Option<usize> {
        None
    }

    #[inline(always)]
    fn note(&mut self, _: usize, _: usize, _: usize) -> Option<()> {
        Some(())
    }
}

const ALL_FIELDS: u8 = 0b1111;

#[derive(Debug)]
pub struct Decoder {
    format: TickFormat,
    shape: Shape<(Field, Option<usize>)>,
}

impl Decoder {
    pub fn new(format: TickFormat) -> Self {
        Self { format, shape: Shape::default() }
    }

    /// The tick in `value`; `None` where the plain decoder must look. `key` must stand in JSON as it is. `timestamp_ms` is
    /// the record's own time, -1 for none.
    #[inline]
    pub fn decode(&mut self, key: &[u8], value: &[u8], timestamp_ms: i64) -> Option<Tick> {
        self.decode_watched(key, value, timestamp_ms, &mut ())
    }

    /// The trade in `value`, and its id; `None` also for a message about a trade.
    #[inline]
    pub fn decode_trade<'v>(
        &mut self,
        key: &[u8],
        value: &'v [u8],
        timestamp_ms: i64,
    ) -> Option<(Tick, Option<&'v str>)> {
        let messages = self.format.messages.take()?; // it is asked while the decoder learns members
        let mut telling = Telling { messages: &messages, spans: [(0, 0); 2] };
        let tick = self.decode_watched(key, value, timestamp_ms, &mut telling);
        let [kind, id] = telling.spans;
        let kind = tick.and_then(|_| text_of(&value[kind.0..kind.1]));
        let is_message =
            kind.as_ref().and_then(Told::text).is_some_and(|kind| messages.kinds.iter().any(|each| **each == *kind));
        self.format.messages = Some(messages);
        if kind.is_none() || is_message {
            return None;
        }
        match text_of(&value[id.0..id.1])? {
            Told::Text(text) => Some((tick?, Some(std::str::from_utf8(text).ok()?))),
            Told::Nothing => Some((tick?, None)),
            Told::Other => None, // an id that is none
        }
    }

    /// `decode`, for a `watch` that is told where more values stand.
    #[inline]
    pub fn decode_watched<W: Watch>(
        &mut self,
        key: &[u8],
        value: &[u8],
        timestamp_ms: i64,
        watch: &mut W,
    ) -> Option<Tick> {
        let mut cursor = Cursor::new(value);
        let (mut ts, mut price, mut size) = (None, None, None);
        let mut seen = 0u8;
        let mut number = 0;
        loop {
            let means = |name: &[u8]| (self.format.field_of(name), watch.place(name));
            let (field, watched) = self.shape.member(&mut cursor, number, means)?;
            let begin = cursor.at;
            if field != Field::Other {
                let bit = 1 << field as u8;
                if seen & bit != 0 {
                    return None; // twice: the last one counts, says JSON
                }
                seen |= bit;
            }
            match field {
                Field::Symbol => {
                    cursor.expect(b'"')?;
                    if !cursor.take(key) || cursor.peek() != Some(b'"') {
                        return None;
                    }
                    cursor.at += 1;
                }
                Field::Ts => ts = Some(cursor.short_integer()?),
                Field::Price => price = Some(numeric(&mut cursor)?),
                Field::Size => size = Some(numeric(&mut cursor)?),
                Field::Other => cursor.skip_value(1)?,
            }
            if let Some(place) = watched {
                watch.note(place, begin, cursor.at)?;
            }
            number += 1;
            if !cursor.has_more()? {
                break;
            }
        }
        if seen != ALL_FIELDS || !cursor.is_whole() {
            return None;
        }
        self.checked(ts?, price?, size?, timestamp_ms)
    }

    #[inline(always)]
    fn checked(&self, ts: i64, price: Amount, size: Amount, timestamp_ms: i64) -> Option<Tick> {
        let form = &self.format;
        let ts_ns = ts.checked_mul(form.unit_ns)?;
        if ts_ns < form.min_ns || ts_ns > form.max_ns || size.value < 0.0 {
            return None;
        }
        if timestamp_ms != -1 {
            let latest_ns = timestamp_ms.checked_mul(1_000_000)?.checked_add(form.max_future_skew_ns)?;
            if ts_ns > latest_ns {
                return None;
            }
        }
        Some(Tick { ts_ns, price, size })
    }
}

/// Who wants to know what a tick says it is, and which one: the first and second bit of a place.
struct Telling<'m> {
    messages: &'m MessageFormat,
    /// Of the kind's value and of the id's; empty where nothing says.
    spans: [(usize, usize); 2],
}

impl Watch for Telling<'_> {
    fn place(&self, name: &[u8]) -> Option<usize> {
        let kind = usize::from(*name == *self.messages.kind);
        let id = usize::from(*name == *self.messages.id) << 1;
        Some(kind | id).filter(|bits| *bits != 0)
    }

    #[inline]
    fn note(&mut self, place: usize, begin: usize, end: usize) -> Option<()> {
        for (number, span) in self.spans.iter_mut().enumerate() {
            if place & 1 << number != 0 {
                if span.1 != 0 {
                    return None; // twice
                }
                *span = (begin, end);
            }
        }
        Some(())
    }
}

/// What a field says that should be a text; integers count as their digits.
enum Told<'v> {
    Text(&'v [u8]),
    /// It is null, or not there.
    Nothing,
    Other,
}

impl<'v> Told<'v> {
    fn text(&self) -> Option<&'v [u8]> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// `None` where the plain decoder must look. `value` is a JSON value.
#[inline]
fn text_of(value: &[u8]) -> Option<Told<'_>> {
    match value {
        [] | b"null" => Some(Told::Nothing),
        [b'"', text @ .., b'"'] => (!text.contains(&b'\\')).then_some(Told::Text(text)),
        [b'0'..=b'9' | b'-', ..] => {
            let mut cursor = Cursor::new(value);
            cursor.short_integer()?;
            (cursor.at == value.len()).then_some(Told::Text(value))
        }
        _ => Some(Told::Other),
    }
}

/// A number, or one in quotes, as exchanges send decimals.
#[inline(always)]
fn numeric(cursor: &mut Cursor) -> Option<Amount> {
    if cursor.peek()? != b'"' {
        return Some(Amount::of_number(&cursor.number()?));
    }
    cursor.at += 1;
    let mut number = cursor.number()?;
    cursor.expect(b'"')?;
    if number.negative && number.value == 0.0 {
        number.value = -0.0; // in quotes even an integer is read as a float
    }
    Some(Amount::of_number(&number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decoder() -> Decoder {
        Decoder::new(TickFormat {
            symbol: b"symbol".as_slice().into(),
            ts: b"ts".as_slice().into(),
            price: b"price".as_slice().into(),
            size: b"size".as_slice().into(),
            unit_ns: 1_000_000,
            min_ns: i64::MIN,
            max_ns: i64::MAX,
            max_future_skew_ns: 60_000_000_000,
            messages: Some(MessageFormat {
                kind: b"kind".as_slice().into(),
                kinds: vec![b"X".as_slice().into(), b"8".as_slice().into()],
                id: b"id".as_slice().into(),
            }),
        })
    }

    fn decode(value: &str) -> Option<(i64, f64, f64)> {
        decoder().decode(b"A", value.as_bytes(), -1).map(|tick| (tick.ts_ns, tick.price.value, tick.size.value))
    }

    #[test]
    fn four_fields_in_any_order_among_others() {
        let expected = Some((5_000_000, 1.5, 2.0));
        for value in [
            r#"{"symbol":"A","ts":5,"price":1.5,"size":2}"#,
            r#"{"size":2,"price":"1.5","id":[1,{"x":2}],"ts":5,"symbol":"A"}"#,
            " { \"symbol\" : \"A\" , \"ts\" : 5 , \"price\" : 1.5 , \"size\" : \"2\" } ",
        ] {
            assert_eq!(decode(value), expected, "{value}");
        }
    }

    #[test]
    fn what_is_unusual_is_left_to_the_plain_decoder() {
        for value in [
            r#"{"symbol":"B","ts":5,"price":1.5,"size":2}"#,
            r#"{"symbol":"A","ts":5,"price":1.5}"#,
            r#"{"symbol":"A","ts":5,"ts":5,"price":1.5,"size":2}"#,
            r#"{"symbol":"A","ts":5.0,"price":1.5,"size":2}"#,
            r#"{"symbol":"A","ts":5,"price":1.5,"size":-2}"#,
            r#"{"symbol":"A","ts":5,"price":NaN,"size":2}"#,
            r#"{"symbol":"A","ts":5,"price":1.5,"size":2}x"#,
            r#"{"symbol":"\u0041","ts":5,"price":1.5,"size":2}"#,
            "[]",
            "",
        ] {
            assert_eq!(decode(value), None, "{value}");
        }
    }

    fn id_of(more: &str) -> Option<Option<String>> {
        let value = format!(r#"{{"symbol":"A","ts":5,{more}"price":1.5,"size":2}}"#);
        let found = decoder().decode_trade(b"A", value.as_bytes(), -1);
        found.map(|(_, id)| id.map(Into::into))
    }

    #[test]
    fn trades_are_told_from_messages_and_have_an_id() {
        for (more, id) in [
            ("", None),
            (r#""id":"a","#, Some("a")),
            (r#""kind":"T","id":17,"#, Some("17")),
            (r#""id":-3,"kind":null,"#, Some("-3")),
            (r#""id":null,"kind":{"X":1},"#, None),
            (r#""kind":true,"id":"","#, Some("")),
        ] {
            assert_eq!(id_of(more), Some(id.map(Into::into)), "{more}");
        }
        for more in [
            r#""kind":"X","id":1,"#,
            r#""kind":8,"#,
            r#""kind":"\u0058","#,
            r#""kind":1.0,"#,
            r#""kind":"T","kind":"X","#,
            r#""id":1,"id":2,"#,
            r#""id":1.5,"#,
            r#""id":-0,"#,
            r#""id":true,"#,
            r#""id":[],"#,
            r#""id":"a\n","#,
            r#""id":12345678901234567890,"#,
        ] {
            assert_eq!(id_of(more), None, "{more}");
        }
    }

    #[test]
    fn a_shape_is_learnt_and_unlearnt() {
        let mut decoder = decoder();
        for (number, value) in [
            r#"{"symbol":"A","ts":1,"price":1,"size":1}"#,
            r#"{"symbol":"A","ts":2,"price":1,"size":1}"#,
            r#"{"ts":3,"symbol":"A","price":1,"size":1}"#,
            r#"{"ts":4,"symbol":"A","price":1,"size":1,"id":7}"#,
            r#"{"symbol":"A","ts":5,"id":{"a":1},"price":1,"size":1}"#,
        ]
        .iter()
        .enumerate()
        {
            let found = decoder.decode(b"A", value.as_bytes(), -1).unwrap();
            assert_eq!(found.ts_ns, (number as i64 + 1) * 1_000_000);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_left(before in any::<bool>(), value in proptest::collection::vec(any::<u8>(), 0..120)) {
            let mut decoder = decoder();
            if before {
                decoder.decode(b"A", br#"{"symbol":"A","ts":1,"price":1,"size":1}"#, -1);
            }
            decoder.decode(b"A", &value, -1);
        }
    }
}
