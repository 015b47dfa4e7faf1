//! A keyed hash of short texts, for tables whose entries strangers choose: nobody can aim for collisions without the
//! seeds, which the system draws once for each process. Nothing that is stored or written depends on them.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::sync::LazyLock;

use foldhash::quality::SeedableRandomState;
use foldhash::SharedSeed;

static SHARED: LazyLock<SharedSeed> = LazyLock::new(|| SharedSeed::from_u64(drawn()));

/// Random, as far as the standard library's tables are.
fn drawn() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[derive(Clone)]
pub struct Seed(SeedableRandomState);

impl Default for Seed {
    fn default() -> Self {
        Self(SeedableRandomState::with_seed(drawn(), &SHARED))
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("Seed")
    }
}

impl Seed {
    /// A hash whose bits are all good.
    #[inline]
    pub fn hash(&self, bytes: &[u8]) -> u64 {
        let mut hasher = self.0.build_hasher();
        hasher.write(bytes);
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn texts_that_differ_a_little_differ_in_half_of_their_hash() {
        let seed = Seed::default();
        let hashes: HashSet<u32> = (0..100_000).map(|id| seed.hash(format!("{id}").as_bytes()) as u32).collect();
        assert!(hashes.len() > 99_980, "{}", hashes.len()); // by chance one or two are equal
    }
}
