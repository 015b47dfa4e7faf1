//! MessagePack, as much of it as the changelog's records need: what is written is what msgspec writes, to the byte, and
//! what is read must be that; anything else is refused with `None`.

pub fn put_array(out: &mut Vec<u8>, length: usize) {
    match length {
        0..16 => out.push(0x90 | length as u8),
        16..0x1_0000 => {
            out.push(0xDC);
            out.extend((length as u16).to_be_bytes());
        }
        _ => {
            out.push(0xDD);
            out.extend((length as u32).to_be_bytes());
        }
    }
}

pub fn put_unsigned(out: &mut Vec<u8>, value: u64) {
    match value {
        0..0x80 => out.push(value as u8),
        0x80..0x100 => out.extend([0xCC, value as u8]),
        0x100..0x1_0000 => {
            out.push(0xCD);
            out.extend((value as u16).to_be_bytes());
        }
        0x1_0000..0x1_0000_0000 => {
            out.push(0xCE);
            out.extend((value as u32).to_be_bytes());
        }
        _ => {
            out.push(0xCF);
            out.extend(value.to_be_bytes());
        }
    }
}

pub fn put_integer(out: &mut Vec<u8>, value: i64) {
    match value {
        0.. => put_unsigned(out, value as u64),
        -0x20..0 => out.push(value as u8),
        -0x80..-0x20 => out.extend([0xD0, value as u8]),
        -0x8000..-0x80 => {
            out.push(0xD1);
            out.extend((value as i16).to_be_bytes());
        }
        -0x8000_0000..-0x8000 => {
            out.push(0xD2);
            out.extend((value as i32).to_be_bytes());
        }
        _ => {
            out.push(0xD3);
            out.extend(value.to_be_bytes());
        }
    }
}

pub fn put_float(out: &mut Vec<u8>, value: f64) {
    out.push(0xCB);
    out.extend(value.to_be_bytes());
}

pub fn put_bool(out: &mut Vec<u8>, value: bool) {
    out.push(if value { 0xC3 } else { 0xC2 });
}

pub fn put_nil(out: &mut Vec<u8>) {
    out.push(0xC0);
}

pub fn put_optional(out: &mut Vec<u8>, value: Option<i64>) {
    match value {
        Some(value) => put_integer(out, value),
        None => put_nil(out),
    }
}

pub fn put_text(out: &mut Vec<u8>, text: &str) {
    match text.len() {
        length @ 0..0x20 => out.push(0xA0 | length as u8),
        length @ 0x20..0x100 => out.extend([0xD9, length as u8]),
        length @ 0x100..0x1_0000 => {
            out.push(0xDA);
            out.extend((length as u16).to_be_bytes());
        }
        length => {
            out.push(0xDB);
            out.extend((length as u32).to_be_bytes());
        }
    }
    out.extend_from_slice(text.as_bytes());
}

pub fn put_bin(out: &mut Vec<u8>, value: &[u8]) {
    match value.len() {
        0..0x100 => out.extend([0xC4, value.len() as u8]),
        0x100..0x1_0000 => {
            out.push(0xC5);
            out.extend((value.len() as u16).to_be_bytes());
        }
        _ => {
            out.push(0xC6);
            out.extend((value.len() as u32).to_be_bytes());
        }
    }
    out.extend_from_slice(value);
}

/// Reads from the front of what is left.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|bytes| bytes[0])
    }

    /// Passes a nil where one is next.
    pub fn nil(&mut self) -> bool {
        let found = self.0.first() == Some(&0xC0);
        if found {
            self.0 = &self.0[1..];
        }
        found
    }

    pub fn array_len(&mut self) -> Option<usize> {
        Some(match self.byte()? {
            head @ 0x90..=0x9F => usize::from(head & 0x0F),
            0xDC => u16::from_be_bytes(self.array()?).into(),
            0xDD => u32::from_be_bytes(self.array()?) as usize,
            _ => return None,
        })
    }

    /// Whether everything was read; `None` where it wasn't.
    pub fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }

    /// What `read` reads, or nil: `Some(None)`.
    pub fn optional<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        if self.nil() {
            return Some(None);
        }
        read(self).map(Some)
    }

    /// An integer of 0 or more, of those that `integer` reads.
    pub fn count(&mut self) -> Option<u64> {
        u64::try_from(self.integer()?).ok()
    }

    /// Passes the head of an array of `length`.
    pub fn array_of(&mut self, length: usize) -> Option<()> {
        (self.array_len()? == length).then_some(())
    }

    pub fn unsigned(&mut self) -> Option<u64> {
        Some(match self.byte()? {
            head @ 0..=0x7F => head.into(),
            0xCC => self.byte()?.into(),
            0xCD => u16::from_be_bytes(self.array()?).into(),
            0xCE => u32::from_be_bytes(self.array()?).into(),
            0xCF => u64::from_be_bytes(self.array()?),
            _ => return None,
        })
    }

    pub fn integer(&mut self) -> Option<i64> {
        let negative = match *self.0.first()? {
            head @ 0xE0..=0xFF => {
                self.byte()?;
                (head as i8).into()
            }
            0xD0 => i8::from_be_bytes(self.behind_head()?).into(),
            0xD1 => i16::from_be_bytes(self.behind_head()?).into(),
            0xD2 => i32::from_be_bytes(self.behind_head()?).into(),
            0xD3 => i64::from_be_bytes(self.behind_head()?),
            _ => return self.unsigned()?.try_into().ok(),
        };
        Some(negative)
    }

    fn behind_head<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.byte()?;
        self.array()
    }

    pub fn float(&mut self) -> Option<f64> {
        (self.byte()? == 0xCB).then_some(())?;
        self.array().map(f64::from_be_bytes)
    }

    /// A float, or an integer in its place.
    pub fn number(&mut self) -> Option<f64> {
        match self.0.first()? {
            0xCA => self.behind_head().map(|bytes| f32::from_be_bytes(bytes).into()),
            0xCB => self.float(),
            _ => self.integer().map(|value| value as f64),
        }
    }

    pub fn bool(&mut self) -> Option<bool> {
        match self.byte()? {
            0xC2 => Some(false),
            0xC3 => Some(true),
            _ => None,
        }
    }

    pub fn text(&mut self) -> Option<&'a str> {
        let length = match self.byte()? {
            head @ 0xA0..=0xBF => usize::from(head & 0x1F),
            0xD9 => usize::from(self.byte()?),
            0xDA => u16::from_be_bytes(self.array()?).into(),
            0xDB => u32::from_be_bytes(self.array()?) as usize,
            _ => return None,
        };
        std::str::from_utf8(self.take(length)?).ok()
    }

    pub fn bin(&mut self) -> Option<&'a [u8]> {
        let length = match self.byte()? {
            0xC4 => usize::from(self.byte()?),
            0xC5 => u16::from_be_bytes(self.array()?).into(),
            0xC6 => u32::from_be_bytes(self.array()?) as usize,
            _ => return None,
        };
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn integers() -> impl Strategy<Value = i64> {
        (any::<i64>(), 0u32..64).prop_map(|(value, shift)| value >> shift)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(value in integers(), float in any::<f64>(), text in ".{0,300}", bytes in proptest::collection::vec(any::<u8>(), 0..300), flag in any::<bool>()) {
            let mut out = Vec::new();
            put_array(&mut out, text.len());
            put_integer(&mut out, value);
            put_unsigned(&mut out, value as u64);
            put_float(&mut out, float);
            put_text(&mut out, &text);
            put_bin(&mut out, &bytes);
            put_bool(&mut out, flag);
            put_nil(&mut out);
            let mut reader = Reader(&out);
            prop_assert_eq!(reader.array_len(), Some(text.len()));
            prop_assert_eq!(reader.integer(), Some(value));
            prop_assert_eq!(reader.unsigned(), Some(value as u64));
            prop_assert_eq!(reader.float().map(f64::to_bits), Some(float.to_bits()));
            prop_assert_eq!(reader.text(), Some(text.as_str()));
            prop_assert_eq!(reader.bin(), Some(bytes.as_slice()));
            prop_assert_eq!(reader.bool(), Some(flag));
            prop_assert!(reader.nil() && reader.0.is_empty());
        }

        #[test]
        fn what_is_long_is_read(integer in any::<i64>(), shift in 0u32..64, float in any::<f64>(), length in 0usize..70_000) {
            let integer = integer >> shift;
            let text = "x".repeat(length);
            let mut out = Vec::new();
            put_array(&mut out, length);
            put_integer(&mut out, integer);
            put_optional(&mut out, None);
            put_float(&mut out, float);
            put_bin(&mut out, text.as_bytes());
            put_text(&mut out, &text);
            let mut reader = Reader(&out);
            prop_assert_eq!(reader.array_len(), Some(length));
            prop_assert_eq!(reader.integer(), Some(integer));
            prop_assert_eq!(reader.optional(Reader::integer), Some(None));
            prop_assert_eq!(reader.number().map(f64::to_bits), Some(float.to_bits()));
            prop_assert_eq!(reader.bin(), Some(text.as_bytes()));
            prop_assert_eq!(reader.text(), Some(text.as_str()));
            prop_assert_eq!(reader.end(), Some(()));
        }

        #[test]
        fn any_bytes_are_read_or_refused(data in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = (Reader(&data).integer(), Reader(&data).text(), Reader(&data).bin(), Reader(&data).float());
            let mut reader = Reader(&data);
            let _ = (reader.array_len(), reader.integer(), reader.number(), reader.bin(), reader.text(), reader.end());
        }
    }

    #[test]
    fn integers_take_the_fewest_bytes() {
        for (value, expected) in [
            (127, &[0x7F][..]),
            (128, &[0xCC, 0x80]),
            (65_535, &[0xCD, 0xFF, 0xFF]),
            (1 << 32, &[0xCF, 0, 0, 0, 1, 0, 0, 0, 0]),
            (-32, &[0xE0]),
            (-33, &[0xD0, 0xDF]),
            (-129, &[0xD1, 0xFF, 0x7F]),
            (-32_769, &[0xD2, 0xFF, 0xFF, 0x7F, 0xFF]),
        ] {
            let mut out = Vec::new();
            put_integer(&mut out, value);
            assert_eq!(out, expected, "{value}");
        }
    }
}
