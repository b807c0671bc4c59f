"""The dashboard asks for what is there, in the order of a person's questions, and
docker-compose.yml brings it up."""

from __future__ import annotations

import re
from itertools import combinations
from typing import Any

import pytest
import yaml

from deploy.local.paths import REPOSITORY
from tests.support.dashboard import (
    DASHBOARD,
    PANELS,
    PATH,
    QUERIES,
    RECORD,
    ROWS,
    VARIABLES,
    exported,
    named,
)

RECORDS = {
    rule["record"]
    for group in yaml.safe_load((REPOSITORY / "deploy/prometheus/records.yml").read_text())[
        "groups"
    ]
    for rule in group["rules"]
}
GRAFANAS_OWN = {"__rate_interval", "__range"}
GRAFANA: dict[str, Any] = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())[
    "services"
]["grafana"]


def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
    place = panel["gridPos"]
    return {
        (place["x"] + right, place["y"] + down)
        for right in range(place["w"])
        for down in range(place["h"])
    }


def test_its_rows_are_a_persons_questions_in_order() -> None:
    assert ROWS == [
        "Is work flowing?",
        "How long does it take?",
        "What fails?",
        "What is stuck?",
        "Are Kestra and RabbitMQ well?",
    ]


def test_each_panel_says_what_it_shows() -> None:
    shown = [panel for panel in PANELS if panel["type"] != "row"]
    assert [
        panel["title"] for panel in shown if not panel.get("description") or not panel["targets"]
    ] == []


def test_no_two_panels_overlap_or_have_the_same_id() -> None:
    overlapping = [
        (a["title"], b["title"]) for a, b in combinations(PANELS, 2) if cells(a) & cells(b)
    ]
    assert overlapping == []
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)


def test_no_panel_is_wider_than_the_screen() -> None:
    assert max(x for panel in PANELS for x, _ in cells(panel)) == 23


def test_installation_lane_and_replica_can_be_chosen() -> None:
    assert {"datasource", "namespace", "vhost", "lane", "instance"} == VARIABLES.keys()


def test_all_namespaces_are_also_that_of_series_without_one() -> None:
    assert re.fullmatch(VARIABLES["namespace"]["allValue"], "")


@pytest.mark.parametrize("expr", QUERIES.values(), ids=QUERIES)
def test_the_namespace_that_is_chosen_holds_for_every_series(expr: str) -> None:
    series = re.findall(
        r"\b(?:[a-z]+:\w+:\w+|(?:bridge|rabbitmq|process)_\w+|up|ALERTS)\b({[^}]*})?", expr
    )
    assert series
    assert [labels for labels in series if 'namespace=~"$namespace"' not in labels] == []


@pytest.mark.parametrize(
    "expr", [expr for expr in QUERIES.values() if "rabbitmq" in expr and "queue" in expr]
)
def test_the_virtual_host_that_is_chosen_holds_for_every_queue(expr: str) -> None:
    assert 'vhost=~"$vhost"' in expr


def test_each_variable_that_is_used_is_there_and_each_is_used() -> None:
    used = set(re.findall(r"\$\{?(\w+)", " ".join(QUERIES.values()))) - GRAFANAS_OWN
    assert used | {"datasource"} == VARIABLES.keys()


def test_every_panel_asks_the_prometheus_that_is_chosen() -> None:
    asked = [panel["datasource"]["uid"] for panel in PANELS if panel["type"] != "row"]
    assert set(asked) == {"${datasource}"}


@pytest.mark.parametrize("expr", QUERIES.values(), ids=QUERIES)
def test_the_lane_that_is_chosen_holds_for_whatever_has_a_lane(expr: str) -> None:
    without = re.findall(r'\b(bridge_[a-z_]+)\b(?!{[^}]*lane=~"\$lane")', re.sub(RECORD, "", expr))
    assert [name for name in without if name in exported(label="lane")] == []


@pytest.mark.parametrize("expr", QUERIES.values(), ids=QUERIES)
def test_each_metric_of_the_bridges_is_exported_and_each_record_made(expr: str) -> None:
    assert set(re.findall(RECORD, expr)) <= RECORDS
    assert named(expr) <= exported()


def test_grafana_is_given_the_dashboard_where_its_provider_looks() -> None:
    (provider,) = yaml.safe_load((PATH.parent / "dashboards.yml").read_text())["providers"]
    mounts = dict(mount.split(":")[:2] for mount in GRAFANA["volumes"])
    assert (
        mounts[f"./{PATH.relative_to(REPOSITORY)}"] == f"{provider['options']['path']}/{PATH.name}"
    )
    assert GRAFANA["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] in mounts.values()


def test_grafanas_data_source_is_the_composed_prometheus() -> None:
    (source,) = yaml.safe_load((PATH.parent / "datasources.yml").read_text())["datasources"]
    assert (source["type"], source["url"], source["isDefault"]) == (
        "prometheus",
        "http://prometheus:9090",
        True,
    )
    assert DASHBOARD["uid"] == "kestra-bridge"


def test_prometheus_is_given_its_rules_beside_its_configuration() -> None:
    compose = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
    mounted = {mount.split(":")[1] for mount in compose["services"]["prometheus"]["volumes"]}
    configuration = yaml.safe_load((REPOSITORY / "deploy/prometheus/prometheus.yml").read_text())
    assert {f"/etc/prometheus/{name}" for name in configuration["rule_files"]} <= mounted
