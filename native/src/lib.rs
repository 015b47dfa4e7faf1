//! The native lane of tick-workers: record batches in, frames, ledger and changelog records out.
//!
//! It mirrors `workers/core`, where the rules are written and explained; what stands here is only faster.
pub mod assign;
pub mod batches;
pub mod changes;
pub mod children;
pub mod compress;
pub mod corrections;
pub mod decompress;
pub mod due;
pub mod engine;
pub mod frames;
pub mod gaps;
pub mod json;
pub mod keys;
pub mod lane;
pub mod ledger;
pub mod msgpack;
pub mod order;
pub mod packed;
pub mod partitioning;
pub mod payload;
pub mod pipeline;
#[cfg(feature = "extension-module")]
pub mod python;
#[cfg(feature = "extension-module")]
pub mod python_records;
pub mod records;
pub mod resample;
pub mod sessions;
pub mod slab;
pub mod snapshot;
pub mod sums;
pub mod ticks;
pub mod varint;
pub mod window;
