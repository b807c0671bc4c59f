"""What is told on the reply exchange: what replicas read is what the reporter wrote."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from bridge.consume.reports import (
    IDS_IN_A_MESSAGE,
    Completion,
    ListPart,
    Sign,
    end_reply,
    list_parts,
    parse,
    sign,
)
from bridge.job.execution import Execution, State
from bridge.job.flow_name import FlowName

ENDED = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
EXECUTION = Execution(id="e1", flow=FlowName("a.b", "f"), state=State.FAILED, ended=ENDED)


def reply(**more: Any) -> bytes:
    body = {"executionId": "e1", "state": "FAILED", "namespace": "n", "flowId": "f", **more}
    return json.dumps(body).encode()


class TestAnEnd:
    def test_has_the_notifiers_routing_key(self) -> None:
        key, _ = end_reply(EXECUTION)
        assert key == "FAILED.a.b.f"

    def test_has_the_notifiers_body_and_says_who_tells(self) -> None:
        _, message = end_reply(EXECUTION)
        assert json.loads(message.body) == {
            "executionId": "e1",
            "state": "FAILED",
            "namespace": "a.b",
            "flowId": "f",
            "endedAt": "2026-01-02T03:04:05.678000+00:00",
            "by": "reporter",
        }

    def test_is_read_as_it_was_written(self) -> None:
        _, message = end_reply(EXECUTION)
        assert parse(message.body) == Completion(
            execution_id="e1", state=State.FAILED, ended=ENDED, by="reporter"
        )

    @pytest.mark.parametrize("more", [{}, {"by": "notifier"}, {"by": "me"}, {"by": 5}])
    def test_is_the_notifiers_unless_it_is_the_reporters(self, more: dict[str, Any]) -> None:
        report = parse(reply(endedAt="2026-01-02T03:04:05.678Z", **more))
        assert report == Completion(
            execution_id="e1", state=State.FAILED, ended=ENDED, by="notifier"
        )

    @pytest.mark.parametrize("moment", [None, 5, "", "yesterday", "2026-01-02T03:04:05", ["x"]])
    def test_may_have_a_time_that_is_no_moment(self, moment: Any) -> None:
        report = parse(reply(endedAt=moment))
        assert isinstance(report, Completion)
        assert report.ended is None

    @pytest.mark.parametrize("part", ["executionId", "state"])
    def test_has_no_part_of_another_type(self, part: str) -> None:
        with pytest.raises(ValueError, match=f"no {part}"):
            parse(reply(**{part: 5}))


class TestAList:
    def test_is_one_message_even_where_nothing_runs(self) -> None:
        (part,) = list_parts("q", [], seconds=0.5)
        assert parse(part.body) == ListPart(
            reporter="q",
            list_id=json.loads(part.body)["list"],
            part=1,
            parts=1,
            seconds=0.5,
            unfinished=frozenset(),
        )

    def test_of_many_is_several_messages_that_hold_all_of_it(self) -> None:
        ids = [f"e{number}" for number in range(IDS_IN_A_MESSAGE + 1)]
        parts = [parse(message.body) for message in list_parts("q", ids, seconds=0)]
        held = [part.unfinished for part in parts if isinstance(part, ListPart)]
        assert [len(part) for part in held] == [IDS_IN_A_MESSAGE, 1]
        assert frozenset().union(*held) == set(ids)

    @pytest.mark.parametrize(
        "change",
        [
            {"unfinished": "e1"},
            {"unfinished": [5]},
            {"reporter": None},
            {"list": 5},
            {"part": 2},
            {"part": 0},
            {"parts": 10**9},
            {"seconds": -1},
            {"seconds": "1"},
        ],
        ids=str,
    )
    def test_is_refused_with_a_part_that_can_not_be(self, change: dict[str, Any]) -> None:
        (message,) = list_parts("q", ["e1"], seconds=0)
        body = json.loads(message.body) | change
        with pytest.raises(ValueError, match="no "):
            parse(json.dumps(body).encode())


def test_a_sign_of_life_is_read_as_it_was_written() -> None:
    assert parse(sign("q", asked=0.25).body) == Sign(reporter="q", asked=0.25)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"[]", b"null", b"{}", b'{"executionId": "e1"}', b'{"asked": {}}']
)
def test_anything_else_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (pydantic's and ours)
        parse(body)
