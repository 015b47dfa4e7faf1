"""The library over async iterators, for streams inside one process: channels, windows, operators."""
