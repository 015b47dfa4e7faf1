//! A batch's records, unpacked piece by piece: what is in memory is a piece, or the one record that is longer than that,
//! whatever the batch unpacks to. A batch of 160 KiB can hold gigabytes, and Kafka takes it.

use std::io::{self, Read};

use crate::decompress::{reader, Codec};
use crate::records::{excerpt, BatchHead, OwnRecord, EXCERPT, LARGEST_RECORD, LENGTH_BYTES};

/// Bytes that are unpacked at once.
pub const PIECE: usize = 1 << 22;

enum Source<B> {
    /// Nothing is packed: all of it is one piece.
    Plain(B),
    Packed(Box<dyn Read + Send + Sync>),
    /// Its last piece is unpacked.
    Drained,
}

/// The payload of one batch.
pub struct Payload<B> {
    source: Source<B>,
    piece: Vec<u8>,
}

impl<B: AsRef<[u8]> + Send + Sync + 'static> Payload<B> {
    /// `room`: for the pieces; what it holds is dropped. Errs where the bytes are not the codec's.
    pub fn new(codec: Codec, packed: B, mut room: Vec<u8>) -> io::Result<Self> {
        room.clear();
        if codec == Codec::None {
            return Ok(Self { source: Source::Plain(packed), piece: room });
        }
        let mut new = Self { source: Source::Packed(reader(codec, packed)?), piece: room };
        new.read(0)?;
        Ok(new)
    }

    /// The current piece, from the record on that the last call of `more` or `skip` left at its begin.
    pub fn piece(&self) -> &[u8] {
        match &self.source {
            Source::Plain(bytes) => bytes.as_ref(),
            _ => &self.piece,
        }
    }

    /// Whether nothing follows the piece.
    pub fn is_last(&self) -> bool {
        !matches!(self.source, Source::Packed(_))
    }

    /// Drops the piece's first `done` bytes and unpacks more behind it, so that it holds `wanted` bytes if there are as
    /// many. Only where it is not the last.
    pub fn more(&mut self, done: usize, wanted: usize) -> io::Result<()> {
        self.piece.drain(..done);
        self.read(wanted.min(LARGEST_RECORD + PIECE))
    }

    /// Passes so many bytes after `position` of the piece, which may have only the first of them; the position behind
    /// them, `None` where there are fewer.
    pub fn skip(&mut self, position: usize, bytes: usize) -> io::Result<Option<usize>> {
        let mut end = position.saturating_add(bytes);
        while end > self.piece().len() && !self.is_last() {
            end -= self.piece.len();
            self.piece.clear();
            self.read(0)?;
        }
        Ok((end <= self.piece().len()).then_some(end))
    }

    /// Reads the begin of a record of `length` bytes that is too long to be read, at a position of the piece, and passes
    /// it: what there is of it, and the position behind it. `None`: it is not what the format says.
    pub fn pass_large(
        &mut self,
        head: &BatchHead,
        position: usize,
        length: usize,
    ) -> io::Result<Option<(OwnRecord, usize)>> {
        let (mut position, wanted) = (position, EXCERPT + LENGTH_BYTES);
        if self.piece().len() - position < wanted && !self.is_last() {
            self.more(position, wanted)?;
            position = 0;
        }
        let Some((record, body_begin)) = excerpt(self.piece(), position, head) else { return Ok(None) };
        Ok(self.skip(body_begin, length)?.map(|end| (record, end)))
    }

    /// The room of the pieces, for the next batch.
    pub fn into_room(self) -> Vec<u8> {
        self.piece
    }

    /// Unpacks a piece, and more until there are `wanted` bytes.
    fn read(&mut self, wanted: usize) -> io::Result<()> {
        while let Source::Packed(reader) = &mut self.source {
            let more = reader.take(PIECE as u64).read_to_end(&mut self.piece)?;
            if more < PIECE {
                self.source = Source::Drained;
            }
            if self.piece.len() >= wanted {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::Packer;

    #[test]
    fn pieces_are_what_was_packed_and_stay_short() {
        let data: Vec<u8> = (0..3 * PIECE + 77).map(|number| (number / 7_000) as u8).collect();
        for codec in [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
            let packed = match codec {
                Codec::None => data.clone(),
                _ => Packer::default().pack(codec, &data).unwrap(),
            };
            let mut payload = Payload::new(codec, packed, vec![1, 2, 3]).unwrap();
            let mut found = Vec::new();
            while !payload.is_last() {
                let done = payload.piece().len() - 5;
                assert!(done <= 2 * PIECE);
                found.extend_from_slice(&payload.piece()[..done]);
                payload.more(done, 100).unwrap();
            }
            found.extend_from_slice(payload.piece());
            assert!(found == data, "{codec:?}");
        }
    }

    #[test]
    fn what_is_skipped_is_not_kept() {
        let mut data = vec![0; 40 << 20];
        data.extend_from_slice(b"behind");
        let packed = Packer::default().pack(Codec::Zstd, &data).unwrap();
        let mut payload = Payload::new(Codec::Zstd, packed, Vec::new()).unwrap();
        let behind = payload.skip(1, 40 << 20).unwrap().unwrap();
        assert_eq!(&payload.piece()[behind..], b"ehind");
        assert!(payload.into_room().capacity() <= 3 * PIECE);
        let packed = Packer::default().pack(Codec::Zstd, &data).unwrap();
        assert!(Payload::new(Codec::Zstd, packed, Vec::new()).unwrap().skip(0, 50 << 20).unwrap().is_none());
    }
}
