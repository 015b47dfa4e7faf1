"""What is fed to the workers under test: disorder, ticks too late, records that are no ticks."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator

import orjson
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from tests.support.oracle import partition_of
from workers.kafka.repairs import stop_producer

__all__ = ["START_MS", "Feed", "feeding", "produce"]

START_MS = 1_700_000_000_000
_BAD_SHARE = 0.003
_BATCH_S = 0.02
_LIMIT_S = 60.0

Message = tuple[int, bytes | None, bytes | None]  # partition, key, value


class Feed:
    """Ticks of many symbols, some hectic and some quiet, and event time running ``speed`` times as fast as ours."""

    def __init__(self, seed: int, *, partitions: int, symbols: int = 300, speed: float = 2.0) -> None:
        self._rng = random.Random(seed)
        self._partitions = partitions
        self._symbols = [f"{chr(65 + n % 26)}{n}" for n in range(symbols)]
        self._weights = [1 / (3 + n) ** 0.7 for n in range(symbols)]
        self._speed = speed
        self.now_ms = float(START_MS)
        self.made = 0

    def take(self, count: int, seconds: float) -> list[Message]:
        """The next ``count`` records, spread over ``seconds`` of our time."""
        messages: list[Message] = []
        for symbol in self._rng.choices(self._symbols, self._weights, k=count):
            self.now_ms += seconds / count * self._speed * 1000
            self.made += 1
            messages.append(self._bad(symbol) if self._rng.random() < _BAD_SHARE else self._tick(symbol))
        return messages

    def _tick(self, symbol: str) -> Message:
        rng = self._rng
        delay_ms = rng.expovariate(1 / 150) + (rng.uniform(500, 4_000) if rng.random() < 0.01 else 0)
        fields = {
            "symbol": symbol,
            "ts": int(self.now_ms - delay_ms),
            "price": round(rng.uniform(1, 500), rng.randrange(5)),
            "size": rng.choice((1, 100, 0.001, 0, 7.3, "2.50")),
        }
        return self._message(symbol, orjson.dumps(fields))

    def _bad(self, symbol: str) -> Message:
        good = {"symbol": symbol, "ts": int(self.now_ms), "price": 1, "size": 1}
        far_ms = int(time.time() * 1000) + 10 * 60 * 1000
        value = self._rng.choice(
            (
                b"",
                b'{"symbol":',
                b"[1,2]",
                orjson.dumps({**good, "price": "NaN"}),
                orjson.dumps({**good, "size": -1}),
                orjson.dumps({**good, "ts": 2**62}),
                orjson.dumps({**good, "ts": far_ms}),
                orjson.dumps({**good, "symbol": "OTHER"}),
                orjson.dumps({"symbol": symbol}),
            )
        )
        return self._message(symbol, value)

    def _message(self, symbol: str, value: bytes) -> Message:
        return partition_of(symbol.encode(), self._partitions), symbol.encode(), value


async def produce(bootstrap: str, topic: str, feed: Feed, *, per_second: int, seconds: float) -> int:
    """Send the feed at a rate, through outages of the broker; the number of records that the broker has.

    Fails where the broker does not take them within a minute after the last was due.
    """
    try:
        async with asyncio.timeout(seconds + _LIMIT_S) as limit:
            return await _produce(bootstrap, topic, feed, per_second, seconds)
    except TimeoutError:
        if not limit.expired():
            raise
        raise AssertionError(f"{topic} did not take {seconds} s of the feed in {seconds + _LIMIT_S} s") from None


@contextlib.asynccontextmanager
async def feeding(bootstrap: str, topic: str, feed: Feed, *, per_second: int) -> AsyncIterator[None]:
    """Feed for as long as this is open."""
    enough = asyncio.Event()

    async def go_on() -> None:
        while not enough.is_set():
            await produce(bootstrap, topic, feed, per_second=per_second, seconds=0.5)

    task = asyncio.ensure_future(go_on())
    try:
        yield
    finally:
        enough.set()
        await task


async def _produce(bootstrap: str, topic: str, feed: Feed, per_second: int, seconds: float) -> int:
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, enable_idempotence=True, compression_type="lz4", linger_ms=5, retry_backoff_ms=50
    )
    await producer.start()
    sent = []
    try:
        begun_s, made_before = time.monotonic(), feed.made
        while (elapsed_s := time.monotonic() - begun_s) < seconds:
            count = int(min(elapsed_s + _BATCH_S, seconds) * per_second) - (feed.made - made_before)
            if count > 0:
                for partition, key, value in feed.take(count, count / per_second):
                    try:
                        sent.append(await producer.send(topic, value, key=key, partition=partition))
                    except KafkaError:  # no room while the broker is away: this one never was
                        continue
            await asyncio.sleep(_BATCH_S)
        outcomes = await asyncio.gather(*sent, return_exceptions=True)
    finally:
        await stop_producer(producer, within_s=5.0)
    return sum(not isinstance(outcome, BaseException) for outcome in outcomes)
