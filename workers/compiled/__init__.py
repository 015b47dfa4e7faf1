"""The fast lane: what `workers.core` computes, compiled, over whole record batches. Mirrored on it, and equal to it.

- `choose`: which of the two lanes can be had
- `decimals`: the sums of `core/decimals.py`, compiled
- `decode`: record batches into columns
- `jit`: what is asked of numba, and where compiled code is kept
- `lane`: the lane over whole record batches; what is not a plain tick goes through the reference's code
- `numbers`: numbers written as JSON writes them
- `tables`: the tables of keys and windows that compiled code works on
- `windows`: the rules of `core/windows/engine.py`, compiled
"""
