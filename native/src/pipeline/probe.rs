//! The pipeline as tests of Python drive it, tick by tick.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::pipeline::effects::{Effects, Notice, Written};
use crate::pipeline::python::stages_from;
use crate::pipeline::stage::{Damage, Passing, Spec};
use crate::pipeline::Pipeline;
use crate::ticks::{Decoder, TickFormat};

/// (symbol, ts_ns, price, size, offset, value, timestamp_ms, headers packed)
type Row<'py> = (String, i64, f64, f64, i64, Bound<'py, PyBytes>, i64, Bound<'py, PyBytes>);

#[pyclass(module = "workers._native")]
pub struct PipelineProbe {
    pipeline: Pipeline,
    effects: Effects,
    decoder: Decoder,
}

#[pymethods]
impl PipelineProbe {
    #[new]
    fn new(
        specs: &Bound<PyAny>,
        unit_ns: i64,
        key_ttl_ns: Option<i64>,
        topic: String,
        partition: u32,
    ) -> PyResult<Self> {
        let spec = Spec { stages: stages_from(specs)?, unit_ns, key_ttl_ns, topic, partition };
        Ok(Self { pipeline: Pipeline::new(&spec), effects: Effects::default(), decoder: decoder(unit_ns) })
    }

    /// The facts of a tick for the stages from `first` on; None where Python must say what they are.
    #[pyo3(signature = (value, first = 0))]
    fn facts<'py>(&mut self, py: Python<'py>, value: &[u8], first: usize) -> Option<Bound<'py, PyBytes>> {
        let mut out = Vec::new();
        self.pipeline.facts().read(value, first, &mut out)?;
        Some(PyBytes::new(py, &out))
    }

    /// The same, as the lane reads them: on the way of the decoder. None where that or the reader is not sure.
    fn decoded_facts<'py>(&mut self, py: Python<'py>, key: &[u8], value: &[u8]) -> Option<Bound<'py, PyBytes>> {
        let reader = self.pipeline.facts();
        self.decoder.decode_watched(key, value, -1, reader.begin())?;
        let mut out = Vec::new();
        reader.read_watched(value, 0, &mut out)?;
        Some(PyBytes::new(py, &out))
    }

    /// Whether the tick goes on, behind those that `take_effects` has as going.
    fn push(&mut self, row: Row, facts: &[u8]) -> PyResult<bool> {
        if !self.pipeline.facts().is_valid(facts, 0) {
            return Err(PyValueError::new_err("these are no facts of this pipeline"));
        }
        let (symbol, ts_ns, price, size, offset, value, timestamp_ms, headers) = row;
        let tick = Passing {
            symbol: &symbol,
            ts_ns,
            price,
            size,
            offset,
            timestamp_ms,
            value: value.as_bytes(),
            original: None,
            headers: headers.as_bytes(),
            facts,
        };
        Ok(self.pipeline.push(&tick, &mut self.effects))
    }

    /// Decodes and pushes the same ticks over and over, each time so many nanoseconds later: for benchmarks. How many
    /// went on. With `pushes` false they are only decoded.
    fn run(
        &mut self,
        py: Python,
        rows: Vec<(String, PyBackedBytes)>,
        rounds: i64,
        step_ns: i64,
        pushes: bool,
    ) -> usize {
        py.detach(|| {
            let (mut facts, mut gone, mut offset) = (Vec::new(), 0, 0);
            for round in 0..rounds {
                for (symbol, value) in &rows {
                    offset += 1;
                    facts.clear();
                    let reader = self.pipeline.facts();
                    let Some(found) = self.decoder.decode_watched(symbol.as_bytes(), value, -1, reader.begin()) else {
                        continue;
                    };
                    if !pushes {
                        gone += usize::from(found.ts_ns > 0);
                        continue;
                    }
                    if reader.read_watched(value, 0, &mut facts).is_none() {
                        continue;
                    }
                    let tick = Passing {
                        symbol,
                        ts_ns: found.ts_ns + round * step_ns,
                        price: found.price.value,
                        size: found.size.value,
                        offset,
                        timestamp_ms: -1,
                        value,
                        original: None,
                        headers: &[],
                        facts: &facts,
                    };
                    gone += usize::from(self.pipeline.push(&tick, &mut self.effects));
                }
                gone += self.effects.going.len();
                self.effects.clear();
            }
            gone
        })
    }

    fn end_of_input(&mut self) {
        self.pipeline.end_of_input(&mut self.effects);
    }

    /// What came of all that was pushed since the last call.
    fn take_effects<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let effects = std::mem::take(&mut self.effects);
        let (names, topics) = (self.pipeline.names(), self.pipeline.topics());
        let found = PyDict::new(py);
        let going = PyList::empty(py);
        for held in &effects.going {
            let tick = held.passing();
            going.append((
                tick.symbol,
                tick.ts_ns,
                tick.price,
                tick.size,
                tick.offset,
                PyBytes::new(py, tick.value),
                tick.timestamp_ms,
                PyBytes::new(py, tick.headers),
            ))?;
        }
        let late = PyList::empty(py);
        let mut begin = 0;
        for ((key_end, end), reason) in effects.late.cuts.iter().zip(&effects.late.reasons) {
            let [key, value] = [begin..*key_end, *key_end..*end].map(|part| PyBytes::new(py, &effects.late.text[part]));
            late.append((reason, key, value))?;
            begin = *end;
        }
        let routed = PyList::empty(py);
        let mut begin = 0;
        for (topic, [key_end, value_end, end]) in &effects.routed.cuts {
            let parts = [begin..*key_end, *key_end..*value_end, *value_end..*end];
            let [key, value, headers] = parts.map(|part| PyBytes::new(py, &effects.routed.text[part]));
            routed.append((&topics[*topic], key, value, headers))?;
            begin = *end;
        }
        let noticed = PyDict::new(py);
        let taken_out = PyDict::new(py);
        for (name, (taken, counts)) in names.iter().zip(effects.taken_out.iter().zip(&effects.noticed)) {
            if *taken > 0 {
                taken_out.set_item(name, taken)?;
            }
            for (what, count) in Notice::ALL.iter().zip(counts).filter(|(_, count)| **count > 0) {
                noticed.set_item((what.name(), name), count)?;
            }
        }
        let gaps: Vec<_> = effects
            .gaps
            .iter()
            .map(|gap| (&names[gap.stage], gap.symbol.as_str(), gap.first, gap.last, gap.offset))
            .collect();
        found.set_item("going", going)?;
        found.set_item("late", late)?;
        found.set_item("routed", routed)?;
        found.set_item("taken_out", taken_out)?;
        found.set_item("noticed", noticed)?;
        found.set_item("gaps", gaps)?;
        Ok(found)
    }

    #[getter]
    fn held(&self) -> usize {
        self.pipeline.held()
    }

    #[getter]
    fn changes_waiting(&self) -> usize {
        self.pipeline.changes_waiting()
    }

    fn take_changes<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let mut written = Written::default();
        self.pipeline.take_changes(&mut written);
        let found = PyList::empty(py);
        let mut begin = 0;
        for (key_end, value_end) in &written.cuts {
            let value = value_end.map(|end| PyBytes::new(py, &written.text[*key_end..end]));
            found.append((PyBytes::new(py, &written.text[begin..*key_end]), value))?;
            begin = value_end.unwrap_or(*key_end);
        }
        Ok(found)
    }

    /// Takes over stored state; Python is asked for the facts of a held tick where Rust is not sure.
    fn restore(&mut self, entries: &Bound<PyDict>, facts: &Bound<PyAny>) -> PyResult<()> {
        let error = |damage: Damage| PyValueError::new_err(damage.to_string());
        for (key, value) in entries {
            self.pipeline
                .restore(key.extract::<Vec<u8>>()?.as_slice(), value.extract::<Vec<u8>>()?.as_slice())
                .map_err(error)?;
        }
        self.pipeline.sort_parts();
        while self.pipeline.restore_step().map_err(error)? {}
        while let Some((value, first)) = self.pipeline.doubtful() {
            let said: Vec<u8> = facts.call1((PyBytes::new(entries.py(), value), first))?.extract()?;
            if !self.pipeline.settle(&said) {
                return Err(PyValueError::new_err("these are no facts of this pipeline"));
            }
        }
        Ok(())
    }
}

/// Of ticks whose fields have the names that they have by default.
fn decoder(unit_ns: i64) -> Decoder {
    let [symbol, ts, price, size] = ["symbol", "ts", "price", "size"].map(|name| name.as_bytes().into());
    let (min_ns, max_ns, max_future_skew_ns) = (i64::MIN, i64::MAX, 0);
    Decoder::new(TickFormat { symbol, ts, price, size, unit_ns, min_ns, max_ns, max_future_skew_ns, messages: None })
}
