"""The doctor with Kestra's real engine: silent where all is well, and it names what is planted
there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import pytest
from pydantic import SecretStr

from bridge.operate.doctor.finding import Finding, Level
from bridge.operate.doctor.probe import KILL, ROUND_TRIP
from tests.support.engine_stage import EngineStage
from tests.support.harness import eventually

NOTIFIER = "/flows/bridge.system/notifier"


@pytest.fixture(autouse=True)
async def _of_our_own(stage: EngineStage) -> None:
    """What the doctor is to find is planted, which nobody's own servers are for."""
    assert stage.node.alive


def of(findings: list[Finding], check: str) -> list[tuple[Level, str]]:
    """Level and words of what a check finds."""
    return [(finding.level, finding.what) for finding in findings if finding.check == check]


def replaced(source: str, texts: Mapping[str, str]) -> str:
    for old, new in texts.items():
        assert old in source
        source = source.replace(old, new)
    return source


async def put(stage: EngineStage, path: str, source: str) -> None:
    answer = await stage.api.put(
        path, content=source.encode(), headers={"Content-Type": "application/x-yaml"}
    )
    assert answer.status_code == 200, answer.text


@asynccontextmanager
async def notifier(stage: EngineStage, change: Callable[[str], str]) -> AsyncIterator[None]:
    """The notifier changed so, and afterwards as it was."""
    source = (await stage.api.get(NOTIFIER, params={"source": "true"})).json()["source"]
    await put(stage, NOTIFIER, change(source))
    try:
        yield
    finally:
        await put(stage, NOTIFIER, source)


async def test_a_sound_installation_is_all_ok_and_keeps_nothing_of_the_probes(
    stage: EngineStage,
) -> None:
    async with stage.bridge():

        async def silent() -> bool:
            return await stage.diagnosed() == []

        # The management API's figures come late, and the doctor says so meanwhile.
        await eventually(silent, "nothing is wrong", timeout=20, every=0.5)
        found = await stage.diagnosed(patience=30)
    for probe in (ROUND_TRIP, KILL):
        left = await stage.api.get(
            "/executions/search", params={"filters[flowId][EQUALS]": probe.flow.id}
        )
        flow = await stage.api.get(f"/flows/{probe.flow}")
        assert (found, left.json()["results"], flow.status_code) == ([], [], 404)


@pytest.mark.parametrize(
    ("change", "level", "words"),
    [
        (lambda source: source + "\ndisabled: true\n", Level.FAULT, "is disabled"),
        (
            lambda source: replaced(source, {"maxAttempts: 5": "maxAttempts: 6"}),
            Level.WARNING,
            "not the one that ships",
        ),
    ],
    ids=["disabled", "changed"],
)
async def test_a_notifier_that_is_not_right_is_found(
    stage: EngineStage, change: Callable[[str], str], level: Level, words: str
) -> None:
    async with notifier(stage, change):
        ((found, what),) = of(await stage.diagnosed(), "notifier")
    assert (found, words in what) == (level, True)


async def test_a_secret_that_the_notifier_lacks_is_named_by_the_round_trip(
    stage: EngineStage,
) -> None:
    await stage.bridge().start()  # which declares the exchange
    # It is not tried again: a notice that is still at it would keep the engine from ending.
    broken = {"BRIDGE_AMQP_HOST": "BRIDGE_NOT_THERE", "maxAttempts: 5": "maxAttempts: 1"}
    async with notifier(stage, lambda source: replaced(source, broken)):
        ((level, what),) = of(await stage.diagnosed(patience=5), "round-trip")
    assert (level, "no reply within 5 s: the notifier's" in what, "BRIDGE_NOT_THERE" in what) == (
        Level.FAULT,
        True,
        True,
    ), what


@pytest.mark.parametrize(
    ("source", "check", "level", "words"),
    [
        ("", "flows", Level.FAULT, "there is no flow"),
        ("disabled: true", "flows", Level.FAULT, "is disabled"),
        (
            "concurrency: {limit: 3, behavior: QUEUE}",
            "concurrency",
            Level.WARNING,
            "may run 3 times at once",
        ),
    ],
    ids=["missing", "disabled", "limited"],
)
async def test_a_flow_that_does_not_fit_is_found(
    stage: EngineStage, source: str, check: str, level: Level, words: str
) -> None:
    if source:
        task = "{id: say, type: io.kestra.plugin.core.log.Log, message: hello}"
        await stage.deploy(f"id: other\nnamespace: {stage.name}\n{source}\ntasks: [{task}]\n")
    ((found, what),) = of(await stage.diagnosed(flow=f"{stage.name}/other"), check)
    assert (found, words in what) == (level, True)


async def test_a_wrong_password_is_found_and_not_shown(stage: EngineStage) -> None:
    found = await stage.diagnosed(kestra_password=SecretStr("wrong-Passw0rd"))
    ((level, what),) = of(found, "kestra")
    assert (level, "refuses the credentials" in what, "wrong-Passw0rd" in str(found)) == (
        Level.FAULT,
        True,
        False,
    )
