"""A stream of ticks, split by symbol over two lanes, in 5-second windows of event time per lane.

    python docs/examples/windowed_partitioned.py

AAPL and NVDA share lane 1, MSFT has lane 0. The lanes are read concurrently: they are bounded, so a lane that nobody
reads would in the end make the source wait, and the other lane with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from workers import (
    PartitionedChannel,
    PartitioningSpec,
    TumblingWindowSpec,
    WatermarkPolicy,
    hash_partition,
    tumbling_window_event_time,
)

START = datetime(2026, 1, 30, 13, 21, 25, tzinfo=UTC)


@dataclass(frozen=True)
class Trade:
    symbol: str
    time: datetime
    price: float


async def trades() -> AsyncIterator[Trade]:
    """Twelve seconds of three symbols, a little out of order, as a feed delivers them."""
    for symbol, seconds, price in (
        ("AAPL", 0.4, 189.10),
        ("MSFT", 0.9, 410.02),
        ("NVDA", 2.5, 601.55),
        ("AAPL", 1.7, 189.12),  # out of order, but within the lag: it joins its window
        ("MSFT", 5.2, 410.10),
        ("AAPL", 6.0, 189.05),
        ("NVDA", 8.3, 601.60),
        ("MSFT", 11.8, 410.07),
        ("AAPL", 12.0, 189.20),
    ):
        await asyncio.sleep(0)
        yield Trade(symbol, START + timedelta(seconds=seconds), price)


async def print_windows(lanes: PartitionedChannel[Trade], index: int) -> None:
    frames = tumbling_window_event_time(
        lanes.stream_partition(index),
        TumblingWindowSpec(size=timedelta(seconds=5)),
        get_event_time=lambda trade: trade.time,  # and get_key=lambda trade: trade.symbol for windows per symbol
        watermark_policy=WatermarkPolicy(lag=timedelta(seconds=2)),
    )
    async for frame in frames:
        print(f"[p={index}] window {frame.start:%H:%M:%S}..{frame.end:%H:%M:%S} count={len(frame.items)}")


async def main() -> None:
    spec = PartitioningSpec(partitions=2, capacity=64)
    async with (
        hash_partition(trades(), get_key=lambda trade: trade.symbol, spec=spec) as lanes,
        asyncio.TaskGroup() as readers,
    ):
        for index in lanes.partitions():
            readers.create_task(print_windows(lanes, index))


if __name__ == "__main__":
    asyncio.run(main())
