"""Windows: which ones a time belongs to, when each comes out, and what every kind adds to that; a file a kind.

- `assign`: which windows a time belongs to: tumbling, by a zone's wall clock, hopping, an exchange's sessions
- `choose`: which of these the rules ask for
- `corrections`: cancelled and corrected trades: windows that keep their trades, and are folded anew
- `engine`: what becomes of a tick in its windows, and when each comes out
- `gaps`: windows without ticks, for holes between bars
- `resample`: bars from bars: frames of another application read, and windows made of them
- `sessions`: windows that ticks make longer, and that merge; names given up are taken back
- `idle`: open windows that wait to be overdue, by their ends: what partition time has passed is shown provisionally
- `kinds`: kinds of windows: one type each, with the settings that mean something for it, durations in nanoseconds
- `window`: what windows are made of: the rules they follow, what is kept of one and of its key, and what comes out
"""
