"""Settings that can't be together, and those that may not be meant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from workers.core.windows.kinds import KINDS
from workers.settings.jaas import parse_jaas
from workers.settings.pipeline import OPERATORS
from workers.settings.topics import DERIVED_TOPICS
from workers.settings.windows import WindowSettings
from workers.times import NS_PER_MS, format_duration

if TYPE_CHECKING:
    from workers.settings.model import Settings

__all__ = ["Conflict", "ConflictsError", "advice", "conflicts_in"]


class Conflict(NamedTuple):
    """Settings that can't be together: which, and why."""

    keys: tuple[str, ...]
    why: str


class ConflictsError(ValueError):
    """Carries conflicts, with the settings they were found in, through pydantic."""

    def __init__(self, settings: Settings, conflicts: list[Conflict]) -> None:
        super().__init__("; ".join(f"{', '.join(conflict.keys)}: {conflict.why}" for conflict in conflicts))
        self.settings = settings
        self.conflicts = conflicts


def _topic_conflicts(settings: Settings) -> Iterator[Conflict]:
    topics = settings.topics
    owner: dict[str, str] = {}
    for name in ("ticks", "frames", *DERIVED_TOPICS):
        # Kafka refuses topics that differ only in . and _, since its metrics can't tell them apart.
        other = owner.setdefault(getattr(topics, name).replace(".", "_"), name)
        if other != name:
            yield Conflict((f"topics.{other}", f"topics.{name}"), "topics must differ, by more than . and _")


def _tick_conflicts(settings: Settings) -> Iterator[Conflict]:
    owner: dict[str, str] = {}
    for name in ("symbol", "ts", "price", "size"):
        other = owner.setdefault(getattr(settings.tick, name), name)
        if other != name:
            yield Conflict((f"tick.{other}", f"tick.{name}"), "the fields of a tick must differ")
    needed = settings.window.lag + settings.window.allowed_lateness
    if 0 < settings.tick.max_jump < needed:
        why = (
            f"max_jump must be 0s or at least lag + allowed_lateness = {format_duration(needed)}, or a tick that is "
            "merely out of order would send the one before it to the dead letters"
        )
        yield Conflict(("tick.max_jump", "window.lag", "window.allowed_lateness"), why)


def _window_conflicts(settings: Settings) -> Iterator[Conflict]:
    window = settings.window
    if window.size % NS_PER_MS:
        yield Conflict(("window.size",), "must be a whole number of milliseconds, as frames name windows in them")
    if window.lag + window.allowed_lateness == 0 and settings.tick.format == "json":
        yield Conflict(
            ("window.lag", "window.allowed_lateness"),
            "both 0, every tick would be late (a tick is late at watermark - allowed_lateness itself); 1ns is enough",
        )
    if window.emit == "final" and window.emit_partial:
        yield Conflict(("window.emit", "window.emit_partial"), "final promises one frame a window, so no partial ones")
    if window.payload == "items" and window.aggregation != "ohlcv":
        yield Conflict(
            ("window.payload", "window.aggregation"),
            "the aggregation's result would be thrown away; use payload both, or ohlcv for the result alone",
        )


def _kind_conflicts(settings: Settings) -> Iterator[Conflict]:
    window = settings.window
    own = KINDS[window.kind].settings()
    for name in sorted({name for kind in KINDS.values() for name in kind.settings()} - set(own)):
        # A value that is the default may stay: files that list every setting have it.
        if getattr(window, name) != WindowSettings.model_fields[name].default:
            yield Conflict((f"window.{name}", "window.kind"), f"means nothing with kind {window.kind}")
    for name in ("hop", "offset", "gap", "close_grace"):
        if getattr(window, name) % NS_PER_MS:
            why = "must be a whole number of milliseconds, as frames name windows in them"
            yield Conflict((f"window.{name}",), why)
    if window.kind == "calendar":
        if window.calendar is None:
            yield Conflict(("window.kind", "window.calendar"), "kind calendar needs the name of one, like XNYS")
        return  # how long its sessions are is known when it is loaded
    keys = tuple(f"window.{name}" for name in own if name != "fill_gaps")
    windows = KINDS[window.kind].of(window)
    try:
        assigner = windows.assigner()
    except ValueError as error:
        yield Conflict(("window.kind", *keys), str(error))
        return
    needed = assigner.longest_ns + window.lag + window.allowed_lateness
    if window.key_ttl is not None and window.key_ttl < needed:
        keys = ("window.key_ttl", keys[0], "window.lag", "window.allowed_lateness")
        why = f"key_ttl must be at least {windows.length} + lag + allowed_lateness = {format_duration(needed)}"
        yield Conflict(keys, why)


_MOST_FILLED: Final = 10_000  # bars that one tick can bring out


def _gap_conflicts(settings: Settings) -> Iterator[Conflict]:
    window = settings.window
    if not window.fill_gaps or window.kind != "tumbling":
        return
    if window.payload != "ohlcv" or window.aggregation != "ohlcv":
        keys = ("window.fill_gaps", "window.payload", "window.aggregation")
        yield Conflict(keys, "only bars can be filled: expected payload ohlcv and aggregation ohlcv")
    if not window.size <= window.fill_gaps <= _MOST_FILLED * window.size:
        why = f"fill_gaps must be at least size, or nothing is filled, and at most {_MOST_FILLED:,} times size"
        yield Conflict(("window.fill_gaps", "window.size"), why)


_NOT_OF_FRAMES: Final = (
    ("tick", ("symbol", "ts", "price", "size", "max_future_skew", "max_jump")),
    ("window", ("payload", "aggregation", "watermark_scope", "fill_gaps")),
    ("corrections", ("field",)),
)
"""The keys that frames leave no meaning: what they would change was decided by the application that made them."""


def _frames_conflicts(settings: Settings) -> Iterator[Conflict]:
    if settings.tick.format == "json":
        return
    for section, names in _NOT_OF_FRAMES:
        held = getattr(settings, section)
        for name in names:
            if getattr(held, name) != type(held).model_fields[name].default:
                yield Conflict((f"{section}.{name}", "tick.format"), "means nothing where bars are made of frames")
    if settings.window.lag:
        why = "frames come when their own application has waited, so there is nothing to wait for: expected 0s"
        yield Conflict(("window.lag", "tick.format"), why)
    if settings.window.kind == "session":
        why = "sessions are made of ticks; frames need windows that they are equal parts of"
        yield Conflict(("window.kind", "tick.format"), why)
    if settings.pipeline:
        yield Conflict(("pipeline", "tick.format"), "operators work on ticks; put them where the frames are made")


def _correction_conflicts(settings: Settings) -> Iterator[Conflict]:
    given = settings.corrections
    if given.field is None:
        for name in ("cancel", "correct", "id", "refers_to"):
            if getattr(given, name):
                yield Conflict((f"corrections.{name}", "corrections.field"), "means nothing without field")
        return
    if given.id is None:
        yield Conflict(("corrections.field", "corrections.id"), "a trade is found by its id: expected its field")
    if not given.cancel and not given.correct:
        keys = ("corrections.field", "corrections.cancel", "corrections.correct")
        yield Conflict(keys, "expected what it says in messages that cancel, or that correct")
    both = set(given.cancel) & set(given.correct)
    if both:
        why = f"{', '.join(sorted(both))} can't mean both"
        yield Conflict(("corrections.cancel", "corrections.correct"), why)
    if settings.window.fill_gaps:
        why = "of a bar whose trades are all cancelled, the close before may be known no more"
        yield Conflict(("corrections.field", "window.fill_gaps"), why)


def _flow_conflicts(settings: Settings) -> Iterator[Conflict]:
    lane, pressure, store = settings.lane, settings.backpressure, settings.store
    if lane.low_watermark >= lane.high_watermark:
        yield Conflict(("lane.low_watermark", "lane.high_watermark"), "low must be below high")
    if lane.batch_size > lane.capacity:
        yield Conflict(("lane.batch_size", "lane.capacity"), "a batch must fit in the lane")
    if lane.capacity_bytes < settings.kafka.max_partition_fetch_bytes:
        yield Conflict(("lane.capacity_bytes", "kafka.max.partition.fetch.bytes"), "a fetch must fit in the lane")
    if store.low_watermark >= store.high_watermark:
        yield Conflict(("store.low_watermark", "store.high_watermark"), "low must be below high")
    if store.batch_size > store.queue_capacity:
        yield Conflict(("store.batch_size", "store.queue_capacity"), "a batch must fit in the queue")
    if pressure.soft_lag >= pressure.hard_lag:
        yield Conflict(("backpressure.soft_lag", "backpressure.hard_lag"), "soft must be below hard")
    if pressure.rate_scale_hard > pressure.rate_scale_soft:
        yield Conflict(
            ("backpressure.rate_scale_hard", "backpressure.rate_scale_soft"), "HARD must not allow more than SOFT"
        )


def _kafka_conflicts(settings: Settings) -> Iterator[Conflict]:
    kafka, exactly_once = settings.kafka, settings.processing_guarantee == "exactly_once"
    if kafka.heartbeat_interval_ms * 3 > kafka.session_timeout_ms:
        yield Conflict(
            ("kafka.heartbeat.interval.ms", "kafka.session.timeout.ms"),
            "three heartbeats must fit in a session, or one lost packet costs a rebalance",
        )
    if exactly_once and settings.commit_interval * 10 > kafka.transaction_timeout_ms * NS_PER_MS:
        yield Conflict(
            ("commit_interval", "kafka.transaction.timeout.ms"),
            "ten commit intervals must fit in the transaction timeout, or a slow commit is aborted",
        )
    if exactly_once and kafka.acks != "all":
        yield Conflict(("kafka.acks", "processing_guarantee"), "exactly_once needs acks all")
    if not exactly_once and kafka.acks == "0":
        yield Conflict(("kafka.acks", "processing_guarantee"), "with acks 0 a lost frame is not even noticed")
    if kafka.fetch_max_wait_ms >= kafka.request_timeout_ms:
        yield Conflict(("kafka.fetch.max.wait.ms", "kafka.request.timeout.ms"), "a fetch would time out while waiting")
    if kafka.max_partition_fetch_bytes > kafka.fetch_max_bytes:
        yield Conflict(("kafka.max.partition.fetch.bytes", "kafka.fetch.max.bytes"), "a part exceeds the whole")
    if kafka.batch_size > kafka.max_request_size:
        yield Conflict(("kafka.batch.size", "kafka.max.request.size"), "a batch must fit in a request")


def _tls_conflicts(settings: Settings) -> Iterator[Conflict]:
    kafka = settings.kafka
    given = [
        key
        for key, value in (
            ("ssl.ca.location", kafka.ssl_ca_location),
            ("ssl.certificate.location", kafka.ssl_certificate_location),
            ("ssl.key.location", kafka.ssl_key_location),
            ("ssl.key.password", kafka.ssl_key_password),
        )
        if value is not None
    ]
    if not kafka.uses_tls:
        for key in given:
            why = "has no effect: the connection would not be encrypted; expected SSL or SASL_SSL"
            yield Conflict((f"kafka.{key}", "kafka.security.protocol"), why)
    for key in given:
        if key.startswith("ssl.key.") and kafka.ssl_certificate_location is None:
            yield Conflict((f"kafka.{key}", "kafka.ssl.certificate.location"), "a key needs its certificate")


def _login_conflicts(settings: Settings) -> Iterator[Conflict]:
    kafka = settings.kafka
    jaas = kafka.sasl_jaas_config
    pairs = {"kafka.sasl.username": kafka.sasl_username, "kafka.sasl.password": kafka.sasl_password}
    given = [key for key, value in (*pairs.items(), ("kafka.sasl.jaas.config", jaas)) if value is not None]
    if not kafka.uses_sasl:
        for key in given:
            why = "has no effect: nobody would log in; expected SASL_SSL or SASL_PLAINTEXT"
            yield Conflict((key, "kafka.security.protocol"), why)
        return
    if jaas is None:
        for key in pairs:
            if key not in given:
                yield Conflict((key, "kafka.security.protocol"), "a login needs sasl.username and sasl.password")
        return
    if len(given) > 1:
        yield Conflict(tuple(given), "the login is given twice; use either the JAAS text or name and password")
    try:
        module = parse_jaas(jaas.get_secret_value()).module
    except ValueError as error:
        yield Conflict(("kafka.sasl.jaas.config",), str(error))
        return
    if not kafka.sasl_mechanism.startswith(module):
        keys = ("kafka.sasl.jaas.config", "kafka.sasl.mechanism")
        yield Conflict(keys, f"the JAAS text logs in by {module}, the mechanism is another")


def _pipeline_conflicts(settings: Settings) -> Iterator[Conflict]:
    for position, operator in enumerate(settings.pipeline, 1):
        name = next(name for name, kind in OPERATORS.items() if isinstance(operator, kind))
        for keys, why in operator.conflicts(settings):
            yield Conflict(keys, f"pipeline entry {position} ({name}): {why}")


_CHECKS: Final[tuple[Callable[[Settings], Iterator[Conflict]], ...]] = (
    _topic_conflicts,
    _tick_conflicts,
    _window_conflicts,
    _kind_conflicts,
    _gap_conflicts,
    _frames_conflicts,
    _correction_conflicts,
    _flow_conflicts,
    _kafka_conflicts,
    _tls_conflicts,
    _login_conflicts,
    _pipeline_conflicts,
)


def conflicts_in(settings: Settings) -> list[Conflict]:
    """What can't be together in ``settings``, section by section."""
    return [conflict for check in _CHECKS for conflict in check(settings)]


def advice(settings: Settings) -> list[str]:
    """What is possible and may not be meant, a sentence each: for a log at the start, and ``workers config check``."""
    tick, window = settings.tick, settings.window
    waited = window.lag + window.allowed_lateness
    if tick.format == "frames" or tick.max_future_skew <= waited:
        return []
    return [
        f"tick.max_future_skew is {format_duration(tick.max_future_skew)} and window.lag + window.allowed_lateness "
        f"{format_duration(waited)}: one tick from such a fast clock can make up to "
        f"{format_duration(tick.max_future_skew - waited)} of its symbol's ticks late; a smaller skew or more lag "
        f"limits that"
    ]
