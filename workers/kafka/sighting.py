"""Whether the topics are still those that an application began with, asked on connections that are there anyway."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Final

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaConnectionError, NoError, UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.offset import OffsetRequest

from workers.core.snapshot import TopicIdentity
from workers.kafka.metadata import Metadata, SafeMetadataRequest
from workers.kafka.ports import Sighting

__all__ = ["look"]

_EARLIEST: Final = -2


async def look(client: AIOKafkaClient, ticks: str, changelog: str, partitions: Collection[int]) -> Sighting:
    """The two topics now, and where ``partitions`` of the changelog begin; one without a leader is left out.

    Raises ``KafkaError`` where the cluster does not answer.
    """
    node = client.get_random_node()
    if node is None:
        raise KafkaConnectionError("no broker is known")
    answer: Metadata = await client.send(node, SafeMetadataRequest([ticks, changelog]))
    ids = getattr(answer, "topic_ids", {})
    found = {}
    for code, name, _, parts in answer.topics:
        error = for_code(code)
        if error is NoError:
            found[name] = parts
        elif error is not UnknownTopicOrPartitionError:
            raise error(f"topic {name}")
    identities = {
        role: TopicIdentity(name, ids.get(name))
        for role, name in (("ticks", ticks), ("changelog", changelog))
        if name in found
    }
    leaders = {number: leader for _, number, leader, *_ in found.get(changelog, ()) if number in partitions}
    return Sighting(identities, len(found.get(ticks, ())), await _begins(client, changelog, leaders))


async def _begins(client: AIOKafkaClient, topic: str, leaders: Mapping[int, int]) -> dict[int, int]:
    by_node: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for partition, leader in leaders.items():
        if leader >= 0:
            by_node[leader].append((partition, _EARLIEST))
    begins: dict[int, int] = {}
    for node, wanted in by_node.items():
        response = await client.send(node, OffsetRequest(-1, 0, [(topic, wanted)]))
        for _, answers in response.topics:
            begins |= {partition: offset for partition, code, _, offset in answers if for_code(code) is NoError}
    return begins
