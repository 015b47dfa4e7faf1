"""Everything that can be set, where each value came from, and which combinations are refused."""
