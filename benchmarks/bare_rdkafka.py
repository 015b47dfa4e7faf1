"""Bare consumption by confluent-kafka, which is librdkafka with a Python object per message: what a loop in Python
can't go below.

usage: python -m benchmarks.bare_rdkafka BOOTSTRAP TOPIC COUNT
"""

from __future__ import annotations

import sys

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition


def main(bootstrap: str, topic: str, count: int) -> None:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"bare-{topic}",
            "enable.auto.commit": False,
            "fetch.queue.backoff.ms": 1,  # by default it rests for a second whenever 100,000 messages are waiting
        }
    )
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
    read = 0
    while read < count:
        for message in consumer.consume(2_000, 1.0):
            message.value()
            read += 1
    consumer.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
