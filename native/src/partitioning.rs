//! Kafka's default partitioner: the rule of `org.apache.kafka.common.utils.Utils.murmur2`.

/// The unsigned 32-bit murmur2 hash, seed 0x9747b28c.
pub fn murmur2(data: &[u8]) -> u32 {
    const MIXER: u32 = 0x5BD1_E995;
    let mut hash = 0x9747_B28C ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(MIXER);
        k ^= k >> 24;
        hash = hash.wrapping_mul(MIXER) ^ k.wrapping_mul(MIXER);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (index, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * index);
        }
        hash = hash.wrapping_mul(MIXER);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MIXER);
    hash ^ (hash >> 15)
}

/// The partition of a key among `partitions`.
pub fn partition_for(key: &[u8], partitions: u32) -> u32 {
    (murmur2(key) & 0x7FFF_FFFF) % partitions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_as_kafkas_own_tests_say() {
        // The values of org.apache.kafka.common.utils.UtilsTest.testMurmur2.
        for (text, expected) in [
            ("21", -973932308),
            ("foobar", -790332482),
            ("a-little-bit-long-string", -985981536),
            ("a-little-bit-longer-string", -1486304829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ] {
            assert_eq!(murmur2(text.as_bytes()) as i32, expected, "{text}");
        }
    }
}
