//! Event-time windows per key: the rules of `workers.core.windows.engine`, where they are explained, in the same order.
//! What session windows and filled gaps add stands in `sessions` and `gaps`.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use foldhash::fast::RandomState;

use crate::assign::{Assigner, Span};
use crate::changes::Changes;
use crate::corrections::Trades;
use crate::due::Due;
use crate::frames::{Frames, Status, Trigger};
use crate::keys::Keys;
use crate::slab::{Slab, NONE};
use crate::sums::Amount;
use crate::window::*;

/// When windows come out, and what is kept of them; times and durations in nanoseconds.
#[derive(Debug)]
pub struct Rules {
    pub lag: i64,
    pub lateness: i64,
    pub idle_after: i64,
    /// `None`: keys don't expire.
    pub key_ttl: Option<i64>,
    /// Windows come out once, at the end of their retention.
    pub is_final: bool,
    /// One clock for all keys.
    pub by_partition: bool,
    pub emit_partial: bool,
    /// Windows merge.
    pub is_session: bool,
    /// How long a hole may be to be filled; 0: none is.
    pub fill_gaps: i64,
    /// The longest window, where gaps are filled.
    pub longest: i64,
    /// Windows have prices and sums.
    pub folds: bool,
    /// Windows keep their ticks.
    pub keeps: bool,
    /// Frames show them.
    pub shows: bool,
    /// Windows are made of bars.
    pub children: bool,
    /// The unit of the starts by which frames name windows.
    pub name_unit: i64,
}

/// A tick as the windows take it; `value` is what is kept of it.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    pub ts: i64,
    pub price: Amount,
    pub size: Amount,
    pub value: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LateReason {
    Watermark,
    Expired,
    OutsideSession,
    Settled,
    Overlaps,
}

/// Why a tick joined no window, and by how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lateness {
    pub reason: LateReason,
    pub watermark: i64,
    pub late_by: i128,
    /// The window that it missed, the first of several.
    pub missed: Option<(i64, i64)>,
}

const STALE_EXPIRIES: usize = 1_000;
const BYTES_OF_CHANGE: usize = 2_048;

pub struct Engine {
    pub rules: Rules,
    pub assigner: Assigner,
    pub keys: Keys,
    pub windows: Slab<Window>,
    pub frames: Frames,
    pub changes: Changes,
    pub partition_max: i64,
    pub known: usize,
    pub fresh_bytes: usize,
    pub next_order: u64,
    /// Windows that began to wait to be overdue since `settle` last looked.
    waiting_since: usize,
    /// Where trades can be corrected: what is known of them.
    pub trades: Option<Box<Trades>>,
    /// Of bars: windows that went with nothing but provisional children, and whose names may come again before their
    /// records are deleted; by key and start.
    pub ghosts: HashMap<(u32, i64), u32, RandomState>,
    tie: u64,
    /// (watermark that acts, tie, key, start), for one clock of all.
    due: BinaryHeap<Reverse<(i64, u64, u32, i64)>>,
    /// (end, tie, window): open windows until they are overdue.
    idle: BinaryHeap<Reverse<(i64, u64, u32)>>,
    idle_changed: Vec<(u32, u64)>,
    unflushed: Vec<(u32, u64)>,
    /// (clock when pushed, tie, key, its serial)
    expiry: BinaryHeap<Reverse<(i64, u64, u32, u64)>>,
}

impl Engine {
    pub fn new(rules: Rules, assigner: Assigner, keys: Keys, frames: Frames) -> Self {
        Self {
            rules,
            assigner,
            keys,
            windows: Slab::default(),
            frames,
            changes: Changes::default(),
            partition_max: LONG_AGO,
            known: 0,
            fresh_bytes: 0,
            next_order: 0,
            waiting_since: 0,
            trades: None,
            ghosts: HashMap::default(),
            tie: 0,
            due: BinaryHeap::new(),
            idle: BinaryHeap::new(),
            idle_changed: Vec::new(),
            unflushed: Vec::new(),
            expiry: BinaryHeap::new(),
        }
    }

    pub(crate) fn next_tie(&mut self) -> u64 {
        self.tie += 1;
        self.tie
    }

    /// Observes, judges and places one tick; `None` when it was accepted.
    #[inline]
    pub fn add(&mut self, key: u32, entry: &Entry) -> Option<Lateness> {
        let ts = entry.ts;
        let state = &self.keys[key];
        let clock = if self.rules.by_partition {
            self.partition_max
        } else if state.is_known {
            state.max
        } else {
            LONG_AGO
        };
        let watermark = ts.max(clock) - self.rules.lag;
        let span = self.span(state.recent, ts);
        if span.count == 0 {
            self.pass_by(key, ts, watermark);
            return Some(Lateness { reason: LateReason::OutsideSession, watermark, late_by: 0, missed: None });
        }
        if ts <= watermark - self.rules.lateness {
            let late_by = i128::from(watermark) - i128::from(self.rules.lateness) - i128::from(ts);
            let missed = Some((span.start, span.end));
            return Some(Lateness { reason: LateReason::Watermark, watermark, late_by, missed });
        }
        if let Some(ttl) = self.rules.key_ttl {
            if let Some(late) = self.expired(&span, ttl, watermark) {
                return Some(late);
            }
        }
        let state = &mut self.keys[key];
        if !state.is_known {
            self.new_key(key, ts);
        } else if ts > state.max {
            state.max = ts;
        }
        self.join(key, &span, entry, watermark);
        self.advance(key, ts, watermark);
        None
    }

    /// The windows that contain a time: nearly always the one that took the key's last tick.
    #[inline(always)]
    fn span(&self, recent: u32, ts: i64) -> Span {
        if recent != NONE && self.assigner.gives_one() {
            let window = &self.windows[recent];
            if window.start <= ts && ts < window.end {
                return Span::one(window.start, window.end);
            }
        }
        self.assigner.assign(ts)
    }

    /// Whether a window of that start, or another of its name, may have been forgotten with its key.
    fn expired(&self, span: &Span, ttl: i64, watermark: i64) -> Option<Lateness> {
        if self.partition_max == LONG_AGO {
            return None;
        }
        let named = span.start - span.start.rem_euclid(self.rules.name_unit);
        let late_by = i128::from(self.partition_max) - i128::from(ttl) - i128::from(named);
        let missed = Some((span.start, span.end));
        (late_by > 0).then_some(Lateness { reason: LateReason::Expired, watermark, late_by, missed })
    }

    fn join(&mut self, key: u32, span: &Span, entry: &Entry, watermark: i64) {
        if self.rules.is_session {
            return self.join_session(key, span, entry, watermark);
        }
        if self.rules.fill_gaps > 0 {
            return self.join_filled(key, span, entry, watermark);
        }
        if self.trades.is_some() {
            return self.join_traded(key, span, entry, watermark);
        }
        let (mut start, mut end) = (span.start, span.end);
        for _ in 0..span.count {
            self.join_one(key, start, end, entry, watermark);
            start += span.step;
            end += span.step;
        }
    }

    #[inline]
    pub(crate) fn join_one(&mut self, key: u32, start: i64, end: i64, entry: &Entry, watermark: i64) -> u32 {
        let state = &self.keys[key];
        let recent = state.recent;
        let found =
            if recent != NONE && self.windows[recent].start == start { Some(recent) } else { state.windows.get(start) };
        let row = match found {
            Some(row) => row,
            // What comes out only once is closed only then, at the end of its retention.
            None => self.open(key, start, end, entry.ts, end <= watermark && !self.rules.is_final),
        };
        self.keys[key].recent = row;
        self.take_in(row, entry);
        row
    }

    #[inline]
    pub(crate) fn take_in(&mut self, row: u32, entry: &Entry) {
        let ts = entry.ts;
        let window = &mut self.windows[row];
        if ts < window.first {
            window.first = ts;
        } else if ts > window.last {
            window.last = ts;
        }
        if ts > window.clock {
            window.clock = ts;
        }
        if self.rules.folds {
            window.bar.add(window.count == 0, ts, &entry.price, &entry.size);
        }
        if let Some(items) = &mut window.items {
            items.values.push(entry.value.into());
            self.fresh_bytes += entry.value.len();
        }
        window.count += 1;
        self.show_change(row, Trigger::Late);
    }

    /// What a window holds has changed: a closed one comes out again, at once.
    #[inline]
    pub(crate) fn show_change(&mut self, row: u32, trigger: Trigger) {
        let window = &mut self.windows[row];
        window.flags |= CHANGED;
        if !window.is(IN_CHANGES) {
            self.changes.note(row, window);
        }
        if window.is(CLOSED) {
            self.emit(row, Status::Closed, trigger);
            return;
        }
        if window.is(OVERDUE) && !window.is(IN_IDLE) {
            window.flags |= IN_IDLE;
            self.idle_changed.push((row, window.serial));
        }
        if self.rules.emit_partial && !window.is(IN_UNFLUSHED) {
            window.flags |= IN_UNFLUSHED;
            self.unflushed.push((row, window.serial));
        }
    }

    pub(crate) fn note_change(&mut self, row: u32) {
        let window = &mut self.windows[row];
        if !window.is(IN_CHANGES) {
            self.changes.note(row, window);
        }
    }

    pub(crate) fn open(&mut self, key: u32, start: i64, end: i64, ts: i64, closed: bool) -> u32 {
        let serial = self.next_tie();
        let row = self.windows.insert(Window {
            bar: Bar::default(),
            start,
            end,
            first: ts,
            last: ts,
            clock: ts,
            due: LONG_AGO,
            count: 0,
            serial,
            items: self.rules.keeps.then(Box::default),
            contents: None,
            key,
            rev: 0,
            change: 0,
            flags: if closed { CLOSED } else { 0 },
        });
        let state = &mut self.keys[key];
        state.windows.insert(start, row);
        state.rows += 1;
        self.schedule(key, row);
        row
    }

    pub(crate) fn schedule(&mut self, key: u32, row: u32) {
        let window = &mut self.windows[row];
        let closed = window.is(CLOSED);
        let keep = if closed || self.rules.is_final { self.rules.lateness } else { 0 };
        let due = window.end + keep;
        if closed {
            window.flags |= OVERDUE;
        }
        self.wait(key, row, due);
        if !closed {
            self.wait_idle(row);
        }
    }

    /// Has the window looked at when the watermark is `due`, and not before.
    pub(crate) fn wait(&mut self, key: u32, row: u32, due: i64) {
        let window = &mut self.windows[row];
        window.due = due;
        let start = window.start;
        if self.rules.by_partition {
            let tie = self.next_tie();
            self.due.push(Reverse((due, tie, key, start)));
        } else {
            self.keys[key].due.push((due, start));
        }
    }

    pub(crate) fn wait_idle(&mut self, row: u32) {
        if !self.rules.is_final {
            let tie = self.next_tie();
            self.waiting_since += 1;
            self.idle.push(Reverse((self.windows[row].end, tie, row)));
        }
    }

    /// Lets out what the watermark has reached, and moves the partition's time.
    #[inline]
    pub(crate) fn advance(&mut self, key: u32, ts: i64, watermark: i64) {
        if self.rules.by_partition {
            self.close_partition(watermark);
        } else {
            self.close_key(key, watermark);
        }
        if ts > self.partition_max {
            self.partition_max = ts;
            if self.rules.key_ttl.is_some() {
                self.expire_keys();
            }
        }
    }

    #[inline]
    pub(crate) fn close_key(&mut self, key: u32, watermark: i64) {
        while let Some((due, start)) = self.keys[key].due.least() {
            if due > watermark {
                return;
            }
            self.keys[key].due.pop();
            self.act_if_due(key, start, due, watermark);
        }
    }

    #[inline]
    pub(crate) fn close_partition(&mut self, watermark: i64) {
        while let Some(Reverse((due, _, key, start))) = self.due.peek().copied() {
            if due > watermark {
                return;
            }
            self.due.pop();
            self.act_if_due(key, start, due, watermark);
        }
    }

    fn act_if_due(&mut self, key: u32, start: i64, due: i64, watermark: i64) {
        let Some(row) = self.keys[key].windows.get(start) else { return };
        if self.windows[row].due != due {
            return; // it was rescheduled since
        }
        if let Some(again) = self.act(key, row, watermark) {
            self.wait(key, row, again);
        }
    }

    /// Closes a window that is due, or drops a closed one; the watermark at which it is due again.
    fn act(&mut self, key: u32, row: u32, watermark: i64) -> Option<i64> {
        let window = &mut self.windows[row];
        if self.rules.is_session && !window.is(CLOSED) {
            let due = window.end + if self.rules.is_final { self.rules.lateness } else { 0 };
            if due > watermark {
                return Some(due); // it grew since this was arranged
            }
        }
        let gone = window.end + self.rules.lateness;
        if !window.is(CLOSED) {
            window.flags |= CLOSED;
            let is_final = self.rules.is_final || watermark >= gone;
            self.emit(row, if is_final { Status::Final } else { Status::Closed }, Trigger::Watermark);
            self.note_change(row);
        }
        if watermark < gone {
            return Some(gone);
        }
        if let Some(needed) = self.needed_until(key, row, watermark) {
            return Some(needed);
        }
        self.drop_window(row);
        if self.rules.by_partition && self.keys[key].windows.is_empty() {
            self.forget(key); // its clock is the partition's: nothing is left to remember
        }
        None
    }

    /// When to look again at a window that is past its retention and kept for what it knows.
    fn needed_until(&self, key: u32, row: u32, watermark: i64) -> Option<i64> {
        let (state, window) = (&self.keys[key], &self.windows[row]);
        if self.rules.fill_gaps > 0 && self.rules.by_partition && window.start == state.newest {
            let until = window.end + self.rules.fill_gaps + self.rules.longest + self.rules.lateness;
            return (until > watermark).then_some(until);
        }
        let holds_clock = window.clock == state.max && !self.rules.by_partition;
        holds_clock.then_some(watermark.saturating_add(1)) // until the clock moves
    }

    /// Takes a window out of its key. Its row stays for as long as what is stored of it is to be deleted.
    pub(crate) fn drop_window(&mut self, row: u32) {
        let window = &mut self.windows[row];
        let (key, start) = (window.key, window.start);
        window.flags |= DROPPED;
        let state = &mut self.keys[key];
        state.windows.remove(start);
        if state.recent == row {
            state.recent = NONE;
        }
        self.forget_trades(row);
        let is_preview = self.rules.children && !self.is_real(row);
        if is_preview {
            self.ghosts.insert((key, start), row);
        }
        let window = &mut self.windows[row];
        if window.is(STORED) || is_preview {
            window.items = window.items.take().map(|items| Box::new(Items { values: Vec::new(), ..*items }));
            self.note_change(row);
        } else {
            if window.is(IN_CHANGES) {
                self.changes.forget(window);
                self.changes.sweep(&mut self.windows);
            }
            self.free_window(row);
        }
    }

    /// Lets a dropped window's row be used again, and its key's where nothing needs it any more.
    pub(crate) fn free_window(&mut self, row: u32) {
        let window = &mut self.windows[row];
        let key = window.key;
        window.serial = u64::MAX; // whatever still refers to the row means another window
        window.items = None;
        self.windows.free(row);
        self.keys[key].rows -= 1;
        self.release(key);
    }

    /// Frees a key's row where nothing needs it any more.
    pub fn release(&mut self, key: u32) {
        let state = &self.keys[key];
        if !state.is_known && state.rows == 0 {
            self.keys.remove(key);
        }
    }

    fn forget(&mut self, key: u32) {
        let state = &mut self.keys[key];
        state.is_known = false;
        state.max = LONG_AGO;
        state.newest = LONG_AGO;
        state.due = Due::default();
        self.known -= 1;
        self.forget_index(key);
        self.release(key);
    }

    pub(crate) fn new_key(&mut self, key: u32, ts: i64) {
        let state = &mut self.keys[key];
        state.is_known = true;
        state.max = ts;
        state.newest = LONG_AGO;
        self.known += 1;
        if self.rules.key_ttl.is_some() {
            let tie = self.next_tie();
            self.keys[key].serial = tie;
            self.expiry.push(Reverse((ts, tie, key, tie)));
            if self.expiry.len() > 2 * self.known + STALE_EXPIRIES {
                let keys = &self.keys;
                self.expiry.retain(|Reverse((_, _, key, serial))| keys[*key].is_known && keys[*key].serial == *serial);
            }
        }
    }

    /// Observes a tick that no window is for: it moves the clocks as any tick does. A key without windows has no clock.
    pub(crate) fn pass_by(&mut self, key: u32, ts: i64, watermark: i64) {
        let state = &self.keys[key];
        if !state.is_known {
            if self.rules.by_partition {
                self.close_partition(watermark);
            }
            self.move_partition(ts);
            return;
        }
        if ts > state.max {
            let rows = state.windows.rows();
            // Of several that hold the clock, the one that came first.
            let holder =
                rows.into_iter().max_by_key(|row| (self.windows[*row].clock, Reverse(self.windows[*row].serial)));
            self.keys[key].max = ts;
            if let Some(holder) = holder {
                self.windows[holder].clock = ts;
                self.note_change(holder);
            }
        }
        self.advance(key, ts, watermark);
    }

    pub(crate) fn move_partition(&mut self, ts: i64) {
        if ts > self.partition_max {
            self.partition_max = ts;
            self.expire_keys();
        }
    }

    fn expire_keys(&mut self) {
        let Some(ttl) = self.rules.key_ttl else { return };
        while let Some(Reverse((pushed, tie, key, serial))) = self.expiry.peek().copied() {
            if self.partition_max.saturating_sub(pushed) <= ttl {
                return;
            }
            self.expiry.pop();
            let state = &self.keys[key];
            if !state.is_known || state.serial != serial {
                continue;
            }
            if state.max > pushed {
                self.expiry.push(Reverse((state.max, tie, key, serial)));
                continue;
            }
            for row in state.windows.rows() {
                if !self.windows[row].is(CLOSED) {
                    self.emit(row, Status::Final, Trigger::Expiry);
                }
                self.drop_window(row);
            }
            self.forget(key);
        }
    }

    /// Emits provisionally what partition time, `silence` included, has made overdue: `most` windows at a time, or twice as
    /// many as began to wait since, so that what waits can't grow for ever. Whether there may be more.
    pub fn settle(&mut self, silence: i64, most: usize) -> bool {
        if self.rules.is_final {
            return false;
        }
        let by_events = self.partition_max.saturating_sub(self.rules.lag).saturating_sub(self.rules.idle_after);
        let reached = by_events.saturating_add(silence);
        let most = most.max(2 * std::mem::take(&mut self.waiting_since));
        let (mut looked, mut more) = (0, false);
        while let Some(Reverse((end, tie, row))) = self.idle.peek().copied() {
            if end > reached {
                break;
            }
            if looked == most {
                more = true;
                break;
            }
            self.idle.pop();
            let window = &mut self.windows[row];
            if window.serial > tie || window.is(DROPPED) {
                continue; // it is gone: nothing to look at
            }
            looked += 1;
            if window.end > end {
                self.wait_idle(row); // it grew
                continue;
            }
            window.flags |= OVERDUE;
            if window.is(CHANGED) && !window.is(IN_IDLE) {
                window.flags |= IN_IDLE;
                self.idle_changed.push((row, window.serial));
            }
        }
        if self.idle_changed.is_empty() {
            return more;
        }
        let waiting = std::mem::take(&mut self.idle_changed);
        for (row, serial) in &waiting {
            let window = &mut self.windows[*row];
            if window.serial != *serial {
                continue;
            }
            window.flags &= !IN_IDLE;
            if window.is(CHANGED) && window.is(OVERDUE) && !window.is(CLOSED | DROPPED) {
                let trigger = if window.end <= by_events { Trigger::Idle } else { Trigger::Timeout };
                self.emit(*row, Status::Provisional, trigger);
            }
        }
        more
    }

    /// The silence after which `settle` would emit something more. It may be longer than any two times are apart: bars
    /// that are all provisional leave the partition without a time.
    pub fn next_timeout(&mut self) -> Option<i128> {
        if self.rules.is_final {
            return None;
        }
        while let Some(Reverse((end, tie, row))) = self.idle.peek().copied() {
            let window = &mut self.windows[row];
            let is_gone = window.serial > tie;
            if is_gone || window.is(CLOSED | DROPPED) {
                if !is_gone {
                    window.flags |= OVERDUE;
                }
            } else if window.end == end {
                let due = i128::from(end) + i128::from(self.rules.lag) + i128::from(self.rules.idle_after);
                return Some(due - i128::from(self.partition_max));
            }
            let again = !is_gone && !window.is(OVERDUE);
            self.idle.pop();
            if again {
                self.wait_idle(row); // it grew
            }
        }
        None
    }

    /// Emits provisionally every open window that changed since it was last emitted.
    pub fn flush_partial(&mut self) {
        for (row, serial) in std::mem::take(&mut self.unflushed) {
            let window = &mut self.windows[row];
            if window.serial != serial {
                continue;
            }
            window.flags &= !IN_UNFLUSHED;
            if window.is(CHANGED) && !window.is(CLOSED | DROPPED) {
                self.emit(row, Status::Provisional, Trigger::Partial);
            }
        }
    }

    /// The input has ended, as far as it has come: emits every window that waits, by key and start.
    pub fn end_of_input(&mut self) {
        self.due.clear();
        self.idle.clear();
        let mut keys: Vec<u32> = self.keys.all().filter(|key| self.keys[*key].is_known).collect();
        if self.rules.by_partition {
            let ends = keys.iter().flat_map(|key| self.keys[*key].windows.rows()).map(|row| self.windows[row].end);
            if let Some(last_end) = ends.max() {
                self.partition_max = self.partition_max.max(self.clock_after(last_end));
            }
        }
        keys.sort_unstable_by(|left, right| self.keys[*left].name.cmp(&self.keys[*right].name));
        for key in keys {
            self.end_key(key);
        }
        self.expire_keys();
    }

    /// Emits what waits of a key, moves its clock, and drops the windows that nothing needs any more.
    fn end_key(&mut self, key: u32) {
        let rows = self.keys[key].windows.rows();
        self.keys[key].due = Due::default();
        let watermark = if self.rules.by_partition {
            self.partition_max.saturating_sub(self.rules.lag)
        } else {
            let mut last = NONE;
            for row in rows.iter().filter(|row| self.is_real(**row)) {
                if last == NONE || self.windows[*row].end > self.windows[last].end {
                    last = *row;
                }
            }
            if last != NONE {
                let clock = self.clock_after(self.windows[last].end);
                if clock > self.keys[key].max {
                    self.keys[key].max = clock;
                    self.windows[last].clock = clock;
                }
            }
            self.keys[key].max.saturating_sub(self.rules.lag)
        };
        for row in rows {
            self.end_window(key, row, watermark);
        }
        if self.keys[key].windows.is_empty() {
            self.forget(key);
        }
    }

    fn end_window(&mut self, key: u32, row: u32, watermark: i64) {
        if !self.windows[row].is(CLOSED) {
            self.emit(row, Status::Final, Trigger::End);
        }
        match self.needed_until(key, row, watermark).filter(|_| self.is_real(row)) {
            None => self.drop_window(row),
            Some(needed) => {
                self.windows[row].flags |= CLOSED | SETTLED;
                self.wait(key, row, needed);
                self.note_change(row);
            }
        }
    }

    /// The least clock by which all times before `last_end`, and no others, are late.
    fn clock_after(&self, last_end: i64) -> i64 {
        let last = if self.rules.children { last_end } else { last_end - 1 }; // of children it is the end that is late
        last.saturating_add(self.rules.lateness).saturating_add(self.rules.lag)
    }

    /// Takes over a stored window, of a key that `keys` has entered.
    pub fn load(&mut self, mut window: Window) {
        let key = window.key;
        window.serial = self.next_tie();
        let (start, clock) = (window.start, window.clock);
        let is_changed = window.is(CHANGED);
        if let Some(last) = window.items.as_ref().and_then(|items| items.orders.last()) {
            self.next_order = self.next_order.max(last + 1);
        }
        let serial = window.serial;
        if self.rules.emit_partial && is_changed {
            window.flags |= IN_UNFLUSHED;
        }
        let row = self.windows.insert(window);
        let state = &mut self.keys[key];
        if !state.is_known {
            state.is_known = true;
            self.known += 1;
        }
        state.max = state.max.max(clock);
        state.newest = state.newest.max(start);
        state.windows.insert(start, row);
        state.rows += 1;
        self.schedule(key, row);
        if self.rules.emit_partial && is_changed {
            self.unflushed.push((row, serial));
        }
    }

    /// After all windows are loaded: `keys` in the order in which they came.
    pub fn loaded(&mut self, partition_max: i64, keys: &[u32]) {
        self.partition_max = partition_max;
        if self.rules.key_ttl.is_some() {
            // Of bars, some keys may have none but provisional ones so far, and no clock: they come last.
            let (clocked, clockless): (Vec<u32>, Vec<u32>) =
                keys.iter().partition(|key| self.keys[**key].max != LONG_AGO);
            for key in clocked.into_iter().chain(clockless) {
                self.keys[key].serial = self.next_tie();
                let last_end = || self.keys[key].windows.rows().iter().map(|row| self.windows[*row].end).max();
                let clock = self.keys[key].max;
                let time = if clock == LONG_AGO { last_end().unwrap_or(clock) } else { clock };
                self.await_expiry(key, time);
            }
        }
    }

    /// Has a key expire when the partition is more than the time to live after `time`.
    pub(crate) fn await_expiry(&mut self, key: u32, time: i64) {
        if self.rules.key_ttl.is_some() {
            let (tie, serial) = (self.next_tie(), self.keys[key].serial);
            self.expiry.push(Reverse((time, tie, key, serial)));
        }
    }

    /// How many windows wait to be stored, and as many more as writing their new items would take time.
    pub fn changes_waiting(&self) -> usize {
        self.changes.len() + self.fresh_bytes / BYTES_OF_CHANGE
    }

    #[inline(never)]
    pub(crate) fn emit(&mut self, row: u32, status: Status, trigger: Trigger) {
        let mut counted = None;
        if self.windows[row].contents.is_some() {
            counted = self.show_children(row, status);
            if counted.is_none() {
                return;
            }
        }
        let window = &mut self.windows[row];
        let (name, traded) = (&self.keys[window.key].name, self.trades.is_some());
        self.frames.write(name, window, status, trigger, &self.rules, traded);
        window.flags &= !CHANGED;
        if let Some(count) = counted {
            window.count = count; // provisional children are not of it
        }
        if status != Status::Provisional {
            window.rev += 1;
        } else if self.rules.is_session && !window.is(SHOWN | DROPPED) {
            window.flags |= SHOWN; // a restart must not forget that there is something to withdraw
            self.note_change(row);
        }
    }
}
