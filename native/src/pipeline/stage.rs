//! What every stage is made of: ticks on their way, the account of those taken out, state per symbol.
//!
//! A stage takes one tick and gives back those that go on: none, that one, or others that it had held back. It reads no
//! clock; where it needs the time, that is the greatest event time it has seen, per symbol. See
//! `workers.core.pipeline.stage`, which this follows.

use std::fmt;

use compact_str::CompactString;

use crate::json::{put_integer, put_string};
use crate::pipeline::effects::{Effects, Reason, Written};
use crate::pipeline::facts::Wanted;
use crate::pipeline::symbols::SymbolId;

// -- what is configured -----------------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
pub struct DeduplicateSpec {
    pub fields: Vec<String>,
    pub ttl_ns: i64,
    pub gaps: bool,
    pub max_ids: usize,
    pub ledger: bool,
}

#[derive(Clone, Debug)]
pub struct ThrottleSpec {
    pub spacing_ns: i64,
    pub burst: i64,
    pub per_symbol: bool,
    pub ledger: bool,
}

#[derive(Clone, Debug)]
pub struct ConflateSpec {
    pub interval_ns: i64,
    pub margin_ns: i64,
    pub ledger: bool,
}

/// `to` is a topic; `None`: on to the next stage.
#[derive(Clone, Debug)]
pub struct RouteSpec {
    pub to: Option<String>,
    pub symbol: Option<String>,
    pub field: Option<(String, Wanted)>,
}

#[derive(Clone, Debug)]
pub struct RouterSpec {
    pub routes: Vec<RouteSpec>,
    pub default: Option<String>,
}

#[derive(Clone, Debug)]
pub enum StageSpec {
    Deduplicate(DeduplicateSpec),
    Throttle(ThrottleSpec),
    Conflate(ConflateSpec),
    Router(RouterSpec),
}

/// The stages, and what they know of their lane.
#[derive(Clone, Debug)]
pub struct Spec {
    pub stages: Vec<StageSpec>,
    /// Nanoseconds in one unit of a tick's integer timestamp.
    pub unit_ns: i64,
    /// `None`: no symbol is ever forgotten.
    pub key_ttl_ns: Option<i64>,
    pub topic: String,
    pub partition: u32,
}

/// What a stage knows of its lane; `index` is its place in the pipeline, from 0.
#[derive(Clone, Copy, Debug)]
pub struct StageContext<'a> {
    pub index: usize,
    pub lane: &'a Spec,
}

// -- ticks on their way -----------------------------------------------------------------------------------------------

/// A tick on its way to the windows, and what is left of the record that it was; its key is the symbol.
#[derive(Clone, Copy, Debug)]
pub struct Passing<'a> {
    pub symbol: &'a str,
    pub ts_ns: i64,
    pub price: f64,
    pub size: f64,
    pub offset: i64,
    /// The record's own time; -1 for none.
    pub timestamp_ms: i64,
    pub value: &'a [u8],
    /// The record's value, where that is another one than the tick's.
    pub original: Option<&'a [u8]>,
    /// Packed as in a record batch, from their number on; empty for none.
    pub headers: &'a [u8],
    /// What the stages from here on need to know; see `facts`.
    pub facts: &'a [u8],
}

/// A tick that was held back.
#[derive(Clone, Debug, Default)]
pub struct Held {
    pub symbol: CompactString,
    pub ts_ns: i64,
    pub price: f64,
    pub size: f64,
    pub offset: i64,
    pub timestamp_ms: i64,
    pub(super) id: SymbolId,
    /// Value, original, headers and facts, end to end.
    data: Vec<u8>,
    value_end: u32,
    /// The value's end where there is no original.
    original_end: u32,
    headers_end: u32,
    facts_begin: u32,
}

impl Held {
    pub(super) fn new(id: SymbolId, tick: &Passing, facts: &[u8]) -> Self {
        let mut held = Self { symbol: tick.symbol.into(), id, ..Self::default() };
        held.assign(tick, facts);
        held
    }

    /// Takes the place of a tick of the same symbol.
    pub(super) fn assign(&mut self, tick: &Passing, facts: &[u8]) {
        (self.ts_ns, self.price, self.size) = (tick.ts_ns, tick.price, tick.size);
        (self.offset, self.timestamp_ms) = (tick.offset, tick.timestamp_ms);
        let original = tick.original.unwrap_or_default();
        self.data.clear();
        self.data.reserve_exact(tick.value.len() + original.len() + tick.headers.len() + facts.len());
        self.data.extend_from_slice(tick.value);
        self.value_end = self.data.len() as u32;
        self.data.extend_from_slice(tick.original.unwrap_or_default());
        self.original_end = self.data.len() as u32;
        self.data.extend_from_slice(tick.headers);
        self.headers_end = self.data.len() as u32;
        self.facts_begin = self.headers_end;
        self.data.extend_from_slice(facts);
    }

    pub fn passing(&self) -> Passing<'_> {
        let [value_end, original_end, headers_end] =
            [self.value_end, self.original_end, self.headers_end].map(|end| end as usize);
        Passing {
            symbol: &self.symbol,
            ts_ns: self.ts_ns,
            price: self.price,
            size: self.size,
            offset: self.offset,
            timestamp_ms: self.timestamp_ms,
            value: &self.data[..value_end],
            original: (original_end > value_end).then(|| &self.data[value_end..original_end]),
            headers: &self.data[original_end..headers_end],
            facts: &self.data[self.facts_begin as usize..],
        }
    }

    pub(super) fn leave_facts(&mut self, left: usize) {
        self.facts_begin = (self.data.len() - left) as u32;
    }

    pub(super) fn set_facts(&mut self, facts: &[u8]) {
        self.data.truncate(self.headers_end as usize);
        self.facts_begin = self.headers_end;
        self.data.extend_from_slice(facts);
    }
}

// -- what does not go on -----------------------------------------------------------------------------------------------

/// Accounts for the ticks that a stage drops.
#[derive(Debug)]
pub struct Drops {
    stage: usize,
    reason: Reason,
    unit_ns: i64,
    /// Of a ledger entry, what all of a stage have in common; `None` without a ledger.
    text: Option<(Vec<u8>, Vec<u8>)>,
}

impl Drops {
    pub fn new(context: StageContext, kind: &str, reason: Reason, ledger: bool) -> Self {
        let text = ledger.then(|| {
            let (mut begin, mut end) = (Vec::new(), Vec::new());
            begin.extend_from_slice(b",\"reason\":");
            put_string(&mut begin, reason.name());
            begin.extend_from_slice(b",\"stage\":");
            put_string(&mut begin, &stage_name(context.index, kind));
            begin.extend_from_slice(b",\"detail\":{\"");
            end.extend_from_slice(b"},\"topic\":");
            put_string(&mut end, &context.lane.topic);
            end.extend_from_slice(b",\"partition\":");
            put_integer(&mut end, context.lane.partition);
            end.extend_from_slice(b",\"offset\":");
            (begin, end)
        });
        Self { stage: context.index, reason, unit_ns: context.lane.unit_ns, text }
    }

    /// Counts a tick as taken out for good and, with the ledger, writes down which and why: `name` is a time, in the
    /// tick's unit.
    pub fn note(&self, tick: &Passing, name: &str, time: i64, out: &mut Effects) {
        out.taken_out[self.stage] += 1;
        let Some((begin, end)) = &self.text else {
            return;
        };
        let text = &mut out.late.text;
        text.extend_from_slice(tick.symbol.as_bytes());
        let key_end = text.len();
        text.extend_from_slice(b"{\"key\":");
        put_string(text, tick.symbol);
        text.extend_from_slice(b",\"ts\":");
        put_integer(text, tick.ts_ns.div_euclid(self.unit_ns));
        text.extend_from_slice(begin);
        text.extend_from_slice(name.as_bytes());
        text.extend_from_slice(b"\":");
        put_integer(text, time);
        text.extend_from_slice(end);
        put_integer(text, tick.offset);
        text.extend_from_slice(b",\"tick\":");
        text.extend_from_slice(tick.value);
        text.push(b'}');
        out.late.cuts.push((key_end, text.len()));
        out.late.reasons.push(self.reason.name());
    }
}

/// A stage's name: its place, from 1, and its kind.
pub fn stage_name(index: usize, kind: &str) -> String {
    format!("{}:{kind}", index + 1)
}

// -- stored state -----------------------------------------------------------------------------------------------------

/// Stored state can't be read: what is wrong with it, and of which stage it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub stage: String,
    pub what: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "stage {}: {}", self.stage, self.what)
    }
}

/// Whose state a stage's changelog key is: a symbol's one head, or one of its numbered parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateKey<'a> {
    Head(&'a str),
    Part(&'a str, u64),
}

/// The place of the stage whose state a changelog key is of, and the rest of the key; `None` where it is of none.
pub fn stage_of(key: &[u8]) -> Option<(usize, &[u8])> {
    let (prefix, rest) = key.split_first_chunk::<3>()?;
    (prefix[0] == b'o').then(|| (usize::from(u16::from_be_bytes([prefix[1], prefix[2]])), rest))
}

/// The changelog keys of one stage: `o`, its index, then a symbol's one head or its numbered parts.
#[derive(Clone, Copy, Debug)]
pub struct StateKeys {
    prefix: [u8; 3],
}

impl StateKeys {
    pub fn new(index: usize) -> Self {
        let [high, low] = (index as u16).to_be_bytes();
        Self { prefix: [b'o', high, low] }
    }

    pub fn put_head(&self, symbol: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.prefix);
        out.push(b'h');
        out.extend_from_slice(symbol.as_bytes());
    }

    pub fn put_part(&self, symbol: &str, number: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.prefix);
        out.push(b's');
        out.extend_from_slice(&number.to_be_bytes());
        out.extend_from_slice(symbol.as_bytes());
    }

    /// What a key of this stage is of, given what follows its index; `None` for neither.
    pub fn read(rest: &[u8]) -> Option<Result<StateKey<'_>, String>> {
        let text = |bytes| std::str::from_utf8(bytes).map_err(|error| format!("a key's symbol is no text: {error}"));
        match rest.split_first()? {
            (b'h', symbol) => Some(text(symbol).map(StateKey::Head)),
            (b's', rest) => Some(match rest.split_first_chunk::<8>() {
                Some((number, symbol)) => {
                    text(symbol).map(|symbol| StateKey::Part(symbol, u64::from_be_bytes(*number)))
                }
                None => Err("a part's key has no number".into()),
            }),
            _ => None,
        }
    }
}

/// Records of the changelog to be deleted, as they come.
#[derive(Debug, Default)]
pub struct Deletions {
    keys: Vec<Vec<u8>>,
}

impl Deletions {
    pub fn add(&mut self, put: impl FnOnce(&mut Vec<u8>)) {
        let mut key = Vec::new();
        put(&mut key);
        self.keys.push(key);
    }

    pub fn count(&self) -> usize {
        self.keys.len()
    }

    pub fn take(&mut self, out: &mut Written) {
        for key in self.keys.drain(..) {
            out.put_deletion(|text| text.extend_from_slice(&key));
        }
    }
}
