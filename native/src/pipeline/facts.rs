//! Facts: what the stages need to know of a tick's JSON, read once, before any of them sees it.
//!
//! The reader is *sure or silent*, as `crate::json` is. Where it is silent (an id that is an array or an object, escapes,
//! a name that comes twice, ...) Python's stages say what the facts are (`workers.native.facts`), and ticks go through
//! the pipeline only when the facts of all of them are there, in the log's order.
//!
//! The facts of a tick are bytes: one after the other, what each stage needs that needs anything.
//!
//! ```text
//! deduplicate   length of the id, 1 byte, 0 for none; the id, at most 64 bytes, as its changelog has it
//!   with gaps   0, or 1 and the sequence number, 8 bytes, little endian
//! router        whether each rule's field has its value, for the rules that name one: a bit each, from the lowest of the
//!               first byte on, in as many bytes as it takes
//! ```
//!
//! A stage takes its own from the front, so that at each stage the facts left are those of the stages from there on.

use crate::json::{Cursor, Number, Shape};
use crate::pipeline::stage::StageSpec;
use crate::ticks::Watch;

/// Longer ids are remembered by their hash: a record must not decide how much memory an id takes.
pub const LONGEST_IDENTITY: usize = 64;
const DIGEST_BYTES: usize = 24;
const LONGEST_EXPONENT: usize = 18;

/// A value that a router's rule compares a field with.
#[derive(Clone, Debug, PartialEq)]
pub enum Wanted {
    Null,
    Bool(bool),
    Text(Box<[u8]>),
    /// What a 64-bit integer can equal; beyond that JSON numbers are floats.
    Integer(i128),
    Float(f64),
}

/// What one stage needs; fields by their place among the names.
#[derive(Clone, Debug)]
enum Need {
    Nothing,
    Identity { fields: Vec<usize>, gaps: bool },
    Rules(Vec<(usize, Wanted)>),
}

/// Where a field's value stands; empty for nowhere.
type Span = (usize, usize);

/// A field's value, as far as stages tell values apart.
#[derive(Clone, Copy, Debug)]
enum Found<'a> {
    /// Absent, too.
    Null,
    Bool(bool),
    /// Without escapes, with its quotes.
    Text(&'a [u8]),
    Integer(i128, &'a [u8]),
    /// As it was written: a number with a fraction or an exponent, or an integer beyond 64 bits.
    Float(f64, &'a [u8]),
    /// An array or an object.
    Container,
}

#[derive(Clone, Debug)]
pub struct FactReader {
    names: Vec<Box<[u8]>>,
    needs: Vec<Need>,
    shape: Shape<Option<usize>>,
    spans: Vec<Span>,
    identity: Vec<u8>,
}

impl FactReader {
    pub fn new(stages: &[StageSpec]) -> Self {
        let mut names: Vec<Box<[u8]>> = Vec::new();
        let mut place = |name: &str| {
            names.iter().position(|known| **known == *name.as_bytes()).unwrap_or_else(|| {
                names.push(name.as_bytes().into());
                names.len() - 1
            })
        };
        let mut needs = Vec::new();
        for stage in stages {
            needs.push(match stage {
                StageSpec::Deduplicate(spec) => {
                    Need::Identity { fields: spec.fields.iter().map(|name| place(name)).collect(), gaps: spec.gaps }
                }
                StageSpec::Router(spec) => Need::Rules(
                    spec.routes
                        .iter()
                        .filter_map(|route| route.field.as_ref())
                        .map(|(name, wanted)| (place(name), wanted.clone()))
                        .collect(),
                ),
                StageSpec::Throttle(_) | StageSpec::Conflate(_) => Need::Nothing,
            });
        }
        let spans = vec![(0, 0); names.len()];
        Self { names, needs, shape: Shape::default(), spans, identity: Vec::new() }
    }

    /// Whether no stage needs any.
    pub fn is_idle(&self) -> bool {
        self.names.is_empty()
    }

    /// Appends the facts of a tick, for the stages from `first` on; `None`, and nothing appended, where Python must say
    /// what they are. `value` is JSON that the decoder took.
    #[inline]
    pub fn read(&mut self, value: &[u8], first: usize, out: &mut Vec<u8>) -> Option<()> {
        if self.is_idle() {
            return Some(());
        }
        self.find(value)?;
        self.read_watched(value, first, out)
    }

    /// Forgets where values stood: for `Decoder::decode_watched`.
    #[inline(always)]
    pub fn begin(&mut self) -> &mut Self {
        self.spans.fill((0, 0));
        self
    }

    /// `read` of a value that `Decoder::decode_watched` has just gone through, behind `begin`.
    #[inline]
    pub fn read_watched(&mut self, value: &[u8], first: usize, out: &mut Vec<u8>) -> Option<()> {
        let begin = out.len();
        let done = self.put_all(value, first, out);
        if done.is_none() {
            out.truncate(begin);
        }
        done
    }

    /// `read` of a value that comes from stored state: it is checked to be text and JSON, too.
    pub fn read_stored(&mut self, value: &[u8], first: usize, out: &mut Vec<u8>) -> Option<()> {
        std::str::from_utf8(value).ok()?;
        let mut cursor = Cursor::new(value);
        cursor.skip_space();
        cursor.skip_value(0)?;
        cursor.skip_space();
        (cursor.at == value.len()).then_some(())?;
        self.read(value, first, out)
    }

    /// Whether bytes are facts of the stages from `first` on.
    pub fn is_valid(&self, mut facts: &[u8], first: usize) -> bool {
        let read = self.needs.iter().skip(first).try_for_each(|need| match need {
            Need::Nothing => Some(()),
            Need::Identity { gaps, .. } => {
                let length = usize::from(*facts.first()?);
                take_identity(&mut facts);
                (length <= LONGEST_IDENTITY).then_some(())?;
                gaps.then(|| facts.first().copied()).unwrap_or(Some(0))?;
                if *gaps {
                    take_number(&mut facts);
                }
                Some(())
            }
            Need::Rules(rules) => {
                let length = rules.len().div_ceil(8);
                (take_rules(&mut facts, rules.len()).len() == length).then_some(())
            }
        });
        read.is_some() && facts.is_empty()
    }

    fn put_all(&mut self, value: &[u8], first: usize, out: &mut Vec<u8>) -> Option<()> {
        for need in self.needs.iter().skip(first) {
            match need {
                Need::Nothing => {}
                Need::Identity { fields, gaps } => {
                    put_identity(value, &self.spans, fields, &mut self.identity, out)?;
                    if *gaps {
                        put_number(found(value, self.spans[fields[0]])?, out);
                    }
                }
                Need::Rules(rules) => {
                    for eight in rules.chunks(8) {
                        let mut bits = 0;
                        for (number, (field, wanted)) in eight.iter().enumerate() {
                            bits |= u8::from(equals(found(value, self.spans[*field])?, wanted)) << number;
                        }
                        out.push(bits);
                    }
                }
            }
        }
        Some(())
    }

    /// Notes where the fields' values stand.
    #[inline]
    fn find(&mut self, value: &[u8]) -> Option<()> {
        self.spans.fill((0, 0));
        let mut cursor = Cursor::new(value);
        let mut number = 0;
        loop {
            let names = &self.names;
            let watched = self.shape.member(&mut cursor, number, |name| place_of(names, name))?;
            let begin = cursor.at;
            skip(&mut cursor)?;
            if let Some(place) = watched {
                self.note(place, begin, cursor.at)?;
            }
            number += 1;
            if !cursor.has_more()? {
                return Some(());
            }
        }
    }
}

fn place_of(names: &[Box<[u8]>], name: &[u8]) -> Option<usize> {
    names.iter().position(|known| **known == *name)
}

impl Watch for FactReader {
    fn place(&self, name: &[u8]) -> Option<usize> {
        place_of(&self.names, name)
    }

    #[inline(always)]
    fn note(&mut self, place: usize, begin: usize, end: usize) -> Option<()> {
        let span = self.spans.get_mut(place)?;
        if span.1 != 0 {
            return None; // twice: the last one counts, says JSON
        }
        *span = (begin, end);
        Some(())
    }
}

/// Passes a value of valid JSON.
#[inline(always)]
fn skip(cursor: &mut Cursor) -> Option<()> {
    match cursor.peek()? {
        b'"' | b'{' | b'[' => cursor.skip_value(1),
        _ => {
            while !matches!(cursor.peek()?, b',' | b'}' | b' ' | b'\n' | b'\r' | b'\t') {
                cursor.at += 1;
            }
            Some(())
        }
    }
}

fn found(value: &[u8], (begin, end): Span) -> Option<Found<'_>> {
    let text = &value[begin..end];
    Some(match text {
        [] | b"null" => Found::Null,
        b"true" => Found::Bool(true),
        b"false" => Found::Bool(false),
        [b'"', inner @ .., b'"'] => {
            if inner.contains(&b'\\') {
                return None;
            }
            Found::Text(text)
        }
        [b'[' | b'{', ..] => Found::Container,
        _ => {
            let mut cursor = Cursor::new(text);
            let number = cursor.number()?;
            if cursor.at != text.len() {
                return None;
            }
            number_found(number, text)
        }
    })
}

/// The usual id: an integer above 0 that 64 bits surely hold.
#[inline(always)]
fn plain_integer(value: &[u8], (begin, end): Span) -> Option<&[u8]> {
    let text = &value[begin..end];
    let is_one = matches!(text, [b'1'..=b'9', ..]) && text.len() <= 18 && text.iter().all(u8::is_ascii_digit);
    is_one.then_some(text)
}

/// A number as Python has it: an `int` where 64 bits hold it.
fn number_found(number: Number, text: &[u8]) -> Found<'_> {
    if number.is_integer {
        let magnitude = if number.decimals >= 0 { Some(number.mantissa) } else { whole(text) };
        if let Some(magnitude) = magnitude {
            let integer = if number.negative { -i128::from(magnitude) } else { i128::from(magnitude) };
            if integer >= i128::from(i64::MIN) {
                return Found::Integer(integer, if integer == 0 { b"0" } else { text });
            }
        }
    }
    Found::Float(number.value, text)
}

fn whole(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text.strip_prefix(b"-").unwrap_or(text)).ok()?.parse().ok()
}

/// Appends an id: its fields as JSON writes them, with commas between; or none where one of them is absent or null.
fn put_identity(
    value: &[u8],
    spans: &[Span],
    fields: &[usize],
    identity: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Option<()> {
    identity.clear();
    let mut is_whole = true;
    for (number, field) in fields.iter().enumerate() {
        if number > 0 {
            identity.push(b',');
        }
        if let Some(digits) = plain_integer(value, spans[*field]) {
            identity.extend_from_slice(digits);
            continue;
        }
        match found(value, spans[*field])? {
            Found::Null => is_whole = false,
            Found::Bool(true) => identity.extend_from_slice(b"true"),
            Found::Bool(false) => identity.extend_from_slice(b"false"),
            Found::Text(text) | Found::Integer(_, text) => identity.extend_from_slice(text),
            Found::Float(_, text) => put_exact_number(text, identity)?,
            Found::Container => return None,
        }
    }
    if !is_whole {
        out.push(0);
    } else if identity.len() <= LONGEST_IDENTITY {
        out.push(identity.len() as u8);
        out.extend_from_slice(identity);
    } else {
        out.push(1 + DIGEST_BYTES as u8);
        out.push(b'#');
        let digest = blake2b_simd::Params::new().hash_length(DIGEST_BYTES).hash(identity);
        out.extend_from_slice(digest.as_bytes());
    }
    Some(())
}

/// A number's digits without zeros at the ends, and a power of ten; an integer is as it is.
fn put_exact_number(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (sign, unsigned) = match text {
        [b'-', rest @ ..] => (&text[..1], rest),
        _ => (&text[..0], text),
    };
    let (mantissa, power) = match unsigned.iter().position(|byte| matches!(byte, b'e' | b'E')) {
        Some(at) => (&unsigned[..at], Some(&unsigned[at + 1..])),
        None => (unsigned, None),
    };
    let (digits, decimals) = match mantissa.iter().position(|byte| *byte == b'.') {
        Some(at) => ([&mantissa[..at], &mantissa[at + 1..]].concat(), Some(mantissa.len() - at - 1)),
        None => (mantissa.to_vec(), None),
    };
    let power = match (power, decimals) {
        (None, None) => {
            out.extend_from_slice(text);
            return Some(());
        }
        (Some(power), _) if power.len() > LONGEST_EXPONENT => {
            out.extend_from_slice(text); // nobody's id; as written, since even an integer may be too long to read
            return Some(());
        }
        (Some(power), _) => std::str::from_utf8(power).ok()?.parse::<i64>().ok()?,
        (None, Some(_)) => 0,
    };
    let significant = digits.iter().position(|byte| *byte != b'0').map_or(&digits[..0], |at| &digits[at..]);
    let kept = significant.iter().rposition(|byte| *byte != b'0').map_or(&digits[..0], |at| &significant[..=at]);
    let exponent = match kept {
        [] => 0,
        _ => power - decimals.unwrap_or(0) as i64 + (significant.len() - kept.len()) as i64,
    };
    out.extend_from_slice(sign);
    out.extend_from_slice(if kept.is_empty() { b"0" } else { kept });
    out.push(b'e');
    crate::json::put_integer(out, exponent);
    Some(())
}

/// Appends a sequence number: an integer, or a string that is one.
fn put_number(found: Found, out: &mut Vec<u8>) {
    let number = match found {
        Found::Integer(integer, _) => i64::try_from(integer).ok().filter(|number| *number != i64::MIN),
        Found::Text([_, inner @ .., _]) => sequence_number(inner),
        _ => None,
    };
    match number {
        Some(number) => {
            out.push(1);
            out.extend_from_slice(&number.to_le_bytes());
        }
        None => out.push(0),
    }
}

/// `0`, or up to 18 digits that don't begin with one.
fn sequence_number(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let is_one = match digits {
        [b'0'] => text.len() == 1,
        [b'1'..=b'9', rest @ ..] => rest.len() <= 17 && rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    is_one.then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten()
}

/// As Python compares, except that true is not 1.
fn equals(found: Found, wanted: &Wanted) -> bool {
    match (found, wanted) {
        (Found::Null, Wanted::Null) => true,
        (Found::Bool(found), Wanted::Bool(wanted)) => found == *wanted,
        (Found::Text([_, inner @ .., _]), Wanted::Text(wanted)) => *inner == **wanted,
        (Found::Integer(found, _), Wanted::Integer(wanted)) => found == *wanted,
        (Found::Integer(integer, _), Wanted::Float(float)) => are_equal(integer, *float),
        (Found::Float(float, _), Wanted::Integer(integer)) => are_equal(*integer, float),
        (Found::Float(found, _), Wanted::Float(wanted)) => found == *wanted,
        _ => false,
    }
}

/// Whether an integer and a float are the same number, neither being rounded.
fn are_equal(integer: i128, float: f64) -> bool {
    float.trunc() == float && float.abs() < 1e30 && float as i128 == integer
}

/// Takes a tick's id from the front of its facts.
#[inline(always)]
pub fn take_identity<'a>(facts: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = facts.split_first()?;
    let (identity, rest) = rest.split_at_checked(usize::from(*length)).unwrap_or((&[], &[]));
    *facts = rest;
    (!identity.is_empty()).then_some(identity)
}

/// Takes a sequence number from the front of a tick's facts.
#[inline(always)]
pub fn take_number(facts: &mut &[u8]) -> Option<i64> {
    let (is_there, rest) = facts.split_first()?;
    *facts = rest;
    if *is_there == 0 {
        return None;
    }
    let (number, rest) = rest.split_first_chunk::<8>()?;
    *facts = rest;
    Some(i64::from_le_bytes(*number))
}

/// Takes what is said of so many rules from the front of a tick's facts.
#[inline(always)]
pub fn take_rules<'a>(facts: &mut &'a [u8], rules: usize) -> &'a [u8] {
    let (bits, rest) = facts.split_at_checked(rules.div_ceil(8)).unwrap_or((&[], &[]));
    *facts = rest;
    bits
}

/// What was said of a rule.
#[inline(always)]
pub fn rule_applies(bits: &[u8], rule: usize) -> bool {
    bits.get(rule / 8).is_some_and(|byte| byte >> (rule % 8) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::stage::{DeduplicateSpec, RouteSpec, RouterSpec};
    use proptest::prelude::*;

    fn deduplicate(fields: &[&str], gaps: bool) -> StageSpec {
        let fields = fields.iter().map(|name| name.to_string()).collect();
        StageSpec::Deduplicate(DeduplicateSpec { fields, ttl_ns: 1, gaps, max_ids: 10, ledger: true })
    }

    fn facts(stages: &[StageSpec], value: &str) -> Option<Vec<u8>> {
        let mut reader = FactReader::new(stages);
        let mut out = Vec::new();
        reader.read(value.as_bytes(), 0, &mut out)?;
        assert!(reader.is_valid(&out, 0));
        Some(out)
    }

    fn identity(value: &str) -> Option<String> {
        let found = facts(&[deduplicate(&["id"], false)], &format!(r#"{{"x":1,"id":{value},"y":[2]}}"#))?;
        Some(String::from_utf8_lossy(take_identity(&mut &found[..]).unwrap_or(b"none")).into_owned())
    }

    #[test]
    fn an_id_is_what_json_writes() {
        for (written, expected) in [
            ("7", "7"),
            ("-0", "0"),
            ("\"7\"", "\"7\""),
            ("true", "true"),
            ("null", "none"),
            ("1.50", "15e-1"),
            ("15e-1", "15e-1"),
            ("-0.0", "-0e0"),
            ("0e5", "0e0"),
            ("1200.0", "12e2"),
            ("1E+2", "1e2"),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            ("1e00000000000000000001", "1e00000000000000000001"),
        ] {
            assert_eq!(identity(written).as_deref(), Some(expected), "{written}");
        }
        for unsure in [r#""a\u0041""#, r#""\n""#, "[1]", r#"{"a":1}"#] {
            assert_eq!(identity(unsure), None, "{unsure}");
        }
        assert!(identity(&format!("\"{}\"", "x".repeat(63))).unwrap().starts_with('#'));
        assert_eq!(facts(&[deduplicate(&["id"], false)], r#"{"id":1,"id":2}"#), None);
        assert_eq!(facts(&[deduplicate(&["id"], false)], r#"{"i\u0064":1}"#), None);
    }

    #[test]
    fn a_sequence_number_is_an_integer_or_a_string_that_is_one() {
        for (written, expected) in [
            ("5", Some(5)),
            ("-5", Some(-5)),
            ("\"5\"", Some(5)),
            ("\"05\"", None),
            ("\"-0\"", None),
            ("5.0", None),
            ("true", None),
            ("9223372036854775807", Some(i64::MAX)),
            ("9223372036854775808", None),
            ("-9223372036854775808", None),
            ("\"1234567890123456789\"", None),
        ] {
            let found = facts(&[deduplicate(&["id"], true)], &format!(r#"{{"id":{written}}}"#)).unwrap();
            let mut rest = &found[..];
            take_identity(&mut rest);
            assert_eq!(take_number(&mut rest), expected, "{written}");
        }
    }

    #[test]
    fn a_rule_compares_as_python_does() {
        let wanted = [
            Wanted::Null,
            Wanted::Bool(true),
            Wanted::Text(b"X".as_slice().into()),
            Wanted::Integer(1),
            Wanted::Float(1.5),
            Wanted::Float(1e18),
            Wanted::Integer(1 << 63),
            Wanted::Float(f64::NAN),
            Wanted::Float(0.0),
        ];
        let route = |wanted: &Wanted| RouteSpec { to: None, symbol: None, field: Some(("f".into(), wanted.clone())) };
        let stage = StageSpec::Router(RouterSpec { routes: wanted.iter().map(route).collect(), default: None });
        for (written, expected) in [
            ("null", vec![0]),
            ("true", vec![1]),
            ("\"X\"", vec![2]),
            ("1", vec![3]),
            ("1.0", vec![3]),
            ("1.50", vec![4]),
            ("1000000000000000000", vec![5]),
            ("1000000000000000001", vec![]),
            ("9223372036854775808", vec![6]),
            ("9223372036854775808.0", vec![6]),
            ("-0", vec![8]),
            ("[1]", vec![]),
        ] {
            let found = facts(std::slice::from_ref(&stage), &format!(r#"{{"f":{written}}}"#)).unwrap();
            let bits = take_rules(&mut &found[..], wanted.len());
            let applying: Vec<usize> = (0..wanted.len()).filter(|rule| rule_applies(bits, *rule)).collect();
            assert_eq!(applying, expected, "{written}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_left(value in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut reader = FactReader::new(&[deduplicate(&["id", "b"], true)]);
            let mut out = Vec::new();
            reader.read(br#"{"id":1,"b":2}"#, 0, &mut out);
            reader.read(&value, 0, &mut out);
            reader.is_valid(&value, 0);
        }
    }
}
