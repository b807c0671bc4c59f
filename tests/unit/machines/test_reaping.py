"""Which machines are destroyed, and why."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from libcloud.compute.base import Node

from bridge.cli.machine.reap import measured
from bridge.errors import KestraUnavailable, MachineDenied, MachineRejected
from bridge.machines.lifecycle import Machines
from bridge.machines.machine import Machine
from bridge.machines.metrics import write_metrics
from bridge.machines.order import PREFIX, Tags
from bridge.machines.reaping import Judgement, Reaped, ReapPolicy, Sweep, judge, reap, why
from tests.unit.machines.support import QUICK, TAGS, MemoryDriver, settings, use_memory

MARKED = replace(TAGS, unknown=1700.0)
OF_ONE = replace(TAGS, server="one")
AT_ONCE = ReapPolicy(unknown_after=-1.0, confirmed_after=-1.0, most_unknown=1.0)


@pytest.mark.parametrize(
    ("tags", "ended", "now", "verdict"),
    [
        (TAGS, True, 1001.0, Judgement.ENDED),
        (TAGS, False, 4599.0, Judgement.KEEP),
        (TAGS, False, 4660.0, Judgement.DEADLINE),
        (TAGS, None, 1600.0, Judgement.KEEP),
        (TAGS, None, 1601.0, Judgement.MARK),
        (TAGS, None, 4660.0, Judgement.DEADLINE),
        (MARKED, None, 1759.0, Judgement.KEEP),
        (MARKED, None, 1760.0, Judgement.UNKNOWN),
        (MARKED, False, 1760.0, Judgement.UNMARK),
        (MARKED, True, 1701.0, Judgement.ENDED),
        (OF_ONE, True, 1001.0, Judgement.FOREIGN),
        (OF_ONE, None, 1601.0, Judgement.FOREIGN),
        (OF_ONE, False, 4660.0, Judgement.DEADLINE),
    ],
)
def test_a_machine_is_reaped_when_ended_late_or_unknown_to_two_rounds(
    tags: Tags, ended: bool | None, now: float, verdict: Judgement
) -> None:
    assert judge(tags, ended=ended, now=now, server="another") is verdict


@pytest.mark.parametrize(("tags", "server"), [(OF_ONE, "one"), (OF_ONE, ""), (TAGS, "another")])
def test_a_machine_is_anothers_only_if_both_kestras_are_known(tags: Tags, server: str) -> None:
    assert judge(tags, ended=True, now=1001.0, server=server) is Judgement.ENDED


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        (Judgement.DEADLINE, "its deadline passed 60 s ago"),
        (Judgement.ENDED, "execution 3xAbC has ended"),
        (Judgement.UNKNOWN, "Kestra doesn't know execution 3xAbC"),
    ],
)
def test_the_reason_is_told(verdict: Judgement, reason: str) -> None:
    assert why(TAGS, verdict, now=4660.0) == reason


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> MemoryDriver:
    return use_memory(monkeypatch)


async def sweep_of_two(*, dry_run: bool = False) -> Sweep:
    """The sweep of two machines: the execution of the first has ended, the other's runs."""
    machines = Machines(settings(machine_provider="memory"), QUICK)
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
    (trouble,) = sweep.troubles
    assert sweep.reaped[0].error == trouble
    assert trouble == (
        f"machine {sweep.reaped[0].machine.name} may be left (id 1): "
        "memory refuses to destroy a machine: invalid request"
    )


async def test_without_kestra_only_machines_past_their_deadline_are_reaped(
    memory: MemoryDriver,
) -> None:
    machines = Machines(settings(machine_provider="memory"), QUICK)
    await machines.create("late", "job", -1)
    await machines.create("early", "job", 600)

    async def unavailable(_: str) -> bool:
        raise KestraUnavailable("can't reach Kestra")

    sweep = await reap(machines, unavailable)
    assert [row.machine.tags.execution for row in sweep.reaped] == ["late"]
    assert len(sweep.troubles) == len(memory.nodes) == 1


class Executions:
    """What a Kestra says of executions. It doesn't know those that it isn't told of."""

    def __init__(self, known: Mapping[str, bool]) -> None:
        self.known = dict(known)

    async def __call__(self, execution: str) -> bool | None:
        return self.known.get(execution)


async def running(count: int, *, server: str = "") -> Machines:
    """Machines of that many executions, `execution-0` and so on."""
    machines = Machines(settings(machine_provider="memory"), QUICK)
    for number in range(count):
        await machines.create(f"execution-{number}", "job", 600, server=server)
    return machines


async def test_a_round_only_marks_what_the_next_one_destroys(memory: MemoryDriver) -> None:
    machines = await running(1)
    first = await reap(machines, Executions({}), policy=AT_ONCE)
    assert ([*first.reaped], len(first.marked), len(memory.nodes)) == ([], 1, 1)
    second = await reap(machines, Executions({}), policy=AT_ONCE)
    assert [row.verdict for row in second.reaped] == [Judgement.UNKNOWN]
    assert memory.nodes == {}


async def test_a_mark_is_taken_back_when_the_execution_is_known_again(
    memory: MemoryDriver,
) -> None:
    machines = await running(1)
    for known in ({}, {"execution-0": False}, {}):
        await reap(machines, Executions(known), policy=AT_ONCE)
    assert len(memory.nodes) == 1


async def test_two_rounds_within_a_minute_are_one_look(memory: MemoryDriver) -> None:
    machines = await running(1)
    policy = replace(AT_ONCE, confirmed_after=60.0)
    for _ in range(2):
        await reap(machines, Executions({}), policy=policy)
    assert len(memory.nodes) == 1


async def test_a_reaper_that_asks_another_kestra_destroys_none_of_three(
    memory: MemoryDriver,
) -> None:
    machines = await running(3)
    policy = ReapPolicy(unknown_after=-1.0, confirmed_after=-1.0)
    for _ in range(3):
        sweep = await reap(machines, Executions({}), policy=policy)
    assert len(memory.nodes) == 3
    assert sweep.refused
    assert "3 of 3 running machines" in sweep.troubles[0]


async def test_new_machines_that_are_unknown_count_for_the_brake(memory: MemoryDriver) -> None:
    machines = await running(3)
    old = memory.nodes["1"]
    old.extra["tags"] = {**old.extra["tags"], f"{PREFIX}created": "1000"}
    for _ in range(2):
        sweep = await reap(machines, Executions({}), policy=ReapPolicy(confirmed_after=-1.0))
    assert (sweep.refused, len(memory.nodes)) == (True, 3)


async def test_half_of_the_machines_may_be_unknown(memory: MemoryDriver) -> None:
    machines = await running(2)
    policy = ReapPolicy(unknown_after=-1.0, confirmed_after=-1.0)
    for _ in range(2):
        sweep = await reap(machines, Executions({"execution-0": False}), policy=policy)
    assert [row.machine.tags.execution for row in sweep.reaped] == ["execution-1"]
    assert (sweep.refused, len(memory.nodes)) == (False, 1)


async def test_a_reaper_of_another_kestra_leaves_machines_even_of_ended_executions(
    memory: MemoryDriver,
) -> None:
    machines = await running(2, server="one")
    ended = Executions({"execution-0": True, "execution-1": True})
    sweep = await reap(machines, ended, server="another")
    assert (sweep.foreign, sweep.kept, list(sweep.troubles), len(memory.nodes)) == (2, 2, [], 2)


async def test_a_reaper_of_another_kestra_keeps_deadlines(memory: MemoryDriver) -> None:
    machines = Machines(settings(machine_provider="memory"), QUICK)
    await machines.create("late", "job", -1, server="one")
    await reap(machines, Executions({}), server="another")
    assert memory.nodes == {}


async def test_a_machine_that_can_not_be_marked_is_a_trouble_and_stays(
    memory: MemoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = await running(1)

    async def refuse(*_: object) -> None:
        raise MachineDenied("no right to tag")

    monkeypatch.setattr(machines.inventory, "mark_unknown", refuse)
    for _ in range(2):
        sweep = await reap(machines, Executions({}), policy=AT_ONCE)
    assert "can't be marked" in sweep.troubles[0]
    assert len(memory.nodes) == 1


async def test_one_machine_that_stays_does_not_keep_the_others(
    memory: MemoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = await running(3)
    destroy = MemoryDriver.destroy_node

    def refuse_first(self: MemoryDriver, node: Node) -> bool:
        if node.id == "1":
            raise ValueError("invalid request")
        return destroy(self, node)

    monkeypatch.setattr(MemoryDriver, "destroy_node", refuse_first)
    with pytest.raises(MachineRejected, match=r"kestra-execution-0\S* may be left \(id 1\)"):
        await machines.destroy_all(await machines.all())
    assert list(memory.nodes) == ["1"]


def lines_of(file: Path) -> list[str]:
    return [line for line in file.read_text().splitlines() if not line.startswith("#")]


async def test_a_round_writes_its_metrics(memory: MemoryDriver, tmp_path: Path) -> None:
    del memory
    file = tmp_path / "machines.prom"
    sweep = await sweep_of_two()
    write_metrics(sweep, file, now=time.time())
    assert 'bridge_machines{state="running"} 1.0' in lines_of(file)
    assert 'bridge_machines_reaped_total{reason="ended"} 1.0' in lines_of(file)
    assert "bridge_machines_overdue_seconds 0.0" in lines_of(file)


async def test_the_counters_of_the_metrics_go_on(memory: MemoryDriver, tmp_path: Path) -> None:
    del memory
    file = tmp_path / "machines.prom"
    sweep = await sweep_of_two()
    for _ in range(3):
        write_metrics(sweep, file, now=time.time())
    assert 'bridge_machines_reaped_total{reason="ended"} 3.0' in lines_of(file)


def test_a_machine_that_is_left_beyond_its_deadline_shows_in_the_metrics(tmp_path: Path) -> None:
    file = tmp_path / "machines.prom"
    failed = Reaped(
        machine=machine_with(TAGS), verdict=Judgement.DEADLINE, reason="late", error="no"
    )
    sweep = Sweep(reaped=[failed], kept=0, troubles=["no"], seen=[failed.machine])
    write_metrics(sweep, file, now=TAGS.deadline + 60)
    assert "bridge_machines_overdue_seconds 60.0" in lines_of(file)
    assert "bridge_machines_destroys_refused_total 1.0" in lines_of(file)


def test_a_damaged_file_of_metrics_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "machines.prom"
    file.write_text("bridge_machines_reaped_total{ 1")
    write_metrics(Sweep(reaped=[], kept=0, troubles=[]), file, now=1000.0)
    assert "bridge_machines_reap_timestamp_seconds 1000.0" in lines_of(file)


def machine_with(tags: Tags) -> Machine:
    return Machine(
        id="1",
        name="kestra-a",
        state="running",
        host="127.0.0.1",
        port=22,
        user="job",
        host_key="",
        tags=tags,
        dead=False,
    )


async def test_what_kestra_can_not_be_asked_for_does_not_lift_the_brake(
    memory: MemoryDriver,
) -> None:
    machines = await running(5)

    async def answer(execution: str) -> bool | None:
        if execution in ("execution-0", "execution-1", "execution-2"):
            raise KestraUnavailable("can't reach Kestra")
        return None

    policy = ReapPolicy(unknown_after=-1.0, confirmed_after=-1.0)
    for _ in range(2):
        sweep = await reap(machines, answer, policy=policy)
    assert (sweep.refused, len(memory.nodes)) == (True, 5)


def test_metrics_that_can_not_be_written_are_a_trouble_of_the_round(tmp_path: Path) -> None:
    nothing = Sweep(reaped=[], kept=0, troubles=[])
    (trouble,) = measured(nothing, tmp_path / "nowhere" / "machines.prom").troubles
    assert trouble.startswith("can't write BRIDGE_MACHINE_METRICS_FILE ")
    assert trouble.endswith("machines.prom: No such file or directory")
