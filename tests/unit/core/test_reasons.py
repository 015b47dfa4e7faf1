"""Every reason, account and trigger is in the catalogue once, and what counts, stores and shows them agrees with it."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from workers.apps.dashboard.readings import STATUSES as SHOWN_STATUSES
from workers.core.effects import Counts
from workers.core.ledger import REASON_HEADER
from workers.core.pipeline.deduplicate import Deduplicate
from workers.core.pipeline.pipeline import Filter
from workers.core.pipeline.throttle import Throttle
from workers.core.reasons import STATUSES, TRIGGERS, Account, LateReason, Ledger, Reason, Status, Trigger
from workers.core.ticks import DEEPEST_TICK
from workers.settings import Settings
from workers.telemetry.metrics import Metrics, catalogue

ROOT = Path(__file__).parents[3]
WIRE_NAMES = [
    "record_too_large",
    "malformed_json",
    "missing_field",
    "wrong_type",
    "negative_size",
    "key_mismatch",
    "timestamp_out_of_range",
    "future_timestamp",
    "wrong_window",
    "misrouted",
    "clock_jump",
    "processing_failed",
    "frame_too_large",
    "routed_too_large",
    "watermark",
    "expired",
    "outside_session",
    "settled",
    "overlaps",
    "uncorrectable",
    "repeated",
    "duplicate",
    "throttled",
    "filtered",
]


def test_the_names_on_the_wire_stay() -> None:
    """They are in topics, metrics and stored state already: rename none."""
    assert [str(reason) for reason in Reason] == WIRE_NAMES
    assert get_args(Status) == ("provisional", "closed", "final")
    assert get_args(Trigger) == (
        "watermark",
        "late",
        "merged",
        "correction",
        "idle",
        "timeout",
        "partial",
        "expiry",
        "end",
    )


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_a_sentence_with_a_counter_and_a_topic(reason: Reason) -> None:
    assert reason.text.endswith(".")
    assert len(reason.text) < 250
    series = {row.name: row.labels for row in catalogue()}
    assert reason.counter in series
    if reason.account in (Account.LATE, Account.REJECTED):
        assert "reason" in series[reason.counter]
        assert reason.ledger is (Ledger.LATE if reason.account is Account.LATE else Ledger.DEAD_LETTERS)
    if reason.ledger is not None:
        assert hasattr(Settings().topics, reason.ledger)


def test_the_records_read_are_the_sum_of_the_accounts() -> None:
    names = [field.name for field in fields(Counts)]
    assert sorted(names) == sorted(["records", *Account])
    each_once = Counts(**{name: len(Account) if name == "records" else 1 for name in names})
    assert each_once.balance() == 0
    series = {row.name: row.kind for row in catalogue()}
    assert {account.metric for account in Account} <= series.keys()
    assert {name for name in series if name.startswith("workers_ticks_")} - {account.metric for account in Account} == {
        "workers_ticks_in_total",
        "workers_ticks_sent_total",
    }


def test_what_operators_drop_has_a_counter_by_stage() -> None:
    metrics = Metrics()
    for reason in (Reason.DUPLICATE, Reason.THROTTLED, Reason.FILTERED):
        assert reason.account is not None
        metrics.dropped[reason.account].labels("ticks", "0", "1:stage").inc()
        assert metrics.registry.get_sample_value(
            reason.counter, {"topic": "ticks", "partition": "0", "stage": "1:stage"}
        )
    assert all("ledger" in {field.name for field in fields(spec)} for spec in (Deduplicate, Throttle, Filter))


def test_the_depth_told_is_the_depth_taken() -> None:
    assert f"more than {DEEPEST_TICK} levels" in Reason.MALFORMED_JSON.text


def test_the_reasons_of_windows_are_in_the_catalogue() -> None:
    of_windows = [reason for reason in Reason if reason.account is Account.LATE or reason is Reason.REPEATED]
    assert {*get_args(LateReason), Reason.UNCORRECTABLE} == set(of_windows)


def test_every_status_and_trigger_has_its_row() -> None:
    assert tuple(STATUSES) == get_args(Status) == SHOWN_STATUSES
    assert tuple(TRIGGERS) == get_args(Trigger)
    for statuses, text in TRIGGERS.values():
        assert statuses
        assert set(statuses) <= set(STATUSES)
        assert text.endswith(".")


def test_the_page_of_the_dashboard_numbers_the_statuses_alike() -> None:
    script = (ROOT / "workers" / "apps" / "dashboard" / "static" / "page.js").read_text()
    found = re.search(r"STATUS_NAMES = \[(.*?)\]", script)
    assert found is not None
    assert tuple(re.findall(r'"(\w+)"', found[1])) == tuple(STATUSES)


def test_the_native_lane_writes_the_names_that_the_catalogue_knows() -> None:
    written = (ROOT / "native" / "src" / "frames.rs").read_text()
    names = set(re.findall(r'=> "(\w+)"', written))
    assert names == {*STATUSES, *TRIGGERS}


@pytest.mark.parametrize(
    ("text", "module"),
    [
        ("__streams", "core/ledger.py"),
        (f'"{REASON_HEADER}"', "core/ledger.py"),
        ('["provisional", "closed"', "core/reasons.py"),
        ('= ("provisional", "closed"', None),
    ],
)
def test_names_of_headers_and_statuses_stand_in_one_module(text: str, module: str | None) -> None:
    package = ROOT / "workers"
    found = [str(path.relative_to(package)) for path in package.rglob("*.py") if text in path.read_text()]
    assert found == ([] if module is None else [module])
