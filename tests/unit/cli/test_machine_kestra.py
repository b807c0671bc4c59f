"""Which Kestra a machine that is made says it belongs to."""

from __future__ import annotations

import pytest

from bridge.cli.machine.kestra import server_to_name
from bridge.machines.order import server_of
from tests.support.standin import Standin
from tests.support.standin.answers import said_of_itself


async def test_it_is_the_one_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Standin() as kestra:
        monkeypatch.setenv("BRIDGE_KESTRA_URL", kestra.url)
        monkeypatch.setenv("BRIDGE_KESTRA_USERNAME", kestra.username)
        monkeypatch.setenv("BRIDGE_KESTRA_PASSWORD", kestra.password)
        named = await server_to_name()
    assert named == server_of(said_of_itself(kestra.series)["uuid"])


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:1"])
async def test_without_an_answer_it_is_none(
    url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BRIDGE_KESTRA_URL", raising=False)
    if url:
        monkeypatch.setenv("BRIDGE_KESTRA_URL", url)
    assert await server_to_name() == ""


def test_two_kestras_have_two_short_names() -> None:
    names = {server_of("4qBpZ0YQSoV1nVJ7Fb3mYk"), server_of("another"), server_of("")}
    assert sorted(map(len, names)) == [0, 16, 16]
