//! The pipeline: what ticks pass between decoding and windows, stage by stage, in the order configured.
//!
//! ```text
//! tick ─▶ deduplicate ─▶ throttle ─▶ router ─▶ windows
//!             │             │           │
//!             ▼             ▼           ▼
//!         duplicate     throttled   named topics
//!         └─ the late topic, with why ─┘
//! ```
//!
//! It mirrors `workers.core.pipeline`, file by file, without the operators that call Python (`filter`, `map`). State is
//! stored as Python's stages store it, to the byte and in the same order, and each goes on where the other stopped.
//!
//! The way of a record: `Decoder::decode_watched(.., facts().begin())`, `FactReader::read_watched`, `Pipeline::push`, and
//! if that says so the windows, behind what `Effects::going` has. Where the decoder or the reader of facts is not sure
//! the walk stops at the record, Python decodes it and says its facts (`workers.native.facts`), and it is pushed before
//! the next one is looked at. No tick that goes on is copied.
pub mod deduplicate;
pub mod effects;
pub mod facts;
mod glob;
mod hash;
pub mod headers;
#[cfg(feature = "extension-module")]
pub mod probe;
#[cfg(feature = "extension-module")]
pub mod python;
pub mod route;
pub mod stage;
pub mod symbols;
pub mod throttle;

use crate::pipeline::deduplicate::Deduplicator;
use crate::pipeline::effects::{Effects, Reason, Written};
use crate::pipeline::facts::FactReader;
use crate::pipeline::route::Router;
use crate::pipeline::stage::{stage_name, stage_of, Damage, Held, Passing, Spec, StageContext, StageSpec, StateKeys};
use crate::pipeline::symbols::{SymbolId, Symbols};
use crate::pipeline::throttle::{Conflator, Throttler};

#[derive(Debug)]
enum Stage {
    Deduplicate(Deduplicator),
    Throttle(Throttler),
    Conflate(Conflator),
    Router(Router),
}

impl Stage {
    fn new(context: StageContext, topics: &mut Vec<String>) -> Self {
        match &context.lane.stages[context.index] {
            StageSpec::Deduplicate(spec) => Self::Deduplicate(Deduplicator::new(spec, context)),
            StageSpec::Throttle(spec) => Self::Throttle(Throttler::new(spec, context)),
            StageSpec::Conflate(spec) => Self::Conflate(Conflator::new(spec, context)),
            StageSpec::Router(spec) => Self::Router(Router::new(spec, |topic| {
                topics.iter().position(|known| known == topic).unwrap_or_else(|| {
                    topics.push(topic.to_owned());
                    topics.len() - 1
                })
            })),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Deduplicate(_) => Deduplicator::KIND,
            Self::Throttle(_) | Self::Conflate(_) => throttle::KIND,
            Self::Router(_) => "router",
        }
    }

    /// Whether the tick goes on, behind those appended to `released`.
    #[inline(always)]
    fn take(
        &mut self,
        id: SymbolId,
        tick: &Passing,
        facts: &mut &[u8],
        symbols: &mut Symbols,
        out: &mut Effects,
        released: &mut Vec<Held>,
    ) -> bool {
        match self {
            Self::Deduplicate(stage) => stage.take(id, tick, facts, symbols, out),
            Self::Throttle(stage) => stage.take(id, tick, symbols, out),
            Self::Conflate(stage) => stage.take(id, tick, facts, symbols, out, released),
            Self::Router(stage) => stage.take(id, tick, facts, symbols, out),
        }
    }
}

/// The stages of one partition.
#[derive(Debug)]
pub struct Pipeline {
    stages: Vec<Stage>,
    names: Vec<String>,
    topics: Vec<String>,
    symbols: Symbols,
    facts: FactReader,
    released: Vec<Held>,
}

impl Pipeline {
    pub fn new(spec: &Spec) -> Self {
        let mut topics = Vec::new();
        let stages: Vec<Stage> =
            (0..spec.stages.len()).map(|index| Stage::new(StageContext { index, lane: spec }, &mut topics)).collect();
        let names = stages.iter().enumerate().map(|(index, stage)| stage_name(index, stage.kind())).collect();
        let facts = FactReader::new(&spec.stages);
        Self { stages, names, topics, symbols: Symbols::default(), facts, released: Vec::new() }
    }

    /// What reads the facts that `push` needs.
    pub fn facts(&mut self) -> &mut FactReader {
        &mut self.facts
    }

    /// The stages' names, by their places.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Why a stage drops ticks; `None` for one that drops none.
    pub fn reason(&self, stage: usize) -> Option<Reason> {
        match self.stages[stage] {
            Stage::Deduplicate(_) => Some(Reason::Duplicate),
            Stage::Throttle(_) | Stage::Conflate(_) => Some(Reason::Throttled),
            Stage::Router(_) => None,
        }
    }

    /// The topics that are routed to, by their numbers in `Effects::routed`.
    pub fn topics(&self) -> &[String] {
        &self.topics
    }

    /// Ticks that are held back at the moment.
    pub fn held(&self) -> usize {
        self.stages.iter().map(|stage| if let Stage::Conflate(stage) = stage { stage.held() } else { 0 }).sum()
    }

    /// The times of all ticks that are held back.
    pub fn held_times(&self) -> Vec<i64> {
        let of = |stage: &Stage| if let Stage::Conflate(stage) = stage { stage.held_times() } else { Vec::new() };
        self.stages.iter().flat_map(of).collect()
    }

    /// Sends a tick through the stages. Whether it reaches the windows now; before it do those appended to
    /// `out.going`.
    #[inline]
    pub fn push(&mut self, tick: &Passing, out: &mut Effects) -> bool {
        self.make_room(out);
        if self.symbols.is_full() {
            self.sweep();
        }
        let id = self.symbols.intern(tick.symbol);
        let mut facts = tick.facts;
        for (index, stage) in self.stages.iter_mut().enumerate() {
            let goes_on = stage.take(id, tick, &mut facts, &mut self.symbols, out, &mut self.released);
            if !self.released.is_empty() {
                if index + 1 == self.names.len() {
                    out.going.append(&mut self.released);
                    return goes_on;
                }
                let released = std::mem::take(&mut self.released);
                let tick = goes_on.then_some((id, Passing { facts, ..*tick }));
                return self.push_all(index + 1, released, tick, out);
            }
            if !goes_on {
                return false;
            }
        }
        true
    }

    /// The input has ended: what the stages hold back goes on, through those behind, each symbol's in order, and what
    /// reaches the windows is appended to `out.going`.
    pub fn end_of_input(&mut self, out: &mut Effects) {
        self.make_room(out);
        let mut going = Vec::new();
        for index in 0..self.stages.len() {
            going = self.through(index, going, None, out).0;
            if let Stage::Conflate(stage) = &mut self.stages[index] {
                stage.release(&mut going);
            }
        }
        out.going.append(&mut going);
    }

    /// About how many things `take_changes` would write.
    pub fn changes_waiting(&self) -> usize {
        let waiting = |stage: &Stage| match stage {
            Stage::Deduplicate(stage) => stage.changes_waiting(),
            Stage::Throttle(stage) => stage.changes_waiting(),
            Stage::Conflate(stage) => stage.changes_waiting(),
            Stage::Router(_) => 0,
        };
        self.stages.iter().map(waiting).sum()
    }

    /// Appends the changelog records of what changed since the last call.
    pub fn take_changes(&mut self, out: &mut Written) {
        for stage in &mut self.stages {
            match stage {
                Stage::Deduplicate(stage) => stage.take_changes(&self.symbols, out),
                Stage::Throttle(stage) => stage.take_changes(&self.symbols, out),
                Stage::Conflate(stage) => stage.take_changes(&self.symbols, out),
                Stage::Router(_) => {}
            }
        }
    }

    /// Takes over one record of stored state, the last of its key; whether it is one of this pipeline. New pipelines
    /// only; behind the last record come `sort_parts`, all `restore_step`s, and what is `doubtful`.
    pub fn restore(&mut self, key: &[u8], value: &[u8]) -> Result<bool, Damage> {
        let Some((index, rest)) = stage_of(key).filter(|(index, _)| *index < self.stages.len()) else {
            return Ok(false);
        };
        let read = match StateKeys::read(rest) {
            None => return Ok(true),
            Some(Err(what)) => Err(what),
            Some(Ok(key)) => {
                let (symbols, facts) = (&mut self.symbols, &mut self.facts);
                match &mut self.stages[index] {
                    Stage::Deduplicate(stage) => stage.restore(key, value, symbols),
                    Stage::Throttle(stage) => stage.restore(key, value, symbols),
                    Stage::Conflate(stage) => {
                        stage.restore(key, value, symbols, |value, out| facts.read_stored(value, index + 1, out))
                    }
                    Stage::Router(_) => Ok(()),
                }
            }
        };
        read.map(|()| true).map_err(|what| self.damage(index, what))
    }

    /// All records were handed over.
    pub fn sort_parts(&mut self) {
        for stage in &mut self.stages {
            if let Stage::Deduplicate(stage) = stage {
                stage.sort_parts();
            }
        }
    }

    /// Takes over one part of the state, some milliseconds of work at most; whether there was one.
    pub fn restore_step(&mut self) -> Result<bool, Damage> {
        for index in 0..self.stages.len() {
            if let Stage::Deduplicate(stage) = &mut self.stages[index] {
                match stage.restore_step(&self.symbols) {
                    Ok(false) => {}
                    Ok(true) => return Ok(true),
                    Err(what) => return Err(self.damage(index, what)),
                }
            }
        }
        Ok(false)
    }

    /// The value of a tick that was restored, and the first stage that it has still to pass: Python must say its facts
    /// from there on, or that the value is no JSON, before anything is pushed.
    pub fn doubtful(&mut self) -> Option<(&[u8], usize)> {
        self.stages.iter_mut().find_map(|stage| match stage {
            Stage::Conflate(stage) => {
                let first = stage.stage() + 1;
                stage.doubtful().map(|value| (value, first))
            }
            _ => None,
        })
    }

    /// What Python says of the tick that is `doubtful`; whether there is one and these are facts.
    pub fn settle(&mut self, facts: &[u8]) -> bool {
        for stage in &mut self.stages {
            if let Stage::Conflate(stage) = stage {
                if stage.doubtful().is_some() {
                    let is_valid = self.facts.is_valid(facts, stage.stage() + 1);
                    if is_valid {
                        stage.settle(facts);
                    }
                    return is_valid;
                }
            }
        }
        false
    }

    fn damage(&self, index: usize, what: String) -> Damage {
        Damage { stage: self.names[index].clone(), what }
    }

    #[inline(always)]
    fn make_room(&self, out: &mut Effects) {
        if out.taken_out.len() < self.stages.len() {
            out.taken_out.resize(self.stages.len(), 0);
            out.noticed.resize(self.stages.len(), [0; 4]);
        }
    }

    #[cold]
    fn sweep(&mut self) {
        let stages = &mut self.stages;
        self.symbols.sweep(|id| {
            for stage in stages.iter_mut() {
                if let Stage::Router(stage) = stage {
                    stage.give_up(id);
                }
            }
        });
    }

    /// Sends ticks that were held back, and the one at hand behind them, through the stages from `first` on.
    fn push_all(
        &mut self,
        first: usize,
        mut held: Vec<Held>,
        mut tick: Option<(SymbolId, Passing)>,
        out: &mut Effects,
    ) -> bool {
        for index in first..self.stages.len() {
            (held, tick) = self.through(index, held, tick, out);
        }
        out.going.append(&mut held);
        tick.is_some()
    }

    /// What goes on behind one stage.
    fn through<'a>(
        &mut self,
        index: usize,
        held: Vec<Held>,
        tick: Option<(SymbolId, Passing<'a>)>,
        out: &mut Effects,
    ) -> (Vec<Held>, Option<(SymbolId, Passing<'a>)>) {
        let (stage, symbols) = (&mut self.stages[index], &mut self.symbols);
        let mut going = Vec::with_capacity(held.len());
        for mut each in held {
            let (goes_on, left) = {
                let passing = each.passing();
                let mut facts = passing.facts;
                (stage.take(each.id, &passing, &mut facts, symbols, out, &mut going), facts.len())
            };
            if goes_on {
                each.leave_facts(left);
                going.push(each);
            }
        }
        let tick = tick.and_then(|(id, passing)| {
            let mut facts = passing.facts;
            let goes_on = stage.take(id, &passing, &mut facts, symbols, out, &mut going);
            goes_on.then_some((id, Passing { facts, ..passing }))
        });
        (going, tick)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::msgpack;
    use crate::pipeline::facts::Wanted;
    use crate::pipeline::stage::{ConflateSpec, DeduplicateSpec, RouteSpec, RouterSpec, ThrottleSpec};
    use proptest::prelude::*;

    fn spec() -> Spec {
        let fields = vec!["id".to_owned()];
        let field = Some(("venue".to_owned(), Wanted::Integer(1)));
        let route = RouteSpec { to: Some("x".into()), symbol: Some("A*".into()), field };
        Spec {
            stages: vec![
                StageSpec::Conflate(ConflateSpec { interval_ns: 10, margin_ns: 5, ledger: true }),
                StageSpec::Deduplicate(DeduplicateSpec { fields, ttl_ns: 50, gaps: true, max_ids: 3, ledger: true }),
                StageSpec::Throttle(ThrottleSpec { spacing_ns: 3, burst: 2, per_symbol: true, ledger: true }),
                StageSpec::Router(RouterSpec { routes: vec![route], default: None }),
            ],
            unit_ns: 7,
            key_ttl_ns: Some(100),
            topic: "ticks".into(),
            partition: 0,
        }
    }

    fn tick<'a>(symbol: &'a str, ts_ns: i64, facts: &'a [u8]) -> Passing<'a> {
        let (value, headers) = (&b"{}"[..], &b"\x02\x02a\x01"[..]);
        Passing {
            symbol,
            ts_ns,
            price: 1.0,
            size: 1.0,
            offset: 0,
            timestamp_ms: -1,
            value,
            original: None,
            headers,
            facts,
        }
    }

    /// Changelog keys and values that have something of the right form.
    fn state() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
        let integer = prop_oneof![any::<i64>(), -5i64..200, Just(i64::MAX), Just(i64::MIN)];
        let value = (integer.clone(), integer.clone(), integer.clone(), 0u8..4).prop_map(|(one, two, three, kind)| {
            let mut out = Vec::new();
            match kind {
                0 => msgpack::put_array(&mut out, 2),
                1 => msgpack::put_array(&mut out, 3),
                _ => msgpack::put_array(&mut out, 5),
            }
            msgpack::put_integer(&mut out, one);
            match kind {
                0 => msgpack::put_integer(&mut out, two),
                1 => {
                    msgpack::put_integer(&mut out, two);
                    msgpack::put_nil(&mut out);
                }
                _ => {
                    msgpack::put_integer(&mut out, two.saturating_abs());
                    msgpack::put_integer(&mut out, three.saturating_abs());
                    msgpack::put_optional(&mut out, (kind == 2).then_some(one));
                    msgpack::put_optional(&mut out, (kind == 2).then_some(three));
                }
            }
            out
        });
        let part = (integer.clone(), integer).prop_map(|(begin, ts_ns)| {
            let mut out = Vec::new();
            msgpack::put_array(&mut out, 2);
            msgpack::put_integer(&mut out, begin);
            msgpack::put_array(&mut out, 1);
            msgpack::put_array(&mut out, 2);
            msgpack::put_bin(&mut out, b"1");
            msgpack::put_integer(&mut out, ts_ns);
            out
        });
        let key =
            (0u8..5, prop_oneof![Just(b"hA".to_vec()), Just(b"hB".to_vec()), Just(b"s\0\0\0\0\0\0\0\x01A".to_vec())])
                .prop_map(|(stage, rest)| [&[b'o', 0, stage], &rest[..]].concat());
        let value = prop_oneof![value, part, proptest::collection::vec(any::<u8>(), 0..20)];
        proptest::collection::vec((key, value), 0..6)
    }

    proptest! {
        /// Neither times at the ends of 64 bits, nor state or facts that nobody wrote, make it panic.
        #[test]
        fn nothing_makes_it_panic(
            entries in state(),
            ticks in proptest::collection::vec(
                (prop_oneof![Just(i64::MAX), Just(i64::MIN), any::<i64>(), 0i64..300], "[ABC]", proptest::collection::vec(0u8..4, 0..14)),
                0..40,
            ),
        ) {
            let mut pipeline = Pipeline::new(&spec());
            for (key, value) in &entries {
                let _ = pipeline.restore(key, value);
            }
            pipeline.sort_parts();
            while let Ok(true) = pipeline.restore_step() {}
            while pipeline.doubtful().is_some() && pipeline.settle(&[0, 0, 0]) {}
            let (mut out, mut written) = (Effects::default(), Written::default());
            for (ts_ns, symbol, facts) in &ticks {
                pipeline.push(&tick(symbol, *ts_ns, facts), &mut out);
                pipeline.take_changes(&mut written);
            }
            pipeline.end_of_input(&mut out);
            prop_assert_eq!(pipeline.held(), 0);
        }
    }

    #[test]
    fn what_is_held_goes_on_through_the_stages_behind() {
        let mut pipeline = Pipeline::new(&spec());
        let mut out = Effects::default();
        let facts = [1, b'7', 1, 7, 0, 0, 0, 0, 0, 0, 0, 1];
        assert!(pipeline.facts().is_valid(&facts, 0));
        assert!(!pipeline.push(&tick("AB", 0, &facts), &mut out));
        assert_eq!(pipeline.held(), 1);
        assert!(!pipeline.push(&tick("B", 30, &facts), &mut out)); // 30 is past 10 + 5: what AB had goes to topic x
        assert_eq!((pipeline.held(), out.routed.cuts.len(), out.going.len()), (1, 1, 0));
        assert_eq!(out.routed.text, b"AB{}\x02\x02a\x01");
        pipeline.end_of_input(&mut out);
        assert_eq!(out.going.iter().map(|held| held.symbol.as_str()).collect::<Vec<_>>(), ["B"]);
    }
}
