//! Bars for times without trades: the rules of `workers.core.windows.gaps`.

use crate::assign::Span;
use crate::engine::{Engine, Entry};
use crate::frames::Trigger;
use crate::window::*;

impl Engine {
    pub(crate) fn join_filled(&mut self, key: u32, span: &Span, entry: &Entry, watermark: i64) {
        let start = span.start;
        if start > self.keys[key].newest {
            self.fill(key, start, watermark);
            self.keys[key].newest = start;
        }
        if let Some(row) = self.keys[key].windows.get(start) {
            let window = &mut self.windows[row];
            if window.count == 0 {
                window.bar = Bar::default();
                (window.first, window.last) = (entry.ts, entry.ts);
            }
        }
        let row = self.join_one(key, start, span.end, entry, watermark);
        self.carry(key, row);
    }

    fn fill(&mut self, key: u32, until: i64, watermark: i64) {
        let newest = self.keys[key].newest;
        let Some(row) = self.keys[key].windows.get(newest) else { return };
        let mut at = self.windows[row].end;
        let hole = until.saturating_sub(at);
        if hole <= 0 || hole > self.rules.fill_gaps {
            return;
        }
        let bar = self.windows[row].bar.empty_after();
        while at < until {
            let span = self.assigner.assign(at);
            let made = self.open(key, span.start, span.end, LONG_AGO, false);
            self.windows[made].bar = bar.clone();
            self.show_change(made, Trigger::Watermark);
            at = span.end;
        }
        // The watermark may be past them: then they come before the tick's own window.
        if self.rules.by_partition {
            self.close_partition(watermark);
        } else {
            self.close_key(key, watermark);
        }
    }

    /// Shows the close of a window in the empty ones that follow it, where it is another one now.
    fn carry(&mut self, key: u32, row: u32) {
        let carried = self.windows[row].bar.empty_after();
        let mut end = self.windows[row].end;
        while let Some(follower) = self.keys[key].windows.get(end) {
            let window = &mut self.windows[follower];
            if window.count > 0 || window.bar.close.to_bits() == carried.close.to_bits() {
                return;
            }
            window.bar = carried.clone();
            end = window.end;
            self.show_change(follower, Trigger::Late);
        }
    }
}
