"""Which machines are destroyed, and why."""

from __future__ import annotations

import pytest

from bridge.errors import KestraUnavailable
from bridge.machines.lifecycle import Machines
from bridge.machines.reaping import UNKNOWN_AFTER, Sweep, reap, why_reap
from tests.unit.machines.support import TAGS, MemoryDriver, settings, use_memory


@pytest.mark.parametrize(
    ("ended", "now", "reason"),
    [
        (True, 1001.0, "execution 3xAbC has ended"),
        (False, 4599.0, None),
        (False, 4660.0, "its deadline passed 60 s ago"),
        (None, 1000.0 + UNKNOWN_AFTER, None),
        (None, 1001.0 + UNKNOWN_AFTER, "Kestra doesn't know execution 3xAbC"),
        (None, 4660.0, "its deadline passed 60 s ago"),
    ],
)
def test_a_machine_is_reaped_when_ended_late_or_long_unknown(
    ended: bool | None, now: float, reason: str | None
) -> None:
    assert why_reap(TAGS, ended=ended, now=now) == reason


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> MemoryDriver:
    return use_memory(monkeypatch)


async def sweep_of_two(*, dry_run: bool = False) -> Sweep:
    """The sweep of two machines: the execution of the first has ended, the other's runs."""
    machines = Machines(settings(machine_provider="memory"))
    for execution in ("ended", "running"):
        await machines.create(execution, "job", 600)

    async def ended(execution: str) -> bool:
        return execution == "ended"

    return await reap(machines, ended, dry_run=dry_run)


async def test_reap_destroys_the_machine_of_an_ended_execution_only(memory: MemoryDriver) -> None:
    sweep = await sweep_of_two()
    assert [row.reason for row in sweep.reaped] == ["execution ended has ended"]
    assert sweep.kept == len(memory.nodes) == 1


async def test_a_dry_run_destroys_nothing(memory: MemoryDriver) -> None:
    sweep = await sweep_of_two(dry_run=True)
    assert (len(sweep.reaped), len(memory.nodes)) == (1, 2)


async def test_a_machine_that_can_not_be_destroyed_is_a_trouble_and_its_error(
    memory: MemoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: MemoryDriver, __: object) -> bool:
        raise ValueError("invalid request")

    monkeypatch.setattr(MemoryDriver, "destroy_node", refuse)
    sweep = await sweep_of_two()
    assert sweep.reaped[0].error == "memory refuses to destroy a machine: invalid request"
    assert len(sweep.troubles) == 1


async def test_without_kestra_only_machines_past_their_deadline_are_reaped(
    memory: MemoryDriver,
) -> None:
    machines = Machines(settings(machine_provider="memory"))
    await machines.create("late", "job", -1)
    await machines.create("early", "job", 600)

    async def unavailable(_: str) -> bool:
        raise KestraUnavailable("can't reach Kestra")

    sweep = await reap(machines, unavailable)
    assert [row.machine.tags.execution for row in sweep.reaped] == ["late"]
    assert len(sweep.troubles) == len(memory.nodes) == 1
