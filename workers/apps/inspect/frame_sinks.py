"""Where frames that were made again can go."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from workers.apps.produce.send import prepare_topic
from workers.core.frames import OutRecord
from workers.core.partitioning import partition_for
from workers.errors import ConfigError, TopicError
from workers.kafka.clients import Producer, start_producer, stop_producer
from workers.kafka.connection import explain_connection_error
from workers.kafka.errors import KafkaError
from workers.kafka.options import producer_options

if TYPE_CHECKING:
    from workers.settings import Settings

__all__ = ["FrameSink", "writing_to_file", "writing_to_topic"]


class FrameSink(Protocol):
    """Takes the frames that were made again, those of a key in order."""

    async def write(self, frames: Sequence[OutRecord]) -> None: ...


class _FileSink:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    async def write(self, frames: Sequence[OutRecord]) -> None:
        self._file.writelines((frame.value or b"") + b"\n" for frame in frames)


@asynccontextmanager
async def writing_to_file(path: Path) -> AsyncIterator[FrameSink]:
    """A sink that writes frames to a file, one JSON object a line. Raises `ConfigError` where it can't be written."""
    try:
        with path.open("wb") as file:
            yield _FileSink(file)
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error.strerror or error}") from error


class _TopicSink:
    def __init__(self, producer: Producer, topic: str, partitions: int) -> None:
        self._producer, self._topic, self._partitions = producer, topic, partitions

    async def write(self, frames: Sequence[OutRecord]) -> None:
        sent = [
            await self._producer.send(
                self._topic,
                frame.value,
                key=frame.key,
                partition=partition_for(frame.key or b"", self._partitions),
                timestamp_ms=frame.timestamp_ms,
            )
            for frame in frames
        ]
        for future in sent:
            await future


@asynccontextmanager
async def writing_to_topic(settings: Settings, topic: str) -> AsyncIterator[FrameSink]:
    """A sink that writes frames to a topic as a worker would, made if it is missing.

    It is no transaction: an interrupted replay leaves what it had written. Raises `TopicError` for a topic of the
    application itself, and where it can't be made; `BrokerError`.
    """
    topics = settings.topics
    own = (topics.ticks, topics.frames, topics.late, topics.dead_letters, topics.changelog, topics.feedback)
    if topic in (*own, *(name for operator in settings.pipeline for name in operator.topics())):
        raise TopicError(f"{topic} belongs to the application; frames made again go to a topic of their own")
    partitions = await prepare_topic(settings, topic)
    options = producer_options(settings) | {"acks": "all", "enable_idempotence": True}
    producer = await start_producer(settings, options)
    try:
        yield _TopicSink(producer, topic, partitions)
        await producer.flush()
    except (KafkaError, TimeoutError) as error:
        raise explain_connection_error(error, settings) from error
    finally:
        await stop_producer(producer)
