//! Session windows: the rules of `workers.core.windows.sessions`.

use crate::assign::Span;
use crate::engine::{Engine, Entry};
use crate::frames::{Status, Trigger};
use crate::window::*;

impl Engine {
    pub(crate) fn join_session(&mut self, key: u32, span: &Span, entry: &Entry, watermark: i64) {
        let (start, mut end) = (span.start, span.end);
        let touched = self.touched(key, start, end);
        if let Some(last) = touched.last() {
            end = end.max(self.windows[*last].end);
        }
        let closed = end <= watermark && !self.rules.is_final;
        let row = match touched.first() {
            Some(first) if self.windows[*first].start <= start => {
                if end > self.windows[*first].end {
                    self.lengthen(key, *first, end, closed);
                }
                *first
            }
            _ => self.open(key, start, end, entry.ts, closed),
        };
        if touched.len() > 1 || touched.first().is_some_and(|first| *first != row) {
            self.unite(row, &touched);
        }
        if self.trades.is_some() {
            self.begin_anew(row, entry.ts);
        }
        if let Some(items) = &mut self.windows[row].items {
            items.orders.push(self.next_order);
            self.next_order += 1;
        }
        self.take_in(row, entry);
    }

    /// The sessions that overlap `[start, end)`, by start; they are side by side.
    fn touched(&self, key: u32, start: i64, end: i64) -> Vec<u32> {
        let mut found = Vec::new(); // allocates only where there is one
        self.keys[key].windows.back_from(end, |row| {
            let overlaps = self.windows[row].end > start;
            if overlaps {
                found.push(row);
            }
            overlaps
        });
        found.reverse();
        found
    }

    fn lengthen(&mut self, key: u32, row: u32, end: i64, closed: bool) {
        let window = &mut self.windows[row];
        let was_closed = window.is(CLOSED);
        window.end = end;
        if closed {
            window.flags |= CLOSED;
            return;
        }
        window.flags &= !CLOSED;
        let (due, was_overdue) = (window.due, window.is(OVERDUE));
        window.flags &= !OVERDUE;
        if was_closed && end < due {
            self.wait(key, row, end);
        }
        if was_overdue {
            self.wait_idle(row);
        }
    }

    /// Makes the window, the first of `touched` or a new one before them all, what they are together.
    fn unite(&mut self, row: u32, touched: &[u32]) {
        let first = touched[0];
        let log = self.take_log(first);
        if self.rules.folds {
            let mut bar = self.windows[first].bar.clone();
            for other in &touched[1..] {
                bar.merge(&self.windows[*other].bar);
            }
            self.windows[row].bar = bar;
        }
        if self.rules.keeps {
            self.unite_items(row, touched);
        }
        let (mut count, mut last, mut clock) = (0, LONG_AGO, LONG_AGO);
        for window in touched.iter().map(|other| &self.windows[*other]) {
            count += window.count;
            last = last.max(window.last);
            clock = clock.max(window.clock);
        }
        let earliest = self.windows[first].first;
        let unit = self.rules.name_unit;
        let keeps_name =
            row != first && self.windows[row].start.div_euclid(unit) == self.windows[first].start.div_euclid(unit);
        let (rev, shown) = (self.windows[first].rev, self.windows[first].flags & SHOWN);
        let window = &mut self.windows[row];
        window.count = count;
        window.first = window.first.min(earliest);
        window.last = last;
        window.clock = window.clock.max(clock);
        if keeps_name {
            window.rev = rev;
            window.flags = window.flags & !SHOWN | shown;
            let given_up = &mut self.windows[first];
            given_up.rev = 0;
            given_up.flags &= !SHOWN;
        }
        for other in touched {
            if *other != row {
                self.withdraw(*other);
                self.drop_window(*other);
            }
        }
        if self.trades.is_some() {
            self.unite_trades(row, log, touched.len() == 1);
        }
    }

    fn unite_items(&mut self, row: u32, touched: &[u32]) {
        let stored_segments = self.windows[row].items.as_ref().map_or(0, |items| items.segments);
        let mut pairs: Vec<(u64, Box<[u8]>)> = Vec::new();
        for other in touched {
            if let Some(items) = &mut self.windows[*other].items {
                let values = std::mem::take(&mut items.values);
                pairs.extend(std::mem::take(&mut items.orders).into_iter().zip(values));
            }
        }
        pairs.sort_by_key(|pair| pair.0);
        let (orders, values) = pairs.into_iter().unzip();
        // Whatever is stored of it is to be written anew.
        self.windows[row].items = Some(Box::new(Items { values, orders, stored: 0, segments: stored_segments }));
    }

    /// Takes back what was shown of a window that is part of another one now.
    fn withdraw(&mut self, row: u32) {
        let window = &mut self.windows[row];
        window.count = 0;
        if let Some(items) = &mut window.items {
            items.values.clear();
        }
        if window.rev > 0 {
            self.emit(row, Status::Closed, Trigger::Merged);
        } else if window.is(SHOWN) {
            self.emit(row, Status::Provisional, Trigger::Merged);
        }
    }
}
