//! A pipeline's specification as Python has it: the dataclasses of `workers.core.pipeline`.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyFloat, PyInt, PyString};

use crate::pipeline::facts::Wanted;
use crate::pipeline::stage::{ConflateSpec, DeduplicateSpec, RouteSpec, RouterSpec, StageSpec, ThrottleSpec};

/// The route that is no topic.
const TO_WINDOWS: &str = "window";

/// Raises ``ValueError`` where a stage can't be native: an operator that calls Python, or durations that no setting
/// allows.
pub fn stages_from(specs: &Bound<PyAny>) -> PyResult<Vec<StageSpec>> {
    specs.try_iter()?.map(|spec| stage_from(&spec?)).collect()
}

fn stage_from(spec: &Bound<PyAny>) -> PyResult<StageSpec> {
    let kind: String = spec.get_type().name()?.extract()?;
    Ok(match kind.as_str() {
        "Deduplicate" => {
            let fields: Vec<String> = spec.getattr("fields")?.extract()?;
            if fields.is_empty() {
                return Err(PyValueError::new_err("Deduplicate has no fields; expected one or more"));
            }
            StageSpec::Deduplicate(DeduplicateSpec {
                fields,
                ttl_ns: positive(spec, "ttl_ns", 0)?,
                gaps: spec.getattr("gaps")?.extract()?,
                max_ids: usize::try_from(positive(spec, "max_ids", 1)?)?,
                ledger: spec.getattr("ledger")?.extract()?,
            })
        }
        "Throttle" => StageSpec::Throttle(ThrottleSpec {
            spacing_ns: positive(spec, "spacing_ns", 1)?,
            burst: positive(spec, "burst", 1)?,
            per_symbol: spec.getattr("per_symbol")?.extract()?,
            ledger: spec.getattr("ledger")?.extract()?,
        }),
        "Conflate" => StageSpec::Conflate(ConflateSpec {
            interval_ns: positive(spec, "interval_ns", 1)?,
            margin_ns: positive(spec, "margin_ns", 0)?,
            ledger: spec.getattr("ledger")?.extract()?,
        }),
        "Router" => StageSpec::Router(RouterSpec {
            routes: spec.getattr("routes")?.try_iter()?.map(|route| route_from(&route?)).collect::<PyResult<_>>()?,
            default: topic_from(spec, "default")?,
        }),
        _ => return Err(PyValueError::new_err(format!("a pipeline with {kind} is none that can be native"))),
    })
}

fn positive(spec: &Bound<PyAny>, name: &str, least: i64) -> PyResult<i64> {
    let value: i64 = spec.getattr(name)?.extract()?;
    if value < least {
        return Err(PyValueError::new_err(format!("{name} is {value}; expected {least} or more")));
    }
    Ok(value)
}

fn topic_from(spec: &Bound<PyAny>, name: &str) -> PyResult<Option<String>> {
    let topic: String = spec.getattr(name)?.extract()?;
    Ok((topic != TO_WINDOWS).then_some(topic))
}

fn route_from(route: &Bound<PyAny>) -> PyResult<RouteSpec> {
    let name: Option<String> = route.getattr("field")?.extract()?;
    let field = match name {
        Some(name) => Some((name, wanted_from(&route.getattr("equals")?)?)),
        None => None,
    };
    Ok(RouteSpec { to: topic_from(route, "to")?, symbol: route.getattr("symbol")?.extract()?, field })
}

fn wanted_from(value: &Bound<PyAny>) -> PyResult<Wanted> {
    Ok(if value.is_none() {
        Wanted::Null
    } else if value.is_instance_of::<PyBool>() {
        Wanted::Bool(value.extract()?)
    } else if value.is_instance_of::<PyString>() {
        Wanted::Text(value.extract::<String>()?.into_bytes().into())
    } else if value.is_instance_of::<PyFloat>() {
        Wanted::Float(value.extract()?)
    } else if value.is_instance_of::<PyInt>() {
        whole_from(value)?
    } else {
        let kind = value.get_type().name()?;
        return Err(PyValueError::new_err(format!("a route's equals is a {kind}; expected text, a number or a bool")));
    })
}

/// Beyond 64 bits JSON numbers are floats, so one that is no float is equal to none.
fn whole_from(value: &Bound<PyAny>) -> PyResult<Wanted> {
    if let Ok(number) = value.extract::<i64>() {
        return Ok(Wanted::Integer(number.into()));
    }
    if let Ok(number) = value.extract::<u64>() {
        return Ok(Wanted::Integer(number.into()));
    }
    let float = value.extract::<f64>().unwrap_or(f64::NAN); // beyond float64: NaN, which equals nothing
    Ok(Wanted::Float(if value.eq(float)? { float } else { f64::NAN }))
}
