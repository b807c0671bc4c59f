"""Each alert fires on the series that it is for and on no healthy ones, and a person finds out what
to do about it."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.local.paths import REPOSITORY
from tests.support.commands import in_markdown, unknown_in
from tests.support.dashboard import RECORD, exported, exported_of_machines, named

PROMETHEUS = REPOSITORY / "deploy" / "prometheus"
RUNBOOK = (PROMETHEUS / "RUNBOOK.md").read_text()
PLANTED = Path(__file__).with_name("alerts.yml")


def rules(name: str) -> list[dict[str, Any]]:
    return [
        rule
        for group in yaml.safe_load((PROMETHEUS / name).read_text())["groups"]
        for rule in group["rules"]
    ]


ALERTS = rules("alerts.yml")
NAMES = [alert["alert"] for alert in ALERTS]
EXPECTATIONS = [
    (expectation["expr"], expectation["exp_samples"][0]["value"])
    for test in yaml.safe_load(PLANTED.read_text())["tests"]
    for expectation in test.get("promql_expr_test", ())
]


OTHER_THAN_LOG_LINES = r"docker |kestra-bridge |dead-letters |labels: "
"""How phrases begin that the runbook has in backticks and that are no lines of the log."""


def entry(name: str) -> str:
    """What the runbook says of an alert."""
    return RUNBOOK.partition(f"## {name}\n")[2].partition("\n## ")[0]


def texts_of_the_bridge() -> set[str]:
    """Every string in the bridge's code."""
    trees = [ast.parse(path.read_text()) for path in (REPOSITORY / "bridge").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return {node.value for node in nodes if isinstance(node.value, str)}


def promtool(*arguments: str | Path) -> str:
    """What it says, if it succeeds; else the test fails with it."""
    done = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_its_configuration_and_the_rules() -> None:
    found = [
        int(number)
        for number in re.findall(
            r"(\d+) rules found", promtool("check", "config", PROMETHEUS / "prometheus.yml")
        )
    ]
    assert found == [len(rules("records.yml")), len(ALERTS)]


def test_alerts_fire_on_planted_series_and_stay_silent_on_healthy_ones() -> None:
    assert "SUCCESS" in promtool("test", "rules", PLANTED)


@pytest.mark.parametrize("name", NAMES)
def test_an_alert_is_expected_to_fire_in_one_test_and_not_to_in_another(name: str) -> None:
    expected = {value for expr, value in EXPECTATIONS if f'alertname="{name}"' in expr}
    assert expected == {0, 1}


@pytest.mark.parametrize("alert", ALERTS, ids=NAMES)
def test_an_alert_says_how_urgent_it_is_and_where_its_entry_is(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning")
    path, _, anchor = alert["annotations"]["runbook"].partition("#")
    assert (REPOSITORY / path, anchor) == (PROMETHEUS / "RUNBOOK.md", alert["alert"].lower())


@pytest.mark.parametrize("alert", ALERTS, ids=NAMES)
def test_a_link_to_the_entry_goes_where_the_operator_keeps_the_runbook(
    alert: dict[str, Any],
) -> None:
    base = '{{ or $externalLabels.kestra_bridge_runbook "deploy/prometheus/RUNBOOK.md" }}'
    assert alert["annotations"]["runbook_url"] == f"{base}#{alert['alert'].lower()}"


@pytest.mark.parametrize("alert", ALERTS, ids=NAMES)
def test_an_alert_says_more_than_its_summary(alert: dict[str, Any]) -> None:
    assert alert["annotations"]["description"].endswith(".")


@pytest.mark.parametrize(
    "rule", [*ALERTS, *rules("records.yml")], ids=lambda rule: rule.get("alert") or rule["record"]
)
def test_what_is_added_up_stays_apart_by_installation(rule: dict[str, Any]) -> None:
    summed = re.findall(
        r"\b(?:sum|max|min|group|count)\b(?: by \(([^)]*)\))?", re.sub(RECORD, "", rule["expr"])
    )
    assert [labels for labels in summed if "namespace" not in labels.split(", ")] == []


def test_each_alert_has_an_entry_and_each_entry_an_alert() -> None:
    assert re.findall(r"^## (.+)$", RUNBOOK, re.MULTILINE) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_says_what_it_means_then_what_to_look_at_then_what_to_do(name: str) -> None:
    parts = re.findall(r"^\*\*([A-Z][a-z ]+)\.?\*\*", entry(name), re.MULTILINE)
    assert parts == ["Means", "Look at", "Do"]


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_names_a_command_or_a_setting_that_helps(name: str) -> None:
    assert re.search(r"`docker compose|`BRIDGE_", entry(name))


@pytest.mark.parametrize("command", sorted(set(in_markdown(RUNBOOK))))
def test_a_command_of_ours_that_the_runbook_names_is_there(command: str) -> None:
    assert unknown_in(command) is None


def test_a_log_line_that_the_runbook_names_is_one_of_the_bridges() -> None:
    named = re.findall(r"`([a-z][^`]* [^`]*)`", " ".join(RUNBOOK.split()))
    lines = {line for line in named if not re.match(OTHER_THAN_LOG_LINES, line)}
    assert "a publish failed, trying again" in lines
    assert lines - texts_of_the_bridge() == set()


@pytest.mark.parametrize(
    "path",
    [
        *(PROMETHEUS / name for name in ("records.yml", "alerts.yml", "RUNBOOK.md")),
        REPOSITORY / "deploy" / "README.md",
    ],
    ids=lambda path: path.name,
)
def test_every_metric_that_is_named_is_exported(path: Path) -> None:
    assert named(path.read_text()) - exported() - exported_of_machines() == set()


def test_every_record_that_is_used_is_made() -> None:
    made = {rule["record"] for rule in rules("records.yml")}
    used = set(re.findall(RECORD, " ".join(alert["expr"] for alert in ALERTS)))
    assert used
    assert used <= made
