"""Kestra's JSON becomes the bridge's own types, or is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bridge.job.execution import Execution, State
from bridge.kestra import parse_execution
from tests.support.kestra_client import FLOW, ROW

BEGAN = datetime(2026, 11, 27, tzinfo=UTC)


class TestExecution:
    def test_is_read_from_a_row(self) -> None:
        assert parse_execution(ROW) == Execution(
            id="e1",
            flow=FLOW,
            state=State.RUNNING,
            labels={"bridgeJob": "job-1", "bridgeAttempt": "1"},
            started=datetime(2026, 1, 2, 3, 4, 5, 678901, UTC),
            original_id="e0",
        )

    def test_may_have_its_labels_as_a_map(self) -> None:
        assert parse_execution({**ROW, "labels": {"a": "b"}}).labels == {"a": "b"}

    def test_may_have_no_labels(self) -> None:
        assert parse_execution({**ROW, "labels": None}).labels == {}

    @pytest.mark.parametrize(
        "labels", [5, "bridgeJob:job-1", ["bridgeJob"], [{"value": "job-1"}], [{"key": 5}]]
    )
    def test_is_refused_where_its_labels_can_not_be_read(self, labels: object) -> None:
        with pytest.raises(ValueError, match="labels"):
            parse_execution({**ROW, "labels": labels})

    @pytest.mark.parametrize("missing", ["id", "namespace", "flowId", "state"])
    def test_is_refused_without_a_part(self, missing: str) -> None:
        row = {key: value for key, value in ROW.items() if key != missing}
        with pytest.raises(ValueError, match=missing):
            parse_execution(row)

    def test_may_have_a_state_that_a_newer_kestra_invented(self) -> None:
        assert parse_execution({**ROW, "state": {"current": "DREAMING"}}).state is State.UNKNOWN

    def test_is_triggered_where_it_names_a_trigger(self) -> None:
        trigger = {"id": "child", "type": "io.kestra.plugin.core.flow.Subflow"}
        assert parse_execution({**ROW, "trigger": trigger}).triggered

    @pytest.mark.parametrize("date", [None, 5, "yesterday"])
    def test_has_no_start_where_its_date_can_not_be_read(self, date: Any) -> None:
        row = {**ROW, "state": {"current": "RUNNING", "startDate": date}}
        assert parse_execution(row).started is None


class TestRunningSince:
    @pytest.mark.parametrize(
        ("states", "expected"),
        [
            ("CREATED", None),
            ("CREATED QUEUED", None),
            ("CREATED RUNNING", 1),
            ("CREATED QUEUED RUNNING SUCCESS", 2),
            ("CREATED RUNNING PAUSED RESTARTED RUNNING", 1),
            ("CREATED RUNNING FAILED", 1),
            ("CREATED RUNNING FAILED RESTARTED RUNNING", 4),
            ("CREATED RUNNING FAILED RESTARTED RUNNING SUCCESS", 4),
            ("CREATED FAILED", 1),
        ],
    )
    def test_follows_from_the_states_so_far(self, states: str, expected: int | None) -> None:
        dates = [BEGAN + timedelta(seconds=second) for second in range(10)]
        histories = [
            {"state": state, "date": date.isoformat()}
            for state, date in zip(states.split(), dates, strict=False)
        ]
        row = {**ROW, "state": {"current": "X", "histories": histories}}
        assert parse_execution(row).running_since == (None if expected is None else dates[expected])
