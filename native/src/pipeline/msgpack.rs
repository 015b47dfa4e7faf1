//! MessagePack as `msgspec` writes it: every integer in the fewest bytes, floats in eight, tuples as arrays.

/// Appends a tuple's or a list's length.
pub fn put_array(out: &mut Vec<u8>, length: usize) {
    match length {
        0..=15 => out.push(0x90 | length as u8),
        16..=0xFFFF => put(out, 0xDC, &(length as u16).to_be_bytes()),
        _ => put(out, 0xDD, &(length as u32).to_be_bytes()),
    }
}

pub fn put_integer(out: &mut Vec<u8>, value: i64) {
    match value {
        0..=0x7F => out.push(value as u8),
        0x80..=0xFF => put(out, 0xCC, &(value as u8).to_be_bytes()),
        0x100..=0xFFFF => put(out, 0xCD, &(value as u16).to_be_bytes()),
        0x1_0000..=0xFFFF_FFFF => put(out, 0xCE, &(value as u32).to_be_bytes()),
        0x1_0000_0000.. => put(out, 0xCF, &value.to_be_bytes()),
        -32..=-1 => out.push(value as u8),
        -0x80..=-33 => put(out, 0xD0, &(value as i8).to_be_bytes()),
        -0x8000..=-0x81 => put(out, 0xD1, &(value as i16).to_be_bytes()),
        -0x8000_0000..=-0x8001 => put(out, 0xD2, &(value as i32).to_be_bytes()),
        _ => put(out, 0xD3, &value.to_be_bytes()),
    }
}

pub fn put_optional(out: &mut Vec<u8>, value: Option<i64>) {
    match value {
        Some(value) => put_integer(out, value),
        None => put_nil(out),
    }
}

pub fn put_float(out: &mut Vec<u8>, value: f64) {
    put(out, 0xCB, &value.to_be_bytes());
}

pub fn put_nil(out: &mut Vec<u8>) {
    out.push(0xC0);
}

pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    match bytes.len() {
        0..=0xFF => put(out, 0xC4, &[bytes.len() as u8]),
        0x100..=0xFFFF => put(out, 0xC5, &(bytes.len() as u16).to_be_bytes()),
        _ => put(out, 0xC6, &(bytes.len() as u32).to_be_bytes()),
    }
    out.extend_from_slice(bytes);
}

pub fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    match text.len() {
        0..=31 => out.push(0xA0 | text.len() as u8),
        32..=0xFF => put(out, 0xD9, &[text.len() as u8]),
        0x100..=0xFFFF => put(out, 0xDA, &(text.len() as u16).to_be_bytes()),
        _ => put(out, 0xDB, &(text.len() as u32).to_be_bytes()),
    }
    out.extend_from_slice(text);
}

#[inline(always)]
fn put(out: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    out.push(kind);
    out.extend_from_slice(bytes);
}

/// Reads what the functions above write; `None` where something else stands there.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self { rest: data }
    }

    /// Whether everything was read; `None` where it wasn't.
    pub fn end(&self) -> Option<()> {
        self.rest.is_empty().then_some(())
    }

    fn bytes_of(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    fn fixed<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes_of(N)?.try_into().ok()
    }

    fn kind(&mut self) -> Option<u8> {
        self.fixed::<1>().map(|[kind]| kind)
    }

    pub fn array(&mut self) -> Option<usize> {
        match self.kind()? {
            kind @ 0x90..=0x9F => Some(usize::from(kind & 15)),
            0xDC => Some(u16::from_be_bytes(self.fixed()?).into()),
            0xDD => usize::try_from(u32::from_be_bytes(self.fixed()?)).ok(),
            _ => None,
        }
    }

    /// An array of that length.
    pub fn tuple(&mut self, length: usize) -> Option<()> {
        (self.array()? == length).then_some(())
    }

    pub fn integer(&mut self) -> Option<i64> {
        Some(match self.kind()? {
            kind @ 0..=0x7F => kind.into(),
            kind @ 0xE0..=0xFF => (kind as i8).into(),
            0xCC => u8::from_be_bytes(self.fixed()?).into(),
            0xCD => u16::from_be_bytes(self.fixed()?).into(),
            0xCE => u32::from_be_bytes(self.fixed()?).into(),
            0xCF => i64::try_from(u64::from_be_bytes(self.fixed()?)).ok()?,
            0xD0 => i8::from_be_bytes(self.fixed()?).into(),
            0xD1 => i16::from_be_bytes(self.fixed()?).into(),
            0xD2 => i32::from_be_bytes(self.fixed()?).into(),
            0xD3 => i64::from_be_bytes(self.fixed()?),
            _ => return None,
        })
    }

    /// An integer of 0 or more.
    pub fn count(&mut self) -> Option<u64> {
        u64::try_from(self.integer()?).ok()
    }

    /// A float, or an integer in its place.
    pub fn float(&mut self) -> Option<f64> {
        match self.rest.first()? {
            0xCB => {
                self.kind()?;
                Some(f64::from_be_bytes(self.fixed()?))
            }
            0xCA => {
                self.kind()?;
                Some(f32::from_be_bytes(self.fixed()?).into())
            }
            _ => self.integer().map(|value| value as f64),
        }
    }

    pub fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = match self.kind()? {
            0xC4 => u8::from_be_bytes(self.fixed()?).into(),
            0xC5 => u16::from_be_bytes(self.fixed()?).into(),
            0xC6 => u32::from_be_bytes(self.fixed()?),
            _ => return None,
        };
        self.bytes_of(usize::try_from(length).ok()?)
    }

    pub fn text(&mut self) -> Option<&'a str> {
        let length = match self.kind()? {
            kind @ 0xA0..=0xBF => u32::from(kind & 31),
            0xD9 => u8::from_be_bytes(self.fixed()?).into(),
            0xDA => u16::from_be_bytes(self.fixed()?).into(),
            0xDB => u32::from_be_bytes(self.fixed()?),
            _ => return None,
        };
        std::str::from_utf8(self.bytes_of(usize::try_from(length).ok()?)?).ok()
    }

    /// What `read` reads, or nil: `Some(None)`.
    pub fn optional<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        if self.rest.first() == Some(&0xC0) {
            self.kind()?;
            return Some(None);
        }
        read(self).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(integer in any::<i64>(), shift in 0u32..64, float in any::<f64>(), length in 0usize..70_000) {
            let integer = integer >> shift;
            let text = "x".repeat(length);
            let mut out = Vec::new();
            put_array(&mut out, length);
            put_integer(&mut out, integer);
            put_optional(&mut out, None);
            put_float(&mut out, float);
            put_bytes(&mut out, text.as_bytes());
            put_text(&mut out, text.as_bytes());
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.array(), Some(length));
            prop_assert_eq!(reader.integer(), Some(integer));
            prop_assert_eq!(reader.optional(Reader::integer), Some(None));
            prop_assert_eq!(reader.float().map(f64::to_bits), Some(float.to_bits()));
            prop_assert_eq!(reader.bytes(), Some(text.as_bytes()));
            prop_assert_eq!(reader.text(), Some(text.as_str()));
            prop_assert_eq!(reader.end(), Some(()));
        }

        #[test]
        fn any_bytes_are_read_or_refused(data in proptest::collection::vec(any::<u8>(), 0..20)) {
            let mut reader = Reader::new(&data);
            let _ = (reader.array(), reader.integer(), reader.float(), reader.bytes(), reader.text(), reader.end());
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
