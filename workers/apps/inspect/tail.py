"""Reading the output topics as they grow: which records, and how a person is shown them.

A reader of its own, without a group: it takes nothing from anybody and commits nothing. Only committed records are
shown, all partitions at once, in the order in which they arrive.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import orjson

from workers.core.encoding import json_object
from workers.core.frames import RESERVED_FIELDS
from workers.core.ledger import MESSAGE_HEADER, OFFSET_HEADER, PARTITION_HEADER, REASON_HEADER, TOPIC_HEADER
from workers.core.reasons import Reason
from workers.core.ticks import is_end_of_input
from workers.errors import BrokerError
from workers.kafka.clients import admin_client
from workers.kafka.connection import explain_connection_error
from workers.kafka.errors import KafkaError
from workers.kafka.reading import KafkaRecord, TopicReader, reading
from workers.kafka.topics import describe_topics
from workers.times import MAX_EVENT_TIME_NS, NS_PER_MS, UNIT_NS, describe_duration, format_instant

if TYPE_CHECKING:
    from workers.settings import Settings

__all__ = ["dead_letter_line", "frame_line", "json_line", "late_line", "tail", "unit_notice"]

_POLL_MS: Final = 200
_SILENCE_S: Final = 10.0  # with nothing coming, before it is asked whether the cluster answers
_ANSWER_S: Final = 5.0
_BATCH: Final = 2_000
_SHOWN_VALUE: Final = 200
_YEAR_NS: Final = 31_556_952 * 10**9
_FRAME_FIELDS: Final = {"open": "o", "high": "h", "low": "l", "close": "c", "volume": "v"}
_NOT_RESULTS: Final = frozenset({*RESERVED_FIELDS, "vwap"})


async def tail(
    settings: Settings,
    topic: str,
    *,
    stop: asyncio.Event,
    from_beginning: bool = False,
    idle_ns: int | None = None,
    on_notice: Callable[[str], None] = lambda text: None,
) -> AsyncGenerator[Sequence[KafkaRecord], None]:
    """The committed records of a topic in batches, until ``stop`` is set or nothing has come for ``idle_ns``.

    Begins at the first record there is, or at the end as it is now. A topic that does not exist yet is waited for
    (within ``idle_ns``), never created. ``on_notice`` is told when the cluster no longer answers, and when it does
    again. Raises ``BrokerError`` where the cluster can't be reached at the start, or does not answer when ``idle_ns``
    is over: that nothing has come would not be known.
    """
    deadline = _Idle(idle_ns)
    partitions = await _wait_for_topic(settings, topic, stop, deadline, on_notice)
    if not partitions:
        return
    wait_ms = settings.kafka.fetch_max_wait_ms
    async with reading(settings, topic, isolation_level="read_committed", fetch_max_wait_ms=wait_ms) as reader:
        reader.assign(range(partitions))
        try:
            await (reader.seek_to_begin() if from_beginning else reader.seek_to_end())
            deadline.restart()
            silence = _Silence(reader, partitions, settings.bootstrap_servers, on_notice)
            while not stop.is_set():
                if deadline.passed():
                    await silence.look(ending=True)
                    break
                found = await reader.poll(timeout_ms=_POLL_MS, max_records=_BATCH)
                if found:
                    yield [record for records in found.values() for record in records]
                    deadline.restart()
                    silence.heard()
                elif silence.is_due():
                    await silence.look()
        except KafkaError as error:
            raise explain_connection_error(error, settings) from error


class _Silence:
    """Tells a topic to which nothing comes from a cluster that no longer answers, by asking it now and then."""

    def __init__(
        self, reader: TopicReader, partitions: int, bootstrap_servers: str, on_notice: Callable[[str], None]
    ) -> None:
        self._reader, self._partitions = reader, partitions
        self._where, self._on_notice = bootstrap_servers, on_notice
        self._heard_s = self._asked_s = time.monotonic()
        self._told = False

    def heard(self) -> None:
        """The cluster answers."""
        self._heard_s = self._asked_s = time.monotonic()
        if self._told:
            self._told = False
            self._on_notice("the broker answers again")

    def is_due(self) -> bool:
        return time.monotonic() - self._asked_s >= _SILENCE_S

    async def look(self, *, ending: bool = False) -> None:
        """Ask; says once that there is no answer, and raises ``BrokerError`` for it at the end."""
        self._asked_s = time.monotonic()
        try:
            async with asyncio.timeout(_ANSWER_S):
                await self._reader.ends(range(self._partitions))
        except (KafkaError, TimeoutError):
            text = f"the broker at {self._where} has not answered for {time.monotonic() - self._heard_s:.0f} s"
            if ending:
                raise BrokerError(f"{text}; whether something has come is not known") from None
            if not self._told:
                self._told = True
                self._on_notice(f"{text}; waiting")
        else:
            self.heard()


class _Idle:
    """A deadline that starts again whenever something comes; without a limit it never passes."""

    def __init__(self, limit_ns: int | None) -> None:
        self._limit_ns = limit_ns
        self._since_ns = time.monotonic_ns()

    def restart(self) -> None:
        self._since_ns = time.monotonic_ns()

    def passed(self) -> bool:
        return self._limit_ns is not None and time.monotonic_ns() - self._since_ns >= self._limit_ns


async def _wait_for_topic(
    settings: Settings, topic: str, stop: asyncio.Event, deadline: _Idle, on_notice: Callable[[str], None]
) -> int:
    """Partitions of the topic once it is there; 0 where it never came."""
    told = False
    async with admin_client(settings) as admin:
        while not stop.is_set() and not deadline.passed():
            try:
                state = (await describe_topics(admin)).get(topic)
            except (KafkaError, TimeoutError) as error:
                raise explain_connection_error(error, settings) from error
            if state is not None and state.ready:
                return state.partitions
            if not told:
                told = True
                on_notice(f"topic {topic} does not exist yet; waiting for it")
            try:
                async with asyncio.timeout(0.5):
                    await stop.wait()
            except TimeoutError:
                continue
    return 0


# -- what a person sees -----------------------------------------------------------------------------------------------


def frame_line(record: KafkaRecord, *, now_ns: int) -> str:
    """A frame in one line: partition, key, window, count and OHLCV, and its status where that is not plain final.

    A record that is no frame is shown as it is. ``now_ns`` decides whether the day is worth showing.
    """
    if is_end_of_input(record):
        return f"[p={record.partition}] end of the input, for an application that reads these frames"
    frame = json_object(record.value)
    start, end, status = frame.get("start"), frame.get("end"), frame.get("status")
    if not isinstance(start, int) or not isinstance(end, int) or not isinstance(status, str):
        return f"[p={record.partition}] {_excerpt(record.value)} (not a frame)"
    parts = [f"[p={record.partition}]", str(frame.get("key")), _span(start, end, now_ns), f"count={frame.get('count')}"]
    for name, value in frame.items():
        if name not in _NOT_RESULTS and (value is not None or frame.get("count") != 0):
            parts.append(f"{_FRAME_FIELDS.get(name, name)}={_number(value)}")
    if isinstance(frame.get("items"), list):
        parts.append(f"items={len(frame['items'])}")
    if frame.get("filled") is True:
        parts.append("filled")
    elif frame.get("count") == 0:
        parts.append(f"empty ({frame.get('trigger')})")
    if status == "provisional":
        parts.append(f"provisional ({frame.get('trigger')})")
    elif status != "final":
        parts.append(status)
    if frame.get("rev"):
        parts.append(f"rev={frame['rev']}")
    return " ".join(parts)


def late_line(record: KafkaRecord, *, now_ns: int, unit: str) -> str:
    """A late tick in one line: its time, how late and why, the window it missed, where it was.

    One that an operator dropped: its time, which operator and why, where it was. A correction whose trade was not
    found: why not, where it was. Where the window shows that the workers' ``unit`` is another, that one is taken.
    """
    late = json_object(record.value)
    unit = _other_unit(late, unit) or unit
    ts, start, end, late_by = (late.get(name) for name in ("ts", "start", "end", "late_by_ns"))
    if isinstance(ts, int) and isinstance(late.get("stage"), str):
        return (
            f"[p={record.partition}] {late.get('key')} {_tick_time(ts, unit, now_ns)} {late.get('reason')}, by "
            f"operator {late['stage']}, from {late.get('topic')}[{late.get('partition')}] offset {late.get('offset')}"
        )
    if late.get("reason") == Reason.UNCORRECTABLE:
        return (
            f"[p={record.partition}] {late.get('key')} uncorrectable: {late.get('detail')}, from "
            f"{late.get('topic')}[{late.get('partition')}] offset {late.get('offset')}"
        )
    if isinstance(ts, int) and isinstance(late_by, int) and start is None and end is None:
        return (
            f"[p={record.partition}] {late.get('key')} {_tick_time(ts, unit, now_ns)} in no window "
            f"({late.get('reason')}), from {late.get('topic')}[{late.get('partition')}] offset {late.get('offset')}"
        )
    if not (isinstance(ts, int) and isinstance(start, int) and isinstance(end, int) and isinstance(late_by, int)):
        return f"[p={record.partition}] {_excerpt(record.value)} (not a late tick)"
    return (
        f"[p={record.partition}] {late.get('key')} {_tick_time(ts, unit, now_ns)} late by "
        f"{describe_duration(late_by)} ({late.get('reason')}), window {_span(start, end, now_ns)}, from "
        f"{late.get('topic')}[{late.get('partition')}] offset {late.get('offset')}"
    )


def unit_notice(record: KafkaRecord, unit: str) -> str | None:
    """What to tell somebody who reads the late topic with another ``tick.timestamp_unit`` than the workers have."""
    found = _other_unit(json_object(record.value), unit)
    if found is None:
        return None
    return f"the workers' tick.timestamp_unit is {found}, not {unit}: give this command their configuration"


def _other_unit(late: Mapping[str, object], unit: str) -> str | None:
    """The unit that a late tick's ``ts`` is in, where it can't be ``unit``: a tick is in the window that it is told of,
    whose times are always milliseconds."""
    ts, start, end = late.get("ts"), late.get("start"), late.get("end")
    if not isinstance(ts, int) or not isinstance(start, int) or not isinstance(end, int):
        return None

    def fits(name: str) -> bool:  # windows of bars can begin within a millisecond, and seconds are floored
        return start - 1_000 < ts * UNIT_NS[name] // NS_PER_MS <= end

    return None if fits(unit) else next((name for name in UNIT_NS if fits(name)), None)


def dead_letter_line(record: KafkaRecord) -> str:
    """A rejected record in one line: why, where it was, its key, and how its value begins."""
    headers = _headers(record)
    return (
        f"[p={record.partition}] {headers.get(REASON_HEADER, 'no reason given')} {headers.get(TOPIC_HEADER)}"
        f"[{headers.get(PARTITION_HEADER)}] offset {headers.get(OFFSET_HEADER)} key={_excerpt(record.key)}: "
        f"{headers.get(MESSAGE_HEADER, '')} | {_excerpt(record.value)}"
    )


def json_line(record: KafkaRecord, *, ledger: bool) -> bytes:
    """A record as one line of JSON, without the line end.

    The value itself where it is one line of JSON. With ``ledger`` (dead letters, whose values are anything), an object
    with reason, message, place of origin, key and value; bytes that are no UTF-8 are escaped as ``\\xff``.
    """
    if not ledger:
        return _one_line(record.value)
    headers = _headers(record)
    places = {"topic": TOPIC_HEADER, "partition": PARTITION_HEADER, "offset": OFFSET_HEADER}
    origin = {name: headers.get(header) for name, header in places.items()}
    return orjson.dumps(
        {
            "reason": headers.get(REASON_HEADER),
            "message": headers.get(MESSAGE_HEADER),
            "topic": origin["topic"],
            "partition": _whole(origin["partition"]),
            "offset": _whole(origin["offset"]),
            "key": _text(record.key),
            "value": _text(record.value),
        }
    )


def _one_line(value: bytes | None) -> bytes:
    try:
        parsed = orjson.loads(value or b"null")
    except orjson.JSONDecodeError:
        return orjson.dumps(_text(value))
    if value is None or b"\n" in value or b"\r" in value:
        return orjson.dumps(parsed)
    return value


def _headers(record: KafkaRecord) -> dict[str, str]:
    return {name: _text(value) or "" for name, value in record.headers}


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "backslashreplace")


def _excerpt(value: bytes | None) -> str:
    if value is None:
        return "null"
    text = value[:_SHOWN_VALUE].decode("utf-8", "backslashreplace")
    return text if len(value) <= _SHOWN_VALUE else f"{text}… ({len(value):,} bytes)"


def _whole(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else text


def _number(value: object) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value) if isinstance(value, int | float | str) else orjson.dumps(value).decode()


def _span(start_ms: int, end_ms: int, now_ns: int) -> str:
    start_text, end_text = _instant(start_ms * NS_PER_MS, now_ns), _instant(end_ms * NS_PER_MS, now_ns)
    day, _, _ = start_text.rpartition(" ")
    return f"{start_text}..{end_text.removeprefix(day + ' ') if day else end_text}"


def _tick_time(ts: int, unit: str, now_ns: int) -> str:
    """A tick's time; where no accepted tick can have it, what was written, and what is wrong with the reading."""
    if abs(ts) * UNIT_NS[unit] > MAX_EVENT_TIME_NS:
        return f"ts={ts} (not in {unit}: give tick.timestamp_unit as the workers have it)"
    return _instant(ts * UNIT_NS[unit], now_ns)


def _instant(time_ns: int, now_ns: int) -> str:
    """The time of day in UTC, after the date unless that is today's."""
    try:
        day, _, clock = format_instant(time_ns).removesuffix("Z").partition("T")
    except OverflowError:
        return f"(year:{1970 + time_ns // _YEAR_NS:,})"  # one word, as the callers expect of a time of today
    today = datetime.fromtimestamp(now_ns // 1_000_000_000, UTC).date().isoformat()
    return clock if day == today else f"{day} {clock}"
