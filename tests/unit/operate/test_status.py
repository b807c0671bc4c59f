"""What `status` reports of each source's answer, and if there is none."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from bridge.cli.status_view import render
from bridge.errors import BridgeError
from bridge.job.execution import Execution, State
from bridge.job.flow_name import FlowName
from bridge.operate.sources import Unavailable
from bridge.operate.status.report import LaneStatus, Oldest, Status
from bridge.operate.status.snapshot import (
    BrokerSnapshot,
    KestraSnapshot,
    ManagementSnapshot,
    Snapshot,
)
from bridge.operate.status.summarize import summarize
from bridge.rabbitmq.inspector import Depth
from bridge.rabbitmq.management import Consumer, QueueState, ReplicaMetrics
from bridge.settings import Lane

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
QUEUE = "kestra.jobs"
LABELS = {"bridge": "amqp", "bridgeJob": "job-1", "bridgeAttempt": "2", "bridgeQueue": QUEUE}
AWAY = Unavailable(BridgeError("it is\naway"))


def execution(**changed: Any) -> Execution:
    kept: dict[str, Any] = {
        "id": "4n5ruBCMlTeYTGni73rtlW",
        "flow": FlowName("company.team", "report"),
        "state": State.RUNNING,
        "labels": LABELS,
        "started": NOW - timedelta(seconds=90),
    }
    return Execution(**{**kept, **changed})


def link(execution: Execution) -> str:
    return f"http://kestra:8080/ui/main/executions/{execution.flow}/{execution.id}"


def consumer(connection: str, *, prefetch: int = 8) -> Consumer:
    return Consumer(
        tag=f"kestra-bridge.{QUEUE}", connection=connection, host="10.0.0.7", prefetch=prefetch
    )


BROKER = BrokerSnapshot(
    version="4.3.6",
    depths={
        QUEUE: Depth(ready=3, consumers=1),
        f"{QUEUE}.retry.30": Depth(ready=2, consumers=0),
        f"{QUEUE}.dead": Depth(ready=140, consumers=0),
    },
    reasons={f"{QUEUE}.dead": {"failed": 90, "killed": 50}},
)
STATE = QueueState(
    name=QUEUE,
    kind="quorum",
    ready=4,
    in_flight=8,
    by_priority={"9": 3, "0": 1},
    consumers=(consumer("a -> b"),),
)
UNREAD = replace(BROKER, reasons={f"{QUEUE}.dead": AWAY})
MANAGEMENT = ManagementSnapshot(
    alarms=[], queues={QUEUE: STATE}, since={"a -> b": NOW - timedelta(hours=1)}
)
KESTRA = KestraSnapshot(version="2.0.0", now=NOW, unfinished=[execution()], link=link)
METRICS = ReplicaMetrics(in_flight={QUEUE: 5}, oldest=100.0, restarts={"channel_closed": 1})
FACTS = Snapshot(
    at=NOW,
    rabbitmq="rabbit:5672/",
    kestra_url="http://kestra:8080",
    lanes=[Lane(queue=QUEUE)],
    retry_delays=[30],
    broker=BROKER,
    management=MANAGEMENT,
    kestra=KESTRA,
)


def seen(**changed: Any) -> Status:
    return summarize(replace(FACTS, **changed))


def lane(**changed: Any) -> LaneStatus:
    (found,) = seen(**changed).lanes
    return found


class TestALane:
    def test_has_its_numbers_from_one_source_so_that_they_add_up(self) -> None:
        found = lane()
        assert (found.kind, found.ready, found.in_flight, found.consumers) == ("quorum", 4, 8, 1)

    def test_has_the_numbers_of_amqp_if_the_management_api_is_away(self) -> None:
        found = lane(management=AWAY)
        assert (found.kind, found.ready, found.in_flight, found.consumers) == (None, 3, None, 1)

    def test_has_the_numbers_of_the_management_api_if_amqp_is_away(self) -> None:
        found = lane(broker=AWAY)
        assert (found.exists, found.ready, found.consumers) == (True, 4, 1)

    def test_counts_in_flight_by_the_replicas_metrics_if_the_management_api_is_away(self) -> None:
        assert lane(management=AWAY, metrics={"a": METRICS, "b": METRICS}).in_flight == 10

    def test_has_no_number_in_flight_if_a_replica_does_not_answer(self) -> None:
        assert lane(management=AWAY, metrics={"a": METRICS, "b": AWAY}).in_flight is None

    def test_says_that_its_queue_does_not_exist(self) -> None:
        found = lane(
            broker=replace(BROKER, depths={QUEUE: None}), management=replace(MANAGEMENT, queues={})
        )
        assert (found.exists, found.ready) == (False, None)

    def test_has_its_retries_and_within_what_time_each_is_due(self) -> None:
        assert [(retry.queue, retry.delay, retry.messages) for retry in lane().retries] == [
            (f"{QUEUE}.retry.30", 30, 2)
        ]

    def test_counts_retries_that_were_due_and_are_not_back(self) -> None:
        name = f"{QUEUE}.retry.30"
        stuck = QueueState(name=name, kind="quorum", ready=0, handing_on=2)
        (retry,) = lane(management=replace(MANAGEMENT, queues={QUEUE: STATE, name: stuck})).retries
        assert retry.handing_on == 2

    def test_counts_messages_on_the_way_to_its_dead_letters(self) -> None:
        giving_up = replace(STATE, handing_on=3)
        assert lane(management=replace(MANAGEMENT, queues={QUEUE: giving_up})).handing_on == 3

    def test_has_its_dead_letters_and_their_reasons(self) -> None:
        dead = lane().dead_letters
        assert (dead.messages, dead.read, dead.reasons) == (140, 140, {"failed": 90, "killed": 50})

    def test_has_no_reasons_if_the_dead_letters_could_not_be_read(self) -> None:
        dead = lane(broker=UNREAD).dead_letters
        assert (dead.messages, dead.read, dead.reasons) == (140, 0, {})


class TestAJob:
    @pytest.mark.parametrize(
        ("state", "seconds", "expected"),
        [
            (State.CREATED, 61, True),
            (State.CREATED, 5, False),
            (State.RUNNING, 61, False),
            (State.QUEUED, 61, False),
        ],
    )
    def test_stands_out_once_kestra_has_not_begun_it_for_a_minute(
        self, state: State, seconds: int, expected: bool
    ) -> None:
        waiting = execution(state=state, started=NOW - timedelta(seconds=seconds))
        (job,) = seen(kestra=replace(KESTRA, unfinished=[waiting])).jobs or ()
        assert job.never_started is expected

    def test_has_state_age_and_link(self) -> None:
        (job,) = seen().jobs or ()
        assert (job.job, job.attempt, job.flow, job.state, job.age, job.url) == (
            "job-1",
            2,
            "company.team/report",
            "RUNNING",
            90.0,
            "http://kestra:8080/ui/main/executions/company.team/report/4n5ruBCMlTeYTGni73rtlW",
        )

    def test_of_another_queue_is_only_counted(self) -> None:
        other = execution(id="other", labels={**LABELS, "bridgeQueue": "other.jobs"})
        found = seen(kestra=replace(KESTRA, unfinished=[execution(), other]))
        assert (len(found.jobs or ()), found.jobs_elsewhere) == (1, 1)

    def test_that_does_not_name_its_queue_is_shown(self) -> None:
        labels = {key: value for key, value in LABELS.items() if key != "bridgeQueue"}
        assert (
            len(seen(kestra=replace(KESTRA, unfinished=[execution(labels=labels)])).jobs or ()) == 1
        )

    def test_is_no_subflow_that_inherited_its_labels(self) -> None:
        assert seen(kestra=replace(KESTRA, unfinished=[execution(triggered=True)])).jobs == []

    def test_comes_before_younger_ones(self) -> None:
        ages = [NOW - timedelta(seconds=seconds) for seconds in (5, 50, 20)]
        unfinished = [
            execution(id=f"e{index}", started=started) for index, started in enumerate(ages)
        ]
        found = seen(kestra=replace(KESTRA, unfinished=unfinished)).jobs or ()
        assert [job.execution for job in found] == ["e1", "e2", "e0"]

    @pytest.mark.parametrize("labels", [{}, {"bridgeAttempt": "many"}])
    def test_is_shown_whatever_somebody_did_to_its_labels(self, labels: dict[str, str]) -> None:
        (job,) = seen(kestra=replace(KESTRA, unfinished=[execution(labels=labels)])).jobs or ()
        assert (job.job, job.attempt) == ("", None)


class TestTheOldest:
    def test_is_the_replicas_oldest_delivery(self) -> None:
        oldest = seen(metrics={"a": METRICS, "b": replace(METRICS, oldest=200.0)}).oldest
        assert oldest == Oldest(what="delivery", seconds=200.0)

    def test_is_the_oldest_execution_if_no_metrics_are_known(self) -> None:
        assert seen().oldest == Oldest(what="execution", seconds=90.0)

    def test_is_unknown_if_nobody_answers(self) -> None:
        assert seen(kestra=AWAY).oldest is None


class TestReplicas:
    def test_are_consuming_connections_with_their_prefetch_in_each_lane(self) -> None:
        other = replace(STATE, name="other.jobs", consumers=(consumer("a -> b", prefetch=2),))
        lanes = [Lane(queue=QUEUE), Lane(queue="other.jobs")]
        queues = {
            QUEUE: replace(STATE, consumers=(consumer("a -> b"), consumer("c -> b"))),
            "other.jobs": other,
        }
        found = seen(lanes=lanes, management=replace(MANAGEMENT, queues=queues)).replicas or ()
        assert [(replica.host, replica.since, replica.prefetch) for replica in found] == [
            ("10.0.0.7", NOW - timedelta(hours=1), {QUEUE: 8, "other.jobs": 2}),
            ("10.0.0.7", None, {QUEUE: 8}),
        ]

    def test_are_shown_with_the_one_that_reports(self) -> None:
        queues = {QUEUE: replace(STATE, consumers=(consumer("a -> b"), consumer("c -> b")))}
        management = replace(MANAGEMENT, queues=queues, reporter="c -> b")
        found = seen(management=management).replicas or ()
        assert [replica.reporter for replica in found] == [False, True]

    def test_are_unknown_if_the_management_api_is_away(self) -> None:
        assert seen(management=AWAY).replicas is None

    def test_are_unknown_if_the_management_api_does_not_list_the_consumers_yet(
        self,
    ) -> None:
        found = seen(management=replace(MANAGEMENT, queues={QUEUE: replace(STATE, consumers=())}))
        assert (found.replicas, len(found.unknown)) == (None, 1)

    def test_are_none_if_nobody_consumes(self) -> None:
        idle = replace(BROKER, depths={QUEUE: Depth(ready=3, consumers=0)})
        assert seen(broker=idle, management=replace(MANAGEMENT, queues={})).replicas == []


class TestWhatIsUnknown:
    def test_is_nothing_if_all_answer(self) -> None:
        assert seen(metrics={"a": METRICS}).unknown == []

    @pytest.mark.parametrize(
        ("away", "text"),
        [
            ({"broker": AWAY}, "ready messages, consumers, dead letters: it is away"),
            ({"broker": UNREAD}, f"reasons in {QUEUE}.dead: it is away"),
            ({"management": AWAY}, "in flight, priorities, alarms, replicas: it is away"),
            (
                {"management": AWAY, "metrics": {"a": METRICS}},
                "priorities, alarms, replicas: it is away",
            ),
            ({"kestra": AWAY}, "jobs: it is away"),
            ({"metrics": {"a": AWAY}}, "a replica's metrics: it is away"),
        ],
    )
    def test_is_said_with_the_reason_on_one_line(self, away: dict[str, Any], text: str) -> None:
        assert seen(**away).unknown == [text]


MANY = [
    execution(id=f"{index:022}", labels={**LABELS, "bridgeJob": f"{index:032x}"})
    for index in range(12)
]
BUSY: dict[str, Any] = {
    "kestra": replace(KESTRA, unfinished=MANY),
    "metrics": {"http://10.0.0.7:9464/metrics": METRICS},
}


def screen(width: int, *, jobs: int | None = None, **changed: Any) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    console.print(render(seen(**changed), width, jobs=jobs))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


class TestTheScreen:
    @pytest.mark.parametrize("width", [80, 110, 160, 1000])
    def test_is_no_wider_than_the_terminal(self, width: int) -> None:
        assert max(len(line) for line in screen(width, **BUSY)) <= width

    @pytest.mark.parametrize("width", [80, 160])
    def test_has_each_job_on_one_line(self, width: int) -> None:
        assert sum(
            "RUNNING" in line and " 1 min 30 s" in line for line in screen(width, **BUSY)
        ) == len(MANY)

    def test_has_the_executions_links_if_there_is_room(self) -> None:
        assert sum(
            link(execution) in line for line in screen(160, **BUSY) for execution in MANY
        ) == len(MANY)

    def test_says_elsewhere_where_an_executions_page_is(self) -> None:
        text = "".join(line.strip() for line in screen(80, **BUSY))
        assert (
            "An execution's page:http://kestra:8080/ui/main/executions/NAMESPACE/FLOW/EXECUTION"
            in text
        )

    def test_shows_as_many_jobs_as_fit_and_says_how_many_more_there_are(self) -> None:
        lines = screen(80, jobs=5, **BUSY)
        assert (sum("RUNNING" in line for line in lines), "7 younger ones" in "".join(lines)) == (
            5,
            True,
        )

    @pytest.mark.parametrize(
        "text",
        [
            "RabbitMQ 4.3.6 at rabbit:5672/, no alarms",
            "Kestra 2.0.0 at http://kestra:8080",
            "the oldest delivery has taken 1 min 40 s",
            "9: 3, 0: 1",
            "the next is due within 30 s",
            "failed: 90, killed: 50",
            "Executions under way: 12",
            "channel_closed: 1",
        ],
    )
    @pytest.mark.parametrize("width", [80, 160])
    def test_says(self, width: int, text: str) -> None:
        assert any(text in line for line in screen(width, **BUSY))

    def test_says_how_many_dead_letters_were_read_if_more_have_come(self) -> None:
        broker = replace(BROKER, reasons={f"{QUEUE}.dead": {"failed": 90}})
        assert any(
            "failed: 90 (of 90 that were looked at)" in line for line in screen(80, broker=broker)
        )

    def test_says_how_many_messages_are_ready_of_whose_priority_the_broker_says_nothing(
        self,
    ) -> None:
        queues = {QUEUE: replace(STATE, ready=9)}
        lines = screen(160, management=replace(MANAGEMENT, queues=queues))
        assert any("9: 3, 0: 1, of others: 5" in line for line in lines)

    def test_says_what_keeps_the_broker_from_taking_messages(self) -> None:
        lines = screen(160, management=replace(MANAGEMENT, alarms=["memory on rabbit@a"]))
        assert lines[0].endswith("takes no messages: memory on rabbit@a")

    def test_says_who_does_not_answer_and_why(self) -> None:
        lines = screen(160, broker=AWAY, management=AWAY, kestra=AWAY)
        assert (lines[0], lines[1], lines[-1]) == (
            "RabbitMQ no answer at rabbit:5672/",
            "Kestra no answer at http://kestra:8080",
            "  jobs: it is away",
        )

    def test_can_not_be_moved_by_a_label(self) -> None:
        moving = execution(labels={**LABELS, "bridgeJob": "a\x1b[2Jb"})
        assert any(
            "a?[2Jb" in line for line in screen(80, kestra=replace(KESTRA, unfinished=[moving]))
        )


def test_the_report_is_json_too() -> None:
    data = json.loads(json.dumps(seen(metrics={"a": METRICS}).as_data()))
    assert (data["at"], data["lanes"][0]["retries"][0]["messages"], data["jobs"][0]["age"]) == (
        "2026-11-24T12:00:00+00:00",
        2,
        90.0,
    )
