"""Metadata as this package asks for it: never so that the broker makes a topic, and with the topics' ids.

Where a broker makes topics that are asked for (``auto.create.topics.enable``, Kafka's default), a deleted topic comes
back by itself with the broker's defaults: frames with a week of retention, a changelog that is deleted and not
compacted. The client asks that way. So its requests are replaced, for all clients of this process: they forbid it.

And they ask in version 11 where the broker has it (Kafka 2.8), whose answers tell the id of each topic (KIP-516): one
that was deleted and made again under the same name has another. The client reads versions up to 5 and is handed one.
"""

from __future__ import annotations

import base64
import functools
from io import BytesIO
from typing import Any, Final

from aiokafka import client as library
from aiokafka.admin import client as admin_library
from aiokafka.client import AIOKafkaClient
from aiokafka.cluster import ClusterMetadata
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest, MetadataResponse_v5
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

__all__ = ["Metadata", "SafeMetadataRequest", "forbid_creation", "topic_id_of"]

_NO_ID: Final = bytes(16)


class _Uuid(AbstractType[Any]):  # type: ignore[misc]  # aiokafka is untyped
    """Sixteen bytes; text as Kafka's own tools write it."""

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> str | None:
        found = data.read(16)
        return None if found == _NO_ID else base64.urlsafe_b64encode(found).decode().rstrip("=")


class Metadata(MetadataResponse_v5):  # type: ignore[misc]
    """An answer in the client's own form; ``topic_ids`` are by name, of topics that are there."""

    def __init__(self, *parts: object) -> None:
        super().__init__(*parts)
        self.topic_ids: dict[str, str] = {}

    def to_object(self) -> dict[str, Any]:
        """As the client's, and with the ids."""
        found: dict[str, Any] = super().to_object()
        for topic in found["topics"]:
            topic["topic_id"] = self.topic_ids.get(topic["topic"])
        return found


class _MetadataResponse_v11(Response):  # type: ignore[misc]  # as the client names them
    API_KEY = 3
    API_VERSION = 11
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )

    @classmethod
    def decode(cls, data: BytesIO | bytes) -> Metadata:
        """The answer in the form that the client reads."""
        found = super().decode(data)
        topics = [
            (code, name, is_internal, [(error, number, leader, *rest) for error, number, leader, _, *rest, _ in parts])
            for code, name, _, is_internal, parts, *_ in found.topics
        ]
        brokers = [broker[:4] for broker in found.brokers]
        answer = Metadata(found.throttle_time_ms, brokers, found.cluster_id, found.controller_id, topics)
        answer.topic_ids = {name: topic_id for _, name, topic_id, *_ in found.topics if topic_id is not None}
        return answer


class _MetadataRequest_v11(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 11
    RESPONSE_TYPE = _MetadataResponse_v11
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class SafeMetadataRequest(MetadataRequest):  # type: ignore[misc]
    """Asks for topics by name, or for all; makes none."""

    def __init__(self, topics: list[str] | None = None, allow_auto_topic_creation: bool | None = None) -> None:
        super().__init__(topics, allow_auto_topic_creation=False)

    def build(self, request_struct_class: type[RequestStruct]) -> RequestStruct:
        """As the broker takes it."""
        if request_struct_class is not _MetadataRequest_v11:
            return super().build(request_struct_class)
        topics: list[tuple[bytes, str, dict[int, bytes]]] | None
        topics = None if self._topics is None else [(_NO_ID, name, {}) for name in self._topics]
        return _MetadataRequest_v11(topics, False, False, {})


# Here, as making a class sets them to its base's.
SafeMetadataRequest._CLASSES = (*MetadataRequest._CLASSES, _MetadataRequest_v11)


def forbid_creation() -> None:
    """Put the requests into the client library, for this process; calling it again changes nothing."""
    if library.MetadataRequest is SafeMetadataRequest:
        return
    library.MetadataRequest = admin_library.MetadataRequest = SafeMetadataRequest
    update = ClusterMetadata.update_metadata

    @functools.wraps(update)
    def update_metadata(self: ClusterMetadata, metadata: Response) -> object:
        self.__dict__["topic_ids"] = getattr(metadata, "topic_ids", {})
        return update(self, metadata)

    ClusterMetadata.update_metadata = update_metadata


def topic_id_of(client: AIOKafkaClient, topic: str) -> str | None:
    """The topic's id as the client saw it last; None where it did not, or where the broker tells none."""
    ids: dict[str, str] = client.cluster.__dict__.get("topic_ids", {})
    return ids.get(topic)
