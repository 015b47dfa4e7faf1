"""Everything that can be set, where each value came from, and which combinations are refused.

- `all`: everything that can be set, where each value came from, which combinations are refused
- `lane`: what the settings ask of a lane
"""
