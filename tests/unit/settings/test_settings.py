"""Settings: where values come from, what is refused and how it is said, and that secrets stay secret."""

from __future__ import annotations

import asyncio
import os
import pickle
import re
import shutil
import ssl
import subprocess
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import cast

import pytest
from aiokafka import AIOKafkaClient, AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import workers.settings as module
from workers.core.lane import Input, Lane
from workers.core.pipeline.deduplicate import Deduplicate
from workers.core.pipeline.pipeline import Filter, Map, Route, Router
from workers.core.pipeline.throttle import Conflate, Throttle
from workers.errors import ConfigError
from workers.kafka.options import client_options, consumer_options, producer_options
from workers.settings import (
    METRICS_OFF,
    OPERATORS,
    KafkaSettings,
    Operator,
    Settings,
    TopicsSettings,
    WindowSettings,
    load_settings,
)
from workers.settings.kafka import MANAGED
from workers.settings.lane import lane_spec
from workers.settings.reference import ReferenceRow, describe_settings, operator_reference, reference
from workers.times import NS_PER_MS, NS_PER_SECOND, format_duration

CONFIG = Path(__file__).resolve().parents[3] / "config"
SECRET = "correct-horse-battery"
MAX_NS = 366 * 86_400 * NS_PER_SECOND
LOGIN = {"KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT", "KAFKA_SASL_USERNAME": "login"}


@pytest.fixture(autouse=True)
def _empty_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "x.toml") -> Path:
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    return path


def load(toml: str = "", environ: Mapping[str, str] | None = None, **flags: object) -> Settings:
    """Settings of a file's text, an environment (empty unless given) and flags whose ``__`` stand for dots."""
    overrides = {name.replace("__", "."): value for name, value in flags.items()}
    return load_settings(write(toml), environ=environ or {}, overrides=overrides)


def problems(toml: str = "", environ: Mapping[str, str] | None = None, **flags: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(toml, environ, **flags)
    return str(caught.value).splitlines()


def problem(toml: str = "", environ: Mapping[str, str] | None = None, **flags: object) -> str:
    lines = problems(toml, environ, **flags)
    assert len(lines) == 1, lines
    return lines[0]


def rows(settings: Settings) -> dict[str, tuple[str, str]]:
    return {row.key: (row.value, row.source) for row in describe_settings(settings)}


# -- precedence -------------------------------------------------------------------------------------------------------


def test_without_any_source_the_defaults_hold() -> None:
    settings = load_settings(environ={})
    assert settings == Settings()
    assert settings.window.size == 5 * NS_PER_SECOND
    assert settings.commit_interval == 150 * NS_PER_MS
    assert {source for _, source in rows(settings).values()} == {"default"}


def test_flags_beat_environment_beats_file_beats_default() -> None:
    toml = '[window]\nsize = "1s"\nlag = "1s"\nidle_after = "9s"'
    environ = {"WORKERS__WINDOW__SIZE": "2s", "WORKERS__WINDOW__LAG": "3s"}
    settings = load(toml, environ, window__size="4s")
    shown = rows(settings)
    assert shown["window.size"] == ("4s", "flag")
    assert shown["window.lag"] == ("3s", "env WORKERS__WINDOW__LAG")
    assert shown["window.idle_after"] == ("9s", "file x.toml")
    assert shown["window.allowed_lateness"] == ("0s", "default")
    assert settings.window.size == 4 * NS_PER_SECOND


def test_a_flag_that_was_not_given_overrides_nothing() -> None:
    assert load('[window]\nsize = "1s"', window__size=None).window.size == NS_PER_SECOND


def test_a_given_path_beats_the_variable_which_beats_the_working_directory() -> None:
    Path("config").mkdir()
    write('application_id = "cwd"', "config/workers.toml")
    variable = {"WORKERS_CONFIG": str(write('application_id = "variable"', "v.toml"))}
    path = write('application_id = "path"', "p.toml")
    assert load_settings(environ={}).application_id == "cwd"
    assert load_settings(environ=variable).application_id == "variable"
    assert load_settings(path, environ=variable).application_id == "path"


def test_the_process_environment_is_used_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("KAFKA_", "WORKERS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WORKERS__TOPICS__PARTITIONS", "3")
    assert load_settings().topics.partitions == 3


def test_bootstrap_servers_come_from_the_variable_kafka_users_know() -> None:
    environ = {"KAFKA_BOOTSTRAP_SERVERS": "a:1, [::1]:2"}
    assert load('bootstrap_servers = "file:9"', environ).bootstrap_servers == "a:1,[::1]:2"
    environ["WORKERS__BOOTSTRAP_SERVERS"] = "own:3"
    assert load("", environ).bootstrap_servers == "own:3"


def test_environment_text_becomes_the_type_its_key_needs() -> None:
    environ = {
        "WORKERS__TOPICS__PARTITIONS": "1_6",
        "WORKERS__TOPICS__CREATE": "False",
        "WORKERS__LANE__LOW_WATERMARK": "0.5",
        "WORKERS__METRICS__PORT": "off",
        "WORKERS__KAFKA__SESSION__TIMEOUT__MS": "30000",
        "WORKERS__KAFKA__FETCH_MIN_BYTES": "7",
        "KAFKA_ACKS": "-1",
        "KAFKA_CLIENT_ID": "me",
    }
    settings = load("", environ)
    assert (settings.topics.partitions, settings.topics.create) == (16, False)
    assert (settings.lane.low_watermark, settings.metrics.port) == (0.5, METRICS_OFF)
    assert (settings.kafka.session_timeout_ms, settings.kafka.fetch_min_bytes) == (30_000, 7)
    assert (settings.kafka.acks, settings.kafka.client_id) == ("all", "me")
    assert rows(settings)["metrics.port"] == ("off", "env WORKERS__METRICS__PORT")


def test_an_empty_variable_counts_as_not_set() -> None:
    assert load("", {"WORKERS__WINDOW__SIZE": "", "KAFKA_SASL_PASSWORD": ""}) == Settings()


def test_kafka_variables_of_brokers_and_of_kubernetes_are_left_alone() -> None:
    environ = {
        "KAFKA_HEAP_OPTS": "-Xmx1g",
        "KAFKA_ADVERTISED_LISTENERS": "PLAINTEXT://x:9092",
        "KAFKA_PORT": "tcp://10.0.0.1:9092",
        "KAFKA_SERVICE_HOST": "10.0.0.1",
        "WORKERS_METRICS_PORT": "tcp://10.0.0.2:9404",
        "WORKERS_SERVICE_HOST": "10.0.0.2",
    }
    assert load("", environ) == Settings()


def test_dotted_kafka_names_may_be_quoted_or_not() -> None:
    plain = load("[kafka]\nsession.timeout.ms = 20000\nmax.poll.interval.ms = 1000")
    quoted = load('[kafka]\n"session.timeout.ms" = 20000\n"max.poll.interval.ms" = "1000"')
    tables = load("[kafka.session.timeout]\nms = 20000\n[kafka.max.poll]\ninterval.ms = 1000")
    assert plain == quoted == tables
    assert plain.kafka.session_timeout_ms == 20_000


def test_topics_follow_the_application_unless_named() -> None:
    topics = load('application_id = "app"\n[topics]\nlate = "mine"').topics
    assert (topics.late, topics.dead_letters, topics.changelog, topics.feedback) == (
        "mine",
        "app-dead-letters",
        "app-changelog",
        "app-feedback",
    )
    direct = Settings(application_id="app", topics=TopicsSettings(late="mine"))
    assert direct.topics == topics


def test_where_a_value_came_from_does_not_make_settings_differ() -> None:
    settings = load('[window]\nsize = "5s"')
    assert settings == Settings()
    assert hash(settings) == hash(Settings())
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert settings != load(window__size="1s")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().window.size = 1


# -- durations --------------------------------------------------------------------------------------------------------


@given(st.integers(0, MAX_NS))
def test_a_duration_survives_being_written_and_read(duration_ns: int) -> None:
    environ = {"WORKERS__WINDOW__IDLE_AFTER": format_duration(duration_ns)}
    settings = load_settings(write(""), environ=environ)
    assert settings.window.idle_after == duration_ns
    assert rows(settings)["window.idle_after"][0] == environ["WORKERS__WINDOW__IDLE_AFTER"]


@given(st.integers(MAX_NS + 1, 2 * MAX_NS))
def test_no_duration_is_longer_than_366_days(duration_ns: int) -> None:
    assert "expected duration 0s to 366d" in problem(window__idle_after=format_duration(duration_ns))


@pytest.mark.parametrize("value", ["5", "1.5", "true", '"5"', '"-5s"', '"5 parsecs"', '""', "[]", "1979-05-27"])
def test_what_is_no_duration_with_a_unit_is_refused(value: str) -> None:
    line = problem(f"[window]\nsize = {value}")
    assert line.startswith("x.toml: window.size = ")
    assert line.endswith("expected duration 1ms to 366d")


@pytest.mark.parametrize("value", ["0", '"0"', '"0s"'])
def test_zero_needs_no_unit(value: str) -> None:
    assert load(f'[window]\nlag = {value}\nallowed_lateness = "1s"').window.lag == 0


def test_a_timedelta_is_a_duration_in_code() -> None:
    window = WindowSettings.model_validate({"size": timedelta(seconds=7)})
    assert window.size == 7 * NS_PER_SECOND


# -- unknown keys -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ("[window]\nsise = 1", "x.toml: window.sise is not a setting; did you mean window.size"),
        ("[windows]\nsize = 1", "x.toml: windows is not a setting; did you mean window?"),
        ("lag = 1", "x.toml: lag is not a setting; did you mean window.lag?"),
        ("[window]\nidle = 1", "x.toml: window.idle is not a setting; did you mean window.idle_after"),
        ("zzzzzz = 1", "x.toml: zzzzzz is not a setting"),
        ("[kafka]\nsession.timeout = 1", "x.toml: kafka.session.timeout is not a setting; did you mean"),
        ('"session.timeout.ms" = 1', "did you mean kafka.session.timeout.ms"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_ones(toml: str, expected: str) -> None:
    assert expected in problem(toml)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("WORKERS__WINDOW__SISE", "WORKERS__WINDOW__SIZE"),
        ("WORKERS_WINDOW_SIZE", "WORKERS__WINDOW__SIZE"),
        ("WORKERS__window__size", None),
        ("KAFKA_SASL_USERNAM", "KAFKA_SASL_USERNAME"),
    ],
)
def test_an_unknown_variable_is_refused_with_the_nearest_known_one(name: str, meant: str | None) -> None:
    line = problem("", {name: "5s"})
    assert line.startswith(f"environment variable {name} is not a setting")
    assert meant is None or line.endswith(f"; did you mean {meant}?")


def test_an_unknown_flag_is_refused() -> None:
    assert problem(window__sise="1s").startswith(
        "--set window.sise: window.sise is not a setting; did you mean window.size"
    )


@pytest.mark.parametrize("name", sorted(MANAGED))
def test_kafka_names_that_are_not_the_users_are_refused_with_the_reason(name: str) -> None:
    line = problem(f'[kafka]\n"{name}" = "x"')
    assert line.startswith(f"x.toml: kafka.{name} can't be set: ")
    assert len(line) > len(f"x.toml: kafka.{name} can't be set: ")


@pytest.mark.parametrize("section", ["window", "kafka"])
def test_a_section_must_be_a_table(section: str) -> None:
    assert problem(f"{section} = 5") == f"x.toml: {section}: expected a table, [{section}], found int"


# -- malformed values -------------------------------------------------------------------------------------------------

MALFORMED = [
    ('bootstrap_servers = "kafka://a:1"', "bootstrap_servers", "host:port"),
    ('bootstrap_servers = "a"', "bootstrap_servers", "host:port"),
    ('bootstrap_servers = "a:1,,b:2"', "bootstrap_servers", "host:port"),
    ('bootstrap_servers = "a:65536"', "bootstrap_servers", "host:port"),
    ('application_id = "my app"', "application_id", "1 to 200 of A-Z"),
    (f'application_id = "{"a" * 201}"', "application_id", "1 to 200 of A-Z"),
    ('processing_guarantee = "exactly-once"', "processing_guarantee", "exactly_once | at_least_once"),
    ('commit_interval = "19ms"', "commit_interval", "duration 20ms to 366d"),
    ('[topics]\nticks = ".."', "topics.ticks", "1 to 249 of A-Z"),
    ("[topics]\npartitions = 0", "topics.partitions", "integer 1 to 10000"),
    ('[topics]\npartitions = "8"', "topics.partitions", "integer 1 to 10000"),
    ("[topics]\npartitions = true", "topics.partitions", "integer 1 to 10000"),
    ("[topics]\nreplication_factor = 0", "topics.replication_factor", "-1, or integer >= 1"),
    ("[topics]\ncreate = 1", "topics.create", "true | false"),
    ('[tick]\nsymbol = ""', "tick.symbol", "the name of a JSON field"),
    ('[tick]\ntimestamp_unit = "min"', "tick.timestamp_unit", "s | ms | us | ns"),
    ('[window]\nkind = "sliding"', "window.kind", "tumbling"),
    ('[window]\nsize = "0s"', "window.size", "duration 1ms to 366d"),
    ("[window]\nsize = {a = 1}", "window.size", "duration 1ms to 366d"),
    ('[window]\naggregation = "package.module"', "window.aggregation", "package.module:name"),
    ('[window]\naggregation = "1a:b"', "window.aggregation", "package.module:name"),
    (f'[window]\nlag = "{"9" * 9_999}s"', "window.lag", "duration 0s to 366d"),
    ("[lane]\nhigh_watermark = 1.5", "lane.high_watermark", "number above 0, at most 1"),
    ("[lane]\nlow_watermark = nan", "lane.low_watermark", "number above 0, at most 1"),
    ("[lane]\nlow_watermark = 0", "lane.low_watermark", "number above 0, at most 1"),
    ("[store]\nhigh_watermark = 0.0", "store.high_watermark", "number above 0, at most 1"),
    ("[store]\nbatch_size = 0", "store.batch_size", "integer 1 to 1000000"),
    ('[store]\nsqlite = ""', "store.sqlite", "the path of a file"),
    ("[metrics]\nport = 65536", "metrics.port", "integer 0 to 65535, or off"),
    ('[logging]\nlevel = "INFO"', "logging.level", "debug | info | warning | error"),
    ("pipeline = 3", "pipeline", "[[pipeline]] tables"),
    ('[kafka]\nsecurity.protocol = "TLS"', "kafka.security.protocol", "PLAINTEXT | SSL | SASL_PLAINTEXT | SASL_SSL"),
    ('[kafka]\nsasl.mechanism = "GSSAPI"', "kafka.sasl.mechanism", "login callback"),
    ('[kafka]\nssl.truststore.type = "JKS"', "kafka.ssl.truststore.type", "convert it to PEM"),
    ('[kafka]\nssl.keystore.location = "a.p12"', "kafka.ssl.keystore.location", "convert it to PEM"),
    ('[kafka]\nsession.timeout.ms = "10s"', "kafka.session.timeout.ms", "integer >= 1"),
    ("[kafka]\nlinger.ms = -1", "kafka.linger.ms", "integer >= 0"),
    ("[kafka]\nlinger.ms = 2147483648", "kafka.linger.ms", "integer >= 0"),
    ("[kafka]\nacks = 2", "kafka.acks", "all | 1 | 0"),
    ("[kafka]\nacks = true", "kafka.acks", "all | 1 | 0"),
    ('[kafka]\nclient.id = ""', "kafka.client.id", "text"),
]


@pytest.mark.parametrize(("toml", "key", "allowed"), MALFORMED)
def test_a_malformed_value_names_file_key_and_what_is_allowed(toml: str, key: str, allowed: str) -> None:
    line = problem(toml)
    assert re.match(rf"x\.toml: {re.escape(key)}( = |: )", line)
    assert allowed in line


def test_a_malformed_value_names_the_variable_or_flag_it_came_from() -> None:
    line = problem("", {"WORKERS__TOPICS__PARTITIONS": "many"})
    assert (
        line
        == 'environment variable WORKERS__TOPICS__PARTITIONS: topics.partitions = "many": expected integer 1 to 10000'
    )
    line = problem(window__emit="eagre")
    assert line == '--set window.emit: window.emit = "eagre": expected eager | final; did you mean eager?'


def test_everything_wrong_is_reported_at_once_one_problem_a_line() -> None:
    toml = 'sise = 1\n[window]\nemit = "no"\n[lane]\nlow_watermark = 0.9\n[topics]\nframes = "ticks"'
    lines = problems(toml, {"WORKERS__METRICS__PORT": "x", "WORKERS__NO": "1"}, window__lag="5")
    starts = [
        "x.toml: sise ",
        "environment variable WORKERS__NO ",
        "--set window.lag: ",
        'x.toml: window.emit = "no"',
        "environment variable WORKERS__METRICS__PORT: ",
        "topics.ticks = ticks (default), topics.frames = ticks (x.toml): ",
        "lane.low_watermark = 0.9 (x.toml), lane.high_watermark = 0.75 (default): ",
    ]
    assert len(lines) == len(starts)
    for start in starts:
        assert sum(line.startswith(start) for line in lines) == 1, (start, lines)


def test_a_value_wrong_by_itself_is_not_also_called_a_conflict() -> None:
    assert problem("[lane]\ncapacity = 0\nbatch_size = 9").startswith("x.toml: lane.capacity")


def test_a_long_value_is_cut_in_the_message() -> None:
    line = problem(f'processing_guarantee = "{"x" * 10_000}"')
    assert "…" in line
    assert len(line) < 250


def test_a_file_that_is_missing_or_no_toml_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^no\.toml: the configuration can't be read: No such file"):
        load_settings(Path("no.toml"), environ={})
    with pytest.raises(ConfigError, match=r"^no\.toml: the configuration can't be read"):
        load_settings(environ={"WORKERS_CONFIG": "no.toml"})
    assert problem("a = = 1").startswith("x.toml: not TOML: ")
    Path("latin.toml").write_bytes(b"# \xe9")
    with pytest.raises(ConfigError, match=r"^latin\.toml: .*not UTF-8"):
        load_settings(Path("latin.toml"), environ={})


# -- impossible combinations ------------------------------------------------------------------------------------------

IMPOSSIBLE = [
    ('[topics]\nlate = "ticks"', "topics.ticks", "topics must differ"),
    ('[topics]\nticks = "a.b"\nframes = "a_b"', "topics.frames", "topics must differ"),
    ('[tick]\nprice = "p"\nsize = "p"', "tick.size", "must differ"),
    ('[window]\nsize = "1500us"', "window.size", "whole number of milliseconds"),
    ('[window]\nlag = "0s"', "window.lag", "every tick would be late"),
    ('[window]\nkey_ttl = "6999ms"', "window.key_ttl", "at least size + lag + allowed_lateness = 7s"),
    ('[window]\nemit = "final"\nemit_partial = true', "window.emit_partial", "one frame a window"),
    ('[window]\npayload = "items"\naggregation = "a.b:c"', "window.aggregation", "thrown away"),
    ("[lane]\nlow_watermark = 0.75", "lane.low_watermark", "low must be below high"),
    ("[lane]\ncapacity = 4999", "lane.capacity", "a batch must fit"),
    ("[store]\nlow_watermark = 0.75", "store.low_watermark", "low must be below high"),
    ("[store]\nqueue_capacity = 4999", "store.queue_capacity", "a batch must fit"),
    ("[backpressure]\nsoft_lag = 1000000", "backpressure.soft_lag", "soft must be below hard"),
    ("[backpressure]\nrate_scale_hard = 0.6", "backpressure.rate_scale_hard", "HARD must not allow more"),
    ("[kafka]\nheartbeat.interval.ms = 3334", "kafka.heartbeat.interval.ms", "three heartbeats"),
    ('commit_interval = "3001ms"', "commit_interval", "ten commit intervals"),
    ("[kafka]\nacks = 1", "kafka.acks", "exactly_once needs acks all"),
    ('processing_guarantee = "at_least_once"\n[kafka]\nacks = 0', "kafka.acks", "not even noticed"),
    ("[kafka]\nfetch.max.wait.ms = 40000", "kafka.fetch.max.wait.ms", "time out"),
    ("[kafka]\nfetch.max.bytes = 262143", "kafka.fetch.max.bytes", "exceeds"),
    ("[kafka]\nmax.request.size = 1048575", "kafka.max.request.size", "must fit in a request"),
    ('[kafka]\nssl.cafile = "ca.pem"', "kafka.ssl.ca.location", "not be encrypted"),
    ('[kafka]\nsecurity.protocol = "SSL"\nssl.keyfile = "a.key"', "kafka.ssl.key.location", "needs its certificate"),
    ('[kafka]\nsasl.username = "login"', "kafka.sasl.username", "nobody would log in"),
]


@pytest.mark.parametrize(("toml", "key", "why"), IMPOSSIBLE)
def test_an_impossible_combination_names_each_value_its_source_and_why(toml: str, key: str, why: str) -> None:
    line = problem(toml)
    assert f"{key} = " in line
    assert "(x.toml)" in line
    assert why in line


@pytest.mark.parametrize(
    "toml",
    [
        '[window]\nkey_ttl = "7s"',
        "[lane]\ncapacity = 5000",
        "[kafka]\nheartbeat.interval.ms = 3333",
        'commit_interval = "3s"',
        'commit_interval = "10s"\nprocessing_guarantee = "at_least_once"',
        'processing_guarantee = "at_least_once"\n[kafka]\nacks = 1',
        '[window]\npayload = "both"\naggregation = "a.b:c"',
        "[backpressure]\nrate_scale_hard = 0.5",
    ],
)
def test_what_is_just_possible_is_accepted(toml: str) -> None:
    assert load(toml) != Settings()


def test_impossible_combinations_are_refused_in_direct_construction_too() -> None:
    with pytest.raises(ValidationError, match="three heartbeats"):
        Settings(kafka=KafkaSettings(session_timeout_ms=1))


# -- operators --------------------------------------------------------------------------------------------------------


def test_an_operator_nobody_registered_is_refused() -> None:
    assert load("pipeline = []").pipeline == ()
    assert problem('[[pipeline]]\noperator = "no"').startswith(
        'x.toml: pipeline: entry 1: no operator of that name ("no")'
    )
    assert "no operator of that name (null)" in problem("[[pipeline]]\nrate = 1")


def test_a_registered_operator_gets_its_options_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Limit(Operator):
        rate: int

    monkeypatch.setitem(OPERATORS, "limit", Limit)
    assert load('[[pipeline]]\noperator = "limit"\nrate = 3').pipeline == (Limit(rate=3),)
    assert "entry 1 (limit): rate: " in problem('[[pipeline]]\noperator = "limit"\nrate = "x"')
    assert "known: deduplicate | filter | limit | map | " in problem('[[pipeline]]\noperator = "other"')


PIPELINE = """
[[pipeline]]
operator = "router"
rules = [{ symbol = "TEST*", to = "tests" }, { field = "halted", equals = true, to = "window" }]
[[pipeline]]
operator = "deduplicate"
id = "t"
gaps = true
[[pipeline]]
operator = "deduplicate"
fields = ["exchange", "t"]
ttl = "1m"
max_ids = 10
ledger = false
[[pipeline]]
operator = "filter"
function = "my.package:is_wanted"
[[pipeline]]
operator = "map"
function = "my.package:Class.method"
[[pipeline]]
operator = "throttle"
rate = 3
burst = 5
per = "partition"
[[pipeline]]
operator = "throttle"
mode = "conflate"
interval = "100ms"
"""


def test_every_operator_becomes_what_the_lane_understands() -> None:
    settings = load(PIPELINE + '[window]\nlag = "3s"')
    ns = NS_PER_SECOND
    assert lane_spec(settings).pipeline == (
        Router((Route("tests", "TEST*"), Route("window", None, "halted", True))),
        Deduplicate(("t",), 600 * ns, gaps=True),
        Deduplicate(("exchange", "t"), 60 * ns, max_ids=10, ledger=False),
        Filter("my.package:is_wanted"),
        Map("my.package:Class.method"),
        Throttle(333_333_334, burst=5, per_symbol=False),
        Conflate(100 * NS_PER_MS, margin_ns=3 * ns),
    )
    assert settings.pipeline[0].topics() == {"tests"}


def test_the_lane_takes_the_pipeline_of_the_settings() -> None:
    pipeline = '[[pipeline]]\noperator = "deduplicate"\nid = "t"\n[[pipeline]]\noperator = "router"'
    assert Lane(lane_spec(load(pipeline)), Input("ticks", 0, 1)).counts.held == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ('operator = "dedupe"', "did you mean deduplicate?; known: deduplicate | filter"),
        ('operator = "deduplicate"', "entry 1 (deduplicate): expected either id or fields"),
        ('operator = "deduplicate"\nid = "a"\nfields = ["a"]', "expected either id or fields"),
        ('operator = "deduplicate"\nfields = []', "fields: "),
        ('operator = "deduplicate"\nfields = ["a", "b"]\ngaps = true', "gaps needs id"),
        ('operator = "deduplicate"\nid = "a"\nttl = "0s"', "ttl: "),
        ('operator = "deduplicate"\nid = "a"\nttl = "1s"', "must be at least lag + allowed_lateness = 2s"),
        ('operator = "deduplicate"\nid = "a"\nmaxids = 3', "maxids: no option of that name, did you mean max_ids?"),
        ('operator = "throttle"', "mode drop needs rate"),
        ('operator = "throttle"\nrate = 0', "rate: "),
        ('operator = "throttle"\nrate = 1\ninterval = "1s"', "interval means nothing with mode drop"),
        ('operator = "throttle"\nmode = "conflate"\nrate = 1', "mode conflate needs interval"),
        ('operator = "throttle"\nmode = "conflate"\ninterval = "1s"\nburst = 2', "burst means nothing"),
        ('operator = "throttle"\nrate = 1e-9', "burst / rate must be at most 366 days"),
        ('operator = "router"\nrules = [{ symbol = "A" }]', "rules.0.to: "),
        ('operator = "router"\nrules = [{ to = "a" }]', "rules.0: expected symbol, or field and equals"),
        ('operator = "router"\nrules = [{ to = "a", field = "b" }]', "field and equals go together"),
        ('operator = "router"\nrules = [{ to = "a", sym = "b" }]', "rules.0.sym: no option of that name, did you mean"),
        ('operator = "router"\nrules = [{ to = "no name", symbol = "b" }]', "rules.0.to: not a name Kafka accepts"),
        ('operator = "router"\ndefault = "ticks"', "ticks can't be routed to ticks, which has another use"),
        ('operator = "router"\ndefault = "tick-workers-late"', "has another use"),
        ('operator = "filter"', "function: "),
        ('operator = "map"\nfunction = "no_place"', "function: "),
    ],
)
def test_impossible_operators_are_refused(options: str, expected: str) -> None:
    assert expected in problem(f"[[pipeline]]\n{options}")


def test_what_conflation_holds_must_not_be_made_late_by_a_partitions_clock() -> None:
    pipeline = '[[pipeline]]\noperator = "throttle"\nmode = "conflate"\ninterval = "3s"\n'
    assert "interval must be at most lag" in problem(pipeline + '[window]\nwatermark_scope = "partition"')
    settings = load(pipeline + '[window]\nwatermark_scope = "partition"\nlag = "3s"')
    assert lane_spec(settings).pipeline == (Conflate(3 * NS_PER_SECOND, margin_ns=0),)


def test_every_option_of_every_operator_is_documented() -> None:
    documented = {row.key: row for row in operator_reference()}
    for name, options in OPERATORS.items():
        assert {f"pipeline.{name}.{option}" for option in options.model_fields} <= set(documented)
    for row in documented.values():
        assert row.allowed, row
        assert row.description.endswith("."), row
    assert documented["pipeline.throttle.mode"][1:3] == ("drop | conflate", "drop")


def test_operators_are_set_in_files_only() -> None:
    assert "set it in a file" in problem("", {"WORKERS__PIPELINE": "[]"})
    assert "set it in a file" in problem(pipeline="[]")


# -- secrets ----------------------------------------------------------------------------------------------------------


def everything_said(settings: Settings) -> str:
    return "\n".join([repr(settings), str(settings), repr(describe_settings(settings)), settings.model_dump_json()])


@pytest.mark.parametrize(
    "environ",
    [
        {**LOGIN, "KAFKA_SASL_PASSWORD": SECRET},
        {**LOGIN, "WORKERS__KAFKA__SASL__PASSWORD": SECRET},
        {**LOGIN, "KAFKA_SASL_PASSWORD_FILE": "secret.txt"},
    ],
)
def test_a_password_is_used_and_never_shown(environ: dict[str, str]) -> None:
    Path("secret.txt").write_text(SECRET + "\n", encoding="utf-8")
    settings = load("", environ)
    assert client_options(settings)["sasl_plain_password"] == SECRET
    assert SECRET not in everything_said(settings)
    value, source = rows(settings)["kafka.sasl.password"]
    assert value == "********"
    assert source.startswith("env ")


def test_a_password_may_be_in_a_file_that_the_configuration_names() -> None:
    Path("secret.txt").write_text(SECRET, encoding="utf-8")
    toml = '[kafka]\nsecurity.protocol = "SASL_PLAINTEXT"\nsasl.username = "login"\nsasl.password.file = "secret.txt"'
    settings = load(toml)
    assert client_options(settings)["sasl_plain_password"] == SECRET
    assert rows(settings)["kafka.sasl.password"] == ("********", "file x.toml, read from secret.txt")
    assert (
        load(toml, {"KAFKA_SASL_PASSWORD": "other"}).kafka.sasl_password
        == KafkaSettings(
            sasl_password="other"  # type: ignore[arg-type]
        ).sasl_password
    )


def test_a_secret_file_that_cannot_be_read_is_one_problem() -> None:
    line = problem("", {**LOGIN, "KAFKA_SASL_PASSWORD_FILE": "gone"})
    assert line == (
        "environment variable KAFKA_SASL_PASSWORD_FILE: kafka.sasl.password.file = "
        '"gone": can\'t be read: No such file or directory'
    )


def test_a_secret_given_both_ways_by_one_source_is_refused() -> None:
    line = problem("", {**LOGIN, "KAFKA_SASL_PASSWORD": SECRET, "KAFKA_SASL_PASSWORD_FILE": "f"})
    assert "given twice" in line
    assert SECRET not in line


def test_the_stores_address_is_a_secret_with_a_variable_of_its_own() -> None:
    dsn = f"postgresql://a:{SECRET}@b/c"
    Path("dsn.txt").write_text(dsn + "\n", encoding="utf-8")
    for settings in (
        load("", {"WORKERS_STORE_DSN": dsn}),
        load("", {"WORKERS_STORE_DSN_FILE": "dsn.txt"}),
        load("", {"WORKERS__STORE__POSTGRES": dsn, "WORKERS_STORE_DSN": "postgresql://weaker"}),
        load('[store]\npostgres.file = "dsn.txt"'),
        load('[store]\n"postgres.file" = "dsn.txt"'),
    ):
        assert settings.store.postgres is not None
        assert settings.store.postgres.get_secret_value() == dsn
        assert rows(settings)["store.postgres"][0] == "********"
        assert SECRET not in repr(settings)
    assert "use WORKERS_STORE_DSN or _FILE" in problem("", {}, store__postgres=dsn)
    assert SECRET not in problem("", {}, store__postgres=dsn)


def test_a_secret_can_not_be_a_flag() -> None:
    lines = problems("", LOGIN, kafka__sasl__password=SECRET)
    assert "KAFKA_SASL_PASSWORD" in lines[0]
    assert SECRET not in "\n".join(lines)


JAAS = 'org.apache.kafka.common.security.plain.PlainLoginModule required username="login" password="%s";'


@pytest.mark.parametrize(
    ("toml", "environ"),
    [
        (f'[kafka]\nsasl.pasword = "{SECRET}"', {}),
        (f'[kafka]\nsasl.secret = "{SECRET}"', {}),
        (f'password = "{SECRET}"', {}),
        (f'kafka = "{SECRET}"', {}),
        (f'[kafka]\nsasl = "{SECRET}"', {}),
        (f'[kafka]\nsasl.password = ["{SECRET}"]', {}),
        (f'[kafka]\nsasl.password = "{SECRET}"', {}),
        (f'[kafka]\nssl.key.password = "{SECRET}"', {}),
        (f'[kafka]\nssl.keystore.password = "{SECRET}"', {}),
        (f'[kafka]\nsasl.password = "{SECRET}" = ', {}),
        (f'bootstrap_servers = "kafka://login:{SECRET}@host:1"', {}),
        ("", {"KAFKA_SASL_PASWORD": SECRET}),
        ("", {"KAFKA_SASL_JAAS_CONFIG": JAAS % SECRET}),
        ("", {**LOGIN, "KAFKA_SASL_JAAS_CONFIG": JAAS % SECRET}),
        ("", {"KAFKA_SECURITY_PROTOCOL": "SASL_SSL", "KAFKA_SASL_JAAS_CONFIG": f"x {SECRET}"}),
        ("", {"KAFKA_SECURITY_PROTOCOL": "SASL_SSL", "KAFKA_SASL_JAAS_CONFIG": JAAS % SECRET + SECRET}),
        ("", {"WORKERS__KAFKA__SASL__PASSWORDS": SECRET}),
    ],
)
def test_no_error_repeats_a_secret(toml: str, environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(toml, environ)
    error: BaseException | None = caught.value
    while error is not None:  # what a traceback would print, the causes included
        assert SECRET not in str(error)
        error = error.__cause__ or error.__context__


def test_direct_construction_does_not_repeat_a_secret_either() -> None:
    with pytest.raises(ValidationError) as caught:
        KafkaSettings.model_validate({"sasl.password": [SECRET], "nonsense": SECRET})
    assert SECRET not in str(caught.value)


# -- JAAS -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mechanism", "password"),
    [
        (JAAS % "pw", "PLAIN", "pw"),
        (JAAS % r"a\"b\\c;d", "PLAIN", r'a"b\c;d'),
        ("PlainLoginModule required username=login password='p w'", "PLAIN", "p w"),
        (
            'org.apache.kafka.common.security.scram.ScramLoginModule REQUIRED\n  username="login"\n  password="pw" ;\n',
            "SCRAM-SHA-512",
            "pw",
        ),
    ],
)
def test_a_jaas_text_is_a_login(text: str, mechanism: str, password: str) -> None:
    environ = {
        "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "KAFKA_SASL_MECHANISM": mechanism,
        "KAFKA_SASL_JAAS_CONFIG": text,
    }
    options = client_options(load("", environ))
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("login", password)
    assert options["sasl_mechanism"] == mechanism


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        'com.sun.security.auth.module.Krb5LoginModule required useKeyTab="true";',
        'PlainLoginModule required username="login";',
        'PlainLoginModule required username="login" password="open;',
        (JAAS % "a") + (JAAS % "b"),
        JAAS.replace("Plain", "Scram") % "pw",
    ],
)
def test_a_jaas_text_that_is_no_login_for_the_mechanism_is_refused(text: str) -> None:
    line = problem("", {"KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT", "KAFKA_SASL_JAAS_CONFIG": text})
    assert line.startswith("kafka.sasl.jaas.config = ******** (environment variable KAFKA_SASL_JAAS_CONFIG)")


def test_a_login_needs_both_name_and_password() -> None:
    assert "kafka.sasl.password = (not set)" in problem("", LOGIN)


# -- aiokafka ---------------------------------------------------------------------------------------------------------


async def test_aiokafka_takes_the_options_as_they_are() -> None:
    settings = load("", {**LOGIN, "KAFKA_SASL_PASSWORD": SECRET, "KAFKA_GROUP_INSTANCE_ID": "one"})
    AIOKafkaClient(**client_options(settings))
    AIOKafkaAdminClient(**client_options(settings))
    consumer = AIOKafkaConsumer("ticks", **consumer_options(settings))
    await asyncio.wait_for(consumer.stop(), 5)
    producer = AIOKafkaProducer(**producer_options(settings), transactional_id="x-0")
    plain = AIOKafkaProducer(**producer_options(load('processing_guarantee = "at_least_once"\n[kafka]\nacks = 1')))
    for made in (producer, plain):
        made._closed = True  # never started: there is nothing to stop


def test_each_kafka_setting_reaches_the_client_it_is_meant_for() -> None:
    changed = {
        "client.rack": "r",
        "group.instance.id": "g",
        "auto.offset.reset": "latest",
        "isolation.level": "read_uncommitted",
        "acks": "1",
        "compression.type": "none",
        "linger.ms": 1,
        "client.id": "c",
    }
    numbers = {"session.timeout.ms", "heartbeat.interval.ms"}
    for name, field in KafkaSettings.model_fields.items():
        key = cast("str", field.alias)
        if isinstance(field.default, int) and key not in changed | dict.fromkeys(numbers):
            changed[key] = field.default - 1 if field.default > 1 else 2
        assert name.replace("_", ".") == key
    changed |= {"session.timeout.ms": 12_000, "heartbeat.interval.ms": 2_000, "max.request.size": 1_048_575}
    base = Settings(processing_guarantee="at_least_once")
    other = Settings(processing_guarantee="at_least_once", kafka=KafkaSettings.model_validate(changed))
    before = consumer_options(base) | producer_options(base)
    after = consumer_options(other) | producer_options(other)
    same = {name for name in before if before[name] == after[name]}
    assert same == {"bootstrap_servers", "security_protocol", "group_id", "enable_auto_commit"}
    assert (after["compression_type"], after["acks"], after["enable_idempotence"]) == (None, 1, False)


def test_the_group_is_the_application_and_never_commits_by_itself() -> None:
    options = consumer_options(load('application_id = "app"'))
    assert (options["group_id"], options["client_id"], options["enable_auto_commit"]) == ("app", "app", False)
    assert (options["auto_offset_reset"], options["isolation_level"]) == ("earliest", "read_committed")


# -- TLS --------------------------------------------------------------------------------------------------------------


def openssl(*arguments: str) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make certificates")
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=30)


@pytest.fixture
def certificates() -> None:
    """A certificate for localhost in ca.pem and its key, also encrypted, in key.pem and locked.pem."""
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *curve, *subject, "-keyout", "key.pem", "-out", "ca.pem")
    openssl("pkey", "-in", "key.pem", "-aes256", "-passout", f"pass:{SECRET}", "-out", "locked.pem")


def tls(**names: str) -> Settings:
    environ = {"KAFKA_SECURITY_PROTOCOL": "SSL"}
    return load("", environ | {f"KAFKA_SSL_{name.upper()}": value for name, value in names.items()})


async def handshake(settings: Settings, host: str) -> None:
    """Connect to a TLS server on this machine that demands a client certificate, calling it ``host``."""
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile="ca.pem")
    server_side.load_cert_chain("ca.pem", "key.pem")
    server_side.verify_mode = ssl.CERT_REQUIRED

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\n")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=server_side)
    try:
        port = server.sockets[0].getsockname()[1]
        context = cast("ssl.SSLContext", client_options(settings)["ssl_context"])
        connecting = asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=host)
        reader, writer = await asyncio.wait_for(connecting, 5)
        assert await asyncio.wait_for(reader.readline(), 5) == b"hello\n"
        writer.close()
        await asyncio.wait_for(writer.wait_closed(), 5)
    finally:
        server.close()
        await asyncio.wait_for(server.wait_closed(), 5)


@pytest.mark.usefixtures("certificates")
async def test_brokers_and_client_prove_themselves_by_pem_files() -> None:
    locked = {"certfile": "ca.pem", "keyfile": "locked.pem", "key_password": SECRET}
    await handshake(tls(cafile="ca.pem", **locked), "localhost")
    with pytest.raises(ssl.SSLCertVerificationError):
        await handshake(tls(cafile="ca.pem", **locked), "elsewhere")
    await handshake(tls(truststore_location="ca.pem", endpoint_identification_algorithm="none", **locked), "elsewhere")
    with pytest.raises(ssl.SSLCertVerificationError):
        await handshake(tls(**locked), "localhost")


@pytest.mark.usefixtures("certificates")
def test_key_and_certificate_may_be_one_file() -> None:
    Path("both.pem").write_text(Path("key.pem").read_text() + Path("ca.pem").read_text(), encoding="utf-8")
    assert isinstance(client_options(tls(keystore_location="both.pem"))["ssl_context"], ssl.SSLContext)


@pytest.mark.usefixtures("certificates")
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"cafile": "gone.pem"}, r'kafka\.ssl\.ca\.location = "gone\.pem" \(env KAFKA_SSL_CAFILE\): can\'t be read'),
        ({"cafile": "java.bin"}, r"not a PEM file\. Java keystores"),
        ({"cafile": "empty.pem"}, r"no usable certificate"),
        ({"certfile": "ca.pem", "keyfile": "locked.pem"}, r"the key is encrypted; set ssl\.key\.password"),
        ({"certfile": "ca.pem", "keyfile": "locked.pem", "key_password": "wrong"}, r"or the passphrase is wrong"),
        ({"certfile": "ca.pem"}, r"ssl\.certificate\.location = .*can't be used together"),
    ],
)
def test_a_certificate_that_cannot_be_used_names_its_file_and_setting(names: dict[str, str], expected: str) -> None:
    Path("java.bin").write_bytes(b"\xfe\xed\xfe\xed\x00\x00\x00\x02")
    Path("empty.pem").write_text("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=expected) as caught:
        client_options(tls(**names))
    assert "wrong" not in str(caught.value).replace("passphrase is wrong", "")


def test_two_names_of_one_file_are_refused() -> None:
    line = problem('[kafka]\nsecurity.protocol = "SSL"\nssl.cafile = "a"\nssl.ca.location = "b"')
    assert "kafka.ssl.ca.location is given twice, also as kafka.ssl.cafile in x.toml" in line


# -- kinds of windows -------------------------------------------------------------------------------------------------

KINDS = {
    "tumbling": 'offset = "30s"\nsize = "1m"\ntime_zone = "America/New_York"',
    "hopping": 'size = "1m"\nhop = "10s"\noffset = "5s"',
    "session": 'gap = "30s"',
    "calendar": 'calendar = "XNYS"\nsession = "full"\nclose_grace = "15m"\nkey_ttl = "30d"',
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_window_takes_its_own_settings(kind: str) -> None:
    window = load(f'[window]\nkind = "{kind}"\n{KINDS[kind]}').window
    assert window.kind == kind


@pytest.mark.parametrize("kind", KINDS)
def test_settings_of_another_kind_are_refused_instead_of_ignored(kind: str) -> None:
    others = {"hop": "10s", "gap": "30s", "calendar": "XNYS", "session": "full", "close_grace": "1m"}
    others |= {"time_zone": "Asia/Tokyo", "fill_gaps": "1m", "offset": "1s"}
    own = {"tumbling": {"time_zone", "fill_gaps", "offset"}, "hopping": {"hop", "offset"}}
    own |= {"session": {"gap"}, "calendar": {"calendar", "session", "close_grace"}}
    for name in set(others) - own[kind]:
        (line,) = problems(f'[window]\nkind = "{kind}"\n{KINDS[kind]}\n{name} = "{others[name]}"')
        assert f"window.{name} = {others[name]} (x.toml), window.kind = {kind}" in line
        assert line.endswith(f"means nothing with kind {kind}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('kind = "hopping"', "hop is 0s; expected more than 0 and at most the size, 5s"),
        ('kind = "hopping"\nhop = "6s"', "hop is 6s; expected more than 0 and at most the size, 5s"),
        ('kind = "hopping"\nhop = "1ms"\nsize = "2s"', "more than 1,000 hops"),
        ('kind = "hopping"\nsize = "1s"\nhop = "1500us"', "whole number of milliseconds"),
        ('kind = "session"', "gap is 0s; expected more than 0"),
        ('kind = "calendar"', "kind calendar needs the name of one, like XNYS"),
        ('kind = "session"\ngap = "30s"\nkey_ttl = "31s"', "at least gap + lag + allowed_lateness = 32s"),
        ('offset = "5s"', "offset is 5s; expected 0 or more, and less than the size, 5s"),
        ('offset = "1us"', "whole number of milliseconds"),
        ('size = "7h"\ntime_zone = "UTC"', "must divide a day, or be whole days"),
        (
            'size = "1d"\ntime_zone = "UTC"\nkey_ttl = "1d"',
            "at least longest window + lag + allowed_lateness = 172802s",
        ),
        ('fill_gaps = "4s"', "at least size, or nothing is filled"),
        ('fill_gaps = "2d"', "at most 10,000 times size"),
        ('fill_gaps = "1m"\npayload = "both"', "only bars can be filled"),
    ],
)
def test_windows_that_can_not_be_are_refused_and_the_settings_named(text: str, said: str) -> None:
    (line,) = problems(f"[window]\n{text}")
    assert line.startswith("window.")
    assert said in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('time_zone = "America/New_Yrok"', "did you mean America/New_York?; expected an IANA name"),
        ('calendar = "../x y"', "not a name that a calendar can have; expected a name of exchange_calendars"),
        ('kind = "sessions"', "expected tumbling | hopping | session | calendar; did you mean session?"),
    ],
)
def test_a_name_that_is_none_is_refused_with_what_was_expected(text: str, said: str) -> None:
    (line,) = problems(f"[window]\n{text}")
    assert said in line


def test_the_kind_of_window_can_be_set_where_a_file_lists_every_default() -> None:
    flags = {"window.kind": "session", "window.gap": "30s"}
    settings = load_settings(CONFIG / "workers.toml", environ={}, overrides=flags)
    assert (settings.window.kind, settings.window.gap) == ("session", 30 * NS_PER_SECOND)


# -- what is shipped and documented -----------------------------------------------------------------------------------


def test_the_shipped_configuration_is_the_defaults() -> None:
    settings = load_settings(CONFIG / "workers.toml", environ={})
    assert settings == Settings()


def test_the_shipped_configuration_shows_every_setting_and_no_other() -> None:
    """Commented-out lines count too: they show settings without a default of their own."""
    section, shown = "", []
    for line in (CONFIG / "workers.toml").read_text(encoding="utf-8").splitlines():
        if header := re.fullmatch(r"\[([\w.]+)\]", line):
            section = f"{header[1]}."
        elif operator := re.fullmatch(r'# operator = "(\w+)"', line):
            section = f"pipeline.{operator[1]}."
        elif setting := re.match(r"(?:# )?([\w.]+) = ", line):
            shown.append(section + setting[1])
    options = [row.key for row in operator_reference() if ".rules." not in row.key]
    assert sorted([*shown, "pipeline"]) == sorted([*(row.key for row in reference()), *options])


def test_what_is_commented_out_in_the_shipped_configuration_can_be_set() -> None:
    text = (CONFIG / "workers.toml").read_text(encoding="utf-8")
    derived = re.sub(
        r"(?m)^# ((?:late|dead_letters|changelog|feedback|client\.\w+|group\.instance\.id) = )", r"\1", text
    )
    settings = load(derived)
    assert settings.kafka.group_instance_id == "worker-1"
    assert settings.topics == Settings().topics


@pytest.mark.parametrize(
    ("name", "fields"), [("binance", ("s", "T", "p", "q", "ms")), ("polygon", ("sym", "t", "p", "s", "ms"))]
)
def test_the_exchanges_configurations_name_their_fields(name: str, fields: tuple[str, ...]) -> None:
    tick = load_settings(CONFIG / f"{name}.toml", environ={}).tick
    assert (tick.symbol, tick.ts, tick.price, tick.size, tick.timestamp_unit) == fields


def test_the_configuration_for_an_exchange_s_sessions_makes_them() -> None:
    settings = load_settings(CONFIG / "xnys.toml", environ={})
    assert lane_spec(settings).rules().assigner.assign(1_704_465_000 * NS_PER_SECOND)  # 2024-01-05 14:30 UTC, the open


def test_every_setting_is_documented_with_what_is_allowed_and_its_default() -> None:
    documented = {row.key: row for row in reference()}
    assert set(rows(Settings())) <= set(documented)
    for row in documented.values():
        assert row.allowed, row
        assert row.description.endswith("."), row
    assert documented["window.size"][:3] == ("window.size", "duration 1ms to 366d", "5s")
    assert documented["kafka.acks"].allowed == "all | 1 | 0"


@pytest.mark.parametrize(
    "row", [row for row in reference() if row.default and row.key != "pipeline"], ids=lambda row: row.key
)
def test_every_documented_default_can_be_written_back(row: ReferenceRow) -> None:
    settings = load("", {"WORKERS__" + row.key.upper().replace(".", "__"): row.default})
    assert settings == Settings()
    assert rows(settings)[row.key][1].startswith("env ")


def test_the_public_names_exist() -> None:
    assert sorted(module.__all__) == sorted(set(module.__all__))
    assert all(hasattr(module, name) for name in module.__all__)
