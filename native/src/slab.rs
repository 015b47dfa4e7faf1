//! Rows that are numbered and reused, in chunks: growing moves nothing, so no step pays for all the rows there are.

const CHUNK: usize = 1 << CHUNK_BITS;
const CHUNK_BITS: u32 = 10;

/// No row.
pub const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub struct Slab<T> {
    chunks: Vec<Vec<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// Puts a value into a free row, and says which.
    pub fn insert(&mut self, value: T) -> u32 {
        if let Some(row) = self.free.pop() {
            self[row] = value;
            return row;
        }
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            let size = if self.chunks.is_empty() { 4 } else { CHUNK };
            self.chunks.push(Vec::with_capacity(size));
        }
        let number = self.chunks.len() - 1;
        let chunk = &mut self.chunks[number];
        chunk.push(value);
        ((number << CHUNK_BITS) + chunk.len() - 1) as u32
    }

    /// How many rows there are, used or not.
    pub fn len(&self) -> usize {
        self.chunks.iter().map(Vec::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Lets a row be used again; what is in it stays until then.
    pub fn free(&mut self, row: u32) {
        self.free.push(row);
    }
}

impl<T> std::ops::Index<u32> for Slab<T> {
    type Output = T;

    #[inline(always)]
    fn index(&self, row: u32) -> &T {
        &self.chunks[(row >> CHUNK_BITS) as usize][row as usize & (CHUNK - 1)]
    }
}

impl<T> std::ops::IndexMut<u32> for Slab<T> {
    #[inline(always)]
    fn index_mut(&mut self, row: u32) -> &mut T {
        &mut self.chunks[(row >> CHUNK_BITS) as usize][row as usize & (CHUNK - 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_keep_their_numbers_and_are_reused() {
        let mut slab = Slab::default();
        let rows: Vec<u32> = (0..3_000).map(|value| slab.insert(value)).collect();
        assert!(rows.iter().enumerate().all(|(value, row)| slab[*row] == value));
        slab.free(rows[7]);
        assert_eq!(slab.insert(70_000), rows[7]);
        assert_eq!(slab[rows[7]], 70_000);
    }
}
