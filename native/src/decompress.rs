//! The payload of a record batch, unpacked, by the codec its header names; never more than a limit.

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

/// Appends what `packed` holds to `out`. Errs where the bytes are not the codec's, or would come to more than `limit`.
pub fn unpack(codec: Codec, packed: &[u8], limit: usize, out: &mut Vec<u8>) -> io::Result<()> {
    match codec {
        Codec::None => {
            bounded(packed.len(), limit)?;
            out.extend_from_slice(packed);
            Ok(())
        }
        Codec::Gzip => drain(flate2::read::MultiGzDecoder::new(packed), limit, out),
        Codec::Lz4 => drain(lz4_flex::frame::FrameDecoder::new(packed), limit, out),
        Codec::Zstd => drain(zstd::stream::read::Decoder::with_buffer(packed)?, limit, out),
        Codec::Snappy => unpack_snappy(packed, limit, out),
    }
}

fn bounded(length: usize, limit: usize) -> io::Result<()> {
    if length > limit {
        return Err(io::Error::other(format!("a record batch unpacks to more than {limit} bytes")));
    }
    Ok(())
}

fn drain(reader: impl Read, limit: usize, out: &mut Vec<u8>) -> io::Result<()> {
    let begin = out.len();
    reader.take(limit as u64 + 1).read_to_end(out)?;
    bounded(out.len() - begin, limit)
}

/// Java's snappy stream: this, a version and a compatible version, then blocks with their lengths before them.
const SNAPPY_STREAM: &[u8] = b"\x82SNAPPY\0";

fn unpack_snappy(packed: &[u8], limit: usize, out: &mut Vec<u8>) -> io::Result<()> {
    let Some(stream) = packed.strip_prefix(SNAPPY_STREAM) else {
        return unpack_block(packed, limit, out);
    };
    let begin = out.len();
    let mut rest = stream.get(8..).ok_or_else(cut_short)?;
    while !rest.is_empty() {
        let (length, behind) = rest.split_first_chunk::<4>().ok_or_else(cut_short)?;
        let length = u32::from_be_bytes(*length) as usize;
        let block = behind.get(..length).ok_or_else(cut_short)?;
        unpack_block(block, limit - (out.len() - begin), out)?;
        rest = &behind[length..];
    }
    Ok(())
}

fn unpack_block(block: &[u8], limit: usize, out: &mut Vec<u8>) -> io::Result<()> {
    let length = snap::raw::decompress_len(block)?;
    bounded(length, limit)?;
    // A block says its length before its content: what it can't hold is not allocated for. Snappy's best is some 21 : 1.
    bounded(length, block.len().saturating_mul(64).max(64))?;
    let begin = out.len();
    out.resize(begin + length, 0);
    let written = snap::raw::Decoder::new().decompress(block, &mut out[begin..])?;
    out.truncate(begin + written);
    Ok(())
}

fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "a snappy stream ends within a block")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::io::Write;

    const LIMIT: usize = 1 << 20;
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
                let mut out = b"before".to_vec();
                unpack(codec, &pack(codec, &data), LIMIT, &mut out).unwrap();
                prop_assert_eq!(&out[6..], &data[..]);
            }
        }

        #[test]
        fn any_bytes_are_refused_or_bounded(data in vec(any::<u8>(), 0..300)) {
            for codec in ALL {
                let mut out = Vec::new();
                if unpack(codec, &data, 4_096, &mut out).is_ok() {
                    prop_assert!(out.len() <= 4_096);
                }
            }
        }
    }

    #[test]
    fn a_bomb_is_refused() {
        let zeros = vec![0; 50 << 20];
        for codec in ALL {
            let mut out = Vec::new();
            assert!(unpack(codec, &pack(codec, &zeros), LIMIT, &mut out).is_err());
            assert!(out.capacity() <= 4 * LIMIT, "{codec:?} kept {}", out.capacity());
        }
    }

    #[test]
    fn the_stream_of_javas_snappy_is_read() {
        let mut packed = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01".to_vec();
        for part in [&b"hello "[..], b"world"] {
            let block = pack(Codec::Snappy, part);
            packed.extend((block.len() as u32).to_be_bytes());
            packed.extend(block);
        }
        let mut out = Vec::new();
        unpack(Codec::Snappy, &packed, LIMIT, &mut out).unwrap();
        assert_eq!(out, b"hello world");
        assert!(unpack(Codec::Snappy, &packed[..packed.len() - 1], LIMIT, &mut Vec::new()).is_err());
    }
}
