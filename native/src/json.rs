//! Just enough JSON: a cursor that reads what ticks are made of and skips the rest by its structure.
//!
//! The cursor is *sure or silent*: each step returns `None` not only for what is no JSON, but for whatever it does not
//! handle itself (a `\u` escape, a number that might overflow, deep nesting). Such a value goes to the plain decoder,
//! which has the last word; so nothing here needs to explain an error.

/// Deeper values are left to the plain decoder.
const MAX_DEPTH: u32 = 32;
/// Longer numbers are left to the plain decoder: a shorter one can't overflow a float64 without its exponent.
const MAX_NUMBER_LEN: usize = 40;

/// A number as it was written: `mantissa / 10^decimals`, where that has at most 19 digits and no exponent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Number {
    pub value: f64,
    pub mantissa: u64,
    /// Digits behind the point; -1 where mantissa and decimals don't tell the value.
    pub decimals: i8,
    pub negative: bool,
    /// Written without point and exponent.
    pub is_integer: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a> {
    pub data: &'a [u8],
    pub at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self { data, at: 0 }
    }

    #[inline(always)]
    pub fn peek(&self) -> Option<u8> {
        self.data.get(self.at).copied()
    }

    #[inline(always)]
    pub fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    #[inline(always)]
    pub fn expect(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    /// Passes `text` where it stands next.
    #[inline(always)]
    pub fn take(&mut self, text: &[u8]) -> bool {
        let found = self.data.get(self.at..self.at + text.len()).is_some_and(|next| same(next, text));
        if found {
            self.at += text.len();
        }
        found
    }

    /// Behind a member of an object: whether another follows, at its comma; else at the closing brace.
    #[inline(always)]
    pub fn has_more(&mut self) -> Option<bool> {
        if !matches!(self.peek()?, b',' | b'}') {
            self.skip_space();
        }
        match self.peek()? {
            b',' => Some(true),
            b'}' => Some(false),
            _ => None,
        }
    }

    /// At the closing brace of all: whether nothing follows it, and all of it is UTF-8.
    #[inline(always)]
    pub fn is_whole(&mut self) -> bool {
        self.at += 1;
        self.skip_space();
        self.at == self.data.len() && (self.data.is_ascii() || std::str::from_utf8(self.data).is_ok())
    }

    /// An integer of at most 18 digits that is not -0; what may follow it is the caller's business.
    #[inline(always)]
    pub fn short_integer(&mut self) -> Option<i64> {
        let negative = self.peek()? == b'-';
        let begin = self.at + usize::from(negative);
        let mut at = begin;
        let mut value = 0u64;
        while let Some(word) = self.data.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
            let word = u64::from_le_bytes(*word);
            if !are_digits(word) || at - begin >= 16 {
                break;
            }
            value = value * 100_000_000 + eight_digits(word);
            at += 8;
        }
        while let Some(byte @ b'0'..=b'9') = self.data.get(at) {
            value = value.wrapping_mul(10).wrapping_add(u64::from(byte - b'0'));
            at += 1;
        }
        let digits = at - begin;
        if digits == 0 || digits > 18 || (self.data[begin] == b'0' && (digits > 1 || negative)) {
            return None;
        }
        self.at = at;
        Some(if negative { -(value as i64) } else { value as i64 })
    }

    /// The content of a string without escapes, behind its opening quote; the closing one is passed.
    #[inline]
    pub fn plain_string(&mut self) -> Option<&'a [u8]> {
        let begin = self.at;
        loop {
            match self.peek()? {
                b'"' => break,
                b'\\' | 0..=0x1F => return None,
                _ => self.at += 1,
            }
        }
        self.at += 1;
        Some(&self.data[begin..self.at - 1])
    }

    /// Passes a string, behind its opening quote.
    fn skip_string(&mut self) -> Option<()> {
        loop {
            match self.peek()? {
                b'"' => break,
                b'\\' => {
                    if !matches!(self.data.get(self.at + 1)?, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') {
                        return None;
                    }
                    self.at += 2;
                }
                0..=0x1F => return None,
                _ => self.at += 1,
            }
        }
        self.at += 1;
        Some(())
    }

    /// A JSON number; what may follow it is the caller's business.
    #[inline]
    pub fn number(&mut self) -> Option<Number> {
        let begin = self.at;
        let negative = self.peek()? == b'-';
        self.at += usize::from(negative);
        let digits_begin = self.at;
        let mut mantissa = 0u64;
        let mut digits = 0u32;
        while let Some(byte @ b'0'..=b'9') = self.peek() {
            mantissa = mantissa.wrapping_mul(10).wrapping_add(u64::from(byte - b'0'));
            digits += 1;
            self.at += 1;
        }
        if digits == 0 || (digits > 1 && self.data[digits_begin] == b'0') {
            return None;
        }
        let mut decimals = 0u32;
        let mut is_integer = true;
        if self.peek() == Some(b'.') {
            is_integer = false;
            self.at += 1;
            while let Some(byte @ b'0'..=b'9') = self.peek() {
                mantissa = mantissa.wrapping_mul(10).wrapping_add(u64::from(byte - b'0'));
                decimals += 1;
                self.at += 1;
            }
            if decimals == 0 {
                return None;
            }
        }
        let mut exact = digits + decimals <= 19;
        if let Some(b'e' | b'E') = self.peek() {
            exact = false;
            is_integer = false;
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            let exponent_begin = self.at;
            while let Some(b'0'..=b'9') = self.peek() {
                self.at += 1;
            }
            if self.at == exponent_begin {
                return None;
            }
        }
        let text = &self.data[begin..self.at];
        if text.len() > MAX_NUMBER_LEN {
            return None;
        }
        let value = if exact && mantissa < 1 << 53 && decimals <= 22 {
            // Both are exact in a float64, so one division rounds once: to the nearest.
            let magnitude = mantissa as f64 / POWERS_OF_TEN[decimals as usize];
            if negative && !(is_integer && mantissa == 0) {
                -magnitude
            } else {
                magnitude
            }
        } else {
            std::str::from_utf8(text).ok()?.parse().ok()?
        };
        if !value.is_finite() {
            return None;
        }
        let decimals = if exact { decimals as i8 } else { -1 };
        Some(Number { value, negative, mantissa, decimals, is_integer })
    }

    /// Passes any value. `depth` is how deep it is nested in what is being read.
    pub fn skip_value(&mut self, depth: u32) -> Option<()> {
        match self.peek()? {
            b'"' => {
                self.at += 1;
                self.skip_string()
            }
            b'{' => self.skip_container(depth, b'}', |cursor| {
                cursor.expect(b'"')?;
                cursor.skip_string()?;
                cursor.skip_space();
                cursor.expect(b':')?;
                cursor.skip_space();
                Some(())
            }),
            b'[' => self.skip_container(depth, b']', |_| Some(())),
            b't' => self.take(b"true").then_some(()),
            b'f' => self.take(b"false").then_some(()),
            b'n' => self.take(b"null").then_some(()),
            _ => self.number().map(|_| ()),
        }
    }

    fn skip_container(&mut self, depth: u32, end: u8, name: impl Fn(&mut Self) -> Option<()> + Copy) -> Option<()> {
        if depth >= MAX_DEPTH {
            return None;
        }
        self.at += 1;
        self.skip_space();
        if self.peek()? == end {
            self.at += 1;
            return Some(());
        }
        loop {
            name(self)?;
            self.skip_value(depth + 1)?;
            self.skip_space();
            match self.peek()? {
                b',' => {
                    self.at += 1;
                    self.skip_space();
                }
                byte if byte == end => {
                    self.at += 1;
                    return Some(());
                }
                _ => return None,
            }
        }
    }
}

/// More members' names are not remembered.
const MEMBERS_REMEMBERED: usize = 24;

/// The names of an object's members, as they stood in the object before, and what each means: most payloads repeat the
/// text between their values from record to record.
#[derive(Clone, Debug)]
pub struct Shape<T> {
    /// From the comma or brace before the name to where its value begins.
    members: Vec<(Vec<u8>, T)>,
}

impl<T> Default for Shape<T> {
    fn default() -> Self {
        Self { members: Vec::new() }
    }
}

impl<T: Copy> Shape<T> {
    /// Passes the `number`-th member's name, to where its value begins. `meaning` is asked for a name that did not stand
    /// there before; it must always say the same.
    #[inline(always)]
    pub fn member(&mut self, cursor: &mut Cursor, number: usize, meaning: impl FnOnce(&[u8]) -> T) -> Option<T> {
        if let Some((text, known)) = self.members.get(number) {
            if cursor.take(text) {
                return Some(*known);
            }
        }
        self.learn(cursor, number, meaning)
    }

    #[cold]
    fn learn(&mut self, cursor: &mut Cursor, number: usize, meaning: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let begin = cursor.at;
        cursor.skip_space();
        cursor.expect(if number == 0 { b'{' } else { b',' })?;
        cursor.skip_space();
        cursor.expect(b'"')?;
        let found = meaning(cursor.plain_string()?);
        cursor.skip_space();
        cursor.expect(b':')?;
        cursor.skip_space();
        let member = (cursor.data[begin..cursor.at].to_vec(), found);
        if number < self.members.len() {
            self.members[number] = member;
        } else if number < MEMBERS_REMEMBERED {
            self.members.push(member);
        }
        Some(found)
    }
}

/// Whether two texts of one length are equal; short ones without a call.
#[inline(always)]
pub fn same(left: &[u8], right: &[u8]) -> bool {
    let length = left.len();
    if length != right.len() {
        return false;
    }
    if length < 8 {
        return left.iter().zip(right).all(|(left, right)| left == right);
    }
    let words = |from: usize| {
        let of = |text: &[u8]| text[from..from + 8].first_chunk::<8>().map(|word| u64::from_le_bytes(*word));
        of(left) == of(right)
    };
    let mut at = 0;
    while at + 8 < length {
        if !words(at) {
            return false;
        }
        at += 8;
    }
    words(length - 8)
}

/// Whether all eight bytes are ASCII digits.
#[inline(always)]
fn are_digits(word: u64) -> bool {
    let high = word & 0xF0F0_F0F0_F0F0_F0F0;
    let over = word.wrapping_add(0x0606_0606_0606_0606) & 0xF0F0_F0F0_F0F0_F0F0;
    high == 0x3030_3030_3030_3030 && over == 0x3030_3030_3030_3030
}

/// The number that eight ASCII digits write, the first in the lowest byte.
#[inline(always)]
fn eight_digits(word: u64) -> u64 {
    let pairs = (word & 0x0F0F_0F0F_0F0F_0F0F).wrapping_mul(2561) >> 8 & 0x00FF_00FF_00FF_00FF;
    let fours = pairs.wrapping_mul(6_553_601) >> 16 & 0x0000_FFFF_0000_FFFF;
    fours.wrapping_mul(42_949_672_960_001) >> 32
}

pub const POWERS_OF_TEN: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];

/// Appends a JSON string, escaped as orjson does: quotes, backslashes and control characters, nothing else.
pub fn put_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut done = 0;
    for (at, byte) in text.bytes().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&text.as_bytes()[done..at]);
        done = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x09 => out.extend_from_slice(b"\\t"),
            0x0A => out.extend_from_slice(b"\\n"),
            0x0C => out.extend_from_slice(b"\\f"),
            0x0D => out.extend_from_slice(b"\\r"),
            _ => {
                out.extend_from_slice(b"\\u00");
                out.extend([b"0123456789abcdef"[usize::from(byte >> 4)], b"0123456789abcdef"[usize::from(byte & 15)]]);
            }
        }
    }
    out.extend_from_slice(&text.as_bytes()[done..]);
    out.push(b'"');
}

/// Appends a float as orjson writes it: the shortest text that reads back the same; null for what JSON can't hold.
pub fn put_float(out: &mut Vec<u8>, value: f64) {
    if value.is_finite() {
        out.extend_from_slice(zmij::Buffer::new().format_finite(value).as_bytes());
    } else {
        out.extend_from_slice(b"null");
    }
}

/// Appends an integer.
pub fn put_integer(out: &mut Vec<u8>, value: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn number(text: &str) -> Option<Number> {
        let mut cursor = Cursor::new(text.as_bytes());
        let found = cursor.number()?;
        (cursor.at == text.len()).then_some(found)
    }

    proptest! {
        #[test]
        fn floats_are_read_as_the_nearest(value in any::<f64>().prop_filter("finite", |value| value.is_finite())) {
            let mut text = Vec::new();
            put_float(&mut text, value);
            let text = String::from_utf8(text).unwrap();
            prop_assert_eq!(number(&text).unwrap().value.to_bits(), value.to_bits(), "{}", text);
        }

        #[test]
        fn decimals_are_read_exactly(whole in 0u64..1_000_000_000, fraction in "[0-9]{1,9}", negative in any::<bool>()) {
            let text = format!("{}{whole}.{fraction}", if negative { "-" } else { "" });
            let found = number(&text).unwrap();
            prop_assert_eq!(found.value.to_bits(), text.parse::<f64>().unwrap().to_bits());
            prop_assert_eq!(found.decimals, fraction.len() as i8);
            prop_assert_eq!(found.mantissa.to_string(), format!("{whole}{fraction}").trim_start_matches('0').parse::<u64>().unwrap_or(0).to_string());
        }

        #[test]
        fn any_bytes_are_skipped_or_refused(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut cursor = Cursor::new(&data);
            cursor.skip_value(0);
            prop_assert!(cursor.at <= data.len());
        }
    }

    proptest! {
        #[test]
        fn integers_are_read(value in -999_999_999_999_999_999i64..=999_999_999_999_999_999, tail in ",|\\}| ") {
            let text = format!("{value}{tail}");
            let mut cursor = Cursor::new(text.as_bytes());
            prop_assert_eq!(cursor.short_integer(), Some(value));
            prop_assert_eq!(cursor.at, text.len() - tail.len());
        }

        #[test]
        fn equal_is_what_is_equal(left in "[ab]{0,40}", right in "[ab]{0,40}") {
            prop_assert_eq!(same(left.as_bytes(), right.as_bytes()), left == right);
            prop_assert!(same(left.as_bytes(), left.as_bytes()));
        }
    }

    #[test]
    fn no_other_text_is_an_integer() {
        for text in ["", "-", "-0", "01", "00000000", "1234567890123456789", "x", "-x"] {
            assert_eq!(Cursor::new(text.as_bytes()).short_integer(), None, "{text}");
        }
        assert_eq!(Cursor::new(b"0").short_integer(), Some(0));
    }

    #[test]
    fn only_what_json_calls_a_number_is_one() {
        for text in ["0", "-0", "0.5", "1e5", "1E+5", "-1.25e-3", "123456789012345678901234567890"] {
            assert!(number(text).is_some(), "{text}");
        }
        for text in ["", "-", "01", ".5", "1.", "1e", "+1", "1e400", "NaN", "0x1", "--1"] {
            assert!(number(text).is_none(), "{text}");
        }
        assert_eq!(number("-0").unwrap().value.to_bits(), 0f64.to_bits());
        assert_eq!(number("-0.0").unwrap().value.to_bits(), (-0f64).to_bits());
    }

    #[test]
    fn values_are_skipped_by_their_structure() {
        for text in [r#"{"a":[1,2,{"b":"x\"y"}],"c":null}"#, "[]", "{}", r#"[ true , false ]"#, r#""\\""#] {
            let mut cursor = Cursor::new(text.as_bytes());
            assert_eq!(cursor.skip_value(0), Some(()), "{text}");
            assert_eq!(cursor.at, text.len(), "{text}");
        }
        for text in [r#"{"a"}"#, "[1,]", "[1 2]", r#"{"a":1,}"#, r#""\x""#, "tru", "\"a\nb\""] {
            assert_eq!(Cursor::new(text.as_bytes()).skip_value(0), None, "{text}");
        }
        let deep = "[".repeat(100_000);
        assert_eq!(Cursor::new(deep.as_bytes()).skip_value(0), None);
    }
}
