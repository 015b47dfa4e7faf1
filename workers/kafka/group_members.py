"""Who is in the consumer group, and which partitions each member owns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import KafkaError, for_code

__all__ = ["GroupMember", "describe_group"]


class GroupMember(NamedTuple):
    """A member of the group, and its partitions of the topic that was asked for, in order."""

    member_id: str
    client_id: str
    host: str
    partitions: tuple[int, ...]


async def describe_group(admin: AIOKafkaAdminClient, group: str, topic: str) -> tuple[str, list[GroupMember]]:
    """The group's state in Kafka's words (``Stable``, ``Empty``, ``Dead``) and its members. Raises ``KafkaError``."""
    for response in await admin.describe_consumer_groups([group]):
        for code, _group, state, _protocol_type, _protocol, members, *_ in response.groups:
            if code:
                raise for_code(code)(f"group {group}")
            return state or "Dead", [
                GroupMember(member_id, client_id, host.lstrip("/"), tuple(sorted(_owned(assignment, topic))))
                for member_id, _instance, client_id, host, _metadata, assignment in map(_six, members)
            ]
    return "Dead", []


def _six(member: tuple[object, ...]) -> tuple[str, object, str, str, bytes, bytes]:
    """A member with its group instance id, which older brokers don't tell."""
    return member if len(member) == 6 else (member[0], None, *member[1:])  # type: ignore[return-value]


def _owned(assignment: bytes, topic: str) -> Iterable[int]:
    """Partitions of the topic in an assignment; none while the group is still agreeing on it."""
    if not assignment:
        return ()
    try:
        decoded = ConsumerProtocolMemberAssignment.decode(assignment)
    except (ValueError, KafkaError):
        return ()
    return [tp.partition for tp in decoded.partitions() if tp.topic == topic]
