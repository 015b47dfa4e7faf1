"""Windows: which ones a time belongs to, when each comes out, and what every kind adds to that; a file a kind.

- `assign`: which windows a time belongs to: tumbling, by a zone's wall clock, hopping, an exchange's sessions
- `choose`: which of these the rules ask for
- `corrections`: cancelled and corrected trades: windows that keep their trades, and are folded anew
- `engine`: what becomes of a tick in its windows, and when each comes out
- `gaps`: windows without ticks, for holes between bars
- `resample`: bars from bars: frames of another application read, and windows made of them
- `sessions`: windows that ticks make longer, and that merge; names given up are taken back
"""
