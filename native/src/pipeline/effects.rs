//! What stages have to report and to have written, as `workers.core.effects` has it.

use compact_str::CompactString;

pub use crate::ledger::Late;
use crate::pipeline::stage::Held;
pub use crate::snapshot::Written;

/// Records that go to other topics: keys, values and headers end to end.
#[derive(Debug, Default)]
pub struct Routed {
    pub text: Vec<u8>,
    /// The topic's number (`Pipeline::topics`), and where key, value and headers end. Headers are packed as in a record
    /// batch, from their number on.
    pub cuts: Vec<(usize, [usize; 3])>,
}

/// Why an operator drops a tick; `workers.core.reasons` has the texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    Duplicate,
    Throttled,
}

impl Reason {
    pub fn name(self) -> &'static str {
        match self {
            Self::Duplicate => "duplicate",
            Self::Throttled => "throttled",
        }
    }
}

/// What a stage notices of ticks that go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Notice {
    WithoutId,
    ForgottenEarly,
    Gap,
    Filled,
}

impl Notice {
    pub const ALL: [Self; 4] = [Self::WithoutId, Self::ForgottenEarly, Self::Gap, Self::Filled];

    pub fn name(self) -> &'static str {
        match self {
            Self::WithoutId => "without_id",
            Self::ForgottenEarly => "forgotten_early",
            Self::Gap => "gap",
            Self::Filled => "filled",
        }
    }
}

/// Ids that were skipped: after the greatest of a symbol so far came one that is not the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SequenceGap {
    /// Its place in the pipeline, from 0.
    pub stage: usize,
    pub symbol: CompactString,
    pub first: i64,
    pub last: i64,
    pub offset: i64,
}

/// What stages have to report; the caller clears what it has used.
#[derive(Debug, Default)]
pub struct Effects {
    /// Ticks that were held back and reach the windows now, in order, before the tick at hand does.
    pub going: Vec<Held>,
    pub late: Late,
    pub routed: Routed,
    /// Ticks dropped, by the stage's place.
    pub taken_out: Vec<u64>,
    /// What was noticed, by the stage's place, in the order of `Notice::ALL`.
    pub noticed: Vec<[u64; 4]>,
    pub gaps: Vec<SequenceGap>,
}

impl Effects {
    pub fn clear(&mut self) {
        self.going.clear();
        self.late = Late::default();
        self.routed.text.clear();
        self.routed.cuts.clear();
        self.taken_out.fill(0);
        self.noticed.fill([0; 4]);
        self.gaps.clear();
    }

    pub(super) fn notice(&mut self, stage: usize, what: Notice) {
        self.noticed[stage][what as usize] += 1;
    }
}
