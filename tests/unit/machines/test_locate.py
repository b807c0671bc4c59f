"""A machine that has ended is told by its provider, before a wait for it is over."""

from __future__ import annotations

import asyncio

import pytest
from libcloud.compute.base import Node
from libcloud.compute.types import NodeState

from bridge.machines.identity import SshIdentity
from bridge.machines.lifecycle import Machines
from bridge.machines.locate import Locator
from bridge.machines.policy import LifecyclePolicy
from bridge.machines.ssh import Address, MachineGone, UntilGone, connected
from deploy.local.paths import free_port
from tests.unit.machines.support import SECRET, MemoryDriver, settings, use_memory

POLICY = LifecyclePolicy(look_again=0.01)
TIMEOUT = 60.0


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> MemoryDriver:
    return use_memory(monkeypatch)


async def located(memory: MemoryDriver) -> UntilGone:
    """The watch over a machine of that provider."""
    ours = settings(machine_provider="memory")
    await Machines(ours, POLICY).create("e1", "job", 600)
    assert memory.nodes
    address = await Locator(settings=ours, execution="e1", policy=POLICY).locate()
    assert address.until_gone
    return address.until_gone


async def test_the_machine_of_an_execution_is_known_by_its_name_before_it_is_found(
    memory: MemoryDriver,
) -> None:
    ours = settings(machine_provider="memory")
    machine = await Machines(ours, POLICY).create("e1", "job", 600)
    assert Locator(settings=ours, execution="e1").machine_name == machine.name


async def test_a_machine_that_is_dead_is_gone(memory: MemoryDriver) -> None:
    until_gone = await located(memory)
    memory.console = "kernel panic\x1b[2J"
    (node,) = memory.nodes.values()
    node.state = NodeState.ERROR
    said = await asyncio.wait_for(until_gone(), TIMEOUT)
    assert "has ended by itself (error)" in said
    assert said.endswith(r"kernel panic\x1b[2J")


async def test_a_machine_that_is_no_longer_listed_is_gone(memory: MemoryDriver) -> None:
    until_gone = await located(memory)
    memory.nodes.clear()
    assert "is no longer there" in await asyncio.wait_for(until_gone(), TIMEOUT)


async def test_a_machine_is_not_gone_because_a_list_misses_it_once_or_fails(
    memory: MemoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    until_gone = await located(memory)
    answers: list[list[Node] | Exception] = [[], [*memory.nodes.values()], OSError("down")] * 2
    enough = asyncio.Event()
    loop = asyncio.get_running_loop()

    def list_nodes() -> list[Node]:
        if not answers:
            loop.call_soon_threadsafe(enough.set)
            return list(memory.nodes.values())
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(memory, "list_nodes", list_nodes)
    watch = asyncio.ensure_future(until_gone())
    await asyncio.wait_for(enough.wait(), TIMEOUT)
    assert not watch.done()
    watch.cancel()


async def test_the_wait_for_a_machine_ends_once_it_is_gone() -> None:
    async def until_gone() -> str:
        return "it has ended"

    address = Address(
        name="m",
        host="127.0.0.1",
        port=free_port(),
        user="job",
        identity=SshIdentity.derive(SECRET, "m"),
        until_gone=until_gone,
    )
    with pytest.raises(MachineGone, match="was lost: it has ended"):
        async with connected(address, wait=10 * TIMEOUT):
            pass
