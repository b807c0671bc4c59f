"""Every provider that is not experimental, held to one behaviour against a stand-in of its API."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from dataclasses import replace

import pytest

from bridge.errors import MachineAnswerLost, MachineError, MachineUnavailable
from bridge.machines.lifecycle import Machines
from bridge.machines.order import name_of
from bridge.machines.policy import LifecyclePolicy
from bridge.machines.providers import PROVIDERS
from bridge.machines.reaping import Judgement, ReapPolicy, reap
from bridge.machines.settings import MachineSettings
from tests.support.harness import eventually
from tests.unit.machines.clouds import ADDRESS, DIALECTS, Cloud, Dialect, served
from tests.unit.machines.support import settings

PATIENT = LifecyclePolicy(busy_pause=0.02)
HASTY = LifecyclePolicy(
    provider_patience=5.0,
    busy_pause=0.02,
    listed_timeout=0.3,
    lost_answer_timeout=0.3,
    unlisted_wait=0.1,
    gone_timeout=0.3,
)


@pytest.fixture(params=DIALECTS, ids=lambda dialect: str(dialect.name))
def dialect(request: pytest.FixtureRequest) -> Iterator[Dialect]:
    made: Dialect = request.param(Cloud())
    with served(made):
        yield made


@pytest.fixture
def cloud(dialect: Dialect) -> Cloud:
    return dialect.cloud


@pytest.fixture
def account(dialect: Dialect) -> MachineSettings:
    given = {
        "machine_provider": dialect.name,
        "machine_endpoint": dialect.endpoint(),
        "machine_image": "1",
        "machine_size": "1",
    }
    return settings(**given, **dialect.settings)


@pytest.fixture
def hasty(account: MachineSettings) -> Machines:
    """Machines of an account whose waits are short."""
    return Machines(account, HASTY)


@pytest.fixture
def patient(account: MachineSettings) -> Machines:
    """Machines of an account with the waits of the real thing, which a test doesn't reach."""
    return Machines(account, PATIENT)


async def ended(_: str) -> bool:
    return True


async def unknown(_: str) -> None:
    return None


def test_every_provider_passes_or_is_marked_as_experimental() -> None:
    held = {dialect.name for dialect in DIALECTS}
    experimental = {name for name, provider in PROVIDERS.items() if provider.experimental}
    assert held | experimental == {*PROVIDERS} - {"qemu"}
    assert held & experimental == set()


async def test_a_machine_is_made_found_and_destroyed(hasty: Machines, cloud: Cloud) -> None:
    made = await hasty.create("3xAbC", "job", 600, server="one")
    assert (made.name, made.host, made.tags.server) == (name_of("3xAbC"), ADDRESS, "one")
    assert await hasty.find("3xAbC") == made
    assert await hasty.create("3xAbC", "job", 600) == made
    assert await hasty.destroy(execution="3xAbC") == [made]
    assert (cloud.records, cloud.made) == ({}, 1)


async def test_a_machine_ends_itself_at_its_deadline(hasty: Machines, cloud: Cloud) -> None:
    made = await hasty.create("3xAbC", "job", 600)
    (text,) = cloud.user_data
    if not text.startswith("#cloud-config"):
        text = base64.b64decode(text).decode()
    assert f"$(({int(made.tags.deadline)} - $(date +%s)))" in text


async def test_a_list_in_pages_shows_every_machine(hasty: Machines, cloud: Cloud) -> None:
    cloud.page_size = 1
    for number in range(3):
        await hasty.create(f"execution-{number}", "job", 600)
    assert len(await hasty.all()) == 3
    sweep = await reap(hasty, ended)
    assert (len(sweep.reaped), cloud.records) == (3, {})


async def test_a_machine_that_is_listed_late_is_waited_for(patient: Machines, cloud: Cloud) -> None:
    cloud.lists_late = 4
    await patient.create("3xAbC", "job", 600)
    assert len(cloud.records) == 1


async def test_a_create_that_is_stopped_before_the_machine_is_listed_leaves_none(
    patient: Machines, cloud: Cloud
) -> None:
    cloud.lists_late = 1000
    task = asyncio.create_task(patient.create("3xAbC", "job", 600))
    await eventually(lambda: cloud.records, "the machine is made")
    task.cancel()
    await asyncio.wait([task])
    assert (task.cancelled(), cloud.records) == (True, {})


async def test_a_machine_that_is_never_listed_is_destroyed(hasty: Machines, cloud: Cloud) -> None:
    cloud.lists_late = 1000
    with pytest.raises(MachineUnavailable, match="is not listed with its tags"):
        await hasty.create("3xAbC", "job", 600)
    assert cloud.records == {}


async def test_a_machine_whose_tags_are_dropped_is_destroyed(hasty: Machines, cloud: Cloud) -> None:
    cloud.drops_tags = True
    with pytest.raises(MachineUnavailable, match="is not listed with its tags"):
        await hasty.create("3xAbC", "job", 600)
    assert cloud.records == {}


async def test_a_destroy_that_is_refused_names_the_machine(hasty: Machines, cloud: Cloud) -> None:
    made = await hasty.create("3xAbC", "job", 600)
    cloud.refuses_deletes = True
    with pytest.raises(MachineError, match=rf"machine {made.name} \S.*\(id {made.id}\)"):
        await hasty.destroy(execution="3xAbC")
    assert len(cloud.records) == 1


async def test_a_time_out_after_creating_leaves_no_machine(patient: Machines, cloud: Cloud) -> None:
    cloud.loses_answers = True
    cloud.lists_late = 3
    with pytest.raises(MachineAnswerLost):
        await patient.create("3xAbC", "job", 600)
    assert (cloud.made, cloud.records) == (1, {})


async def test_a_rate_limit_is_waited_out(patient: Machines, cloud: Cloud) -> None:
    cloud.limited = 2
    await patient.create("3xAbC", "job", 600)
    cloud.limited = 2
    await patient.destroy(execution="3xAbC")
    assert (cloud.made, cloud.records) == (1, {})


async def test_a_lack_of_room_is_waited_out(patient: Machines, cloud: Cloud) -> None:
    cloud.full = 2
    await patient.create("3xAbC", "job", 600)
    assert cloud.made == 1


async def test_an_api_that_is_down_for_a_while_is_waited_for(
    patient: Machines, cloud: Cloud
) -> None:
    cloud.down = 3
    await patient.create("3xAbC", "job", 600)
    cloud.down = 3
    await patient.destroy(execution="3xAbC")
    assert (cloud.made, cloud.records) == (1, {})


async def test_marks_are_kept_at_the_provider(hasty: Machines, cloud: Cloud) -> None:
    policy = ReapPolicy(unknown_after=-1, confirmed_after=-1, most_unknown=1)
    made = await hasty.create("3xAbC", "job", 600, server="one")
    assert (await reap(hasty, unknown, policy=policy)).troubles == []
    (marked,) = await hasty.all()
    assert replace(marked.tags, unknown=0.0) == made.tags
    assert marked.tags.unknown
    await hasty.inventory.mark_unknown(marked, 0.0)
    assert [machine.tags for machine in await hasty.all()] == [made.tags]
    rounds = [await reap(hasty, unknown, policy=policy) for _ in range(2)]
    assert [row.verdict for row in rounds[1].reaped] == [Judgement.UNKNOWN]
    assert cloud.records == {}
