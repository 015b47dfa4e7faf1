"""The manifests for Kubernetes, and the configuration of Prometheus and Grafana: valid, and of one mind with the code.

The core kinds are checked against the schemas of Kubernetes itself, those of KEDA and of the Prometheus operator
against schemas of the parts used here (``tests/schemas``).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from workers.apps.store.metrics import StoreMetrics
from workers.settings import Settings, load_settings
from workers.telemetry.metrics import Metrics
from workers.times import parse_duration
from workers.worker.worker import STOP_TIMEOUT_S

ROOT = Path(__file__).parents[2]
K8S = ROOT / "config" / "k8s"
PROMETHEUS = ROOT / "config" / "prometheus"
SCHEMAS = ROOT / "tests" / "schemas"
KUBERNETES = "1.31"
OWN_SCHEMAS = {"ScaledObject": "scaledobject.json", "ServiceMonitor": "servicemonitor.json"}
MANIFESTS = sorted(path for path in K8S.glob("*.yaml") if path.name != "kustomization.yaml")


def load(name: str) -> Any:
    return yaml.safe_load((K8S / name).read_text())


@pytest.fixture
def defaults() -> Settings:
    return Settings()


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_is_valid_for_kubernetes(path: Path) -> None:
    manifest = yaml.safe_load(path.read_text())
    own = OWN_SCHEMAS.get(manifest["kind"])
    if own is None:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    else:
        schema = json.loads((SCHEMAS / own).read_text())
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.Draft202012Validator(schema).validate(manifest)


def test_the_schemas_refuse_what_is_wrong() -> None:
    schema = json.loads((SCHEMAS / "scaledobject.json").read_text())
    for wrong in ({"lagThreshold": 5}, {"lagTreshold": "5"}, {"allowIdleConsumers": "true"}, {"topic": None}):
        manifest = load("scaledobject.yaml")
        manifest["spec"]["triggers"][0]["metadata"].update(wrong)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(manifest, schema)
    deployment = load("deployment.yaml")
    del deployment["spec"]["selector"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, KUBERNETES, strict=True)


def test_kustomize_applies_every_manifest_but_the_alternative_autoscaler() -> None:
    assert set(load("kustomization.yaml")["resources"]) == {path.name for path in MANIFESTS} - {"hpa.yaml"}


def test_everything_points_at_the_deployment() -> None:
    deployment = load("deployment.yaml")
    name, labels = deployment["metadata"]["name"], deployment["spec"]["template"]["metadata"]["labels"]
    assert load("scaledobject.yaml")["spec"]["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": name,
    }
    assert load("hpa.yaml")["spec"]["scaleTargetRef"]["name"] == name
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert load("pdb.yaml")["spec"]["selector"]["matchLabels"] == labels
    assert load("service.yaml")["spec"]["selector"] == labels
    monitor, service = load("servicemonitor.yaml")["spec"], load("service.yaml")
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (port,) = service["spec"]["ports"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (container_port,) = container["ports"]
    assert {port["targetPort"], monitor["endpoints"][0]["port"], port["name"]} == {container_port["name"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == container_port["name"]
        assert container[probe]["httpGet"]["path"] in ("/healthz", "/readyz")


def test_a_deployment_leaves_its_replicas_to_the_autoscaler_and_its_workers_time_to_stop() -> None:
    spec = load("deployment.yaml")["spec"]
    assert "replicas" not in spec
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] >= 2 * STOP_TIMEOUT_S


def test_the_container_is_configured_by_settings_that_exist_and_as_the_autoscalers_think(defaults: Settings) -> None:
    (container,) = load("deployment.yaml")["spec"]["template"]["spec"]["containers"]
    environ = {item["name"]: item["value"] for item in container["env"]}
    settings = load_settings(None, environ={**environ, "WORKERS_CONFIG": str(ROOT / "config" / "workers.toml")})
    assert settings.metrics.port == container["ports"][0]["containerPort"] == defaults.metrics.port
    assert settings.application_id == defaults.application_id
    assert settings.topics == defaults.topics
    scaled = load("scaledobject.yaml")["spec"]
    kafka = scaled["triggers"][0]["metadata"]
    assert kafka["bootstrapServers"] == settings.bootstrap_servers
    assert kafka["consumerGroup"] == settings.application_id
    assert kafka["topic"] == settings.topics.ticks
    assert kafka["offsetResetPolicy"] == settings.kafka.auto_offset_reset
    assert scaled["maxReplicaCount"] == load("hpa.yaml")["spec"]["maxReplicas"] == settings.topics.partitions
    assert int(kafka["lagThreshold"]) < settings.backpressure.soft_lag, "workers come before producers are slowed"
    labels = load("hpa.yaml")["spec"]["metrics"][0]["external"]["metric"]["selector"]["matchLabels"]
    assert labels == {"consumergroup": settings.application_id, "topic": settings.topics.ticks}


def test_the_image_is_that_of_this_version() -> None:
    from workers import __version__

    (container,) = load("deployment.yaml")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"tick-workers:{__version__}"
    user = re.search(r"^USER (\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert user is not None
    assert load("deployment.yaml")["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == int(user[1])


def test_scaling_down_is_slow_and_one_by_one() -> None:
    for behavior in (
        load("scaledobject.yaml")["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"],
        load("hpa.yaml")["spec"]["behavior"],
    ):
        assert behavior["scaleDown"]["stabilizationWindowSeconds"] >= 300
        assert [policy["value"] for policy in behavior["scaleDown"]["policies"]] == [1]
    assert load("scaledobject.yaml")["spec"]["minReplicaCount"] >= 1, "a group scaled to zero closes no windows"


# -- queries ----------------------------------------------------------------------------------------------------------


def dashboard() -> Any:
    return json.loads((ROOT / "config" / "grafana" / "dashboard.json").read_text())


def queries() -> Iterator[tuple[str, str]]:
    """Every PromQL expression of the project, and where it is."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield f"dashboard: {panel['title']}", target["expr"]
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield f"alert {rule['alert']}", rule["expr"]
    yield "scaledobject.yaml", load("scaledobject.yaml")["spec"]["triggers"][1]["metadata"]["query"]
    for item in load("hpa.yaml")["spec"]["metrics"]:
        if item["type"] == "External":
            yield "hpa.yaml", item["external"]["metric"]["name"]


def exported() -> dict[str, frozenset[str]]:
    """The labels of every series that the processes of this project export."""
    series = {}
    for row in Metrics().rows:
        suffixes = ("_bucket", "_sum", "_count") if row.kind == "histogram" else ("",)
        for suffix in suffixes:
            series[row.name + suffix] = frozenset(row.labels) | ({"le"} if suffix == "_bucket" else set())
    for family in StoreMetrics().registry.collect():
        series[family.name + ("_total" if family.type == "counter" else "")] = frozenset()
    for family in Metrics().registry.collect():
        if family.name.startswith("process_"):
            series.update({sample.name: frozenset() for sample in family.samples})
    return series


NAME = re.compile(r"\b(?:workers|kafka_consumergroup|pipeline|process)_[a-z0-9_]+\b")
SELECTOR = re.compile(r"\b((?:workers|kafka_consumergroup|pipeline|process)_[a-z0-9_]+)\{([^}]*)\}")


@pytest.mark.parametrize(("where", "query"), [pytest.param(*found, id=found[0]) for found in queries()])
def test_a_query_asks_for_series_and_labels_that_exist(where: str, query: str) -> None:
    series = exported()
    names = NAME.findall(query)
    assert names, f"{where} asks for nothing of this project"
    assert [name for name in names if name not in series] == []
    for name, selector in SELECTOR.findall(query):
        labels = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", selector))
        assert labels <= series[name], f"{name} has no label {labels - series[name]}"
    grouped = {label.strip() for found in re.findall(r"\bby \(([^)]*)\)", query) for label in found.split(",")}
    known = set().union(*(series[name] for name in names)) | {"instance", "job"}
    assert grouped <= known, f"grouped by {grouped - known}, which none of {names} has"


def test_alerts_name_settings_and_metrics_that_exist() -> None:
    text = (PROMETHEUS / "alerts.yml").read_text()
    assert [name for name in NAME.findall(text) if name not in exported()] == []
    for section, key in re.findall(r"\b(window|topics|lane|backpressure)\.([a-z_]+)", text):
        assert hasattr(getattr(Settings(), section), key)


def test_the_dashboard_has_no_two_panels_in_one_place() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not mine & cells, panel["title"]
        cells |= mine


def test_prometheus_scrapes_what_compose_starts(defaults: Settings) -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    (job,) = config["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    assert set(found["names"]) <= compose["services"].keys()
    assert found["port"] == defaults.metrics.port
    assert parse_duration(config["global"]["scrape_interval"]) > 0


# -- promtool ---------------------------------------------------------------------------------------------------------


def promtool(*arguments: str) -> str:
    tool = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed (Debian: the package prometheus)")
    done = subprocess.run([tool, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    assert "11 rules found" in promtool("check", "config", "prometheus.yml")


def test_alerts_fire_when_they_should_and_only_then() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")


def test_promql_of_the_dashboard_parses(tmp_path: Path) -> None:
    rules = [
        {"record": f"q{number}", "expr": re.sub(r"\$__rate_interval", "1m", query).replace("$group", "g")}
        for number, (_where, query) in enumerate(queries())
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    promtool("check", "rules", str(path))
