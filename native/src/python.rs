//! The module `workers._native`: the lane as Python sees it.

use std::panic::{catch_unwind, AssertUnwindSafe};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::{PyBytes, PyDict};

use crate::assign::{Assigner, Zoned};
use crate::children::{Child, ChildBar, ChildDecoder, ChildFormat};
use crate::decompress::Codec;
use crate::engine::{Engine, Entry, LateReason, Rules};
use crate::frames::{Frames, Status, Trigger};
use crate::keys::Keys;
use crate::lane::{Corrupt, Input, Lane, Step, Stop};
use crate::ledger::Source;
use crate::packed::Records;
use crate::payload::Payload;
use crate::pipeline::effects::Notice;
use crate::pipeline::python::stages_from;
use crate::pipeline::stage::Spec as StagesSpec;
use crate::pipeline::{headers, Pipeline};
use crate::python_records::{PyBatch, PyRecords};
use crate::records::{whole_record, BatchHead, Broken, OwnRecord, Records as BatchRecords};
use crate::snapshot::{Restore, Stored};
use crate::sums::Amount;
use crate::ticks::{Decoder, MessageFormat, TickFormat};

pyo3::import_exception!(workers.errors, LaneError);
pyo3::create_exception!(_native, BatchError, PyValueError, "A record batch is not what Kafka's format v2 says.");

/// What Python and this module agree on: to be raised here and in `workers.native.probe` with every change of it, so that
/// an extension that was built before is not used.
const INTERFACE: u32 = 3;

/// Room of this much is kept from batch to batch.
const ROOM_KEPT: usize = 1 << 23;

type Packed = Payload<PyBackedBytes>;

fn codec_of(number: u16) -> PyResult<Codec> {
    Codec::from_attributes(number).ok_or_else(|| BatchError::new_err(format!("unknown codec {number}")))
}

fn corrupt(_: Corrupt) -> PyErr {
    BatchError::new_err("the records are not what Kafka's format v2 says")
}

fn unreadable(error: std::io::Error) -> PyErr {
    BatchError::new_err(error.to_string())
}

/// What is asked of a lane; times and durations in nanoseconds. Its fields are those of `LaneSpec` and of its parts.
#[derive(FromPyObject)]
struct Spec {
    topic: String,
    partition: u32,
    partitions: u32,
    fields: [String; 4],
    unit_ns: i64,
    min_time_ns: i64,
    max_time_ns: i64,
    max_future_skew_ns: i64,
    lag_ns: i64,
    lateness_ns: i64,
    idle_after_ns: i64,
    key_ttl_ns: Option<i64>,
    is_final: bool,
    by_partition: bool,
    emit_partial: bool,
    fill_gaps_ns: i64,
    longest_ns: i64,
    folds: bool,
    keeps: bool,
    shows: bool,
    /// Records are frames of another application.
    children: bool,
    /// The field that says what a message is, what it says of one that is no trade, and the field of a trade's id.
    messages: Option<(String, Vec<String>, String)>,
    name_unit_ns: i64,
    kind: String,
    size_ns: i64,
    hop_ns: i64,
    offset_ns: i64,
    /// How much beyond a time a zone must be known for windows to be found.
    margin_ns: i64,
    /// Starts and ends of a calendar's sessions.
    sessions: (Vec<i64>, Vec<i64>),
}

/// A child as Python has it.
#[derive(FromPyObject)]
struct PyChild {
    start_ns: i64,
    end_ns: i64,
    rev: i64,
    count: i64,
    filled: bool,
    open: f64,
    high: f64,
    low: f64,
    close: f64,
    volume: f64,
    vwap: f64,
    first_ns: i64,
    last_ns: i64,
}

impl From<PyChild> for Child {
    fn from(it: PyChild) -> Self {
        let PyChild { start_ns: start, end_ns: end, first_ns: first, last_ns: last, rev, count, filled, .. } = it;
        let PyChild { open, high, low, close, volume, vwap, .. } = it;
        Self { start, end, rev, count, filled, open, high, low, close, volume, vwap, first, last }
    }
}

/// What the stages of a pipeline have to report: (reason, stage, ticks), (what, stage, times), gaps as (stage, symbol,
/// first, last, offset), records by topic, and how many ticks are held back.
#[derive(Default, IntoPyObject)]
struct Departures {
    taken_out: Vec<(&'static str, String, u64)>,
    noticed: Vec<(&'static str, String, u64)>,
    gaps: Vec<(String, String, i64, i64, i64)>,
    routed: Vec<(String, PyRecords)>,
    held: usize,
}

#[pyclass(name = "Lane", module = "workers._native")]
struct PyLane {
    lane: Lane,
    batch: Option<(Packed, BatchHead)>,
    /// The last batch's room, for the next one.
    room: Vec<u8>,
    restore: Option<Restore>,
    has_failed: bool,
}

impl PyLane {
    /// Runs native code without Python's lock. A panic becomes an error that says where, and so does whatever is asked of
    /// the lane after it: what is in there is of no use any more.
    fn run<T: Send>(&mut self, py: Python<'_>, work: impl FnOnce(&mut Self) -> T + Send) -> PyResult<T> {
        if self.has_failed {
            return Err(LaneError::new_err("the native lane has failed before, and must be discarded"));
        }
        let found = py.detach(|| catch_unwind(AssertUnwindSafe(|| work(self))));
        self.has_failed = found.is_err();
        found.map_err(|panic| {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            let source = &self.lane.source;
            LaneError::new_err(format!(
                "{}[{}]: the native lane failed before offset {}: {said}",
                source.topic, source.partition, self.lane.position
            ))
        })
    }
}

#[pymethods]
impl PyLane {
    #[new]
    fn new(spec: Spec, stages: &Bound<'_, PyAny>) -> PyResult<Self> {
        let stages = stages_from(stages)?;
        let assigner = match spec.kind.as_str() {
            "tumbling" => Assigner::Tumbling { size: spec.size_ns, offset: spec.offset_ns },
            "zoned" => Assigner::Zoned(Zoned::new(spec.size_ns, spec.offset_ns, spec.margin_ns)),
            "hopping" => Assigner::Hopping { size: spec.size_ns, hop: spec.hop_ns, offset: spec.offset_ns },
            "session" => Assigner::Sessions { gap: spec.size_ns },
            "calendar" => Assigner::Calendar { starts: spec.sessions.0, ends: spec.sessions.1 },
            other => return Err(PyValueError::new_err(format!("windows of the kind {other:?} are not native"))),
        };
        let rules = Rules {
            lag: spec.lag_ns,
            lateness: spec.lateness_ns,
            idle_after: spec.idle_after_ns,
            key_ttl: spec.key_ttl_ns,
            is_final: spec.is_final,
            by_partition: spec.by_partition,
            emit_partial: spec.emit_partial && !spec.is_final,
            is_session: spec.kind == "session",
            fill_gaps: spec.fill_gaps_ns,
            longest: spec.longest_ns,
            folds: spec.folds,
            keeps: spec.keeps,
            shows: spec.shows,
            children: spec.children,
            name_unit: spec.name_unit_ns,
        };
        let boxed = |name: String| name.into_bytes().into_boxed_slice();
        let [symbol, ts, price, size] = spec.fields.map(boxed);
        let (unit_ns, min_ns, max_ns) = (spec.unit_ns, spec.min_time_ns, spec.max_time_ns);
        let corrects = spec.messages.is_some();
        let input = match spec.children {
            true => Input::Children(Box::new(ChildDecoder::new(ChildFormat { unit_ns, min_ns, max_ns }))),
            false if corrects => Input::Trades { values: spec.shows },
            false => Input::Ticks,
        };
        let messages = spec.messages.map(|(kind, kinds, id)| MessageFormat {
            kind: boxed(kind),
            kinds: kinds.into_iter().map(boxed).collect(),
            id: boxed(id),
        });
        let decoder = Decoder::new(TickFormat {
            symbol,
            ts,
            price,
            size,
            unit_ns,
            min_ns,
            max_ns,
            max_future_skew_ns: spec.max_future_skew_ns,
            messages,
        });
        let keys = Keys::new(spec.partition, spec.partitions);
        let mut engine = Engine::new(rules, assigner, keys, Frames::new(spec.unit_ns));
        engine.trades = corrects.then(Box::default);
        let source = Source { topic: spec.topic, partition: spec.partition };
        let pipeline = if stages.is_empty() {
            None
        } else {
            let (unit_ns, key_ttl_ns) = (spec.unit_ns, spec.key_ttl_ns);
            let (topic, partition) = (source.topic.clone(), source.partition);
            Some(Pipeline::new(&StagesSpec { stages, unit_ns, key_ttl_ns, topic, partition }))
        };
        let lane = Lane::new(input, engine, decoder, pipeline, source, spec.unit_ns);
        Ok(Self { lane, batch: None, room: Vec::new(), restore: None, has_failed: false })
    }

    /// The next input offset.
    #[getter]
    fn position(&self) -> i64 {
        self.lane.position
    }

    #[setter]
    fn set_position(&mut self, position: i64) {
        self.lane.position = position;
    }

    #[getter]
    fn key_count(&self) -> usize {
        self.lane.engine.known
    }

    /// Rows for keys and for windows, used or not.
    #[getter]
    fn row_counts(&self) -> (usize, usize) {
        (self.lane.engine.keys.rows(), self.lane.engine.windows.len())
    }

    /// The greatest accepted event time; -2^63 before any.
    #[getter]
    fn partition_max_ns(&self) -> i64 {
        self.lane.engine.partition_max
    }

    #[getter]
    fn changes_waiting(&self) -> usize {
        self.lane.changes_waiting()
    }

    /// Begins with a batch. `codec` is that of its attributes.
    #[allow(clippy::too_many_arguments)] // a batch's header has as many parts
    fn begin(
        &mut self,
        py: Python<'_>,
        packed: PyBackedBytes,
        codec: u16,
        base_offset: i64,
        next_offset: i64,
        count: u32,
        first_timestamp: i64,
        fixed_timestamp: Option<i64>,
        start_offset: i64,
    ) -> PyResult<()> {
        let head = BatchHead { base_offset, next_offset, count, first_timestamp, fixed_timestamp, start_offset };
        self.lane.begin(&head);
        let (codec, room) = (codec_of(codec)?, std::mem::take(&mut self.room));
        let payload = self.run(py, |_| Payload::new(codec, packed, room))?.map_err(unreadable)?;
        self.batch = Some((payload, head));
        Ok(())
    }

    /// Whether records of the batch are left.
    #[getter]
    fn is_within(&self) -> bool {
        self.batch.is_some()
    }

    /// Takes records until one is to be decoded by Python, and gives that one, and its length where it is longer than
    /// what is read; `None` at the end of the batch, or of the step: when there are `records_end` records since
    /// `take_counts`, or results have come to so many bytes.
    fn advance(
        &mut self,
        py: Python<'_>,
        records_end: u64,
        bytes: usize,
    ) -> PyResult<Option<(OwnRecord, Option<usize>)>> {
        let Some((mut payload, head)) = self.batch.take() else { return Ok(None) };
        let step = Step { records_end, bytes };
        loop {
            let stop = self.run(py, |this| this.lane.advance(payload.piece(), &head, &step))?.map_err(corrupt)?;
            match stop {
                Stop::End if payload.is_last() => {
                    let room = payload.into_room();
                    self.room = if room.capacity() <= ROOM_KEPT { room } else { Vec::new() };
                    return Ok(None);
                }
                Stop::End => {
                    // All its records are read: more of them would be too many.
                    let done = payload.piece().len();
                    self.run(py, |_| payload.more(done, 1))?.map_err(unreadable)?;
                    self.lane.resume_at(0);
                }
                Stop::Full => {
                    self.batch = Some((payload, head));
                    return Ok(None);
                }
                Stop::Unsure(at) => {
                    let record = whole_record(payload.piece(), at, &head);
                    self.batch = Some((payload, head));
                    return Ok(record.map(|record| (record, None)));
                }
                Stop::Cut(..) if payload.is_last() => return Err(corrupt(Corrupt)),
                Stop::Cut(at, wanted) => {
                    self.run(py, |_| payload.more(at, wanted))?.map_err(unreadable)?;
                    self.lane.resume_at(0);
                }
                Stop::Large(at, length) => {
                    let passed = self.run(py, |_| payload.pass_large(&head, at, length))?.map_err(unreadable)?;
                    let (record, end) = passed.ok_or_else(|| corrupt(Corrupt))?;
                    let is_wanted = self.lane.take_large(record.0, &head).map_err(corrupt)?;
                    self.lane.resume_at(end);
                    if is_wanted {
                        self.batch = Some((payload, head));
                        return Ok(Some((record, Some(length))));
                    }
                }
            }
        }
    }

    /// Takes a tick that Python decoded; where there is a pipeline, with what its stages need to know of it.
    #[allow(clippy::too_many_arguments)] // a tick has as many parts
    fn take(
        &mut self,
        py: Python<'_>,
        symbol: PyBackedStr,
        ts_ns: i64,
        price: f64,
        size: f64,
        offset: i64,
        timestamp: i64,
        value: PyBackedBytes,
        facts: PyBackedBytes,
        trade_id: Option<PyBackedStr>,
    ) -> PyResult<()> {
        let (price, size) = (Amount::of_float(price), Amount::of_float(size));
        let entry = Entry { ts: ts_ns, price, size, value: &value };
        let take = |this: &mut Self| this.lane.take(&symbol, &entry, offset, timestamp, &facts, trade_id.as_deref());
        if self.run(py, take)? {
            return Ok(());
        }
        Err(PyValueError::new_err("these are no facts of this pipeline"))
    }

    /// Places a child that Python decoded.
    #[allow(clippy::too_many_arguments)] // a child on its way has as many parts
    fn take_child(
        &mut self,
        py: Python<'_>,
        symbol: PyBackedStr,
        child: PyChild,
        provisional: bool,
        is_correction: bool,
        offset: i64,
        value: PyBackedBytes,
    ) -> PyResult<()> {
        let bar = ChildBar { child: child.into(), provisional, is_correction };
        self.run(py, |this| this.lane.take_child(&symbol, &bar, offset, &value))
    }

    /// Children that changed nothing, since the last call.
    fn take_repeated(&mut self) -> u64 {
        std::mem::take(&mut self.lane.repeated)
    }

    /// The trade that a message is about: its offset, its time, who cancelled it, and its value where that is kept.
    #[allow(clippy::type_complexity)]
    fn find_trade<'py>(
        &mut self,
        py: Python<'py>,
        symbol: PyBackedStr,
        trade_id: PyBackedStr,
    ) -> PyResult<Option<(i64, i64, Option<i64>, Option<Bound<'py, PyBytes>>)>> {
        let found = self.run(py, |this| this.lane.find_trade(&symbol, &trade_id))?;
        Ok(found.map(|it| (it.offset, it.ts, it.cancelled_by, it.value.map(|value| PyBytes::new(py, &value)))))
    }

    /// Changes a trade that was found, at `offset`; the windows that it changed.
    fn change_trade(
        &mut self,
        py: Python<'_>,
        symbol: PyBackedStr,
        ts_ns: i64,
        offset: i64,
        change: PyBackedBytes,
    ) -> PyResult<Vec<(i64, i64)>> {
        self.run(py, |this| this.lane.change_trade(&symbol, ts_ns, offset, &change))
    }

    /// The watermark that judges a symbol's next tick; `None` before its clock has seen anything.
    fn watermark_ns(&mut self, symbol: &str) -> Option<i64> {
        self.lane.watermark(symbol)
    }

    /// Whether a symbol has no state yet and belongs on another partition.
    fn is_misplaced(&mut self, py: Python<'_>, symbol: PyBackedStr) -> PyResult<bool> {
        self.run(py, |this| this.lane.is_misplaced(&symbol))
    }

    /// Takes over a stretch of the time zone: (begin, end, offset from UTC), side by side.
    fn learn(&mut self, pieces: Vec<(i64, i64, i64)>) {
        if let Assigner::Zoned(zoned) = &mut self.lane.engine.assigner {
            zoned.learn(pieces.into_iter());
        }
    }

    /// Counts a record that was read elsewhere.
    fn count(&mut self, offset: i64, headers: Vec<(PyBackedStr, Option<PyBackedBytes>)>) {
        let headers = headers.iter().map(|(name, value)| (name.as_bytes(), value.as_deref()));
        self.lane.count(offset, headers::packed(headers));
    }

    fn end_input(&mut self, py: Python<'_>) -> PyResult<()> {
        self.run(py, |this| this.lane.end_of_input())
    }

    /// Emits what is overdue, looking at `most` windows; whether there may be more.
    fn settle(&mut self, py: Python<'_>, silence_ns: i64, most: usize) -> PyResult<bool> {
        self.run(py, |this| this.lane.engine.settle(silence_ns, most))
    }

    fn next_timeout(&mut self) -> Option<i128> {
        self.lane.engine.next_timeout()
    }

    fn flush_partial(&mut self, py: Python<'_>) -> PyResult<()> {
        self.run(py, |this| this.lane.engine.flush_partial())
    }

    /// Records and accepted ticks since the last call.
    fn take_counts(&mut self) -> (u64, u64) {
        (std::mem::take(&mut self.lane.records), std::mem::take(&mut self.lane.aggregated))
    }

    /// The frames since the last call, and how many of each status and trigger.
    #[allow(clippy::type_complexity)]
    fn take_frames(&mut self) -> Option<(PyRecords, Vec<(&'static str, &'static str, u64)>)> {
        if self.lane.engine.frames.cuts.is_empty() {
            return None;
        }
        let frames = self.lane.engine.frames.take();
        let mut emitted = Vec::new();
        for status in Status::ALL {
            for trigger in Trigger::ALL {
                let number = frames.emitted[status as usize][trigger as usize];
                if number > 0 {
                    emitted.push((status.name(), trigger.name(), number));
                }
            }
        }
        Some((PyRecords(frames.into()), emitted))
    }

    /// The late topic's records since the last call, and how many of them no window took, for each reason.
    fn take_late(&mut self) -> Option<(PyRecords, Vec<(&'static str, u64)>)> {
        if self.lane.departures.late.cuts.is_empty() {
            return None;
        }
        let late = std::mem::take(&mut self.lane.departures.late);
        let of_windows =
            late.reasons.iter().filter(|reason| LateReason::ALL.iter().any(|late| late.name() == **reason));
        let mut counts: Vec<(&'static str, u64)> = Vec::new();
        for reason in of_windows {
            match counts.iter_mut().find(|(counted, _)| counted == reason) {
                Some((_, count)) => *count += 1,
                None => counts.push((reason, 1)),
            }
        }
        Some((PyRecords(late.into()), counts))
    }

    /// What the stages of the pipeline have to report since the last call.
    fn take_departures(&mut self) -> Option<Departures> {
        let pipeline = self.lane.pipeline.as_ref()?;
        let mut found = Departures { held: pipeline.held(), ..Departures::default() };
        let departures = &mut self.lane.departures;
        for (number, name) in pipeline.names().iter().enumerate() {
            let taken = departures.taken_out.get_mut(number).map_or(0, std::mem::take);
            if taken > 0 {
                found.taken_out.push((pipeline.reason(number).map_or("", |reason| reason.name()), name.clone(), taken));
            }
            let noticed = departures.noticed.get_mut(number).map_or([0; 4], std::mem::take);
            for (what, times) in Notice::ALL.iter().zip(noticed).filter(|(_, times)| *times > 0) {
                found.noticed.push((what.name(), name.clone(), times));
            }
        }
        for gap in departures.gaps.drain(..) {
            let name = pipeline.names()[gap.stage].clone();
            found.gaps.push((name, gap.symbol.into_string(), gap.first, gap.last, gap.offset));
        }
        let routed = std::mem::take(&mut departures.routed);
        let mut topics: Vec<Option<Records>> = vec![None; pipeline.topics().len()];
        let mut begin = 0;
        for (topic, [key_end, value_end, end]) in routed.cuts {
            let headers = headers::unpacked(&routed.text[value_end..end]);
            let (key, value) = (&routed.text[begin..key_end], &routed.text[key_end..value_end]);
            topics[topic].get_or_insert_default().push(Some(key), Some(value), None, &headers);
            begin = end;
        }
        for (topic, records) in pipeline.topics().iter().zip(topics) {
            found.routed.extend(records.map(|records| (topic.clone(), PyRecords(records))));
        }
        Some(found)
    }

    /// The changelog's records of what changed.
    fn take_changes(&mut self, py: Python<'_>) -> PyResult<PyRecords> {
        Ok(PyRecords(self.run(py, |this| this.lane.take_changes())?.into()))
    }

    /// How many records of each kind the changelog holds once what was taken of it is written: of windows, items,
    /// operators, and held ticks.
    #[getter]
    fn stored(&self) -> (i64, i64, i64, i64) {
        numbers(self.lane.stored)
    }

    /// As many of each kind as `restore` was given.
    #[getter]
    fn restored(&self) -> (i64, i64, i64, i64) {
        numbers(self.restore.as_ref().map_or_else(Stored::default, |restore| restore.stored))
    }

    /// Takes stored records over, some at a time; false where one is not what is written here.
    fn restore(&mut self, py: Python<'_>, entries: Vec<(PyBackedBytes, PyBackedBytes)>) -> PyResult<bool> {
        self.run(py, |this| {
            let restore = this.restore.get_or_insert_default();
            entries.iter().all(|(key, value)| {
                let of_stage = this.lane.pipeline.as_mut().is_none_or(|pipeline| pipeline.restore(key, value).is_ok());
                of_stage && restore.take(&mut this.lane.engine, key, value).is_some()
            })
        })
    }

    /// Takes over some of the stages' stored state; whether there is more, and false, too, where it can't be read.
    fn restore_stages(&mut self, py: Python<'_>) -> PyResult<(bool, bool)> {
        self.run(py, |this| match this.lane.pipeline.as_mut().map(Pipeline::restore_step) {
            None | Some(Ok(false)) => (false, true),
            Some(Ok(true)) => (true, true),
            Some(Err(_)) => (false, false),
        })
    }

    /// The value of a held tick that was restored, and the first of the stages that it has still to pass, of which
    /// Python must say what they need to know.
    fn doubtful<'py>(&mut self, py: Python<'py>) -> Option<(Bound<'py, PyBytes>, usize)> {
        let (value, first) = self.lane.pipeline.as_mut()?.doubtful()?;
        Some((PyBytes::new(py, value), first))
    }

    /// Says what the stages need to know of the tick that is `doubtful`; false where these are no facts.
    fn settle_doubt(&mut self, facts: &[u8]) -> bool {
        self.lane.pipeline.as_mut().is_some_and(|pipeline| pipeline.settle(facts))
    }

    /// The times of the ticks that stages hold back.
    fn held_times(&self) -> Vec<i64> {
        self.lane.pipeline.as_ref().map_or_else(Vec::new, Pipeline::held_times)
    }

    /// After the last of the stored records; false where something is missing.
    fn end_restore(&mut self, py: Python<'_>, partition_max_ns: i64) -> PyResult<bool> {
        self.run(py, |this| {
            let restore = this.restore.take().unwrap_or_default();
            this.lane.stored = restore.stored;
            if let Some(pipeline) = this.lane.pipeline.as_mut() {
                pipeline.sort_parts();
            }
            restore.finish(&mut this.lane.engine, partition_max_ns).is_some()
        })
    }
}

fn numbers(stored: Stored) -> (i64, i64, i64, i64) {
    (stored.windows, stored.items, stored.operators, stored.held)
}

/// Puts a batch of a compacted topic into `entries`: the last value of each key, without keys that were deleted.
#[pyfunction]
fn put_entries(
    entries: &Bound<'_, PyDict>,
    packed: PyBackedBytes,
    codec: u16,
    base_offset: i64,
    count: u32,
    start_offset: i64,
) -> PyResult<()> {
    let py = entries.py();
    let mut payload = Payload::new(codec_of(codec)?, packed, Vec::new()).map_err(unreadable)?;
    let head = BatchHead {
        base_offset,
        next_offset: i64::MAX,
        count,
        first_timestamp: 0,
        fixed_timestamp: None,
        start_offset,
    };
    let (mut position, mut left) = (0, count);
    loop {
        let mut records = BatchRecords::resume(payload.piece(), head, position, left);
        let wanted = loop {
            (position, left) = records.place();
            let record = match records.next() {
                Some(Ok(record)) => record,
                Some(Err(Broken::Cut(wanted))) if !payload.is_last() => break wanted,
                Some(Err(_)) => return Err(BatchError::new_err("its records are not in Kafka's format v2")),
                None if payload.is_last() => return Ok(()),
                None => break 1,
            };
            let Some(key) = record.key.filter(|_| record.offset >= start_offset) else { continue };
            let key = PyBytes::new(py, key);
            match record.value {
                Some(value) => entries.set_item(key, PyBytes::new(py, value))?,
                None if entries.contains(&key)? => entries.del_item(key)?,
                None => {}
            }
        };
        payload.more(position, wanted).map_err(unreadable)?;
        position = 0;
    }
}

/// The records of a batch one by one, unpacked piece by piece, for lanes that take records.
#[pyclass(name = "BatchReader", module = "workers._native")]
struct PyBatchReader {
    batch: Option<Packed>,
    head: BatchHead,
    place: (usize, u32),
    left_to_pass: usize,
}

#[pymethods]
impl PyBatchReader {
    #[new]
    #[allow(clippy::too_many_arguments)] // a batch's header has as many parts
    fn new(
        packed: PyBackedBytes,
        codec: u16,
        base_offset: i64,
        count: u32,
        first_timestamp: i64,
        fixed_timestamp: Option<i64>,
        start_offset: i64,
        most_passed: usize,
    ) -> PyResult<Self> {
        let next_offset = i64::MAX; // which whoever asks looks at
        let head = BatchHead { base_offset, next_offset, count, first_timestamp, fixed_timestamp, start_offset };
        let payload = Payload::new(codec_of(codec)?, packed, Vec::new()).map_err(unreadable)?;
        Ok(Self { batch: Some(payload), head, place: (0, count), left_to_pass: most_passed })
    }

    /// The next record that is wanted, and its length where it is longer than what is read; `None` behind the last.
    fn read(&mut self, py: Python<'_>) -> PyResult<Option<(OwnRecord, Option<usize>)>> {
        py.detach(|| self.next_wanted()).map_err(unreadable)
    }
}

impl PyBatchReader {
    /// Passes bytes of records that are not wanted.
    fn pass(&mut self, bytes: usize) -> std::io::Result<()> {
        let left = self.left_to_pass.checked_sub(bytes);
        self.left_to_pass = left.ok_or_else(|| std::io::Error::other("too much would have to be unpacked"))?;
        Ok(())
    }

    fn next_wanted(&mut self) -> std::io::Result<Option<(OwnRecord, Option<usize>)>> {
        let corrupt = || std::io::Error::other("the records are not what Kafka's format v2 says");
        let head = self.head;
        loop {
            let Some(payload) = &mut self.batch else { return Ok(None) };
            let (at, left) = self.place;
            let mut records = BatchRecords::resume(payload.piece(), head, at, left);
            match records.next() {
                Some(Ok(record)) => {
                    let (position, is_wanted) = (record.position, record.offset >= head.start_offset);
                    self.place = records.place();
                    if is_wanted {
                        return Ok(whole_record(payload.piece(), position, &head).map(|record| (record, None)));
                    }
                    self.pass(self.place.0 - position)?;
                }
                None if payload.is_last() => {
                    self.batch = None;
                    return Ok(None);
                }
                None => {
                    payload.more(at, 1)?;
                    self.place.0 = 0;
                }
                Some(Err(Broken::Cut(wanted))) if !payload.is_last() => {
                    payload.more(at, wanted)?;
                    self.place.0 = 0;
                }
                Some(Err(Broken::Large(length))) => {
                    let (record, end) = payload.pass_large(&head, at, length)?.ok_or_else(corrupt)?;
                    self.place = (end, left - 1);
                    if record.0 >= head.start_offset {
                        return Ok(Some((record, Some(length))));
                    }
                    self.pass(length)?;
                }
                Some(Err(_)) => return Err(corrupt()),
            }
        }
    }
}

/// Kafka's hash of a key.
#[pyfunction]
#[pyo3(name = "murmur2")]
fn hash(data: &[u8]) -> u32 {
    crate::partitioning::murmur2(data)
}

/// The checksum of a record batch.
#[pyfunction]
#[pyo3(name = "crc32c")]
fn checksum(data: &[u8]) -> u32 {
    ::crc32c::crc32c(data)
}

/// The text of a float in frames.
#[pyfunction]
fn float_text(value: f64) -> String {
    let mut out = Vec::new();
    crate::json::put_float(&mut out, value);
    String::from_utf8_lossy(&out).into_owned()
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("INTERFACE", INTERFACE)?;
    module.add("BatchError", module.py().get_type::<BatchError>())?;
    module.add_class::<PyLane>()?;
    module.add_class::<PyBatchReader>()?;
    module.add_class::<PyRecords>()?;
    module.add_class::<PyBatch>()?;
    module.add_class::<crate::pipeline::probe::PipelineProbe>()?;
    module.add_function(wrap_pyfunction!(put_entries, module)?)?;
    module.add_function(wrap_pyfunction!(hash, module)?)?;
    module.add_function(wrap_pyfunction!(checksum, module)?)?;
    module.add_function(wrap_pyfunction!(float_text, module)?)
}
