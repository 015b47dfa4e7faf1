"""Requests of Kafka's protocol that the client lacks, in its own way of defining them.

What the broker is asked is described in Kafka's protocol guide; ``tests/contract`` holds each to a real broker. The
versions are those of Kafka 3.0, and the client negotiates them: `lacking` says what a broker doesn't have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aiokafka import TopicPartition
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

__all__ = [
    "DescribeProducersRequest",
    "DescribeTransactionsRequest",
    "InitProducerIdRequest",
    "ListTransactionsRequest",
    "Membership",
    "StableOffsetsRequest",
    "TxnOffsetsRequest",
    "lacking",
]

_TEXT: Final = CompactString("utf-8")
_TAGS: Final = ("tags", TaggedFields)
_NO_EPOCH: Final = -1


@dataclass(frozen=True, slots=True)
class Membership:
    """A member of a group, as the group's coordinator knows it in one generation."""

    generation: int
    member_id: str
    instance_id: str | None = None


# -- offsets ----------------------------------------------------------------------------------------------------------


class _TxnOffsetsResponse(Response):  # type: ignore[misc]  # aiokafka is untyped
    API_KEY = 28
    API_VERSION = 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            CompactArray(
                ("topic", _TEXT),
                ("partitions", CompactArray(("partition", Int32), ("error_code", Int16), _TAGS)),
                _TAGS,
            ),
        ),
        _TAGS,
    )


class _TxnOffsetsStruct(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 28
    API_VERSION = 3
    RESPONSE_TYPE = _TxnOffsetsResponse
    SCHEMA = Schema(
        ("transactional_id", _TEXT),
        ("group_id", _TEXT),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        ("generation_id", Int32),
        ("member_id", _TEXT),
        ("group_instance_id", _TEXT),
        (
            "topics",
            CompactArray(
                ("topic", _TEXT),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("offset", Int64),
                        ("leader_epoch", Int32),
                        ("metadata", _TEXT),
                        _TAGS,
                    ),
                ),
                _TAGS,
            ),
        ),
        _TAGS,
    )


class TxnOffsetsRequest(Request[_TxnOffsetsStruct]):  # type: ignore[misc]
    """TxnOffsetCommit as a member of the group: the broker refuses one that is of another generation (KIP-447)."""

    API_KEY = 28

    def __init__(
        self,
        transactional_id: str,
        group_id: str,
        producer: tuple[int, int],
        membership: Membership,
        topic: str,
        offsets: Mapping[int, tuple[int, str]],
    ) -> None:
        """``producer`` is its id and epoch; ``offsets`` are by partition, each with what is noted with it."""
        entries: list[tuple[object, ...]] = [
            (number, offset, _NO_EPOCH, note, {}) for number, (offset, note) in sorted(offsets.items())
        ]
        self._fields: tuple[object, ...] = (
            transactional_id,
            group_id,
            *producer,
            membership.generation,
            membership.member_id,
            membership.instance_id,
            [(topic, entries, {})],
            {},
        )

    def build(self, request_struct_class: type[_TxnOffsetsStruct]) -> _TxnOffsetsStruct:
        return request_struct_class(*self._fields)


class _StableOffsetsResponse(Response):  # type: ignore[misc]
    API_KEY = 9
    API_VERSION = 7
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            CompactArray(
                ("topic", _TEXT),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("offset", Int64),
                        ("leader_epoch", Int32),
                        ("metadata", _TEXT),
                        ("error_code", Int16),
                        _TAGS,
                    ),
                ),
                _TAGS,
            ),
        ),
        ("error_code", Int16),
        _TAGS,
    )


class _StableOffsetsStruct(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 9
    API_VERSION = 7
    RESPONSE_TYPE = _StableOffsetsResponse
    SCHEMA = Schema(
        ("group_id", _TEXT),
        ("topics", CompactArray(("topic", _TEXT), ("partitions", CompactArray(Int32)), _TAGS)),
        ("require_stable", Boolean),
        _TAGS,
    )


class StableOffsetsRequest(Request[_StableOffsetsStruct]):  # type: ignore[misc]
    """OffsetFetch that has no answer while a transaction with the partition's offset is not over (KIP-447)."""

    API_KEY = 9

    def __init__(self, group_id: str, topic: str, partitions: Sequence[int]) -> None:
        self._fields: tuple[object, ...] = (group_id, [(topic, list(partitions), {})], True, {})

    def build(self, request_struct_class: type[_StableOffsetsStruct]) -> _StableOffsetsStruct:
        return request_struct_class(*self._fields)


# -- transactions -----------------------------------------------------------------------------------------------------


class _DescribeTransactionsResponse(Response):  # type: ignore[misc]
    API_KEY = 65
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "states",
            CompactArray(
                ("error_code", Int16),
                ("transactional_id", _TEXT),
                ("state", _TEXT),
                ("timeout_ms", Int32),
                ("start_time_ms", Int64),
                ("producer_id", Int64),
                ("producer_epoch", Int16),
                ("topics", CompactArray(("topic", _TEXT), ("partitions", CompactArray(Int32)), _TAGS)),
                _TAGS,
            ),
        ),
        _TAGS,
    )


class _DescribeTransactionsStruct(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 65
    API_VERSION = 0
    RESPONSE_TYPE = _DescribeTransactionsResponse
    SCHEMA = Schema(("transactional_ids", CompactArray(_TEXT)), _TAGS)


class DescribeTransactionsRequest(Request[_DescribeTransactionsStruct]):  # type: ignore[misc]
    """What a coordinator knows of a transactional id (Kafka 3.0)."""

    API_KEY = 65

    def __init__(self, transactional_id: str) -> None:
        self._transactional_id = transactional_id

    def build(self, request_struct_class: type[_DescribeTransactionsStruct]) -> _DescribeTransactionsStruct:
        return request_struct_class([self._transactional_id], {})


class _ListTransactionsResponse(Response):  # type: ignore[misc]
    API_KEY = 66
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("unknown_states", CompactArray(_TEXT)),
        (
            "transactions",
            CompactArray(("transactional_id", _TEXT), ("producer_id", Int64), ("state", _TEXT), _TAGS),
        ),
        _TAGS,
    )


class _ListTransactionsStruct(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 66
    API_VERSION = 0
    RESPONSE_TYPE = _ListTransactionsResponse
    SCHEMA = Schema(("states", CompactArray(_TEXT)), ("producer_ids", CompactArray(Int64)), _TAGS)


class ListTransactionsRequest(Request[_ListTransactionsStruct]):  # type: ignore[misc]
    """The transactional ids that a broker coordinates, as far as this user may see them (Kafka 3.0)."""

    API_KEY = 66

    def build(self, request_struct_class: type[_ListTransactionsStruct]) -> _ListTransactionsStruct:
        return request_struct_class([], [], {})


class _DescribeProducersResponse(Response):  # type: ignore[misc]
    API_KEY = 61
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            CompactArray(
                ("topic", _TEXT),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("error_code", Int16),
                        ("error_message", _TEXT),
                        (
                            "producers",
                            CompactArray(
                                ("producer_id", Int64),
                                ("producer_epoch", Int32),
                                ("last_sequence", Int32),
                                ("last_timestamp", Int64),
                                ("coordinator_epoch", Int32),
                                ("open_since_offset", Int64),
                                _TAGS,
                            ),
                        ),
                        _TAGS,
                    ),
                ),
                _TAGS,
            ),
        ),
        _TAGS,
    )


class _DescribeProducersStruct(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 61
    API_VERSION = 0
    RESPONSE_TYPE = _DescribeProducersResponse
    SCHEMA = Schema(("topics", CompactArray(("topic", _TEXT), ("partitions", CompactArray(Int32)), _TAGS)), _TAGS)


class DescribeProducersRequest(Request[_DescribeProducersStruct]):  # type: ignore[misc]
    """Who writes to a partition, and whose transaction is open there (Kafka 2.8). It is for the partition's leader."""

    API_KEY = 61

    def __init__(self, tp: TopicPartition) -> None:
        self._topics: list[object] = [(tp.topic, [tp.partition], {})]

    def build(self, request_struct_class: type[_DescribeProducersStruct]) -> _DescribeProducersStruct:
        return request_struct_class(self._topics, {})


class _InitProducerIdResponse(Response):  # type: ignore[misc]
    API_KEY = 22
    API_VERSION = 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        _TAGS,
    )


class _InitProducerIdStruct(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 22
    API_VERSION = 3
    RESPONSE_TYPE = _InitProducerIdResponse
    SCHEMA = Schema(
        ("transactional_id", _TEXT),
        ("timeout_ms", Int32),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        _TAGS,
    )


class InitProducerIdRequest(Request[_InitProducerIdStruct]):  # type: ignore[misc]
    """Initialise a transactional id, if it is still as it was described: nobody else has meanwhile (KIP-360)."""

    API_KEY = 22

    def __init__(self, transactional_id: str, timeout_ms: int, producer: tuple[int, int]) -> None:
        self._fields: tuple[object, ...] = (transactional_id, timeout_ms, *producer, {})

    def build(self, request_struct_class: type[_InitProducerIdStruct]) -> _InitProducerIdStruct:
        return request_struct_class(*self._fields)


_NEEDED: Final[tuple[type[RequestStruct], ...]] = (
    _TxnOffsetsStruct,
    _StableOffsetsStruct,
    _DescribeProducersStruct,
    _DescribeTransactionsStruct,
    _ListTransactionsStruct,
    _InitProducerIdStruct,
)


def lacking(versions: Mapping[int, tuple[int, int]]) -> list[str]:
    """What of the requests here a broker lacks that has these versions, by the numbers of Kafka's APIs."""
    missing = []
    for struct in _NEEDED:
        least, most = versions.get(struct.API_KEY, (0, -1))
        if not least <= struct.API_VERSION <= most:
            missing.append(f"API {struct.API_KEY} in version {struct.API_VERSION}")
    return missing
