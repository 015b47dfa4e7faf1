//! Which windows an event time belongs to: the rules of `workers.core.windows.assign`.

const DAY_NS: i64 = 86_400_000_000_000;

/// The windows that contain a time: `count` of them, one every `step`, each as long as the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub start: i64,
    pub end: i64,
    pub step: i64,
    pub count: u32,
}

impl Span {
    const NOWHERE: Self = Self { start: 0, end: 0, step: 0, count: 0 };

    pub fn one(start: i64, end: i64) -> Self {
        Self { start, end, step: 0, count: 1 }
    }
}

#[derive(Debug)]
pub enum Assigner {
    Tumbling { size: i64, offset: i64 },
    Hopping { size: i64, hop: i64, offset: i64 },
    Sessions { gap: i64 },
    Calendar { starts: Vec<i64>, ends: Vec<i64> },
    Zoned(Zoned),
}

impl Assigner {
    /// The windows that contain `ts`.
    #[inline]
    pub fn assign(&self, ts: i64) -> Span {
        match self {
            Self::Tumbling { size, offset } => {
                let start = floor(ts, *size, *offset);
                Span::one(start, start + size)
            }
            Self::Hopping { size, hop, offset } => {
                let last = floor(ts, *hop, *offset);
                let before = (last + size - 1 - ts) / hop;
                let start = last - before * hop;
                Span { start, end: start + size, step: *hop, count: before as u32 + 1 }
            }
            Self::Sessions { gap } => Span::one(ts, ts + gap),
            Self::Calendar { starts, ends } => {
                let number = starts.partition_point(|start| *start <= ts);
                match number.checked_sub(1) {
                    Some(found) if ts < ends[found] => Span::one(starts[found], ends[found]),
                    _ => Span::NOWHERE,
                }
            }
            Self::Zoned(zoned) => {
                let (start, end) = zoned.window(ts);
                Span::one(start, end)
            }
        }
    }

    /// Whether each time is in one window at most, whose edges no tick moves.
    #[inline(always)]
    pub fn gives_one(&self) -> bool {
        !matches!(self, Self::Hopping { .. } | Self::Sessions { .. })
    }

    /// Whether `assign` can be asked for `ts`: of a time zone, not all times are known from the start.
    #[inline]
    pub fn knows(&self, ts: i64) -> bool {
        match self {
            Self::Zoned(zoned) => zoned.knows(ts),
            _ => true,
        }
    }
}

#[inline(always)]
fn floor(ts: i64, size: i64, offset: i64) -> i64 {
    (ts - offset).div_euclid(size) * size + offset
}

/// A stretch of a zone's time line with one offset from UTC.
#[derive(Clone, Copy, Debug)]
struct Piece {
    begin: i64,
    end: i64,
    offset: i64,
}

/// Tumbling windows by the wall clock of a time zone. What is known of the zone is handed over as it is needed, in
/// stretches; a time may be asked for where they reach `margin` beyond it.
#[derive(Debug)]
pub struct Zoned {
    size: i64,
    offset: i64,
    margin: i64,
    /// By begin; those of a stretch are side by side.
    pieces: Vec<Piece>,
    /// (begin, end), by begin; none touches another.
    stretches: Vec<(i64, i64)>,
}

impl Zoned {
    pub fn new(size: i64, offset: i64, margin: i64) -> Self {
        Self { size, offset, margin, pieces: Vec::new(), stretches: Vec::new() }
    }

    /// Takes over a stretch of the zone as begin, end and offset from UTC, side by side. None of it may be known.
    pub fn learn(&mut self, pieces: impl Iterator<Item = (i64, i64, i64)>) {
        self.pieces.extend(pieces.map(|(begin, end, offset)| Piece { begin, end, offset }));
        self.pieces.sort_by_key(|piece| piece.begin);
        self.pieces.dedup_by(|next, piece| {
            let is_one = piece.end == next.begin && piece.offset == next.offset;
            if is_one {
                piece.end = next.end;
            }
            is_one
        });
        self.stretches.clear();
        for piece in &self.pieces {
            match self.stretches.last_mut() {
                Some(last) if last.1 == piece.begin => last.1 = piece.end,
                _ => self.stretches.push((piece.begin, piece.end)),
            }
        }
    }

    #[inline]
    fn knows(&self, ts: i64) -> bool {
        let found = self.stretches.partition_point(|stretch| stretch.0 <= ts).checked_sub(1);
        found.is_some_and(|found| {
            let (begin, end) = self.stretches[found];
            begin + self.margin <= ts && ts < end - self.margin
        })
    }

    fn at(&self, ts: i64) -> usize {
        let found = self.pieces.partition_point(|piece| piece.begin <= ts).saturating_sub(1);
        found.min(self.pieces.len().saturating_sub(1))
    }

    fn window(&self, ts: i64) -> (i64, i64) {
        if self.size % DAY_NS == 0 {
            self.of_days(ts)
        } else {
            (self.before(ts), self.after(ts))
        }
    }

    fn floor(&self, wall: i64) -> i64 {
        floor(wall, self.size, self.offset)
    }

    /// Boundaries are the first instants at which the wall clock has reached them.
    fn of_days(&self, ts: i64) -> (i64, i64) {
        let mut wall = self.floor(ts + self.pieces[self.at(ts)].offset);
        let (mut start, mut end) = (self.reached(wall), self.reached(wall + self.size));
        while end <= ts {
            wall += self.size;
            (start, end) = (end, self.reached(wall + self.size));
        }
        (start, end)
    }

    /// The first instant at which the wall clock shows `wall` or later.
    fn reached(&self, wall: i64) -> i64 {
        let from = self.at(wall - DAY_NS);
        let piece = self.pieces[from..].iter().find(|piece| piece.end + piece.offset > wall);
        piece.map_or(wall, |piece| piece.begin.max(wall - piece.offset))
    }

    /// The last boundary at or before `ts`.
    fn before(&self, mut ts: i64) -> i64 {
        let mut at = self.at(ts);
        loop {
            let piece = self.pieces[at];
            let found = self.floor(ts + piece.offset) - piece.offset;
            if found >= piece.begin || at == 0 {
                return found;
            }
            ts = piece.begin - 1;
            if self.skips(piece.begin, self.pieces[at - 1].offset, piece.offset) {
                return piece.begin;
            }
            at -= 1;
        }
    }

    /// The first boundary after `ts`.
    fn after(&self, ts: i64) -> i64 {
        let mut at = self.at(ts);
        let mut found = self.floor(ts + self.pieces[at].offset) + self.size - self.pieces[at].offset;
        while found >= self.pieces[at].end && at + 1 < self.pieces.len() {
            let (end, next) = (self.pieces[at].end, self.pieces[at + 1]);
            if self.skips(end, self.pieces[at].offset, next.offset) {
                return end;
            }
            found = self.floor(end + next.offset - 1) + self.size - next.offset;
            at += 1;
        }
        found
    }

    /// Whether a boundary lies in what the wall clock skips when its offset changes at `change`.
    fn skips(&self, change: i64, from: i64, to: i64) -> bool {
        to > from && self.floor(change + to - 1) >= change + from
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_hopping_tick_is_in_every_window_that_contains_it(ts in -100_000i64..100_000, hop in 1i64..50, more in 0i64..300, shift in 0i64..50) {
            let (size, offset) = (hop + more, shift % hop);
            let span = Assigner::Hopping { size, hop, offset }.assign(ts);
            let expected: Vec<i64> = (ts - size + 1..=ts).filter(|start| (start - offset).rem_euclid(hop) == 0).collect();
            let found: Vec<i64> = (0..i64::from(span.count)).map(|number| span.start + number * span.step).collect();
            prop_assert_eq!(found, expected);
            prop_assert_eq!(span.end - span.start, size);
        }
    }

    #[test]
    fn between_sessions_a_time_is_nowhere() {
        let calendar = Assigner::Calendar { starts: vec![10, 30], ends: vec![20, 40] };
        for (ts, expected) in [(9, None), (10, Some(10)), (19, Some(10)), (20, None), (35, Some(30)), (40, None)] {
            let span = calendar.assign(ts);
            assert_eq!((span.count == 1).then_some(span.start), expected, "{ts}");
        }
    }
}
