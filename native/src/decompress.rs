//! The payload of a record batch, unpacked as it is read, by the codec that its header names.

use std::io::{self, Read};

/// The codec bits of a batch's attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

impl Codec {
    pub fn from_attributes(attributes: u16) -> Option<Self> {
        match attributes & 7 {
            0 => Some(Self::None),
            1 => Some(Self::Gzip),
            2 => Some(Self::Snappy),
            3 => Some(Self::Lz4),
            4 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// No snappy block may unpack to more: all of one is in memory.
const LARGEST_BLOCK: usize = 1 << 28;

/// What unpacks `packed`, as it is read. Errs, or gives errors, where the bytes are not the codec's.
pub fn reader<B: AsRef<[u8]> + Send + Sync + 'static>(
    codec: Codec,
    packed: B,
) -> io::Result<Box<dyn Read + Send + Sync>> {
    let packed = io::Cursor::new(packed);
    Ok(match codec {
        Codec::None => Box::new(packed),
        Codec::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
        Codec::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(packed)),
        Codec::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(packed)?),
        Codec::Snappy => Box::new(Snappy::new(packed)?),
    })
}

/// Java's snappy stream: this, a version and a compatible version, then blocks with their lengths before them.
const SNAPPY_STREAM: &[u8] = b"\x82SNAPPY\0";

/// Snappy's blocks, one after another; or the one block that other clients write.
struct Snappy<B> {
    packed: io::Cursor<B>,
    is_stream: bool,
    block: Vec<u8>,
    given: usize,
}

impl<B: AsRef<[u8]>> Snappy<B> {
    fn new(mut packed: io::Cursor<B>) -> io::Result<Self> {
        let bytes = packed.get_ref().as_ref();
        let is_stream = bytes.starts_with(SNAPPY_STREAM);
        if is_stream {
            let begin = SNAPPY_STREAM.len() + 8;
            bytes.get(begin..).ok_or_else(cut_short)?;
            packed.set_position(begin as u64);
        }
        Ok(Self { packed, is_stream, block: Vec::new(), given: 0 })
    }

    /// Unpacks the next block.
    fn next_block(&mut self) -> io::Result<()> {
        let bytes = self.packed.get_ref().as_ref();
        let rest = &bytes[self.packed.position() as usize..];
        let (block, end) = match self.is_stream {
            false => (rest, bytes.len()),
            true => {
                let (length, behind) = rest.split_first_chunk::<4>().ok_or_else(cut_short)?;
                let block = behind.get(..u32::from_be_bytes(*length) as usize).ok_or_else(cut_short)?;
                (block, bytes.len() - behind.len() + block.len())
            }
        };
        unpack_block(block, &mut self.block)?;
        self.given = 0;
        self.packed.set_position(end as u64);
        Ok(())
    }
}

impl<B: AsRef<[u8]>> Read for Snappy<B> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.given == self.block.len() {
            if self.packed.position() as usize == self.packed.get_ref().as_ref().len() {
                return Ok(0);
            }
            self.next_block()?;
        }
        let some = (self.block.len() - self.given).min(out.len());
        out[..some].copy_from_slice(&self.block[self.given..self.given + some]);
        self.given += some;
        Ok(some)
    }
}

fn bounded(length: usize, limit: usize) -> io::Result<()> {
    if length > limit {
        return Err(io::Error::other(format!("a snappy block says that it unpacks to {length} bytes")));
    }
    Ok(())
}

fn unpack_block(block: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let length = snap::raw::decompress_len(block)?;
    // A block says its length before its content: what it can't hold is not allocated for. Snappy's best is some 21 : 1.
    bounded(length, LARGEST_BLOCK.min(block.len().saturating_mul(64).max(64)))?;
    out.clear();
    out.resize(length, 0);
    let written = snap::raw::Decoder::new().decompress(block, out)?;
    out.truncate(written);
    Ok(())
}

fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "a snappy stream ends within a block")
}

/// All of it at once.
#[cfg(test)]
pub fn unpacked(codec: Codec, packed: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    reader(codec, packed.to_vec())?.read_to_end(&mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::io::Write;

    const ALL: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];

    fn pack(codec: Codec, data: &[u8]) -> Vec<u8> {
        match codec {
            Codec::None => data.to_vec(),
            Codec::Gzip => {
                let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                writer.write_all(data).unwrap();
                writer.finish().unwrap()
            }
            Codec::Snappy => snap::raw::Encoder::new().compress_vec(data).unwrap(),
            Codec::Lz4 => {
                let mut writer = lz4_flex::frame::FrameEncoder::new(Vec::new());
                writer.write_all(data).unwrap();
                writer.finish().unwrap()
            }
            Codec::Zstd => zstd::stream::encode_all(data, 1).unwrap(),
        }
    }

    proptest! {
        #[test]
        fn what_was_packed_is_unpacked(data in vec(0u8..20, 0..5_000)) {
            for codec in ALL {
                prop_assert_eq!(unpacked(codec, &pack(codec, &data)).unwrap(), &data[..]);
            }
        }

        #[test]
        fn any_bytes_are_refused_or_read(data in vec(any::<u8>(), 0..300)) {
            for codec in ALL {
                let _ = unpacked(codec, &data);
            }
        }
    }

    #[test]
    fn a_snappy_block_that_lies_about_its_length_is_not_allocated_for() {
        assert!(unpacked(Codec::Snappy, b"\xff\xff\xff\xff\x0fabc").is_err());
    }

    #[test]
    fn the_stream_of_javas_snappy_is_read() {
        let mut packed = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01".to_vec();
        for part in [&b"hello "[..], b"world"] {
            let block = pack(Codec::Snappy, part);
            packed.extend((block.len() as u32).to_be_bytes());
            packed.extend(block);
        }
        assert_eq!(unpacked(Codec::Snappy, &packed).unwrap(), b"hello world");
        assert!(unpacked(Codec::Snappy, &packed[..packed.len() - 1]).is_err());
    }
}
