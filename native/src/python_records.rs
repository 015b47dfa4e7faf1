//! `Records` and `Batch`: what is to be written, as Python sees it. Objects are made of records only on demand.

use pyo3::basic::CompareOp;
use pyo3::exceptions::{PyIndexError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PySlice, PyTuple, PyType};

use crate::batches::{build, Batch, Plan, Producer};
use crate::decompress::Codec;
use crate::packed::{Entry, Headers, Records};

static OUT_RECORD: PyOnceLock<Py<PyType>> = PyOnceLock::new();

/// The record as an `OutRecord`.
fn object<'py>(py: Python<'py>, entry: &Entry) -> PyResult<Bound<'py, PyAny>> {
    let class = OUT_RECORD.import(py, "workers.core.frames", "OutRecord")?;
    let bytes = |bytes: Option<&[u8]>| bytes.map(|bytes| PyBytes::new(py, bytes));
    let headers = entry.headers.iter().map(|(name, value)| (name, bytes(value.as_deref())));
    let headers = PyTuple::new(py, headers.collect::<Vec<_>>())?;
    class.call1((bytes(entry.key), bytes(entry.value), entry.timestamp, headers))
}

/// Appends an `OutRecord`.
fn push(records: &mut Records, record: &Bound<'_, PyAny>) -> PyResult<()> {
    let key: Option<PyBackedBytes> = record.getattr("key")?.extract()?;
    let value: Option<PyBackedBytes> = record.getattr("value")?.extract()?;
    let timestamp: Option<i64> = record.getattr("timestamp_ms")?.extract()?;
    let mut headers = Headers::new();
    for header in record.getattr("headers")?.try_iter()? {
        let (name, value): (String, Option<PyBackedBytes>) = header?.extract()?;
        headers.push((name, value.map(|value| value.to_vec())));
    }
    records.push(key.as_deref(), value.as_deref(), timestamp, &headers);
    Ok(())
}

#[pyclass(name = "Records", module = "workers._native", sequence)]
#[derive(Default)]
pub struct PyRecords(pub Records);

impl PyRecords {
    fn extend(this: &Bound<'_, Self>, more: &Bound<'_, PyAny>) -> PyResult<()> {
        if let Ok(more) = more.cast::<Self>() {
            let more = more.borrow().0.clone(); // it may be this one
            this.borrow_mut().0.extend(&more);
            return Ok(());
        }
        let mut whole = this.borrow().0.clone();
        for record in more.try_iter()? {
            push(&mut whole, &record?)?;
        }
        this.borrow_mut().0 = whole;
        Ok(())
    }
}

#[pymethods]
impl PyRecords {
    #[new]
    #[pyo3(signature = (records = None, /))]
    fn new(records: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        let mut new = Self::default();
        if let Some(records) = records {
            for record in records.try_iter()? {
                push(&mut new.0, &record?)?;
            }
        }
        Ok(new)
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    fn __getitem__<'py>(&self, py: Python<'py>, index: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        if let Ok(slice) = index.cast::<PySlice>() {
            let found = slice.indices(self.0.len() as isize)?;
            if found.step == 1 {
                let begin = found.start as usize;
                let stretch = self.0.some(begin..begin + found.slicelength);
                return Ok(Bound::new(py, Self(stretch))?.into_any());
            }
            let mut picked = Records::default();
            for number in 0..found.slicelength as isize {
                let at = (found.start + number * found.step) as usize;
                picked.extend(&self.0.some(at..at + 1));
            }
            return Ok(Bound::new(py, Self(picked))?.into_any());
        }
        let (index, len) = (index.extract::<isize>()?, self.0.len() as isize);
        let number = if index < 0 { index + len } else { index };
        if !(0..len).contains(&number) {
            return Err(PyIndexError::new_err(format!("record {index} of {len}")));
        }
        object(py, &self.0.entry(number as usize))
    }

    fn __iter__(&self) -> PyRecordsIterator {
        PyRecordsIterator { records: self.0.clone(), next: 0 }
    }

    fn __richcmp__<'py>(
        &self,
        py: Python<'py>,
        other: &Bound<'py, PyAny>,
        op: CompareOp,
    ) -> PyResult<Bound<'py, PyAny>> {
        let same = if let Ok(other) = other.cast::<Self>() {
            self.0 == other.try_borrow()?.0
        } else if other.is_instance_of::<pyo3::types::PyList>() {
            let mut same = other.len()? == self.0.len();
            for (entry, record) in self.0.iter().zip(other.try_iter()?) {
                same = same && object(py, &entry)?.eq(record?)?;
            }
            same
        } else {
            return Ok(py.NotImplemented().into_bound(py));
        };
        match op {
            CompareOp::Eq => Ok(same.into_pyobject(py)?.to_owned().into_any()),
            CompareOp::Ne => Ok((!same).into_pyobject(py)?.to_owned().into_any()),
            _ => Ok(py.NotImplemented().into_bound(py)),
        }
    }

    fn __repr__(&self) -> String {
        format!("<{} records of {} bytes>", self.0.len(), self.0.size())
    }

    fn __iadd__(this: &Bound<'_, Self>, more: &Bound<'_, PyAny>) -> PyResult<()> {
        Self::extend(this, more)
    }

    fn append(&mut self, record: &Bound<'_, PyAny>) -> PyResult<()> {
        push(&mut self.0, record)
    }

    /// Bytes of keys, values and headers, as `OutRecord.size` counts them.
    #[getter]
    fn size_bytes(&self) -> usize {
        self.0.size()
    }

    /// The size of the largest; 0 where there is none.
    #[getter]
    fn largest_bytes(&self) -> usize {
        self.0.largest()
    }

    /// The lowest timestamp, of those that have one.
    #[getter]
    fn oldest_ms(&self) -> Option<i64> {
        self.0.oldest()
    }

    /// All of them in order, cut where a piece comes to so many bytes; they share the text.
    fn portions(&self, size_bytes: usize) -> Vec<Self> {
        self.0.portions(size_bytes).into_iter().map(Self).collect()
    }

    /// Closed batches of at most `limit_bytes` before compression, and the partition each is for.
    #[pyo3(signature = (*, partitions, partition, keyless, limit_bytes, now_ms, codec))]
    #[allow(clippy::too_many_arguments)] // by name
    fn batches(
        &self,
        py: Python<'_>,
        partitions: u32,
        partition: Option<u32>,
        keyless: u32,
        limit_bytes: usize,
        now_ms: i64,
        codec: u16,
    ) -> PyResult<Vec<(u32, PyBatch)>> {
        if partitions == 0 {
            return Err(PyValueError::new_err("a topic has one partition or more"));
        }
        let found = Codec::from_attributes(codec).filter(|_| codec < 8);
        let codec = found.ok_or_else(|| PyValueError::new_err(format!("Kafka knows no codec {codec}")))?;
        let plan = Plan { partitions, partition, keyless, limit: limit_bytes, now_ms, codec };
        let records = self.0.clone();
        let built = py.detach(|| build(&records, &plan));
        let built = built.map_err(|error| PyRuntimeError::new_err(format!("records can't be compressed: {error}")))?;
        Ok(built.into_iter().map(|(to, batch)| (to, PyBatch(batch))).collect())
    }
}

#[pyclass(name = "RecordsIterator", module = "workers._native")]
pub struct PyRecordsIterator {
    records: Records,
    next: usize,
}

#[pymethods]
impl PyRecordsIterator {
    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    fn __next__<'py>(&mut self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        if self.next >= self.records.len() {
            return Ok(None);
        }
        self.next += 1;
        object(py, &self.records.entry(self.next - 1)).map(Some)
    }
}

/// A closed batch, which only lacks what its producer knows when it sends it.
#[pyclass(name = "Batch", module = "workers._native", frozen)]
pub struct PyBatch(Batch);

#[pymethods]
impl PyBatch {
    /// Records.
    #[getter]
    fn count(&self) -> u32 {
        self.0.count()
    }

    #[getter]
    fn size_bytes(&self) -> usize {
        self.0.size()
    }

    /// The bytes as they are sent; -1, -1 and 0 where the producer is not idempotent.
    fn build<'py>(
        &self,
        py: Python<'py>,
        producer_id: i64,
        producer_epoch: i16,
        base_sequence: i32,
        is_transactional: bool,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let producer = Producer { id: producer_id, epoch: producer_epoch, base_sequence, is_transactional };
        PyBytes::new_with(py, self.0.size(), |out| {
            self.0.write(&producer, out);
            Ok(())
        })
    }
}
