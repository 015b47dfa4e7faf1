"""What a cluster must allow names every topic and group of an application, as the settings have them."""

from __future__ import annotations

import os

from workers.kafka.acls import needed_acls
from workers.kafka.topics import planned_topics
from workers.settings import load_settings


def test_every_topic_and_group_is_named_with_what_is_done_there() -> None:
    settings = load_settings(
        None, environ={"WORKERS_CONFIG": os.devnull}, overrides={"application_id": "bars-5s", "topics.frames": "bars"}
    )
    of_worker = [each for each in needed_acls(settings) if each.who == "worker"]
    done = {
        plan.name: {name for each in of_worker if f"`{plan.name}`" in each.resource for name in each.operations}
        for plan in planned_topics(settings)
    }
    assert done == {
        "ticks": {"Read"},
        "bars": {"Write"},
        "bars-5s-late": {"Write"},
        "bars-5s-dead-letters": {"Write"},
        "bars-5s-changelog": {"Read", "Write"},
        "bars-5s-feedback": {"Read", "Write"},
    }
    resources = {each.resource for each in needed_acls(settings)}
    assert {"group `bars-5s`", "group `bars-5s-store`", "transactional ids with prefix `bars-5s-`"} <= resources
