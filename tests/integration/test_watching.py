"""What is there to watch a bridge by is seen on a real run: a real Prometheus scraped it, a
collector got its spans.

One run is watched and kept, and each test looks at what is left of it.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from deploy.local.paths import REPOSITORY, free_port
from deploy.local.processes import Child
from tests.support.broker_stage import BrokerStage, Node, open_stage
from tests.support.dashboard import QUERIES, VARIABLES, filled
from tests.support.harness import Bridge, eventually
from tests.support.standin import Ends

DEPLOYED = REPOSITORY / "deploy" / "prometheus"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACED = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "shop=1"}
CHOSEN = {"namespace": ".*", "vhost": "/", "instance": ".+"}
MAY_BE_EMPTY = {"Alerts A"}
"""What has data only where something is wrong."""

pytestmark = pytest.mark.timeout(180)


class Prometheus:
    """A real one of its own, with the configuration that ships, but for its targets and for how
    often it looks."""

    def __init__(self, directory: Path, targets: dict[str, list[str]]) -> None:
        shipped = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text())
        shipped["global"] = {
            "scrape_interval": "1s",
            "scrape_timeout": "1s",
            "evaluation_interval": "1s",
        }
        shipped["rule_files"] = [str(DEPLOYED / name) for name in shipped["rule_files"]]
        for job in shipped["scrape_configs"]:
            job.pop("dns_sd_configs", None)
            job["static_configs"] = [{"targets": targets[job["job_name"].partition("-")[0]]}]
        configuration = directory / "prometheus.yml"
        configuration.write_text(yaml.safe_dump(shipped))
        self._url = f"http://127.0.0.1:{(port := free_port())}"
        self.child = Child(
            "Prometheus",
            [
                "prometheus",
                f"--config.file={configuration}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            log=directory / "prometheus.log",
        )

    def get(self, path: str, **parameters: str | float) -> Any:
        """The data of an answer of its API; fails where it is an error."""
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)["data"]

    def value(self, expr: str) -> float:
        """The sum of what a query gives now; 0 before it gives anything, or answers."""
        try:
            return sum(float(row["value"][1]) for row in self.get("query", query=expr)["result"])
        except OSError:
            return 0.0


@contextmanager
def collector() -> Iterator[tuple[str, list[Span]]]:
    """An OTLP collector on loopback: its address, and the spans that it got."""
    spans: list[Span] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            request = ExportTraceServiceRequest.FromString(body)
            spans.extend(
                span
                for resource in request.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            )
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", spans
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Watched:
    """What is left of the run that was watched."""

    prometheus: Prometheus
    lane: str
    end: float = 0.0
    spans: list[Span] = field(default_factory=list)
    handed_on: dict[str, dict[str, str]] = field(default_factory=dict)
    """The trace context of each job's last create call."""
    settled: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """The log lines of each job's settlements."""
    dead_letter: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)

    def query(self, expr: str) -> list[dict[str, Any]]:
        """What a query gave at the end of the run."""
        found: list[dict[str, Any]] = self.prometheus.get("query", query=expr, time=self.end)[
            "result"
        ]
        return found

    def named(self, name: str, job: str) -> list[Span]:
        """The spans of that name in the traces of a job's deliveries, in the order of their
        beginnings."""
        traces = {
            span.trace_id
            for span in self.spans
            if attributes(span).get("messaging.message.id") == job
        }
        found = [span for span in self.spans if span.trace_id in traces and span.name == name]
        return sorted(found, key=lambda span: span.start_time_unix_nano)


def attributes(span: Span) -> dict[str, Any]:
    def value(pair: KeyValue) -> Any:
        return getattr(pair.value, str(pair.value.WhichOneof("value")))

    return {pair.key: value(pair) for pair in span.attributes}


@pytest.fixture(scope="module")
def watched(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    directory = tmp_path_factory.mktemp("watched")
    rabbit = node("4.3")
    (directory / "run").mkdir()

    async def run() -> Watched:
        async with open_stage(directory / "run", rabbit, "quorum") as stage:
            return await _watch(directory, stage)

    found = asyncio.run(run())
    try:
        yield found
    finally:
        found.prometheus.child.kill()


async def _watch(directory: Path, stage: BrokerStage) -> Watched:
    """A run of two replicas, one that records spans and one that doesn't, each on a queue of its
    own."""
    stage.kestra.flow("test", "fails", Ends("FAILED", error="disk full"))
    plain_queue = f"{stage.name}.plain"
    with collector() as (endpoint, spans):
        recording = stage.bridge(max_attempts=2, prefetch=2, allowed_flows='["test/*"]')
        recording.environment |= {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }
        plain = stage.bridge(queue=plain_queue)
        await asyncio.gather(recording.start(), plain.start())
        metrics = urllib.parse.urlsplit(stage.rabbit.metrics_url).netloc
        prometheus = Prometheus(
            directory,
            {
                "bridge": [
                    urllib.parse.urlsplit(bridge.http).netloc for bridge in (recording, plain)
                ],
                "rabbitmq": [metrics],
                "kestra": [urllib.parse.urlsplit(stage.kestra.url).netloc],
            },
        )
        try:
            await _ready(prometheus)
            found = Watched(prometheus, lane=stage.queue, spans=spans)
            await _work(stage, found, recording, plain, plain_queue)
            await recording.stop()
        except BaseException:
            prometheus.child.kill()
            raise
        return found


async def _ready(prometheus: Prometheus) -> None:
    def scraped() -> bool:
        assert prometheus.child.alive, prometheus.child.tail()
        return prometheus.value('count(process_start_time_seconds{job="bridge"})') == 2

    await eventually(lambda: asyncio.to_thread(scraped), "both replicas were scraped")


async def _work(
    stage: BrokerStage, found: Watched, recording: Bridge, plain: Bridge, plain_queue: str
) -> None:
    """Some jobs, one of which fails for good, until all is scraped that they should leave
    behind."""
    results = await stage.client.channel.declare_queue(exclusive=True)
    await stage.client.submit(plain_queue, job="passed-on", headers=TRACED, reply_to=results.name)
    for number in range(3):
        await stage.submit(f"good-{number}", priority=number, timestamp=datetime.now(UTC))
    await stage.submit("malformed", headers={"traceparent": "00-nonsense", "tracestate": 7})
    await stage.submit("fails", {"flow": "test/fails"}, headers=TRACED)
    await recording.settled(6)
    await plain.settled(1)
    (result,) = await stage.client.take(results.name)
    found.result = dict(result.headers)

    expected = {
        "sum(bridge_outcomes_total)": 7,
        f'sum(lane:rabbitmq_queue_messages_ready:max{{lane="{stage.queue}.dead"}})': 1,
        'count(ALERTS{alertname="BridgeDeadLetters", alertstate="firing"})': 1,
    }

    def scraped() -> bool:
        return all(found.prometheus.value(expr) == value for expr, value in expected.items())

    await eventually(
        lambda: asyncio.to_thread(scraped),
        "the ends, the dead letter and the alert on it were scraped",
    )
    found.end = time.time()
    found.dead_letter = dict((await stage.dead_letter()).headers)
    for run in stage.kestra.created:
        found.handed_on[run.labels["bridgeJob"]] = dict(run.trace)
    for line in recording.events("settled") + plain.events("settled"):
        found.settled.setdefault(line["job"], []).append(line)


# Prometheus and the dashboard.


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_of_the_dashboard_is_answered_and_has_data(watched: Watched, name: str) -> None:
    values = CHOSEN | {"lane": watched.lane, "__rate_interval": "20s", "__range": "1m"}
    rows = watched.query(filled(QUERIES[name], values))
    assert rows or name in MAY_BE_EMPTY


@pytest.mark.parametrize("name", ["lane", "instance"])
def test_a_variable_of_the_dashboard_has_a_value_for_each_that_there_is(
    watched: Watched, name: str
) -> None:
    assert VARIABLES[name]["definition"] == f"label_values(bridge_prefetch, {name})"
    found = watched.prometheus.get(f"label/{name}/values", **{"match[]": "bridge_prefetch"})
    assert len(found) == 2


def test_the_dashboards_figures_are_those_of_the_run(watched: Watched) -> None:
    values = CHOSEN | {"lane": watched.lane}
    (waiting,) = watched.query(filled(QUERIES["Dead letters in their queues A"], values))
    (replicas,) = watched.query(filled(QUERIES["Replicas up A"], values))
    assert (waiting["value"][1], replicas["value"][1]) == ("1", "2")


def test_a_lanes_figures_are_its_own(watched: Watched) -> None:
    counted = watched.query("sum by (lane) (bridge_outcomes_total)")
    found = {row["metric"]["lane"]: row["value"][1] for row in counted}
    assert (found.pop(watched.lane), list(found.values())) == ("6", ["1"])


@pytest.mark.parametrize(
    ("settlement", "reason", "count"),
    [("retry", "failed", "1"), ("dead_letter", "failed", "1"), ("ack", "", "4")],
)
def test_a_settlement_says_why(watched: Watched, settlement: str, reason: str, count: str) -> None:
    labels = f'lane="{watched.lane}", settlement="{settlement}"'
    rows = watched.query(f"sum by (reason) (bridge_settlements_total{{{labels}}}) > 0")
    assert [(row["metric"].get("reason", ""), row["value"][1]) for row in rows] == [(reason, count)]


def test_it_is_told_by_priority_how_long_jobs_waited(watched: Watched) -> None:
    rows = watched.query("sum by (priority) (bridge_queue_wait_seconds_count) > 0")
    assert {row["metric"]["priority"]: row["value"][1] for row in rows} == {
        "0": "1",
        "1": "1",
        "2": "1",
    }


def test_every_rule_is_evaluated_without_an_error(watched: Watched) -> None:
    groups = watched.prometheus.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 10
    assert [(rule["name"], rule["lastError"]) for rule in rules if rule["health"] != "ok"] == []


def test_a_run_with_a_dead_letter_raises_the_alert_on_it_and_no_other(watched: Watched) -> None:
    firing = watched.query('ALERTS{alertname=~"Bridge.*", alertstate="firing"}')
    assert [row["metric"]["alertname"] for row in firing] == ["BridgeDeadLetters"]


# Traces.


def test_without_opentelemetry_kestra_is_handed_the_publishers_context(watched: Watched) -> None:
    assert watched.handed_on["passed-on"] == TRACED


def test_without_opentelemetry_the_log_names_the_trace_and_the_publishers_span(
    watched: Watched,
) -> None:
    (line,) = watched.settled["passed-on"]
    assert (line["trace_id"], line["span_id"]) == (TRACE, PARENT)


def test_a_result_belongs_to_its_jobs_trace(watched: Watched) -> None:
    assert watched.result == TRACED


def test_a_dead_letter_keeps_the_publishers_context(watched: Watched) -> None:
    assert TRACED.items() <= watched.dead_letter.items()


def test_each_attempt_is_a_span_below_the_publishers(watched: Watched) -> None:
    attempts = watched.named(f"process {watched.lane}", "fails")
    parents = [(span.trace_id.hex(), span.parent_span_id.hex()) for span in attempts]
    assert parents == [(TRACE, PARENT), (TRACE, PARENT)]


def test_an_attempts_span_says_how_it_ended(watched: Watched) -> None:
    ends = [
        (attributes(span)["bridge.settlement"], attributes(span)["error.type"], span.status.code)
        for span in watched.named(f"process {watched.lane}", "fails")
    ]
    assert ends == [
        ("retry", "failed", Status.STATUS_CODE_ERROR),
        ("dead_letter", "failed", Status.STATUS_CODE_ERROR),
    ]


def test_a_success_is_no_error(watched: Watched) -> None:
    (span,) = watched.named(f"process {watched.lane}", "good-0")
    assert (attributes(span)["bridge.settlement"], span.status.code) == (
        "ack",
        Status.STATUS_CODE_UNSET,
    )


@pytest.mark.parametrize("step", ["create", "wait", "settle"])
def test_the_parts_of_a_delivery_are_spans_below_its_own(watched: Watched, step: str) -> None:
    (whole,) = watched.named(f"process {watched.lane}", "good-0")
    (part,) = watched.named(f"settle {watched.lane}" if step == "settle" else step, "good-0")
    assert part.parent_span_id == whole.span_id


def test_kestra_is_handed_the_span_of_the_create_call(watched: Watched) -> None:
    last = watched.named("create", "fails")[-1]
    assert watched.handed_on["fails"] == {
        "traceparent": f"00-{TRACE}-{last.span_id.hex()}-01",
        "tracestate": "shop=1",
    }


def test_a_malformed_context_costs_the_job_nothing_and_begins_a_trace_of_its_own(
    watched: Watched,
) -> None:
    (line,) = watched.settled["malformed"]
    (span,) = watched.named(f"process {watched.lane}", "malformed")
    assert (line["settlement"], line["trace_id"], span.parent_span_id) == (
        "ack",
        span.trace_id.hex(),
        b"",
    )


def test_log_lines_name_the_deliverys_own_span(watched: Watched) -> None:
    logged = [(line["trace_id"], line["span_id"]) for line in watched.settled["fails"]]
    assert logged == [
        (TRACE, span.span_id.hex()) for span in watched.named(f"process {watched.lane}", "fails")
    ]
