//! The payload of a record batch, packed as Kafka's clients read it; the other half of `decompress`.

use std::io::{self, Write};

use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};

use crate::decompress::Codec;

/// As Kafka's producers have it where nothing else is set.
const ZSTD_LEVEL: i32 = 3;
const GZIP_LEVEL: u32 = 6;

/// What Java's snappy stream begins with: its name, its version, and the oldest version that reads it.
const SNAPPY_HEAD: &[u8] = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01";
const SNAPPY_BLOCK: usize = 32 * 1024;

/// Packs payloads one after another.
#[derive(Default)]
pub struct Packer {
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl Packer {
    pub fn pack(&mut self, codec: Codec, payload: &[u8]) -> io::Result<Vec<u8>> {
        match codec {
            Codec::None => Ok(payload.to_vec()),
            Codec::Gzip => {
                let level = flate2::Compression::new(GZIP_LEVEL);
                let mut writer = flate2::write::GzEncoder::new(Vec::with_capacity(payload.len() / 2), level);
                writer.write_all(payload)?;
                writer.finish()
            }
            Codec::Snappy => pack_snappy(payload),
            Codec::Lz4 => {
                // Kafka's readers know no blocks that refer to others.
                let info = FrameInfo::new().block_mode(BlockMode::Independent).block_size(BlockSize::Max64KB);
                let mut writer = FrameEncoder::with_frame_info(info, Vec::with_capacity(payload.len() / 2));
                writer.write_all(payload)?;
                writer.finish().map_err(io::Error::other)
            }
            Codec::Zstd => {
                let packer = match &mut self.zstd {
                    Some(packer) => packer,
                    none => none.insert(zstd::bulk::Compressor::new(ZSTD_LEVEL)?),
                };
                packer.compress(payload)
            }
        }
    }
}

fn pack_snappy(payload: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = snap::raw::Encoder::new();
    let mut out = SNAPPY_HEAD.to_vec();
    for block in payload.chunks(SNAPPY_BLOCK) {
        let at = out.len();
        out.resize(at + 4 + snap::raw::max_compress_len(block.len()), 0);
        let written = encoder.compress(block, &mut out[at + 4..])?;
        out[at..at + 4].copy_from_slice(&(written as u32).to_be_bytes());
        out.truncate(at + 4 + written);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decompress::unpacked;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const ALL: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(data in vec(0u8..20, 0..100_000)) {
            let mut packer = Packer::default();
            for codec in ALL {
                let packed = packer.pack(codec, &data).unwrap();
                prop_assert_eq!(&unpacked(codec, &packed).unwrap(), &data);
            }
        }
    }

    #[test]
    fn lz4_has_independent_blocks_and_no_checksum_of_the_content() {
        let packed = Packer::default().pack(Codec::Lz4, &[7; 100_000]).unwrap();
        assert_eq!(&packed[..4], &0x184D_2204_u32.to_le_bytes());
        assert_eq!(packed[4], 0b0110_0000);
    }
}
