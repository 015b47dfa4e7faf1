"""The fast lane: what `workers.core` computes, compiled, over whole record batches. Mirrored on it, and equal to it."""
