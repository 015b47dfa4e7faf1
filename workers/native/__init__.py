"""The native lane: what the crate ``native/`` computes in Rust, as a lane.

Its rules are those of `workers.core`, where they are explained; ``native/src`` mirrors that room file by file.

- `choose`: which lane a partition gets: the native one where it can be used, else the reference
- `facts`: what native code needs to know of a tick's JSON, where it is not sure itself
- `entries`: what a compacted topic holds, from its batches
- `lane`: the lane itself: batches in, effects out, and what native code leaves to Python
- `probe`: what of native code is there, and whether it and the libraries beside it write alike
- `reader`: the records of a batch, unpacked piece by piece, for lanes that take records
- `spec`: what native code is told of a lane's spec
- `zones`: what native code is told of a time zone
"""
