"""What has become of dead letters' executions meanwhile, asked of a stand-in for Kestra."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from bridge.errors import KestraUnavailable
from bridge.job.message import Message
from bridge.kestra import Kestra
from bridge.operate.dead_letters.executions import has_one, look_up
from bridge.operate.dead_letters.letter import DeadLetter, parse
from bridge.settings import KestraSettings
from tests.support.standin import Run, Standin

LABELS = {"bridge": "amqp", "bridgeJob": "day-1", "bridgeAttempt": "3", "bridgeQueue": "q"}


@pytest.fixture
async def standin() -> AsyncIterator[Standin]:
    async with Standin() as server:
        yield server


@pytest.fixture
async def kestra(standin: Standin) -> AsyncIterator[Kestra]:
    settings = KestraSettings(
        kestra_url=standin.url, kestra_username=standin.username, kestra_password=standin.password
    )
    async with Kestra(settings) as client:
        yield client


def letter(execution: str | None, job: str = "day-1", reason: str | None = "failed") -> DeadLetter:
    headers = {"x-bridge-reason": reason, "x-bridge-attempt": 3, "x-bridge-execution": execution}
    return parse(Message(body=b"{}", message_id=job, headers=headers), queue="q", default_flow=None)


async def states(kestra: Kestra, *letters: DeadLetter) -> list[set[str]]:
    """The states of each letter's executions."""
    found = await look_up(kestra, letters, lambda: None)
    return [{execution.state.value for execution in found[each.key]} for each in letters]


def failed(standin: Standin) -> Run:
    return standin.past(LABELS, "FAILED")


async def test_an_execution_is_as_it_was(kestra: Kestra, standin: Standin) -> None:
    assert await states(kestra, letter(failed(standin).id)) == [{"FAILED"}]


async def test_a_restart_that_succeeded_is_seen(kestra: Kestra, standin: Standin) -> None:
    run = standin.past(LABELS, "FAILED", "RESTARTED", "SUCCESS")
    assert await states(kestra, letter(run.id)) == [{"SUCCESS"}]


@pytest.mark.parametrize("label", ["system.replay", "system.restarted"])
async def test_a_replay_and_a_restart_of_another_revision_are_seen_under_their_own_ids(
    kestra: Kestra, standin: Standin, label: str
) -> None:
    run = failed(standin)
    standin.past(LABELS | {label: "true"}, "SUCCESS", original=run)
    assert await states(kestra, letter(run.id)) == [{"FAILED", "SUCCESS"}]


async def test_a_replay_of_another_queues_job_is_not_taken_for_ours(
    kestra: Kestra, standin: Standin
) -> None:
    run = failed(standin)
    standin.past(LABELS | {"system.replay": "true", "bridgeQueue": "other"}, "SUCCESS")
    assert await states(kestra, letter(run.id)) == [{"FAILED"}]


async def test_a_flows_own_retry_is_followed(kestra: Kestra, standin: Standin) -> None:
    run = standin.past(LABELS, "RETRIED")
    standin.past(LABELS, "SUCCESS", original=run)
    assert await states(kestra, letter(run.id)) == [{"RETRIED", "SUCCESS"}]


async def test_an_execution_that_kestra_knows_no_more_says_nothing(
    kestra: Kestra, standin: Standin
) -> None:
    run = failed(standin)
    standin.forget(run.id)
    assert await states(kestra, letter(run.id)) == [set()]


async def test_what_rabbitmq_gave_up_is_looked_for_by_its_labels(
    kestra: Kestra, standin: Standin
) -> None:
    standin.past(LABELS, "SUCCESS")
    assert await states(kestra, letter(None, reason=None)) == [{"SUCCESS"}]


async def test_many_letters_cost_a_question_by_id_each_and_two_searches(
    kestra: Kestra, standin: Standin
) -> None:
    await kestra.probe()
    standin.requests.clear()
    letters = [
        letter(standin.past(LABELS | {"bridgeJob": f"j{n}"}, "FAILED").id, f"j{n}")
        for n in range(30)
    ]
    await look_up(kestra, letters, lambda: None)
    assert standin.requests == {"get": 30, "search": 2}


async def test_a_kestra_that_is_away_is_one_error(kestra: Kestra, standin: Standin) -> None:
    await standin.down()
    with pytest.raises(KestraUnavailable, match="can't reach Kestra"):
        await look_up(kestra, [letter("e1"), letter("e2", "day-2")], lambda: None)


@pytest.mark.parametrize(
    ("execution", "reason", "may"),
    [
        ("e1", "failed", True),
        (None, "invalid_message", False),
        (None, "rejected_by_kestra", False),
        (None, None, True),
    ],
)
def test_only_who_may_have_had_an_execution_is_asked_for(
    execution: str | None, reason: str | None, may: bool
) -> None:
    assert has_one(letter(execution, reason=reason)) is may
