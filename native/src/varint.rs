//! What Kafka's record format v2 is made of: integers as zigzag varints, and bytes with their length before them.

#[inline]
fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

#[inline]
pub fn put_varint(out: &mut Vec<u8>, value: i64) {
    let mut left = zigzag(value);
    while left > 127 {
        out.push(left as u8 | 128);
        left >>= 7;
    }
    out.push(left as u8);
}

/// Bytes that `put_varint` writes.
#[inline]
pub fn varint_len(value: i64) -> usize {
    let bits = 64 - (zigzag(value) | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Appends bytes with their length before them, -1 for null.
pub fn put_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => put_varint(out, -1),
        Some(bytes) => {
            put_varint(out, bytes.len() as i64);
            out.extend_from_slice(bytes);
        }
    }
}

/// A zigzag varint of at most ten bytes, and the position after it.
#[inline(always)]
pub fn varint(data: &[u8], position: usize) -> Option<(i64, usize)> {
    let first = *data.get(position)?;
    if first < 0x80 {
        return Some((i64::from(first >> 1) ^ -i64::from(first & 1), position + 1));
    }
    let second = *data.get(position + 1)?;
    if second < 0x80 {
        let value = i64::from(first & 0x7F) | i64::from(second) << 7;
        return Some(((value >> 1) ^ -(value & 1), position + 2));
    }
    long_varint(data, position)
}

fn long_varint(data: &[u8], position: usize) -> Option<(i64, usize)> {
    let first = *data.get(position)?;
    let mut value = u64::from(first & 0x7F);
    for index in 1..10 {
        let byte = *data.get(position + index)?;
        value |= u64::from(byte & 0x7F) << (7 * index);
        if byte < 0x80 {
            return Some(((value >> 1) as i64 ^ -((value & 1) as i64), position + index + 1));
        }
    }
    None
}

/// Bytes with their length before them, -1 for null, and the position after them.
#[inline(always)]
pub fn bytes(data: &[u8], position: usize) -> Option<(Option<&[u8]>, usize)> {
    let (length, position) = varint(data, position)?;
    if length < 0 {
        return Some((None, position));
    }
    let end = position.checked_add(usize::try_from(length).ok()?)?;
    Some((Some(data.get(position..end)?), end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn varints_are_as_long_as_said(value in any::<i64>()) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            prop_assert_eq!(out.len(), varint_len(value));
            prop_assert_eq!(varint(&out, 0), Some((value, out.len())));
        }
    }

    #[test]
    fn lengths_are_those_of_what_is_written() {
        for shift in 0..64 {
            for value in [1i64 << shift, (1i64 << shift).wrapping_sub(1), -(1i64 << (shift % 63)), 0, i64::MIN] {
                let mut out = Vec::new();
                put_varint(&mut out, value);
                assert_eq!(out.len(), varint_len(value), "{value}");
            }
        }
        let mut out = Vec::new();
        put_varint(&mut out, -1);
        put_varint(&mut out, 300);
        assert_eq!(out, [1, 0xD8, 4]);
    }
}
