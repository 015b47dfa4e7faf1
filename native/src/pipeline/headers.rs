//! Headers as record batches have them: their number, then name and value of each, with varint lengths before them.
//!
//! They stay packed on their way. Where they are written or stored, a name that is not UTF-8 has `\xff` for each byte
//! that is none, as `workers.core.records.read_record` has it: it must be writable again, as a name.

use std::borrow::Cow;

use crate::msgpack::{put_array, put_bin, put_nil, put_text, Reader};
use crate::varint::{bytes, put_bytes, put_varint, varint};

/// The headers of a record that has none.
pub const NO_HEADERS: &[u8] = &[0];

/// Calls `each` with every header; `None` where they are not what the format says.
fn walk<'a>(packed: &'a [u8], mut each: impl FnMut(Cow<'a, str>, Option<&'a [u8]>)) -> Option<usize> {
    if packed.is_empty() {
        return Some(0);
    }
    let (number, mut position) = varint(packed, 0)?;
    for _ in 0..number {
        let (name, value);
        (name, position) = bytes(packed, position)?;
        (value, position) = bytes(packed, position)?;
        each(readable(name.unwrap_or_default()), value);
    }
    usize::try_from(number).ok()
}

/// As Python's `bytes.decode("utf-8", "backslashreplace")`.
fn readable(name: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(name) {
        return Cow::Borrowed(text);
    }
    let mut text = String::new();
    for chunk in name.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    Cow::Owned(text)
}

/// Packs headers.
pub fn packed<'a>(headers: impl ExactSizeIterator<Item = (&'a [u8], Option<&'a [u8]>)>) -> Vec<u8> {
    let mut packed = Vec::new();
    put_varint(&mut packed, headers.len() as i64);
    for (name, value) in headers {
        put_bytes(&mut packed, Some(name));
        put_bytes(&mut packed, value);
    }
    packed
}

/// Headers as they may be written: names and values.
pub fn unpacked(packed: &[u8]) -> Vec<(String, Option<Vec<u8>>)> {
    let mut headers = Vec::new();
    if packed.len() > 1
        && walk(packed, |name, value| headers.push((name.into_owned(), value.map(Into::into)))).is_none()
    {
        headers.clear();
    }
    headers
}

/// Appends headers, packed, as they may be written. What is no headers becomes none.
pub fn put_packed(out: &mut Vec<u8>, packed: &[u8]) {
    if packed.len() <= 1 {
        out.extend_from_slice(NO_HEADERS);
        return;
    }
    let mut fields = Vec::new();
    let number = walk(packed, |name, value| {
        put_bytes(&mut fields, Some(name.as_bytes()));
        put_bytes(&mut fields, value);
    });
    match number {
        Some(number) => {
            put_varint(out, number as i64);
            out.append(&mut fields);
        }
        None => out.extend_from_slice(NO_HEADERS),
    }
}

/// Appends headers as stored state has them.
pub fn put_stored(out: &mut Vec<u8>, packed: &[u8]) {
    let mut pairs = Vec::new();
    let number = walk(packed, |name, value| {
        put_array(&mut pairs, 2);
        put_text(&mut pairs, &name);
        match value {
            Some(value) => put_bin(&mut pairs, value),
            None => put_nil(&mut pairs),
        }
    });
    put_array(out, number.unwrap_or(0));
    if number.is_some() {
        out.append(&mut pairs);
    }
}

/// Packs headers as stored state has them.
pub fn read_stored(reader: &mut Reader) -> Option<Vec<u8>> {
    let number = reader.array_len()?;
    let mut packed = Vec::new();
    put_varint(&mut packed, number as i64);
    for _ in 0..number {
        reader.array_of(2)?;
        put_bytes(&mut packed, Some(reader.text()?.as_bytes()));
        put_bytes(&mut packed, reader.optional(Reader::bin)?);
    }
    Some(packed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn headers_are_stored_and_packed_again(
            headers in proptest::collection::vec((".{0,80}", proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300))), 0..5)
        ) {
            let mut packed = Vec::new();
            put_varint(&mut packed, headers.len() as i64);
            for (name, value) in &headers {
                put_bytes(&mut packed, Some(name.as_bytes()));
                put_bytes(&mut packed, value.as_deref());
            }
            let (mut again, mut stored) = (Vec::new(), Vec::new());
            put_packed(&mut again, &packed);
            prop_assert_eq!(&again, &packed);
            put_stored(&mut stored, &packed);
            prop_assert_eq!(read_stored(&mut Reader(&stored)), Some(packed));
        }

        #[test]
        fn any_bytes_are_headers_or_none(packed in proptest::collection::vec(any::<u8>(), 0..60)) {
            let (mut again, mut stored) = (Vec::new(), Vec::new());
            put_packed(&mut again, &packed);
            put_stored(&mut stored, &packed);
            prop_assert!(read_stored(&mut Reader(&stored)).is_some());
        }
    }

    #[test]
    fn a_name_that_is_no_text_is_made_one() {
        assert_eq!(readable(b"a\xff\xc3b\xe2\x82"), r"a\xff\xc3b\xe2\x82");
        assert_eq!(readable("é".as_bytes()), "é");
    }
}
