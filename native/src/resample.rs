//! Bars from bars: the rules of `workers.core.windows.resample`. A parent's contents are MessagePack in the changelog.

use crate::children::{Child, ChildBar};
use crate::engine::{Engine, LateReason, Lateness};
use crate::frames::{Status, Trigger};
use crate::msgpack::*;
use crate::sums::{Amount, Sum, DUMP_LEN};
use crate::window::*;

// -- what a parent holds ----------------------------------------------------------------------------------------------

/// Children added up in order of start, all of them with ticks, or all of them filled.
#[derive(Clone, Debug)]
struct Sums {
    open: f64,
    high: f64,
    low: f64,
    close: f64,
    volume: Sum,
    notional: Sum,
    count: i64,
    first: i64,
    last: i64,
}

impl Sums {
    fn of(child: &Child) -> Self {
        let mut sums = Self {
            open: child.open,
            high: child.high,
            low: child.low,
            close: child.close,
            volume: Sum::default(),
            notional: Sum::default(),
            count: child.count,
            first: child.first,
            last: child.last,
        };
        sums.add_amounts(child);
        sums
    }

    fn add(&mut self, child: &Child) {
        self.close = child.close;
        if child.high > self.high {
            self.high = child.high;
        }
        if child.low < self.low {
            self.low = child.low;
        }
        self.add_amounts(child);
        self.count = self.count.saturating_add(child.count);
        self.last = child.last;
    }

    fn add_amounts(&mut self, child: &Child) {
        let (volume, vwap) = (child.volume, child.vwap);
        if volume.is_finite() {
            let amount = Amount::of_float(volume);
            self.volume.add(&amount);
            if vwap.is_finite() {
                self.notional.add_product(&Amount::of_float(vwap), &amount);
                return;
            }
        } else {
            self.volume.add_float(volume);
        }
        self.notional.add_float(vwap * volume);
    }

    fn dump(&self, out: &mut Vec<u8>) {
        put_array(out, 9);
        for price in [self.open, self.high, self.low, self.close] {
            put_float(out, price);
        }
        for sum in [&self.volume, &self.notional] {
            let mut dumped = Vec::with_capacity(DUMP_LEN);
            sum.dump(&mut dumped);
            put_bin(out, &dumped);
        }
        for number in [self.count, self.first, self.last] {
            put_integer(out, number);
        }
    }

    fn load(reader: &mut Reader) -> Option<Self> {
        reader.array_of(9)?;
        Some(Self {
            open: reader.float()?,
            high: reader.float()?,
            low: reader.float()?,
            close: reader.float()?,
            volume: Sum::load(reader.bin()?.try_into().ok()?)?,
            notional: Sum::load(reader.bin()?.try_into().ok()?)?,
            count: reader.integer()?,
            first: reader.integer()?,
            last: reader.integer()?,
        })
    }
}

/// What a child is to those that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    New,
    Revision,
    Repeated,
    Overlaps,
}

/// What a parent knows of its children: the sums of those that can't be revised any more, all of which end at `settled`
/// or before; the others, and the provisional ones, by start.
#[derive(Debug)]
pub struct Contents {
    /// Any came that was not provisional.
    pub joined: bool,
    settled: i64,
    real: Option<Sums>,
    filled: Option<Sums>,
    children: Vec<Child>,
    previews: Vec<Child>,
}

impl Default for Contents {
    fn default() -> Self {
        let (children, previews) = (Vec::new(), Vec::new());
        Self { joined: false, settled: LONG_AGO, real: None, filled: None, children, previews }
    }
}

impl Contents {
    fn verdict(&self, child: &Child) -> Verdict {
        if child.start < self.settled {
            return Verdict::Overlaps;
        }
        let at = place_of(&self.children, child.start);
        if let Some(there) = self.children.get(at) {
            if (there.start, there.end) == (child.start, child.end) {
                return if child.rev > there.rev { Verdict::Revision } else { Verdict::Repeated };
            }
            if there.start < child.end {
                return Verdict::Overlaps;
            }
        }
        let before = at.checked_sub(1).map(|before| &self.children[before]);
        if before.is_some_and(|before| before.end > child.start) {
            Verdict::Overlaps
        } else {
            Verdict::New
        }
    }

    /// Takes a child in; it replaces itself. By how many the ticks became more.
    fn join(&mut self, child: &Child) -> i64 {
        self.joined = true;
        self.previews.retain(|each| !overlap(each, child));
        child.count.saturating_sub(put(&mut self.children, child))
    }

    /// Takes a provisional child in; it replaces itself.
    fn preview(&mut self, child: &Child) {
        self.previews.retain(|each| !overlap(each, child));
        put(&mut self.previews, child);
    }

    /// Adds the children that end at `horizon` or before to the sums, for good.
    fn settle(&mut self, horizon: i64) {
        let number = self.children.iter().take_while(|child| child.end <= horizon).count();
        for child in self.children.drain(..number) {
            self.settled = child.end;
            take_up(&mut self.real, &mut self.filled, &child);
        }
        if self.previews.first().is_some_and(|first| first.end <= horizon) {
            self.previews.retain(|each| each.end > horizon);
        }
    }

    /// The sums over all children with ticks, and over all filled ones.
    fn total(&self, with_previews: bool) -> (Option<Sums>, Option<Sums>) {
        let (mut real, mut filled) = (self.real.clone(), self.filled.clone());
        let mut previews = if with_previews { self.previews.as_slice() } else { &[] };
        for child in &self.children {
            while let Some((first, rest)) = previews.split_first().filter(|(first, _)| first.start < child.start) {
                take_up(&mut real, &mut filled, first);
                previews = rest;
            }
            take_up(&mut real, &mut filled, child);
        }
        for child in previews {
            take_up(&mut real, &mut filled, child);
        }
        (real, filled)
    }

    pub fn dump(&self, out: &mut Vec<u8>) {
        put_array(out, 6);
        put_bool(out, self.joined);
        put_integer(out, self.settled);
        for sums in [&self.real, &self.filled] {
            match sums {
                Some(sums) => sums.dump(out),
                None => put_nil(out),
            }
        }
        for children in [&self.children, &self.previews] {
            put_array(out, children.len());
            children.iter().for_each(|child| dump_child(child, out));
        }
    }

    /// What `dump` wrote; `None` where it can't be that.
    pub fn load(data: &[u8]) -> Option<Self> {
        let mut reader = Reader(data);
        reader.array_of(6)?;
        let contents = Self {
            joined: reader.bool()?,
            settled: reader.integer()?,
            real: load_sums(&mut reader)?,
            filled: load_sums(&mut reader)?,
            children: load_children(&mut reader)?,
            previews: load_children(&mut reader)?,
        };
        reader.0.is_empty().then_some(contents)
    }
}

fn load_sums(reader: &mut Reader) -> Option<Option<Sums>> {
    Some(if reader.nil() { None } else { Some(Sums::load(reader)?) })
}

fn load_children(reader: &mut Reader) -> Option<Vec<Child>> {
    (0..reader.array_len()?).map(|_| load_child(reader)).collect()
}

fn dump_child(child: &Child, out: &mut Vec<u8>) {
    put_array(out, 13);
    for number in [child.start, child.end, child.rev, child.count] {
        put_integer(out, number);
    }
    put_bool(out, child.filled);
    for number in [child.open, child.high, child.low, child.close, child.volume, child.vwap] {
        put_float(out, number);
    }
    put_integer(out, child.first);
    put_integer(out, child.last);
}

fn load_child(reader: &mut Reader) -> Option<Child> {
    reader.array_of(13)?;
    Some(Child {
        start: reader.integer()?,
        end: reader.integer()?,
        rev: reader.integer()?,
        count: reader.integer()?,
        filled: reader.bool()?,
        open: reader.float()?,
        high: reader.float()?,
        low: reader.float()?,
        close: reader.float()?,
        volume: reader.float()?,
        vwap: reader.float()?,
        first: reader.integer()?,
        last: reader.integer()?,
    })
}

/// Where the first child is that begins at `start` or later. They come in that order, so it is near the end.
fn place_of(children: &[Child], start: i64) -> usize {
    match children.last() {
        Some(last) if last.start >= start => children.partition_point(|each| each.start < start),
        _ => children.len(),
    }
}

/// Puts a child in its place; the ticks of the one that it replaces.
fn put(children: &mut Vec<Child>, child: &Child) -> i64 {
    let at = place_of(children, child.start);
    match children.get_mut(at) {
        Some(there) if there.start == child.start => std::mem::replace(there, child.clone()).count,
        _ => {
            children.insert(at, child.clone());
            0
        }
    }
}

fn overlap(one: &Child, other: &Child) -> bool {
    one.start < other.end && other.start < one.end
}

fn take_up(real: &mut Option<Sums>, filled: &mut Option<Sums>, child: &Child) {
    let sums = match (child.count, child.filled) {
        (1.., _) | (..0, _) => real,
        (0, true) => filled,
        (0, false) => return,
    };
    match sums {
        Some(sums) => sums.add(child),
        None => *sums = Some(Sums::of(child)),
    }
}

// -- the windows ------------------------------------------------------------------------------------------------------

/// What became of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Joined,
    /// It changes nothing.
    Repeated,
    Missed(Lateness),
}

impl Engine {
    /// Judges and places one child.
    pub fn add_child(&mut self, key: u32, bar: &ChildBar) -> Outcome {
        let child = &bar.child;
        let state = &self.keys[key];
        let (was_known, watermark) = (state.is_known, if state.is_known { state.max } else { LONG_AGO });
        let parents = self.parents_of(key, child.start);
        let refusal = self.judge(bar, &parents, watermark);
        if let Some(refusal) = refusal {
            if let Outcome::Missed(Lateness { reason: LateReason::OutsideSession, watermark: reached, .. }) = refusal {
                // What no window is for moves the clocks all the same.
                if watermark != LONG_AGO {
                    self.pass_by(key, child.end, reached);
                } else {
                    self.move_partition(child.end);
                }
            }
            return refusal;
        }
        if !was_known {
            self.new_key(key, child.end);
            self.keys[key].max = LONG_AGO;
        }
        if !bar.provisional && child.end > self.keys[key].max {
            if self.keys[key].max == LONG_AGO {
                self.await_expiry(key, child.end);
            }
            self.keys[key].max = child.end;
        }
        for (start, end, _) in parents {
            self.join_parent(key, start, end, bar, watermark);
        }
        let max = self.keys[key].max;
        if max > watermark {
            self.advance(key, max, max);
        }
        Outcome::Joined
    }

    /// The parents of a child that begins then, as start, end and, where it is there, row.
    fn parents_of(&self, key: u32, ts: i64) -> Vec<(i64, i64, Option<u32>)> {
        let span = self.assigner.assign(ts);
        let windows = &self.keys[key].windows;
        let parent = |number: i64| {
            let start = span.start + number * span.step;
            (start, span.end + number * span.step, windows.get(start))
        };
        (0..i64::from(span.count)).map(parent).collect()
    }

    /// Why the child can't join, if it can't.
    fn judge(&self, bar: &ChildBar, parents: &[(i64, i64, Option<u32>)], watermark: i64) -> Option<Outcome> {
        let (child, lateness) = (&bar.child, self.rules.lateness);
        let contents = parents.iter().filter_map(|(_, _, row)| self.windows[(*row)?].contents.as_ref());
        let verdicts: Vec<Verdict> = contents.map(|contents| contents.verdict(child)).collect();
        let missed = parents.first().map(|(start, end, _)| (*start, *end));
        let late = |reason, watermark, late_by| Some(Lateness { reason, watermark, late_by, missed });
        let observed = watermark.max(child.end);
        let is_passed = |end: i64| end.saturating_add(lateness) <= watermark;
        let too_old = match (self.rules.key_ttl, missed) {
            (Some(ttl), Some((start, _))) if self.partition_max != LONG_AGO => {
                i128::from(self.partition_max) - i128::from(ttl) - i128::from(start)
            }
            _ => 0,
        };
        let refusal = if parents.is_empty() {
            late(LateReason::OutsideSession, observed, 0)
        } else if is_passed(child.end) {
            let is_gone = parents.iter().all(|(_, end, _)| is_passed(*end));
            let late_by = i128::from(watermark) - i128::from(lateness) - i128::from(child.end);
            late(if is_gone { LateReason::Watermark } else { LateReason::Settled }, watermark, late_by)
        } else if too_old > 0 {
            late(LateReason::Expired, observed, too_old)
        } else if verdicts.contains(&Verdict::Repeated) {
            return Some(Outcome::Repeated);
        } else if verdicts.contains(&Verdict::Overlaps) {
            late(LateReason::Overlaps, observed, 0)
        } else {
            None
        };
        if !bar.provisional {
            return refusal.map(Outcome::Missed);
        }
        let is_open = parents
            .iter()
            .any(|(_, end, row)| *end > watermark && !row.is_some_and(|row| self.windows[row].is(CLOSED)));
        // What is provisional will come again: it need not be missed.
        let in_vain = refusal.is_some() || verdicts.contains(&Verdict::Revision) || !is_open;
        in_vain.then_some(Outcome::Repeated)
    }

    fn join_parent(&mut self, key: u32, start: i64, end: i64, bar: &ChildBar, watermark: i64) {
        let child = &bar.child;
        let is_over = end <= watermark; // before the child was observed: it may close what it joins
        let found = self.keys[key].windows.get(start);
        if bar.provisional && (is_over || found.is_some_and(|row| self.windows[row].is(CLOSED))) {
            return;
        }
        let row = match found {
            Some(row) => row,
            None => {
                let row = self.open(key, start, end, child.start, is_over && !self.rules.is_final);
                let window = &mut self.windows[row];
                window.clock = LONG_AGO;
                window.contents = Some(Box::default());
                if let Some(ghost) = self.ghosts.remove(&(key, start)) {
                    self.windows[row].flags |= self.windows[ghost].flags & STORED;
                    self.changes.replace(ghost, row, &mut self.windows);
                    self.free_window(ghost);
                }
                row
            }
        };
        let horizon = self.keys[key].max.saturating_sub(self.rules.lateness);
        let window = &mut self.windows[row];
        let Some(contents) = &mut window.contents else { return };
        if bar.provisional {
            contents.preview(child);
        } else {
            window.count = window.count.wrapping_add_signed(contents.join(child));
            contents.settle(horizon);
            window.clock = window.clock.max(child.end);
        }
        self.show_change(row, if bar.is_correction { Trigger::Correction } else { Trigger::Late });
    }

    /// Puts into a parent what a frame of it shows; what it counted before, or `None` where there is none to show.
    pub(crate) fn show_children(&mut self, row: u32, status: Status) -> Option<u64> {
        let window = &mut self.windows[row];
        let contents = window.contents.as_ref()?;
        if status != Status::Provisional && !contents.joined {
            window.flags &= !CHANGED; // nothing but provisional children: to all others it does not exist
            return None;
        }
        let (real, filled) = contents.total(status == Status::Provisional);
        let counted = window.count;
        window.count = real.as_ref().map_or(0, |sums| sums.count.unsigned_abs());
        (window.first, window.last) = real.as_ref().map_or((window.start, window.start), |it| (it.first, it.last));
        window.flags &= !FILLED;
        window.flags |= if real.is_none() && filled.is_some() { FILLED } else { 0 };
        if let Some(Sums { open, high, low, close, volume, notional, .. }) = real.or(filled) {
            window.bar = Bar { open, high, low, close, volume, notional, ..Bar::default() };
        }
        Some(counted)
    }

    /// Whether a window is more than a preview.
    #[inline]
    pub(crate) fn is_real(&self, row: u32) -> bool {
        self.windows[row].contents.as_ref().is_none_or(|contents| contents.joined)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn child(number: i64, rev: i64, count: i64) -> Child {
        let (start, end, filled) = (number * 10, number * 10 + 10, count == 0);
        let price = 1.0 + number as f64 / 8.0;
        let (open, high, low, close, volume, vwap) = (price, price, price, price, 0.1, price);
        Child { start, end, rev, count, filled, open, high, low, close, volume, vwap, first: start, last: end - 1 }
    }

    fn shown(contents: &Contents) -> String {
        format!("{:?}", contents.total(false))
    }

    proptest! {
        #[test]
        fn it_makes_no_difference_when_children_are_settled_or_stored(steps in proptest::collection::vec((0i64..3, any::<bool>(), any::<bool>()), 0..30)) {
            let (mut whole, mut settled) = (Contents::default(), Contents::default());
            for (number, (count, settles, stores)) in steps.into_iter().enumerate() {
                let next = child(number as i64, 0, count);
                prop_assert_eq!(settled.verdict(&next), Verdict::New);
                prop_assert_eq!((whole.join(&next), settled.join(&next)), (count, count));
                prop_assert_eq!(settled.verdict(&child(number as i64, 0, 1)), Verdict::Repeated);
                prop_assert_eq!(settled.verdict(&child(number as i64, 1, 1)), Verdict::Revision);
                if settles {
                    settled.settle(next.end);
                    prop_assert_eq!(settled.verdict(&next), Verdict::Overlaps);
                }
                if stores {
                    let mut out = Vec::new();
                    settled.dump(&mut out);
                    settled = Contents::load(&out).unwrap();
                }
            }
            prop_assert_eq!(shown(&whole), shown(&settled));
        }

        #[test]
        fn contents_that_are_harmed_are_taken_or_refused(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut contents = Contents::default();
            (0..4).for_each(|number| { contents.join(&child(number, 0, number)); });
            contents.settle(20);
            contents.preview(&child(7, 0, 1));
            let mut out = Vec::new();
            contents.dump(&mut out);
            let at = at.index(out.len());
            out[at] = byte;
            if let Some(found) = Contents::load(&out) {
                found.total(true);
            }
            prop_assert!(Contents::load(&out[..at]).is_none());
        }
    }
}
