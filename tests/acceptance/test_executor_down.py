"""A Kestra whose web server answers while its executor is down: it accepts everything and runs
nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploy.local.kestra_engine import Engine
from tests.support.engine_stage import EngineStage
from tests.support.harness import eventually

NEVER_STARTED = {"why": "never_started"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Kestra 1.3: 2.0 answers a create only once its executor has seen it."""
    with Engine(
        tmp_path_factory.mktemp("kestra-1"), series="1.3", database="file", executor=False
    ) as running:
        yield running


async def test_a_job_beyond_its_time_waits_for_the_executor_and_then_runs_once(
    stage: EngineStage, engine: Engine
) -> None:
    async with stage.bridge(job_timeout=2, max_attempts=2, reconcile_interval=1) as bridge:
        await stage.submit("one")

        async def stuck() -> bool:
            return await bridge.metric("bridge_stuck_executions", **NEVER_STARTED) == 1

        await eventually(stuck, "the job is counted as stuck", timeout=60)
        engine.stop()
        engine.executor = True
        engine.start()
        (line,) = await bridge.settled(job="one", timeout=90)
    states = [execution.state.value for execution in await stage.executions()]
    assert (line["settlement"], line["attempt"], states) == ("ack", 1, ["SUCCESS"])
