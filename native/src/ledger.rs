//! The late topic's records, as `workers.core.ledger` writes them.

use crate::engine::{LateReason, Lateness};
use crate::json::{put_integer, put_string};

const NS_PER_MS: i64 = 1_000_000;

impl LateReason {
    pub const ALL: [Self; 5] = [Self::Watermark, Self::Expired, Self::OutsideSession, Self::Settled, Self::Overlaps];

    pub fn name(self) -> &'static str {
        match self {
            Self::Watermark => "watermark",
            Self::Expired => "expired",
            Self::OutsideSession => "outside_session",
            Self::Settled => "settled",
            Self::Overlaps => "overlaps",
        }
    }
}

/// Late records one after another: keys and values end to end, where each begins, and why.
#[derive(Debug, Default)]
pub struct Late {
    pub text: Vec<u8>,
    pub cuts: Vec<(usize, usize)>,
    pub reasons: Vec<&'static str>,
}

/// Where ticks come from.
#[derive(Debug)]
pub struct Source {
    pub topic: String,
    pub partition: u32,
}

/// A tick that joined no window.
#[derive(Debug)]
pub struct Missed<'a> {
    pub key: &'a str,
    pub ts: i64,
    pub offset: i64,
    pub value: &'a [u8],
}

impl Late {
    /// Appends the record of a tick that joined no window. `unit`: nanoseconds of the tick's unit.
    pub fn write(&mut self, tick: &Missed, why: &Lateness, unit: i64, source: &Source) {
        let out = &mut self.text;
        out.extend_from_slice(tick.key.as_bytes());
        let middle = out.len();
        out.extend_from_slice(b"{\"key\":");
        put_string(out, tick.key);
        out.extend_from_slice(b",\"ts\":");
        put_integer(out, tick.ts.div_euclid(unit));
        out.extend_from_slice(b",\"reason\":\"");
        out.extend_from_slice(why.reason.name().as_bytes());
        out.extend_from_slice(b"\",\"late_by_ns\":");
        put_integer(out, why.late_by);
        out.extend_from_slice(b",\"watermark_ns\":");
        put_integer(out, why.watermark);
        let edges = why.missed.map(|(start, end)| (start.div_euclid(NS_PER_MS), end.div_euclid(NS_PER_MS)));
        for (name, edge) in [(&b",\"start\":"[..], edges.map(|e| e.0)), (b",\"end\":", edges.map(|e| e.1))] {
            out.extend_from_slice(name);
            match edge {
                Some(ms) => put_integer(out, ms),
                None => out.extend_from_slice(b"null"),
            }
        }
        out.extend_from_slice(b",\"topic\":");
        put_string(out, &source.topic);
        out.extend_from_slice(b",\"partition\":");
        put_integer(out, source.partition);
        out.extend_from_slice(b",\"offset\":");
        put_integer(out, tick.offset);
        out.extend_from_slice(b",\"tick\":");
        out.extend_from_slice(tick.value);
        out.push(b'}');
        self.cuts.push((middle, out.len()));
        self.reasons.push(why.reason.name());
    }
}
