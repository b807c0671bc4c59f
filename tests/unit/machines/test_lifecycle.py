"""A machine's life at a provider in memory."""

from __future__ import annotations

import asyncio
import re
import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libcloud.common.exceptions import BaseHTTPError
from libcloud.compute.base import Node
from libcloud.compute.types import NodeState

from bridge.errors import (
    MachineAnswerLost,
    MachineProviderBusy,
    MachineUnavailable,
    SettingsError,
)
from bridge.machines.inventory import owner_of
from bridge.machines.lifecycle import Machines
from bridge.machines.order import Order, name_of
from bridge.machines.providers import PROVIDERS
from tests.support.harness import eventually
from tests.unit.machines.support import QUICK, MemoryDriver, settings, use_memory

executions = st.from_regex(r"[A-Za-z0-9_-]{1,33}", fullmatch=True)


@given(executions)
def test_a_name_is_one_that_every_provider_takes(execution: str) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name_of(execution))
    assert len(name_of(execution)) <= 63


@given(executions, executions)
def test_two_executions_never_share_a_name(first: str, second: str) -> None:
    assert (name_of(first) == name_of(second)) == (first == second)


def test_two_secrets_have_two_owners_that_do_not_reveal_them() -> None:
    owners = {owner_of(secret) for secret in ("a" * 16, "b" * 16)}
    assert len(owners) == 2
    assert not any("aaaa" in owner or "bbbb" in owner for owner in owners)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> MemoryDriver:
    return use_memory(monkeypatch)


@pytest.fixture
def machines(memory: MemoryDriver) -> Machines:
    del memory
    return Machines(settings(machine_provider="memory"), QUICK)


@pytest.mark.parametrize(("attempt", "spot"), [(1, True), (2, False)])
async def test_only_the_first_attempt_gets_a_spot_machine_if_the_setting_says_so(
    memory: MemoryDriver, monkeypatch: pytest.MonkeyPatch, attempt: int, spot: bool
) -> None:
    monkeypatch.setattr(type(PROVIDERS["memory"]), "has_spot", True)
    machines = Machines(settings(machine_provider="memory", machine_spot="first"))
    await machines.create("3xAbC", "job", 600, attempt=attempt)
    assert [order.spot for order in memory.ordered] == [spot]


async def test_a_second_create_finds_the_first_ones_machine(
    machines: Machines, memory: MemoryDriver
) -> None:
    first = await machines.create("3xAbC", "job", 600)
    assert await machines.create("3xAbC", "job", 600) == first
    assert len(memory.nodes) == 1


async def test_a_dead_machine_is_replaced(machines: Machines, memory: MemoryDriver) -> None:
    dead = await machines.create("3xAbC", "job", 600)
    memory.nodes[dead.id].state = NodeState.ERROR
    assert not (await machines.create("3xAbC", "job", 600)).dead


async def test_a_machine_that_is_listed_late_is_waited_for(
    machines: Machines, memory: MemoryDriver
) -> None:
    memory.lists_late = 2
    assert (await machines.create("3xAbC", "job", 600)).tags.execution == "3xAbC"


async def test_a_create_whose_answer_is_lost_leaves_no_machine(
    machines: Machines, memory: MemoryDriver
) -> None:
    memory.fails = [TimeoutError("no answer")]
    with pytest.raises(MachineUnavailable, match="can't reach memory to create a machine"):
        await machines.create("3xAbC", "job", 600)
    assert memory.nodes == {}


async def test_a_create_that_fails_adopts_the_machine_of_a_faster_task(
    machines: Machines, memory: MemoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Machines(settings(machine_provider="memory"))
    create = MemoryDriver.create

    def create_second(self: MemoryDriver, order: Order) -> Node:
        create(self, replace(order, tags=replace(order.tags, call="another")))
        raise ValueError("invalid: there is one")

    monkeypatch.setattr(MemoryDriver, "create", create_second)
    machine = await machines.create("3xAbC", "job", 600)
    assert machine == await other.find("3xAbC")
    assert len(memory.nodes) == 1


async def test_a_machine_that_dies_at_its_start_is_an_error_with_its_last_words(
    machines: Machines, memory: MemoryDriver
) -> None:
    memory.state_of_new = NodeState.ERROR
    memory.console = "kernel panic"
    with pytest.raises(MachineUnavailable, match=r"ended by itself.*it last said: kernel panic"):
        await machines.create("3xAbC", "job", 600)
    assert memory.nodes == {}


async def test_destroy_waits_until_the_machine_is_gone(
    machines: Machines, memory: MemoryDriver
) -> None:
    machine = await machines.create("3xAbC", "job", 600)
    memory.destroys_late = 1
    assert await machines.destroy(name=machine.name) == [machine]
    assert memory.nodes == {}


async def test_a_machine_that_stays_is_an_error(machines: Machines, memory: MemoryDriver) -> None:
    await machines.create("3xAbC", "job", 600)
    memory.destroys_late = 1000
    with pytest.raises(MachineUnavailable, match=r"is still there 0\.3 s later"):
        await machines.destroy(execution="3xAbC")


async def test_machines_of_another_secret_are_not_ours(
    machines: Machines, memory: MemoryDriver
) -> None:
    other = settings(machine_provider="memory", machine_secret="another bridge's own secret")
    await Machines(other).create("3xAbC", "job", 600)
    assert await machines.all() == []
    assert len(memory.nodes) == 1


@pytest.mark.parametrize("execution", ["", "../../etc", "a b", "x" * 34, "$(id)"])
async def test_an_execution_with_an_invalid_id_gets_no_machine(
    machines: Machines, memory: MemoryDriver, execution: str
) -> None:
    with pytest.raises(SettingsError, match="is not a valid execution id"):
        await machines.create(execution, "job", 600)
    assert memory.nodes == {}


async def test_a_machine_that_no_list_shows_is_destroyed_by_its_id(
    machines: Machines, memory: MemoryDriver
) -> None:
    memory.lists_late = 1000
    with pytest.raises(MachineUnavailable, match=r"is not listed with its tags 0\.3 s after"):
        await machines.create("3xAbC", "job", 600)
    assert memory.nodes == {}


async def test_a_create_that_is_cancelled_while_no_list_shows_the_machine_destroys_it(
    machines: Machines, memory: MemoryDriver
) -> None:
    memory.lists_late = 1000
    task = asyncio.create_task(machines.create("3xAbC", "job", 600))
    await eventually(lambda: memory.nodes, "the machine is made")
    task.cancel()
    await asyncio.wait([task])
    assert (task.cancelled(), memory.nodes) == (True, {})


async def test_a_cancelled_create_ends_with_what_the_provider_made_after_all(
    machines: Machines, memory: MemoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, begun, go = MemoryDriver.create, threading.Event(), threading.Event()

    def slow(self: MemoryDriver, order: Order) -> Node:
        begun.set()
        assert go.wait(60)
        return create(self, order)

    monkeypatch.setattr(MemoryDriver, "create", slow)
    task = asyncio.create_task(machines.create("3xAbC", "job", 600))
    await eventually(begun.is_set, "the provider is asked")
    task.cancel()
    go.set()
    await asyncio.wait([task])
    assert (task.cancelled(), memory.nodes) == (True, {})


async def test_a_list_that_hangs_does_not_hold_up_a_cancelled_create(
    machines: Machines, memory: MemoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()

    def hang(_: MemoryDriver) -> list[Node]:
        begun.set()
        go.wait(60)
        return []

    monkeypatch.setattr(MemoryDriver, "list_nodes", hang)
    task = asyncio.create_task(machines.create("3xAbC", "job", 600))
    await eventually(begun.is_set, "the provider is asked")
    task.cancel()
    await asyncio.wait([task], timeout=30)
    go.set()
    assert (task.cancelled(), memory.nodes) == (True, {})


async def test_a_create_whose_answer_is_lost_looks_for_a_machine_that_is_listed_late(
    machines: Machines, memory: MemoryDriver
) -> None:
    memory.fails = [TimeoutError("no answer")]
    memory.lists_late = 3
    with pytest.raises(MachineAnswerLost):
        await machines.create("3xAbC", "job", 600)
    assert memory.nodes == {}


async def test_a_create_says_what_may_be_left(machines: Machines, memory: MemoryDriver) -> None:
    memory.fails = [TimeoutError("no answer")]
    memory.lists_late = 1000
    with pytest.raises(MachineAnswerLost, match="did not say whether it made the machine"):
        await machines.create("3xAbC", "job", 600)


async def test_a_create_names_the_machine_that_it_could_not_destroy(
    machines: Machines, memory: MemoryDriver
) -> None:
    memory.lists_late, memory.destroys_late = 1000, 1000
    said = f"{name_of('3xAbC')} is still there"
    with pytest.raises(MachineUnavailable, match=said):
        await machines.create("3xAbC", "job", 600)


async def test_a_destroy_waits_for_a_machine_that_is_listed_late(
    machines: Machines, memory: MemoryDriver
) -> None:
    machine = await machines.create("3xAbC", "job", 600)
    memory.lists_late = 1
    patient = Machines(settings(machine_provider="memory"), replace(QUICK, unlisted_wait=60.0))
    assert await patient.destroy(execution="3xAbC") == [machine]
    assert memory.nodes == {}


def busy(text: str) -> Exception:
    error: Exception = BaseHTTPError(503, text)  # type: ignore[no-untyped-call]
    return error


@pytest.mark.parametrize(
    "text", ["InsufficientInstanceCapacity", "RequestLimitExceeded", "VcpuLimitExceeded"]
)
async def test_a_provider_without_room_is_asked_again(
    machines: Machines, memory: MemoryDriver, text: str
) -> None:
    memory.refuses = [busy(text)]
    await machines.create("3xAbC", "job", 600)
    assert len(memory.nodes) == 1


async def test_a_provider_without_room_is_told_as_that_after_the_boot_time(
    memory: MemoryDriver,
) -> None:
    memory.refuses = [busy("InsufficientInstanceCapacity") for _ in range(100)]
    machines = Machines(settings(machine_provider="memory", machine_boot_timeout=0.2), QUICK)
    with pytest.raises(
        MachineProviderBusy, match=r"memory has no room at the moment.*asked again for 0\.2 s"
    ):
        await machines.create("3xAbC", "job", 600)
    assert memory.nodes == {}


async def test_the_next_size_is_tried_at_once_where_one_is_not_to_be_had(
    memory: MemoryDriver,
) -> None:
    memory.refuses = [busy("InsufficientInstanceCapacity") for _ in range(3)]
    machines = Machines(
        settings(machine_provider="memory", machine_size="a, b", machine_network="n,m"), QUICK
    )
    machine = await machines.create("3xAbC", "job", 600)
    assert machine.tags.size == "b"
    assert memory.asked == [("a", "n"), ("a", "m"), ("b", "n"), ("b", "m")]


async def test_tags_that_the_provider_drops_leave_no_machine(
    machines: Machines, memory: MemoryDriver
) -> None:
    memory.drops_tags = True
    with pytest.raises(MachineUnavailable, match="is not listed with its tags"):
        await machines.create("3xAbC", "job", 600)
    assert memory.nodes == {}


async def test_the_loser_of_two_creates_at_once_destroys_its_own_machine_once(
    machines: Machines, memory: MemoryDriver
) -> None:
    other = Machines(settings(machine_provider="memory"), QUICK)
    first, second = await asyncio.gather(
        machines.create("3xAbC", "job", 600), other.create("3xAbC", "job", 600)
    )
    assert [*memory.nodes] == [first.id] == [second.id]


async def test_a_machine_that_was_destroyed_while_it_booted_is_not_said_to_be_left(
    memory: MemoryDriver,
) -> None:
    machines = Machines(settings(machine_provider="memory", machine_boot_timeout=5), QUICK)
    memory.refuses_unknown = True
    task = asyncio.create_task(machines.create("3xAbC", "job", 600, wait=True))
    await eventually(lambda: memory.nodes, "the machine is made")
    await eventually(lambda: memory.listed > 2, "the machine is listed")
    memory.nodes.clear()
    with pytest.raises(MachineUnavailable, match=r"is no longer there$"):
        await task
