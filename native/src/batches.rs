//! Record batches of Kafka's format v2, built from packed records: closed ones, which only lack what a producer knows at
//! the time of sending.

use std::io;

use crate::compress::Packer;
use crate::decompress::Codec;
use crate::packed::{Entry, Records};
use crate::partitioning::partition_for;
use crate::varint::{put_varint, varint_len};

/// Bytes before the records.
pub const HEAD_LEN: usize = 61;
/// Where the length counts from, and the checksum.
const AFTER_LENGTH: usize = 12;
const ATTRIBUTES_AT: usize = 21;
const MAGIC: u8 = 2;
const TRANSACTIONAL: u16 = 16;

/// Where records go, and in what batches.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Of the topic; a record's key tells which is its own.
    pub partitions: u32,
    /// The one of all records, whatever their keys.
    pub partition: Option<u32>,
    /// The one of records without a key.
    pub keyless: u32,
    /// Bytes of a batch before it is compressed; a record that alone has more gets a batch of its own.
    pub limit: usize,
    /// The timestamp of records that have none.
    pub now_ms: i64,
    pub codec: Codec,
}

/// What a producer knows of a batch that it sends; -1, -1 and 0 where it is not idempotent.
#[derive(Clone, Copy, Debug)]
pub struct Producer {
    pub id: i64,
    pub epoch: i16,
    pub base_sequence: i32,
    pub is_transactional: bool,
}

/// A closed batch.
#[derive(Debug)]
pub struct Batch {
    payload: Vec<u8>,
    codec: Codec,
    count: u32,
    first_timestamp: i64,
    max_timestamp: i64,
}

impl Batch {
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Bytes of all of it.
    pub fn size(&self) -> usize {
        HEAD_LEN + self.payload.len()
    }

    /// Writes all of it to `out`, which has `size` bytes.
    pub fn write(&self, producer: &Producer, out: &mut [u8]) {
        let attributes = self.codec as u16 | if producer.is_transactional { TRANSACTIONAL } else { 0 };
        let (head, payload) = out.split_at_mut(HEAD_LEN);
        payload.copy_from_slice(&self.payload);
        let mut rest = head;
        let mut put = |bytes: &[u8]| {
            let (field, behind) = std::mem::take(&mut rest).split_at_mut(bytes.len());
            field.copy_from_slice(bytes);
            rest = behind;
        };
        put(&0_i64.to_be_bytes()); // the base offset, which the broker says
        put(&((self.size() - AFTER_LENGTH) as u32).to_be_bytes());
        put(&(-1_i32).to_be_bytes()); // the leader's epoch, which the broker says
        put(&[MAGIC]);
        put(&[0; 4]); // the checksum, below
        put(&attributes.to_be_bytes());
        put(&self.count.wrapping_sub(1).to_be_bytes());
        put(&self.first_timestamp.to_be_bytes());
        put(&self.max_timestamp.to_be_bytes());
        put(&producer.id.to_be_bytes());
        put(&producer.epoch.to_be_bytes());
        put(&producer.base_sequence.to_be_bytes());
        put(&self.count.to_be_bytes());
        let checksum = crc32c::crc32c(&out[ATTRIBUTES_AT..]);
        out[ATTRIBUTES_AT - 4..ATTRIBUTES_AT].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// A batch that is being filled.
#[derive(Default)]
struct Open {
    payload: Vec<u8>,
    count: u32,
    first_timestamp: i64,
    max_timestamp: i64,
}

impl Open {
    /// Appends a record; false where the batch is full. An empty one takes any.
    fn take(&mut self, entry: &Entry, plan: &Plan) -> bool {
        let timestamp = entry.timestamp.unwrap_or(plan.now_ms);
        if self.count == 0 {
            self.first_timestamp = timestamp;
            self.max_timestamp = timestamp;
        }
        let delta = timestamp.wrapping_sub(self.first_timestamp);
        let key_len = entry.key.map_or(-1, |key| key.len() as i64);
        let value_len = entry.value.map_or(-1, |value| value.len() as i64);
        let len = 1
            + varint_len(delta)
            + varint_len(i64::from(self.count))
            + (varint_len(key_len) + entry.key.map_or(0, <[u8]>::len))
            + (varint_len(value_len) + entry.value.map_or(0, <[u8]>::len))
            + entry.headers_wire.len();
        let whole = varint_len(len as i64) + len;
        if self.count > 0 && HEAD_LEN + self.payload.len() + whole > plan.limit {
            return false;
        }
        let out = &mut self.payload;
        out.reserve(whole);
        put_varint(out, len as i64);
        out.push(0); // attributes
        put_varint(out, delta);
        put_varint(out, i64::from(self.count));
        put_varint(out, key_len);
        out.extend_from_slice(entry.key.unwrap_or_default());
        put_varint(out, value_len);
        out.extend_from_slice(entry.value.unwrap_or_default());
        out.extend_from_slice(entry.headers_wire);
        self.max_timestamp = self.max_timestamp.max(timestamp);
        self.count += 1;
        true
    }

    /// Closes the batch; it stays uncompressed where compressing it gains nothing.
    fn close(self, codec: Codec, packer: &mut Packer) -> io::Result<Batch> {
        let Self { payload, count, first_timestamp, max_timestamp } = self;
        let packed = if codec == Codec::None { None } else { Some(packer.pack(codec, &payload)?) };
        let (payload, codec) = match packed.filter(|packed| packed.len() < payload.len()) {
            Some(packed) => (packed, codec),
            None => (payload, Codec::None),
        };
        Ok(Batch { payload, codec, count, first_timestamp, max_timestamp })
    }
}

/// The batches of records, and the partition that each is for; in order, those of one partition.
pub fn build(records: &Records, plan: &Plan) -> io::Result<Vec<(u32, Batch)>> {
    let mut packer = Packer::default();
    let mut closed = Vec::new();
    let mut open: Vec<(u32, Open)> = Vec::new();
    let mut places = hashbrown::HashMap::<u32, usize, foldhash::fast::RandomState>::default();
    for entry in records.iter() {
        let to = match (plan.partition, entry.key) {
            (Some(partition), _) => partition,
            (None, Some(key)) => partition_for(key, plan.partitions),
            (None, None) => plan.keyless,
        };
        let place = match open.first() {
            Some((first, _)) if *first == to => 0,
            _ => *places.entry(to).or_insert_with(|| {
                open.push((to, Open::default()));
                open.len() - 1
            }),
        };
        let filled = &mut open[place].1;
        if !filled.take(&entry, plan) {
            closed.push((to, std::mem::take(filled).close(plan.codec, &mut packer)?));
            filled.take(&entry, plan);
        }
    }
    for (to, filled) in open {
        closed.push((to, filled.close(plan.codec, &mut packer)?));
    }
    Ok(closed)
}
