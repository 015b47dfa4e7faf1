//! The windows that differ from what is stored of them, in the order in which they first did.

use crate::slab::{Slab, NONE};
use crate::window::{Window, IN_CHANGES};

const SWEEP_AT: usize = 64;

#[derive(Debug, Default)]
pub struct Changes {
    /// Rows; `NONE` where a window went before anything of it was stored.
    rows: Vec<u32>,
    gone: usize,
}

impl Changes {
    #[inline]
    pub fn note(&mut self, row: u32, window: &mut Window) {
        window.flags |= IN_CHANGES;
        window.change = self.rows.len() as u32;
        self.rows.push(row);
    }

    /// Puts a window in the place of another, which must be here.
    pub fn replace(&mut self, other: u32, row: u32, windows: &mut Slab<Window>) {
        let place = windows[other].change;
        self.rows[place as usize] = row;
        let window = &mut windows[row];
        window.flags |= IN_CHANGES;
        window.change = place;
    }

    /// Takes out a window of which nothing is stored.
    pub fn forget(&mut self, window: &mut Window) {
        window.flags &= !IN_CHANGES;
        self.rows[window.change as usize] = NONE;
        self.gone += 1;
    }

    /// Closes the holes, where they are most of it: windows that come and go between two commits must not pile up.
    pub fn sweep(&mut self, windows: &mut Slab<Window>) {
        if self.gone < SWEEP_AT || self.gone < self.rows.len() / 2 {
            return;
        }
        self.rows.retain(|row| *row != NONE);
        self.gone = 0;
        for (place, row) in self.rows.iter().enumerate() {
            windows[*row].change = place as u32;
        }
    }

    pub fn len(&self) -> usize {
        self.rows.len() - self.gone
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them; they count as stored from now on.
    pub fn take(&mut self) -> Vec<u32> {
        self.gone = 0;
        let mut taken = std::mem::take(&mut self.rows);
        taken.retain(|row| *row != NONE);
        taken
    }
}
