"""A test of one's own settings, without a broker: what happens to late ticks, and to a worker that crashes.

    python docs/examples/testing_a_pipeline.py

In a test module, `main` would be some tests; the driver needs no fixture and no clean-up.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from workers.settings import load_settings
from workers.testing import TestDriver

START = datetime(2026, 1, 30, 13, 21, 25, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def main() -> None:
    """Five-second bars that take late ticks for another second."""
    overrides = {"window.size": "5s", "window.lag": "2s", "window.allowed_lateness": "1s"}
    driver = TestDriver(load_settings(None, environ={}, overrides=overrides), partitions=2)

    driver.send("AAPL", after(0.4), price=189.10, size=100)
    driver.send("AAPL", after(7.2), price=189.20, size=50)  # the watermark reaches 5.2: the first bar closes
    driver.commit()
    driver.send("AAPL", after(4.9), price=189.15, size=10)  # 0.3 s behind the watermark: the bar is revised
    driver.send("AAPL", after(4.1), price=189.05, size=10)  # too late: the threshold is 4.2
    driver.crash()  # what was not committed is gone, and made again from the log
    driver.send("MSFT", after(1.0), price=410.02, size=0)
    driver.advance("10s")  # nothing comes any more: what is open is shown, provisionally

    for frame in driver.frames():
        print(frame["key"], f"rev={frame['rev']} {frame['status']} close={frame['close']} count={frame['count']}")
    for late in driver.late():
        print(late["key"], f"late by {late['late_by_ns'] / 1e9:.1f} s")

    bars = driver.frames("AAPL", provisional=False)
    assert [(bar["rev"], bar["count"]) for bar in bars] == [(0, 1), (1, 2)]
    assert len(driver.late()) == 1
    assert driver.counts().balance() == 0


if __name__ == "__main__":
    main()
