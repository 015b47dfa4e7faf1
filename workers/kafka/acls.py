"""What a cluster with authorization must allow: the one list of it. The documents' table is made of this."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from workers.kafka.options import login_name
from workers.settings import Settings

__all__ = ["Allowed", "allowing", "needed_acls", "principal", "worker_topics"]


class Allowed(NamedTuple):
    """What some program must be allowed to do, in the words of Kafka's ACLs.

    ``resource`` is a sentence for people, with names in Markdown; ``operations`` imply Describe on the same resource.
    """

    who: str
    resource: str
    operations: tuple[str, ...]


def principal(settings: Settings) -> str:
    """Who a cluster takes this client for, as far as it knows itself."""
    kafka = settings.kafka
    if kafka.uses_sasl:
        return f"User:{login_name(kafka)}"
    return "User:<its certificate's name>" if kafka.ssl_certificate_location else "User:ANONYMOUS"


def worker_topics(settings: Settings) -> dict[str, tuple[str, ...]]:
    """What a worker does with each of its topics but those of its pipeline's routes, to which it writes."""
    topics = settings.topics
    found: dict[str, tuple[str, ...]] = {topics.ticks: ("Read",)}
    found |= dict.fromkeys((topics.frames, topics.late, topics.dead_letters), ("Write",))
    return found | dict.fromkeys((topics.changelog, topics.feedback), ("Read", "Write"))


def allowing(settings: Settings, operations: Iterable[str], resource: str) -> str:
    """The command that allows this client something; ``resource`` as kafka-acls has it, such as ``--topic ticks``."""
    wanted = " ".join(f"--operation {operation}" for operation in operations)
    return (
        f"kafka-acls --bootstrap-server {settings.bootstrap_servers} --add --allow-principal '{principal(settings)}' "
        f"{wanted} {resource}"
    )


def needed_acls(settings: Settings) -> list[Allowed]:
    """Every operation that an application's programs need, on the topics and groups that ``settings`` name."""
    topics, group = settings.topics, settings.application_id
    ticks, frames, feedback = topics.ticks, topics.frames, topics.feedback
    return [
        Allowed("worker", f"topic `{ticks}`", ("Read",)),
        Allowed("worker", f"topics `{frames}`, `{topics.late}`, `{topics.dead_letters}`", ("Write",)),
        Allowed("worker", f"topics `{topics.changelog}`, `{feedback}`", ("Read", "Write")),
        Allowed("worker", f"group `{group}`", ("Read",)),
        Allowed("worker", f"transactional ids with prefix `{group}-`", ("Write",)),
        Allowed("worker", "topics of its pipeline's routes", ("Write",)),
        Allowed("worker", "topics that it is to create; none with `--no-create-topics`", ("Create",)),
        Allowed(
            "worker",
            "all of these topics: the largest record each takes, and how long frames are kept (otherwise it assumes "
            "Kafka's defaults)",
            ("DescribeConfigs",),
        ),
        Allowed("`workers produce`", f"topic `{ticks}`", ("Write",)),
        Allowed("with `--adaptive`", f"topics `{ticks}` and `{feedback}`", ("Read",)),
        Allowed("with `--adaptive`", f"group `{group}`", ("Describe",)),
        Allowed("`workers tail`", "the topic shown", ("Read",)),
        Allowed("`workers lag`", f"topic `{ticks}`, group `{group}`", ("Describe",)),
        Allowed(
            "`workers explain`, `workers replay`", f"topics `{ticks}`, `{frames}` and `{topics.changelog}`", ("Read",)
        ),
        Allowed("`workers explain`, `workers replay`", f"group `{group}`", ("Describe",)),
        Allowed("`workers state show`", f"topic `{topics.changelog}`", ("Read",)),
        Allowed("`workers state reset`", "as the worker", ()),
        Allowed("`workers state rescale`", "as the worker", ()),
        Allowed("`workers state rescale`", f"topics `{ticks}` and `{topics.changelog}`", ("Alter",)),
        Allowed(
            "`workers dashboard`",
            f"topics `{ticks}`, `{frames}`, `{topics.late}`, `{topics.dead_letters}`, `{topics.changelog}`, "
            f"`{feedback}`",
            ("Read",),
        ),
        Allowed("`workers dashboard`", f"group `{group}`", ("Describe",)),
        Allowed("`workers store`", f"topic `{frames}`", ("Read",)),
        Allowed("`workers store`", f"topic `{feedback}`", ("Read", "Write")),
        Allowed("`workers store`", f"group `{group}-store`", ("Read",)),
    ]
