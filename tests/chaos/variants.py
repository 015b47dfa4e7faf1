"""Applications with operators, other windows, corrections and bars from bars: settings, feed, and model of each."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from tests.chaos.feed import Feed, Message
from tests.support import bars_oracle, corrections_oracle, oracle, pipeline_oracle, window_oracles
from tests.support.pipeline_oracle import Account, Item
from tests.support.verify import Expected, Model

__all__ = ["CORRECTIONS", "FIVE_SECONDS", "GAPS", "PIPELINE", "SECONDS", "SESSIONS", "Trades", "Variant"]

MS = 1_000_000
KEY_TTL_NS = 60_000 * MS
LAG_NS = 500 * MS

Ticks = Mapping[int, Sequence[oracle.Record]]


@dataclass(frozen=True)
class Variant:
    """An application: what `Arena.configure` is given, but for where the ticks come from and what is guaranteed.

    ``shows`` says what its topics must hold, or the run proved nothing: triggers of frames, reasons of the ledger,
    filled bars.
    """

    model: Callable[[str], Model]
    settings: Mapping[str, object] = field(default_factory=dict)
    pipeline: str = ""
    payload: str = "ohlcv"
    shows: tuple[str, ...] = ("watermark", "late")


class Trades(Feed):
    """Ticks with ids that count up by symbol and venues; some are sent again, and some are about earlier ones."""

    def __init__(
        self, seed: int, *, partitions: int, repeats: float = 0.0, messages: float = 0.0, speed: float = 2.0
    ) -> None:
        super().__init__(seed, partitions=partitions, speed=speed)
        self._own = random.Random(seed + 1)
        self._repeats, self._messages = repeats, messages
        self._sent: deque[Message] = deque(maxlen=4_000)
        self._ids: dict[str, int] = {}

    def _tick(self, symbol: str) -> Message:
        rng = self._own
        if self._sent and rng.random() < self._repeats:
            return self._sent[-min(len(self._sent), int(rng.expovariate(1 / 600)) + 1)]
        if symbol in self._ids and rng.random() < self._messages:
            return self._about_earlier(symbol)
        partition, key, value = super()._tick(symbol)
        self._ids[symbol] = number = self._ids.get(symbol, 0) + rng.choice((1, 1, 1, 1, 3))
        kind, venue = rng.choice(("T", "T", "T", "quote")), rng.choice(("N", "N", "N", "OTC"))
        fields = {**orjson.loads(value or b""), "id": number, "kind": kind, "venue": venue}
        if rng.random() < 0.05:
            fields["ts"] -= rng.randrange(300, 1_500)  # many windows shall come out again
        message = (partition, key, orjson.dumps(fields))
        self._sent.append(message)
        return message

    def _about_earlier(self, symbol: str) -> Message:
        rng = self._own
        back = int(rng.expovariate(1 / rng.choice((3, 100))))
        fields = {"symbol": symbol, "kind": rng.choice("XC"), "ref": max(self._ids[symbol] - back, 0)}
        numbers = {"price": round(rng.uniform(1, 500), 2), "size": rng.choice((1, 0.1, "2.50"))}
        return self._message(symbol, orjson.dumps({**fields, **numbers}))


def config_of(size_ns: int, lateness_ns: int = 500 * MS, payload: str = "ohlcv") -> oracle.Config:
    return oracle.Config(size_ns, LAG_NS, lateness_ns, key_ttl_ns=KEY_TTL_NS, payload=payload)  # type: ignore[arg-type]


def each_partition(run: Callable[[Sequence[oracle.Record]], oracle.Outcome]) -> Callable[[str], Model]:
    """The model of an application without operators."""

    def model(ticks: Ticks) -> Expected:
        expected = Expected()
        for partition, records in ticks.items():
            expected.add(partition, run(records))
        return expected

    return lambda app: model


# -- a pipeline -------------------------------------------------------------------------------------------------------

_CONFLATED = config_of(1_000 * MS)
_RULES: list[tuple[str | None, str | None, object, str]] = [
    ("A1*", None, None, "{app}-a1"),
    (None, "venue", "OTC", "{app}-otc"),
]
_TABLES = """
[[pipeline]]
operator = "deduplicate"
id = "id"
ttl = "3s"
gaps = true
[[pipeline]]
operator = "throttle"
rate = 20
burst = 3
[[pipeline]]
operator = "filter"
function = "tests.integration.pipeline_functions:is_trade"
ledger = true
[[pipeline]]
operator = "router"
rules = [{ symbol = "A1*", to = "{app}-a1" }, { field = "venue", equals = "OTC", to = "{app}-otc" }]
[[pipeline]]
operator = "throttle"
mode = "conflate"
interval = "100ms"
"""


def _pipeline(app: str) -> Model:
    rules = [(symbol, name, value, to.replace("{app}", app)) for symbol, name, value, to in _RULES]

    def model(ticks: Ticks) -> Expected:
        expected = Expected(routed={to: {} for *_, to in rules})
        for partition, records in ticks.items():
            verdicts = [(record, oracle._reject_or_tick(_CONFLATED, record)) for record in records]
            rejected = [(partition, record.offset, verdict) for record, verdict in verdicts if isinstance(verdict, str)]
            account = Account()
            items = [_item(record, verdict) for record, verdict in verdicts if not isinstance(verdict, str)]
            going = _operators(items, account, rules)
            outcome = oracle.run(_CONFLATED, [item.as_record() for item in going], partition=partition)
            reasons = [reason for _, reason in account.dropped]
            expected.add(
                partition,
                outcome,
                rejected=len(rejected),
                deduplicated=reasons.count("duplicate"),
                throttled=reasons.count("throttled"),
                filtered=reasons.count("filtered"),
                routed_away=sum(map(len, account.routed.values())),
                held=account.held,
            )
            expected.rejected += rejected
            expected.late += [(partition, *drop) for drop in account.dropped]
            for to, sent in account.routed.items():
                for record in sent:
                    key = (record.key or b"").decode()
                    expected.routed[to].setdefault(key, []).append(record.value or b"")
        return expected

    return model


def _item(record: oracle.Record, tick: oracle._Tick) -> Item:
    return Item(tick.symbol, tick.ts_ns, orjson.loads(tick.value), record, tick.value)


def _operators(
    items: Sequence[Item], account: Account, rules: Sequence[tuple[str | None, str | None, object, str]]
) -> list[Item]:
    items = pipeline_oracle.deduplicate(
        items, account, names=["id"], ttl_ns=3_000 * MS, gaps=True, max_ids=100_000, key_ttl_ns=KEY_TTL_NS
    )
    items = pipeline_oracle.throttle(
        items, account, spacing_ns=50 * MS, burst=3, per_symbol=True, key_ttl_ns=KEY_TTL_NS
    )
    items = pipeline_oracle.keep(items, account, lambda item: item.fields.get("kind") != "quote")
    items = pipeline_oracle.route(items, account, rules=rules, default="window")
    return pipeline_oracle.conflate(items, account, interval_ns=100 * MS, margin_ns=LAG_NS, key_ttl_ns=KEY_TTL_NS)


# -- corrections ------------------------------------------------------------------------------------------------------

_CORRECTED = config_of(1_000 * MS, 2_000 * MS, "both")


def _corrections(ticks: Ticks) -> Expected:
    expected = Expected()
    for partition, records in ticks.items():
        taken: list[oracle.Record] = []
        rejected = []
        for record in records:
            verdict = None if _is_message(record) else oracle._reject_or_tick(_CORRECTED, record)
            if isinstance(verdict, str):
                rejected.append((partition, record.offset, verdict))
            else:
                taken.append(record)
        outcome = corrections_oracle.run(_CORRECTED, taken)
        assert not outcome.malformed
        # The oracle counts messages as neither in nor out.
        more = {"late": len(outcome.uncorrectable), "corrected": outcome.corrected, "rejected": len(rejected)}
        expected.add(partition, outcome.lane, **more)
        expected.rejected += rejected
        expected.late += [(partition, offset, "uncorrectable") for offset in outcome.uncorrectable]
    return expected


def _is_message(record: oracle.Record) -> bool:
    try:
        fields = orjson.loads(record.value or b"")
    except orjson.JSONDecodeError:
        return False
    return isinstance(fields, dict) and fields.get("kind") in ("X", "C")


# -- bars from bars ---------------------------------------------------------------------------------------------------

_BARS = bars_oracle.Config(size=5_000, lateness=2_000, ttl=KEY_TTL_NS // MS)


def _bars(children: Ticks) -> Expected:
    expected = Expected()
    for partition, records in children.items():
        model = bars_oracle.Model(_BARS).run([orjson.loads(record.value or b"") for record in records])
        expected.frames |= model.frames
        expected.late += [(partition, records[at].offset, reason) for at, reason in model.late]
        expected.rejected += [(partition, records[at].offset, "wrong_window") for at in model.misplaced]
        expected.counts[partition] = {
            "records": len(records),
            "aggregated": model.aggregated,
            "late": len(model.late),
            "rejected": len(model.misplaced),
            "deduplicated": model.deduplicated,
        }
    return expected


# -- all of them ------------------------------------------------------------------------------------------------------

_SECOND = config_of(1_000 * MS, 2_000 * MS)
_SESSION = config_of(300 * MS, 2_000 * MS, "both")
_GAP = config_of(500 * MS, 1_500 * MS)

PIPELINE = Variant(_pipeline, pipeline=_TABLES, shows=("watermark", "duplicate", "throttled", "filtered"))
SESSIONS = Variant(
    each_partition(lambda records: window_oracles.run_sessions(_SESSION, records)),
    {"window__kind": "session", "window__gap": "300ms", "window__size": None, "window__allowed_lateness": "2s"},
    payload="both",
    shows=("watermark", "late", "merged"),
)
GAPS = Variant(
    each_partition(lambda records: window_oracles.run_gaps(_GAP, 5_000 * MS, records)),
    {"window__size": "500ms", "window__allowed_lateness": "1500ms", "window__fill_gaps": "5s"},
    shows=("watermark", "late", "filled"),
)
CORRECTIONS = Variant(
    lambda app: _corrections,
    {
        "window__allowed_lateness": "2s",
        "corrections__field": "kind",
        "corrections__cancel": ["X"],
        "corrections__correct": ["C"],
        "corrections__id": "id",
        "corrections__refers_to": "ref",
    },
    payload="both",
    shows=("watermark", "late", "correction", "uncorrectable"),
)
SECONDS = Variant(each_partition(lambda records: oracle.run(_SECOND, records)), {"window__allowed_lateness": "2s"})
FIVE_SECONDS = Variant(
    lambda app: _bars,
    {"tick__format": "frames", "window__size": "5s", "window__lag": "0s", "window__allowed_lateness": "2s"},
)
