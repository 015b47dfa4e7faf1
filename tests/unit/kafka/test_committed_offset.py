"""A coordinator that loads is not taken for one that has no offset, whatever version of the answer it gives.

``tests/chaos/test_outage.py`` asks a real one while it starts; how much of its loading that meets is chance.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from aiokafka.errors import GroupLoadInProgressError, NotCoordinatorForGroupError
from aiokafka.protocol.api import Response
from aiokafka.protocol.commit import OffsetFetchResponse_v1, OffsetFetchResponse_v3

from workers.kafka.internals import committed_offset

LOADING, NOT_COORDINATOR = 14, 16
OFFSET, NONE = 41, -1


def old(code: int, offset: int) -> Response:
    return OffsetFetchResponse_v1([("ticks", [(3, offset, "", code)])])


def new(code: int, offset: int, *, topics: bool = True) -> Response:
    return OffsetFetchResponse_v3(0, [("ticks", [(3, offset, "", 0)])] if topics else [], code)


async def ask(answer: Response) -> int | None:
    """What the function makes of the answer, when it has gone over the wire."""

    async def send(_: object) -> Response:
        return type(answer).decode(answer.encode())

    coordinator = SimpleNamespace(group_id="group", _send_req=send)
    return await committed_offset(SimpleNamespace(_coordinator=coordinator), "ticks", 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (old(LOADING, NONE), GroupLoadInProgressError),
        (new(LOADING, NONE), GroupLoadInProgressError),
        (new(LOADING, NONE, topics=False), GroupLoadInProgressError),
        (new(NOT_COORDINATOR, NONE, topics=False), NotCoordinatorForGroupError),
    ],
    ids=["of the partition", "of the answer", "without partitions", "moved"],
)
async def test_an_answer_with_an_error_is_one(answer: Response, error: type[Exception]) -> None:
    with pytest.raises(error):
        await ask(answer)


async def test_an_answer_without_an_error_is_the_offset_or_none() -> None:
    assert await ask(old(0, OFFSET)) == OFFSET
    assert await ask(new(0, OFFSET)) == OFFSET
    assert await ask(new(0, NONE)) is None
